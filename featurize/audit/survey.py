"""Reads every image once, at a small size, for the pixel checks and the shortcut probes."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.sources import ImageSource, open_source
from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.images.decode import FORMATS, MAX_PIXELS, decode

SIDE = 32
# Side of the images that are registered.
FINE_SIDE = 64
# Grey levels are measured at this side; a large JPEG is decoded at a power-of-two fraction of its size.
_LEVELS_SIDE = 128
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
FILE_FACTS = ("width", "height", "aspect", "megapixels", "bytes", "bytes_per_pixel")
LEVEL_FACTS = ("mean", "deviation", "black", "white", "colour", *(f"p{q}" for q in _PERCENTILES))

Progress = Callable[[int, int], None]
"""Called with images read and images to read."""


@dataclass(frozen=True)
class Survey:
    """Small images and properties of N images; rows of missing ones are zero.

    Attributes:
        grey: uint8 (N, 32, 32), squashed to a square.
        fine: uint8 (N, 64, 64), the same.
        file_facts: float32 (N, len(FILE_FACTS)); sizes and lengths as logarithms.
        level_facts: float32 (N, len(LEVEL_FACTS)), grey levels 0 to 255.
        kind: file format and pixel mode, such as ``JPEG L``.
        present: bool (N,), the file exists and could be read.
        changed: bool (N,), its length differs from when its features were computed.
    """

    grey: NDArray[np.uint8]
    fine: NDArray[np.uint8]
    file_facts: NDArray[np.float32]
    level_facts: NDArray[np.float32]
    kind: list[str]
    present: NDArray[np.bool_]
    changed: NDArray[np.bool_]


class _Seen(NamedTuple):
    grey: NDArray[np.uint8]
    fine: NDArray[np.uint8]
    file_facts: list[float]
    level_facts: list[float]
    kind: str
    changed: bool


def survey_images(cache: FeatureCache, *, progress: Progress | None = None, workers: int | None = None) -> Survey:
    """Read every image of a cache, in threads, a bounded number ahead.

    Args:
        cache: gives paths and the data root.
        progress: called after each image.
        workers: decoding threads; by default as many as there are cores.

    Returns:
        About 5.2 kB per image.
    """
    count = len(cache)
    survey = Survey(
        np.zeros((count, SIDE, SIDE), np.uint8),
        np.zeros((count, FINE_SIDE, FINE_SIDE), np.uint8),
        np.zeros((count, len(FILE_FACTS)), np.float32),
        np.zeros((count, len(LEVEL_FACTS)), np.float32),
        [""] * count,
        np.zeros(count, np.bool_),
        np.zeros(count, np.bool_),
    )
    source = source_of(cache)
    if source is None:
        return survey
    for row, seen in enumerate(_look_ahead(cache, source, workers or os.cpu_count() or 1)):
        if seen is not None:
            survey.grey[row] = seen.grey
            survey.fine[row] = seen.fine
            survey.file_facts[row] = seen.file_facts
            survey.level_facts[row] = seen.level_facts
            survey.kind[row] = seen.kind
            survey.present[row] = True
            survey.changed[row] = seen.changed
        if progress is not None:
            progress(row + 1, count)
    return survey


def source_of(cache: FeatureCache) -> ImageSource | None:
    """Open the folder or archive that a cache was computed from; ``None`` if it does not exist."""
    root = Path(cache.data_root)
    try:
        return open_source(root) if root.exists() else None
    except DataError:
        return None


def _look_ahead(cache: FeatureCache, source: ImageSource, workers: int) -> Iterator[_Seen | None]:
    waiting: deque[Future[_Seen | None]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="look")
    try:
        for row, path in enumerate(cache.columns.path):
            waiting.append(pool.submit(_look, source, path, int(cache.columns.size[row])))
            if len(waiting) >= 8 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _look(source: ImageSource, path: str, size_then: int) -> _Seen | None:
    try:
        data, _ = source.read(path)
        kind, width, height, image = _open_small(data)
    except (
        ImageError,
        OSError,
        ValueError,
        SyntaxError,
        MemoryError,
    ):  # of truncated files, the part that is there is used
        return None
    colour = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("RGB"), np.float32)
    grey_image = image.convert("L")
    small, fine, large = (
        np.asarray(grey_image.resize((side, side), Image.Resampling.BOX)) for side in (SIDE, FINE_SIDE, _LEVELS_SIDE)
    )
    levels = large.astype(np.float32)
    pixels = max(width * height, 1)
    logs = np.log([width, height, width / height, pixels / 1e6, len(data), len(data) / pixels])
    level_facts = [
        levels.mean(),
        levels.std(),
        100 * (levels <= 2).mean(),
        100 * (levels >= 253).mean(),
        (colour.max(axis=2) - colour.min(axis=2)).mean(),
        *np.percentile(levels, _PERCENTILES),
    ]
    return _Seen(small, fine, logs.tolist(), [float(fact) for fact in level_facts], kind, len(data) != size_then)


def _open_small(data: bytes) -> tuple[str, int, int, Image.Image]:
    """Return format and mode, stored width and height, and the image; a large JPEG is decoded at a smaller size."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        other = decode(data)  # not a format of Pillow, or an image that cannot be read
        return f"other {other.mode}", *other.size, other
    kind, (width, height) = f"{image.format} {image.mode}", image.size
    if image.format != "JPEG" or width * height > MAX_PIXELS:
        return kind, width, height, decode(data)
    image.draft(None, (2 * _LEVELS_SIDE, 2 * _LEVELS_SIDE))
    return kind, width, height, ImageOps.exif_transpose(image)

"""The range of 16-bit images: found once, the same for all images of a data set: docs/decisions/0075-pixels.md."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import Dataset
from xfeat.featurize.datasets.sources import ImageSource, open_source
from xfeat.featurize.errors import ImageError, MismatchError
from xfeat.featurize.images.decode import read_levels
from xfeat.featurize.images.file_kinds import HEAD_BYTES, may_be_deep
from xfeat.featurize.specs import FeatureRequest, FeatureSpec, PreprocessSpec
from xfeat.featurize.system.cores import cores

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of images done and the total."""

# Detectors and formats have these numbers of bits.
_USUAL_BITS = (8, 10, 12, 14, 16)
_QUEUED = 1024


class GreyRange(NamedTuple):
    """The levels of images with 16 bits per channel that do not state their white.

    Attributes:
        highest: of all levels.
        stated_bits: the most that a file states as used; 0 if none does.
        all_state: every file states its bits.
    """

    highest: int
    stated_bits: int
    all_state: bool

    @property
    def bits(self) -> int:
        """The usual number of bits that holds all levels."""
        needed = max(self.highest.bit_length(), self.stated_bits)
        return next((bits for bits in _USUAL_BITS if bits >= needed), 16) if self.highest else 16


def with_grey_bits(
    dataset: Dataset,
    request: FeatureRequest,
    spec: FeatureSpec,
    output: Path,
    *,
    force: bool,
    workers: int | None = None,
    progress: Progress | None = None,
) -> FeatureSpec:
    """Return the spec with the range of the data set's 16-bit images.

    The range of an existing cache is kept; images that it does not hold yet must fit.

    Args:
        dataset: the images.
        request: if it gives the number of bits, no image is read.
        spec: without the range.
        output: the cache to be written.
        force: whether an existing ``output`` is to be replaced.
        workers: reading threads; ``None`` takes one per core.
        progress: called as images are looked at.

    Raises:
        MismatchError: if new images do not fit the range of the cache.
        CacheError: if ``output`` exists and is not a cache.
    """
    if request.grey_bits is not None:
        return spec
    source = open_source(dataset.root)
    paths = [entry.path for entry in dataset.entries]
    old = FeatureCache.open(output, check=False) if output.exists() and not force else None
    if old is not None:
        bits = old.spec.preprocess.grey_bits
        if measure(source, _new_paths(old, source, paths), spec.preprocess, workers) is not None:
            _check_fits(output, bits, measure(source, paths, spec.preprocess, workers, progress))
    else:
        found = measure(source, paths, spec.preprocess, workers, progress)
        bits = spec.preprocess.grey_bits if found is None else found.bits
        if found is not None and bits < 16:
            _say_range(found)
    return dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, grey_bits=bits))


def _say_range(found: GreyRange) -> None:
    white = 2**found.bits - 1
    if found.all_state:
        logger.info("16-bit images state %d bits: %d is white", found.bits, white)
    else:
        logger.warning(
            "16-bit images hold levels up to %d: read as %d-bit, %d is white; this is a guess, --grey-bits sets it",
            found.highest,
            found.bits,
            white,
        )


def warn_of_other_range(dataset: Dataset, spec: FeatureSpec) -> None:
    """Warn if 16-bit images have another range than a model reads them in."""
    found = measure(open_source(dataset.root), [entry.path for entry in dataset.entries], spec.preprocess)
    bits = spec.preprocess.grey_bits
    if found is not None and not _fits(found, bits):
        logger.warning(
            "16-bit images hold levels up to %d, which need %d bits; the model was trained on %d-bit levels and reads "
            "them as such",
            found.highest,
            found.bits,
            bits,
        )


def measure(
    source: ImageSource,
    paths: Sequence[str],
    spec: PreprocessSpec,
    workers: int | None = None,
    progress: Progress | None = None,
) -> GreyRange | None:
    """Read the images that may have 16 bits per channel; ``None`` if the range of none is open.

    Args:
        source: the data root.
        paths: relative to it; of most files only the first bytes are read.
        spec: which of several frames is read.
        workers: reading threads; ``None`` takes one per core.
        progress: called as images are looked at.
    """
    found: list[GreyRange] = []
    with ThreadPoolExecutor(workers or cores(), thread_name_prefix="range") as pool:
        for first in range(0, len(paths), _QUEUED):
            block = paths[first : first + _QUEUED]
            ranges = pool.map(lambda path: _range_of(source, path, spec), block)
            for number, one in enumerate(ranges, start=first + 1):
                if one is not None:
                    found.append(one)
                if progress is not None:
                    progress(number, len(paths))
    if not found:
        return None
    highest, stated, all_state = zip(*found, strict=True)
    return GreyRange(max(highest), max(stated), all(all_state))


def _range_of(source: ImageSource, path: str, spec: PreprocessSpec) -> GreyRange | None:
    if not may_be_deep(source.head(path, HEAD_BYTES)):
        return None
    try:
        levels = read_levels(source.read(path)[0], spec)
    except ImageError:
        return None  # reported when its features are computed
    if levels is None or levels.own_bits is not None:
        return None
    return GreyRange(levels.highest, levels.used_bits, levels.used_bits > 0)


def _new_paths(old: FeatureCache, source: ImageSource, paths: Sequence[str]) -> list[str]:
    """Return the images that are not in a cache, or may have changed since."""
    marks = zip(old.columns.size.tolist(), old.columns.change_mark.tolist(), strict=True)
    known = dict(zip(old.columns.path, marks, strict=True))
    found = ((path, source.state(path)) for path in paths)
    return [path for path, state in found if state is None or known.get(path) != (state.size, state.change_mark)]


def _check_fits(output: Path, bits: int, found: GreyRange | None) -> None:
    if found is None or _fits(found, bits):
        return
    raise MismatchError(
        "the range of the 16-bit images differs from that of the cache",
        path=output,
        expected=f"{bits}-bit levels, up to {2**bits - 1}",
        found=f"levels up to {found.highest}, which need {found.bits} bits",
        fix=f"xfeat featurize with --force replaces the cache; with --grey-bits {bits} it keeps the range, and higher "
        "levels become white",
    )


def _fits(found: GreyRange, bits: int) -> bool:
    """Tell whether levels fit a range: they need its bits, or fewer. 16 may be the default, so fewer do not fit it."""
    return found.bits == bits or found.bits < bits < 16

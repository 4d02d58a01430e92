"""Reads images ahead of the network: files are read, hashed, decoded and resized in threads, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.shards import FileIdentity
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.augmentation import load_views
from xfeat.featurize.images.decode import is_truncated
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.cores import in_threads

# With more threads, a decoder that holds the GIL delays the others by more than it gains.
FEW_WORKERS = 2


class ReadImage(NamedTuple):
    """The result of reading one file.

    Attributes:
        path: relative to the data root.
        identity: the state of the file when it was read, or ``None`` if it could not be read.
        pixels: uint8 (V, S, S, 3), or ``None`` if its features are stored already or it could not be read.
        reason: why it could not be read, else empty.
    """

    path: str
    identity: FileIdentity | None
    pixels: Pixels | None
    reason: str = ""


def read_images(
    source: ImageSource, paths: Iterable[str], spec: FeatureSpec, *, is_known: Callable[[str], bool], workers: int
) -> Generator[ReadImage, None, None]:
    """Read images in threads, a bounded number ahead, and yield them in the order given.

    Pillow releases the GIL while it decodes and resizes, so threads keep all cores busy. With up to two threads a
    faster PNG decoder that holds the GIL is used: docs/decisions/0016-plain-png.md.

    Args:
        source: the data root.
        paths: relative to it.
        spec: size, and number of views per image.
        is_known: tells from a SHA-256 whether features are stored, so that the image need not be decoded.
        workers: number of threads.
    """
    read = partial(read_image, source, spec=spec, is_known=is_known, may_hold_gil=workers <= FEW_WORKERS)
    return in_threads(read, paths, workers, "decode")


def read_image(
    source: ImageSource, path: str, spec: FeatureSpec, is_known: Callable[[str], bool], may_hold_gil: bool
) -> ReadImage:
    """Read one image; see :func:`read_images`, and :func:`xfeat.featurize.images.decode.decode` for
    ``may_hold_gil``."""
    try:
        data, state = source.read(path)
        sha256 = hashlib.sha256(data).hexdigest()
        identity = FileIdentity(*state, sha256, is_truncated(data))
        if is_known(sha256):
            return ReadImage(path, identity, None)
        pixels = load_views(data, spec.preprocess, views=spec.views, sha256=sha256, may_hold_gil=may_hold_gil)
        return ReadImage(path, identity, pixels)
    except ImageError as error:
        return ReadImage(path, None, None, error.what)


def is_among(known: NDArray[np.bytes_], sha256: str) -> bool:
    """Tell whether a digest is among sorted ones, 64 hexadecimal digits each."""
    at = int(np.searchsorted(known, sha256.encode()))
    return at < len(known) and bool(known[at] == sha256.encode())

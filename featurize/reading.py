"""Reading images ahead of the network: files are read, hashed, decoded and resized in threads, in order."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from featurize.errors import ImageError
from featurize.images import is_truncated
from featurize.preprocess import Pixels, load_pixels
from featurize.shards import FileIdentity
from featurize.specs import PreprocessSpec


class ReadImage(NamedTuple):
    """What became of one file.

    Attributes:
        path: relative to the data root.
        identity: the state the file was read in, or ``None`` if it could not be read.
        pixels: uint8 (S, S, 3), or ``None`` if its features are known already or it could not be read.
        reason: why it could not be read, else empty.
    """

    path: str
    identity: FileIdentity | None
    pixels: Pixels | None
    reason: str = ""


def read_images(
    root: Path, paths: Iterable[str], spec: PreprocessSpec, *, is_known: Callable[[str], bool], workers: int
) -> Iterator[ReadImage]:
    """Read images in threads, a bounded number ahead, and yield them in the order given.

    Pillow releases the interpreter's lock while it decodes and resizes, so threads keep all cores busy.

    Args:
        root: the data root.
        paths: relative to it.
        spec: the size to resize to.
        is_known: tells from a SHA-256 that the features are known, so that decoding is spared.
        workers: number of threads.
    """
    ahead = workers * 8
    waiting: deque[Future[ReadImage]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for path in paths:
            waiting.append(pool.submit(_read_image, root, path, spec, is_known))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_image(root: Path, path: str, spec: PreprocessSpec, is_known: Callable[[str], bool]) -> ReadImage:
    try:
        with (root / path).open("rb") as file:
            state = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        return ReadImage(path, None, None, f"cannot be read: {error.strerror or error}")
    sha256 = hashlib.sha256(data).hexdigest()
    identity = FileIdentity(state.st_size, state.st_mtime_ns, sha256, is_truncated(data))
    if is_known(sha256):
        return ReadImage(path, identity, None)
    try:
        return ReadImage(path, identity, load_pixels(data, spec))
    except ImageError as error:
        return ReadImage(path, None, None, error.what)

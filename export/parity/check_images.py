"""The image files of a parity check."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from xfeat.export.model.progress import ProgressCounter
from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import Pixels, resize
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.urls import Root

logger = logging.getLogger(__name__)

# Files checked at their original size; each is a batch of its own, since sizes differ.
MAX_ORIGINALS = 64

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Images on which models are compared.

    Attributes:
        root: their folder.
        sha256: path relative to ``root`` of each file that is used, to the digest of its content.
        pixels: uint8 (n, S, S, 3), resized by Pillow.
        spec: how the files are read.
        missing: number of files that are missing or unreadable, and were left out.
        changed: number of files that have changed, and were left out.
    """

    root: Root
    sha256: dict[str, str]
    pixels: Pixels
    spec: PreprocessSpec
    missing: int
    changed: int

    def __len__(self) -> int:
        return len(self.sha256)

    def originals(self) -> Iterator[tuple[int, Pixels]]:
        """Yield position and uint8 (1, H, W, 3) of at most MAX_ORIGINALS images, evenly spaced, at original size."""
        source = open_source(self.root)
        for position, path in subsample(list(enumerate(self.sha256)), MAX_ORIGINALS):
            image = decode(source.read(path)[0], self.spec)
            yield position, np.asarray(image.convert("RGB"))[None]


def load_images(
    root: Root, files: Mapping[str, str | None], what: str, spec: PreprocessSpec, counter: ProgressCounter | None
) -> CheckImages:
    """Read image files as the server does, without those that are missing, damaged or changed.

    Args:
        root: their folder.
        files: path relative to ``root`` of each file, to the SHA-256 that it must have; ``None`` for any.
        what: they are, for messages.
        spec: how to read and resize them.
        counter: counts the images read.

    Raises:
        DataError: if none of them can be used.
    """
    digests, pixels, missing = {}, [], 0
    source = open_source(root)
    counter = counter or ProgressCounter(None)
    counter.expect(len(files))
    for path, wanted in files.items():
        counter(1)
        try:
            content, _ = source.read(path)
            resized = resize(decode(content, spec), spec)
        except ImageError:
            missing += 1
            continue
        digest = hashlib.sha256(content).hexdigest()
        if wanted in (None, digest):
            digests[path] = digest
            pixels.append(resized)
    changed = len(files) - len(digests) - missing
    if not pixels:
        problem = f"all of {what} that can be read have changed" if changed else f"none of {what} can be read"
        raise DataError(
            f"{problem}, so the model cannot be checked",
            path=root,
            expected=f"{len(files)} files such as {next(iter(files), 'none')}",
            found=f"{changed} changed, {missing} missing or unreadable",
            fix="name the folder that was featurized with --data DIR",
        )
    for count, why in ((missing, "are missing or unreadable"), (changed, "have changed")):
        if count:
            logger.warning(
                "%s: %d of %s %s; the model is checked on the other %d", *(root, count, what, why, len(digests))
            )
    return CheckImages(root=root, sha256=digests, pixels=np.stack(pixels), spec=spec, missing=missing, changed=changed)


def subsample(rows: Sequence[T], most: int | None) -> Sequence[T]:
    """Return at most ``most`` of ``rows``, all of them for ``None``; evenly spaced, so not of the first class alone."""
    return rows[:: -(-len(rows) // most)] if most and len(rows) > most else rows

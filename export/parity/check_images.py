"""The image files of a parity check."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfeat.export.model.progress import Advance
from xfeat.export.parity.subsample import subsample
from xfeat.featurize.datasets.sources import open_source
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import Pixels, resize
from xfeat.featurize.specs import PreprocessSpec

# Files checked at their original size; each is a batch of its own, since sizes differ.
MAX_ORIGINALS = 64


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Images on which models are compared.

    Attributes:
        root: their folder.
        paths: of the files that could be read, relative to ``root``.
        sha256: of their contents.
        pixels: uint8 (n, S, S, 3), resized by Pillow.
    """

    root: Path
    paths: list[str]
    sha256: list[str]
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.paths)

    def originals(self) -> Iterator[tuple[int, Pixels]]:
        """Yield position and uint8 (1, H, W, 3) of at most MAX_ORIGINALS images, evenly spaced, at original size."""
        source = open_source(self.root)
        for position in subsample(range(len(self)), MAX_ORIGINALS):
            image = decode(source.read(self.paths[position])[0])
            yield position, np.asarray(image.convert("RGB"))[None]


def load_images(
    root: Path, paths: Sequence[str], spec: PreprocessSpec, advance: Advance = lambda done: None
) -> CheckImages:
    """Read image files as the server does, without those that are missing or damaged."""
    readable, digests, pixels = [], [], []
    source = open_source(root)
    for path in paths:
        advance(1)
        try:
            content, _ = source.read(path)
            pixels.append(resize(decode(content), spec))
        except ImageError:
            continue
        readable.append(path)
        digests.append(hashlib.sha256(content).hexdigest())
    stacked = np.stack(pixels) if pixels else np.empty((0, spec.size, spec.size, 3), np.uint8)
    return CheckImages(root=root, paths=readable, sha256=digests, pixels=stacked)

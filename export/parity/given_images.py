"""Images for a parity check as Python programs give them: paths, contents, images of Pillow, arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xfeat.export.model.progress import ProgressCounter
from xfeat.export.parity.check_images import MAX_ORIGINALS, CheckImages, subsample
from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.images.given import decode_given, named, read_given
from xfeat.featurize.images.preprocess import Pixels, resize
from xfeat.featurize.specs import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class GivenCheckImages(CheckImages):
    """Images on which models are compared; those that are no files have their place in the list as a name.

    Attributes:
        given: the images that were checked, in order.
        decoded: at original size, by position, of those that are checked so.
    """

    given: list[Any] = field(repr=False)
    decoded: dict[int, Image.Image] = field(repr=False)

    def originals(self) -> Iterator[tuple[int, Pixels]]:
        """Yield position and uint8 (1, H, W, 3) of at most MAX_ORIGINALS images at original size."""
        for position, image in self.decoded.items():
            yield position, np.asarray(image.convert("RGB"))[None]


def check_images_of(images: list[Any], spec: PreprocessSpec, limit: int, counter: ProgressCounter) -> GivenCheckImages:
    """Read images for a check; of files that are given twice, one is used.

    Args:
        images: those that :func:`xfeat.featurize.images.given.as_images` returned.
        spec: how to read and resize them.
        limit: largest number of images; they are evenly spaced.
        counter: counts the images read.

    Raises:
        DataError: if there are none.
        ImageError: if one cannot be read; the message names it.
    """
    root, names = _root_and_names(images)
    rows = list(subsample(list(dict(zip(names, images, strict=True)).items()), limit))
    if not rows:
        raise DataError("no images to check the model on", fix="check=images, such as those that were not trained on")
    originals = {position for position, _ in subsample(list(enumerate(rows)), MAX_ORIGINALS)}
    digests, pixels, decoded = {}, [], {}
    counter.expect(len(rows))
    for position, (name, image) in enumerate(rows):
        counter(1)
        try:
            content = read_given(image, name)
            plain = decode_given(content, spec)
        except ImageError as error:
            raise ImageError(f"{name}: {error.what}") from error
        digests[name] = _digest(content, plain)
        pixels.append(resize(plain, spec))
        if position in originals:
            decoded[position] = plain
    return GivenCheckImages(
        root=root,
        sha256=digests,
        pixels=np.stack(pixels),
        spec=spec,
        missing=0,
        changed=0,
        given=[image for _, image in rows],
        decoded=decoded,
    )


def _root_and_names(images: list[Any]) -> tuple[Path, list[str]]:
    """Return the folder of all images, and their names in it, as a certificate has them."""
    if images and all(isinstance(image, str | os.PathLike) for image in images):
        paths = [os.path.abspath(image) for image in images]
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        return Path(root), [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    return Path.cwd(), [named(number, image) for number, image in enumerate(images)]


def _digest(content: Any, plain: Image.Image) -> str:
    """Return the digest of a file, or of the pixels of what is none."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(f"{plain.mode} {plain.size} ".encode() + plain.tobytes()).hexdigest()

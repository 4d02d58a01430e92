"""The images of the page, as data URLs: each file is read once, at the size in which it is shown."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.featurize.audit.shortcuts import MASKS
from xfeat.featurize.audit.survey import SIDE, shrunk_box
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import cut
from xfeat.featurize.sources.opening import open_source

_SIDE = (240, 240)
_MASKED_SIDE = 128


class Thumbnails:
    """Thumbnails of the images of a cache, as far as the network sees them, created when first needed."""

    def __init__(self, cache: FeatureCache) -> None:
        self._paths = cache.columns.path
        self._spec = cache.spec.preprocess
        self._source = None if cache.images.root is None else open_source(cache.images.root, broken_ok=True)
        self._made: dict[int, str] = {}

    def of_row(self, row: int) -> str:
        """Return a data URL, empty if the file is missing or cannot be read."""
        if row not in self._made:
            image = self._read(row)
            if image is not None:
                image = cut(image, self._spec)
                image.thumbnail(_SIDE, Image.Resampling.BILINEAR)
            self._made[row] = "" if image is None else _data_url(image)
        return self._made[row]

    def seen_by(self, evidence: str, row: int) -> str:
        """Return the part of an image that a probe is given, the rest black; empty if it is given no pixels."""
        masks = {"features": np.ones((SIDE, SIDE), np.bool_), **MASKS}
        image = self._read(row) if evidence in masks else None
        if image is None:
            return ""
        small = np.asarray(image.convert("L").resize((_MASKED_SIDE, _MASKED_SIDE), Image.Resampling.BILINEAR))
        repeat = _MASKED_SIDE // SIDE
        mask = np.kron(masks[evidence], np.ones((repeat, repeat), np.bool_))
        left, top, right, bottom = shrunk_box(self._spec, image.size, _MASKED_SIDE)
        seen = np.zeros_like(mask)
        seen[top:bottom, left:right] = mask[top:bottom, left:right]
        return _data_url(Image.fromarray(np.where(seen, small, 0).astype(np.uint8)))

    def _read(self, row: int) -> Image.Image | None:
        if self._source is None:
            return None
        try:
            return decode(self._source.read(self._paths[row])[0], self._spec)
        except (ImageError, OSError):
            return None


def class_average(grey: NDArray[np.uint8]) -> str:
    """Return the average of small grey images as a data URL.

    Args:
        grey: uint8 (n, S, S), n > 0.
    """
    image = Image.fromarray(grey.mean(axis=0).round().astype(np.uint8))
    return _data_url(image.resize((_MASKED_SIDE, _MASKED_SIDE), Image.Resampling.BICUBIC))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

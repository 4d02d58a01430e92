"""The images with the worst predictions, with thumbnails. Imports no torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.featurize.datasets.sources import ImageSource, open_source
from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode

_MAX_MISTAKES = 12
_THUMBNAIL_SIZE = (220, 220)


class Mistake(NamedTuple):
    """A misclassified image; ``thumbnail`` is a data URL, or empty if the file is missing."""

    path: str
    label: str
    predicted: str
    probability: float  # of the predicted class
    thumbnail: str


def worst_mistakes(
    paths: Sequence[str],
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    decisions: NDArray[np.integer],
    names: Sequence[str],
    data_root: str,
) -> list[Mistake]:
    """Return the misclassified images with the lowest probability of their true class, at most twelve.

    ``labels`` and ``decisions`` (n,) are true and predicted classes, ``probabilities`` (n, C); the n ``paths`` are
    relative to ``data_root``, a folder or an archive.
    """
    wrong = np.flatnonzero(decisions != labels)
    source = open_source(Path(data_root), broken_ok=True)  # the images may have moved
    worst = sorted(wrong.tolist(), key=lambda row: float(probabilities[row, labels[row]]))[:_MAX_MISTAKES]
    return [
        Mistake(
            path=paths[row],
            label=names[labels[row]],
            predicted=names[decisions[row]],
            probability=float(probabilities[row, decisions[row]]),
            thumbnail=_thumbnail(source, paths[row]),
        )
        for row in worst
    ]


def _thumbnail(source: ImageSource, path: str) -> str:
    try:
        image = decode(source.read(path)[0])
    except ImageError:
        return ""
    image.thumbnail(_THUMBNAIL_SIZE, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

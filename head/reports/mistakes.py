"""The images that a head is most wrong about, with small pictures. Free of torch."""

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
from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.images.decode import decode

_WORST = 12
_THUMBNAIL = (220, 220)


class Mistake(NamedTuple):
    """One wrongly classified image.

    Attributes:
        path: relative to the data root.
        label: the true class.
        decided: the class decided on.
        probability: of the class decided on.
        picture: a data URL, or empty if the file is gone.
    """

    path: str
    label: str
    decided: str
    probability: float
    picture: str


class Answered(NamedTuple):
    """Images and what was said of them.

    Attributes:
        paths: n paths, relative to the data root.
        labels: int64 (n,), the true classes.
        probabilities: (n, C).
        decisions: int64 (n,).
    """

    paths: Sequence[str]
    labels: NDArray[np.integer]
    probabilities: NDArray[np.floating]
    decisions: NDArray[np.integer]


def worst_mistakes(answered: Answered, names: Sequence[str], data_root: str) -> list[Mistake]:
    """Return the wrongly decided images with the lowest probability of their true class, twelve at most."""
    paths, labels, probabilities, decisions = answered
    wrong = np.flatnonzero(decisions != labels)
    source = _source(Path(data_root))
    worst = sorted(wrong.tolist(), key=lambda row: float(probabilities[row, labels[row]]))[:_WORST]
    return [
        Mistake(
            path=paths[row],
            label=names[labels[row]],
            decided=names[decisions[row]],
            probability=float(probabilities[row, decisions[row]]),
            picture=_picture(source, paths[row]),
        )
        for row in worst
    ]


def _source(root: Path) -> ImageSource | None:
    try:
        return open_source(root)
    except DataError:
        return None


def _picture(source: ImageSource | None, path: str) -> str:
    if source is None:
        return ""
    try:
        image = decode(source.read(path)[0])
    except ImageError:
        return ""
    image.thumbnail(_THUMBNAIL, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

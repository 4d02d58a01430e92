"""Which kinds of images an out-of-distribution score finds, measured on images made from the run's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from xfeat.export.model.batches import batches
from xfeat.export.model.file import ModelFile
from xfeat.export.parity.check_images import subsample
from xfeat.featurize.images.preprocess import Pixels

UNCHANGED = "unchanged images"
# Images of the run that are changed, and images that are drawn, of each kind.
_MOST, _DRAWN = 32, 8


@dataclass(frozen=True, kw_only=True)
class OodKind:
    """What the out-of-distribution score says of one kind of images.

    Attributes:
        images: how many there are.
        above: share of them above the threshold, 0 to 1.
    """

    images: int
    above: float


def measure_kinds(model: ModelFile, pixels: Pixels) -> dict[str, OodKind]:
    """Return the share of each kind of images above a model's threshold; nothing for a model without ood score.

    Args:
        model: a full model.
        pixels: images of the run that chose neither the score nor its threshold, uint8 (n, S, S, 3).
    """
    threshold = model.metadata.ood_threshold
    if threshold is None:
        return {}
    kinds = {}
    for kind, images in made_kinds(pixels):
        scores = np.concatenate([model.run(batch).ood for batch in batches(images)])
        kinds[kind] = OodKind(images=len(images), above=float((scores > threshold).mean()))
    return kinds


def made_kinds(pixels: Pixels) -> Iterator[tuple[str, Pixels]]:
    """Yield kinds of images made from images uint8 (n, S, S, 3): name, and uint8 (m, S, S, 3)."""
    images = pixels[subsample(range(len(pixels)), _MOST)]
    shape, rng = images.shape[1:], np.random.default_rng(0)
    yield UNCHANGED, images
    for name, level in {"black": 0, "grey": 128, "white": 255}.items():
        yield f"blank {name}", np.full((1, *shape), level, np.uint8)
    yield "noise", np.stack([_noise(shape, 1 + number % 4 * 5, rng) for number in range(_DRAWN)])
    yield "drawings", np.stack([_drawing(shape[0], rng) for _ in range(_DRAWN)])
    yield "inverted", 255 - images
    yield "rotated by 90°", np.rot90(images, axes=(1, 2))
    yield "rotated by 180°", np.rot90(images, 2, axes=(1, 2))


def _noise(shape: tuple[int, ...], grain: int, rng: np.random.Generator) -> Pixels:
    """Return grey noise whose grains are squares of some pixels."""
    side = -(-shape[0] // grain)
    grains = rng.integers(0, 256, (side, side, 1), np.uint8).repeat(grain, 0).repeat(grain, 1)
    return np.broadcast_to(grains[: shape[0], : shape[1]], shape)


def _drawing(side: int, rng: np.random.Generator) -> Pixels:
    """Return coloured rectangles, ellipses and lines on white."""
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    for number in range(int(rng.integers(3, 15))):
        box = np.sort(rng.integers(0, side, (2, 2)), axis=0).ravel().tolist()
        (pen.ellipse, pen.rectangle, pen.line)[number % 3](box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(image)

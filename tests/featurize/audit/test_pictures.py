"""Blank, inverted and turned images, and those in colour, are named; what cannot be told is not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from xfeat.featurize.audit.survey import LEVEL_FACTS, SIDE, Survey
from xfeat.featurize.audit.suspects import picture_findings, told_kinds

COUNT = 120


def pictures(*, up: float = 1.0, left: float = 0.0, seed: int = 0) -> NDArray[np.uint8]:
    """Draw bodies with a bright belly (``up``), and a heart on one side (``left``), each with its own texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    body = 90 * np.exp(-(((x / 0.7) ** 2 + (y / 0.9) ** 2) ** 2))
    belly, heart = 40 * up * y, 60 * left * np.exp(-8 * ((x - 0.4) ** 2 + y**2))
    texture = gaussian_filter(rng.normal(size=(COUNT, SIDE, SIDE)), (0, 2, 2))
    return np.clip(60 + body + belly + heart + 12 * texture / texture.std(), 0, 255).astype(np.uint8)


def survey(grey: NDArray[np.uint8], *, colour: NDArray[np.float32] | float = 0.0) -> Survey:
    """Return what is read of images: of the facts, those that are looked at."""
    facts = np.zeros((len(grey), len(LEVEL_FACTS)), np.float32)
    for name, values in (("mean", grey.mean(axis=(1, 2))), ("deviation", grey.std(axis=(1, 2))), ("colour", colour)):
        facts[:, LEVEL_FACTS.index(name)] = values
    return cast(Survey, SimpleNamespace(grey=grey, level_facts=facts))


def found(grey: NDArray[np.uint8], **more: NDArray[np.float32] | float) -> dict[str, set[int]]:
    rows = np.arange(len(grey))
    return {
        one.kind: {flagged.row for flagged in one.images} for one in picture_findings(survey(grey, **more), rows, rows)
    }


Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("images.turned", lambda one: np.rot90(one, 1)),
        ("images.turned", lambda one: np.rot90(one, 2)),
        ("images.turned", lambda one: np.rot90(one, 3)),
        ("images.turned", lambda one: one[::-1]),
        ("images.inverted", lambda one: 255 - one),
        ("images.blank", np.zeros_like),
        ("images.blank", lambda one: np.full_like(one, 255)),
        ("images.blank", lambda one: np.full_like(one, 128)),
        ("images.blank", lambda one: (127 + one % 3).astype(np.uint8)),
    ],
)
def test_altered_images_are_named_and_no_others(kind: str, change: Change) -> None:
    grey = pictures()
    rows = np.random.default_rng(1).choice(COUNT, 7, replace=False)
    grey[rows] = [change(one) for one in grey[rows]]
    assert found(grey) == {kind: set(rows.tolist())}


def test_mirrored_images_are_named_where_left_and_right_differ() -> None:
    grey = pictures(left=1.0)
    grey[7] = grey[7][:, ::-1]
    assert found(grey) == {"images.mirrored": {7}}


@pytest.mark.slow
@pytest.mark.parametrize("up", [0.0, 1.0])
def test_what_cannot_be_told_is_not_reported(up: float) -> None:
    grey, rows = pictures(up=up), np.arange(COUNT)
    grey[:9] = grey[:9, :, ::-1]
    told, _ = told_kinds(survey(grey), rows, rows)
    assert told["mirrored"] < 0.8
    assert (told["turned by 180°"] < 0.8) == (up == 0)
    assert found(grey) == {}


def test_too_few_images_are_not_looked_at_for_turns() -> None:
    grey = pictures()[:30]
    grey[3] = 255 - grey[3]
    assert found(grey) == {}


def test_colour_is_named_among_grey_images_only() -> None:
    colour = np.zeros(COUNT, np.float32)
    colour[5] = 40
    assert found(pictures(), colour=colour) == {"images.colour": {5}}
    assert found(pictures(), colour=40.0) == {}

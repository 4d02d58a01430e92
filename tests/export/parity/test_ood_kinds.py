"""Kinds of images that are made to measure an out-of-distribution score, against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from xfeat.export.parity.ood_kinds import UNCHANGED, made_kinds

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 20, 20, 3), np.uint8)
KINDS = dict(made_kinds(PIXELS))


@pytest.mark.parametrize(
    ("kind", "by_pillow"),
    {
        UNCHANGED: lambda image: image,
        "inverted": ImageOps.invert,
        "rotated by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
        "rotated by 180°": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    }.items(),
)
def test_images_of_the_run_are_changed_as_pillow_changes_them(kind: str, by_pillow) -> None:
    expected = [np.asarray(by_pillow(Image.fromarray(image))) for image in PIXELS]
    np.testing.assert_array_equal(KINDS[kind], expected)


@pytest.mark.parametrize(("kind", "level"), [("blank black", 0), ("blank grey", 128), ("blank white", 255)])
def test_a_blank_image_has_one_level(kind: str, level: int) -> None:
    assert KINDS[kind].shape == (1, 20, 20, 3)
    assert (KINDS[kind] == level).all()


@pytest.mark.parametrize("kind", ["noise", "drawings"])
def test_other_images_differ_from_each_other_and_are_the_same_every_time(kind: str) -> None:
    assert len(np.unique(KINDS[kind], axis=0)) == len(KINDS[kind]) == 8
    np.testing.assert_array_equal(dict(made_kinds(PIXELS))[kind], KINDS[kind])


def test_of_many_images_32_are_used() -> None:
    assert len(dict(made_kinds(np.zeros((100, 8, 8, 3), np.uint8)))[UNCHANGED]) <= 32

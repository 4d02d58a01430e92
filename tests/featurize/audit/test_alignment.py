"""Pictures laid over each other: what was moved is found again, and what is another picture stays another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from xfeat.featurize.audit.alignment import _EXACT, _ROUGH, _place, aligned_correlation, equalised
from xfeat.featurize.audit.duplicates import overlay_correlation
from xfeat.featurize.audit.thresholds import THRESHOLDS

SIDE = 256


def drawn(seed: int) -> Image.Image:
    """Draw a picture with detail of several sizes on a bright oval that all of them share."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    grey = 110 + 50 * np.exp(-(((x / 0.7) ** 2 + (y / 0.9) ** 2) ** 2))
    for sigma in (4, 8, 16):
        texture = gaussian_filter(random.normal(size=(SIDE, SIDE)), sigma)
        grey += 12 * texture / texture.std()
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def seen(*images: Image.Image) -> np.ndarray:
    return np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BOX)) for image in images])


def cropped(image: Image.Image, share: float) -> Image.Image:
    cut = round(share * SIDE)
    return image.crop((cut, cut, SIDE - cut, SIDE - cut))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: cropped(image, 0.03),
        lambda image: cropped(image, 0.06),
        lambda image: image.crop((20, 0, SIDE, SIDE - 15)),
        lambda image: image.rotate(3, Image.Resampling.BICUBIC),
        lambda image: image.rotate(-6, Image.Resampling.BICUBIC),
        lambda image: cropped(image, 0.03).rotate(3, Image.Resampling.BICUBIC),
        lambda image: image.point([round(0.8 * grey + 10) for grey in range(256)]).rotate(3),
    ],
)
def test_a_crop_or_a_turn_fits_once_it_is_laid_over(change: Callable[[Image.Image], Image.Image]) -> None:
    pictures = [drawn(seed) for seed in range(8)]
    correlation, mirrored = aligned_correlation(seen(*pictures), seen(*map(change, pictures)))
    assert correlation.min() > 0.98
    assert not mirrored.any()
    correlation, mirrored = aligned_correlation(
        seen(*pictures), seen(*(ImageOps.mirror(change(image)) for image in pictures))
    )
    assert correlation.min() > 0.98
    assert mirrored.all()


@pytest.mark.slow
def test_another_picture_does_not_fit_however_it_is_laid() -> None:
    pictures = seen(*(drawn(seed) for seed in range(60)))
    correlation, _ = aligned_correlation(pictures[:30], pictures[30:])
    assert correlation.max() < 0.9


@pytest.mark.slow
def test_a_crop_with_another_gamma_fits_at_the_second_look_and_other_pictures_do_not() -> None:
    pictures = [drawn(seed) for seed in range(30)]
    gamma = [round(255 * (grey / 255) ** 3) for grey in range(256)]
    changed = seen(*(ImageOps.mirror(cropped(image, 0.03).point(gamma)) for image in pictures))
    first, _ = aligned_correlation(seen(*pictures), changed)
    found, mirrored = overlay_correlation(seen(*pictures), changed)
    doubtful = (first >= THRESHOLDS.doubtful_laid_over) & (first < THRESHOLDS.same_laid_over)
    assert doubtful.sum() >= 5, "drawn so that the second look has something to decide"
    assert (found[doubtful] >= THRESHOLDS.same_laid_over).mean() > 0.8
    assert np.array_equal(found[~doubtful], first[~doubtful])
    assert mirrored[doubtful].all()
    others, _ = overlay_correlation(seen(*pictures), np.roll(changed, 1, axis=0))
    assert others.max() < 0.9


def test_equal_shares_of_grey_levels_are_ranks() -> None:
    """Each point's share of darker points, and half of the equally dark; count_of one by one."""
    picture = np.random.default_rng(0).integers(0, 200, (2, 8, 8), dtype=np.uint8)
    for found, levels in zip(equalised(picture).reshape(2, -1), picture.reshape(2, -1), strict=True):
        ranks = [np.sum(levels < level) + (np.sum(levels == level) + 1) / 2 for level in levels]
        assert np.array_equal(found, np.round(255 * np.array(ranks) / 64))
    assert np.array_equal(equalised(picture // 2 * 2), equalised(picture // 2 + 30))


def test_the_placement_is_the_one_given_to_pillow() -> None:
    """The reference is Pillow's affine transform: each point of the result is taken from matrix times point."""
    angle, stretch, shift = np.deg2rad(3), 0.96, np.array([0.02, -0.03])
    linear = stretch * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array([SIDE / 2, SIDE / 2])
    offset = middle + shift * SIDE - linear @ middle
    image = drawn(3)
    data = (*linear[0], offset[0], *linear[1], offset[1])
    moved = image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    one, other = seen(moved).astype(np.float32), seen(image).astype(np.float32)
    rough, _ = _place(one, other, _ROUGH, np.eye(2, 3, dtype=np.float32)[None])
    found, _ = _place(one, other, _EXACT, rough)
    assert np.abs(found[0, :, :2] - linear).max() < 0.01
    assert np.abs(found[0, :, 2] - shift).max() < 0.005


def test_plain_pictures_fit_nothing_and_no_pairs_are_no_problem() -> None:
    plain = np.full((2, 64, 64), 128, np.uint8)
    assert aligned_correlation(plain, plain)[0].tolist() == [0, 0]
    assert len(aligned_correlation(plain[:0], plain[:0])[0]) == 0

"""From which correlation on are two images the same? The tables of docs/audit.md, from images of your own.

    python benchmarks/audit_thresholds.py IMAGES features.h5 [--altered 150]

``features.h5`` is the cache of the folder IMAGES. Some of its images are altered as copies are, and each is searched
among all: is the original among its nearest neighbours, and how far do the pixels agree, as they lie and laid over each
other? The baseline in the same run are the pairs that must not be called copies: the nearest neighbours of every image
that are of another group.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xfeat.featurize.audit.duplicates import detail_correlation, overlay_correlation
from xfeat.featurize.audit.neighbours import clean_view, nearest_neighbours
from xfeat.featurize.audit.survey import FINE_SIDE, SIDE, survey_images
from xfeat.featurize.backbones.weights import find_weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.engines import open_engine
from xfeat.featurize.images.preprocess import load_pixels

NEIGHBOURS, LAID_OVER, BLOCK = 10, 3, 256
Grey = NDArray[np.uint8]
Picture = Image.Image


def cropped(image: Picture, left: float, top: float, right: float, bottom: float) -> Picture:
    width, height = image.size
    return image.crop((int(left * width), int(top * height), int((1 - right) * width), int((1 - bottom) * height)))


def turned(image: Picture, degrees: float) -> Picture:
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def smaller(image: Picture) -> Picture:
    return image.resize((int(0.6 * image.width), int(0.6 * image.height)))


ALTERED: dict[str, tuple[Callable[[Picture], Picture], int]] = {
    "60 % of the size, JPEG 70": (smaller, 70),
    "mirrored": (ImageOps.mirror, 90),
    "brighter, clipped": (lambda image: image.point([min(255, round(1.15 * g + 20)) for g in range(256)]), 90),
    "gamma 0.6": (lambda image: image.point([round(255 * (g / 255) ** 0.6) for g in range(256)]), 90),
    "cropped by 3 % a side": (lambda image: cropped(image, 0.03, 0.03, 0.03, 0.03), 90),
    "turned by 3°": (lambda image: turned(image, 3), 90),
    "cropped by 6 % a side": (lambda image: cropped(image, 0.06, 0.06, 0.06, 0.06), 90),
    "cropped by 10 % a side": (lambda image: cropped(image, 0.1, 0.1, 0.1, 0.1), 90),
    "cropped on three sides": (lambda image: cropped(image, 0.08, 0, 0, 0.07), 90),
    "turned by 6°": (lambda image: turned(image, 6), 90),
    "turned by 10°": (lambda image: turned(image, 10), 90),
    "cropped by 4 %, turned by 4°": (lambda image: turned(cropped(image, 0.04, 0.04, 0.04, 0.04), -4), 90),
    "cropped by 3 %, mirrored": (lambda image: ImageOps.mirror(cropped(image, 0.03, 0.03, 0.03, 0.03)), 90),
    "inverted": (ImageOps.invert, 90),
    "inverted, cropped by 3 %": (lambda image: ImageOps.invert(cropped(image, 0.03, 0.03, 0.03, 0.03)), 90),
    "cropped by 3 %, gamma 0.6": (
        lambda image: cropped(image, 0.03, 0.03, 0.03, 0.03).point([round(255 * (g / 255) ** 0.6) for g in range(256)]),
        90,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--altered", type=int, default=150)
    options = parser.parse_args()
    cache = FeatureCache.open(options.cache)
    survey = survey_images(cache)
    compare_others(cache, survey.grey, survey.fine)
    chosen = np.sort(np.random.default_rng(0).choice(len(cache), min(options.altered, len(cache)), replace=False))
    weights = find_weights(cache.spec.backbone)
    engine = open_engine(cache.spec, weights, device="cpu")
    features = clean_view(cache) / np.linalg.norm(clean_view(cache), axis=1, keepdims=True)
    print(f"\n{len(chosen)} images altered; lowest, lowest 5 %, median")
    print(f"{'':30}{'ten nearest':>12}{'three':>7}   {'as they lie':20}   laid over each other")
    for name, (alter, quality) in ALTERED.items():
        contents = [altered(options.images / cache.columns.path[row], alter, quality) for row in chosen]
        found = engine.features(np.stack([load_pixels(content, cache.spec.preprocess) for content in contents]))
        cosines = (found / np.linalg.norm(found, axis=1, keepdims=True)) @ features.T
        ranks = (cosines > cosines[np.arange(len(chosen)), chosen][:, None] + 1e-6).sum(axis=1)
        lying = detail_correlation(survey.grey[chosen], small(contents, SIDE))[0]
        moved = in_blocks(survey.fine[chosen], small(contents, FINE_SIDE))
        shares = f"{np.mean(ranks < NEIGHBOURS):12.1%}{np.mean(ranks < LAID_OVER):7.1%}"
        print(f"{name:30}{shares}   {spread(lying):20}   {spread(moved)}", flush=True)


def compare_others(cache: FeatureCache, grey: Grey, fine: Grey) -> None:
    """Print how far pairs agree that are no copies: neighbours of different groups, and of the same."""
    found, _ = nearest_neighbours(clean_view(cache), np.arange(len(cache)), NEIGHBOURS)
    own = np.repeat(np.arange(len(cache)), found.shape[1])
    pairs = np.unique(np.sort(np.stack([own, found.ravel()], axis=1), axis=1), axis=0)
    group, content = np.array(cache.columns.group), np.array(cache.columns.sha256)
    pairs = pairs[content[pairs[:, 0]] != content[pairs[:, 1]]]
    alike = (group[pairs[:, 0]] == group[pairs[:, 1]]) & (group[pairs[:, 0]] != "")
    for what, chosen in (("another group", pairs[~alike]), ("the same group", pairs[alike])):
        seconds = []
        print(f"\n{len(chosen)} pairs of neighbours of {what}: median, highest 1 %, highest 0.1 %, highest")
        for name, compare, pictures in (
            ("as they lie", lambda a, b: detail_correlation(a, b)[0], grey),
            ("laid over", in_blocks, fine),
        ):
            started = time.process_time()
            values = compare(pictures[chosen[:, 0]], pictures[chosen[:, 1]])
            seconds.append(time.process_time() - started)
            cost = f"{1000 * seconds[-1] / len(chosen):.2f} ms a pair, {seconds[-1] / seconds[0]:.0f}x"
            quantiles = ", ".join(f"{value:.3f}" for value in np.quantile(values, [0.5, 0.99, 0.999, 1]))
            print(f"{name:14}{quantiles}   {cost}")
            for at in np.argsort(-values)[:3]:
                first, second = (cache.columns.path[row] for row in chosen[at])
                print(f"    {values[at]:.3f}  {first}  {second}")


def in_blocks(first: Grey, second: Grey) -> NDArray[np.float32]:
    """Run :func:`laid_over` in blocks."""
    blocks = [slice(at, at + BLOCK) for at in range(0, len(first), BLOCK)]
    return np.concatenate([overlay_correlation(first[block], second[block])[0] for block in blocks])


def altered(path: Path, alter: Callable[[Picture], Picture], quality: int) -> bytes:
    """Return an image file's content after a change, saved again as JPEG."""
    buffer = io.BytesIO()
    alter(Image.open(path).convert("L")).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def small(contents: list[bytes], side: int) -> Grey:
    """Return them as the audit sees them."""
    images = (Image.open(io.BytesIO(content)) for content in contents)
    return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in images])


def spread(values: NDArray[np.float32]) -> str:
    return ", ".join(f"{value:.3f}" for value in np.quantile(values, [0, 0.05, 0.5]))


if __name__ == "__main__":
    main()

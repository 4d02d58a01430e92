"""Drawn data sets with made-up features: what an audit should and should not find is known, and no network runs."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from xfeat.featurize.cache.columns import CacheDescription, Columns, Skipped
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.datasets.layouts import NO_SPLIT
from xfeat.featurize.images.decode import decode
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

SIDE = 96
TRAIN, VALID, TEST = range(3)


@dataclass
class DrawnSet:
    """Images written to a folder, to be cached with features computed from their pixels.

    Attributes:
        root: the data root.
        class_names: sorted; labels are indices into it.
    """

    root: Path
    class_names: tuple[str, ...] = ("clear", "disc")
    rows: list[tuple[str, int, int, str]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    truncated: set[str] = field(default_factory=set)

    def add(self, path: str, content: Image.Image | bytes, *, label: int, split: int, group: str = "") -> str:
        """Write one image (PNG, or the bytes given) and note its row."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else encode(content, "PNG"))
        self.rows.append((path, label, split, group))
        return path

    def cache(self, path: Path, *, views: int = 1, **preprocess: Any) -> FeatureCache:
        """Write and open the cache of all images so far."""
        rows = sorted(self.rows)
        contents = [(self.root / row[0]).read_bytes() for row in rows]
        features = np.stack([pixel_features(content) for content in contents])
        spec = FeatureSpec(
            backbone="drawn", weights_sha256="0" * 64, views=views, preprocess=PreprocessSpec(**preprocess)
        )
        if views > 1:
            noise = np.random.default_rng(0).normal(size=(len(rows), views - 1, features.shape[1]))
            features = np.concatenate([features[:, None], noise.astype(np.float32)], axis=1)
        write_cache(
            path,
            CacheDescription(
                spec=spec,
                class_names=self.class_names,
                data_root=str(self.root),
                weights_path="",
                columns=Columns(
                    label=np.array([row[1] for row in rows], np.int32),
                    split=np.array([row[2] for row in rows], np.uint8),
                    path=[row[0] for row in rows],
                    group=[row[3] for row in rows],
                    sha256=[hashlib.sha256(content).hexdigest() for content in contents],
                    size=np.array([len(content) for content in contents], np.int64),
                    mtime_ns=np.zeros(len(rows), np.int64),
                    change_mark=np.zeros(len(rows), np.int64),
                    truncated=np.array([row[0] in self.truncated for row in rows], np.bool_),
                ),
                skipped=self.skipped,
            ),
            blocks=[(0, features)],
            dim=features.shape[-1],
        )
        return FeatureCache.open(path)


def draw(seed: int, label: int = 0) -> Image.Image:
    """Draw what all images share (a bright oval), a texture of its own, and in class 1 a disc in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    body = 60 * np.exp(-(((x / 0.7) ** 2 + (y / 0.9) ** 2) ** 2))
    texture = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 3)
    grey = 70 + body + 25 * texture / texture.std()
    if label == 1:
        grey += 90 * ((x**2 + y**2) < 0.16)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def fill(drawn: DrawnSet, *, each: int, marker: bool = False, grouped: bool = True, split: int | None = None) -> None:
    """Add ``each`` images a class: three fifths train, one valid, one test, one patient an image.

    With ``marker``, class 1 carries a bright square in the corner.
    """
    for label, name in enumerate(drawn.class_names):
        for number in range(each):
            part = split if split is not None else (TRAIN, TRAIN, TRAIN, VALID, TEST)[number % 5]
            image = draw(1000 * label + number, label)
            if marker and label == 1:
                image.paste(250, (2, 2, 12, 12))
            folder = f"{('train', 'valid', 'test')[part]}/" if part != NO_SPLIT else ""
            group = f"{name}{number}" if grouped else ""
            drawn.add(f"{folder}{name}/{number:03d}.png", image, label=label, split=part, group=group)


def encode(image: Image.Image, kind: str, **options: int) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel_features(content: bytes) -> NDArray[np.float32]:
    """Return 256 numbers that, as a network's, hardly change when an image is mirrored, brightened or saved again."""
    small = np.asarray(decode(content).convert("L").resize((16, 16), Image.Resampling.BOX), np.float32)
    small = (small - small.mean()) / (small.std() + 1e-6)
    mirrored = small[:, ::-1]
    return np.concatenate([(small + mirrored)[:, :8], np.abs(small - mirrored)[:, :8]]).ravel()


@pytest.fixture(scope="session")
def drawing() -> SimpleNamespace:
    """The names of this file, for tests: fixtures are the one thing that test files get from here."""
    return SimpleNamespace(DrawnSet=DrawnSet, draw=draw, encode=encode, fill=fill, pixel_features=pixel_features)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """120 drawn images of 120 patients, nothing wrong with them."""
    folder = tmp_path_factory.mktemp("clean")
    drawn = DrawnSet(folder / "data")
    fill(drawn, each=60)
    return drawn.cache(folder / "features.h5")


@pytest.fixture(scope="session")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """100 drawn images of known patients, and in other splits six copies of training images, one patient again."""
    folder = tmp_path_factory.mktemp("leaky")
    drawn = DrawnSet(folder / "data")
    fill(drawn, each=50)
    source = {number: draw(number) for number in (0, 1, 2, 5, 10, 11)}
    drawn.add("test/clear/copy.png", encode(source[0], "PNG"), label=0, split=TEST, group="copy")
    saved_again = encode(source[1].resize((150, 120), Image.Resampling.BICUBIC), "JPEG", quality=50)
    drawn.add("test/clear/saved-again.jpg", saved_again, label=0, split=TEST, group="saved-again")
    drawn.add("valid/clear/mirrored.png", ImageOps.mirror(source[2]), label=0, split=VALID, group="mirrored")
    brighter = Image.fromarray(np.clip(np.asarray(source[5]) * 1.15 + 15, 0, 255).astype(np.uint8))
    drawn.add("test/clear/brighter.jpg", encode(brighter, "JPEG", quality=85), label=0, split=TEST, group="brighter")
    cropped = source[10].crop((4, 4, SIDE - 4, SIDE - 4))
    drawn.add("test/clear/cropped.jpg", encode(cropped, "JPEG", quality=90), label=0, split=TEST, group="cropped")
    turned = source[11].rotate(4, Image.Resampling.BICUBIC)
    drawn.add("valid/clear/turned.png", encode(turned, "PNG"), label=0, split=VALID, group="turned")
    drawn.add("test/clear/again.png", draw(77777), label=0, split=TEST, group="clear6")
    return drawn.cache(folder / "features.h5")

"""Images with a frame, cut by ``--crop`` and ``--resize crop``, give the predictions of images cut beforehand.

Reference: Pillow's crop of every file, with the box written out here, and no option for a box.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image, ImageDraw

from tests.pipeline.conftest import BACKBONE, as_json, shell_in
from xfeat.featurize.cache.reader import FeatureCache

SAME = ("--interpolation", "bicubic", "--mean", "0.4", "--std", "0.2,0.3,0.25")
BOX = ("--crop", "0.1", "--resize", "crop")
# Width, height and the box of 0.1 and then the centred square. The first has the network's size before it is cut.
SIZES = {(32, 32): (3, 3, 29, 29), (60, 45): (12, 5, 47, 40), (47, 100): (5, 31, 42, 68), (33, 35): (3, 4, 30, 31)}


def drawings() -> Iterator[tuple[str, Image.Image, tuple[int, int, int, int]]]:
    """Yield path, picture and box of two classes: discs and stripes, in a white frame with the number of the image."""
    random = np.random.default_rng(0)
    for number in range(32):
        (width, height), box = list(SIZES.items())[number // 2 % 4]
        rows, columns = np.mgrid[:height, :width]
        level = random.integers(40, 90, (height, width))
        if number % 2:
            level[(rows - height // 2) ** 2 + (columns - width // 2) ** 2 < 60] += 120
        else:
            level += (50 * np.sin(columns / 3 + number)).astype(int) + 30
        image = Image.fromarray(level.clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, width - 1, height - 1), outline=255, width=3)
        draw.text((0, 0), str(number), fill=255)
        split = "train" if number < 16 else "valid" if number < 24 else "test"
        yield f"{split}/{'disc' if number % 2 else 'stripes'}/{number}.png", image, box


@pytest.mark.slow
def test_the_box_goes_with_the_features_the_run_and_the_model(tmp_path: Path, lite0_at_32: None) -> None:
    for name, image, box in drawings():
        for folder, picture in (("framed", image), ("cut", image.crop(box))):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / folder / name)
    run = shell_in(tmp_path)
    for data, options in (("framed", (*SAME, *BOX)), ("cut", SAME)):
        run("xfeat", "featurize", data, "-o", f"{data}.h5", *BACKBONE, "--size", 32, *options)
    framed, cut = (FeatureCache.open(tmp_path / f"{data}.h5") for data in ("framed", "cut"))
    assert framed.columns.path == cut.columns.path
    assert (np.asarray(framed.features) == np.asarray(cut.features)).all()
    run("xhead", "train", "--features", "framed.h5", "--name", "framed")
    run("xexport", "onnx", "runs/framed", "-o", "model.onnx")
    expected = by_the_core_model(tmp_path)
    answers = as_json(run("xserve", "predict", "--model", "model.onnx", "framed/test", "--json"))["predictions"]
    for answer in answers:
        assert list(answer["probabilities"].values()) == pytest.approx(expected[Path(answer["path"]).name], abs=1e-5)
    assert len(answers) == len(expected)
    check_graph(tmp_path / "model.onnx", expected)
    run("xexport", "explain", "model.onnx", "framed/test", "-o", "maps")
    check_pictures(tmp_path)


def by_the_core_model(folder: Path) -> dict[str, list[float]]:
    """Return probabilities of the test images: the core model takes pixels that were cut and resized elsewhere."""
    session, expected = ort.InferenceSession(folder / "model.core.onnx", providers=["CPUExecutionProvider"]), {}
    for name, image, box in drawings():
        if name.startswith("test"):
            pixels = image.crop(box).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")
            planes = np.asarray(pixels, np.float32).transpose(2, 0, 1)[None]
            expected[Path(name).name] = session.run(["probabilities"], {"image": planes})[0][0].tolist()
    return expected


def check_graph(model: Path, expected: dict[str, list[float]]) -> None:
    """Check that the graph alone cuts whole images, also one of the network's size."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for name, image, _ in drawings():
        if name.startswith("test"):
            pixels = np.asarray(image.convert("RGB"))[None]
            found = session.run(["probabilities"], {"image": pixels})[0][0]
            # float32 rounds a few of the resized pixels to the next grey level
            assert found.tolist() == pytest.approx(expected[Path(name).name], abs=0.02)


def check_pictures(folder: Path) -> None:
    """Check that a heatmap changes the box of its image, and nothing outside."""
    for name, image, box in drawings():
        if name.startswith("test"):
            with Image.open(folder / "maps" / Path(name).name) as picture:
                shown = np.asarray(picture.crop((0, 18, image.width, 18 + image.height))).astype(int)
            changed = np.abs(shown - np.asarray(image.convert("RGB"))).max(axis=2) > 0
            inside = np.zeros_like(changed)
            inside[box[1] : box[3], box[0] : box[2]] = True
            assert changed.any()
            assert not changed[~inside].any()

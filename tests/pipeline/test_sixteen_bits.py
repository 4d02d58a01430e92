"""10-bit images in 16-bit files give the predictions of the same images with 8 bits, through all commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inputs.image_bytes import png_16, tiff
from tests.pipeline.conftest import BACKBONE, as_json, shell_in


def draw(folder: Path) -> None:
    """Draw two classes: discs and stripes, as 8-bit PNG, and the same with 10 bits as PNG and TIFF."""
    rows, columns = np.mgrid[:48, :48]
    random = np.random.default_rng(0)
    for number in range(24):
        level = random.integers(40, 90, (48, 48))
        at = random.integers(12, 36, 2)
        if number % 2:
            level[(rows - at[0]) ** 2 + (columns - at[1]) ** 2 < 90] += 120
        else:
            level += (50 * np.sin(columns / 3 + number)).astype(int) + 30
        grey = level.clip(0, 255).astype(np.uint8)
        split = "train" if number < 12 else "valid" if number < 18 else "test"
        name = Path(split) / ("disc" if number % 2 else "stripes")
        for bits in ("8", "10"):
            (folder / bits / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(folder / "8" / name / f"{number}.png")
        deep = grey.astype(np.uint16) * 4
        if number % 3:
            (folder / "10" / name / f"{number}.png").write_bytes(png_16(deep))
        else:
            (folder / "10" / name / f"{number}.tif").write_bytes(tiff(1023 - deep, photometric=0))


@pytest.mark.slow
def test_the_range_goes_with_the_features_the_run_and_the_model(tmp_path: Path, lite0_at_32: None) -> None:
    draw(tmp_path)
    run = shell_in(tmp_path)
    answers = {}
    for bits in ("8", "10"):
        done = run("xfeat", "featurize", bits, "-o", f"{bits}.h5", *BACKBONE, "--size", 32)
        assert ("read as 10-bit, 1023 is white; this is a guess" in done.stderr) == (bits == "10")
        run("xhead", "train", "--features", f"{bits}.h5", "--name", bits)
        run("xexport", "onnx", f"runs/{bits}", "-o", f"{bits}.onnx")
        run("xexport", "verify", f"{bits}.onnx", "--data", bits)
        answers[bits] = as_json(run("xserve", "predict", "--model", f"{bits}.onnx", f"{bits}/test", "--json"))
    assert "16-bit images read as 10-bit" in run("xexport", "info", "10.onnx").stdout
    found = {
        bits: {Path(one["path"]).stem: one["probabilities"] for one in answer["predictions"]}
        for bits, answer in answers.items()
    }
    assert found["8"].keys() == found["10"].keys()
    for name, expected in found["8"].items():
        assert found["10"][name] == pytest.approx(expected, abs=1e-5)
    run("xexport", "explain", "10.onnx", "10/test", "-o", "maps")
    pictures = list((tmp_path / "maps").rglob("*.png"))
    assert len(pictures) == 6
    # Read over 16 bits they would be nearly black; a heatmap over black is coloured, so the darkest channel counts.
    assert all(np.asarray(Image.open(picture)).min(axis=2).max() > 100 for picture in pictures)

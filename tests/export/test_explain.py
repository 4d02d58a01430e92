"""Pictures of heatmaps over images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from xfeat.export.explain import Explanation, _with_caption, overlay
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction

Xexport = Callable[..., Result]


def test_where_the_heatmap_is_zero_the_image_is_unchanged() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert (np.asarray(overlay(image, np.zeros((2, 2), np.float32), (0, 0, 60, 40))) == np.asarray(image)).all()


def test_the_picture_is_brightest_where_the_heatmap_peaks() -> None:
    heatmap = np.zeros((7, 7), np.float32)
    heatmap[1, 5] = 3.0
    brightness = np.asarray(overlay(Image.new("RGB", (70, 70)), heatmap, (0, 0, 70, 70)).convert("L"))
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (row // 10, column // 10) == (1, 5)
    assert brightness[60:, :20].max() == 0


def test_each_image_gets_a_picture_of_the_class_that_xserve_predicts(
    xexport: Xexport, exported: Any, tmp_path: Path
) -> None:
    """The reference is the server's predictor, on the same files."""
    done = xexport("explain", exported.model, exported.data / "test", "-o", tmp_path / "seen", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)["explanations"]
    assert len(said) == len({each["picture"] for each in said}) == 12
    predictor = Predictor.open(exported.model, device="cpu", batch_size=1)
    for each, expected in zip(said, predictor.predict_paths([exported.data / "test"]), strict=True):
        assert isinstance(expected, Prediction)
        assert (each["path"], each["label"], each["shown"]) == (expected.path, expected.label, expected.label)
        assert (each["probability"], each["ood"]) == (expected.probabilities[expected.label], expected.ood)
        with Image.open(each["path"]) as image, Image.open(each["picture"]) as picture:
            assert image.size != (predictor.metadata.feature_spec.preprocess.size,) * 2
            assert picture.height - image.height == 18
            caption = np.asarray(picture)[:18]
            assert caption.any()
            assert not caption[:, -4:].any(), "the caption is cut off"


def test_an_interrupted_picture_is_not_left_behind(
    xexport: Xexport, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Image.Image, file: Path, **__: object) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    done = xexport("explain", exported.model, exported.data / "test/disc/0.png", "-o", tmp_path / "seen")
    assert done.exit_code == 130
    assert list((tmp_path / "seen").iterdir()) == []


def test_the_heatmap_of_a_given_class_is_shown(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    file = exported.data / "test/disc/0.png"
    done = xexport("explain", exported.model, file, "-o", tmp_path, "--class", "bar", "--json")
    assert json.loads(done.stdout)["explanations"][0]["shown"] == "bar"


def test_noise_is_marked_as_out_of_distribution(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    done = xexport("explain", exported.model, tmp_path / "noise.png", "-o", tmp_path / "seen")
    assert done.stdout.endswith("  out of distribution\n")


def test_images_that_cannot_be_read_are_skipped_and_named(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = xexport(
        *("explain", exported.model, tmp_path / "broken.png", exported.data / "test/disc/0.png"),
        *("-o", tmp_path / "seen", "--json"),
    )
    assert done.exit_code == 0
    assert json.loads(done.stdout)["skipped"][0]["path"] == str(tmp_path / "broken.png")
    assert "skipped" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{core}", "{image}"), "the model has no heatmap output"),
        (("{model}", "{image}", "--class", "cat"), "unknown class"),
        (("{model}", "{tmp}/nowhere.png"), "file or folder not found"),
        (("{model}", "{tmp}"), "no images found"),
        (("{model}", "{certificate}"), "none of the images can be read"),
        (("{model}", "{image}", "-o", "{certificate}/below"), "cannot be written"),
    ],
)
def test_an_image_or_model_that_cannot_be_explained_is_one_error(
    xexport: Xexport, exported: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    names = {
        "model": exported.model,
        "core": exported.core,
        "certificate": exported.certificate,
        "image": exported.data / "test/disc/0.png",
        "tmp": tmp_path,
    }
    done = xexport("explain", *(argument.format(**names) for argument in arguments))
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1


def test_images_are_never_overwritten_by_their_pictures(xexport: Xexport, copied: Any) -> None:
    folder = copied.data / "test/disc"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    done = xexport("explain", copied.model, folder, "-o", folder)
    assert done.exit_code == 1
    assert "a picture would overwrite an image" in done.stderr
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_class_name_of_two_lines_fits_into_the_caption() -> None:
    said = Explanation(
        path="a",
        picture="b",
        label="two\nlines",
        shown="two\nlines",
        probability=0.5,
        ood=None,
        out_of_distribution=False,
    )
    assert _with_caption(Image.new("RGB", (64, 64)), said).height == 64 + 18

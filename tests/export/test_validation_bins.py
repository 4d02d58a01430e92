"""A model holds how the scores of its validation images are distributed; in these images a server finds no drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.export.conftest import COUNTS, Project, invoke, make_project
from xfeat.export.cli import main as export_main
from xfeat.export.model.file import open_model
from xfeat.head.runs.reader import open_run
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.drift import ModelDrift, stability_index


@pytest.mark.slow
def test_the_bins_of_a_model_are_those_of_its_own_answers_to_the_validation_images(tmp_path: Path) -> None:
    make_project(tmp_path, COUNTS | {"valid": 15})
    model = tmp_path / "model.onnx"
    half = invoke(
        export_main,
        *("quantize", model, "--run", tmp_path / "runs/first", "-o", tmp_path / "half.onnx"),
        *("--fp16", "--gate", "100"),
    )
    assert half.exit_code == 0, half.output
    for file in (model, tmp_path / "half.onnx"):
        predictor = Predictor(file, "cpu")
        bins = predictor.metadata.validation_bins
        assert {score: len(each.counts) for score, each in bins.items()} == {"probability": 3, "ood": 3}
        drift = ModelDrift(predictor, 1000)
        for prediction in predictor.predict(sorted((tmp_path / "data/valid").rglob("*.png"))):
            drift.add(prediction)
        for score, window in drift.windows.items():
            assert sum(window.counts) == sum(bins[score].counts) == 30
            # Images are decoded and resized inside the model here, to a grey level: one at an edge may move.
            assert stability_index(bins[score].counts, window.counts) < 0.05, (file, score)
    rows = [row for row in open_run(tmp_path / "runs/first").predictions() if row["split"] == "valid"]
    top = np.array([max(float(row["p_bar"]), float(row["p_disc"])) for row in rows])
    expected = Predictor(model, "cpu").metadata.validation_bins["probability"]
    assert [int(np.sum(top <= edge + 5e-7)) for edge in expected.edges] == np.cumsum(expected.counts)[:-1].tolist()


def test_few_validation_images_have_no_bins(exported: Project) -> None:
    assert COUNTS["valid"] * 2 < 20
    assert open_model(exported.model).metadata.validation_bins == {}

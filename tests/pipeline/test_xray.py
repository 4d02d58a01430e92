"""The promises about real X-rays. They need a folder that a user's machine does not have."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.pipeline.conftest import BACKBONE, XRAY, as_json, shell_in

pytestmark = [
    pytest.mark.xray,
    pytest.mark.slow,
    pytest.mark.skipif(not XRAY.is_dir(), reason=f"the real X-rays are not in {XRAY}"),
]


def test_covid_and_normal_with_all_defaults(tmp_path: Path) -> None:
    """Test accuracy at least 0.97, and the served answers are those of the training."""
    run = shell_in(tmp_path)
    featurized = as_json(run("xfeat", "featurize", XRAY, "--classes", "covid,normal", *BACKBONE, "--json"))
    assert featurized["images"] == 499
    trained = as_json(run("xhead", "train", "--json"))
    assert trained["metrics"]["test"]["accuracy"] >= 0.97
    assert trained["metrics"]["test"]["images"] == 100
    exported = as_json(run("xexport", "onnx", "--json"))
    for checks in exported["against_torch"].values():
        for variant in ("full", "core"):
            assert checks[variant]["images"] == 100
            assert checks[variant]["max_difference"] < 1e-4
        assert all(check["changed_decisions"] == 0 for check in checks.values())
    answer = as_json(run("xserve", "predict", XRAY / "test" / "covid", XRAY / "test" / "normal", "--json"))
    with (tmp_path / trained["run"] / "predictions.csv").open() as file:
        noted = {row["path"]: row["prediction"] for row in csv.DictReader(file)}
    served = {Path(p["path"]).relative_to(XRAY).as_posix(): p["label"] for p in answer["predictions"]}
    assert len(served) == 100
    assert served == {path: noted[path] for path in served}


def test_all_three_classes(tmp_path: Path) -> None:
    run = shell_in(tmp_path)
    assert as_json(run("xfeat", "featurize", XRAY, *BACKBONE, "--json"))["images"] == 899
    trained = as_json(run("xhead", "train", "--json"))
    assert trained["classes"] == ["covid", "normal", "pneumonia"]
    matrix = trained["metrics"]["test"]["confusion_matrix"]
    assert [sum(row) for row in matrix] == [20, 80, 80]
    assert trained["metrics"]["test"]["accuracy"] > 0.7

"""All figures of a study: at the threshold, beside those of the most probable class, and net benefit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xfeat.head.evaluation.metrics import classification_metrics
from xfeat.head.evaluation.study import Cases, decision_curve, log_odds, study
from xfeat.head.reports.study_text import differing_classes, study_lines


def test_net_benefit_is_that_of_dcurves() -> None:
    """Reference: dcurves 1.1.7 for the same 200 rows; written down here, since it needs an older pandas."""
    rows = np.arange(200)
    positive = (rows * 7) % 10 < 3
    scores = np.round(((rows * 37) % 101) / 101 * 0.5 + 0.4 * positive, 4)
    found = {point["threshold"]: point for point in decision_curve(positive, scores)}
    for threshold, model, everybody in (
        (0.05, 0.266842, 0.263158),
        (0.1, 0.237222, 0.222222),
        (0.25, 0.185, 0.066667),
        (0.4, 0.21, -0.166667),
        (0.6, 0.18, -0.75),
        (0.8, 0.065, -2.5),
    ):
        assert found[threshold]["net_benefit"] == pytest.approx(model, abs=1e-6)
        assert found[threshold]["treat_all"] == pytest.approx(everybody, abs=1e-6)


def cases(threshold: float | None, classes: int = 2, count: int = 120) -> Cases:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    names = ("covid", "normal", "other")[:classes]
    positive = None if threshold is None else 0
    return Cases(
        labels=labels,
        probabilities=probabilities,
        patients=np.arange(count) // 2,
        class_names=names,
        positive=positive,
        threshold=threshold,
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("threshold", [None, 0.2, 0.9])
def test_every_figure_is_at_the_threshold_and_the_most_probable_class_stands_beside(
    classes: int, threshold: float | None
) -> None:
    """Reference: a loop over the images, and the metrics of the most probable class."""
    asked = cases(threshold, classes)
    found, plain = study(asked), classification_metrics(asked.labels, asked.probabilities, asked.class_names)
    decided = []
    for row in asked.probabilities:
        others = [p for code, p in enumerate(row) if code != 0]
        at_threshold = 0 if row[0] >= (threshold or 0) else 1 + int(np.argmax(others))
        decided.append(int(np.argmax(row)) if threshold is None else at_threshold)
    right = np.array(decided) == asked.labels
    assert found["accuracy"]["value"] == pytest.approx(right.mean())
    assert sum(map(sum, found["confusion_matrix"])) == 120
    for code, name in enumerate(asked.class_names):
        truth = asked.labels == code
        row = found["classes"][name]
        assert row["sensitivity"]["value"] == pytest.approx((np.array(decided) == code)[truth].mean())
        assert row["specificity"]["value"] == pytest.approx((np.array(decided) != code)[~truth].mean())
        assert row["auc"]["value"] == pytest.approx(plain["classes"][name]["auc"])
        beside = row if threshold is None else found["most_probable"]["classes"][name]
        assert beside["sensitivity"]["value"] == pytest.approx(plain["classes"][name]["sensitivity"])
    assert found["auc"]["value"] == pytest.approx(plain["auc"])
    assert (found["most_probable"] is None) == (threshold is None)
    assert (found["decision_curve"] is None) == (classes == 3 and threshold is None)


@pytest.mark.parametrize(("threshold", "same"), [(0.5, True), (0.9, False)])
@pytest.mark.parametrize("each", [1, 2])
def test_lines_say_where_the_threshold_changes_nothing_and_whose_the_intervals_are(
    threshold: float, same: bool, each: int
) -> None:
    asked = cases(threshold, 2)
    found = study(replace(asked, patients=np.arange(120) // each))
    lines = study_lines("test", found, all_in="run.json")
    assert ("by the most probable class: the same" in lines) == same
    assert differing_classes(found) == ([] if same else list(asked.class_names))
    assert lines[-1].endswith("by image" if each == 1 else "by patient")


def test_the_curve_is_useful_in_each_range_where_it_is_above_both_others() -> None:
    """Reference: every threshold by itself. High probabilities are wrong, except for the highest."""
    labels = np.array([0] * 40 + [1] * 60)
    positive = np.concatenate([np.full(30, 0.6), np.full(10, 0.995), np.full(20, 0.9), np.full(40, 0.05)])
    probabilities = np.stack([positive, 1 - positive], 1).astype(np.float32)
    asked = Cases(labels=labels, probabilities=probabilities, patients=np.arange(100), class_names=("ill", "well"))
    curve = study(asked)["decision_curve"]
    assert curve is not None
    inside = {
        at["threshold"]
        for at in curve["points"]
        if any(low <= at["threshold"] <= high for low, high in curve["useful"])
    }
    assert len(curve["useful"]) == 2
    assert inside == {
        at["threshold"] for at in curve["points"] if at["net_benefit"] > 0 and at["net_benefit"] > at["treat_all"]
    }


def test_log_odds_are_exact_near_1_and_finite_at_0() -> None:
    probabilities = np.array([[1, 1e-30], [0, 1], [0.25, 0.75]], np.float32)
    assert log_odds(probabilities, 0) == pytest.approx([69.0776, -103.616, np.log(1 / 3)], rel=1e-3)


def test_a_class_without_images_has_no_figures_and_no_error() -> None:
    asked = cases(0.5)
    alone = Cases(**{**vars(asked), "labels": np.zeros(120, np.int64)})
    found = study(alone)
    assert found["auc"] == {"value": None, "interval": None}
    assert found["classes"]["covid"]["specificity"]["value"] is None
    assert found["classes"]["covid"]["sensitivity"]["value"] is not None

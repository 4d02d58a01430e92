"""The drift figure: against a plain loop of numpy and its known distribution, and in a window of counts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.score_bins import ScoreBins, validation_bins
from xfeat.featurize.errors import SpecError
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction
from xfeat.serve.models.drift import DriftWindow, ModelDrift, index_by_chance, stability_index
from xfeat.serve.models.metrics import ServerMetrics

RNG = np.random.default_rng(5)
VALIDATION = RNG.beta(0.5, 0.5, 300)


def plain_index(validation: np.ndarray, found: np.ndarray, edges: tuple[float, ...]) -> float:
    """The definition, with its own bins: histogram, half an image more in each, sum of differences times logarithms."""
    borders = [-np.inf, *edges, np.inf]
    total, count = 0.0, len(borders) - 1
    for low, high in pairwise(borders):
        before = (np.sum((validation > low) & (validation <= high)) + 0.5) / (len(validation) + 0.5 * count)
        now = (np.sum((found > low) & (found <= high)) + 0.5) / (len(found) + 0.5 * count)
        total += (now - before) * np.log(now / before)
    return float(total)


FOUND = {
    "the same": VALIDATION,
    "other images of the same kind": RNG.beta(0.5, 0.5, 1000),
    "all unsure": RNG.normal(0.5, 0.05, 400).clip(0, 1),
    "all equal": np.full(200, 0.25),
    "beyond all bins": np.full(150, 9.0),
}


@pytest.mark.parametrize("kind", FOUND)
def test_the_index_is_that_of_a_plain_loop(kind: str) -> None:
    bins = ScoreBins.of(VALIDATION)
    assert bins is not None
    assert len(bins.counts) == 10
    assert sum(bins.counts) == 300
    assert max(bins.counts) == min(bins.counts) == 30
    window = DriftWindow(bins, 1000)
    for score in FOUND[kind]:
        window.add(float(score))
    index = stability_index(bins.counts, window.counts)
    rounded = np.round(VALIDATION, 6), np.round(FOUND[kind], 6)
    assert index == pytest.approx(plain_index(*rounded, bins.edges), abs=1e-12)
    same = kind in ("the same", "other images of the same kind")
    assert (index < 0.1, index > 0.25) == (same, not same)


def test_the_index_by_chance_is_the_quantile_of_the_chi_squared_distribution_and_of_trials() -> None:
    for bins, expected, found in ((10, 180, 100), (10, 1000, 1000), (2, 40, 100), (5, 60, 500)):
        exact = chi2.ppf(0.99, bins - 1) * (1 / expected + 1 / found)
        assert index_by_chance([expected] + [0] * (bins - 1), [found] + [0] * (bins - 1)) == pytest.approx(
            exact, rel=0.03
        )
    draws = RNG.multinomial(500, np.full(10, 0.1), size=(2, 1000))
    above = [stability_index(*pair) > index_by_chance(*pair) for pair in draws.swapaxes(0, 1).tolist()]
    assert 0.001 < np.mean(above) < 0.03


# Scores of validation images, and the number of their bins; None: no bins, and so no figure.
KINDS_OF_SCORES = {
    "many": (np.arange(1000) / 1000, 10),
    "fifty": (np.arange(50) / 50, 5),
    "nineteen": (np.arange(19) / 19, None),
    "none": (np.empty(0), None),
    "equal": (np.full(200, 0.7), None),
    "equal but for noise of the engine": (1 - RNG.uniform(0, 2e-7, 200), None),
    "half of them almost 1": (np.r_[np.linspace(0, 0.9, 100), np.full(100, 1.0)], 6),
    "two values": (np.r_[np.zeros(90), np.ones(110)], 2),
    "not a number among them": (np.r_[np.arange(100) / 100, np.nan, np.inf], 10),
    "negative": (np.linspace(-3, -1, 100), 10),
}


@pytest.mark.parametrize("kind", KINDS_OF_SCORES)
def test_bins_of_validation_scores(kind: str) -> None:
    scores, number = KINDS_OF_SCORES[kind]
    bins = ScoreBins.of(scores)
    assert (bins and len(bins.counts)) == number
    if bins is not None:
        assert min(bins.counts) > 0
        assert sum(bins.counts) == np.isfinite(scores).sum()
        for noise in (-1e-8, 1e-8):  # as another engine would compute them
            again = DriftWindow(bins, 10_000)
            for score in scores[np.isfinite(scores)]:
                again.add(float(np.round(score, 6) + noise))
            assert tuple(again.counts) == bins.counts


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": [0.5], "counts": [1, 2, 3]},
        {"edges": [0.5, 0.5], "counts": [1, 2, 3]},
        {"edges": [], "counts": [1]},
        {"edges": [0.5], "counts": [-1, 2]},
        {"edges": [0.5], "counts": [0, 0]},
        {"edges": ["0.5"], "counts": [1, 2]},
        {"edges": [0.5], "counts": [1, 2], "more": 1},
        [],
    ],
)
def test_bins_that_contradict_themselves_are_refused(tiny: Any, wrong: Any) -> None:
    settings = tiny.describe().to_dict() | {"validation_bins": {"probability": wrong}}
    with pytest.raises(SpecError):
        ModelMetadata.from_dict(settings)


def test_metadata_keep_the_bins_and_models_without_are_as_before(tiny: Any) -> None:
    probabilities = RNG.dirichlet([1, 1, 1], 60)
    bins = validation_bins(probabilities, tiny.classes, "normal", None)
    assert bins["probability"].edges[0] == pytest.approx(np.quantile(probabilities[:, 1], 1 / 6), abs=0.02)
    metadata = tiny.describe(validation_bins=bins)
    assert ModelMetadata.from_props(metadata.to_props(), "m.onnx") == metadata
    assert "validation_bins" not in tiny.describe().to_dict()


def prediction(covid: float, ood: float | None = None) -> Prediction:
    rest = {"normal": (1 - covid) * 0.75, "pneumonia": (1 - covid) * 0.25}
    return Prediction(path="x", label="covid", probabilities={"covid": covid, **rest}, ood=ood, ood_threshold=2.0)


def metric(metrics: ServerMetrics, name: str, **labels: str) -> float | None:
    return metrics._registry.get_sample_value(name, labels)


@pytest.fixture
def with_bins(write_model: Callable[..., Path]) -> Callable[..., Predictor]:
    def make(positive: str | None = "covid", **changes: Any) -> Predictor:
        spread = np.c_[np.arange(200) / 200, np.zeros(200), 1 - np.arange(200) / 200]
        bins = validation_bins(spread, ("covid", "normal", "pneumonia"), positive, np.arange(100) / 50)
        threshold = {"positive": positive, "threshold": 0.5} if positive else {}
        path = write_model(ood=True, ood_threshold=2.0, validation_bins=bins, **threshold, **changes)
        return Predictor(path, "cpu")

    return make


def test_the_window_holds_the_newest_images_and_starts_anew_with_a_new_version(with_bins: Any) -> None:
    metrics, first = ServerMetrics(drift_window=150), with_bins()
    metrics.add_model("m", first, "cpu", lambda: 0)
    of = {"model": "m", "of": "probability"}
    metrics.count("m", first, [prediction(0.99)] * 99)
    assert metric(metrics, "xfeat_drift_psi", **of) is None, "fewer than 100 images"
    assert metric(metrics, "xfeat_drift_images", **of) == 99
    metrics.count("m", first, [prediction(0.99)])
    assert metric(metrics, "xfeat_drift_psi", **of) > 0.25
    metrics.count("m", first, [prediction(number % 150 / 150) for number in range(150)])
    assert metric(metrics, "xfeat_drift_images", **of) == 150
    assert metric(metrics, "xfeat_drift_psi", **of) < 0.01, "the hundred before have left the window"
    assert metric(metrics, "xfeat_drift_images", model="m", of="ood") == 0, "no image had a score"
    second = with_bins(run="two")
    metrics.add_model("m", second, "cpu", lambda: 0)
    assert metric(metrics, "xfeat_drift_images", **of) == 0
    metrics.count("m", first, [prediction(0.99)])  # a late result of the old version
    metrics.count("m", second, [prediction(0.99)])
    assert metric(metrics, "xfeat_drift_images", **of) == 1
    assert metric(metrics, "xfeat_images_total", model="m", label="covid") == 252, "counters go on"
    metrics.remove_model("m")
    metrics.count("m", second, [prediction(0.99)])  # and one of a model that has gone
    assert b'"m"' not in metrics.render()


@pytest.mark.parametrize(("positive", "watched"), [("covid", 0.2), (None, 0.6)])
def test_the_probability_is_that_of_the_positive_class_or_the_highest(
    with_bins: Any, positive: str | None, watched: float
) -> None:
    drift = ModelDrift(with_bins(positive), 100)
    drift.add(prediction(0.2, ood=1.0))
    for score, value in (("probability", watched), ("ood", 1.0)):
        window = drift.windows[score]
        assert window.counts[window.reference.bin_of(value)] == sum(window.counts) == 1


def test_a_model_of_an_earlier_version_has_no_figure_and_says_so(predictor: Predictor) -> None:
    metrics = ServerMetrics()
    metrics.add_model("m", predictor, "cpu", lambda: 0)
    metrics.count("m", predictor, [prediction(0.9)] * 200)
    for of in ("probability", "ood"):
        assert metric(metrics, "xfeat_drift_reference_images", model="m", of=of) == 0
        assert metric(metrics, "xfeat_drift_psi", model="m", of=of) is None
        assert metric(metrics, "xfeat_drift_images", model="m", of=of) is None


def test_histograms_of_probability_and_ood_score(with_bins: Any) -> None:
    metrics, model = ServerMetrics(), with_bins()
    metrics.add_model("m", model, "cpu", lambda: 0)
    for share, ood in ((0.97, 2.0), (0.45, 2.0001), (0.6, None), (0.6, 0.0), (1.0, 40.0)):
        metrics.count("m", model, [prediction(share, ood)])
    top = [
        metric(metrics, "xfeat_top_probability_bucket", model="m", le=le)
        for le in ("0.5", "0.6", "0.95", "0.99", "1.0")
    ]
    assert top == [1, 3, 3, 4, 5]
    ood_scores = [metric(metrics, "xfeat_ood_score_bucket", model="m", le=le) for le in ("0.25", "1.0", "1.1", "+Inf")]
    assert ood_scores == [1, 2, 3, 4], "up to 1.0 are those within the threshold of the model"

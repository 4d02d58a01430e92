"""Whether the images of today are scored as the validation images were: the population stability index of a window.

Source: Siddiqi, Credit Risk Scorecards, 2006, for the index and its use: below 0.1 no change, above 0.25 a large one;
Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation 14(4),
2020, for its distribution: without a change, it is chi-squared with (bins - 1) degrees of freedom, times 1/n + 1/m.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from xfeat.export.model.score_bins import OOD_SCORE, PROBABILITY, ScoreBins
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.results import Prediction
from xfeat.serve.specs import LEAST_DRIFT_IMAGES

# Of the chi-squared distribution: chance alone exceeds it in one window of a hundred.
_Z_99 = 2.326
# Added to each count, so that an empty bin has a logarithm. Source: Agresti, Categorical Data Analysis, 2002, 3.1.1.
_SMOOTHING = 0.5
_GAUGES = {
    "psi": f"Population stability index against the validation images, from {LEAST_DRIFT_IMAGES} images on",
    "psi_chance": "The index that chance alone exceeds in one of a hundred windows",
    "images": "Images in the window",
    "reference_images": "Validation images whose scores the model file holds; with 0 there is no index",
}


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the population stability index of two histograms with the same bins, 0 or more."""
    pairs = zip(_shares(expected), _shares(found), strict=True)
    return sum((now - before) * math.log(now / before) for before, now in pairs)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _SMOOTHING * len(counts)
    return [(count + _SMOOTHING) / total for count in counts]


def index_by_chance(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the index that chance alone exceeds in one of a hundred windows, for as many images and bins.

    Source: Wilson and Hilferty 1931, for the quantile of the chi-squared distribution.
    """
    freedom = len(expected) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + _Z_99 * math.sqrt(2 / (9 * freedom))) ** 3
    return quantile * (1 / sum(expected) + 1 / sum(found))


class DriftWindow:
    """The last images of one model: only the numbers of their bins are kept.

    Args:
        reference: the bins of the validation images.
        size: how many images.
    """

    def __init__(self, reference: ScoreBins, size: int) -> None:
        self.reference = reference
        self._bins: deque[int] = deque(maxlen=size)
        self._lock = threading.Lock()

    def add(self, score: float) -> None:
        """Count an image; the oldest leaves a full window."""
        with self._lock:
            self._bins.append(self.reference.bin_of(score))

    @property
    def counts(self) -> list[int]:
        """Images per bin."""
        with self._lock:
            found = Counter(self._bins)
        return [found[number] for number in range(len(self.reference.counts))]


class ModelDrift:
    """The windows of one version of a model.

    Args:
        predictor: the version.
        size: of the windows.

    Attributes:
        windows: by kind of score, ``probability`` and ``ood``; those that the model file has bins of.
    """

    def __init__(self, predictor: Predictor, size: int) -> None:
        self.predictor = predictor
        bins = predictor.metadata.validation_bins
        self.windows = {score: DriftWindow(bins[score], size) for score in (PROBABILITY, OOD_SCORE) if score in bins}

    def add(self, result: Prediction) -> None:
        """Count an image in the windows."""
        positive, probabilities = self.predictor.metadata.positive, result.probabilities
        watched = max(probabilities.values()) if positive is None else probabilities[positive]
        for score, value in ((PROBABILITY, watched), (OOD_SCORE, result.ood)):
            if score in self.windows and value is not None:
                self.windows[score].add(value)


class DriftCollector(Collector):
    """The index of each model, for Prometheus. Models without bins have none, and 0 reference images.

    Args:
        models: by name; read anew each time.
    """

    def __init__(self, models: Mapping[str, ModelDrift]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        psi, chance, images, reference = (
            GaugeMetricFamily(f"xfeat_drift_{name}", text, labels=["model", "of"]) for name, text in _GAUGES.items()
        )
        for name, drift in list(self._models.items()):
            for score in (PROBABILITY, OOD_SCORE):
                window = drift.windows.get(score)
                expected = window.reference.counts if window else ()
                reference.add_metric([name, score], sum(expected))
                if window:
                    found = window.counts
                    images.add_metric([name, score], sum(found))
                    if sum(found) >= LEAST_DRIFT_IMAGES:
                        psi.add_metric([name, score], stability_index(expected, found))
                        chance.add_metric([name, score], index_by_chance(expected, found))
        yield from (psi, chance, images, reference)

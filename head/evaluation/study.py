"""The figures of a study: metrics with intervals by patient, calibration, and net benefit. Needs numpy alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from xfeat.head.evaluation.clustered import Estimate, Figure, auc_of, calibration_of, mean_of, proportion_of
from xfeat.head.evaluation.metrics import confusion_matrix
from xfeat.head.evaluation.operating_point import rates_of
from xfeat.head.evaluation.predictions import Predictions, decide, logarithms

# Of more classes, calibration is measured for the positive one only.
_MOST_CALIBRATED = 10
# Where a decision curve is drawn: at which probability somebody would act.
BENEFIT_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))


class ClassFigures(TypedDict):
    """The figures of one class against all others; calibration is measured for few classes only."""

    sensitivity: Figure
    specificity: Figure
    ppv: Figure
    npv: Figure
    auc: Figure
    slope: NotRequired[Figure]
    intercept: NotRequired[Figure]


class Study(TypedDict):
    """The figures of a study, as run.json, crossval.json and eval.json have them; see :func:`study`."""

    images: int
    patients: int
    positive: str | None
    threshold: float | None
    accuracy: Figure
    auc: Figure
    confusion_matrix: list[list[int]]
    classes: dict[str, ClassFigures]
    most_probable: dict[str, Any] | None
    decision_curve: dict[str, Any] | None


def plain_accuracy(study: Study) -> Figure:
    """Return the accuracy of the most probable class, which is the only one without a threshold."""
    beside = study["most_probable"]
    return study["accuracy"] if beside is None else cast(Figure, beside["accuracy"])


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Predicted images with their truth.

    Attributes:
        labels: int64 (n,).
        probabilities: float32 (n, C).
        patients: int64 (n,), from 0 without gaps; images of one patient are not independent.
        class_names: C names.
        positive: index of the class with a threshold, or ``None``: the most probable class is predicted.
        threshold: ``positive`` is predicted if its probability is at least this.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    patients: NDArray[np.int64]
    class_names: tuple[str, ...]
    positive: int | None = None
    threshold: float | None = None

    @property
    def decisions(self) -> NDArray[np.int64]:
        """int64 (n,), the predicted classes."""
        return decide(self.probabilities, self.positive, 0.5 if self.threshold is None else self.threshold)

    @property
    def studied(self) -> int | None:
        """The class whose sensitivity is reported: the positive one, else the first of two; of more, ``None``."""
        return 0 if self.positive is None and len(self.class_names) == 2 else self.positive

    @property
    def measures(self) -> tuple[str, ...]:
        """The figures that parts of the images are compared by."""
        return ("accuracy", "auc") if self.studied is None else ("sensitivity", "specificity", "auc")


def cases_of(predictions: Predictions, class_names: tuple[str, ...]) -> Cases:
    """Return the cases of predictions, with their temperature and threshold."""
    return Cases(
        labels=predictions.labels,
        probabilities=predictions.probabilities,
        patients=predictions.patients,
        class_names=class_names,
        positive=predictions.positive,
        threshold=None if predictions.positive is None else predictions.threshold,
    )


def study(cases: Cases) -> Study:
    """Measure predictions, with 95 % intervals by patient. All but AUC and calibration is at the threshold, if any.

    Returns:
        ``images``, ``patients``, ``positive``, ``threshold``, ``accuracy``, ``auc`` (binary, or the one-vs-rest mean),
        ``confusion_matrix``, ``classes`` (per class ``sensitivity``, ``specificity``, ``ppv``, ``npv``, ``auc``, and
        calibration ``slope`` and ``intercept``), ``most_probable`` (``accuracy`` and ``classes`` by the most probable
        class; ``None`` without a threshold) and ``decision_curve`` (of the positive class, or the first of two). An
        estimate is a ``value`` and an ``interval``; both are ``None`` where they are undefined.
    """
    names, everyone = cases.class_names, np.ones(len(cases.labels), np.bool_)
    decisions, code = cases.decisions, cases.studied
    classes = {name: one_versus_rest(cases, number, decisions, everyone) for number, name in enumerate(names)}
    found = {
        "images": len(cases.labels),
        "patients": int(cases.patients.max(initial=-1)) + 1,
        "positive": None if cases.positive is None else names[cases.positive],
        "threshold": cases.threshold,
        "accuracy": accuracy_of(cases, decisions, everyone).to_dict(),
        "auc": mean_of([row["auc"] for row in classes.values()]).to_dict(),
        "confusion_matrix": confusion_matrix(cases.labels, decisions, len(names)).tolist(),
        "classes": {name: {key: found.to_dict() for key, found in row.items()} for name, row in classes.items()},
        "most_probable": None if cases.positive is None else _most_probable(cases, everyone),
        "decision_curve": None if code is None else _decision_curve(cases, code),
    }
    return cast(Study, found)


def _most_probable(cases: Cases, everyone: NDArray[np.bool_]) -> dict[str, Any]:
    decisions = replace(cases, positive=None, threshold=None).decisions
    rates = {
        name: rates_of(cases.labels == code, decisions == code, cases.patients)
        for code, name in enumerate(cases.class_names)
    }
    return {
        "accuracy": accuracy_of(cases, decisions, everyone).to_dict(),
        "classes": {name: {key: found.to_dict() for key, found in row.items()} for name, row in rates.items()},
    }


def accuracy_of(cases: Cases, decisions: NDArray[np.int64], among: NDArray[np.bool_]) -> Estimate:
    """Estimate the share of right decisions ``among`` some images, bool (n,)."""
    return proportion_of(decisions == cases.labels, among, cases.patients)


def figures_among(cases: Cases, among: NDArray[np.bool_]) -> dict[str, Estimate]:
    """Estimate what parts of the images are compared by.

    It is the ``accuracy``, and the ``sensitivity``, ``specificity``, ``auc``, ``slope`` and ``intercept`` of the
    studied class; without one it is the mean ``auc``.

    Args:
        cases: all images; every estimate has an influence for each of their patients.
        among: bool (n,), the images that are measured.
    """
    decisions, classes = cases.decisions, range(len(cases.class_names))
    accuracy = accuracy_of(cases, decisions, among)
    if cases.studied is not None:
        found = one_versus_rest(cases, cases.studied, decisions, among)
        return {"accuracy": accuracy, **{name: found[name] for name in (*cases.measures, "slope", "intercept")}}
    areas = [one_versus_rest(cases, code, decisions, among)["auc"] for code in classes]
    return {"accuracy": accuracy, "auc": mean_of(areas)}


def one_versus_rest(
    cases: Cases, code: int, decisions: NDArray[np.int64], among: NDArray[np.bool_]
) -> dict[str, Estimate]:
    """Estimate ``sensitivity``, ``specificity``, ``ppv``, ``npv``, ``auc``, ``slope`` and ``intercept`` of a class.

    Args:
        cases: all images; every estimate has an influence for each of their patients.
        code: of the class.
        decisions: int64 (n,), predicted classes.
        among: bool (n,), the images that are measured.
    """
    positive, called = cases.labels == code, decisions == code
    count = int(cases.patients.max(initial=-1)) + 1
    rates = rates_of(positive, called, cases.patients, among)
    rates["auc"] = auc_of(positive[among], cases.probabilities[among, code], cases.patients[among], count)
    if len(cases.class_names) <= _MOST_CALIBRATED or code == cases.positive:
        odds = log_odds(cases.probabilities[among], code)
        rates |= calibration_of(positive[among], odds, cases.patients[among], count)
    return rates


def log_odds(probabilities: NDArray[np.floating], code: int) -> NDArray[np.float64]:
    """Return the log-odds float64 (n,) of a class against all others, from probabilities (n, C)."""
    exact = probabilities.astype(np.float64)
    others = np.delete(exact, code, axis=1).sum(axis=1)
    return logarithms(exact[:, code]) - logarithms(others)


def _decision_curve(cases: Cases, code: int) -> dict[str, Any]:
    points, useful = decision_curve(cases.labels == code, cases.probabilities[:, code]), list[list[float]]()
    for above, run in groupby(points, lambda at: at["net_benefit"] > max(at["treat_all"], 0.0)):
        thresholds = [at["threshold"] for at in run]
        if above:
            useful.append([thresholds[0], thresholds[-1]])
    return {"class": cases.class_names[code], "points": points, "useful": useful}


def decision_curve(positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> list[dict[str, float]]:
    """Return the net benefit of acting on a prediction, beside acting on everybody; that of acting on nobody is 0.

    Args:
        positive: bool (n,).
        scores: probability (n,) of the positive class.

    Returns:
        For each of :data:`BENEFIT_THRESHOLDS` ``threshold``, ``net_benefit`` (true positives minus false positives
        weighted by the odds of the threshold, per image) and ``treat_all``.

    Source:
        Vickers and Elkin, "Decision curve analysis: a novel method for evaluating prediction models", 2006.
    """
    scores, share, found = scores.astype(np.float32), float(positive.mean()), []
    for threshold in BENEFIT_THRESHOLDS:
        called, odds = scores >= np.float32(threshold), threshold / (1 - threshold)
        benefit = float((called & positive).mean() - (called & ~positive).mean() * odds)
        found.append({"threshold": threshold, "net_benefit": benefit, "treat_all": share - (1 - share) * odds})
    return found

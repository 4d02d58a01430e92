"""Cross-validations and external tests, each compared with the best of its kind on the same images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import RunError
from xfeat.head.compare.significance import Difference, PredictedClasses, difference_cells, paired_difference
from xfeat.head.crossval.report import CROSSVAL_FILE
from xfeat.head.crossval.stored import open_crossval
from xfeat.head.evaluation.study import plain_accuracy
from xfeat.head.reports.eval_report import EVAL_FILE, open_evaluation
from xfeat.head.reports.formatting import accuracy_line, percent, with_interval
from xfeat.head.runs.results import pooled_predictions

logger = logging.getLogger(__name__)

CROSSVAL, EVAL = "crossval", "eval"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A cross-validation or an external test.

    Attributes:
        kind: ``crossval`` or ``eval``.
        name: of its folder.
        text: its main figures in words.
        figures: what ``--json`` shows of it.
        metrics: by the most probable class; see :func:`xfeat.head.evaluation.metrics.classification_metrics`.
        images: which images it was tested on: only results on the same ones are compared.
        predictions: the most probable class of each.
        groups: path to patient, where known.
        difference: its accuracy minus that of the best result of its kind on the same images; ``None`` for the best.
        best: name of this best result.
    """

    kind: str
    name: str
    text: str
    figures: dict[str, Any]
    metrics: dict[str, Any]
    images: str
    predictions: PredictedClasses
    groups: dict[str, str]
    difference: Difference | None = None
    best: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        against = self.difference and self.difference.to_dict()
        return {"name": self.name, **self.figures, "metrics": self.metrics, "against_first": against}

    @property
    def line(self) -> str:
        """Its main figures, and how it differs from the best."""
        points, ends, p, verdict = difference_cells(self.difference)
        if self.difference is None:
            return f"{self.name}: {self.text}"
        if self.difference.problem:
            return f"{self.name}: {self.text}; {verdict}"
        interval = "" if ends == "–" else f" ({ends})"
        return f"{self.name}: {self.text}; {points} points{interval} against {self.best}, p {p}, {verdict}"


def is_result(folder: Path) -> bool:
    """Tell whether a folder has a cross-validation or an external test."""
    return (folder / CROSSVAL_FILE).is_file() or (folder / EVAL_FILE).is_file()


def open_result(folder: Path) -> Result:
    """Read a cross-validation or an external test.

    Raises:
        RunError: if it is missing or damaged, or a file has changed.
    """
    return _crossval(folder) if (folder / CROSSVAL_FILE).is_file() else _evaluation(folder)


def find_results(runs: Path) -> list[Result]:
    """Read all in a folder; those that are not as they were saved are left out with a warning."""
    found = []
    for folder in sorted(path for path in runs.glob("[!.]*") if is_result(path)):
        try:
            found.append(open_result(folder))
        except RunError as error:
            logger.warning("left out: %s", error)
    return found


def compared_results(results: Iterable[Result]) -> list[Result]:
    """Sort results by kind, images and accuracy, and compare each with the best of its kind on the same images."""
    best: dict[tuple[str, str], Result] = {}
    found = []
    for result in sorted(results, key=lambda each: (each.kind, each.images, -each.metrics["accuracy"], each.name)):
        first = best.setdefault((result.kind, result.images), result)
        difference = None
        if first is not result:
            difference = paired_difference(result.predictions, first.predictions, {**result.groups, **first.groups})
        found.append(replace(result, difference=difference, best=first.name))
    return found


def _crossval(folder: Path) -> Result:
    stored = open_crossval(folder)
    accuracy, metrics = stored["accuracy"], stored["metrics"]
    return Result(
        kind=CROSSVAL,
        name=stored["name"],
        text=f"{accuracy_line('cross-validated accuracy', accuracy)}, AUC {percent(metrics['auc'])}",
        figures={"accuracy": accuracy, "file_sha256": stored.get("file_sha256", {})},
        metrics=metrics,
        images="",
        **_predictions(folder, stored["classes"]),
    )


def _evaluation(folder: Path) -> Result:
    stored = open_evaluation(folder)
    metrics, data = stored["metrics"], stored["cache"]["data_root"]
    accuracy = with_interval(**plain_accuracy(stored["statistics"]))
    return Result(
        kind=EVAL,
        name=stored["name"],
        text=f"run {stored['run']} on {data}: external accuracy {accuracy}, AUC {percent(metrics['auc'])}",
        figures={"run": stored["run"], "data_root": data},
        metrics=metrics,
        images=data,
        **_predictions(folder, stored["classes"]),
    )


def _predictions(folder: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Return the most probable class of each image, by the mean log-probability over the seeds, and its group."""
    found = pooled_predictions(folder, classes)
    called = zip(found.paths, found.labels, found.probabilities.argmax(axis=1), strict=True)
    return {
        "predictions": {path: (classes[label], classes[code]) for path, label, code in called},
        "groups": {path: group for path, group in zip(found.paths, found.groups, strict=True) if group},
    }

"""Runs side by side: their settings, their metrics, and whether a difference is larger than chance."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.featurize.errors import RunError, XfeatError
from xfeat.head.compare.significance import Difference, PredictedClasses, paired_difference
from xfeat.head.evaluation.study import plain_accuracy
from xfeat.head.runs.inputs import open_same_cache
from xfeat.head.runs.reader import Run, no_runs_error, open_run, runs_in

if TYPE_CHECKING:
    from xfeat.head.compare.results import Result

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the comparison.

    Attributes:
        name: of the run, or of the baseline.
        settings: all settings in one dict: ``lr``, ``hidden``, ``backbone``, …
        metrics: of each split; see :func:`xfeat.head.evaluation.metrics.classification_metrics`. The interval of the
            accuracy is by patient, except in runs of version 0.1.
        predictions: on the split that is compared.
        run: ``None`` for a baseline.
        problem: why it has no predictions and cannot be compared, or empty.
        difference: its accuracy minus that of the first run, which may come after a baseline; ``None`` for this run
            itself, if it has predictions, and before :func:`compare_entries`.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    predictions: PredictedClasses = field(default_factory=dict)
    run: Run | None = None
    problem: str = ""
    difference: Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """Entries, sorted, the best first.

    Attributes:
        part: ``test``, or ``valid`` if an entry has no test images.
        sort: the metric they are sorted by.
        entries: the lines; those without predictions come last.
        differing: settings that differ between runs.
        first: name of the run that the others are compared with; empty without a run.
        groups: path to patient of the images that are compared, where known.
        results: cross-validations and external tests, which are compared by themselves.
    """

    part: str
    sort: str
    entries: list[Entry]
    differing: list[str]
    first: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    results: Sequence[Result] = ()


def find_runs(runs: Path) -> list[Run]:
    """Read all runs in a folder; damaged ones are left out with a warning.

    Raises:
        RunError: if there is no run.
    """
    found = []
    for folder in runs_in(runs):
        if folder.is_symlink():
            continue  # ``latest``
        try:
            found.append(open_run(folder))
        except RunError as error:
            logger.warning("left out: %s", error)
    if not found:
        raise no_runs_error(runs)
    return found


def as_entries(runs: Sequence[Run]) -> list[Entry]:
    """Turn runs into entries on a split that they all have.

    For a run whose predictions are missing or damaged a warning is logged, and it is not compared.
    """
    part = common_part(runs)
    return [_entry(run, part) for run in runs]


def _entry(run: Run, part: str) -> Entry:
    entry = Entry(name=run.name, settings=_settings(run), metrics=_metrics(run), run=run)
    try:
        return replace(entry, predictions=_predictions(run, part))
    except RunError as error:
        logger.warning("not compared: %s", error)
        return replace(entry, problem=error.what)


def _metrics(run: Run) -> dict[str, Any]:
    return {
        part: {**figures, "accuracy_interval": plain_accuracy(run.statistics[part])["interval"]}
        if part in run.statistics
        else figures
        for part, figures in run.metrics.items()
    }


def common_part(runs: Sequence[Run]) -> str:
    """Return ``test`` if every run has test images, else ``valid``."""
    return "test" if all("test" in run.metrics for run in runs) else "valid"


def compare_entries(entries: Sequence[Entry], part: str, *, sort: str = "accuracy") -> Comparison:
    """Sort entries and compare each with the first run.

    Args:
        entries: runs and baselines.
        part: the split to compare on.
        sort: one of :data:`xfeat.head.specs.SORTS`; the lowest loss and the highest of the others come first.
    """
    ordered = sorted(entries, key=lambda entry: (_sort_value(entry, part, sort), entry.name))
    groups: dict[str, str] = {}
    for run in {entry.run.cache["content_sha256"]: entry.run for entry in ordered if entry.run}.values():
        groups |= _groups(run)
    first = next((entry for entry in ordered if entry.run is not None), None)
    compared = [replace(entry, difference=_difference(entry, first, groups)) for entry in ordered]
    return Comparison(part, sort, compared, _differing(ordered), first.name if first else "", groups)


def _difference(entry: Entry, first: Entry | None, groups: dict[str, str]) -> Difference | None:
    if entry.problem:
        return Difference(problem=entry.problem)
    return None if first is None or entry is first else paired_difference(entry.predictions, first.predictions, groups)


def _sort_value(entry: Entry, part: str, sort: str) -> tuple[bool, bool, Any]:
    not_comparable = bool(entry.problem)
    if sort == "name":
        return not_comparable, False, entry.name
    value = entry.metrics[part].get(sort)
    # entries without this metric come last
    return not_comparable, value is None, 0.0 if value is None else value if sort == "loss" else -value


def _settings(run: Run) -> dict[str, Any]:
    features = run.feature_spec.to_dict()
    preprocess = features.pop("preprocess")
    settings = {**run.head_spec.to_dict(), **run.train_spec.to_dict(), **features, **preprocess}
    if run.ensemble:
        members = settings["ensemble"] = run.ensemble["members"]
        settings["hidden"] = [width // members for width in run.head_spec.hidden]  # widths of each member
    return {**settings, "cache": run.cache["content_sha256"][:12], "split": run.split["source"]}


def _differing(entries: Sequence[Entry]) -> list[str]:
    runs = [entry.settings for entry in entries if entry.run is not None]
    names = dict.fromkeys(name for settings in runs for name in settings)
    return [name for name in names if any(settings.get(name) != runs[0].get(name) for settings in runs)]


def _predictions(run: Run, part: str) -> PredictedClasses:
    called, names = run.predicted(part), run.class_names
    found = zip(called[0], called[1], called[2].argmax(axis=1), strict=True)
    return {path: (names[label], names[code]) for path, label, code in found}


def _groups(run: Run) -> dict[str, str]:
    """Return the group of each path, if the run's cache is unchanged and has groups."""
    try:
        cache = open_same_cache(run)
    except XfeatError:
        return {}
    return {path: group for path, group in zip(cache.columns.path, cache.columns.group, strict=True) if group}

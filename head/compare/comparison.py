"""Runs side by side: what differs between them, what they reach, and whether that is more than chance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import RunError, XfeatError
from xfeat.head.compare.answers import Answers
from xfeat.head.compare.significance import Difference, paired_difference
from xfeat.head.runs.reader import PROBABILITY_PREFIX, RUN_FILE, Run, open_run

logger = logging.getLogger(__name__)

SORTS = ("accuracy", "balanced_accuracy", "auc", "loss", "name")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the comparison.

    Attributes:
        name: of the run, or of the baseline.
        settings: everything that makes it what it is, flat: ``lr``, ``hidden``, ``backbone``, …
        metrics: part to figures; see :func:`xfeat.head.evaluation.metrics.classification_metrics`.
        answers: on the part that is compared.
        run: ``None`` for a baseline.
        problem: why it has no answers and cannot be compared, or empty.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    answers: Answers
    run: Run | None = None
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """Entries, sorted, the best first.

    Attributes:
        part: ``test``, or ``valid`` if an entry has no test images.
        sort: the figure that they are sorted by.
        entries: the lines; those without answers come last.
        differing: settings that are not the same in all runs.
        differences: for each entry, its accuracy against the first entry's; ``None`` for the first itself, if it has
            answers.
    """

    part: str
    sort: str
    entries: list[Entry]
    differing: list[str]
    differences: list[Difference | None]


def find_runs(runs: Path) -> list[Run]:
    """Read all runs in a folder; damaged ones are named in a warning and left out.

    Raises:
        RunError: if there is none.
    """
    found = []
    for file in sorted(runs.glob(f"*/{RUN_FILE}")):
        if file.parent.is_symlink() or file.parent.name.startswith("."):
            continue  # ``latest``, or a run in the making
        try:
            found.append(open_run(file.parent))
        except RunError as error:
            logger.warning("left out: %s", error)
    if not found:
        raise RunError("no run there", path=runs, expected="folders of trained heads", fix="xhead train")
    return found


def as_entries(runs: Sequence[Run]) -> list[Entry]:
    """Turn runs into entries on a part that they all have.

    A run whose predictions are missing or damaged is named in a warning, and has no answers.
    """
    part = common_part(runs)
    return [_entry(run, part) for run in runs]


def _entry(run: Run, part: str) -> Entry:
    answers, problem = Answers(truth={}, decided={}), ""
    try:
        answers = _answers(run, part)
    except RunError as error:
        logger.warning("not compared: %s", error)
        problem = error.what
    return Entry(name=run.name, settings=_settings(run), metrics=run.metrics, answers=answers, run=run, problem=problem)


def common_part(runs: Sequence[Run]) -> str:
    """Return ``test`` if every run has test images, else ``valid``."""
    return "test" if all("test" in run.metrics for run in runs) else "valid"


def compare(entries: Sequence[Entry], part: str, *, sort: str = "accuracy") -> Comparison:
    """Sort entries and hold each against the first.

    Args:
        entries: at least one.
        part: that is compared.
        sort: one of :data:`SORTS`; the lowest loss and the highest of the others come first.
    """
    ordered = sorted(entries, key=lambda entry: (_sort_value(entry, part, sort), entry.name))
    groups: dict[str, str] = {}
    for digest, run in {entry.run.cache["content_sha256"]: entry.run for entry in ordered if entry.run}.items():
        groups |= _groups(run, digest)
    differences = [_difference(entry, ordered[0], groups) for entry in ordered]
    return Comparison(part, sort, ordered, _differing(ordered), differences)


def _difference(entry: Entry, first: Entry, groups: dict[str, str]) -> Difference | None:
    if entry.problem:
        return Difference(problem=entry.problem)
    return None if entry is first else paired_difference(entry.answers, first.answers, groups)


def _sort_value(entry: Entry, part: str, sort: str) -> tuple[bool, bool, Any]:
    no_answers = bool(entry.problem)  # nothing can be held against it
    if sort == "name":
        return no_answers, False, entry.name
    value = entry.metrics[part].get(sort)
    # what has no such figure comes last
    return no_answers, value is None, 0.0 if value is None else value if sort == "loss" else -value


def _settings(run: Run) -> dict[str, Any]:
    features = run.feature_spec.to_dict()
    preprocess = features.pop("preprocess")
    settings = {**run.head_spec.to_dict(), **run.train_spec.to_dict(), **features, **preprocess}
    if ensemble := run.facts.get("ensemble"):
        members = settings["ensemble"] = ensemble["members"]
        settings["hidden"] = [width // members for width in run.head_spec.hidden]  # as it was asked for: each head's
    return {**settings, "cache": run.cache["content_sha256"][:12], "split": run.facts["split"]["source"]}


def _differing(entries: Sequence[Entry]) -> list[str]:
    runs = [entry.settings for entry in entries if entry.run is not None]
    names = dict.fromkeys(name for settings in runs for name in settings)
    return [name for name in names if any(settings.get(name) != runs[0].get(name) for settings in runs)]


def _answers(run: Run, part: str) -> Answers:
    columns = [PROBABILITY_PREFIX + name for name in run.class_names]
    truth, decided = {}, {}
    for row in run.predictions():
        if row["split"] == part:
            truth[row["path"]] = row["label"]
            decided[row["path"]] = run.class_names[int(np.argmax([float(row[name]) for name in columns]))]
    return Answers(truth=truth, decided=decided)


def _groups(run: Run, digest: str) -> dict[str, str]:
    """Return the patient of each path, as far as the run's cache is still there and knows any."""
    try:
        cache = FeatureCache.open(run.cache["path"])
    except XfeatError:
        return {}
    if cache.content_sha256 != digest:
        return {}
    return {path: group for path, group in zip(cache.columns.path, cache.columns.group, strict=True) if group}

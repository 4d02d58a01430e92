"""Reads the result of a cross-validation, if it is as it was saved. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError, RunError
from xfeat.featurize.specs import require
from xfeat.featurize.text import listed
from xfeat.head.crossval.out_of_fold import FoldAccuracy
from xfeat.head.crossval.report import CROSSVAL_FILE, FORMAT, SCHEMA_VERSION
from xfeat.head.evaluation.operating_point import GIVEN, ChosenThreshold, OperatingPoint
from xfeat.head.reports.study_text import expected_elsewhere
from xfeat.head.runs.digests import damage_of
from xfeat.head.runs.results import read_result

_FIX = "cross-validate again with xhead crossval"


class _Required(TypedDict):
    accuracy: FoldAccuracy
    classes: list[str]
    feature_fingerprint: str
    cache: dict[str, Any]
    head_spec: dict[str, Any]
    train_spec: dict[str, Any]
    metrics: dict[str, Any]


class StoredCrossval(_Required, total=False):
    """What is used of crossval.json; those of version 0.1 have no digests and no operating point."""

    name: str
    file_sha256: dict[str, str]
    content_sha256: str
    temperature: float
    operating_point: dict[str, Any] | None
    elsewhere: dict[str, Any] | None


def open_crossval(folder: Path) -> StoredCrossval:
    """Read crossval.json, and compare it and the files beside it with their digests.

    Raises:
        RunError: if it is missing, damaged or of another version, or a file has changed.
    """
    file = folder / CROSSVAL_FILE
    facts = read_result(file, FORMAT, SCHEMA_VERSION, StoredCrossval, fix=_FIX)
    with damage_of(file, fix=_FIX):  # what will be written or used is whole: found now, and not after a training
        expected_elsewhere(facts.get("elsewhere"))
        _point(facts)
        facts["cache"]["content_sha256"]
    return cast(StoredCrossval, {**facts, "name": folder.name})


def _point(facts: Mapping[str, Any]) -> OperatingPoint | None:
    stored = facts.get("operating_point")
    return stored and OperatingPoint.from_dict(stored)


def threshold_from(text: str, cache: FeatureCache, runs: Path, positive: str | None = None) -> ChosenThreshold:
    """Take the threshold of a cross-validation, or a number.

    Args:
        text: a number from 0 to 1, or the folder or crossval.json of a cross-validation, or its name in ``runs``.
        cache: that the head is trained on.
        runs: the folder of all runs.
        positive: the class of the threshold; needed for a number.

    Raises:
        SpecError: if the number is no probability, or has no class.
        RunError: if there is no such cross-validation, it is damaged, or it has no threshold.
        MismatchError: if it is of other features, of other classes, or for another class.
    """
    try:
        number = float(text)
    except ValueError:
        return _of_crossval(_crossval_folder(text, runs), cache, positive)
    require(0 <= number <= 1, "threshold out of range", expected="0 to 1", found=text)
    require(positive is not None, "a threshold needs its class", expected="--positive CLASS", found="none")
    # As a model compares it: a probability of this very number is called positive.
    point = OperatingPoint(positive=str(positive), threshold=float(np.float32(number)), chosen_on=GIVEN)
    return ChosenThreshold(point=point)


def _crossval_folder(text: str, runs: Path) -> Path:
    for path in (Path(text), runs / text):
        folder = path.parent if path.name == CROSSVAL_FILE else path
        if (folder / CROSSVAL_FILE).is_file():
            return folder
    raise RunError(
        "no cross-validation found, and not a number",
        path=text,
        expected=f"a folder with {CROSSVAL_FILE}, or a threshold from 0 to 1",
        fix="xhead crossval --positive CLASS --target-sensitivity P",
    )


def _of_crossval(folder: Path, cache: FeatureCache, positive: str | None) -> ChosenThreshold:
    stored = open_crossval(folder)
    point, again = _point(stored), "xhead crossval --positive CLASS --target-sensitivity P"
    if point is None:
        raise RunError("this cross-validation has no threshold", path=folder / CROSSVAL_FILE, fix=again)
    for what, wanted, found in (
        ("features", cache.content_sha256, stored["cache"]["content_sha256"]),
        ("features", cache.spec.fingerprint, stored["feature_fingerprint"]),
        ("corrections", _corrections(cache.corrections), _corrections(stored["cache"].get("corrections", []))),
        ("classes", listed(cache.class_names), listed(stored["classes"])),
        ("class", positive or point.positive, point.positive),
    ):
        if wanted != found:
            raise MismatchError(
                f"the threshold was chosen for another {what}"
                if what == "class"
                else f"the threshold is of other {what}",
                path=folder / CROSSVAL_FILE,
                expected=wanted,
                found=found,
                fix=f"cross-validate on {cache.path}: {again}",
            )
    crossval = {name: stored.get(name) for name in ("name", "content_sha256", "head_spec", "train_spec", "elsewhere")}
    return ChosenThreshold(point=point, temperature=stored.get("temperature", 1.0), crossval=crossval)


def _corrections(rows: Iterable[Sequence[str]]) -> str:
    return listed(sorted(f"{path}: {action} {value}".strip() for path, action, value, _ in rows)) or "none"

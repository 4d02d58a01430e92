"""Reads the result of a cross-validation, if it is as it was saved. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError, RunError
from xfeat.featurize.specs import require
from xfeat.featurize.text import listed
from xfeat.featurize.typed_json import check_types
from xfeat.head.crossval.out_of_fold import FoldAccuracy
from xfeat.head.crossval.report import CROSSVAL_FILE, FORMAT, SCHEMA_VERSION
from xfeat.head.evaluation.operating_point import GIVEN, ChosenThreshold, OperatingPoint
from xfeat.head.reports.study_text import expected_elsewhere
from xfeat.head.runs.reader import PREDICTIONS_FILE, REPORT_FILE
from xfeat.head.runs.results import damaged, read_result

_FIX = "cross-validate again with xhead crossval"


class StoredCrossval(TypedDict):
    """What is read back of a cross-validation; those of version 0.1 have no digests and no operating point."""

    name: str
    accuracy: FoldAccuracy
    file_sha256: dict[str, str]
    classes: list[str]
    feature_fingerprint: str
    cache_sha256: str
    corrections: list[list[str]]
    content_sha256: str | None
    head_spec: dict[str, Any]
    train_spec: dict[str, Any]
    temperature: float
    operating_point: OperatingPoint | None
    elsewhere: dict[str, Any] | None
    metrics: dict[str, Any]


def open_crossval(folder: Path) -> StoredCrossval:
    """Read crossval.json, and compare it and the files beside it with their digests.

    Raises:
        RunError: if it is missing, damaged or of another version, or a file has changed.
    """
    file = folder / CROSSVAL_FILE
    facts = read_result(file, FORMAT, SCHEMA_VERSION, beside=(PREDICTIONS_FILE, REPORT_FILE), fix=_FIX)
    try:
        point = facts.get("operating_point")
        stored = StoredCrossval(
            name=folder.name,
            accuracy=facts["accuracy"],
            file_sha256=facts.get("file_sha256", {}),
            classes=facts["classes"],
            feature_fingerprint=facts["feature_fingerprint"],
            cache_sha256=facts["cache"]["content_sha256"],
            corrections=facts["cache"].get("corrections", []),
            content_sha256=facts.get("content_sha256"),
            head_spec=facts["head_spec"],
            train_spec=facts["train_spec"],
            temperature=facts.get("temperature", 1.0),
            operating_point=point and OperatingPoint.from_dict(point),
            elsewhere=facts.get("elsewhere"),
            metrics=facts["metrics"],
        )
        check_types(stored, StoredCrossval)
        expected_elsewhere(
            stored["elsewhere"]
        )  # it will be written: now, and not after a training, it is found to be whole
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, error, fix=_FIX) from error
    return stored


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
    point, again = stored["operating_point"], "xhead crossval --positive CLASS --target-sensitivity P"
    if point is None:
        raise RunError("this cross-validation has no threshold", path=folder / CROSSVAL_FILE, fix=again)
    for what, wanted, found in (
        ("features", cache.content_sha256, stored["cache_sha256"]),
        ("features", cache.spec.fingerprint, stored["feature_fingerprint"]),
        ("corrections", _corrections(cache.corrections), _corrections(stored["corrections"])),
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
    crossval = {name: stored[name] for name in ("name", "content_sha256", "head_spec", "train_spec", "elsewhere")}
    return ChosenThreshold(point=point, temperature=stored["temperature"], crossval=crossval)


def _corrections(rows: Iterable[Sequence[str]]) -> str:
    return listed(sorted(f"{path}: {action} {value}".strip() for path, action, value, _ in rows)) or "none"

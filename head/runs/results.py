"""Reads a cross-validation or an external test: its JSON file, and predictions.csv with one prediction per image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import check_types, parse_json, require_unchanged
from xfeat.head.evaluation.predictions import logarithms, softmax
from xfeat.head.runs.digests import damage_of, read_unchanged
from xfeat.head.runs.reader import PREDICTIONS_FILE, PROBABILITY_PREFIX, REPORT_FILE

_FIX = "make this result again"


def read_result(file: Path, format_name: str, version: int, kind: Any, *, fix: str) -> dict[str, Any]:
    """Return the content of a result's JSON file, of which it and the files beside it have their digests.

    Args:
        file: the JSON file.
        format_name: that it must have.
        version: of the schema.
        kind: typed dictionary of what is used of it; its optional values may be missing.
        fix: for the message.

    Raises:
        RunError: if it is missing, damaged or of another version, or a file has changed.
    """
    with damage_of(file, fix=fix):
        facts: dict[str, Any] = parse_json(read_regular(file))
        if (found := (facts["format"], facts["schema_version"])) != (format_name, version):
            raise ValueError(f"{found[0]} version {found[1]}, and not {format_name} version {version}")
        require_unchanged(facts)
        require_typed(facts, kind)
        digests = dict(facts.get("file_sha256", {}))
    for name in digests.keys() & {PREDICTIONS_FILE, REPORT_FILE}:
        read_unchanged(file.parent / name, digests[name], subject="this file of the result is", fix=fix)
    return facts


def require_typed(facts: dict[str, Any], kind: Any, hint: str = "") -> None:
    """Require that a result has the values of a typed dictionary; ``hint`` says why one may be missing.

    Raises:
        ValueError: if one is missing or of another type.
    """
    if missing := kind.__required_keys__ - facts.keys():
        raise ValueError(f"no {', '.join(sorted(missing))}{hint}")
    check_types(facts, kind)


class PooledPredictions(NamedTuple):
    """Predicted images.

    Attributes:
        paths: n paths.
        labels: int64 (n,), true classes.
        groups: n patients or series, empty where unknown.
        probabilities: float32 (n, C); of several seeds by their mean log-probability.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    groups: list[str]
    probabilities: NDArray[np.float32]

    @property
    def patients(self) -> NDArray[np.int64]:
        """The group of each image, int64 (n,), numbered from 0 without gaps."""
        keys = [("", group) if group else (path, "") for path, group in zip(self.paths, self.groups, strict=True)]
        numbers: dict[tuple[str, str], int] = {}
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def pooled_predictions(folder: Path, classes: Sequence[str]) -> PooledPredictions:
    """Read predictions.csv of a result in ``folder``, whose lines have a path, a group and a label.

    Raises:
        RunError: if it is missing or damaged.
    """
    file = folder / PREDICTIONS_FILE
    text = read_unchanged(file, None, subject="the predictions are", fix=_FIX).decode("utf-8", "surrogateescape")
    columns, codes = [PROBABILITY_PREFIX + name for name in classes], {name: code for code, name in enumerate(classes)}
    found: dict[str, list[list[float]]] = {}
    labels, groups = dict[str, int](), dict[str, str]()
    with damage_of(file, "damaged predictions", fix=_FIX):
        for row in csv.DictReader(io.StringIO(text, newline="")):
            path = row["path"]
            found.setdefault(path, []).append([float(row[name]) for name in columns])
            labels[path], groups[path] = codes[row["label"]], row["group"]
    return PooledPredictions(
        [*found],
        np.array([*labels.values()], np.int64),
        [*groups.values()],
        np.array([_mean(np.array(seeds, np.float32)) for seeds in found.values()]),
    )


def _mean(seeds: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(seeds[0] if len(seeds) == 1 else softmax(logarithms(seeds).mean(axis=0)[None])[0])

"""Reads predictions.csv of a cross-validation or an external test: one prediction per image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import RunError
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.runs.digests import read_unchanged
from xfeat.head.runs.reader import PREDICTIONS_FILE, PROBABILITY_PREFIX

_SMALLEST = 1e-45  # the smallest positive float32: a probability of 0 was rounded


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
    text = read_unchanged(folder / PREDICTIONS_FILE, None, subject="the predictions are", fix="make this result again")
    columns, codes = [PROBABILITY_PREFIX + name for name in classes], {name: code for code, name in enumerate(classes)}
    found: dict[str, list[list[float]]] = {}
    labels, groups = dict[str, int](), dict[str, str]()
    try:
        for row in csv.DictReader(io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")):
            path = row["path"]
            found.setdefault(path, []).append([float(row[name]) for name in columns])
            labels[path], groups[path] = codes[row["label"]], row["group"]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        file = folder / PREDICTIONS_FILE
        raise RunError("damaged predictions", path=file, found=str(error), fix="make this result again") from error
    return PooledPredictions(
        [*found],
        np.array([*labels.values()], np.int64),
        [*groups.values()],
        np.array([_mean(p) for p in found.values()]),
    )


def _mean(seeds: list[list[float]]) -> NDArray[np.float32]:
    values = np.array(seeds, np.float32)
    if len(values) == 1:
        return np.asarray(values[0])
    return np.asarray(softmax(np.log(np.maximum(values.astype(np.float64), _SMALLEST)).mean(axis=0)[None])[0])

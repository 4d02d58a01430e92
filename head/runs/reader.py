"""Reading the run folder ``runs/<run>/``, which docs/formats.md describes. No pickle is ever read."""

from __future__ import annotations

import csv
import io
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import RunError
from xfeat.featurize.specs import FeatureSpec, check_decision, require
from xfeat.featurize.text import listed
from xfeat.featurize.typed_json import check_types, parse_json, require_unchanged, with_digest
from xfeat.head.evaluation.assess import Calibration
from xfeat.head.evaluation.metrics import Metrics
from xfeat.head.evaluation.operating_point import OperatingPoint
from xfeat.head.evaluation.study import Study
from xfeat.head.runs.digests import damage_of, read_unchanged
from xfeat.head.runs.origin import CacheOrigin, opened_origin, stored_origin
from xfeat.head.specs import DEFAULT_RUNS, HeadSpec, TrainSpec
from xfeat.head.training.history import EpochRecord

if TYPE_CHECKING:
    from torch import nn

FORMAT = "xfeat.run"
SCHEMA_VERSION = 1
LATEST = "latest"

RUN_FILE, HEAD_FILE, REPORT_FILE = "run.json", "head.safetensors", "report.html"
HISTORY_FILE, PREDICTIONS_FILE = "history.csv", "predictions.csv"
PROBABILITY_PREFIX = "p_"
_SUBJECTS = {
    HEAD_FILE: "the head's weights are",
    HISTORY_FILE: "the history is",
    PREDICTIONS_FILE: "the predictions are",
}


def prediction_columns(class_names: Sequence[str]) -> list[str]:
    """Return the columns of predictions.csv."""
    return ["path", "split", "label", "prediction", *(PROBABILITY_PREFIX + name for name in class_names)]


class SplitOrigin(TypedDict):
    """Where a split comes from, and the number of images of each part."""

    source: str
    images: dict[str, int]


class Members(TypedDict):
    """The number of heads averaged into an ensemble, and the epoch chosen by each."""

    members: int
    best_epochs: list[int]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, as run.json and docs/formats.md describe it.

    Fields that a run may lack have a default here, and nowhere else.

    Attributes:
        folder: its path.
        feature_spec: settings of the features that the head needs.
        head_spec: the layers of the head.
        train_spec: the optimisation.
        class_names: the classes, in the order of the outputs.
        dim: number of features.
        metrics: of each split.
        temperature: logits are divided by it before the softmax.
        operating_point: the threshold of the positive class, or ``None``: the most probable class is predicted.
        crossval: name, digest and specs of the cross-validation that chose the threshold, or ``None``.
        statistics: of the validation and test images, see :func:`xfeat.head.evaluation.study.study`; empty in runs of
            earlier versions.
        subgroups: see :func:`xfeat.head.evaluation.subgroups.subgroup_figures`; empty in runs of earlier versions.
        head_sha256: digest of the head's weights file.
        file_sha256: digests of history.csv and predictions.csv; runs of earlier versions have none.
    """

    folder: Path
    name: str
    created: str = ""
    feature_spec: FeatureSpec
    head_spec: HeadSpec
    train_spec: TrainSpec
    class_names: tuple[str, ...]
    dim: int
    cache: CacheOrigin
    split: SplitOrigin
    epochs: int
    best_epoch: int
    ensemble: Members | None = None
    reading: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    metrics: dict[str, Metrics]
    temperature: float = 1.0
    calibration: Calibration
    operating_point: OperatingPoint | None = None
    crossval: dict[str, Any] | None = None
    statistics: dict[str, Study] = field(default_factory=dict)
    subgroups: dict[str, Any] = field(default_factory=dict)
    head_sha256: str
    file_sha256: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    metrics_averaged_views: dict[str, Metrics] | None = None

    def __post_init__(self) -> None:
        point = self.operating_point
        decided = (point.positive, point.threshold) if point else (None, None)
        check_decision(self.class_names, self.temperature, *decided)
        require(self.dim >= 1, "too few features", expected="1 or more", found=self.dim)
        require("valid" in self.metrics, "no metrics of the validation images", expected="valid", found=[*self.metrics])
        for part, metrics in self.metrics.items():
            is_possible = metrics["images"] >= 1 and 0 <= metrics["accuracy"] <= 1
            require(is_possible, f"impossible metrics of {part}", expected="images, and an accuracy", found=metrics)
        for part, figures in self.statistics.items():
            found = [*figures["classes"]]
            require(
                found == [*self.class_names],
                f"figures of {part} for other classes",
                expected=listed(self.class_names),
                found=found,
            )
        members = self.ensemble and self.ensemble["members"]
        require(members is None or members >= 1, "too few ensemble members", expected="1 or more", found=members)

    @classmethod
    def from_dict(cls, folder: Path, stored: dict[str, Any]) -> Self:
        """Build it from :meth:`to_dict`'s form; unknown keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: if a key is missing or damaged, or anything has changed.
        """
        require_unchanged(stored)
        values = {known.name: stored[known.name] for known in fields(cls) if known.name in stored}
        for name, kind in (("feature_spec", FeatureSpec), ("head_spec", HeadSpec), ("train_spec", TrainSpec)):
            values[name] = kind.from_dict(stored[name])
        if point := stored.get("operating_point"):
            values["operating_point"] = OperatingPoint.from_dict(point)
        values |= {"class_names": tuple(stored["class_names"]), "cache": opened_origin(stored["cache"], folder)}
        check_types(values, cls)
        return cls(**{**values, "folder": folder})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of run.json."""
        stored = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **vars(self)}
        del stored["folder"]
        stored["cache"] = stored_origin(self.cache, self.folder)
        for name in ("feature_spec", "head_spec", "train_spec", "operating_point"):
            stored[name] = stored[name] and stored[name].to_dict()
        if self.metrics_averaged_views is None:
            del stored["metrics_averaged_views"]
        stored["feature_fingerprint"] = self.feature_spec.fingerprint
        return with_digest(stored)

    @property
    def shown_part(self) -> str:
        """The split whose metrics are shown: test, or valid without test images."""
        return "test" if "test" in self.metrics else "valid"

    def load_head(self) -> nn.Sequential:
        """Return the trained head in evaluation mode.

        Raises:
            RunError: if the weights are missing, damaged, or have changed since the run was saved.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        from xfeat.head.training.network import build_head

        file = self.folder / HEAD_FILE
        content = self.read_file(HEAD_FILE)
        damaged = partial(RunError, "the head's weights are damaged", path=file, fix="train the run again")
        widths = (self.dim, *self.head_spec.hidden, len(self.class_names))
        needed = 4 * sum(math.prod(pair) for pair in pairwise(widths))
        if needed > len(content):  # before memory is taken for them
            raise damaged(expected=f"more than {needed} bytes, for layers of {widths}", found=f"{len(content)} bytes")
        model = build_head(self.head_spec, dim=self.dim, classes=len(self.class_names))
        try:
            model.load_state_dict(load(content))
        except (SafetensorError, RuntimeError) as error:
            raise damaged(found=str(error)) from error
        if not all(values.isfinite().all() for values in model.state_dict().values()):
            raise damaged(expected="finite numbers", found="NaN or infinity")
        return model.eval()

    def read_file(self, name: str) -> bytes:
        """Return the content of a file of the run.

        Raises:
            RunError: if it is missing, or has changed since the run was saved.
        """
        expected = {**self.file_sha256, HEAD_FILE: self.head_sha256}.get(name)
        return read_unchanged(self.folder / name, expected, subject=_SUBJECTS[name], fix="train the run again")

    def predictions(self) -> list[dict[str, str]]:
        """Return the rows of predictions.csv: path, split, label, predicted class and probabilities.

        Raises:
            RunError: if the file is missing or damaged.
        """
        file = self.folder / PREDICTIONS_FILE
        columns = prediction_columns(self.class_names)
        text = self.read_file(PREDICTIONS_FILE).decode("utf-8", "surrogateescape")
        with damage_of(
            file, "damaged predictions, or those of another run", fix="train the run again", expected=", ".join(columns)
        ):
            table = csv.DictReader(io.StringIO(text, newline=""))
            rows = list(table)
            if missing := [name for name in columns if name not in (table.fieldnames or ())]:
                raise ValueError(f"no column {', '.join(missing)}")
            for row in rows:
                if None in row.values():
                    raise ValueError(f"a short line: {row['path']}")
                if row["label"] not in self.class_names:
                    raise ValueError(f"another class: {row['label']}")
                for name in columns[4:]:
                    float(row[name])
        return rows

    def predicted(self, part: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
        """Return paths, true classes (n,) and probabilities (n, C) of the images of a split.

        Raises:
            RunError: if the predictions are missing or damaged.
        """
        rows = [row for row in self.predictions() if row["split"] == part]
        labels = np.array([self.class_names.index(row["label"]) for row in rows], np.int64)
        values = [[float(row[PROBABILITY_PREFIX + name]) for name in self.class_names] for row in rows]
        return [row["path"] for row in rows], labels, np.array(values, np.float32).reshape(len(rows), -1)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Raises:
        RunError: if there is no run, or it is damaged or of another version.
        MismatchError: if its features are computed in a way that this version does not support.
    """
    folder = Path(folder)
    file = folder / RUN_FILE
    if not file.is_file():
        raise _no_run(folder)
    with damage_of(file, fix="train it again with xhead train"):
        facts = parse_json(file.read_bytes())
        if facts.get("format") != FORMAT or facts.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                "a run of another format or version",
                path=file,
                expected=f"{FORMAT} version {SCHEMA_VERSION}",
                found=f"{facts.get('format')} version {facts.get('schema_version')}",
                fix="train it again with xhead train",
            )
        return Run.from_dict(folder, facts)


def _no_run(folder: Path) -> RunError:
    """Describe what was found instead, and suggest runs nearby."""
    within = runs_in(folder)
    near = within or runs_in(folder.parent) or runs_in(folder.parent / DEFAULT_RUNS)
    what = "not a run folder" if folder.exists() else "run not found: no such folder"
    what = "not a run, but a folder of runs" if within else what
    fix = f"choose one of {listed(near)}" if near else "xhead train"
    return RunError(what, path=folder, expected=f"a folder with {RUN_FILE}", fix=fix)


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders in a folder, by name; that of a running or killed training has a hidden name."""
    found = sorted(file.parent for file in folder.glob(f"*/{RUN_FILE}") if not file.parent.name.startswith("."))
    # Where a project was copied without links, ``latest`` is a copy of one of the others.
    return [run for run in found if run.name != LATEST or run.is_symlink()] or found


def no_runs_error(runs: Path) -> RunError:
    """Return the error for a folder without runs."""
    return RunError(
        "no training run found in this folder", path=runs, expected="the folder of a trained head", fix="xhead train"
    )


def latest_run(runs: Path) -> Path:
    """Return the newest run in ``runs``: the one ``latest`` points to, else the one that was written last.

    Raises:
        RunError: if there is no run.
    """
    # Without symbolic links, a copied project has a folder of that name, which newer runs do not replace.
    if (runs / LATEST).is_symlink() and (runs / LATEST / RUN_FILE).is_file():
        return (runs / LATEST).resolve()
    folders = runs_in(runs)
    if not folders:
        raise no_runs_error(runs)
    return max(folders, key=_time_of)


def _time_of(folder: Path) -> tuple[str, int]:
    """Return when a run was written, as it says itself, since a copy may have new times; then as the file says."""
    file = folder / RUN_FILE
    try:
        created = str(parse_json(file.read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError):
        created = ""
    return created, file.stat().st_mtime_ns


def read_history(run: Run) -> list[EpochRecord]:
    """Read history.csv.

    Raises:
        RunError: if it is missing or damaged.
    """
    content = run.read_file(HISTORY_FILE)
    with damage_of(run.folder / HISTORY_FILE, "damaged", fix="train the run again"):
        return [
            EpochRecord(int(row.pop("epoch")), **{name: float(value) for name, value in row.items()})
            for row in csv.DictReader(io.StringIO(content.decode(), newline=""))
        ]


def new_run_name() -> str:
    """Return a name for a run: the time, and two random digits in case two runs start in the same second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(1)}"

"""Reading the run folder ``runs/<run>/``, which docs/formats.md describes. No pickle is ever read."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.featurize.errors import MismatchError, RunError, SpecError
from xfeat.featurize.specs import FeatureSpec
from xfeat.head.evaluation.operating_point import OperatingPoint
from xfeat.head.specs import DEFAULT_RUNS, HeadSpec, TrainSpec
from xfeat.head.training.history import EpochRecord

if TYPE_CHECKING:
    from torch import nn

FORMAT = "xfeat.run"
SCHEMA_VERSION = 1
LATEST = "latest"

RUN_FILE, HEAD_FILE, HISTORY_FILE, PREDICTIONS_FILE, REPORT_FILE = (
    "run.json",
    "head.safetensors",
    "history.csv",
    "predictions.csv",
    "report.html",
)
PROBABILITY_PREFIX = "p_"
_MAX_SUGGESTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a run folder.

    Attributes:
        folder: its path.
        feature_spec: settings of the features that the head needs.
        head_spec: the layers of the head.
        train_spec: the optimisation.
        class_names: the classes, in the order of the outputs.
        dim: number of features.
        cache: ``path``, ``content_sha256``, ``data_root`` and ``weights_path`` of the cache it was trained on.
        head_sha256: digest of the head's weights file.
        metrics: of each split, from :func:`xfeat.head.evaluation.metrics.classification_metrics`.
        facts: everything in run.json.
    """

    folder: Path
    feature_spec: FeatureSpec
    head_spec: HeadSpec
    train_spec: TrainSpec
    class_names: tuple[str, ...]
    dim: int
    cache: dict[str, str]
    head_sha256: str
    metrics: dict[str, Any]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.facts["name"])

    @property
    def temperature(self) -> float:
        """Logits are divided by it before the softmax."""
        return float(self.facts.get("temperature", 1.0))

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The threshold of the positive class, or ``None``: the most probable class is predicted."""
        stored = self.facts.get("operating_point")
        return None if stored is None else OperatingPoint.from_dict(stored)

    def load_head(self) -> nn.Sequential:
        """Return the trained head in evaluation mode.

        Raises:
            RunError: if the weights are missing, damaged, or have changed since the run was saved.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from xfeat.head.training.network import build_head

        file = self.folder / HEAD_FILE
        if not file.is_file():
            raise RunError("the head's weights are missing", path=file, fix="train the run again")
        if hashlib.sha256(file.read_bytes()).hexdigest() != self.head_sha256:
            raise RunError(
                "the head's weights have changed since the run was saved",
                path=file,
                expected=f"SHA-256 {self.head_sha256[:16]}…",
                fix="train the run again, or restore a copy",
            )
        model = build_head(self.head_spec, dim=self.dim, classes=len(self.class_names))
        try:
            model.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError) as error:
            raise RunError("the head's weights are damaged", path=file, found=str(error)) from error
        return model.eval()

    def predictions(self) -> list[dict[str, str]]:
        """Return the rows of predictions.csv: path, split, label, predicted class and probabilities.

        Raises:
            RunError: if the file is missing or damaged.
        """
        file = self.folder / PREDICTIONS_FILE
        columns = ["path", "split", "label", "prediction", *(PROBABILITY_PREFIX + name for name in self.class_names)]
        try:
            with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
                rows = list(csv.DictReader(stream))
            for row in rows:
                for name in columns[4:]:
                    float(row[name])
                if row["prediction"] is None:
                    raise ValueError(f"a short line: {row['path']}")
        except OSError as error:
            raise RunError("the predictions are missing", path=file, fix="train the run again") from error
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise RunError(
                "damaged predictions, or those of another run",
                path=file,
                expected=", ".join(columns),
                found=f"no column {error}" if isinstance(error, KeyError) else str(error),
                fix="train the run again",
            ) from error
        return rows


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Raises:
        RunError: if there is no run, or it is damaged or of another version.
    """
    folder = Path(folder)
    file = folder / RUN_FILE
    if not file.is_file():
        raise _no_run(folder)
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts.get("format") != FORMAT or facts.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                "a run of another format or version",
                path=file,
                expected=f"{FORMAT} version {SCHEMA_VERSION}",
                found=f"{facts.get('format')} version {facts.get('schema_version')}",
                fix="train it again with xhead train",
            )
        run = Run(
            folder=folder,
            feature_spec=FeatureSpec.from_dict(facts["feature_spec"]),
            head_spec=HeadSpec.from_dict(facts["head_spec"]),
            train_spec=TrainSpec.from_dict(facts["train_spec"]),
            class_names=tuple(facts["class_names"]),
            dim=int(facts["dim"]),
            cache=facts["cache"],
            head_sha256=facts["head_sha256"],
            metrics=facts["metrics"],
            facts=facts,
        )
        _ = run.temperature, run.operating_point  # raises if they are damaged
        return run
    except MismatchError as error:
        fix = f"{error.fix}, then xhead train"
        raise MismatchError(error.what, path=file, expected=error.expected, found=error.found, fix=fix) from error
    except (ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            "damaged run.json", path=file, found=str(error), fix="train it again with xhead train"
        ) from error


def _no_run(folder: Path) -> RunError:
    """Describe what was found instead, and suggest runs nearby."""
    within = _runs_in(folder)
    near = within or _runs_in(folder.parent) or _runs_in(folder.parent / DEFAULT_RUNS)
    if within:
        what = "not a run, but a folder of runs"
    else:
        what = "not a run folder" if folder.exists() else "run not found: no such folder"
    return RunError(
        what, path=folder, expected=f"a folder with {RUN_FILE}", fix=_one_of(near) if near else "xhead train"
    )


def _runs_in(folder: Path) -> list[Path]:
    # The folder of a running or killed training has a hidden name.
    return sorted(file.parent for file in folder.glob(f"*/{RUN_FILE}") if not file.parent.name.startswith("."))


def _one_of(folders: list[Path]) -> str:
    more = f" and {len(folders) - _MAX_SUGGESTIONS} more" if len(folders) > _MAX_SUGGESTIONS else ""
    return f"choose one of {', '.join(map(str, folders[:_MAX_SUGGESTIONS]))}{more}"


def latest_run(runs: Path) -> Path:
    """Return the newest run in ``runs``: the one ``latest`` points to, else the one with the newest run.json.

    Raises:
        RunError: if there is no run.
    """
    if (runs / LATEST / RUN_FILE).is_file():
        return (runs / LATEST).resolve()
    folders = _runs_in(runs)
    if not folders:
        raise RunError(
            "no training run found in this folder",
            path=runs,
            expected="the folder of a trained head",
            fix="xhead train",
        )
    return max(folders, key=lambda folder: (folder / RUN_FILE).stat().st_mtime_ns)


def read_history(run: Run) -> list[EpochRecord]:
    """Read history.csv.

    Raises:
        RunError: if it is missing or damaged.
    """
    file = run.folder / HISTORY_FILE
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return [
                EpochRecord(int(row.pop("epoch")), **{name: float(value) for name, value in row.items()})
                for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError("missing or damaged", path=file, found=str(error), fix="train the run again") from error


def new_run_name() -> str:
    """Return a name for a run: the time, and two random digits in case two runs start in the same second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(1)}"

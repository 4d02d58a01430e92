"""From a cache to a run folder: split, fit, predict, measure, report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.cache import FeatureCache, library_versions
from featurize.dataset import SPLITS
from head.fit import EpochRecord, FittedHead, Progress, as_rows, fit_head
from head.metrics import classification_metrics
from head.report import render_report
from head.run import (
    HISTORY_FILE,
    PREDICTIONS_FILE,
    PROBABILITY_PREFIX,
    REPORT_FILE,
    Run,
    RunWriter,
    new_run_name,
    open_run,
)
from head.specs import HeadSpec, TrainSpec
from head.splits import Split, split_rows


@dataclass(frozen=True)
class Predictions:
    """What the head says of the rows that take part.

    Attributes:
        rows: int64 (n,), row numbers in the cache, ascending.
        split: n names of parts.
        labels: int64 (n,).
        probabilities: float32 (n, C).
    """

    rows: NDArray[np.int64]
    split: list[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def part(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return labels and probabilities of one part."""
        mask = np.array([split == name for split in self.split], dtype=bool)
        return self.labels[mask], self.probabilities[mask]


def train_run(
    cache: FeatureCache,
    head_spec: HeadSpec,
    train_spec: TrainSpec,
    *,
    runs: Path,
    name: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a head on a cache and write its run folder, whole or not at all.

    Args:
        cache: the features.
        head_spec: the layers.
        train_spec: the optimisation.
        runs: the folder of all runs.
        name: of this run; by default the time.
        progress: called after each epoch.

    Raises:
        DataError: if the cache's labels or splits do not allow training.
        RunError: if there is a run of that name.
        OutputError: if the folder cannot be written.
    """
    with RunWriter(runs, name or new_run_name()) as writer:
        split = split_rows(cache, seed=train_spec.seed)
        labels = np.asarray(cache.columns.label)
        parts = {part: as_rows(cache.features[rows], labels[rows]) for part, rows in split.rows.items()}
        fitted = fit_head(
            head_spec,
            train_spec,
            parts["train"],
            parts["valid"],
            classes=len(cache.class_names),
            progress=progress,
        )
        predictions = _predict(fitted, cache, split)
        metrics = {
            part: classification_metrics(*predictions.part(part), cache.class_names)
            for part in SPLITS
            if len(split.rows[part])
        }
        facts = {
            "name": writer.target.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "feature_spec": cache.spec.to_dict(),
            "feature_fingerprint": cache.spec.fingerprint,
            "head_spec": head_spec.to_dict(),
            "train_spec": train_spec.to_dict(),
            "class_names": list(cache.class_names),
            "dim": int(cache.features.shape[1]),
            "cache": {
                "path": str(cache.path.resolve()),
                "content_sha256": cache.content_sha256,
                "data_root": cache.data_root,
                "weights_path": cache.weights_path,
            },
            "split": {"source": split.source, "images": {part: len(rows) for part, rows in split.rows.items()}},
            "epochs": train_spec.epochs,
            "best_epoch": fitted.best_epoch,
            "metrics": metrics,
            "head_sha256": writer.save_head(fitted.model),
            "versions": library_versions(),
        }
        writer.save_facts(facts)
        writer.save_table(HISTORY_FILE, EpochRecord._fields, fitted.history)
        _save_predictions(writer, cache, predictions)
        writer.save_text(REPORT_FILE, render_report(facts, fitted.history, predictions, cache))
    return open_run(writer.target)


def _predict(fitted: FittedHead, cache: FeatureCache, split: Split) -> Predictions:
    codes = split.codes
    rows = np.array(sorted(codes), dtype=np.int64)
    labels = np.asarray(cache.columns.label)[rows].astype(np.int64)
    logits = fitted.logits(as_rows(cache.features[rows], labels).features)
    return Predictions(rows, [SPLITS[codes[row]] for row in rows.tolist()], labels, logits.softmax(1).numpy())


def _save_predictions(writer: RunWriter, cache: FeatureCache, predictions: Predictions) -> None:
    names = cache.class_names
    table: list[list[Any]] = []
    for row, split, label, probabilities in zip(
        predictions.rows, predictions.split, predictions.labels, predictions.probabilities, strict=True
    ):
        decided = names[int(probabilities.argmax())]
        # repr of a float32 keeps every bit, so that an exported model can be held against it
        table.append([cache.columns.path[row], split, names[label], decided, *(str(p) for p in probabilities)])
    columns = ["path", "split", "label", "prediction", *(PROBABILITY_PREFIX + name for name in names)]
    writer.save_table(PREDICTIONS_FILE, columns, table)

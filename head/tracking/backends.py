"""What MLflow and TensorBoard are told of trainings. A tracker that fails is dropped; the training goes on.

Neither library is imported here: ``tracking_mlflow`` and ``tracking_tensorboard`` do that, when they are asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xfeat.head.training.history import EpochRecord

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.head.specs import HeadSpec, TrainSpec

logger = logging.getLogger(__name__)

Parameters = Mapping[str, Any]
Metrics = Mapping[str, float]

_FINAL = ("accuracy", "balanced_accuracy", "loss", "auc", "ece", "brier")
# Other characters are refused by MLflow; names of classes may hold them.
_ODD = re.compile(r"[^\w\-. /]")


class Tracker(Protocol):
    """One place that is told. Any of the methods may fail with any exception."""

    title: str

    def begin(self, name: str, parameters: Parameters, key: str) -> None:
        """Start a record. With a ``key``, go on with the record that has the same one, if there is any."""

    def record(self, step: int, metrics: Metrics) -> None:
        """Add what was measured in a step, such as an epoch."""

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Add a finished record below this one, unless it has one of that name."""

    def end(self, metrics: Metrics, files: Sequence[Path]) -> None:
        """Close the record with its final figures, and with files and folders to keep."""

    def fail(self, *, killed: bool) -> None:
        """Close the record of something that did not come to its end."""


class Tracking:
    """Tells all trackers; one that fails is named in a warning and told no more.

    The record begins with :meth:`begin` or the first step, so that what is refused before that leaves none.

    Args:
        trackers: what is told; none is fine.
        name: of the record.
        parameters: its settings.
        key: see :meth:`Tracker.begin`.
    """

    def __init__(self, trackers: Sequence[Tracker], name: str, parameters: Parameters, key: str = "") -> None:
        self._trackers = list(trackers)
        self._beginning: tuple[str, Parameters, str] | None = (name, parameters, key)

    def begin(self) -> None:
        """Start the record, unless that is done: from here on, what ends early is closed as failed or stopped."""
        if (beginning := self._beginning) is not None:
            self._beginning = None
            self._tell(lambda tracker: tracker.begin(*beginning))

    def record(self, step: int, metrics: Metrics) -> None:
        """Add what was measured in a step."""
        self._tell(lambda tracker: tracker.record(step, metrics))

    def epoch(self, record: EpochRecord) -> None:
        """Add an epoch: ``train/loss``, ``train/accuracy``, ``valid/loss`` and ``valid/accuracy``."""
        figures = {name.replace("_", "/"): value for name, value in record._asdict().items() if name != "epoch"}
        self.record(record.epoch, figures)

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Add a finished record below this one, unless it is there."""
        self._tell(lambda tracker: tracker.child(name, parameters, metrics))

    def end(self, metrics: Metrics, files: Sequence[Path] = ()) -> None:
        """Close the record with its final figures, and with files and folders to keep."""
        self._tell(lambda tracker: tracker.end(metrics, files))

    def fail(self, *, killed: bool) -> None:
        """Close the record, if there is one, as failed or stopped."""
        if self._beginning is None:
            self._tell(lambda tracker: tracker.fail(killed=killed))

    def _tell(self, message: Callable[[Tracker], None]) -> None:
        self.begin()
        for tracker in list(self._trackers):
            try:
                message(tracker)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the training
                self._trackers.remove(tracker)
                said = str(error).strip().split("\n")[0]
                logger.warning("%s failed and is told no more; what is trained is kept: %s", tracker.title, said)


def open_trackers(*, mlflow: str | None = None, tensorboard: Path | None = None) -> list[Tracker]:
    """Find out whether the places that shall be told can be reached.

    Args:
        mlflow: address of a tracking server or store, such as ``sqlite:///mlflow.db``.
        tensorboard: folder for event files.

    Raises:
        MissingExtraError: if the library is not installed.
        TrackingError: if the server or store cannot be used.
        OutputError: if the folder cannot be made.
    """
    trackers: list[Tracker] = []
    if mlflow is not None:
        from xfeat.head.tracking.mlflow_tracker import MlflowTracker

        trackers.append(MlflowTracker(mlflow))
    if tensorboard is not None:
        from xfeat.head.tracking.tensorboard_tracker import TensorboardTracker

        trackers.append(TensorboardTracker(tensorboard))
    return trackers


@contextmanager
def tracked(trackers: Sequence[Tracker], name: str, parameters: Parameters, *, key: str = "") -> Iterator[Tracking]:
    """Give what is told; an exception in the body closes the record as failed, Ctrl-C as stopped."""
    tracking = Tracking(trackers, name, parameters, key)
    try:
        yield tracking
    except BaseException as error:
        tracking.fail(killed=isinstance(error, KeyboardInterrupt))
        raise


def cache_parameters(cache: FeatureCache) -> dict[str, Any]:
    """Return what the features are, flat: ``backbone``, ``size``, ``pooling``, …, and which cache holds them."""
    features = cache.spec.to_dict()
    return {
        **features.pop("preprocess"),
        **features,
        "classes": ", ".join(cache.class_names),
        "cache": str(cache.path.resolve()),
        "cache_sha256": cache.content_sha256,
    }


def head_parameters(head: HeadSpec, train: TrainSpec) -> dict[str, Any]:
    """Return the settings of a head, flat, with widths as they are typed."""
    return {**head.to_dict(), "hidden": ",".join(map(str, head.hidden)) or "linear", **train.to_dict()}


def final_metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """Pick the final figures out of the content of run.json: ``test/accuracy``, ``test/sensitivity/covid``, …

    Those of the validation images are called ``valid/final_…``: after the temperature, not one epoch of a curve.
    """
    found: dict[str, float] = {"best_epoch": facts["best_epoch"], "temperature": facts["temperature"]}
    for part, start in (("valid", "valid/final_"), ("test", "test/")):
        if part in facts["metrics"]:
            found |= part_metrics(facts["metrics"][part], start)
    if (point := facts["operating_point"]) is not None:
        found["threshold"] = point["threshold"]
    return found


def part_metrics(metrics: Mapping[str, Any], start: str) -> dict[str, float]:
    """Pick the figures of one part out of what :func:`xfeat.head.evaluation.metrics.classification_metrics` gives."""
    found = {start + name: metrics[name] for name in _FINAL}
    for name, row in metrics["classes"].items():
        for figure in ("sensitivity", "specificity"):
            found[f"{start}{figure}/{_ODD.sub('_', name)}"] = row[figure]
    return {name: value for name, value in found.items() if value is not None}

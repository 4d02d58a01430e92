"""Recording trainings in MLflow and TensorBoard. A tracker that fails is dropped; the training continues.

Neither library is imported here: ``mlflow_tracker`` and ``tensorboard_tracker`` import them when they are used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xfeat.head.tracking.tracker import Metrics, Parameters, Tracker
from xfeat.head.training.history import EpochRecord

logger = logging.getLogger(__name__)


class Tracking:
    """Sends a record to all trackers; one that fails is dropped with a warning.

    The record is created by :meth:`begin` or by the first step, so that an error before training creates none.
    Arguments are those of :meth:`Tracker.begin`.
    """

    def __init__(self, trackers: Sequence[Tracker], name: str, parameters: Parameters, key: str = "") -> None:
        self._trackers = list(trackers)
        self._beginning: tuple[str, Parameters, str] | None = (name, parameters, key)

    def begin(self) -> None:
        """Create the record, if not done yet; from now on an early end closes it as failed or stopped."""
        if (beginning := self._beginning) is not None:
            self._beginning = None
            self._send(lambda tracker: tracker.begin(*beginning))

    def record(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step."""
        self._send(lambda tracker: tracker.record(step, metrics))

    def epoch(self, record: EpochRecord) -> None:
        """Add an epoch: ``train/loss``, ``train/accuracy``, ``valid/loss`` and ``valid/accuracy``."""
        figures = {name.replace("_", "/"): value for name, value in record._asdict().items() if name != "epoch"}
        self.record(record.epoch, figures)

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Add a finished child record, if it does not exist."""
        self._send(lambda tracker: tracker.child(name, parameters, metrics))

    def end(self, metrics: Metrics, files: Sequence[Path] = ()) -> None:
        """Close the record with its final metrics, and with files and folders to store."""
        self._send(lambda tracker: tracker.end(metrics, files))

    def fail(self, *, killed: bool) -> None:
        """Close the record, if there is one, as failed or stopped."""
        if self._beginning is None:
            self._send(lambda tracker: tracker.fail(killed=killed))

    def _send(self, message: Callable[[Tracker], None]) -> None:
        self.begin()
        for tracker in list(self._trackers):
            try:
                message(tracker)
            except Exception as error:  # noqa: BLE001 - no error of a tracker may stop the training
                self._trackers.remove(tracker)
                reason = str(error).strip().split("\n")[0]
                logger.warning(
                    "tracking in %s failed and stops here; the training continues: %s", tracker.title, reason
                )


def open_trackers(*, mlflow: str | None = None, tensorboard: Path | None = None) -> list[Tracker]:
    """Open the trackers and check that they can be reached.

    Args:
        mlflow: address of a tracking server or store, such as ``sqlite:///mlflow.db``.
        tensorboard: folder for event files.

    Raises:
        MissingExtraError: if the library is not installed.
        TrackingError: if the server or store cannot be used.
        OutputError: if the folder cannot be created.
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
    """Yield a :class:`Tracking`; an exception in the body closes its record as failed, Ctrl-C as stopped."""
    tracking = Tracking(trackers, name, parameters, key)
    try:
        yield tracking
    except BaseException as error:
        tracking.fail(killed=isinstance(error, KeyboardInterrupt))
        raise

"""What MLflow and TensorBoard are told of trainings. A tracker that fails is dropped; the training goes on.

Neither library is imported here: ``tracking_mlflow`` and ``tracking_tensorboard`` do that, when they are asked for.
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

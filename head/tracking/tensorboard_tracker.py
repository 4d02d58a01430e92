"""Trainings as TensorBoard event files, written with torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xfeat.featurize.errors import MissingExtraError
from xfeat.featurize.system.atomic import output_error
from xfeat.head.tracking.tracker import Metrics, Parameters

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Source: tensorboard/plugins/hparams/api.proto, STATUS_FAILURE.
_FAILURE = 2


class TensorboardTracker:
    """Writes one folder of event files per training.

    Args:
        folder: of all trainings, for ``tensorboard --logdir``.

    Raises:
        MissingExtraError: if TensorBoard is not installed.
        OutputError: if the folder cannot be created.
    """

    title = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError(
                "--tensorboard needs tensorboard, which is not installed", fix="pip install 'xfeat-onnx[tensorboard]'"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error, elsewhere="choose another place with --tensorboard") from error
        self._folder = folder
        self._writer: SummaryWriter
        self._parameters: Parameters = {}

    def begin(self, name: str, parameters: Parameters, key: str) -> None:
        """Open a new event file in the folder ``name``."""
        self._folder, self._parameters = self._folder / name, parameters
        self._writer = _writer(self._folder)

    def record(self, step: int, metrics: Metrics) -> None:
        """Add scalars of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Write a subfolder with settings and metrics for the hyperparameter table."""
        if not (self._folder / name).exists():
            _write_hparams(_writer(self._folder / name), parameters, metrics)

    def end(self, metrics: Metrics, files: Sequence[Path]) -> None:
        """Add settings and final metrics, and close the file; ``files`` are not copied."""
        _write_hparams(self._writer, self._parameters, metrics)

    def fail(self, *, killed: bool) -> None:
        """Add settings and the status "failed", and close the file; TensorBoard has no status for stopped trainings."""
        _write_hparams(self._writer, self._parameters, {}, failed=True)


def _writer(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _write_hparams(writer: SummaryWriter, parameters: Parameters, metrics: Metrics, *, failed: bool = False) -> None:
    """Do the same as ``SummaryWriter.add_hparams``, but in the same folder, and close the file."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
    from torch.utils.tensorboard.summary import hparams

    plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in parameters.items()}
    settings, start, end = hparams(plain, dict(metrics))  # type: ignore[no-untyped-call]
    if failed:  # torch always writes the status "success"
        written = end.value[0].metadata.plugin_data
        status = HParamsPluginData.FromString(written.content)
        status.session_end_info.status = _FAILURE
        written.content = status.SerializeToString()
    for summary in (settings, start, end):
        writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
    for name, value in metrics.items():
        writer.add_scalar(name, value)
    writer.close()

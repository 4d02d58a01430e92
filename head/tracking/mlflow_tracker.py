"""Trainings in MLflow, through its client library. A local store needs no server: ``sqlite:///mlflow.db``."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xfeat.featurize.errors import MissingExtraError, TrackingError
from xfeat.head.tracking.tracker import Metrics, Parameters

logger = logging.getLogger(__name__)

EXPERIMENT = "xfeat"
_KEY = "xfeat.key"
_FILES = "mlruns"  # MLflow's default folder for files
_PARENT = "mlflow.parentRunId"
_EXTRA = ("mlflow", "sqlalchemy", "alembic")
# Metrics are sent at most this often, since epochs often take milliseconds.
_SEND_EVERY_S = 1.0
# Source: mlflow.utils.validation, MAX_METRICS_PER_BATCH; and the maximum of search_runs.
_MAX_METRICS, _MAX_RUNS = 1000, 50_000
# A server that is down is an error within seconds instead of minutes. Variables that the user has set are not changed.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MlflowTracker:
    """Writes runs to a tracking server or store.

    The experiment is ``xfeat``, or that of MLFLOW_EXPERIMENT_NAME; it is created if it does not exist.

    Args:
        uri: ``http://host:5000``, ``sqlite:///mlflow.db``, or any other URI of MLflow.

    Raises:
        MissingExtraError: if MLflow is not installed.
        TrackingError: if the server does not answer, or the URI is invalid.
    """

    title = "MLflow"

    def __init__(self, uri: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        shown = re.sub(r"//[^/@]*@", "//…@", uri)  # no password in a message
        try:
            with _quiet():
                from mlflow.tracking import MlflowClient

                for name in ("mlflow", "alembic"):
                    logging.getLogger(name).setLevel(logging.WARNING)
                self._client = MlflowClient(tracking_uri=uri)
                self._experiment = self._find_experiment(uri)
        except ModuleNotFoundError as error:
            package = "'xfeat-onnx[mlflow]'" if error.name in _EXTRA else error.name
            raise MissingExtraError(
                f"--mlflow {shown} needs {error.name}, which is not installed", fix=f"pip install {package}"
            ) from error
        except Exception as error:  # errors of MLflow, its store and its HTTP library have no common base class
            raise TrackingError(
                "MLflow cannot be reached at this address",
                path=shown,
                expected="a tracking server, such as http://localhost:5000, or a store, such as sqlite:///mlflow.db",
                found=str(error).strip().split("\n")[0].replace(uri, shown),
                fix="check the address given with --mlflow, and that its server is running",
            ) from error
        self._run = ""
        self._children: set[str] = set()
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def begin(self, name: str, parameters: Parameters, key: str) -> None:
        """Start a run; with a key, resume the run that has this key."""
        with _quiet():
            if found := self._search(_KEY, key) if key else []:
                self._run = found[0].info.run_id
                self._children = {run.info.run_name for run in self._search(_PARENT, self._run)}
                self._client.update_run(self._run, status="RUNNING")
                return
            self._run = self._create(name, {_KEY: key} if key else {})
            self._client.log_batch(self._run, params=_as_params(parameters))

    def record(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step; they are sent at most once per second."""
        self._waiting += _as_metrics(metrics, step)
        if time.monotonic() - self._sent >= _SEND_EVERY_S:
            self._send()

    def child(self, name: str, parameters: Parameters, metrics: Metrics) -> None:
        """Add a finished child run."""
        if name in self._children:
            return
        with _quiet():
            run = self._create(name, {_PARENT: self._run})
            self._client.log_batch(run, params=_as_params(parameters), metrics=_as_metrics(metrics, 0))
            self._client.set_terminated(run)
        self._children.add(name)

    def end(self, metrics: Metrics, files: Sequence[Path]) -> None:
        """Send the remaining metrics, the final ones and the files; finish the run."""
        self._waiting += _as_metrics(metrics, 0)
        self._send()
        with _quiet():
            for file in files:
                if file.is_dir():
                    self._client.log_artifacts(self._run, str(file), file.name)
                else:
                    self._client.log_artifact(self._run, str(file))
            self._client.set_terminated(self._run)

    def fail(self, *, killed: bool) -> None:
        """Send the remaining metrics and close the run as FAILED or KILLED."""
        self._send()
        with _quiet():
            self._client.set_terminated(self._run, "KILLED" if killed else "FAILED")

    def _find_experiment(self, uri: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name))
        if found.lifecycle_stage != "active":
            raise ValueError(f"the experiment {name} was deleted: restore it, or set MLFLOW_EXPERIMENT_NAME")
        _warn_if_moved(uri, found.artifact_location)
        return str(found.experiment_id)

    def _search(self, tag: str, value: str) -> list[Any]:
        return list(self._client.search_runs([self._experiment], f"tags.`{tag}` = '{value}'", max_results=_MAX_RUNS))

    def _create(self, name: str, tags: dict[str, str]) -> str:
        return str(self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id)

    def _send(self) -> None:
        with _quiet():
            for start in range(0, len(self._waiting), _MAX_METRICS):
                self._client.log_batch(self._run, metrics=self._waiting[start : start + _MAX_METRICS])
        self._waiting, self._sent = [], time.monotonic()


def _warn_if_moved(uri: str, location: str) -> None:
    """Warn if a local store is not where it was made: MLflow makes that folder anew, and stores files of runs there."""
    store, files = urlsplit(uri), urlsplit(location)
    if store.scheme not in ("sqlite", "file", "") or files.scheme not in ("file", ""):
        return
    here = Path(store.path.removeprefix("/") if store.scheme == "sqlite" else store.path).absolute().parent
    if (here / _FILES).is_dir() and not Path(files.path).is_relative_to(here):
        logger.warning(
            "the MLflow store was moved: MLflow writes the files of runs to %s, where it was made; "
            "set MLFLOW_EXPERIMENT_NAME to a new name, and they are stored in %s",
            *(files.path, here / _FILES),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of libraries from our users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_params(parameters: Parameters) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in parameters.items()]


def _as_metrics(metrics: Metrics, step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    return [Metric(name, float(value), now, step) for name, value in metrics.items()]

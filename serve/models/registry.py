"""The models of a server, by name. Each can be replaced by a newer file while requests are being answered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from xfeat.export.parity.certificate import certificate_path
from xfeat.export.parity.signature import signature_path
from xfeat.featurize.errors import ModelError
from xfeat.featurize.text import first_ten, printable
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.reading import ImageContent
from xfeat.serve.inference.results import Result
from xfeat.serve.models.batching import Batcher
from xfeat.serve.models.metrics import ServerMetrics
from xfeat.serve.models.statistics import ModelStatistics
from xfeat.serve.specs import ServeSpec

logger = logging.getLogger(__name__)

_SUFFIX = ".onnx"
_CORE_SUFFIX = ".core.onnx"

# Opens a model file in one session, or in several that compute in parallel.
Opener = Callable[[Path], Sequence[Predictor]]
# Inode, size and modification time of a model file, its certificate and its signature: they change with the files.
FileStates = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Reload:
    """The result of a reload, by model name.

    Attributes:
        loaded: models that now use a new file.
        unchanged: models whose files have not changed, or are all gone: a server needs a model.
        removed: models whose files are no longer in the folder.
        kept: models whose new file could not be loaded, with the reason; the previous version, if any, still serves.
    """

    loaded: list[str]
    unchanged: list[str]
    removed: list[str]
    kept: dict[str, str]


class ServedModel:
    """A model by its name: its sessions and their queue, which are replaced together on a reload.

    Attributes:
        name: the file name without the suffix; used in URLs.
    """

    def __init__(self, name: str, batcher: Batcher, metrics: ServerMetrics) -> None:
        self.name = name
        self._metrics = metrics
        self._lock = threading.Lock()
        self._batchers = [batcher]  # the current one, then those that still compute what they have accepted
        self._report()

    @property
    def predictor(self) -> Predictor:
        """The current version of the model; of several sessions the first."""
        return self._batchers[0].predictors[0]

    @property
    def device(self) -> str:
        """Where it actually runs: ``cpu``, ``cuda:0``, or ``cuda:0,cuda:1``."""
        return ",".join(dict.fromkeys(predictor.device for predictor in self._batchers[0].predictors))

    @property
    def pending(self) -> int:
        """Number of images that are accepted and have no result yet."""
        return sum(batcher.pending for batcher in self._batchers)

    @property
    def statistics(self) -> ModelStatistics:
        """Counts and times of the current version."""
        return self._batchers[0].statistics

    def submit(
        self, images: Sequence[tuple[str, ImageContent]], *, heatmap: bool = False
    ) -> tuple[Predictor, list[Future[Result]]]:
        """Accept all images of a request, or none; see :meth:`Batcher.submit`.

        Returns:
            The model version that will be used, and one future per image.
        """
        with self._lock:  # a reload in between would close this queue
            return self.predictor, self._batchers[0].submit(images, heatmap=heatmap)

    def replace(self, batcher: Batcher) -> None:
        """Use a new version from now on; images accepted before are computed by the old one."""
        with self._lock:
            old = self._batchers[0]
            self._batchers.insert(0, batcher)
        self._report()
        old.close()
        self._batchers.remove(old)

    def close(self) -> None:
        """Accept no more images and compute those accepted."""
        self._batchers[0].close()

    def _report(self) -> None:
        self._metrics.add_model(self.name, self.predictor, self.device, lambda: self.pending)


class ModelRegistry(Mapping[str, ServedModel]):
    """All models of a server: one file, or the model files of a folder. The name of a model is that of its file.

    Args:
        source: the file or folder.
        opener: opens the sessions of a model file.
        spec: the limits.
        default: name of the model for requests that name none; otherwise the first by name. It stays the same name as
            long as the server runs, whichever files come and go.

    Attributes:
        metrics: of the server.
        default_name: of the model for requests that name none.
        closed: whether no more images are accepted.
        seen: the states of the model files at the last reload, successful or not.

    Raises:
        ModelError: if there is no model, none of the default's name, or one cannot be loaded.
        DeviceError: if the requested device is not available.
    """

    def __init__(self, source: Path, opener: Opener, spec: ServeSpec, *, default: str | None = None) -> None:
        self.source = source
        self.spec = spec
        self.metrics = ServerMetrics(spec.drift_window, self._state)
        self._failed: dict[str, Path] = {}
        self._opener = opener
        self._reloading = threading.Lock()
        self.closed = False
        files = {_name(path): path for path in model_files(source)}
        self.default_name = min(files) if default is None else default
        if self.default_name not in files:
            raise ModelError(
                f"there is no model {printable(default)!s} for --default-model",
                path=source,
                expected=" or ".join(first_ten(files)),
                fix=f"--default-model {min(files)}",
            )
        self.seen = {path: _states(path) for path in files.values()}
        self._models: dict[str, ServedModel] = {}
        opened = {name: self._open(path) for name, path in files.items()}
        self._models = {name: ServedModel(name, self._start(opened[name]), self.metrics) for name in opened}

    @property
    def default(self) -> ServedModel | None:
        """The model for requests that name none; ``None`` if its file was removed: no other takes its place."""
        return self._models.get(self.default_name)

    @property
    def failed_reloads(self) -> list[str]:
        """Names of models whose newest file could not be loaded and is still there. Asks the disk if there are any."""
        return sorted(name for name, path in self._failed.items() if _state(path))

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._models))

    def __len__(self) -> int:
        return len(self._models)

    def file_states(self) -> dict[Path, FileStates]:
        """Return the state of every model file that is there now."""
        try:
            states = {path: _states(path) for path in model_files(self.source)}
        except (ModelError, OSError):  # OSError: a disk or mount that does not answer now
            return {}
        return {path: state for path, state in states.items() if state[0] is not None}

    def reload(self) -> Reload:
        """Load new and changed files, and remove models whose files are gone.

        Requests are answered during the reload. A model is replaced only when its new version is ready.
        """
        report = Reload(loaded=[], unchanged=[], removed=[], kept={})
        with self._reloading:
            if self.closed:
                return report
            states = self.file_states()
            for path, state in states.items():
                self._reload_file(path, state, report)
            if states:
                self._remove_missing({_name(path) for path in states}, report)
            else:  # a folder that is being refilled, or a file that is being replaced
                report.unchanged.extend(self)
                if self.seen:
                    logger.warning(
                        "%s: no model is there any more; those that are loaded are still served", self.source
                    )
            for name in self._failed.keys() - self._models.keys() - report.kept.keys():
                self.metrics.remove_model(name)
            self._failed = {_name(path): path for path in states if _name(path) in report.kept}
            self.seen = states
        for verb, names in (("loaded", report.loaded), ("removed", report.removed)):
            if names:
                logger.info("%s %s", verb, ", ".join(names))
        return report

    def close(self) -> None:
        """Accept no more images and compute those accepted."""
        with self._reloading:
            self.closed = True
            for model in self._models.values():
                model.close()

    def _state(self) -> Iterator[Metric]:
        failed = GaugeMetricFamily("xfeat_reload_failed", "The newest file of a model cannot be used", labels=["model"])
        for name in self.failed_reloads:
            failed.add_metric([name], 1)
        default = GaugeMetricFamily(
            "xfeat_default_model", "Whether the model for requests that name none is served", labels=["model"]
        )
        default.add_metric([self.default_name], self.default is not None)
        yield from (failed, default)

    def _open(self, path: Path) -> Sequence[Predictor]:
        predictors = self._opener(path)
        if len({predictor.model.sha256 for predictor in predictors}) > 1:
            raise ModelError("the model file was replaced while it was being opened", path=path, fix="load it again")
        for predictor in predictors:
            predictor.warm_up()
        return predictors

    def _start(self, predictors: Sequence[Predictor]) -> Batcher:
        return Batcher(
            *predictors,
            max_queue=self.spec.max_queue,
            max_batch=self.spec.max_batch,
            batch_wait_s=self.spec.batch_wait_ms / 1000,
            metrics=self.metrics,
        )

    def _reload_file(self, path: Path, state: FileStates, report: Reload) -> None:
        name = _name(path)
        if name in self._models and self.seen.get(path) == state and name not in self._failed:
            report.unchanged.append(name)
            return
        try:
            predictors = self._open(path)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the old version serves, and the next reload works
            effect = "still serving the previous version" if name in self._models else "the model is not served"
            logger.warning("%s: reload failed; %s: %s", name, effect, problem)
            report.kept[name] = str(problem)
            self.metrics.reloads.labels(name, "failed").inc()
            return
        if name in self._models:
            self._models[name].replace(self._start(predictors))
        else:
            self._models = {**self._models, name: ServedModel(name, self._start(predictors), self.metrics)}
        report.loaded.append(name)
        self.metrics.reloads.labels(name, "ok").inc()

    def _remove_missing(self, present: set[str], report: Reload) -> None:
        for name in [name for name in self._models if name not in present]:
            removed = self._models[name]
            self._models = {other: model for other, model in self._models.items() if other != name}
            removed.close()
            self.metrics.remove_model(name)
            report.removed.append(name)
            if name == self.default_name:
                logger.warning("%s was the default model: requests that name no model are refused", name)


def model_files(source: Path) -> list[Path]:
    """Return the file itself, or the sorted model files of a folder; a core model next to its full model is left out.

    Raises:
        ModelError: if the folder holds no model.
    """
    if not source.is_dir():
        return [source]
    files = sorted(path for path in source.glob(f"*{_SUFFIX}") if not path.name.startswith("."))
    names = {path.name for path in files}
    files = [path for path in files if path.name.replace(_CORE_SUFFIX, _SUFFIX) not in names - {path.name}]
    if not files:
        raise ModelError(
            "no models in this folder", path=source, fix=f"write one there: xexport onnx -o {source}/model.onnx"
        )
    return files


def _name(path: Path) -> str:
    """Return the name of a model, in which JSON, URLs and labels can hold every file name."""
    return printable(path.stem)


def _states(path: Path) -> FileStates:
    certificate = certificate_path(path)
    return tuple(map(_state, (path, certificate, signature_path(certificate))))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # it may still be there: the model is not removed, and the reload says what is wrong
        return error.errno or 0, -1, -1
    return state.st_ino, state.st_size, state.st_mtime_ns

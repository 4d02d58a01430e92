"""The models in service, by name. Each can be exchanged for a newer file while requests are being answered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from xfeat.featurize.errors import ModelError, XfeatError
from xfeat.serve.inference.predictor import ImageContent, Predictor
from xfeat.serve.inference.results import Result
from xfeat.serve.models.batching import Batcher
from xfeat.serve.models.metrics import Metrics, device_of
from xfeat.serve.specs import ServeSpec

logger = logging.getLogger(__name__)

_SUFFIX = ".onnx"
_CORE_SUFFIX = ".core.onnx"

# The sessions of a model file: one, or several that compute side by side.
Opener = Callable[[Path], Sequence[Predictor]]
# Differs when a file was written anew or replaced: inode, size, time of change.
Signature = tuple[int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class Reload:
    """What a reload did, by model name.

    Attributes:
        loaded: now answer with a new file.
        unchanged: their files have not changed.
        removed: their files are gone from the folder.
        kept: their new file cannot be used, so the old one goes on answering; with the reason.
    """

    loaded: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the lists as plain JSON types."""
        return asdict(self)


class ServedModel:
    """One name: the sessions that answer under it and their queue, which are exchanged together.

    Attributes:
        name: in addresses; the file name without the suffix.
    """

    def __init__(self, name: str, predictors: Sequence[Predictor], spec: ServeSpec, metrics: Metrics) -> None:
        self.name = name
        self._spec = spec
        self._metrics = metrics
        self._lock = threading.Lock()
        self._leaving: list[Batcher] = []
        self._predictors = predictors
        self._batcher = self._start(predictors)
        metrics.add_model(name, predictors, lambda: self.pending)

    @property
    def predictor(self) -> Predictor:
        """The model that answers now; of several sessions the first."""
        return self._predictors[0]

    @property
    def device(self) -> str:
        """Where it really runs: ``cpu``, ``cuda:0``, or ``cuda:0,cuda:1``."""
        return device_of(self._predictors)

    @property
    def pending(self) -> int:
        """Number of images accepted and not yet answered."""
        return sum(batcher.pending for batcher in (self._batcher, *self._leaving))

    @property
    def ready(self) -> bool:
        """Whether images are accepted."""
        return not self._batcher.closed

    def submit(
        self, images: Sequence[tuple[str, ImageContent]], *, heatmap: bool = False
    ) -> tuple[Predictor, list[Future[Result]]]:
        """Accept the images of a request, all or none; see :meth:`Batcher.submit`.

        Returns:
            The model that will answer, and a future an image.
        """
        with self._lock:  # no exchange in between: an accepted request meets a queue that is open
            return self.predictor, self._batcher.submit(images, heatmap=heatmap)

    def exchange(self, predictors: Sequence[Predictor]) -> None:
        """Answer with another model from now on; what was accepted before is answered by the old one."""
        fresh = self._start(predictors)
        with self._lock:
            old, self._batcher, self._predictors = self._batcher, fresh, predictors
            self._leaving.append(old)
        self._metrics.add_model(self.name, predictors, lambda: self.pending)
        old.close()
        self._leaving.remove(old)

    def close(self) -> None:
        """Accept nothing more and answer what was accepted."""
        self._batcher.close()

    def _start(self, predictors: Sequence[Predictor]) -> Batcher:
        return Batcher(
            *predictors,
            max_queue=self._spec.max_queue,
            max_batch=self._spec.max_batch,
            batch_wait_s=self._spec.batch_wait_ms / 1000,
            observer=self._metrics,
        )


class Models(Mapping[str, ServedModel]):
    """All models of a server: one file, or the model files of a folder.

    Args:
        source: the file or folder.
        opener: opens the sessions of a model file.
        spec: the limits.
        metrics: the numbers.

    Raises:
        ModelError: if there is no model, or one cannot be used.
        DeviceError: if the device that was asked for is not there.
    """

    def __init__(self, source: Path, opener: Opener, spec: ServeSpec, metrics: Metrics) -> None:
        self.source = source
        self._opener = opener
        self._spec = spec
        self._metrics = metrics
        self._reloading = threading.Lock()
        self._closed = False
        files = model_files(source)
        self._seen = {path: _signature(path) for path in files}
        opened = {name_of(path): self._open(path) for path in files}
        self._models = {name: ServedModel(name, predictors, spec, metrics) for name, predictors in opened.items()}

    @classmethod
    def of(cls, predictor: Predictor, spec: ServeSpec) -> Self:
        """Serve one model that is open already; it is opened again, by the same class, on a reload."""
        waiting = [predictor]

        def opener(path: Path) -> list[Predictor]:
            return [waiting.pop() if waiting else type(predictor).open(path, predictor.device)]

        return cls(predictor.path, opener, spec, Metrics())

    @property
    def metrics(self) -> Metrics:
        """The numbers."""
        return self._metrics

    @property
    def default(self) -> ServedModel:
        """The model that answers where none is named: the first by name."""
        return self._models[min(self._models)]

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Any:
        return iter(sorted(self._models))

    def __len__(self) -> int:
        return len(self._models)

    def signatures(self) -> dict[Path, Signature]:
        """Return the state of every model file that there is now."""
        return {path: _signature(path) for path in self._files()}

    def reload(self) -> Reload:
        """Open files that are new or have changed, drop those that are gone; a file that cannot be used is left alone.

        Requests are answered all the time. A model's last good file stays in service until another one is ready.
        """
        with self._reloading:
            report = Reload()
            if self._closed:
                return report
            signatures = self.signatures()
            for path, signature in signatures.items():
                self._reload_file(path, signature, report)
            self._remove_gone({name_of(path) for path in signatures}, report)
        _log(report)
        return report

    def changed(self) -> bool:
        """Whether a file has changed since it was last looked at by a reload, whatever became of it."""
        return self.signatures() != self._seen

    def close(self) -> None:
        """Accept nothing more and answer what was accepted."""
        with self._reloading:
            self._closed = True
            for model in self._models.values():
                model.close()

    def _files(self) -> list[Path]:
        try:
            return model_files(self.source)
        except ModelError:
            return []  # a folder that is being filled anew; what is in service stays

    def _open(self, path: Path) -> Sequence[Predictor]:
        predictors = self._opener(path)
        for predictor in predictors:
            predictor.warm_up()
        return predictors

    def _reload_file(self, path: Path, signature: Signature, report: Reload) -> None:
        name = name_of(path)
        if name in self._models and self._seen.get(path) == signature and name not in self._metrics.failed_reloads:
            report.unchanged.append(name)
            return
        self._seen[path] = signature
        try:
            predictors = self._open(path)
        except XfeatError as problem:
            report.kept[name] = str(problem)
            self._metrics.note_reload(name, ok=False)
            return
        if name in self._models:
            self._models[name].exchange(predictors)
        else:
            self._models = {**self._models, name: ServedModel(name, predictors, self._spec, self._metrics)}
        report.loaded.append(name)
        self._metrics.note_reload(name, ok=True)

    def _remove_gone(self, present: set[str], report: Reload) -> None:
        gone = [] if not present else [name for name in self._models if name not in present]
        if len(gone) == len(self._models):
            return  # a server without a model could answer nothing
        for name in gone:
            model = self._models[name]
            self._models = {other: kept for other, kept in self._models.items() if other != name}
            self._metrics.remove_model(name)
            model.close()
            report.removed.append(name)
        self._seen = {path: signature for path, signature in self._seen.items() if name_of(path) in self._models}


def model_files(source: Path) -> list[Path]:
    """Return the file named, or the model files of a folder, sorted; a core file beside its full one is left out.

    Raises:
        ModelError: if a folder holds none.
    """
    if not source.is_dir():
        return [source]
    files = sorted(path for path in source.glob(f"*{_SUFFIX}") if not path.name.startswith("."))
    names = {path.name for path in files}
    files = [path for path in files if path.name.replace(_CORE_SUFFIX, _SUFFIX) not in names - {path.name}]
    if not files:
        raise ModelError("no models in this folder", path=source, fix="write one into it with xexport onnx -o")
    return files


def name_of(path: Path) -> str:
    """Return the name under which a model file answers."""
    return path.stem


def _signature(path: Path) -> Signature:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def _log(report: Reload) -> None:
    for verb, names in (("loaded", report.loaded), ("removed", report.removed)):
        if names:
            logger.info("%s %s", verb, ", ".join(names))
    for name, reason in report.kept.items():
        logger.warning("%s answers on with its old file: %s", name, reason)

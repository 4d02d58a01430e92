"""Benchmarks models: latency and images per second, compared with eager torch in the same process if a run is given."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfeat.export.model.cuda_graphs import BoundSession
from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.model.progress import Progress
from xfeat.export.specs import BenchSpec
from xfeat.featurize.backbones.registry import is_foreign
from xfeat.featurize.errors import DeviceError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import require
from xfeat.featurize.system.onnx_session import ORT_ERRORS, cuda_possible, first_line
from xfeat.head.runs.reader import Run

if TYPE_CHECKING:
    from xfeat.export.build.fused_model import ReferenceModel

logger = logging.getLogger(__name__)

# Models take turns, so that other load on the machine slows all of them: ratios are reliable even if times are not.
_TURNS = 5
# torch without CUDA raises AssertionError.
_FAILURES: tuple[type[Exception], ...] = (*ORT_ERRORS, AssertionError, MemoryError)

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The timings of one model in one setting.

    Attributes:
        what: ``torch`` or the name of the model file; its path if several files have the same name.
        provider: ``cpu`` or ``cuda``.
        threads: of the network on the CPU.
        batch: images per call.
        calls: number of timed calls.
        p50_ms: median duration of a call, milliseconds.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        images_per_second: over all calls.
        cuda_graph: whether the calls replayed a CUDA graph.
        against_torch: images per second divided by torch's in the same setting, or ``None``.
        against_first: images per second divided by those of the first model; ``None`` for itself and torch.
    """

    what: str
    provider: str
    threads: int
    batch: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    cuda_graph: bool = False
    against_torch: float | None = None
    against_first: float | None = None


def bench_models(
    models: Sequence[Path], spec: BenchSpec, run: Run | None = None, progress: Progress | None = None
) -> list[Speed]:
    """Time model files, in turns, for each provider, number of threads and batch size.

    Args:
        models: files written by ``xexport onnx`` or ``xexport quantize``.
        spec: what to measure.
        run: if given, eager torch is timed as well, in the same settings.
        progress: called with the number of finished rows and their total.

    Returns:
        One row per model and setting. What fails on a provider that was not requested by name is left out, with a
        warning.

    Raises:
        ModelError: if a file was not written by this project.
        DeviceError: if a model fails on a provider that was requested by name, if ``cuda_graphs`` is ``on`` and fails,
            or if nothing could be measured.
        MismatchError: if the backbone's weights are not those of the run.
        SpecError: if there is no torch model of the run, because its encoder is an ONNX file.
    """
    reference = None
    if run is not None:
        backbone = run.feature_spec.backbone
        encoder = "an EfficientNet, which torch runs"
        require(not is_foreign(backbone), "the run has no torch model to time", expected=encoder, found=backbone)
        from xfeat.export.build.reference_model import load_reference_model

        reference = load_reference_model(run)
    providers = spec.providers or _usable_providers(models, reference)
    graphs_required = spec.cuda_graphs == "on"
    if graphs_required and "cuda" not in providers:
        raise DeviceError("CUDA graphs need a GPU", found=f"--provider {', '.join(providers)}", fix="--provider cuda")
    settings = [
        _Setting(provider, threads, batch)
        for provider in providers
        for threads in (spec.threads if provider == "cpu" else [max(spec.threads)])  # on a GPU they change nothing
        for batch in spec.batches
    ]
    total = len(settings) * (len(models) + (reference is not None))
    rows: list[Speed] = []
    for setting in settings:
        try:
            for row in _time_all(models, reference, setting, spec):
                rows.append(row)
                if progress is not None:
                    progress(len(rows), total)
        except DeviceError as error:
            if spec.providers or graphs_required or (setting is settings[-1] and not rows):
                raise
            logger.warning("not benchmarked: %s", error)
    return rows


@dataclass(frozen=True)
class _Setting:
    provider: str
    threads: int
    batch: int


def _usable_providers(models: Sequence[Path], reference: ReferenceModel | None) -> tuple[str, ...]:
    if not cuda_possible():
        return ("cpu",)
    try:
        for path in models:
            open_model(path, device="cuda", cuda_graphs="off")
        if reference is not None:
            import torch

            with _failures("torch", _Setting("cuda", threads=1, batch=1)):
                torch.zeros(1, device="cuda")
    except DeviceError as error:
        logger.warning("the GPU is not benchmarked: %s", error)
        return ("cpu",)
    return ("cpu", "cuda")


def _time_all(
    models: Sequence[Path], reference: ReferenceModel | None, setting: _Setting, spec: BenchSpec
) -> list[Speed]:
    placing: dict[str, Any] = {"device": setting.provider, "cuda_graphs": spec.cuda_graphs}
    if setting.provider == "cpu":
        placing = {"spin": spec.spin}
    opened = [open_model(path, setting.threads, **placing) for path in models]
    calls: list[tuple[str, Call]] = []
    if reference is not None:
        with _failures("torch", setting):
            noise = _noise(setting, opened[0])
            calls.append(("torch", _torch_call(reference.to(setting.provider), noise, setting.threads)))
    for model in opened:
        with _failures(str(model.path), setting):
            calls.append((str(model.path), _onnx_call(model, _noise(setting, model))))
    durations = _take_turns(calls, setting, spec.seconds)
    speeds = [_speed(what, setting, took) for (what, _), took in zip(calls, durations, strict=True)]
    torch = speeds.pop(0) if reference is not None else None
    first = speeds[0].images_per_second
    names = Counter(model.path.name for model in opened)
    rows = [torch] if torch else []
    for model, speed in zip(opened, speeds, strict=True):
        rows.append(
            replace(
                speed,
                what=model.path.name if names[model.path.name] == 1 else speed.what,
                cuda_graph=isinstance(model.session, BoundSession) and model.session.graphs,
                against_torch=speed.images_per_second / torch.images_per_second if torch else None,
                against_first=speed.images_per_second / first if speed is not speeds[0] else None,
            )
        )
    return rows


def _take_turns(calls: Sequence[tuple[str, Call]], setting: _Setting, seconds: float) -> list[list[float]]:
    """Return the durations of each call, in seconds."""
    durations: list[list[float]] = [[] for _ in calls]
    for _ in range(_TURNS):
        for (what, call), took in zip(calls, durations, strict=True):
            with _failures(what, setting):
                call()  # the previous model has left its weights in the caches, and its threads may still spin
                took += _timed(call, seconds / _TURNS)
    return durations


def _timed(call: Call, seconds: float) -> list[float]:
    durations: list[float] = []
    while not durations or sum(durations) < seconds:
        before = time.perf_counter()
        call()
        durations.append(time.perf_counter() - before)
    return durations


def _speed(what: str, setting: _Setting, durations: Sequence[float]) -> Speed:
    p50, p95, p99 = map(float, np.percentile(durations, [50, 95, 99]) * 1000)
    return Speed(
        what=what,
        **asdict(setting),
        calls=len(durations),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=setting.batch * len(durations) / sum(durations),
    )


@contextmanager
def _failures(what: str, setting: _Setting) -> Iterator[None]:
    """Name what failed and where: out of memory, a library built for another device."""
    try:
        yield
    except DeviceError:
        raise
    except _FAILURES as error:
        raise DeviceError(
            f"{what} does not run on {setting.provider} in batches of {setting.batch}",
            found=first_line(error),
            fix="use another --provider, or smaller batches with --batch",
        ) from error


def _onnx_call(model: ModelFile, pixels: Pixels) -> Call:
    model.bind([pixels])
    feed = model.feed(pixels)
    return lambda: model.session.run(None, feed)


def _torch_call(model: ReferenceModel, pixels: Pixels, threads: int) -> Call:
    import torch

    device = next(model.parameters()).device
    images = torch.from_numpy(pixels)

    def call() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            model(images.to(device)).cpu()  # from and to host memory, as onnxruntime is timed

    return call


def _noise(setting: _Setting, model: ModelFile) -> Pixels:
    side = model.metadata.feature_spec.preprocess.size
    return np.random.default_rng(0).integers(0, 256, (setting.batch, side, side, 3), dtype=np.uint8)

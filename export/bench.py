"""How fast a model answers, against eager torch in the same run where the run is at hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.bound_session import BoundSession
from export.model_file import ModelFile, open_model
from export.onnx_session import ORT_ERRORS, cuda_possible, first_line
from export.parity import planes_of
from export.specs import BenchSpec
from export.steps import Progress
from featurize.errors import DeviceError
from featurize.preprocess import Pixels
from head.run import Run

if TYPE_CHECKING:
    from export.fused import PlainModel

logger = logging.getLogger(__name__)

_MIN_CALLS = 5
# A torch that was built without CUDA asserts that it has it.
_FAILURES: tuple[type[Exception], ...] = (*ORT_ERRORS, AssertionError, MemoryError)

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long calls took.

    Attributes:
        what: what ran: ``torch`` or the name of the model file.
        provider: where: ``cpu`` or ``cuda``.
        threads: of the network on the CPU.
        batch: images a call.
        calls: that were measured.
        p50_ms: median of a call's duration, milliseconds.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        images_per_second: over all calls.
        cuda_graph: whether the work was replayed as a CUDA graph.
        against_torch: images per second divided by torch's with the same batch and threads in the same place, or
            ``None``.
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def bench_models(
    models: Sequence[Path], spec: BenchSpec, run: Run | None = None, progress: Progress | None = None
) -> list[Speed]:
    """Measure model files, one after the other for each provider, number of threads and batch size.

    Args:
        models: files of this project.
        spec: what to measure.
        run: if given, eager torch runs the same batches first, with the same threads in the same place.
        progress: called with lines measured and in all.

    Returns:
        A row for each of them; what a provider cannot run that was not asked for by name is left out with a warning.

    Raises:
        ModelError: if a file is no model of this project.
        DeviceError: if a provider that was asked for by name cannot run something, or has no graphs where they were
            asked for; or if nothing could be measured.
        MismatchError: if the backbone's weights are not those of the run.
    """
    plain = None
    if run is not None:
        from export.ingredients import plain_model

        plain = plain_model(run)
    providers = spec.providers or _usable_providers(models, with_torch=plain is not None)
    graphs_asked_for = spec.cuda_graphs == "on"
    if graphs_asked_for and "cuda" not in providers:
        raise DeviceError(
            "CUDA graphs need a GPU", found=f"measured on: {', '.join(providers)}", mend="--provider cuda"
        )
    settings = [
        _Setting(provider, threads, batch)
        for provider in providers
        for threads in (spec.threads if provider == "cpu" else [max(spec.threads)])  # beside a GPU they change nothing
        for batch in spec.batches
    ]
    total = len(settings) * (len(models) + (plain is not None))
    rows: list[Speed] = []
    for setting in settings:
        try:
            for row in _measure_all(models, plain, setting, spec):
                rows.append(row)
                if progress is not None:
                    progress(len(rows), total)
        except DeviceError as error:
            if spec.providers or graphs_asked_for or (setting is settings[-1] and not rows):
                raise
            logger.warning("not measured: %s", error)
    return rows


@dataclass(frozen=True)
class _Setting:
    provider: str
    threads: int
    batch: int


def _usable_providers(models: Sequence[Path], *, with_torch: bool) -> tuple[str, ...]:
    if not cuda_possible():
        return ("cpu",)
    try:
        for path in models:
            open_model(path, device="cuda", cuda_graphs="off")
        if with_torch:
            import torch

            with _failures("torch", "cuda"):
                torch.zeros(1, device="cuda")
    except DeviceError as error:
        logger.warning("the GPU is not measured: %s", error)
        return ("cpu",)
    return ("cpu", "cuda")


def _measure_all(
    models: Sequence[Path], plain: PlainModel | None, setting: _Setting, spec: BenchSpec
) -> Iterator[Speed]:
    opened = [_open(path, setting, spec) for path in models]
    rate = None
    if plain is not None:
        with _failures("torch", f"{setting.provider} in batches of {setting.batch}"):
            noise = _noise(setting.batch, opened[0])
            call = _torch_call(plain.to(setting.provider), noise, setting.threads)
            line = _measure("torch", call, setting, spec.seconds)
        rate = line.images_per_second
        yield line
    for model in opened:
        with _failures(str(model.path), f"{setting.provider} in batches of {setting.batch}"):
            call = _onnx_call(model, _noise(setting.batch, model))
            line = _measure(model.path.name, call, setting, spec.seconds)
        yield replace(
            line,
            cuda_graph=isinstance(model.session, BoundSession) and model.session.graphs,
            against_torch=line.images_per_second / rate if rate else None,
        )


def _open(path: Path, setting: _Setting, spec: BenchSpec) -> ModelFile:
    if setting.provider == "cpu":
        return open_model(path, setting.threads)
    return open_model(path, setting.threads, device=setting.provider, cuda_graphs=spec.cuda_graphs)


@contextmanager
def _failures(what: str, where: str) -> Iterator[None]:
    """Name what failed where: too little memory, a library that is built for something else."""
    try:
        yield
    except _FAILURES as error:
        raise DeviceError(
            f"{what} does not run on {where}",
            found=first_line(error),
            mend="measure another --provider, or smaller batches with --batch",
        ) from error


def _measure(what: str, call: Call, setting: _Setting, seconds: float) -> Speed:
    call()
    durations: list[float] = []
    started = time.perf_counter()
    while len(durations) < _MIN_CALLS or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        durations.append(time.perf_counter() - before)
    p50, p95, p99 = np.percentile(durations, [50, 95, 99]) * 1000
    return Speed(
        what=what,
        **asdict(setting),
        calls=len(durations),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        images_per_second=setting.batch * len(durations) / sum(durations),
    )


def _onnx_call(model: ModelFile, pixels: Pixels) -> Call:
    feed = {"image": pixels if model.metadata.variant == "full" else planes_of(pixels)}
    if isinstance(model.session, BoundSession):
        model.session.keep(feed)
    return lambda: model.session.run(None, feed)


def _torch_call(plain: PlainModel, pixels: Pixels, threads: int) -> Call:
    import torch

    device = next(plain.parameters()).device
    images = torch.from_numpy(pixels)

    def call() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            plain(images.to(device)).cpu()  # from memory to memory, as onnxruntime is measured

    return call


def _noise(count: int, model: ModelFile) -> Pixels:
    side = model.metadata.feature_spec.preprocess.size
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)

"""How fast a model answers, against eager torch in the same run where the run is at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.model_file import open_model
from export.parity import planes_of
from export.specs import BenchSpec
from featurize.preprocess import Pixels
from head.run import Run

_MIN_CALLS = 5


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long calls took.

    Attributes:
        what: what ran: ``torch`` or the name of the model file.
        threads: of the network.
        batch: images a call.
        calls: that were measured.
        p50_ms: median of a call's duration, milliseconds.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        images_per_second: over all calls.
        against_torch: images per second divided by torch's with the same batch and threads, or ``None``.
    """

    what: str
    threads: int
    batch: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    against_torch: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def bench_models(models: Sequence[Path], spec: BenchSpec, run: Run | None = None) -> Iterator[Speed]:
    """Measure model files, one after the other for each number of threads and each batch size.

    Args:
        models: files of this project.
        spec: what to measure.
        run: if given, eager torch runs the same batches first, with the same threads on the same device.

    Yields:
        A line as soon as it is measured.

    Raises:
        ModelError: if a file is no model of this project.
        DeviceError: if the device cannot be used for all of a network.
    """
    plain = None
    if run is not None:
        from export.ingredients import plain_model

        plain = plain_model(run).to(spec.device)
    for count in spec.threads:
        opened = [open_model(path, count, device=spec.device) for path in models]
        for batch in spec.batches:
            torch_rate = None
            if plain is not None:
                side = opened[0].metadata.feature_spec.preprocess.size
                line = _measure("torch", _torch_call(plain, _noise(batch, side), count), batch, count, spec.seconds)
                torch_rate = line.images_per_second
                yield line
            for model in opened:
                pixels = _noise(batch, model.metadata.feature_spec.preprocess.size)
                feed = {"image": pixels if model.metadata.variant == "full" else planes_of(pixels)}

                def call(session: Any = model.session, feed: Any = feed) -> None:
                    session.run(None, feed)

                yield _measure(model.path.name, call, batch, count, spec.seconds, torch_rate)


def count_lines(models: int, spec: BenchSpec, run: Run | None = None) -> int:
    """Return how many lines :func:`bench_models` yields."""
    return len(spec.threads) * len(spec.batches) * (models + (run is not None))


def _measure(
    what: str,
    call: Callable[[], None],
    batch: int,
    threads: int,
    seconds: float,
    torch_rate: float | None = None,
) -> Speed:
    call()
    durations: list[float] = []
    started = time.perf_counter()
    while len(durations) < _MIN_CALLS or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        durations.append(time.perf_counter() - before)
    p50, p95, p99 = np.percentile(durations, [50, 95, 99]) * 1000
    rate = batch * len(durations) / sum(durations)
    return Speed(
        what=what,
        threads=threads,
        batch=batch,
        calls=len(durations),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        images_per_second=rate,
        against_torch=rate / torch_rate if torch_rate else None,
    )


def _torch_call(plain: Any, pixels: Pixels, threads: int) -> Callable[[], None]:
    import torch

    device = next(plain.parameters()).device
    images = torch.from_numpy(pixels)

    def call() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            plain(images.to(device)).cpu()  # from memory to memory, as onnxruntime is measured

    return call


def _noise(count: int, side: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)

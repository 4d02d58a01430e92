"""Features: are those of the GPU right, and what limits their speed?"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from gpu.inputs import B0, LITE0, command, exported_folder, jpeg_folder, pixels, spec_of, weights_of
from gpu.report import Report, difference, seconds_per_call
from numpy.typing import NDArray

from xfeat.featurize.backbones.inference_network import InferenceNetwork
from xfeat.featurize.backbones.network import FeatureNetwork, load_backbone
from xfeat.featurize.engines.replayed_network import ReplayedNetwork
from xfeat.featurize.engines.torch_engine import TorchEngine
from xfeat.featurize.pipeline.reading import read_images
from xfeat.featurize.pipeline.reading_processes import read_in_processes
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.cores import cores

_LIMITS = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.3}


def parity(report: Report) -> None:
    """Compare the device's features with the plain network on the CPU, and export a model from them."""
    side, count = (64, 6) if report.small else (224, 96)
    images = pixels(count, side)
    for backbone in (LITE0,) if report.small else (LITE0, B0):
        weights = weights_of(backbone, report.work)
        spec = spec_of(backbone, weights, side)
        with torch.inference_mode():
            plain = FeatureNetwork(load_backbone(spec, weights), spec.preprocess)
            expected = plain(torch.from_numpy(images)).numpy()
        for precision, limit in _LIMITS.items():
            with report.part(f"{backbone} {precision}"):
                engine = TorchEngine(spec_of(backbone, weights, side, precision), weights, device=report.device)
                found = engine.features(images)
                report.at_most(f"{backbone}, {precision}, against the CPU", difference(found, expected), limit)
                if precision == "float32":
                    _check_repeats(report, f"{backbone}, {precision}", engine, images, found)
                    _check_graph(report, f"{backbone}, {precision}", engine)
                if precision == "float32" and not report.small:
                    _check_tf32(report, backbone, engine, images, expected)
    with report.part("export"):
        started = time.perf_counter()
        exported_folder(report)
        report.add(
            "featurize, train and export, which compares the model with training",
            f"{time.perf_counter() - started:.0f} s",
            ok=True,
        )


def _check_repeats(
    report: Report, name: str, engine: TorchEngine, images: NDArray[np.uint8], found: NDArray[np.float32]
) -> None:
    report.true(f"{name}: the same bits again", np.array_equal(found, engine.features(images)))
    with ThreadPoolExecutor(2) as pool:
        turned = [np.roll(images, number, 0) for number in range(4)]
        together = list(pool.map(engine.features, turned))
    same = [np.array_equal(np.roll(each, -number, 0), found) for number, each in enumerate(together)]
    report.true(f"{name}: the same bits from two threads", all(same))
    engine.batch_size = max(1, len(images) // 3)
    report.at_most(f"{name}: in smaller batches", difference(engine.features(images), found), 1e-5)


def _check_graph(report: Report, name: str, engine: TorchEngine) -> None:
    if isinstance(engine._network, ReplayedNetwork):
        report.true(f"{name}: replayed as a CUDA graph", engine._network._graph is not None)


def _check_tf32(
    report: Report, backbone: str, engine: TorchEngine, images: NDArray[np.uint8], expected: NDArray[np.float32]
) -> None:
    """Allow TF32 in torch: NVIDIA_TF32_OVERRIDE, which this project sets, must refuse it to every library."""
    engine._network = ReplayedNetwork(engine._network._network, engine.device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = engine.features(images)
    finally:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    report.at_most(f"{backbone}, TF32 allowed in torch", difference(found, expected), _LIMITS["float32"])


def featurize(report: Report) -> None:
    """Time decoding, copying and the network alone, and then the whole command."""
    count, side, backbone, batch = (48, 64, LITE0, 8) if report.small else (12_000, 224, B0, 128)
    weights = weights_of(backbone, report.work)
    data = jpeg_folder(report.work, count)
    precisions = ("float32",) if report.small else ("float32", "float16")
    limits: dict[str, dict[str, float]] = {precision: {} for precision in precisions}
    with report.part("decode"):
        decode = _decoding_rate(report, data, spec_of(backbone, weights, side))
        report.rate("decoding alone", decode)
        for known in limits.values():
            known["decode"] = decode
    for precision, known in limits.items():
        with report.part(f"network, {precision}"):
            known["network"] = _network_rate(report, backbone, precision, batch, side)
    if not report.small:
        with report.part("copy"):
            pinned = torch.from_numpy(pixels(batch, side)).pin_memory()
            taken = seconds_per_call(
                lambda: pinned.to(report.device, non_blocking=True), device=report.device, least_s=0.2
            )
            for known in limits.values():
                known["copy"] = batch / taken
    for precision, known in limits.items():
        with report.part(f"xfeat featurize, {precision}"):
            _time_command(report, data, backbone, precision, side, known)


def _decoding_rate(report: Report, data: Path, spec: FeatureSpec) -> float:
    paths = sorted(str(file.relative_to(data)) for file in data.rglob("*.jpg"))
    if report.small:
        read = read_images(open_source(data), paths, spec, is_known=lambda _: False, workers=cores())
    else:
        read = read_in_processes(open_source(data), paths, spec, known=np.zeros(0, "S64"), workers=cores())
    next(read)  # processes have started
    started = time.perf_counter()
    done = sum(1 for _ in read)
    return done / (time.perf_counter() - started)


def _network_rate(report: Report, backbone: str, precision: str, batch: int, side: int) -> float:
    """Return images per second of the engine, and report what folding, layout and the CUDA graph contribute."""
    weights = weights_of(backbone, report.work)
    spec = spec_of(backbone, weights, side, precision)
    images = pixels(batch, side)
    engine = TorchEngine(spec, weights, device=report.device, batch_size=batch)
    rate = batch / seconds_per_call(lambda: engine.features(images))
    with ThreadPoolExecutor(2) as pool:
        calls = 4 if report.small else 24
        started, busy = time.perf_counter(), time.process_time()
        list(pool.map(lambda _: engine.features(images), range(calls)))
        taken, busy = time.perf_counter() - started, time.process_time() - busy
    two = batch * calls / taken
    report.rate(f"network alone, {precision}, one thread", rate)
    report.add(f"network alone, {precision}, two threads", f"{two:,.0f} images/s", f"{busy / taken:.1f} cores busy")
    on_device = torch.from_numpy(images).to(report.device)
    layouts = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
    for name, layout in ({} if report.small else layouts).items():
        network = InferenceNetwork(spec, weights, layout).to(report.device).eval()
        _variant(report, f"network, {precision}, {name}, no graph", network, on_device)
    if precision == "float32" and not report.small:
        plain = FeatureNetwork(load_backbone(spec, weights), spec.preprocess).to(report.device)
        plain.to(memory_format=torch.channels_last)
        _variant(report, "network, float32, as in 0.1 (not folded, channels last)", plain, on_device)
    return max(rate, two)


def _variant(report: Report, what: str, network: torch.nn.Module, batch: torch.Tensor) -> None:
    with report.part(what), torch.inference_mode():
        taken = seconds_per_call(lambda: network(batch), device=report.device)
        report.rate(what, len(batch) / taken)


def _time_command(
    report: Report, data: Path, backbone: str, precision: str, side: int, limits: dict[str, float]
) -> None:
    weights = weights_of(backbone, report.work).path
    output = report.work / f"{precision}.h5"
    words = ["--backbone", backbone, "--weights", weights, "--size", side, "--device", report.device]
    before = os.times()
    started = time.perf_counter()
    done = command(
        "featurize",
        *("featurize", data, *words, "--precision", precision, "-o", output, "--force", "--json"),
        cwd=report.work,
    )
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    facts = json.loads(done.stdout)
    report.rate(f"xfeat featurize, {precision}", facts["images_per_second"], **limits)
    busy = sum(after[2:4]) - sum(before[2:4])
    report.add(f"xfeat featurize, {precision}, with start-up", f"{wall:.1f} s", f"{busy / wall:.1f} cores busy")

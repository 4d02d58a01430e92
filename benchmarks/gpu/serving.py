"""Serving: where onnxruntime puts the nodes, what a change of the batch size costs, graphs, and the whole server."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gpu.inputs import ROOT, command, exported_folder, jpegs, pixels
from gpu.report import Report, seconds_per_call
from servers.load import Server, closed_loop, form_request, tensor_request

from xfeat.export.model.cuda_graphs import BoundSession
from xfeat.export.model.file import ModelFile, open_model
from xfeat.featurize.system.cores import cores
from xfeat.featurize.system.onnx_session import node_providers
from xfeat.serve.inference.batch_sizes import bucket_sizes
from xfeat.serve.inference.predictor import Predictor

_LARGEST = 64
# Of a probability: what the parity check of an export allows.
_MOST_DIFFERENCE = 1e-4
_MODELS = ("model.onnx", "model.core.onnx")


def ort(report: Report) -> None:
    """Compare onnxruntime on the device with the CPU, in plain runs, in fixed buffers and as CUDA graphs."""
    folder = exported_folder(report)
    largest = 8 if report.small else _LARGEST
    for name in _MODELS:
        with report.part(name):
            _check_model(report, folder / name, largest)
    if not report.small:
        for name in _MODELS:
            with report.part(f"xexport verify {name}"):
                done = command("export", "verify", name, "--data", ROOT / "data", "--require-cuda", cwd=folder)
                said = (done.stdout + done.stderr).strip().splitlines()
                report.add(f"xexport verify {name} --require-cuda", said[-1][:160], ok=done.returncode == 0)


def _check_model(report: Report, path: Path, largest: int) -> None:
    name, sizes = path.name, bucket_sizes(largest)
    cpu = open_model(path)
    started = time.perf_counter()
    model = open_model(path, device=report.device, all_on_gpu=False)
    images = pixels(largest, model.metadata.feature_spec.preprocess.size)
    if isinstance(model.session, BoundSession):
        placed = Counter(provider for provider, _, _ in node_providers(model.session._session))
        report.add(f"{name}: nodes, sizes free", dict(placed))
    report.at_most(f"{name}: a plain run against the CPU", _difference(model, cpu, images), _MOST_DIFFERENCE)
    report.add(f"{name}: a change of the batch size, sizes free", _change(model, images, sizes), "25 to 150 expected")
    model.bind([images[:size] for size in sizes])
    report.add(f"{name}: opened and bound to batches of {sizes}", f"{time.perf_counter() - started:.1f} s")
    if isinstance(model.session, BoundSession):
        report.true(f"{name}: recorded as CUDA graphs", model.session.graphs)
        buffers = next(iter(model.session._bound.values()))
        placed = Counter(provider for provider, _, _ in node_providers(buffers._session))
        report.add(f"{name}: nodes, sizes fixed", dict(placed))
    worst = max(_difference(model, cpu, images[:size]) for size in [*sizes, *reversed(sizes), *sizes])
    report.at_most(f"{name}: bound runs in changing sizes against the CPU", worst, _MOST_DIFFERENCE)
    report.add(f"{name}: a change of the batch size, bound", _change(model, images, sizes), "no more than a batch")
    for size in sizes:
        taken = seconds_per_call(lambda size=size: model.run(images[:size]), least_s=0.3)
        report.add(f"{name}: a batch of {size}", f"{taken * 1e3:.2f} ms", f"{size / taken:,.0f} images/s")


def _difference(model: ModelFile, reference: ModelFile, images: np.ndarray) -> float:
    """Return the largest difference of a probability; the reference runs in batches of 8."""
    found = model.run(images).probabilities
    expected = [reference.run(images[first : first + 8]).probabilities for first in range(0, len(images), 8)]
    return float(np.abs(found - np.concatenate(expected)).max())


def _change(model: ModelFile, images: np.ndarray, sizes: list[int]) -> str:
    """Return milliseconds of the first and the second run of a batch size that was run before, but not just now."""
    found = []
    for size in sizes * 2:
        times = []
        for _ in range(2):
            started = time.perf_counter()
            model.run(images[:size])
            times.append((time.perf_counter() - started) * 1e3)
        found.append(times)
    first, second = np.median(found[len(sizes) :], axis=0)
    return f"{first:.1f} ms, then {second:.1f} ms"


def serve(report: Report) -> None:
    """Time the server with files and with pixels, beside what decoding and the network do alone."""
    model = exported_folder(report) / "model.onnx"
    predictor = Predictor.open(model, report.device)
    predictor.warm_up()
    size = predictor.batch_size
    images = pixels(size, predictor.metadata.feature_spec.preprocess.size)
    limits = {"network": size / seconds_per_call(lambda: predictor.model.run(images))}
    with ThreadPoolExecutor(cores()) as pool:
        files = jpegs() * (1 if report.small else 20)
        started = time.perf_counter()
        list(pool.map(predictor.decode, files))
        decode = len(files) / (time.perf_counter() - started)
    answers = [predictor.predict_bytes(jpegs()[:4]), Predictor.open(model, "cpu").predict_bytes(jpegs()[:4])]
    found, expected = ([list(each.probabilities.values()) for each in some] for some in answers)
    report.at_most("answers against the CPU", float(np.abs(np.subtract(found, expected)).max()), _MOST_DIFFERENCE)
    seconds, clients = (0.5, (4,)) if report.small else (3.0, (1, 16, 64))
    with _server(model, report.device) as server:
        tensors = [tensor_request(model.stem, each) for each in images[:24]]
        forms = [form_request("/predict", "files", each) for each in jpegs()]
        for what, requests, known in (("pixels", tensors, limits), ("files", forms, {"decode": decode, **limits})):
            for count in clients:
                with report.part(f"server, {what}, {count} clients"):
                    load = closed_loop(server, requests, count, seconds)
                    report.rate(f"server, {what}, {count} clients", load.rate, **known)
                    report.add(
                        f"server, {what}, {count} clients: p50 and p99",
                        f"{load.percentile_ms(50):.1f} and {load.percentile_ms(99):.1f} ms",
                        f"{load.errors} errors, {load.refused} refused",
                        load.errors == 0,
                    )


@contextlib.contextmanager
def _server(model: Path, device: str) -> Iterator[Server]:
    code = "from xfeat.serve.cli import main; main()"
    words = ["start", str(model), "--port", "0", "--device", device]
    started = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert started.stdout is not None
        address = re.search(r":(\d+)$", started.stdout.readline().strip())
        if address is None:
            raise RuntimeError("the server did not start")
        yield Server(int(address[1]), started.pid)
    finally:
        started.terminate()
        started.wait(30)

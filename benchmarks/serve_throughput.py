"""Requests per second and latency of ``xserve``, compared with a bare onnxruntime loop and with LitServe.

    python benchmarks/serve_throughput.py [MODEL IMAGES] [--seconds 4] [--clients 1,4,16,64] [--litserve PYTHON]

By default it uses the output of ``make demo``, which only shows that it runs; meaningful figures need real images.

First closed loops with 1 to 64 connections, then open loops at percentages of the best closed loop (see
``servers/load.py``). ``pixels`` sends decoded images as binary tensors, so that the server does the same work as the
bare loop; ``files`` sends the image files. The bare loop runs the same images in batches and does nothing else, in one
session or in as many as the server has, whichever is faster. LitServe serves the same model file from its own
environment (PYTHON is an interpreter with litserve, python-multipart, onnxruntime, pillow and numpy) and decodes with
the same code.

The load generator runs on the same machine; the column ``client`` shows its CPU time. ``per CPU`` compares responses
per second of the server's CPU time with the loop's, and does not depend on the load generator. The loop is measured
before and after everything else: the difference shows how reliable the figures are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from servers.load import Connection, Load, Server, closed_loop, form_request, open_loop, tensor_request

from xfeat.featurize.datasets.unlabelled import list_images
from xfeat.featurize.system.cores import cores
from xfeat.serve.inference.predictor import Predictor

ROOT = Path(__file__).parents[1]
MAX_IMAGES = 64
START_TIMEOUT_S = 60
PERCENTILES = (50, 95, 99)
# Small enough that a few seconds of overload fill it, and large enough for the closed loops.
MAX_QUEUE = 64


@dataclass(frozen=True)
class Bare:
    """Result of the bare loop: images per second, and CPU ms per image."""

    rate: float
    cpu_ms: float


Row = tuple[str, str, Load]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "demo" / "model.onnx")
    parser.add_argument("images", type=Path, nargs="?", default=ROOT / "data" / "test")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--rates", default="50,80,100,150", metavar="PERCENT", help="of the closed loops' best")
    parser.add_argument("--sessions", type=int, default=min(2, cores()))
    parser.add_argument("--litserve", type=Path, metavar="PYTHON")
    options = parser.parse_args()
    files = [path.read_bytes() for path in list_images([options.images])[:MAX_IMAGES]]
    predictor = Predictor.open(options.model, device="cpu")
    pixels = [predictor.decode(content) for content in files]
    before = bare_loop(options.model, pixels, options)
    rows: list[Row] = []
    with xserve(options) as server:
        tensors = [tensor_request(predictor.path.stem, each) for each in pixels]
        rows += closed_loops("xserve, pixels", server, tensors, options)
        rows += all_loops("xserve, files", server, [form_request("/predict", "files", each) for each in files], options)
    if options.litserve is None:
        print("LitServe: skipped, pass an interpreter that has it to --litserve", file=sys.stderr)
    else:
        forms = [form_request("/predict", "request", content) for content in files]
        with litserve(options.litserve, predictor, forms[0]) as server:
            rows += all_loops("LitServe, files", server, forms, options)
    report(before, bare_loop(options.model, pixels, options), rows)


def closed_loops(name: str, server: Server, requests: list[bytes], options: argparse.Namespace) -> list[Row]:
    counts = [int(text) for text in options.clients.split(",")]
    return [(name, f"{count}", closed_loop(server, requests, count, options.seconds)) for count in counts]


def all_loops(name: str, server: Server, requests: list[bytes], options: argparse.Namespace) -> list[Row]:
    rows = closed_loops(name, server, requests, options)
    capacity = max(result.rate for _, _, result in rows)
    for share in options.rates.split(","):
        rate = capacity * float(share) / 100
        rows.append((name, f"{share} %: {rate:.0f}/s", open_loop(server, requests, rate, options.seconds)))
    return rows


def bare_loop(model: Path, pixels: list[np.ndarray], options: argparse.Namespace) -> Bare:
    """Measure onnxruntime alone in batches of the server's size: in one session, and in as many as the server has."""
    found = [_bare_loop(model, pixels, sessions, options.seconds / 2) for sessions in {1, options.sessions}]
    return max(found, key=lambda bare: bare.rate)


def _bare_loop(model: Path, pixels: list[np.ndarray], sessions: int, seconds: float) -> Bare:
    predictors = [Predictor.open(model, "cpu", max(1, cores() // sessions)) for _ in range(sessions)]
    size = predictors[0].batch_size
    batches = [np.stack(pixels[start : start + size]) for start in range(0, len(pixels) - size + 1, size)]
    done = [0] * sessions
    for predictor in predictors:
        predictor.model.run(batches[0])
    started, cpu = time.perf_counter(), time.process_time()

    def loop(number: int) -> None:
        while time.perf_counter() - started < seconds:
            for batch in batches:
                predictors[number].model.run(batch)
                done[number] += len(batch)

    threads = [threading.Thread(target=loop, args=[number]) for number in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = sum(done) / (time.perf_counter() - started)
    return Bare(rate, (time.process_time() - cpu) / sum(done) * 1000)


@contextlib.contextmanager
def xserve(options: argparse.Namespace) -> Iterator[Server]:
    command = [
        sys.executable,
        "-c",
        "from xfeat.serve.cli import main; main()",
        "start",
        str(options.model),
        "--port",
        "0",
    ]
    limits = ["--device", "cpu", "--sessions", str(options.sessions), "--max-queue", str(MAX_QUEUE)]
    with process([*command, *limits]) as started:
        yield Server(int(re.search(r":(\d+)$", started.stdout.readline().strip())[1]), started.pid)


@contextlib.contextmanager
def litserve(python: Path, predictor: Predictor, first: bytes) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).parent / "servers" / "litserve_server.py"
    settings = [str(predictor.path.resolve()), str(port), str(predictor.batch_size), str(cores())]
    side = str(predictor.metadata.feature_spec.preprocess.size)
    with process([str(python), str(script), *settings, side]) as started:
        # It listens long before its worker has loaded the model, and may lose requests until then.
        wait_for_answer(port, first)
        yield Server(port, started.pid)


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(15)
        # LitServe's workers outlive it and keep its output open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        started.stdout.close()


def wait_for_answer(port: int, first: bytes) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while Connection(port, timeout_s=3).ask(first) != 200:
        if time.monotonic() > deadline:
            sys.exit("LitServe does not respond")
        time.sleep(0.2)


def report(before: Bare, after: Bare, rows: list[Row]) -> None:
    rate = statistics.fmean((before.rate, after.rate))
    cpu_ms = statistics.fmean((before.cpu_ms, after.cpu_ms))
    print(f"bare loop: {before.rate:.1f} images/s before, {after.rate:.1f} after; {cpu_ms:.1f} ms of CPU per image")
    print(
        "of bare: responses per second, relative to the loop; per CPU: the same per second of CPU time of the server;"
    )
    print("p50 to p99: ms since a request was due; refused: 503; client: CPU ms per request of the load generator")
    times = " ".join(f"p{share}".rjust(7) for share in PERCENTILES)
    print(
        f"{'':15} {'clients or rate':>15} {'resp./s':>9} {'of bare':>7} {'per CPU':>7} {times} "
        f"{'refused':>7} {'errors':>6} {'client':>6}"
    )
    for name, level, result in rows:
        times = " ".join(f"{result.percentile_ms(share):7.0f}" for share in PERCENTILES)
        ratios = f"{result.rate:9.1f} {result.rate / rate:7.2f} {cpu_ms / result.cpu_ms:7.2f}"
        print(
            f"{name:15} {level:>15} {ratios} {times} {result.refused:7} {result.errors:6} {result.client_cpu_ms:6.2f}"
        )


if __name__ == "__main__":
    main()

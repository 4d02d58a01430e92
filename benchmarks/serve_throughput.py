"""What serving costs: requests a second and latency of ``xserve`` against a bare onnxruntime loop and LitServe.

    python benchmarks/serve_throughput.py [MODEL IMAGES] [--seconds 4] [--concurrency 1,4,16,64] [--litserve PYTHON]

By default on what ``make demo`` left, which shows that it runs; figures that mean something need real images.

Closed loop on this machine's loopback: each of N connections sends its next request when it has the answer to the last.
``pixels`` sends decoded images as binary tensors, so that the server's work is that of the bare loop, which runs the
same images in batches with nothing around it; ``files`` sends the image files. LitServe serves the same model file from
its own environment (PYTHON is an interpreter that has litserve, python-multipart, onnxruntime, pillow and numpy) and
decodes with the same code. The loop is measured before and after everything else: its spread says how far the figures
can be trusted. On a machine that does other work too, the CPU time of a request says more than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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

from featurize.cores import cores
from serve.listing import list_images
from serve.predictor import Predictor

ROOT = Path(__file__).parents[1]
MAX_IMAGES = 64
MAX_REQUESTS = 20_000
ANSWER_TIMEOUT_S = 60
START_TIMEOUT_S = 60
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What a run gave: latencies, numbers of answers and errors, duration, the server's CPU time; in seconds."""

    latencies: list[float]
    answers: int
    errors: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds

    @property
    def cpu_ms(self) -> float:
        return self.cpu_seconds / max(self.answers, 1) * 1000

    def percentile_ms(self, share: float) -> float:
        return float(np.percentile(self.latencies, share)) * 1000 if self.latencies else float("nan")


@dataclass(frozen=True)
class Server:
    """A server that was started: its port and its process group."""

    port: int
    group: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "demo" / "model.onnx")
    parser.add_argument("images", type=Path, nargs="?", default=ROOT / "data" / "test")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--concurrency", default="1,4,16,64")
    parser.add_argument("--litserve", type=Path, metavar="PYTHON")
    options = parser.parse_args()
    levels = [int(text) for text in options.concurrency.split(",")]
    files = [path.read_bytes() for path in list_images([options.images])[:MAX_IMAGES]]
    predictor = Predictor.open(options.model, device="cpu")
    pixels = [predictor.decode(content) for content in files]
    before = bare_loop(predictor, pixels, options.seconds)
    rows: list[tuple[str, int, Load]] = []
    with xserve(options.model) as server:
        tensors = [tensor_request(predictor.path.stem, each) for each in pixels]
        rows += [("xserve, pixels", level, load(server, tensors, level, options.seconds)) for level in levels]
        forms = [form_request("/predict", "files", content) for content in files]
        rows += [("xserve, files", level, load(server, forms, level, options.seconds)) for level in levels]
    if options.litserve is None:
        print("LitServe: skipped, name an interpreter that has it with --litserve PYTHON", file=sys.stderr)
    else:
        forms = [form_request("/predict", "request", content) for content in files]
        with litserve(options.litserve, options.model, predictor, forms[0]) as server:
            rows += [("LitServe, files", level, load(server, forms, level, options.seconds)) for level in levels]
    report(before, bare_loop(predictor, pixels, options.seconds), rows)


def bare_loop(predictor: Predictor, pixels: list[np.ndarray], seconds: float) -> tuple[float, float]:
    """Return images a second and CPU ms an image of onnxruntime alone, in batches of the server's size."""
    size = predictor.batch_size
    batches = [np.stack(pixels[start : start + size]) for start in range(0, len(pixels) - size + 1, size)]
    predictor.session.run(batches[0])
    done, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        for batch in batches:
            predictor.session.run(batch)
            done += len(batch)
    return done / (time.perf_counter() - started), (time.process_time() - cpu) / done * 1000


def load(server: Server, requests: list[bytes], concurrency: int, seconds: float) -> Load:
    """Send requests on so many connections, each the next when it has the answer; the first moment warms up."""
    latencies: list[float] = []
    answers = errors = 0
    lock = threading.Lock()
    start, end = time.perf_counter() + 0.5, time.perf_counter() + 0.5 + seconds

    def send(first: int) -> None:
        nonlocal answers, errors
        mine, answered, failed = [], 0, 0
        with socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = connection.makefile("rb")
            for number in range(first, first + MAX_REQUESTS):
                sent = time.perf_counter()
                if sent >= end:
                    break
                connection.sendall(requests[number % len(requests)])
                status = read_answer(reader)
                # What was sent in the first moment is answered, and paid for, later: it counts, its latency does not.
                answered += time.perf_counter() >= start
                if sent >= start:
                    mine.append(time.perf_counter() - sent)
                    failed += status != 200
        with lock:
            latencies.extend(mine)
            answers += answered
            errors += failed

    threads = [threading.Thread(target=send, args=[number * 7]) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, start - time.perf_counter()))
    cpu = cpu_seconds(server.group)
    for thread in threads:
        thread.join()
    return Load(latencies, answers, errors, time.perf_counter() - start, cpu_seconds(server.group) - cpu)


def cpu_seconds(group: int) -> float:
    """Return the CPU time of a process and its children, by Linux' /proc; elsewhere NaN."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else float("nan")


def read_answer(reader) -> int:
    status = int(reader.readline().split()[1])
    length = 0
    while line := reader.readline().strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    reader.read(length)
    return status


def tensor_request(model: str, pixels: np.ndarray) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    more = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return request(f"/v2/models/{model}/infer", more, head + pixels.tobytes())


def form_request(address: str, field: str, content: bytes) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="a"\r\n\r\n'.encode()
    return request(address, "Content-Type: multipart/form-data; boundary=b\r\n", head + content + b"\r\n--b--\r\n")


def request(address: str, headers: str, body: bytes) -> bytes:
    head = f"POST {address} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def xserve(model: Path) -> Iterator[Server]:
    command = [sys.executable, "-c", "from serve.cli import main; main()", "start", str(model), "--port", "0"]
    with process([*command, "--device", "cpu"]) as started:
        yield Server(int(re.search(r":(\d+)$", started.stdout.readline().strip())[1]), started.pid)


@contextlib.contextmanager
def litserve(python: Path, model: Path, predictor: Predictor, first: bytes) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).parent / "servers" / "litserve_server.py"
    settings = [str(model.resolve()), str(port), str(predictor.batch_size), str(cores())]
    with process(
        [str(python), str(script), *settings, str(predictor.metadata.feature_spec.preprocess.size)]
    ) as started:
        # It listens long before its worker has loaded the model, and may lose what it is asked until then.
        wait_for_answer(port, first)
        yield Server(port, started.pid)


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[1]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
    )
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(15)
        # LitServe's workers outlive it, and hold on to its output.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        started.stdout.close()


def wait_for_answer(port: int, first: bytes) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with (
            contextlib.suppress(OSError, IndexError),
            socket.create_connection(("127.0.0.1", port), timeout=3) as connection,
        ):
            connection.sendall(first)
            if read_answer(connection.makefile("rb")) == 200:
                return
        if time.monotonic() > deadline:
            sys.exit("LitServe does not answer")
        time.sleep(0.2)


def report(before: tuple[float, float], after: tuple[float, float], rows: list[tuple[str, int, Load]]) -> None:
    rate, cpu_ms = (statistics.fmean(pair) for pair in zip(before, after, strict=True))
    print(f"bare loop: {before[0]:.1f} images/s before, {after[0]:.1f} after; {cpu_ms:.1f} ms of CPU an image")
    times = " ".join(f"p{share} ms".rjust(8) for share in PERCENTILES)
    print(f"{'':16} {'clients':>7} {'answers/s':>9} {'of bare':>8} {times} {'errors':>6} {'CPU ms':>7} {'of bare':>8}")
    for name, level, result in rows:
        times = " ".join(f"{result.percentile_ms(share):8.1f}" for share in PERCENTILES)
        work = f"{result.cpu_ms:7.1f} {result.cpu_ms / cpu_ms:8.2f}"
        print(f"{name:16} {level:7} {result.rate:9.1f} {result.rate / rate:8.2f} {times} {result.errors:6} {work}")


if __name__ == "__main__":
    main()

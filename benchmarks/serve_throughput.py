"""What serving costs: requests a second and latency of ``xserve`` against a bare onnxruntime loop and LitServe.

    python benchmarks/serve_throughput.py MODEL IMAGES [--seconds 4] [--concurrency 1,4,16,64] [--litserve PYTHON]

Closed loop on this machine's loopback: each of N connections sends its next request when it has the answer to the last.
``pixels`` sends decoded images as binary tensors, so that the server's work is that of the bare loop, which runs the
same images in batches with nothing around it; ``files`` sends the image files. LitServe serves the same model file from
its own environment (PYTHON is an interpreter that has litserve, python-multipart, onnxruntime, pillow and numpy) and
decodes with the same code. The loop is measured before and after everything else: its spread says how far the figures
can be trusted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.listing import list_images
from serve.predictor import Predictor
from serve.session import available_cores

MAX_IMAGES = 64
MAX_REQUESTS = 20_000
ANSWER_TIMEOUT_S = 60
START_TIMEOUT_S = 60
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What a run of requests gave: latencies in seconds, the number of errors, the duration in seconds."""

    latencies: list[float]
    errors: int
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        return float(np.percentile(self.latencies, share)) * 1000 if self.latencies else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
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
    with xserve(options.model) as port:
        tensors = [tensor_request(predictor.path.stem, each) for each in pixels]
        rows += [("xserve, pixels", level, load(port, tensors, level, options.seconds)) for level in levels]
        forms = [form_request("/predict", "files", content) for content in files]
        rows += [("xserve, files", level, load(port, forms, level, options.seconds)) for level in levels]
    if options.litserve is None:
        print("LitServe: skipped, name an interpreter that has it with --litserve PYTHON", file=sys.stderr)
    else:
        with litserve(options.litserve, options.model, predictor) as port:
            forms = [form_request("/predict", "request", content) for content in files]
            rows += [("LitServe, files", level, load(port, forms, level, options.seconds)) for level in levels]
    report(before, bare_loop(predictor, pixels, options.seconds), rows)


def bare_loop(predictor: Predictor, pixels: list[np.ndarray], seconds: float) -> float:
    """Return images a second of onnxruntime alone, in batches of the size that the server forms."""
    size = predictor.batch_size
    batches = [np.stack(pixels[start : start + size]) for start in range(0, len(pixels) - size + 1, size)]
    predictor.session.run(batches[0])
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in batches:
            predictor.session.run(batch)
            done += len(batch)
    return done / (time.perf_counter() - started)


def load(port: int, requests: list[bytes], concurrency: int, seconds: float) -> Load:
    """Send requests on so many connections, each the next when it has the answer; the first moment warms up."""
    latencies: list[float] = []
    errors = 0
    lock = threading.Lock()
    start, end = time.perf_counter() + 0.5, time.perf_counter() + 0.5 + seconds

    def send(first: int) -> None:
        nonlocal errors
        mine, failed = [], 0
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = connection.makefile("rb")
            for number in range(first, first + MAX_REQUESTS):
                sent = time.perf_counter()
                if sent >= end:
                    break
                connection.sendall(requests[number % len(requests)])
                status = read_answer(reader)
                if sent >= start:
                    mine.append(time.perf_counter() - sent)
                    failed += status != 200
        with lock:
            latencies.extend(mine)
            errors += failed

    threads = [threading.Thread(target=send, args=[number * 7]) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(latencies, errors, time.perf_counter() - start)


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
def xserve(model: Path) -> Iterator[int]:
    command = [sys.executable, "-c", "from serve.cli import main; main()", "start", str(model), "--port", "0"]
    with process([*command, "--device", "cpu"]) as started:
        yield int(re.search(r":(\d+)$", started.stdout.readline().strip())[1])


@contextlib.contextmanager
def litserve(python: Path, model: Path, predictor: Predictor) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).with_name("serve_litserve.py")
    settings = [str(model), str(port), str(predictor.batch_size), str(available_cores())]
    with process([str(python), str(script), *settings, str(predictor.metadata.feature_spec.preprocess.size)]):
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
        time.sleep(3)  # it listens before its worker has loaded the model
        yield port


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[1]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.communicate(timeout=15)
        started.kill()
        started.communicate()


def wait_for(attempt: Callable[[], None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def report(before: float, after: float, rows: list[tuple[str, int, Load]]) -> None:
    bare = statistics.fmean([before, after])
    print(f"bare loop: {before:.1f} images/s before, {after:.1f} after")
    times = " ".join(f"p{share} ms".rjust(8) for share in PERCENTILES)
    print(f"{'':16} {'connections':>11} {'requests/s':>10} {'of bare':>8} {times} {'errors':>6}")
    for name, level, result in rows:
        times = " ".join(f"{result.percentile_ms(share):8.1f}" for share in PERCENTILES)
        print(f"{name:16} {level:11} {result.rate:10.1f} {result.rate / bare:8.2f} {times} {result.errors:6}")


if __name__ == "__main__":
    main()

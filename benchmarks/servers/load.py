"""Load for a server on this machine: requests as bytes, closed and open loops over many connections, and their figures.

Closed loop: each of N connections sends its next request when it has the answer to the last; it finds the capacity.
Open loop: requests are due at random times of a Poisson process, whatever the server does; it shows what clients feel.
A request that starts late because all connections wait is timed from when it was due: a slow server hides nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ANSWER_TIMEOUT_S = 60
WARM_S = 0.5
OPEN_CONNECTIONS = 128
BUSY = 503


@dataclass(frozen=True)
class Server:
    """A server that was started: its port and its process group."""

    port: int
    group: int


@dataclass
class Load:
    """What a run gave: latencies of good answers, numbers of answers by kind, duration and CPU times; in seconds."""

    latencies: list[float] = field(default_factory=list)
    answers: int = 0
    refused: int = 0
    errors: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    client_cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.answers / self.seconds

    @property
    def cpu_ms(self) -> float:
        return self.cpu_seconds / max(self.answers, 1) * 1000

    @property
    def client_cpu_ms(self) -> float:
        return self.client_cpu_seconds / max(self.answers, 1) * 1000

    def percentile_ms(self, share: float) -> float:
        return float(np.percentile(self.latencies, share)) * 1000 if self.latencies else float("nan")


def closed_loop(server: Server, requests: list[bytes], clients: int, seconds: float) -> Load:
    """Send requests on so many connections, each the next when it has the answer; the first moment warms up."""
    start = time.perf_counter() + WARM_S

    def due(first: int) -> Iterator[tuple[int, float]]:
        for number in itertools.count(first * 7):
            now = time.perf_counter()
            if now >= start + seconds:
                return
            yield number, now

    return _run(server, requests, [lambda first=first: due(first) for first in range(clients)], start)


def open_loop(server: Server, requests: list[bytes], rate: float, seconds: float, seed: int = 0) -> Load:
    """Send requests that are due at a fixed mean rate, at random moments, whether or not others have been answered."""
    start = time.perf_counter() + WARM_S
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * (seconds + WARM_S)) + 10)
    moments = start - WARM_S + np.cumsum(gaps)
    schedule = enumerate(moments[moments < start + seconds].tolist())
    lock = threading.Lock()

    def due() -> Iterator[tuple[int, float]]:
        while True:
            with lock:
                following = next(schedule, None)
            if following is None:
                return
            time.sleep(max(0.0, following[1] - time.perf_counter()))
            yield following

    return _run(server, requests, [due] * OPEN_CONNECTIONS, start)


def _run(
    server: Server, requests: list[bytes], sources: list[Callable[[], Iterator[tuple[int, float]]]], start: float
) -> Load:
    result, lock = Load(), threading.Lock()

    def send(source: Callable[[], Iterator[tuple[int, float]]]) -> None:
        connection = Connection(server.port)
        for number, due in source():
            status = connection.ask(requests[number % len(requests)])
            now = time.perf_counter()
            with lock:
                # What was sent in the first moment is answered, and paid for, later: it counts, its latency does not.
                result.answers += status == 200 and now >= start
                if due >= start:
                    result.refused += status == BUSY
                    result.errors += status not in (200, BUSY)
                    if status == 200:
                        result.latencies.append(now - due)
        connection.close()

    threads = [threading.Thread(target=send, args=[source]) for source in sources]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, start - time.perf_counter()))
    cpu, client_cpu = cpu_seconds(server.group), time.process_time()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - start
    result.cpu_seconds = cpu_seconds(server.group) - cpu
    result.client_cpu_seconds = time.process_time() - client_cpu
    return result


class Connection:
    """One connection that is opened again after a failure."""

    def __init__(self, port: int, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> int:
        """Return the status of the answer, or 0 if there is none."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=self._timeout_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._reader = self._socket.makefile("rb")
            self._socket.sendall(request)
            return self._read_answer()
        except (OSError, IndexError):
            self.close()
            return 0

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read_answer(self) -> int:
        status, length = int(self._reader.readline().split()[1]), 0
        while line := self._reader.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self._reader.read(length)
        return status


def cpu_seconds(group: int) -> float:
    """Return the CPU time of a process and its children, by Linux' /proc; elsewhere NaN."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else float("nan")


def tensor_request(model: str, pixels: np.ndarray) -> bytes:
    """Return a request of the Open Inference Protocol with pixels as a binary tensor."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    more = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return _request(f"/v2/models/{model}/infer", more, head + pixels.tobytes())


def form_request(address: str, name: str, content: bytes) -> bytes:
    """Return a request with one image file in a form."""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
    return _request(address, "Content-Type: multipart/form-data; boundary=b\r\n", head + content + b"\r\n--b--\r\n")


def _request(address: str, headers: str, body: bytes) -> bytes:
    head = f"POST {address} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body

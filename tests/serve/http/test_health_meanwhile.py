"""Others are answered while a costly request is under way. With ``-s`` it prints the table of docs/serve-http.md.

The server is a process of its own, as users start it: its memory is measured, and the lock of its interpreter matters.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SIZE = 31 << 20
AT_ONCE = 3
FORM = {"content-type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'


def tensor(data: bytes = b"[1,2,3]", shape: bytes = b"[1,1,1,3]", datatype: bytes = b"UINT8") -> bytes:
    return b'{"inputs":[{"name":"image","datatype":"%s","shape":%s,"data":%s}]}' % (datatype, shape, data)


def many(item: bytes, size: int = SIZE) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def pixels(height: int, width: int) -> bytes:
    row = b"[" + b",".join([b"[200,7,31]"] * width) + b"]"
    return tensor(b"[[" + b",".join([row] * height) + b"]]", b"[1,%d,%d,3]" % (height, width))


def noise(kind: str, side: int, **options: object) -> bytes:
    file = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for number in range(200):
            written.writestr(f"{number}.dcm", bytes(128) + b"DICM" + bytes(150_000))
    return file.getvalue()


def binary(content: bytes) -> tuple[bytes, dict[str, str]]:
    data = len(content).to_bytes(4, "little") + content
    one = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"inputs": [one]}).encode()
    return header + data, {"Inference-Header-Content-Length": str(len(header))}


JSON = {"content-type": "application/json"}
INFER = "/v2/models/model/infer"
Request = tuple[str, bytes, dict[str, str]]
# What it is, how to make it, and its status.
REQUESTS: dict[str, tuple[Callable[[], Request], int]] = {
    "pixels in JSON": (lambda: (INFER, pixels(1700, 1650), JSON), 200),
    "JSON of numbers, too many": (lambda: (INFER, tensor(many(b"200")), JSON), 400),
    "JSON of fractions": (lambda: (INFER, tensor(many(b"0.5")), JSON), 400),
    "JSON of empty lists": (lambda: (INFER, tensor(many(b"[]")), JSON), 400),
    "JSON of nested lists": (lambda: (INFER, tensor(b"[" * (SIZE // 2) + b"]" * (SIZE // 2)), JSON), 400),
    "JSON of objects": (lambda: (INFER, tensor(many(b"{}")), JSON), 413),
    "JSON of long numbers": (lambda: (INFER, tensor(shape=many(b"9" * 4000)), JSON), 400),
    "JSON of escapes": (lambda: (INFER, tensor(b'["' + b"\\u0025" * (SIZE // 6) + b'"]', b"[1]", b"BYTES"), JSON), 400),
    "base64 of an image": (
        lambda: (INFER, tensor(b'["%s"]' % base64.b64encode(noise("PNG", 2700)), b"[1]", b"BYTES"), JSON),
        200,
    ),
    "base64 of nothing": (lambda: (INFER, tensor(b'["' + b"A" * SIZE + b'"]', b"[1]", b"BYTES"), JSON), 400),
    "binary image": (lambda: (INFER, *binary(noise("PNG", 3000))), 200),
    "binary nothing": (lambda: (INFER, *binary(bytes(SIZE))), 400),
    "form of 100,000 parts": (lambda: ("/predict", (PART + b"\r\n") * 100_000 + b"--b--", FORM), 413),
    "form of line ends": (lambda: ("/predict", PART + b"\r\n" * (SIZE // 2) + b"\r\n--b--", FORM), 422),
    "form of an image": (lambda: ("/predict", PART + noise("BMP", 3000) + b"\r\n--b--", FORM), 200),
    "gzip of 1 GiB": (
        lambda: ("/predict", gzip.compress(bytes(1 << 30)), {"content-encoding": "gzip", "content-type": "image/png"}),
        413,
    ),
    "gzip of pixels in JSON": (
        lambda: (INFER, gzip.compress(pixels(1700, 1650)), JSON | {"content-encoding": "gzip"}),
        200,
    ),
    "zip of DICOM": (lambda: ("/predict", archive(), {"content-type": "application/octet-stream"}), 422),
    "progressive JPEG": (
        lambda: ("/predict", noise("JPEG", 4500, progressive=True), {"content-type": "image/jpeg"}),
        200,
    ),
    "preview of a TIFF": (lambda: ("/preview", noise("TIFF", 3200), {"content-type": "image/tiff"}), 200),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny) -> Iterator[tuple[httpx.Client, int]]:  # type: ignore[no-untyped-def]
    """Return a client of a server, and the server's process."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(tiny.build(tiny.describe(), ood=True, heatmap=True), path)
    start = [sys.executable, "-c", "from xfeat.serve.cli import main; main()", "start"]
    process = subprocess.Popen([*start, str(path), "--port", "0", "--json"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        with httpx.Client(base_url=json.loads(process.stdout.readline())["url"], timeout=120) as client:
            yield client, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


def memory_mb(process: int, name: str = "VmRSS") -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) // 1024


@pytest.mark.parametrize("kind", REQUESTS)
def test_health_is_answered_while_requests_are_under_way(server: tuple[httpx.Client, int], kind: str) -> None:
    client, process = server
    make, status = REQUESTS[kind]
    path, content, headers = make()
    replies: list[tuple[int, bytes]] = []

    def send() -> None:
        # Not httpx: it would hold this interpreter's lock, for which the questions wait as well.
        with contextlib.closing(HTTPConnection(client.base_url.host, client.base_url.port, timeout=120)) as connection:
            connection.request("POST", path, content, headers)
            reply = connection.getresponse()
            replies.append((reply.status, reply.read()))

    client.get("/health")
    Path(f"/proc/{process}/clear_refs").write_text("5")  # forgets the highest
    before, started, waits = memory_mb(process), time.perf_counter(), []
    threads = [threading.Thread(target=send) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        asked = time.perf_counter()
        assert client.get("/health").status_code == 200
        waits.append(time.perf_counter() - asked)
        time.sleep(0.002)
    took, slowest, median = time.perf_counter() - started, max(waits) * 1000, statistics.median(waits) * 1000
    sys.stdout.write(
        f"\n| {kind}, {len(content) / 1e6:.0f} MB | {replies[0][0]} | {took:.1f} s | "
        f"{slowest:.0f} ms | {median:.0f} ms | {before} → {memory_mb(process, 'VmHWM')} → {memory_mb(process)} MB |"
    )
    assert {found for found, _ in replies} == {status}, replies[0][1]
    assert max(waits) < 0.5

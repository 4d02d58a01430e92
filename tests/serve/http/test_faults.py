"""Provoked faults of the server: they affect only the request that causes them, and the next one is answered."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import xfeat.serve.http.preview
from tests.serve.sharing import HeldPredictor, upload
from xfeat.serve.inference.results import Prediction
from xfeat.serve.models.batching import Batcher

pytestmark = pytest.mark.slow


def wait_until(true, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def raw_request(content, headers="Content-Type: multipart/form-data; boundary=b", route="/predict"):
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\n{headers}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def form(content):
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return head + content + b"\r\n--b--\r\n"


def test_an_internal_error_in_a_batch_affects_only_the_image_that_causes_it(predictor, tiny, monkeypatch):
    original = predictor.infer

    def defect(names, pixels, **wanted):
        if "faulty" in names:
            raise ZeroDivisionError("an internal error")
        return original(names, pixels, **wanted)

    monkeypatch.setattr(predictor, "infer", defect)
    batcher = Batcher(predictor, max_queue=20, max_batch=8, batch_wait_s=0.2)
    picture = tiny.draw((5, 5, 5))
    futures = batcher.submit([(name, picture) for name in ("a", "faulty", "b", "c")])
    assert isinstance(futures[1].exception(30), ZeroDivisionError)
    assert all(isinstance(futures[place].result(30), Prediction) for place in (0, 2, 3))
    batcher.close()
    assert batcher.pending == 0


def test_images_of_a_client_that_has_disconnected_are_not_computed(model, serve_model, tiny):
    held = HeldPredictor.open(model, device="cpu")
    with serve_model(held, max_batch=1) as client, ThreadPoolExecutor() as pool:
        blocker = pool.submit(client.post, "/predict", files=upload(("blocker.png", tiny.draw((1, 1, 1)))))
        wait_until(lambda: client.get("/health").json()["queue"] == 1)
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address) as leaving:
            leaving.sendall(raw_request(form(tiny.draw((2, 2, 2)))))
            wait_until(lambda: client.get("/health").json()["queue"] == 2)
        wait_until(lambda: '{route="/predict",status="499"} 1.0' in client.get("/metrics").text)
        held.gate.set()
        assert blocker.result(30).status_code == 200
        wait_until(lambda: client.get("/health").json()["queue"] == 0)
        assert client.post("/predict", files=upload(("later.png", tiny.draw((3, 3, 3))))).status_code == 200
    assert held.batches == [["blocker.png"], ["later.png"]]


@pytest.mark.parametrize("path", ["/predict", "/preview", "/v2/models/model/infer"])
def test_a_client_that_disconnects_while_it_sends_is_499(client, path):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
        leaving.sendall(
            head.replace("image/png", "application/json" if "v2" in path else "image/png").encode() + b"part"
        )
    route = path.replace("/model/", "/{name}/")
    wait_until(lambda: f'{{route="{route}",status="499"}} 1.0' in client.get("/metrics").text)


def set_answer_timeout(client, timeout_s):
    """Set the time limit of requests from now on."""
    client.service.spec = replace(client.service.spec, answer_timeout_s=timeout_s)


def test_a_prediction_that_takes_too_long_is_504_and_is_cancelled(model, serve_model, tiny):
    held = HeldPredictor.open(model, device="cpu")
    picture = tiny.draw((1, 1, 1))
    with serve_model(held, max_batch=1) as client, ThreadPoolExecutor() as pool:
        running = pool.submit(client.post, "/predict", files=upload(("running", picture)))
        assert held.entered.wait(30)
        set_answer_timeout(client, 0.05)
        assert client.post("/predict", files=upload(("waiting", picture))).status_code == 504
        set_answer_timeout(client, 30)
        held.gate.set()
        assert running.result(30).status_code == 200
        assert client.post("/predict", files=upload(("later", picture))).status_code == 200
    assert held.batches == [["running"], ["later"]]


@pytest.fixture
def held_drawing(monkeypatch):
    """Let pictures wait for a gate before they are drawn, one at a time.

    Return the gate, what waits in the queue (what each task holds), and what was drawn.
    """
    gate, queued, drawn = threading.Event(), [], []

    class Noting(ThreadPoolExecutor):
        def submit(self, work, held, *more):
            queued.append(held)
            return super().submit(work, held, *more)

    def draw(content, *_):
        drawn.append(content)
        assert gate.wait(30)
        return b"picture"

    monkeypatch.setattr(xfeat.serve.http.preview, "draw_preview", draw)
    monkeypatch.setattr(xfeat.serve.http.preview, "cores", lambda: 1)
    monkeypatch.setattr(xfeat.serve.http.preview, "ThreadPoolExecutor", Noting)
    return gate, queued, drawn


def test_a_preview_for_a_client_that_has_disconnected_is_not_drawn(predictor, serve_model, held_drawing):
    gate, queued, drawn = held_drawing
    with serve_model(predictor) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/preview", content=b"first")
        wait_until(lambda: drawn)
        with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
            leaving.sendall(raw_request(b"gone", "Content-Type: image/tiff", "/preview"))
            wait_until(lambda: queued == [[], [b"gone"]])
        wait_until(lambda: '{route="/preview",status="499"} 1.0' in client.get("/metrics").text)
        assert queued == [[], []]  # its bytes, which are no longer counted, are freed before its turn
        gate.set()
        assert first.result(30).content == b"picture"
        assert client.post("/preview", content=b"later").content == b"picture"
    assert drawn == [b"first", b"later"]


def test_too_many_waiting_previews_are_503(predictor, serve_model, held_drawing, monkeypatch):
    gate, queued, drawn = held_drawing
    monkeypatch.setattr(xfeat.serve.http.preview, "_MAX_WAITING", 1)
    with serve_model(predictor) as client, ThreadPoolExecutor() as pool:
        taken = [pool.submit(client.post, "/preview", content=b"taken") for _ in range(2)]
        wait_until(lambda: drawn and len(queued) == 2)
        refused = client.post("/preview", content=b"refused")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        gate.set()
        assert [reply.result(30).status_code for reply in taken] == [200, 200]
    assert drawn == [b"taken", b"taken"]


def test_a_preview_that_takes_too_long_is_504_and_is_cancelled(predictor, serve_model, held_drawing):
    gate, queued, drawn = held_drawing
    with serve_model(predictor) as client, ThreadPoolExecutor() as pool:
        running = pool.submit(client.post, "/preview", content=b"running")
        wait_until(lambda: drawn)
        set_answer_timeout(client, 0.05)
        assert client.post("/preview", content=b"waiting").status_code == 504
        assert queued == [[], []]
        set_answer_timeout(client, 30)
        gate.set()
        assert running.result(30).content == b"picture"
        assert client.post("/preview", content=b"later").content == b"picture"
    assert drawn == [b"running", b"later"]


def test_requests_that_together_need_too_much_memory_are_503_until_others_are_answered(model, serve_model, tiny):
    held = HeldPredictor.open(model, device="cpu")
    padded = tiny.draw((1, 1, 1)) + bytes(6000)
    with serve_model(held, max_body_bytes=8000, max_memory_bytes=10_000) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.post, "/predict", files=upload(("a.png", padded)))
        wait_until(lambda: client.get("/health").json()["queue"] == 1)
        refused = client.post("/predict", files=upload(("b.png", padded)))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert 'xfeat_requests_refused_total{limit="memory"} 1.0' in client.get("/metrics").text
        held.gate.set()
        assert waiting.result(30).status_code == 200
        assert client.post("/predict", files=upload(("c.png", padded))).status_code == 200


def test_the_byte_count_returns_to_zero_after_every_kind_of_request(predictor, tiny, serve_model):
    with serve_model(predictor, max_body_bytes=5000) as client:
        limits = client.service.body_limits
        for content in (form(tiny.draw((1, 1, 1))), form(b"text"), b"--b damaged", bytes(6000), form(b"")):
            client.post("/predict", content=content, headers={"content-type": "multipart/form-data; boundary=b"})
        with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
            leaving.sendall(raw_request(form(bytes(1000)))[:-500])
            wait_until(lambda: limits.held_bytes > 0)
        wait_until(lambda: limits.held_bytes == 0)


def test_an_upload_needs_no_disk(client, tiny, monkeypatch):
    """Files above 1 MiB would go to a temporary file in Starlette's own parser; here there is no folder for one."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    padded = tiny.draw((255, 0, 0)) + bytes(3 << 20)
    reply = client.post("/predict", files=upload(("a.png", padded)))
    assert reply.json()["predictions"][0]["label"] == "covid"


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_client_that_never_finishes_its_headers_is_disconnected(predictor, tiny, serve_model, sent):
    with serve_model(predictor, header_timeout_s=0.2) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as slow:
            slow.sendall(sent)
            assert slow.recv(100) == b""
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = http.client.HTTPResponse(slow)
            answer.begin()
            assert (answer.status, bool(answer.read())) == (200, True)  # head and body may come one after the other
            slow.sendall(sent or b"G")
            assert slow.recv(100) == b""
        assert client.post("/predict", files=upload(("a.png", tiny.draw((1, 1, 1))))).status_code == 200


IDENTIFIED = json.dumps(
    {"id": "7" * 60_000, "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}]}
).encode()
UNREAD = {
    "pages": b"GET /page.js HTTP/1.1\r\nHost: x\r\n\r\n",
    "descriptions": b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
    "tensors": raw_request(IDENTIFIED, "Content-Type: application/json", "/v2/models/model/infer"),
    "errors": b"GET /" + b"x" * 8000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


def connect_without_reading(client):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect((client.base_url.host, client.base_url.port))
    return connection


def send_for_ever(connection, request):
    connection.settimeout(30)
    while True:  # at first the systems of both ends store the responses
        connection.sendall(request)
        time.sleep(0.001)


@pytest.mark.parametrize("kind", UNREAD)
def test_a_client_that_never_reads_its_responses_is_disconnected(predictor, serve_model, kind):
    with serve_model(predictor, body_timeout_s=1) as client, connect_without_reading(client) as deaf:
        with pytest.raises(ConnectionError):
            send_for_ever(deaf, UNREAD[kind])
        wait_until(lambda: client.service.body_limits.held_bytes == 0)
        assert client.get("/health").status_code == 200


def test_a_client_may_take_its_time_for_reading(predictor, serve_model):
    with serve_model(predictor, body_timeout_s=2) as client, connect_without_reading(client) as slow:
        slow.sendall(UNREAD["tensors"] * 60)
        read = 0
        while read < 60 * 60_000:  # less than the server sends
            read += len(slow.recv(60_000))
            time.sleep(0.0005)
        assert client.service.body_limits.held_bytes < 60_000


@pytest.mark.parametrize("where", ["header", "url"])
@pytest.mark.parametrize("size", [66, 128])
def test_headers_over_64_kib_are_rejected_even_in_one_piece(client, size, where):
    filler = b"y" * (size * 1024)
    url, header = (b"/health?" + filler, b"y") if where == "url" else (b"/health", filler)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # the server does not read the rest
            connection.sendall(b"GET " + url + b" HTTP/1.1\r\nHost: x\r\nX-Large: " + header + b"\r\n\r\n")
        reply = connection.recv(4096)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"larger than 64 KiB" in reply
    assert client.get("/health").status_code == 200


def test_headers_up_to_64_kib_and_a_large_body_in_one_piece_are_answered(client):
    content = b"x" * 200_000
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(raw_request(content, "X-Large: " + "y" * 64_000, "/preview"))
        assert connection.recv(100).startswith(b"HTTP/1.1 422 ")


def test_no_thread_for_previews_is_left_when_the_server_has_stopped(predictor, serve_model, tiny):
    def preview_threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("preview")]

    with serve_model(predictor) as client:
        assert client.post("/preview", content=tiny.draw((1, 2, 3))).status_code == 200
        assert preview_threads()
    assert not preview_threads()


def test_the_header_timeout_does_not_apply_while_a_request_is_processed(model, tiny, serve_model):
    held = HeldPredictor.open(model, device="cpu")
    with serve_model(held, header_timeout_s=0.1) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.post, "/predict", files=upload(("a.png", tiny.draw((1, 1, 1)))))
        wait_until(lambda: client.get("/health").json()["queue"] == 1)
        time.sleep(0.3)
        held.gate.set()
        assert waiting.result(30).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--b",
        b"--b\r\n\r\n\r\n--b--",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx',
        b"--b\r\n" + b"X: y\r\n" * 10_000,
        b"\r\n" * 10_000,
        form(b"x") * 50,
    ],
)
def test_a_damaged_form_is_an_error_with_a_message(client, tiny, content):
    reply = client.post("/predict", content=content, headers={"content-type": "multipart/form-data; boundary=b"})
    assert 400 <= reply.status_code < 500
    assert reply.json()["error"]
    assert client.post("/predict", files=upload(("a.png", tiny.draw((1, 1, 1))))).status_code == 200


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "hex", "idna", "nonsense", "utf-16"])
def test_no_character_set_of_a_form_breaks_the_response(client, tiny, charset):
    """UTF-7 can encode a lone surrogate, which no JSON response can hold."""
    content = form(tiny.draw((1, 1, 1))).replace(b"a.png", b"+2AA-\\ud800.png")
    content_type = f"multipart/form-data; boundary=b; charset={charset}"
    reply = client.post("/predict", content=content, headers={"content-type": content_type})
    assert reply.status_code in (200, 400, 422)

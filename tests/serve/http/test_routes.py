"""``POST /predict`` over a real connection: predictions, limits, a full queue, a clean stop."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse

import httpx
import numpy as np
import pytest

from tests.serve.sharing import HeldPredictor, upload
from xfeat.featurize.errors import SpecError
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.specs import ServeSpec


def test_predictions_are_in_order_and_unreadable_files_are_listed(client, tiny):
    colours = {"red.png": (255, 0, 0), "green.png": (0, 255, 0)}
    files = [(name, tiny.draw(colour)) for name, colour in colours.items()]
    reply = client.post("/predict", files=upload(files[0], ("notes.txt", b"text"), files[1]))
    assert reply.status_code == 200
    body = reply.json()
    assert set(body) == {"model", "predictions", "skipped"}
    assert body["model"] == "model.onnx"
    assert [prediction["path"] for prediction in body["predictions"]] == list(colours)
    for prediction in body["predictions"]:
        assert set(prediction) == {"path", "label", "probabilities", "ood", "ood_threshold", "in_distribution"}
        expected = tiny.reference(colours[prediction["path"]])
        np.testing.assert_allclose(list(prediction["probabilities"].values()), expected, atol=1e-6)
        assert prediction["label"] == tiny.classes[expected.argmax()]
        assert prediction["ood"] is None
    assert body["skipped"] == [
        {"path": "notes.txt", "reason": "text, not a JPEG, PNG, BMP, TIFF, WEBP, GIF, JPEG2000, PPM, AVIF image"}
    ]


def test_no_readable_image_is_422_and_says_why(client):
    reply = client.post("/predict", files=upload(("a.png", b"text"), ("b.png", b"")))
    assert reply.status_code == 422
    assert reply.json()["error"] == "none of the files is a readable image"
    assert [image["path"] for image in reply.json()["skipped"]] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("request_parts", "status"),
    [
        ({"files": [("other", ("a.png", b"x"))]}, 422),
        ({"json": {}}, 415),
        ({}, 415),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400),
    ],
    ids=["other field", "json", "nothing", "no boundary", "damaged"],
)
def test_a_request_without_image_files_is_an_error_with_a_message(client, request_parts, status):
    reply = client.post("/predict", **request_parts)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]


def test_a_declared_size_over_the_limit_is_413_before_the_body_arrives(predictor, serve_model):
    with serve_model(predictor, max_body_bytes=1000) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                b"Content-Length: 1001\r\n\r\n"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        assert client.get("/health").json()["queue"] == 0


def status_of_whole_reply(connection):
    """Read headers and body, however many packets they come in."""
    reply = HTTPResponse(connection)
    reply.begin()
    reply.read()
    return reply.status


def test_a_body_after_an_early_response_does_not_count_as_headers(client):
    """404 is sent before the body has been read; the rest of the body was once counted as headers."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
        assert status_of_whole_reply(connection) == 404
        for _ in range(30):
            connection.sendall(b"x" * 10_000)
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of_whole_reply(connection) == 200


def test_a_body_over_the_limit_is_413_without_a_declared_size(predictor, serve_model, tiny):
    with serve_model(predictor, max_body_bytes=2000) as client:
        sent = []

        def chunks():
            yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            for number in range(30):
                sent.append(number)
                yield b"x" * 100

        reply = client.post("/predict", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b"})
        assert reply.status_code == 413
        assert "MiB" in reply.json()["error"]
        assert client.post("/predict", files=upload(("a.png", tiny.draw((1, 2, 3))))).status_code == 200


@pytest.mark.parametrize(("number", "status"), [(3, 200), (4, 413), (40, 413)])
def test_more_files_than_allowed_are_413(predictor, serve_model, tiny, number, status):
    with serve_model(predictor, max_files=3) as client:
        reply = client.post("/predict", files=upload(*[("a.png", tiny.draw((1, 2, 3)))] * number))
        assert reply.status_code == status


def test_a_client_that_sends_too_slowly_gets_408(predictor, serve_model):
    with (
        serve_model(predictor, body_timeout_s=0.2) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection,
    ):
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 100\r\n\r\n--b"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def wait_for_queue(client, length):
    while client.get("/health").json()["queue"] != length:
        time.sleep(0.01)


def test_a_full_queue_is_503_with_retry_after_while_health_still_answers(model, serve_model, tiny):
    held = HeldPredictor.open(model, device="cpu")
    picture = ("a.png", tiny.draw((5, 5, 5)))
    with serve_model(held, max_files=2, max_queue=2) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.post, "/predict", files=upload(picture, picture))
        wait_for_queue(client, 2)
        refused = client.post("/predict", files=upload(picture))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "too busy" in refused.json()["error"]
        held.gate.set()
        assert waiting.result().status_code == 200
        assert client.post("/predict", files=upload(picture)).status_code == 200


def test_an_image_that_the_model_fails_on_affects_no_other_request(write_model, serve_model, tiny):
    predictor = Predictor.open(write_model(fails_above=True))
    with serve_model(predictor, batch_wait_ms=100) as client, ThreadPoolExecutor(8) as pool:
        fine, white = ("fine.png", tiny.draw((10, 20, 30))), ("white.png", tiny.draw((255, 255, 255)))
        replies = list(pool.map(lambda file: client.post("/predict", files=upload(file)), [fine, white] * 4))
        assert [reply.status_code for reply in replies] == [200, 500] * 4
        assert replies[1].json() == {
            "error": "the model failed on every image",
            "skipped": [{"path": "white.png", "reason": "the model failed on it"}],
        }
        mixed = client.post("/predict", files=upload(white, fine)).json()
        assert [image["path"] for image in mixed["skipped"]] == ["white.png"]
        assert [prediction["path"] for prediction in mixed["predictions"]] == ["fine.png"]


def test_stopping_answers_what_was_accepted(model, serve_model, tiny):
    held = HeldPredictor.open(model, device="cpu")
    picture = upload(("a.png", tiny.draw((5, 5, 5))))
    with ThreadPoolExecutor() as pool:
        with serve_model(held) as client:
            address = f"{client.base_url}/predict"
            waiting = pool.submit(httpx.post, address, files=picture, timeout=30, trust_env=False)
            wait_for_queue(client, 1)
            threading.Timer(0.3, held.gate.set).start()
        assert waiting.result(30).status_code == 200


def test_an_internal_error_is_500_without_a_traceback_for_the_client(predictor, serve_model, tiny, monkeypatch):
    def defect(names, pixels, **wanted):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(predictor, "infer", defect)
    with serve_model(predictor) as client:
        reply = client.post("/predict", files=upload(("a.png", tiny.draw((5, 5, 5)))))
    assert reply.status_code == 500
    assert reply.json() == {"error": "internal server error; see the server's log"}
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_file_name_in_any_script_is_returned_unchanged(client, tiny):
    name = "Röntgen 胸部 <b>.png"
    reply = client.post("/predict", files=upload((name, tiny.draw((5, 5, 5)))))
    assert reply.json()["predictions"][0]["path"] == name


@pytest.mark.parametrize("limits", [{"max_queue": 3}, {"max_files": 0}, {"max_batch": 0}, {"batch_wait_ms": -1}])
def test_invalid_limits_are_rejected(limits):
    with pytest.raises(SpecError):
        ServeSpec(**limits)

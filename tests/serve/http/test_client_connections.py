"""Methods and connections as clients use them: HEAD, OPTIONS, half closed, offered for HTTP 2, with a large request."""

from __future__ import annotations

import http.client
import json
import socket

import pytest

from tests.serve.http.test_clients import INFER, RED
from xfeat.serve.inference.predictor import Predictor

GET_ROUTES = ("/", "/docs", "/openapi.json", "/health", "/metrics", "/model", "/v2", "/v2/models/model")


@pytest.fixture(scope="module")
def client(fuzz_client):
    """Return a client of one server for all requests."""
    return fuzz_client


@pytest.mark.parametrize("address", [*GET_ROUTES, "/v2/health/live", "/v2/models/model/config"])
def test_head_is_get_without_the_body(client, address):
    reply = client.head(address)
    assert (reply.status_code, reply.content) == (200, b"")
    same = {"content-type", "content-security-policy"} | (set() if address == "/metrics" else {"content-length"})
    assert {name: reply.headers[name] for name in same} == {name: client.get(address).headers[name] for name in same}


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("/health", "GET, HEAD, OPTIONS"), ("/predict", "POST, OPTIONS"), (INFER, "POST, OPTIONS"), ("/", None)],
)
def test_options_names_the_methods_and_so_does_405(client, address, allowed):
    reply = client.options(address)
    assert (reply.status_code, reply.content) == (204, b"")
    assert allowed in (None, reply.headers["allow"])
    refused = client.request("DELETE", address)
    assert (refused.status_code, refused.headers["allow"]) == (405, reply.headers["allow"])
    assert "DELETE is not possible at" in refused.json()["error"]


def test_an_unknown_address_says_where_the_routes_are(client):
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        reply = client.request(method, "/nothing")
        assert reply.status_code == 404
        assert method == "HEAD" or reply.json()["error"] == "there is nothing at /nothing; /docs lists the routes"


@pytest.fixture
def connect(client):
    return lambda: socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)


def read(connection, method="GET"):
    reply = http.client.HTTPResponse(connection, method=method)
    reply.begin()
    return reply.status, reply.read()


def request(method, address, body=b"", *headers):
    lines = [f"{method} {address} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def test_a_client_that_has_closed_its_side_is_answered_and_then_disconnected(connect, tiny):
    with connect() as connection:
        connection.sendall(request("POST", "/predict", tiny.draw(RED), "Content-Type: image/png"))
        connection.shutdown(socket.SHUT_WR)
        status, body = read(connection)
        assert (status, json.loads(body)["predictions"][0]["label"]) == (200, "covid")
        assert connection.recv(1) == b""


def test_half_closed_clients_of_several_requests_get_all_answers(connect):
    with connect() as connection:
        connection.sendall(request("GET", "/v2/health/live") * 3)
        connection.shutdown(socket.SHUT_WR)
        content = b"".join(iter(lambda: connection.recv(4096), b""))
    assert content.count(b"HTTP/1.1 200 OK") == content.count(b'{"live":true}') == 3


def test_a_half_closed_client_waits_for_a_slow_answer(model, serve_model, tiny):
    import time

    class Slow(Predictor):
        def infer(self, names, pixels, **wanted):
            time.sleep(0.6)
            return super().infer(names, pixels, **wanted)

    with (
        serve_model(Slow.open(model, device="cpu")) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection,
    ):
        connection.sendall(request("POST", "/predict", tiny.draw(RED), "Content-Type: image/png"))
        connection.shutdown(socket.SHUT_WR)
        assert read(connection)[0] == 200  # after 100 Continue, which clients skip


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")


def test_options_of_the_whole_server_is_204(connect):
    with connect() as connection:
        connection.sendall(request("OPTIONS", "*"))
        assert read(connection) == (204, b"")


def test_an_offer_of_http_2_is_declined_and_the_connection_goes_on(connect, tiny):
    """As curl --http2 and Java's HttpClient send every request on a connection without TLS."""
    with connect() as connection:
        for _ in range(2):
            picture = tiny.draw(RED)
            connection.sendall(request("POST", "/predict", picture, "Content-Type: image/png", *UPGRADE))
            assert read(connection)[0] == 200
            whole = request("POST", "/predict", picture, "Content-Type: image/png", *UPGRADE)
            for at in range(0, len(whole), 50):
                connection.sendall(whole[at : at + 50])
            assert read(connection)[0] == 200
            connection.sendall(request("GET", "/v2/health/live", b"", *UPGRADE))
            assert read(connection)[0] == 200


def test_a_large_request_that_is_refused_gets_its_reason_and_not_a_reset(predictor, serve_model):
    with serve_model(predictor, max_body_bytes=1000, api_key="key") as client:
        for key, status, words in (("wrong", 401, b"API key"), ("key", 413, b"larger than")):
            sender = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
            sender.request("POST", "/predict", bytes(20 << 20), {"Content-Type": "image/png", "X-API-Key": key})
            reply = sender.getresponse()
            assert (reply.status, words in reply.read()) == (status, True)
            sender.close()

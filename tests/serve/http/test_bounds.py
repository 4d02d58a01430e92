"""Requests made to cost more than they weigh: each is refused with a reason, in memory of a few times its size."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import tracemalloc

import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from xfeat.serve.http.protocol.requests import parse_request

SIZE = 4 << 20


def tensor(data=b"[1,2,3]", shape=b"[1,1,1,3]", datatype=b"UINT8"):
    return b'{"inputs":[{"name":"image","datatype":"%s","shape":%s,"data":%s}]}' % (datatype, shape, data)


def many(item, size=SIZE):
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def texts(text):
    return tensor(b'["' + text + b'"]', b"[1]", b"BYTES")


DIGITS = b"9" * 4000
COSTLY = {
    "a shape of long numbers": (tensor(shape=many(DIGITS, 1 << 15)), 400, "shape must be"),
    "a longer shape of long numbers": (tensor(shape=many(DIGITS)), 400, "shape must be"),
    "a shape of many axes": (tensor(shape=many(b"1", 1 << 15)), 400, "at most 8 axes"),
    "a longer shape of many axes": (tensor(shape=many(b"1")), 400, "shape must be"),
    "numbers of too many digits": (tensor(shape=b"[" + b"9" * 5000 + b"]"), 400, "not JSON"),
    "a product of axes": (tensor(shape=b"[64,65535,65535,3]"), 400, "integers from 0 to 255"),
    "a long side": (tensor(shape=b"[1,1,65536,3]"), 400, "from 1 to 65535"),
    "data of long numbers": (tensor(many(DIGITS)), 400, "integers from 0 to 255"),
    "data of floats": (tensor(many(b"0.1234567")), 400, "integers from 0 to 255"),
    "data of objects": (tensor(many(b"{}")), 413, "1 MiB"),
    "data of lists": (tensor(many(b"[]")), 400, "integers from 0 to 255"),
    "data of short strings": (tensor(many(b'"ab"')), 413, "1 MiB"),
    "deep data": (tensor(b"[" * (SIZE // 2) + b"]" * (SIZE // 2)), 400, "integers from 0 to 255"),
    "inputs that are objects": (b'{"inputs":' + many(b"{}") + b"}", 413, "1 MiB"),
    "outputs without end": (tensor()[:-1] + b',"outputs":' + many(b'{"name":"logits"}') + b"}", 413, "1 MiB"),
    "deep brackets": (b"[" * SIZE, 413, "1 MiB"),
    "deep objects": (b'{"a":' * (SIZE // 5), 413, "1 MiB"),
    "many keys": (b"{" + b",".join(b'"%d":1' % number for number in range(SIZE // 11)) + b"}", 413, "1 MiB"),
    "spaces": (b" " * SIZE, 413, "1 MiB"),
    "escaped letters": (texts(b"\\u0025" * (SIZE // 6)), 400, "base64"),
    "escaped quotes": (texts(b'\\"' * (SIZE // 2)), 400, "quotation mark"),
    "backslashes": (texts(b"\\\\" * (SIZE // 2)), 400, "base64"),
    "a string without end": (b'{"inputs":"' + b"a" * SIZE, 400, "no end"),
    "a long id": (tensor()[:-1] + b',"id":"' + b"a" * SIZE + b'"}', 400, "id must be"),
    "a long name": (tensor().replace(b'"image"', b'"' + b"a" * SIZE + b'"'), 400, "no input called"),
    "wrong text": (b"\xff" * SIZE, 413, "1 MiB"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COSTLY)
def test_costly_json_is_refused_in_memory_of_a_few_times_its_size(kind):
    body, status, words = COSTLY[kind]
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException) as refused:
            parse_request(body, memoryview(b""), 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (refused.value.status_code, words in refused.value.detail) == (status, True), refused.value.detail
    assert len(refused.value.detail) < 500
    assert peak < 20 * len(body) + (16 << 20)


@pytest.mark.slow
def test_what_stands_for_a_long_value_cannot_be_used_for_another():
    """An error message shows it. With it, 64 images could share one text, which would be decoded 64 times."""
    with pytest.raises(HTTPException) as refused:
        parse_request(tensor(datatype=b"a" * SIZE), memoryview(b""), 64)
    shown = re.search("a value of over 64 KiB, [0-9a-f]+-0", refused.value.detail)[0]
    data = b'["%s", "%s"]' % (b"A" * SIZE, shown.encode())
    with pytest.raises(HTTPException, match="must be base64"):
        parse_request(tensor(data, b"[2]", b"BYTES"), memoryview(b""), 64)


@pytest.mark.slow
def test_a_large_image_in_json_needs_memory_of_a_few_times_its_size():
    side = 590
    body = tensor(many(b"200", 4 * side * side * 3), b"[1,%d,%d,3]" % (side, side))
    tracemalloc.start()
    images = parse_request(body, memoryview(b""), 64).images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (images[0].shape, images[0].min(), images[0].max()) == ((side, side, 3), 200, 200)
    assert peak < 20 * len(body)


@pytest.fixture(scope="module")
def client(fuzz_client):
    """Return a client of one server for all requests."""
    return fuzz_client


def converse(client, parts, *, limit=20 << 20):
    """Send until the server closes the connection, and return its reply."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                sent += len(part)
                assert sent < limit, "it was taken"
        try:
            return connection.recv(65536)
        except ConnectionError:
            return b""


CHUNKED = b"POST /preview HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 1000, b"larger than 64 KiB"),
    "headers of a second request": (
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n",
        b"X-A: b\r\n" * 1000,
        b"larger than 64 KiB",
    ),
    "one header": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 8000, b"larger than 64 KiB"),
    "address": (b"GET /", b"a" * 8000, b"larger than 64 KiB"),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\n", b"X-A: b\r\n" * 1000, b"larger than 64 KiB"),
    "one trailer": (CHUNKED + b"1\r\na\r\n0\r\nX-A: ", b"a" * 8000, b"larger than 64 KiB"),
    "chunk extension": (CHUNKED + b"1;", b"a" * 8000, b"larger than 64 KiB"),
    "tiny chunks": (CHUNKED, b"1\r\na\r\n" * 1000, b"at least 16 bytes"),
    "pipelined requests": (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 8000, b"more than 100 requests"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDLESS)
def test_nothing_beside_a_body_may_be_endless(client, kind):
    start, more, words = ENDLESS[kind]
    reply = converse(client, [start, *[more] * 3000])
    # What had been answered before comes first; an interim reply may come first as well.
    assert words in reply or kind == "pipelined requests"
    assert client.get("/health").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"not a valid HTTP/1.1 request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"not a valid HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"Content-Length"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad header\r\n\r\n", b"Invalid header token"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"chunk size"),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"not a proxy"),
    ],
)
def test_what_is_not_http_is_400_with_the_reason_and_the_security_headers(client, sent, words):
    head, _, body = converse(client, [sent]).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert words in json.loads(body)["error"].encode()
    for header in (b"X-Content-Type-Options: nosniff", b"Content-Security-Policy: default-src 'none'"):
        assert header in head


@pytest.mark.slow
def test_a_key_in_a_trailer_is_no_key(predictor, serve_model):
    with serve_model(predictor, api_key="key") as client:
        for key, status in (("", b"401"), ("Authorization: Bearer key\r\n", b"401")):
            sent = CHUNKED.replace(b"/preview", b"/predict") + b"1\r\na\r\n0\r\n" + key.encode() + b"\r\n"
            assert converse(client, [sent]).split(b" ", 2)[1] == status


@pytest.mark.slow
def test_trailers_that_are_short_are_allowed(client, tiny):
    picture = tiny.draw((1, 2, 3))
    sent = CHUNKED + b"%x\r\n%s\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(picture), picture)
    assert converse(client, [sent]).startswith(b"HTTP/1.1 200 ")


PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n'
FORMS = {
    "many headers of a part": (b"--b\r\n" + b"X: y\r\n" * 100_000, 400, "damaged form"),
    "one long header of a part": (b"--b\r\nX: " + b"y" * 1_000_000, 400, "damaged form"),
    "long file name": (b'--b\r\nContent-Disposition: form-data; name="files"; filename="' + b"a" * 99_000, 400, ""),
    "line ends in a part": (PART + b"\r\n" + b"\r\n" * 500_000 + b"\r\n--b--", 422, "none of the files"),
    "almost boundaries": (PART + b"\r\n" + b"\r\n--" * 250_000 + b"\r\n--b--", 422, "none of the files"),
    "line ends before": (b"\r\n" * 500_000, 422, ""),
    "text before": (b"x" * 1_000_000, 400, "damaged form"),
    "many parts": ((PART + b"\r\n\r\n") * 10_000, 413, "more than 64 files"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMS)
def test_costly_forms_are_refused(client, kind):
    content, status, words = FORMS[kind]
    reply = client.post("/predict", content=content, headers={"content-type": "multipart/form-data; boundary=b"})
    assert (reply.status_code, words in reply.json()["error"]) == (status, True), reply.text
    assert client.get("/health").status_code == 200


def picture(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


JPEG, GIF = picture("JPEG"), picture("GIF")
PIECES = 3 << 20
IMAGES = {
    "JPEG of fill bytes": (JPEG[:2] + b"\xff" * PIECES, "too many small pieces"),
    "JPEG of fill bytes before a segment": (JPEG[:2] + b"\xff" * PIECES + JPEG[2:], "too many small pieces"),
    "JPEG of zeros between segments": (JPEG[:2] + b"\xff\x00" * PIECES + JPEG[2:], "too many small pieces"),
    "JPEG of empty segments": (JPEG[:2] + b"\xff\xe5\x00\x02" * 100_001 + JPEG[2:], "more than 100000 segments"),
    "GIF of empty comments": (GIF[:-1] + b"\x21\xfe\x00" * PIECES + GIF[-1:], "too many small pieces"),
    "PPM of comments": (b"P3\n9 9 255\n" + b"#\n" * PIECES, "more than 1000 comments"),
    "a line of pixels": (b"P5 65536 1 255\n" + bytes(65536), "65535 pixels on a side"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMAGES)
def test_image_files_of_endless_small_parts_end_soon(client, kind):
    """Each took from ten seconds to for ever, some of them without letting anybody else be answered."""
    content, words = IMAGES[kind]
    reply = client.post("/predict", content=content, headers={"content-type": "image/png"})
    assert client.get("/health").status_code == 200
    assert (reply.status_code, words in reply.text) == (422, True), reply.text

"""Requests as clients write them, each with its answer: forms, bodies, base64, compression, methods, connections."""

from __future__ import annotations

import base64
import gzip
import json
import zlib

import numpy as np
import pytest

from xfeat.serve.inference.predictor import Predictor

RED = (255, 0, 0)  # the tiny model calls it covid
INFER = "/v2/models/model/infer"


@pytest.fixture(scope="module")
def client(fuzz_client):
    """Return a client of one server for all requests."""
    return fuzz_client


def part(disposition, content, more=""):
    return f"--b\r\nContent-Disposition: form-data; {disposition}\r\n{more}\r\n".encode() + content + b"\r\n"


def raw_deflate(content):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


FORM = {"content-type": "multipart/form-data; boundary=b"}
FORMS = {
    "curl": ('name="files"; filename="a.png"', "a.png"),
    "no quotes": ("name=files; filename=a.png", "a.png"),
    "file": ('name="file"; filename="a.png"', "a.png"),
    "image": ('name="image"; filename="a.png"', "a.png"),
    "PHP": ('name="images[]"; filename="a.png"', "a.png"),
    "no file name": ('name="image"', "image 1"),
    "RFC 8187": ("name=\"files\"; filename*=UTF-8''%E7%8C%AB%20a.png", "猫 a.png"),
    "both names": ('name="files"; filename="_.png"; filename*=utf-8\'en\'%E7%8C%AB.png', "猫.png"),
    "RFC 5987 in Latin-1": ("name=\"files\"; filename*=ISO-8859-1''R%F6ntgen.png", "Röntgen.png"),
    "damaged name": ("name=\"files\"; filename*=UTF-8''%FF.png", "\ufffd.png"),
    "unknown charset": ('name="files"; filename="a.png"; filename*=idna\'\'%FF.png', "a.png"),
}


@pytest.mark.parametrize("client_name", FORMS)
def test_a_form_is_read_as_the_client_means_it(client, tiny, client_name):
    disposition, name = FORMS[client_name]
    content = part(disposition, tiny.draw(RED), "Content-Type: image/png\r\n") + b"--b--\r\n"
    reply = client.post("/predict", content=content, headers=FORM)
    assert [(image["path"], image["label"]) for image in reply.json()["predictions"]] == [(name, "covid")]


@pytest.mark.parametrize("field", ["heatmap", "model", "mask", "Files", ""])
def test_a_field_that_would_be_ignored_is_refused_by_name(client, tiny, field):
    content = part(f'name="{field}"', b"1") + part('name="files"; filename="a.png"', tiny.draw(RED)) + b"--b--\r\n"
    reply = client.post("/predict", content=content, headers=FORM)
    assert reply.status_code == 422
    assert f"form field {field!r} is not known" in reply.json()["error"]


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "IMAGE/JPEG; q=1", "application/octet-stream", "application/dicom", "image/x-unknown", None],
)
def test_the_body_may_be_one_image_file(client, tiny, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    reply = client.post("/predict", content=tiny.draw(RED), headers=headers)
    assert [(image["path"], image["label"]) for image in reply.json()["predictions"]] == [("image 1", "covid")]


@pytest.mark.parametrize(
    ("content_type", "content", "status", "words"),
    [
        ("image/png", b"", 422, "the body is empty"),
        ("image/png", b"text", 422, "none of the files"),
        ("application/json", b"{}", 415, "/v2/models/NAME/infer"),
        ("application/x-www-form-urlencoded", b"x", 415, "Content-Type: image/png"),
        ("text/plain", b"x", 415, "multipart/form-data"),
        ("multipart/mixed; boundary=b", b"x", 415, "multipart/form-data"),
    ],
)
def test_another_body_is_refused_with_what_to_send(client, content_type, content, status, words):
    reply = client.post("/predict", content=content, headers={"content-type": content_type})
    assert (reply.status_code, words in reply.text) == (status, True), reply.text


CODINGS = {
    "gzip": ("gzip", gzip.compress),
    "upper case": ("GZIP", gzip.compress),
    "old name": ("x-gzip", gzip.compress),
    "two members": ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    "deflate": ("deflate", zlib.compress),
    "deflate of old browsers": ("deflate", raw_deflate),
    "identity": ("identity", bytes),
    "a list": ("identity, gzip", gzip.compress),
    "stored": ("gzip", lambda body: gzip.compress(body, 0)),
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("route", ["/predict", "/preview", INFER])
def test_a_compressed_body_is_read(client, tiny, coding, route):
    name, pack = CODINGS[coding]
    picture = tiny.draw(RED) + bytes(700_000)  # several pieces, in most containers much smaller
    body = picture
    if route == INFER:
        body = json.dumps(files_request([base64.b64encode(picture).decode()])).encode()
    headers = {"content-encoding": name}
    plain = client.post(route, content=body)
    packed = client.post(route, content=pack(body), headers=headers)
    assert (plain.status_code, packed.status_code) == (200, 200), packed.text
    assert plain.content == packed.content
    assert client.service.body_limits.held_bytes == 0


@pytest.mark.parametrize(
    ("coding", "body", "status", "words"),
    [
        ("br", b"x", 415, "send gzip, deflate"),
        ("zstd", b"x", 415, "Content-Encoding zstd is not supported"),
        ("gzip, gzip", b"x", 415, "gzip, gzip is not supported"),
        ("gzip", b"not gzip", 400, "not gzip data"),
        ("gzip", gzip.compress(b"x" * 100, mtime=0)[:-9], 400, "incomplete"),
        ("gzip", gzip.compress(b"x" * 100, mtime=0) + b"tail", 400, "not gzip data"),
        ("deflate", zlib.compress(b"x" * 100) + b"tail", 400, "not deflate data"),
        ("deflate", b"\xff\xff", 400, "not deflate data"),
        ("gzip", gzip.compress(bytes(1 << 20), mtime=0), 413, "larger than"),
        ("gzip", gzip.compress(b"", mtime=0) * 1001, 400, "more than 1000 gzip members"),
    ],
)
@pytest.mark.parametrize("route", ["/predict", INFER])
def test_a_body_that_cannot_be_inflated_is_refused_with_the_reason(
    predictor, serve_model, coding, body, status, words, route
):
    with serve_model(predictor, max_body_bytes=100_000) as client:
        headers = {"content-encoding": coding, "content-type": "application/octet-stream"}
        reply = client.post(route, content=body, headers=headers)
        assert (reply.status_code, words in reply.json()["error"]) == (status, True), reply.text
        assert ("accept-encoding" in reply.headers) == (status == 415)
        assert client.service.body_limits.held_bytes == 0


def test_inflated_bytes_count_against_the_memory_of_all_requests(predictor, serve_model):
    with serve_model(predictor, max_body_bytes=100_000, max_memory_bytes=100_000) as client:
        client.service.body_limits.held_bytes = 50_000  # of another request
        body = gzip.compress(bytes(90_000))
        reply = client.post("/preview", content=body, headers={"content-encoding": "gzip"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert client.service.body_limits.held_bytes == 50_000


@pytest.mark.parametrize(
    ("accepts", "coding"),
    [("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0", None), ("gzip; q=0.0, br", None), ("identity", None)],
)
def test_a_long_response_is_compressed_for_those_who_accept_it(client, accepts, coding):
    reply = client.get("/page.js", headers={"accept-encoding": accepts})
    assert reply.headers.get("content-encoding") == coding
    assert reply.text.startswith("// ")


def test_a_short_response_and_a_picture_are_not_compressed(client, tiny):
    for reply in (client.get("/health"), client.post("/preview", content=tiny.draw(RED, size=(900, 900)))):
        assert (reply.status_code, reply.headers.get("content-encoding")) == (200, None)


def files_request(data, **changes):
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data, **changes}]}


def typed(body):
    """Return a request with null in all optional fields, as typed clients write it."""
    tensor = {**body["inputs"][0], "parameters": {"content_type": None, "headers": None}}
    output = {"name": "probabilities", "parameters": None}
    return {"id": None, "parameters": None, "inputs": [tensor], "outputs": [output]}


PICTURE = {
    "plain": lambda text: text,
    "MIME": lambda text: "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\r\n",
    "spaces": lambda text: f" \t{text[:7]} {text[7:]} ",
    "data URL": lambda text: f"data:image/png;base64,{text}",
    "data URL with parameters": lambda text: f"DATA:image/png;name=a.png;BASE64,{text}",
    "URL alphabet": lambda text: text.replace("+", "-").replace("/", "_"),
    "no padding": lambda text: text.rstrip("="),
}


@pytest.mark.parametrize("size", [0, 1, 2, 100_000, 400_001], ids="padding {}".format)
@pytest.mark.parametrize("form", PICTURE)
def test_base64_is_read_as_clients_write_it(client, tiny, form, size):
    """Long strings are cut out of the JSON before it is parsed, and read in pieces."""
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    text = PICTURE[form](base64.b64encode(tiny.draw(RED) + noise).decode())
    plain = json.dumps(files_request([text]))
    for body in (plain, plain.replace("/", "\\/"), plain.replace("+", "\\u002B")):
        reply = client.post(INFER, content=body)
        assert reply.status_code == 200, reply.text
        assert np.argmax(reply.json()["outputs"][0]["data"]) == 0


@pytest.mark.parametrize("size", [30, 300_000])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "%" + text,
        lambda text: text + "ä",
        lambda text: text[:9] + "=" + text[9:],
        lambda text: f"data:image/png,{text}",
        lambda text: text + "\\",
        lambda text: text + '"',
        lambda text: f"{text}==={text}",
    ],
)
def test_what_is_not_base64_is_refused(client, size, damage):
    body = files_request([damage(base64.b64encode(bytes(size)).decode())])
    reply = client.post(INFER, json=body)
    assert reply.status_code == 400
    assert "base64" in reply.text or "quotation mark" in reply.text


@pytest.mark.parametrize(
    "change",
    [
        lambda body: typed(body),
        lambda body: body | {"outputs": []},
        lambda body: body | {"outputs": None, "id": None},
        lambda body: files_request(body["inputs"][0]["data"][0]),
        lambda body: files_request([body["inputs"][0]["data"]], shape=[1, 1]),
        lambda body: files_request(body["inputs"][0]["data"], parameters={"content_type": "base64"}),
    ],
)
def test_tensor_requests_are_read_as_clients_write_them(client, tiny, change):
    body = change(files_request([base64.b64encode(tiny.draw(RED)).decode()]))
    reply = client.post(INFER, json=body)
    assert reply.status_code == 200, reply.text
    assert np.argmax(reply.json()["outputs"][0]["data"]) == 0


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "", None])
def test_json_is_read_with_its_type_or_with_none(client, tiny, content_type):
    body = json.dumps(files_request([base64.b64encode(tiny.draw(RED)).decode()]))
    headers = {} if content_type is None else {"content-type": content_type}
    assert client.post(INFER, content=body, headers=headers).status_code == 200


def pixels(side):
    return np.random.default_rng(side).integers(0, 256, (1, side, side + 1, 3), np.uint8)


@pytest.mark.parametrize("side", [1, 2, 90, 300])
@pytest.mark.parametrize("indent", [None, 1])
def test_long_arrays_of_pixels_are_the_same_as_binary_ones(client, side, indent):
    array = pixels(side)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(array.shape)}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": array.size}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    expected = client.post(INFER, content=head + array.tobytes(), headers=headers).json()["outputs"]
    for data in (array.ravel().tolist(), array.tolist()):
        for body in (tensor | {"data": data}, {"data": data} | tensor):
            reply = client.post(INFER, content=json.dumps({"inputs": [body]}, indent=indent))
            assert reply.json()["outputs"] == expected


@pytest.mark.parametrize("side", [2, 200])
@pytest.mark.parametrize(
    "damage",
    [
        lambda flat, nested: [*flat[:-1], 256],
        lambda flat, nested: [*flat[:-1], -1],
        lambda flat, nested: [*flat[:-1], 0.5],
        lambda flat, nested: [*flat[:-1], True],
        lambda flat, nested: [*flat[:-1], None],
        lambda flat, nested: [*flat[:-1], 10**4000],
        lambda flat, nested: [*flat[:-1], {}],
        lambda flat, nested: [*flat[:-1], "1"],
        lambda flat, nested: flat[:-1],
        lambda flat, nested: [*flat, 1],
        lambda flat, nested: nested[0],
        lambda flat, nested: [[[*nested[0][0][:-1], [*nested[0][0][-1], 1]], *nested[0][1:-1], nested[0][-1][1:]]],
        lambda flat, nested: [flat],
    ],
)
def test_pixels_that_are_no_whole_image_are_refused(client, side, damage):
    array = pixels(side)
    data = damage(array.ravel().tolist(), array.tolist())
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(array.shape), "data": data}
    reply = client.post(INFER, json={"inputs": [tensor]})
    assert reply.status_code == 400
    assert "integers from 0 to 255" in reply.json()["error"]


# Triton


@pytest.fixture
def triton(client):
    http_client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    sender = http_client.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}")
    yield sender, http_client
    sender.close()


@pytest.mark.parametrize("binary", [True, False])
def test_the_classification_extension_returns_the_largest_classes(triton, tiny, binary):
    sender, http_client = triton
    colours = [RED, (0, 255, 0)]
    array = np.array([np.full((8, 8, 3), colour, np.uint8) for colour in colours])
    image = http_client.InferInput("image", list(array.shape), "UINT8")
    image.set_data_from_numpy(array)
    for number in (1, 2, 3, 7):
        wanted = http_client.InferRequestedOutput("probabilities", binary_data=binary, class_count=number)
        found = sender.infer("model", [image], outputs=[wanted]).as_numpy("probabilities")
        assert found.shape == (2, min(number, 3))
        for row, colour in zip(found, colours, strict=True):
            reference = tiny.reference(colour)
            order = np.argsort(-reference)[:number]
            texts = [text.decode() if isinstance(text, bytes) else text for text in row]
            assert [text.split(":")[1:] for text in texts] == [[str(place), tiny.classes[place]] for place in order]
            np.testing.assert_allclose([float(text.split(":")[0]) for text in texts], reference[order], atol=1e-6)


def test_outputs_without_classes_cannot_be_classified(write_model, serve_model, tiny):
    with serve_model(Predictor.open(write_model(heatmap=True), device="cpu")) as client:
        body = files_request([base64.b64encode(tiny.draw(RED)).decode()])
        body["outputs"] = [{"name": "heatmap", "parameters": {"classification": 1}}]
        reply = client.post(INFER, json=body)
    assert reply.status_code == 400
    assert "classification is for: logits, probabilities" in reply.json()["error"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_of_triton_works_in_both_directions(triton, tiny, algorithm):
    sender, http_client = triton
    array = np.full((1, 64, 64, 3), RED, np.uint8)
    image = http_client.InferInput("image", list(array.shape), "UINT8")
    image.set_data_from_numpy(array)
    result = sender.infer(
        "model", [image], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    np.testing.assert_allclose(result.as_numpy("probabilities")[0], tiny.reference(RED), atol=1e-6)


def test_configuration_statistics_and_index_of_triton(model, serve_model, tiny):
    http_client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    with serve_model(Predictor.open(model, device="cpu")) as client:
        sender = http_client.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}")
        check_statistics(client, sender, tiny)
        sender.close()


def check_statistics(client, sender, tiny):
    config = sender.get_model_config("model")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}]
    assert {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]} in config["output"]
    assert config["max_batch_size"] == 64
    assert sender.get_model_repository_index() == [{"name": "model", "version": "1", "state": "READY", "reason": ""}]
    client.post("/predict", files=[("files", ("a.png", tiny.draw(RED)))] * 3)
    client.post("/predict", files={"files": ("a.png", b"text")})
    for name in ("model", ""):
        (found,) = sender.get_inference_statistics(name)["model_stats"]
        assert (found["name"], found["inference_count"]) == ("model", 3)
        counts = {kind: each["count"] for kind, each in found["inference_stats"].items()}
        assert (counts["success"], counts["fail"], counts["queue"], counts["compute_input"]) == (1, 1, 3, 3)
        assert counts["compute_infer"] == found["execution_count"] >= 1
        assert found["inference_stats"]["success"]["ns"] > 0
    with pytest.raises(Exception, match="there is nothing at /v2/systemsharedmemory/status"):
        sender.get_system_shared_memory_status()

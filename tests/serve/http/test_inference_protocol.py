"""``POST /v2/models/{name}/infer``: requests written by hand, and Triton's two clients, unmodified."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest

from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.specs import PreprocessSpec
from xfeat.serve.inference.predictor import Predictor

INFER = "/v2/models/model/infer"
COLOURS = ((255, 0, 0), (0, 255, 0), (12, 99, 200))


@pytest.fixture
def client(fuzz_client):
    """Return a client of one server for all requests."""
    return fuzz_client


@pytest.fixture
def whole(write_model) -> Predictor:
    """Return a model with all four outputs."""
    return Predictor.open(write_model(ood=True, heatmap=True, ood_threshold=0.5), device="cpu")


def pixels_of(colours, side=32):
    return np.array([np.full((side, side, 3), colour, np.uint8) for colour in colours])


def tensor(array, **changes):
    return {"name": "image", "datatype": "UINT8", "shape": list(array.shape), "data": array.ravel().tolist(), **changes}


def outputs_of(reply):
    return {output["name"]: output for output in reply.json()["outputs"]}


def test_json_tensors_are_answered_with_all_outputs_and_the_id(whole, serve_model, tiny):
    body = {"id": "Ä 7", "inputs": [tensor(pixels_of(COLOURS))]}
    with serve_model(whole) as client:
        reply = client.post(INFER, json=body)
    assert reply.status_code == 200
    assert {key: reply.json()[key] for key in ("id", "model_name", "model_version")} == {
        "id": "Ä 7",
        "model_name": "model",
        "model_version": "1",
    }
    outputs = outputs_of(reply)
    assert [(name, output["shape"]) for name, output in outputs.items()] == [
        ("probabilities", [3, 3]),
        ("logits", [3, 3]),
        ("ood", [3]),
        ("heatmap", [3, 3, 2, 2]),
        ("decision", [3]),
    ]
    assert outputs["decision"]["datatype"] == "INT64"
    assert outputs["decision"]["data"] == [int(tiny.reference(colour).argmax()) for colour in COLOURS]
    expected = [tiny.reference(colour) for colour in COLOURS]
    np.testing.assert_allclose(np.reshape(outputs["probabilities"]["data"], (3, 3)), expected, atol=1e-6)
    np.testing.assert_allclose(outputs["ood"]["data"], np.mean(COLOURS, axis=1) / 255, atol=1e-6)


def test_pixels_of_another_size_are_resized_like_a_file_with_the_same_pixels(client, tiny):
    """The reference is the preprocessing that caching uses, on a picture whose halves differ."""
    import io

    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    resized = load_pixels(file.getvalue(), PreprocessSpec(size=32))
    by_tensor, by_resized = (
        outputs_of(client.post(INFER, json={"inputs": [tensor(array[None])]}))["probabilities"]["data"]
        for array in (image, resized)
    )
    by_file = client.post("/predict", files={"files": ("a.png", file.getvalue())}).json()["predictions"][0]
    assert by_tensor == by_resized
    assert by_tensor == list(by_file["probabilities"].values())


def test_files_in_base64_are_classified_like_files(client, tiny):
    data = [base64.b64encode(tiny.draw(colour)).decode() for colour in COLOURS]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3, 1], "data": data}]}
    reply = client.post("/v2/models/model/versions/1/infer", json=body)
    expected = [tiny.reference(colour) for colour in COLOURS]
    found = np.reshape(outputs_of(reply)["probabilities"]["data"], (3, 3))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_only_the_requested_outputs_are_returned_each_in_the_requested_form(whole, serve_model):
    body = {
        "inputs": [tensor(pixels_of(COLOURS))],
        "outputs": [{"name": "ood"}, {"name": "logits", "parameters": {"binary_data": True}}],
    }
    with serve_model(whole) as client:
        reply = client.post(INFER, json=body)
    length = int(reply.headers["inference-header-content-length"])
    header = json.loads(reply.content[:length])
    ood, logits = header["outputs"]
    assert (ood["name"], len(ood["data"])) == ("ood", 3)
    assert logits["parameters"] == {"binary_data_size": 36}
    assert len(reply.content) == length + 36


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("threshold", "decided"), [(None, [0, 1, 1]), (0, [0, 0, 0]), (0.05, [0, 1, 0]), (1, [1, 1, 1]), (0.9, [0, 1, 1])]
)
def test_the_threshold_of_the_decision_can_be_moved(write_model, serve_model, threshold, decided, binary):
    """Of the colours, covid has a probability of 0.93, 0.01 and 0.13; 1 stands for another class."""
    path = write_model(positive="covid", threshold=0.5)
    parameters = {"binary_data_output": binary} | ({} if threshold is None else {"threshold": threshold})
    body = {"inputs": [tensor(pixels_of(COLOURS))], "outputs": [{"name": "decision"}], "parameters": parameters}
    with serve_model(Predictor.open(path, device="cpu")) as client:
        reply = client.post(INFER, json=body)
    if binary:
        found = np.frombuffer(reply.content[int(reply.headers["inference-header-content-length"]) :], "<i8").tolist()
    else:
        found = outputs_of(reply)["decision"]["data"]
    assert [min(code, 1) for code in found] == decided


@pytest.mark.parametrize("threshold", [-0.1, 1.5, True, "0.5", 1e999])
def test_a_threshold_that_is_none_is_refused(write_model, serve_model, threshold):
    path = write_model(positive="covid", threshold=0.5)
    body = {"inputs": [tensor(pixels_of(COLOURS))], "parameters": {"threshold": threshold}}
    with serve_model(Predictor.open(path, device="cpu")) as client:
        reply = client.post(INFER, content=json.dumps(body), headers={"content-type": "application/json"})
    assert (reply.status_code, "error" in reply.json()) == (400, True)


def test_a_model_without_a_positive_class_has_no_threshold(client):
    reply = client.post(INFER, json={"inputs": [tensor(pixels_of(COLOURS))], "parameters": {"threshold": 0.5}})
    assert reply.status_code == 400
    assert reply.json() == {"error": "model has no threshold: it predicts the most probable class"}


def test_one_unreadable_file_fails_the_request_and_is_named(client, tiny):
    data = [base64.b64encode(content).decode() for content in (tiny.draw((1, 2, 3)), b"text")]
    reply = client.post(INFER, json={"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": data}]})
    assert reply.status_code == 400
    assert reply.json() == {"error": "image 1: text, not a JPEG, PNG, BMP, TIFF, WEBP, GIF, JPEG2000, PPM, AVIF image"}


GOOD = tensor(pixels_of(COLOURS[:1], side=2))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        ([], 400, "JSON object"),
        ({}, 400, "inputs"),
        ({"inputs": []}, 400, "inputs"),
        ({"inputs": [GOOD, GOOD]}, 400, "inputs"),
        ({"inputs": [7]}, 400, "JSON object"),
        ({"inputs": [GOOD], "id": 7}, 400, "id"),
        ({"inputs": [GOOD], "parameters": []}, 400, "parameters"),
        ({"inputs": [{**GOOD, "name": "\ud800"}]}, 400, "no input called"),
        ({"inputs": [{**GOOD, "datatype": "FP32"}]}, 400, "datatype"),
        ({"inputs": [{**GOOD, "shape": [1, 2, 2]}]}, 400, "shape"),
        ({"inputs": [{**GOOD, "shape": [1, 2, 2, 4]}]}, 400, "shape"),
        ({"inputs": [{**GOOD, "shape": [0, 2, 2, 3]}]}, 400, "shape"),
        ({"inputs": [{**GOOD, "shape": [1, 2**70, 2, 3]}]}, 400, "shape"),
        ({"inputs": [{**GOOD, "shape": [1, True, 2, 3]}]}, 400, "shape"),
        ({"inputs": [{**GOOD, "shape": [1] * 9}]}, 400, "8 axes"),
        ({"inputs": [{**GOOD, "data": [1, 2]}]}, 400, "12 integers"),
        ({"inputs": [{**GOOD, "data": [[1], [2, 3]]}]}, 400, "integers"),
        ({"inputs": [{**GOOD, "data": [256] * 12}]}, 400, "0 to 255"),
        ({"inputs": [{**GOOD, "data": [10**30] * 12}]}, 400, "0 to 255"),
        ({"inputs": [{**GOOD, "data": [0.5] * 12}]}, 400, "0 to 255"),
        ({"inputs": [{**GOOD, "data": []}]}, 400, "0 to 255"),
        ({"inputs": [{**GOOD, "data": None}]}, 400, "0 to 255"),
        ({"inputs": [{**GOOD, "shape": [1, 1, 1, 3], "data": 0}]}, 400, "0 to 255"),
        ({"inputs": [{**GOOD, "shape": [1, 1, 1, 3], "data": [[[[True, 0, 0]]]]}]}, 400, "0 to 255"),
        ({"inputs": [GOOD], "parameters": {"a": []}}, 400, "parameter 'a'"),
        ({"inputs": [{**GOOD, "parameters": {"a": {}}}]}, 400, "parameter 'a'"),
        ({"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"a": []}}]}, 400, "parameter 'a'"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 12}}]}, 400, "binary_data_size"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["%"]}]}, 400, "base64"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": [""]}]}, 400, "shape"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [], "data": [""]}]}, 400, "shape"),
        ({"inputs": [GOOD], "outputs": [{"name": "features"}]}, 400, "no output called 'features'"),
        ({"inputs": [GOOD], "outputs": {}}, 400, "outputs"),
        ({"inputs": [GOOD], "outputs": [{}]}, 400, "name"),
        *(
            (
                {"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"classification": bad}}]},
                400,
                "number",
            )
            for bad in (-1, 1.5, "2", True, 2**40)
        ),
        ({"inputs": [{**GOOD, "parameters": {"shared_memory_region": "a"}}]}, 400, "shared memory"),
        ({"inputs": [{**GOOD, "shape": [1, 3, 2, 2]}]}, 400, "transpose"),
        ({"inputs": [{**GOOD, "datatype": "FP32"}]}, 400, "0 to 255"),
        ({"inputs": [tensor(pixels_of([(1, 2, 3)] * 65, side=1))]}, 413, "64 images"),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [65, 9, 9, 3], "data": []}]}, 413, "64 images"),
    ],
)
def test_a_request_that_violates_the_protocol_is_an_error_with_a_message(client, body, status, words):
    reply = client.post(INFER, content=body if isinstance(body, bytes) else json.dumps(body))
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
    assert words in reply.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "9" * 40, "٣"])
def test_a_wrong_header_length_is_400(client, length):
    body = json.dumps({"inputs": [GOOD]}).encode()
    headers = {"Inference-Header-Content-Length": length.encode()}
    assert client.post(INFER, content=body, headers=headers).status_code == 400


@pytest.mark.parametrize("tail", [b"", b"\x01", b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xff" * 3])
def test_damaged_binary_tensors_are_400(client, tail):
    header = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tail)}}]
    }
    text = json.dumps(header).encode()
    reply = client.post(INFER, content=text + tail, headers={"Inference-Header-Content-Length": str(len(text))})
    assert reply.status_code == 400


@pytest.mark.parametrize(
    "address",
    [
        "/v2/models/other",
        "/v2/models/other/ready",
        "/v2/models/model/versions/2",
        "/v2/models/..%2Fmodel",
        "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v2/models/model%00",
    ],
)
def test_other_models_and_versions_are_404_and_touch_no_file(client, address):
    reply = client.get(address)
    assert reply.status_code == 404
    assert list(reply.json()) == ["error"]


# The clients of Triton


@pytest.fixture
def triton():
    return pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")


def test_the_synchronous_client_of_triton_works_unmodified(triton, whole, serve_model, tiny):
    with serve_model(whole) as server:
        client = triton.InferenceServerClient(f"{server.base_url.host}:{server.base_url.port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("model")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["extensions"][:2] == ["binary_tensor_data", "classification"]
        assert [each["name"] for each in client.get_model_metadata("model")["inputs"]] == ["image"]
        array = pixels_of(COLOURS)
        expected = [tiny.reference(colour) for colour in COLOURS]
        for binary in (True, False):
            image = triton.InferInput("image", list(array.shape), "UINT8")
            image.set_data_from_numpy(array, binary_data=binary)
            result = client.infer("model", [image], request_id="17")
            assert result.get_response()["id"] == "17"
            np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
            assert result.as_numpy("heatmap").shape == (3, 3, 2, 2)
            assert result.as_numpy("ood").dtype == np.float32
        wanted = [triton.InferRequestedOutput("logits", binary_data=False)]
        result = client.infer("model", [image], outputs=wanted, model_version="1")
        assert result.as_numpy("logits").shape == (3, 3)
        assert result.as_numpy("probabilities") is None
        with pytest.raises(triton.InferenceServerException, match="no model called other"):
            client.infer("other", [image])
        client.close()


def test_the_synchronous_client_of_triton_sends_files_as_bytes(triton, client, tiny):
    files = np.array([tiny.draw(colour) for colour in COLOURS], dtype=object)
    image = triton.InferInput("image", [3], "BYTES")
    image.set_data_from_numpy(files)
    sender = triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}", concurrency=4)
    pending = [sender.async_infer("model", [image]) for _ in range(8)]
    expected = [tiny.reference(colour) for colour in COLOURS]
    for each in pending:
        np.testing.assert_allclose(each.get_result().as_numpy("probabilities"), expected, atol=1e-6)
    sender.close()


def test_the_asyncio_client_of_triton_works_unmodified(triton, client, tiny):
    aio = pytest.importorskip("tritonclient.http.aio", reason="needs aiohttp")

    async def ask():
        sender = aio.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}")
        assert await sender.is_model_ready("model")
        array = pixels_of(COLOURS)
        image = aio.InferInput("image", list(array.shape), "UINT8")
        image.set_data_from_numpy(array)
        results = await asyncio.gather(*(sender.infer("model", [image]) for _ in range(6)))
        await sender.close()
        return [result.as_numpy("probabilities") for result in results]

    expected = [tiny.reference(colour) for colour in COLOURS]
    for found in asyncio.run(ask()):
        np.testing.assert_allclose(found, expected, atol=1e-6)

"""The page and the descriptions: they load nothing from other sites, and other sites cannot embed them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from xfeat.serve import page_files
from xfeat.serve.http.page_routes import PAGES
from xfeat.serve.page_files import PAGE_FILES

ROUTES = (*PAGES, "/openapi.json", "/model", "/health", "/metrics", "/v2", "/v2/health/live", "/nothing")


@pytest.fixture
def client(fuzz_client):
    """Return a client of one server for all requests."""
    return fuzz_client


@pytest.mark.parametrize("address", ROUTES)
def test_every_response_has_the_security_headers(client, address):
    headers = client.get(address, headers={"Origin": "https://elsewhere.example"}).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*", policy)
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("address", PAGES)
def test_no_page_names_another_address(client, address):
    text = client.get(address).text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(https?:)?//[\w-]+\.\w", text)


def test_everything_the_pages_load_is_served(client):
    for page in ("/", "/docs"):
        for link in re.findall(r'(?:src|href)="([^"]+)"', client.get(page).text):
            assert client.get(f"/{link.removeprefix('./')}").status_code == 200, link


def test_the_policy_allows_no_inline_code_and_the_pages_have_none(client):
    for page in ("/", "/docs"):
        text = client.get(page).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_every_file_of_the_page_folder_is_used():
    names = {path.name for path in Path(page_files.__file__).with_name("page").iterdir() if path.is_file()}
    assert names == set(PAGE_FILES["server"]) | set(PAGE_FILES["browser"])


def test_the_page_says_that_it_is_not_a_medical_device(client):
    assert "not a medical device" in client.get("/").text


def test_the_model_is_described_for_the_page(client, tiny):
    facts = client.get("/model").json()
    assert facts["classes"] == list(tiny.classes)
    assert (facts["run"], facts["backbone"]) == ("tiny", "efficientnet-lite0")
    assert (facts["test_accuracy"], facts["test_images"]) == (0.9375, 16)
    assert facts["limits"] == {"max_body_bytes": 32 * 2**20, "max_files": 64}


def test_a_model_without_metrics_is_described_too(write_model, serve_model):
    from xfeat.serve.inference.predictor import Predictor

    with serve_model(Predictor.open(write_model(metrics={}))) as client:
        assert client.get("/model").json()["test_accuracy"] is None


WITH_422 = {
    "/predict": "A wrong parameter, no files, or none of them is a readable image",
    "/preview": "Not a readable image",
    "/model": "A wrong parameter",
}


def test_the_openapi_description_covers_the_routes(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/health", "/metrics", "/model", "/v2", "/v2/models/{name}"} <= set(paths)
    assert "multipart/form-data" in paths["/predict"]["post"]["requestBody"]["content"]
    assert {"200", "413", "422", "503"} <= set(paths["/predict"]["post"]["responses"])
    meanings = {path: next(iter(paths[path].values()))["responses"]["422"]["description"] for path in WITH_422}
    assert meanings == WITH_422
    for address, methods in paths.items():
        for operation in methods.values():
            assert operation["summary"], address


def test_the_open_inference_protocol_describes_the_model(client):
    assert client.get("/v2").json()["name"] == "xfeat"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/model/ready").json() == {"name": "model", "ready": True}
    facts = client.get("/v2/models/model").json()
    assert facts["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert facts["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    missing = client.get("/v2/models/other")
    assert missing.status_code == 404
    assert list(missing.json()) == ["error"]


def test_the_metrics_count_requests_and_images(predictor, serve_model, tiny):
    files = [("files", ("red.png", tiny.draw((255, 0, 0)))), ("files", ("text.png", b"text"))]
    with serve_model(predictor) as client:
        client.post("/predict", files=files)
        client.get("/nothing")
        client.get("/elsewhere")
        text = client.get("/metrics").text
    samples = {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def value(name, **labels):
        return samples[name, json.dumps(labels, sort_keys=True)]

    assert value("xfeat_requests_total", route="/predict", status="200") == 1
    assert value("xfeat_requests_total", route="none", status="404") == 2
    assert value("xfeat_request_seconds_count", route="/predict") == 1
    assert value("xfeat_images_total", model="model", label="covid") == 1
    assert value("xfeat_images_total", model="model", label="normal") == 0
    assert value("xfeat_images_skipped_total", cause="image") == 1
    assert value("xfeat_batch_images_sum") == 1
    assert value("xfeat_requests_refused_total", limit="queue") == 0
    for stage in ("queue", "decode", "infer"):
        assert value("xfeat_stage_seconds_count", stage=stage) == 1
    assert value("xfeat_queue_images", model="model") == 0
    assert [labels for name, labels in samples if name == "xfeat_model_info" and '"run": "tiny"' in labels]

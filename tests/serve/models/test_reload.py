"""Reloads: no request is lost, a bad file changes nothing, files can be added to and removed from a folder."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from xfeat.featurize.errors import ModelError
from xfeat.serve.http.server import _watch
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry, model_files
from xfeat.serve.specs import ServeSpec

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


@pytest.fixture
def place(write_model, folder):
    """Return a function that puts a model of a run into the folder, atomically as the exporter does."""

    def put(name: str, run: str, **changes) -> Path:
        made = write_model(f"{run}.tmp", run=run, **changes)
        return made.replace(folder / name)

    return put


def open_models(source) -> ModelRegistry:
    return ModelRegistry(source, lambda path: [Predictor.open(path, "cpu")], ServeSpec())


def runs(models):
    return {name: model.predictor.metadata.run for name, model in models.items()}


def test_a_reload_loads_changed_and_new_files_and_removes_missing_ones(place, folder):
    place("a.onnx", "one")
    place("b.onnx", "one")
    place("c.onnx", "one")
    models = open_models(folder)
    assert runs(models) == {"a": "one", "b": "one", "c": "one"}
    place("b.onnx", "two")
    (folder / "c.onnx").unlink()
    place("d.onnx", "two")
    report = models.reload()
    assert runs(models) == {"a": "one", "b": "two", "d": "two"}
    assert asdict(report) == {"loaded": ["b", "d"], "unchanged": ["a"], "removed": ["c"], "kept": {}}
    assert 'run="two"' in models.metrics.render().decode()
    models.close()


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x08\x0a" * 500])
def test_after_a_failed_reload_the_previous_version_is_still_served(place, folder, tiny, garbage):
    file = place("a.onnx", "one")
    models = open_models(folder)
    file.write_bytes(garbage)
    for _ in range(2):  # asked again, it is still named
        report = models.reload()
        assert "a.onnx: not a model" in report.kept["a"]
    assert models.failed_reloads == ["a"]
    _, futures = models["a"].submit([("x", tiny.draw((255, 0, 0)))])
    assert futures[0].result(30).label == "covid"
    place("a.onnx", "three")
    assert models.reload().loaded == ["a"]
    assert runs(models) == {"a": "three"}
    assert not models.failed_reloads
    models.close()


def test_a_new_file_that_cannot_be_loaded_is_tried_once_and_not_reported_after_its_removal(place, folder, caplog):
    place("a.onnx", "one")
    models = open_models(folder)
    (folder / "b.onnx").write_bytes(b"garbage")
    assert "b" in models.reload().kept
    assert "b: reload failed; the model is not served: " in caplog.text
    assert models.file_states() == models.seen
    (folder / "b.onnx").unlink()
    models.reload()
    assert not models.failed_reloads
    models.close()


def test_a_folder_that_was_emptied_keeps_its_models(place, folder):
    place("a.onnx", "one").rename(folder.parent / "away")
    place("a.onnx", "two")
    models = open_models(folder)
    (folder / "a.onnx").unlink()
    assert models.reload().removed == []
    assert runs(models) == {"a": "two"}
    models.close()


def test_a_folder_serves_the_full_model_of_an_export_and_not_the_core_model(place, folder):
    place("a.onnx", "one")
    shutil.copy(folder / "a.onnx", folder / "a.core.onnx")
    shutil.copy(folder / "a.onnx", folder / "b.core.onnx")
    (folder / ".hidden.onnx").write_bytes(b"being written")
    (folder / "a.certificate.json").write_text("{}")
    assert [path.name for path in model_files(folder)] == ["a.onnx", "b.core.onnx"]


def test_a_folder_without_models_is_an_error(folder):
    with pytest.raises(ModelError, match="no models in this folder"):
        open_models(folder)


def test_requests_are_answered_during_reloads(place, folder, serve_model, tiny):
    """Every request must get 200, whichever version it is computed with."""
    place("a.onnx", "one")
    models = open_models(folder)
    stop = threading.Event()
    statuses = []
    with serve_model(None, models=models, api_key="secret") as client:
        address = f"{client.base_url}/predict"
        picture = tiny.draw((10, 200, 30))

        def keep_asking():
            with httpx.Client(trust_env=False, timeout=30, headers=KEY) as sender:
                while not stop.is_set():
                    statuses.append(sender.post(address, files={"files": ("a.png", picture)}).status_code)

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(keep_asking) for _ in range(3)]
            for number in range(6):
                place("a.onnx", f"run {number}")
                report = client.post("/admin/reload", headers=KEY)
                assert (report.status_code, report.json()["loaded"]) == (200, ["a"])
                assert client.get("/model", headers=KEY).json()["run"] == f"run {number}"
            stop.set()
            for each in asking:
                each.result(30)
    assert len(statuses) > 6
    assert set(statuses) == {200}


def test_a_bad_file_is_409_with_its_reason_and_health_names_it(place, folder, serve_model):
    file = place("a.onnx", "one")
    with serve_model(None, models=open_models(folder), api_key="secret") as client:
        file.write_bytes(b"garbage")
        reply = client.post("/admin/reload", headers=KEY)
        assert reply.status_code == 409
        assert "not a model" in reply.json()["kept"]["a"]
        assert client.get("/health").json()["failed_reloads"] == ["a"]
        assert client.get("/health").status_code == 200


def test_reloading_over_http_needs_a_key_on_the_server(client):
    reply = client.post("/admin/reload")
    assert reply.status_code == 403
    assert "--api-key-file" in reply.json()["error"]


def test_models_are_addressed_by_name_and_the_first_is_the_default(place, folder, serve_model, tiny):
    place("a.onnx", "one", ood=True)
    place("b.onnx", "two", positive="covid", threshold=0.0)
    picture = tiny.draw((0, 255, 0))
    with serve_model(None, models=open_models(folder)) as client:
        answers = {
            name: client.post("/predict", params=query, files={"files": ("x.png", picture)}).json()
            for name, query in (("first", {}), ("a", {"model": "a"}), ("b", {"model": "b"}))
        }
        assert [answer["model"] for answer in answers.values()] == ["a.onnx", "a.onnx", "b.onnx"]
        assert [answer["predictions"][0]["label"] for answer in answers.values()] == ["normal", "normal", "covid"]
        assert client.get("/model").json()["names"] == ["a", "b"]
        assert client.get("/v2/models/b").json()["name"] == "b"
        missing = client.post("/predict", params={"model": "../a"}, files={"files": ("x.png", picture)})
        assert (missing.status_code, missing.json()) == (404, {"error": "no model called ../a; this server has: a, b"})


def test_a_watched_file_is_reloaded_when_it_has_changed(place, folder):
    place("a.onnx", "one")
    models = open_models(folder)
    with _watch(models, 0.02):
        place("a.onnx", "two")
        deadline = time.monotonic() + 30
        while runs(models) != {"a": "two"} and time.monotonic() < deadline:
            time.sleep(0.01)
    assert runs(models) == {"a": "two"}
    models.close()

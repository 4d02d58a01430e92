"""What /health, /metrics and predictions say after each thing that can happen to the files of a folder of models."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.models.test_certificates import certify
from xfeat.featurize.errors import ModelError
from xfeat.serve.http.app import build_app
from xfeat.serve.http.service import Service
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import ServeSpec

Place = Callable[[str, str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


@pytest.fixture
def place(write_model: Callable[..., Path], folder: Path) -> Place:
    """Return a function that puts a model of a run into the folder, atomically as the exporter does."""
    return lambda name, run: write_model(f"{run}.tmp", run=run).replace(folder / name)


def open_models(source: Path, **settings: Any) -> ModelRegistry:
    return ModelRegistry(source, lambda path: [Predictor(path, "cpu")], ServeSpec(), **settings)


def client_of(models: ModelRegistry) -> TestClient:
    return TestClient(build_app(Service(models)), base_url="http://localhost")


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happens to the folder with the models a (the default) and b of run one, each step followed by a reload.

    Attributes:
        steps: functions of the folder and of ``place``.
        failed: names under failed_reloads at the end.
        runs: run of each model that is served.
        verified: models that match a certificate.
        default: whether requests without a name are answered.
    """

    steps: list[Callable[[Path, Place], object]]
    failed: list[str] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=lambda: {"a": "one", "b": "one"})
    verified: list[str] = field(default_factory=list)
    default: bool = True


def bad(name: str) -> Callable[[Path, Place], object]:
    return lambda folder, _: (folder / f"{name}.onnx").write_bytes(b"garbage")


def good(name: str, run: str) -> Callable[[Path, Place], object]:
    return lambda _, place: place(f"{name}.onnx", run)


def gone(name: str) -> Callable[[Path, Place], object]:
    return lambda folder, _: (folder / name).unlink()


def certified(name: str) -> Callable[[Path, Place], object]:
    return lambda folder, _: certify(folder / f"{name}.onnx")


def core_of(name: str) -> Callable[[Path, Place], object]:
    return lambda folder, _: shutil.copy(folder / f"{name}.onnx", folder / f"{name}.core.onnx")


def unreadable(name: str) -> Callable[[Path, Place], object]:
    """As a mount that does not answer: the system fails with another error than that there is no such file."""

    def replace(folder: Path, _: Place) -> None:
        (folder / name).rename(folder.with_name("elsewhere"))
        (folder / name).symlink_to("x" * 300)

    return replace


def readable_again(name: str) -> Callable[[Path, Place], object]:
    return lambda folder, _: (folder / name).unlink() or folder.with_name("elsewhere").rename(folder / name)  # type: ignore[func-returns-value]


BOTH = {"a": "one", "b": "one"}
EVENTS = {
    "nothing": Event(steps=[lambda folder, _: None]),
    "a good file is added": Event(steps=[good("c", "two")], runs=BOTH | {"c": "two"}),
    "a good file that is first by name is added": Event(steps=[good("A", "two")], runs=BOTH | {"A": "two"}),
    "a bad file is added": Event(steps=[bad("c")], failed=["c"]),
    "a bad file is added and removed": Event(steps=[bad("c"), gone("c.onnx")]),
    "a bad file is added and made good": Event(steps=[bad("c"), good("c", "two")], runs=BOTH | {"c": "two"}),
    "two bad files, one removed": Event(steps=[bad("c"), bad("d"), gone("c.onnx")], failed=["d"]),
    "changed to a bad file": Event(steps=[bad("b")], failed=["b"]),
    "changed to a bad file and restored": Event(steps=[bad("b"), good("b", "two")], runs={"a": "one", "b": "two"}),
    "changed to a bad file and removed": Event(steps=[bad("b"), gone("b.onnx")], runs={"a": "one"}),
    "changed to a good file": Event(steps=[good("b", "two")], runs={"a": "one", "b": "two"}),
    "removed": Event(steps=[gone("b.onnx")], runs={"a": "one"}),
    "the default is removed": Event(steps=[gone("a.onnx")], runs={"b": "one"}, default=False),
    "the default is removed and restored": Event(steps=[gone("a.onnx"), good("a", "two")], runs=BOTH | {"a": "two"}),
    "the default is renamed": Event(
        steps=[lambda folder, _: (folder / "a.onnx").rename(folder / "z.onnx")],
        runs={"b": "one", "z": "one"},
        default=False,
    ),
    "all are removed": Event(steps=[lambda folder, _: [file.unlink() for file in folder.iterdir()]]),
    "a bad file is added and all are removed": Event(
        steps=[bad("c"), lambda folder, _: [file.unlink() for file in folder.iterdir()]]
    ),
    "the folder is removed": Event(steps=[lambda folder, _: shutil.rmtree(folder)]),
    "the folder is removed and comes back with one": Event(
        steps=[lambda folder, _: shutil.rmtree(folder), lambda folder, _: folder.mkdir(), good("a", "two")],
        runs={"a": "two"},
    ),
    "a core model is added": Event(steps=[core_of("a")]),
    "only the core model is left": Event(steps=[core_of("b"), gone("b.onnx")], runs={"a": "one", "b.core": "one"}),
    "a certificate is added": Event(steps=[certified("b")], verified=["b"]),
    "a certificate is removed": Event(steps=[certified("b"), gone("b.certificate.json")]),
    "a certificate is damaged": Event(
        steps=[certified("b"), lambda folder, _: (folder / "b.certificate.json").write_text("{")],
        failed=["b"],
        verified=["b"],
    ),
    "a damaged certificate is removed": Event(
        steps=[lambda folder, _: (folder / "b.certificate.json").write_text("{"), gone("b.certificate.json")]
    ),
    "a file becomes a broken link": Event(
        steps=[gone("b.onnx"), lambda folder, _: (folder / "b.onnx").symlink_to("nothing")], runs={"a": "one"}
    ),
    "a file does not answer": Event(steps=[unreadable("b.onnx")], failed=["b"]),
    "a file does not answer for a while": Event(steps=[unreadable("b.onnx"), readable_again("b.onnx")]),
    "the folder does not answer": Event(steps=[unreadable("")]),
    "the folder does not answer for a while": Event(
        steps=[unreadable(""), readable_again(""), good("b", "two")], runs={"a": "one", "b": "two"}
    ),
    "a folder is called like a model": Event(steps=[lambda folder, _: (folder / "c.onnx").mkdir()], failed=["c"]),
    "a hidden file is being written": Event(steps=[lambda folder, _: (folder / ".c.onnx").write_bytes(b"part")]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVENTS)
def test_after_an_event(name: str, place: Place, folder: Path, tiny: Any) -> None:
    event = EVENTS[name]
    for model in BOTH:
        place(f"{model}.onnx", "one")
    models = open_models(folder)
    for step in event.steps:
        step(folder, place)
        models.reload()
    with client_of(models) as client:
        health = client.get("/health").json()
        assert (health["failed_reloads"], health["models"]) == (event.failed, sorted(event.runs))
        described = {model: client.get("/model", params={"model": model}).json() for model in event.runs}
        assert {model: each["run"] for model, each in described.items()} == event.runs
        picture = {"files": ("x.png", tiny.draw((255, 0, 0)))}
        answers = {model: client.post("/predict", params={"model": model}, files=picture) for model in event.runs}
        assert {answer.status_code for answer in answers.values()} == {200}
        unnamed = client.post("/predict", files=picture)
        shown = client.get("/model").json().get("default")
        metrics = client.get("/metrics").text
    assert (unnamed.status_code, health["default_model"]) == (200 if event.default else 404, "a")
    assert (health["model"], shown) == (("a.onnx", "a") if event.default else (None, None))
    assert event.default or "the default model a was removed" in unnamed.json()["error"]
    assert f'xfeat_default_model{{model="a"}} {float(event.default)}' in metrics
    for model in "abcdAz":
        assert (f'xfeat_reload_failed{{model="{model}"}} 1.0' in metrics) == (model in event.failed)
        assert (f'xfeat_model_verified{{model="{model}"}} 1.0' in metrics) == (model in event.verified)
        seen = model in event.runs or model in event.failed or model == "a"  # of the default it says that it is gone
        assert (f'model="{model}"' in metrics) == seen, f"series of {model}"


def test_a_failed_file_that_is_gone_is_not_named_even_before_the_next_reload(place: Place, folder: Path) -> None:
    place("a.onnx", "one")
    models = open_models(folder)
    (folder / "b.onnx").write_bytes(b"garbage")
    models.reload()
    assert models.failed_reloads == ["b"]
    (folder / "b.onnx").unlink()
    assert models.failed_reloads == []
    assert b"xfeat_reload_failed{" not in models.metrics.render()


@pytest.mark.parametrize("what", [lambda file: file.unlink(), lambda file: file.write_bytes(b"garbage")])
def test_a_single_file_that_fails_is_served_on_and_forgotten_once_it_is_gone(
    place: Place, folder: Path, what: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    file = place("a.onnx", "one")
    models = open_models(file)
    what(file)
    models.reload()
    assert models.failed_reloads == (["a"] if file.exists() else [])
    file.unlink(missing_ok=True)
    assert models.reload().unchanged == ["a"]
    assert models.failed_reloads == []
    assert (models["a"].predictor.metadata.run, models.default) == ("one", models["a"])
    assert caplog.text.count("no model is there any more") == 1, "said once, not at each reload"
    place("a.onnx", "two")
    assert models.reload().loaded == ["a"]
    assert models.default is not None
    assert models.default.predictor.metadata.run == "two"


@pytest.mark.parametrize("given", [None, "a", "b"])
def test_the_default_is_what_was_asked_for_or_the_first_at_the_start(place: Place, folder: Path, given: str) -> None:
    place("b.onnx", "one")
    place("a.onnx", "one")
    models = open_models(folder, default=given)
    assert models.default_name == (given or "a")
    place("0.onnx", "two")
    models.reload()
    assert models.default_name == (given or "a")


@pytest.mark.parametrize("name", ["c", "a.onnx", "A", "", "../a", "b.core", "a\nb"])
def test_a_default_that_is_not_there_is_refused_at_the_start(place: Place, folder: Path, name: str) -> None:
    for file in ("a.onnx", "b.onnx", "b.core.onnx"):
        place(file, "one")
    with pytest.raises(ModelError, match="for --default-model") as refused:
        open_models(folder, default=name)
    assert "expected: a or b" in str(refused.value)


# File names, and the name of the model. Names that are no text, or that a terminal would obey, are escaped.
NAMES = {
    "thorax 2.onnx": "thorax 2",
    "日本語.onnx": "日本語",
    'a"b\\c.onnx': 'a"b\\c',
    "{a}=1,b.onnx": "{a}=1,b",
    "a\nb.onnx": "a\\nb",
    "\x1b[31mred.onnx": "\\x1b[31mred",
    os.fsdecode(b"caf\xe9.onnx"): "caf\\udce9",
    "v1.2.onnx": "v1.2",
}


@pytest.mark.slow
@pytest.mark.parametrize("file", NAMES)
def test_any_file_name_is_a_name_in_urls_json_and_labels(file: str, place: Place, folder: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        place(file, "one")
    except OSError:
        pytest.skip("this file system does not take the name")
    name = NAMES[file]
    with client_of(open_models(folder)) as client:
        assert client.get("/model", params={"model": name}).json()["name"] == name
        assert client.get("/health").json()["models"] == [name]
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert families["xfeat_model_verified"].samples[0].labels == {"model": name}
    assert json.dumps(name)

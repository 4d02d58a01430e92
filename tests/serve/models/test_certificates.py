"""A model is served only if it is the one that its certificate was written for. One table of what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from xfeat.export.model.file import open_model
from xfeat.export.parity.certificate import FORMAT, SCHEMA_VERSION, certificate_path
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.errors import MismatchError, ModelError, XfeatError
from xfeat.serve.cli import main
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import ServeSpec


def certify(model: Path, **changes: Any) -> Path:
    """Write the certificate of a model."""
    metadata = open_model(model).metadata
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "models": {"full": {"file": model.name, "sha256": sha256_of(model)}},
        "metadata": metadata.to_dict(),
        "reference": [],
    }
    path = certificate_path(model)
    path.write_text(json.dumps({**content, **changes}))
    return path


def other_metadata(model: Path, **changes: Any) -> dict[str, Any]:
    return replace(open_model(model).metadata, **changes).to_dict()


CHANGES: dict[str, tuple[Callable[[Path, Callable[..., Path]], object], type[XfeatError], str]] = {
    "another model": (lambda model, write: write("other.onnx", run="other").replace(model), MismatchError, "run"),
    "another threshold": (
        lambda model, write: write("other.onnx", positive="covid", threshold=0.9).replace(model),
        MismatchError,
        "threshold",
    ),
    "another digest": (
        lambda model, _: certify(model, models={"full": {"file": "model.onnx", "sha256": "0" * 64}}),
        MismatchError,
        "with the same metadata",
    ),
    "forged digest, another temperature": (
        lambda model, _: certify(model, metadata=other_metadata(model, temperature=2.0)),
        MismatchError,
        "temperature",
    ),
    "forged digest, another ood threshold": (
        lambda model, _: certify(model, metadata=other_metadata(model, ood_threshold=9.0)),
        MismatchError,
        "out-of-distribution threshold",
    ),
    "a damaged certificate": (
        lambda model, _: certificate_path(model).write_text("{"),
        ModelError,
        "certificate cannot be read",
    ),
    "digests that are lists": (
        lambda model, _: certify(model, models={"full": {"sha256": [1]}}),
        ModelError,
        "certificate cannot be read",
    ),
}


@pytest.fixture
def image(tiny: Any, tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(tiny.draw((200, 30, 60)))
    return path


@pytest.mark.parametrize("what", CHANGES)
def test_a_model_that_does_not_match_is_refused_unless_it_is_allowed(
    what: str, write_model: Callable[..., Path], image: Path, serve_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model()
    certify(model)
    change, error, named = CHANGES[what]
    change(model, write_model)
    with pytest.raises(error) as refused:
        Predictor.open(model, "cpu")
    assert (str(model.stem) in str(refused.value), "--allow-unverified" in str(refused.value)) == (True, True)
    assert named in str(refused.value) or named == "run"
    command = ["predict", str(image), "--model", str(model), "--device", "cpu", "--json"]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.stdout) == (1, "")
    done = CliRunner().invoke(main, [*command, "--allow-unverified"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["predictions"]
    with serve_model(Predictor.open(model, "cpu", allow_unverified=True)) as client:
        assert client.get("/model").json()["certificate"] == "differs"
        assert 'xfeat_model_verified{model="model"} 0.0' in client.get("/metrics").text
    assert "it is used because of --allow-unverified" in caplog.text


@pytest.mark.parametrize(("certified", "shown", "metric"), [(True, "matches", "1.0"), (False, "none", "0.0")])
def test_the_page_and_the_metrics_tell_whether_the_certificate_matches(
    certified: bool, shown: str, metric: str, write_model: Callable[..., Path], serve_model: Any
) -> None:
    model = write_model()
    if certified:
        certify(model)
    with serve_model(Predictor.open(model, "cpu")) as client:
        assert client.get("/model").json()["certificate"] == shown
        assert f'xfeat_model_verified{{model="model"}} {metric}' in client.get("/metrics").text


def test_a_reload_waits_for_the_certificate_of_the_new_file(write_model: Callable[..., Path]) -> None:
    """The exporter replaces the certificate after the model; a reload in between keeps the old version."""
    model = write_model("model.onnx", run="one")
    certify(model)
    models = ModelRegistry(model, lambda path: [Predictor.open(path, "cpu")], ServeSpec())
    write_model("next.onnx", run="two").replace(model)
    report = models.reload()
    assert list(report.kept) == models.failed_reloads == ["model"]
    assert models["model"].predictor.metadata.run == "one"
    before = models.signatures()
    certify(model)
    assert models.signatures() != before, "the watcher sees the new certificate"
    assert models.reload().loaded == ["model"]
    assert models["model"].predictor.metadata.run == "two"
    models.close()

"""A model is served only if it is the one that its certificate was written for. One table of what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import minisign
import pytest
from click.testing import CliRunner

from xfeat.export.model.file import open_model
from xfeat.export.parity.certificate import FORMAT, SCHEMA_VERSION, certificate_path
from xfeat.export.parity.signature import read_public_key, sign_certificate, signature_path
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.errors import MismatchError, ModelError, XfeatError
from xfeat.serve.cli import main
from xfeat.serve.http.server import open_sessions
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import ServerOptions, ServeSpec

OOD_KINDS = {"noise": {"images": 8, "above": 0.75}}


def certify(model: Path, **changes: Any) -> Path:
    """Write the certificate of a model."""
    metadata = open_model(model).metadata
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "models": {"full": {"file": model.name, "sha256": sha256_of(model)}},
        "metadata": metadata.to_dict(),
        "reference": [],
        "out_of_distribution": OOD_KINDS,
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
    "a share that is no number": (
        lambda model, _: certify(model, out_of_distribution={"noise": {"images": 8, "above": "all"}}),
        ModelError,
        "certificate cannot be read",
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


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a secret and a public key."""
    pair, files = minisign.KeyPair.generate(), (tmp_path / "minisign.key", tmp_path / "minisign.pub")
    for file, key in zip(files, (pair.secret_key, pair.public_key), strict=True):
        file.write_bytes(bytes(key))
    return files


def sign(model: Path, secret: Path) -> None:
    certificate = certificate_path(model)
    sign_certificate(certificate, certificate.read_bytes(), secret)


@pytest.mark.parametrize(
    ("shown", "verified", "signed"), [("none", "0.0", "0.0"), ("matches", "1.0", "0.0"), ("signed", "1.0", "1.0")]
)
def test_model_and_metrics_tell_whether_the_certificate_matches_and_is_signed(
    shown: str,
    verified: str,
    signed: str,
    keys: tuple[Path, Path],
    write_model: Callable[..., Path],
    serve_model: Any,
) -> None:
    model = write_model()
    if shown != "none":
        certify(model)
        sign(model, keys[0])  # where no signature is asked for, it changes nothing
    required = read_public_key(keys[1]) if shown == "signed" else None
    with serve_model(Predictor.open(model, "cpu", require_signature=required)) as client:
        described = client.get("/model").json()
        assert described["certificate"] == shown
        assert described["ood_kinds"] == ({} if shown == "none" else OOD_KINDS)
        metrics = client.get("/metrics").text
    assert f'xfeat_model_verified{{model="model"}} {verified}' in metrics
    assert f'xfeat_model_signed{{model="model"}} {signed}' in metrics


def test_a_reload_keeps_the_old_version_until_the_new_one_is_signed(
    keys: tuple[Path, Path], write_model: Callable[..., Path]
) -> None:
    model = write_model("model.onnx", run="one")
    certify(model)
    sign(model, keys[0])
    options = ServerOptions(device="cpu", sessions=2, require_signature=read_public_key(keys[1]))
    models = ModelRegistry(model, partial(open_sessions, ServeSpec(), options), ServeSpec())
    write_model("next.onnx", run="two").replace(model)
    certify(model)
    keys[1].write_text("another key: the file is read once, at the start")
    [reason] = models.reload().kept.values()
    assert "the signature is not valid" in reason
    assert models["model"].predictor.metadata.run == "one"
    before = models.file_states()
    sign(model, keys[0])
    assert models.file_states() != before, "the watcher sees the new signature"
    assert models.reload().loaded == ["model"]
    assert models["model"].predictor.metadata.run == "two"
    signature_path(certificate_path(model)).unlink()
    assert list(models.reload().kept) == ["model"]
    models.close()


def test_the_option_can_be_set_in_all_three_places(
    keys: tuple[Path, Path], write_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model()
    certify(model)
    config = tmp_path / "xserve.toml"
    config.write_text(f'require-signature = "{keys[1]}"\n')
    for arguments in (["--require-signature", str(keys[1])], ["--config", str(config)], []):
        if not arguments:
            monkeypatch.setenv("XSERVE_REQUIRE_SIGNATURE", str(keys[1]))
        done = CliRunner().invoke(main, ["start", str(model), "--port", "0", *arguments])
        assert (done.exit_code, "the certificate has no signature" in done.output) == (1, True), done.output


def test_a_reload_waits_for_the_certificate_of_the_new_file(write_model: Callable[..., Path]) -> None:
    """The exporter replaces the certificate after the model; a reload in between keeps the old version."""
    model = write_model("model.onnx", run="one")
    certify(model)
    models = ModelRegistry(model, lambda path: [Predictor.open(path, "cpu")], ServeSpec())
    write_model("next.onnx", run="two").replace(model)
    report = models.reload()
    assert list(report.kept) == models.failed_reloads == ["model"]
    assert models["model"].predictor.metadata.run == "one"
    before = models.file_states()
    certify(model)
    assert models.file_states() != before, "the watcher sees the new certificate"
    assert models.reload().loaded == ["model"]
    assert models["model"].predictor.metadata.run == "two"
    models.close()

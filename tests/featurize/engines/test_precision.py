"""Fewer bits in the network's arithmetic: which engines do it, what may be mixed, and what the later stages say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from xfeat.export.cli import main as xexport
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as xfeat
from xfeat.featurize.engines import open_engine
from xfeat.featurize.engines.openvino_engine import _check_precision
from xfeat.featurize.errors import DeviceError, MismatchError, SpecError
from xfeat.featurize.specs import FeatureSpec
from xfeat.head.cli import main as xhead

if TYPE_CHECKING:
    from conftest import Bench

Some = Callable[[int, int], np.ndarray]
LOWER = ("bfloat16", "float16")


def lowered(spec: FeatureSpec, precision: str) -> FeatureSpec:
    return dataclasses.replace(spec, precision=precision, pooling="final")


def far(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", LOWER)
def test_torch_rounds_as_autocast_does_and_averages_in_float32(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some, precision: str
) -> None:
    """The reference is torch's own autocast of the same network in float32, its maps averaged in float64 by numpy."""
    from xfeat.featurize.backbones.inference_network import InferenceNetwork

    spec, pixels = lowered(lite0_spec, precision), some_pixels(4, 64)
    network = InferenceNetwork(lowered(spec, "float32"), lite0_weights, torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", getattr(torch, precision)):
        (maps,) = network.backbone.maps(network.normalize(torch.from_numpy(pixels)))
    assert maps.dtype == getattr(torch, precision)
    expected = maps.double().numpy().mean((2, 3))
    found = open_engine(spec, lite0_weights, engine="torch", device="cpu", batch_size=4).features(pixels)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    plain = open_engine(lowered(spec, "float32"), lite0_weights, engine="torch", device="cpu").features(pixels)
    assert 1e-4 < far(found, plain) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWER)
def test_openvino_computes_in_the_precision_asked_for_or_says_that_it_cannot(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some, precision: str
) -> None:
    pytest.importorskip("openvino")
    spec, pixels = lowered(lite0_spec, precision), some_pixels(3, 64)
    try:
        engine = open_engine(spec, lite0_weights, engine="openvino")
    except DeviceError as problem:
        pytest.skip(str(problem))
    plain = open_engine(lowered(spec, "float32"), lite0_weights, engine="openvino").features(pixels)
    assert 1e-4 < far(engine.features(pixels), plain) < 0.2


def test_a_precision_that_openvino_replaces_is_an_error() -> None:
    _check_precision("bfloat16", "bf16")
    with pytest.raises(DeviceError, match=r"does not compute in bfloat16(.|\n)*f32(.|\n)*--engine torch"):
        _check_precision("bfloat16", "f32")


@pytest.mark.slow
def test_onnxruntime_refuses_and_auto_takes_an_engine_that_can(lite0_weights: Weights, lite0_spec: FeatureSpec) -> None:
    spec = lowered(lite0_spec, "bfloat16")
    with pytest.raises(SpecError, match=r"onnxruntime computes in float32(.|\n)*torch or openvino"):
        open_engine(spec, lite0_weights, engine="onnxruntime", device="cpu")
    assert open_engine(spec, lite0_weights, device="cpu").name == "torch on cpu"
    assert open_engine(lite0_spec, lite0_weights, device="cpu").name == "onnxruntime on cpu"


def test_rows_of_another_precision_are_never_reused(bench: Bench) -> None:
    bench.run()
    with pytest.raises(MismatchError, match=r"computed in bfloat16(.|\n)*--force"):
        bench.run(spec=lowered(bench.spec, "bfloat16"))
    bench.run(spec=lowered(bench.spec, "bfloat16"), force=True)
    assert (FeatureCache.open(bench.output).spec.precision, bench.engine.images) == ("bfloat16", 24)


def test_a_precision_of_float32_is_not_written(lite0_spec: FeatureSpec) -> None:
    """Versions that know no other refuse unknown settings, and fingerprints of caches that people have stay."""
    assert "precision" not in lite0_spec.to_dict()
    assert FeatureSpec.from_dict(lite0_spec.to_dict()).precision == "float32"
    lower = dataclasses.replace(lite0_spec, precision="bfloat16")
    assert FeatureSpec.from_dict(json.loads(json.dumps(lower.to_dict()))) == lower
    assert lower.fingerprint != lite0_spec.fingerprint


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, art: SimpleNamespace) -> Callable[..., Result]:
    """Return a function that runs a command in a folder with drawn images that are hard to tell apart."""
    monkeypatch.chdir(tmp_path)
    names = [
        f"{split}/{label}/{number}.jpg"
        for split in ("train", "valid", "test")
        for label in ("covid", "normal")
        for number in range(8)
    ]
    for seed, name in enumerate(names):
        art.draw(tmp_path / "data" / name, seed=seed)

    def invoke(command: object, *arguments: object, exit_code: int = 0) -> Result:
        done = CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]
        assert done.exit_code == exit_code, done.output + repr(done.exception)
        return done

    return invoke


@pytest.mark.slow
def test_training_warns_and_export_wants_a_tolerance_that_covers_the_difference(run: Callable[..., Result]) -> None:
    lite0 = ("--backbone", "efficientnet-lite0", "--size", "32")
    run(xfeat, "featurize", "data", *lite0, "--precision", "bfloat16")
    trained = run(xhead, "train", "--name", "low", "--epochs", "3")
    lower = "computed in bfloat16 and not in float32"
    assert trained.stderr.count(f"features.h5 was {lower}") == 1
    refused = run(xexport, "onnx", "runs/low", exit_code=1).stderr
    assert f"whose features were {lower}" in refused
    assert "run both again with --precision float32" in refused
    assert not Path("model.onnx").exists()
    enough = refused.rpartition("--tolerance ")[2].split()[0]
    done = json.loads(run(xexport, "onnx", "runs/low", "--tolerance", enough, "--json").stdout)
    assert 1e-4 < done["against_training"]["max_difference"] <= float(enough) == done["against_training"]["tolerance"]
    assert "computed in bfloat16" in run(xexport, "info").stdout
    run(xhead, "eval", "runs/low", "data", "--features", "elsewhere.h5")
    assert FeatureCache.open("elsewhere.h5").spec.precision == "bfloat16"

"""The frozen networks against the packages that define them, and the engines against each other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xfeat.featurize.backbones.network import Backbone, FeatureNetwork, load_backbone
from xfeat.featurize.backbones.registry import backbone_info
from xfeat.featurize.backbones.weights import Weights, find_weights
from xfeat.featurize.engines import Engine, open_engine
from xfeat.featurize.engines.conversion import convert_feature_network
from xfeat.featurize.engines.engine import in_batches
from xfeat.featurize.engines.feature_graph import graph_file
from xfeat.featurize.engines.onnx_engine import OnnxEngine
from xfeat.featurize.errors import DeviceError, MissingExtraError, SpecError, WeightsError
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.system.devices import resolve_device

Some = Callable[[int, int], np.ndarray]


def spec_of(weights: Weights, size: int = 64, pooling: str = "final") -> FeatureSpec:
    return FeatureSpec(
        backbone=weights.backbone,
        weights_sha256=weights.sha256,
        preprocess=PreprocessSpec(size=size),
        pooling=pooling,
    )


def normalized(pixels: np.ndarray, spec: FeatureSpec) -> torch.Tensor:
    """Return the network's input, float32 (N, 3, S, S), of pixels (N, S, S, 3), worked out in numpy."""
    mean, std = (np.asarray(each, np.float32) for each in (spec.preprocess.mean, spec.preprocess.std))
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(scaled, -1, -3)))


@pytest.mark.parametrize("fixture", ["b0_weights", "lite0_weights"])
def test_features_are_those_of_the_package_itself(
    fixture: str, request: pytest.FixtureRequest, some_pixels: Some
) -> None:
    """The reference is the package's own ``extract_features``, averaged. A swish put in place of ReLU6 shows here."""
    import importlib

    weights: Weights = request.getfixturevalue(fixture)
    spec, pixels = spec_of(weights), some_pixels(3, 64)
    package = importlib.import_module("efficientnet_pytorch" if "b0" in fixture else "efficientnet_lite_pytorch")
    reference = package.EfficientNet.from_name(weights.backbone, image_size=64).eval()
    if "lite" in fixture:
        reference = package.EfficientNet.from_pretrained(
            weights.backbone, weights_path=str(weights.path), image_size=64
        ).eval()
    else:
        reference.load_state_dict(torch.load(weights.path, weights_only=True))
    with torch.no_grad():
        expected = reference.extract_features(normalized(pixels, spec)).mean((2, 3)).numpy()
        network = FeatureNetwork(load_backbone(spec, weights), spec.preprocess)
        got = network(torch.from_numpy(pixels)).numpy()
    assert expected.std() > 0.01, "features that vanish agree with anything"
    assert np.abs(got - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("fixture", ["b0_weights", "lite0_weights"])
def test_multilevel_adds_the_means_of_stages_3_to_7(
    fixture: str, request: pytest.FixtureRequest, some_pixels: Some
) -> None:
    """The reference hooks the last block of each stage; 40+80+112+192+320 more features."""
    weights: Weights = request.getfixturevalue(fixture)
    final = load_backbone(spec_of(weights), weights)
    backbone = load_backbone(spec_of(weights, pooling="multilevel"), weights)
    assert (final.dim, backbone.dim) == (1280, 2024)
    assert backbone_info(weights.backbone).final_dim == final.dim
    caught: list[torch.Tensor] = []
    # Blocks a stage, source: table 1 of the EfficientNet paper: 1, 2, 2, 3, 3, 4, 1.
    for index in (4, 7, 10, 14, 15):
        backbone.model._blocks[index].register_forward_hook(lambda _m, _i, out: caught.append(out.mean((2, 3))))
    images = normalized(some_pixels(2, 64), spec_of(weights))
    with torch.no_grad():
        got = backbone(images)
        assert torch.equal(got[:, :1280], final(images))
        assert torch.equal(got[:, 1280:], torch.cat(caught, dim=1))
    assert [part.shape[1] for part in caught] == [40, 80, 112, 192, 320]


def test_train_keeps_a_backbone_in_evaluation_mode(lite0_weights: Weights, some_pixels: Some) -> None:
    backbone = load_backbone(spec_of(lite0_weights), lite0_weights)
    images = normalized(some_pixels(2, 64), spec_of(lite0_weights))
    with torch.no_grad():
        before = backbone(images)
        torch.nn.Sequential(backbone).train()
        assert torch.equal(backbone(images), before)
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.fixture(scope="module")
def engines(lite0_weights: Weights, lite0_spec: FeatureSpec) -> dict[str, Engine]:
    return {
        name: open_engine(lite0_spec, lite0_weights, engine=name, device="cpu", threads=1)
        for name in ("torch", "onnxruntime")
    }


def test_the_engines_agree(engines: dict[str, Engine], some_pixels: Some) -> None:
    pixels = some_pixels(11, 64)
    one, other = (engine.features(pixels) for engine in engines.values())
    assert one.shape == other.shape == (11, 2024)
    assert one.dtype == other.dtype == np.float32
    assert np.abs(one - other).max() < 1e-3
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.999999


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_features_do_not_depend_on_the_neighbours(engines: dict[str, Engine], name: str, some_pixels: Some) -> None:
    """Bit for bit: a run that was stopped and resumed has other batches than an undisturbed one."""
    engine, pixels = engines[name], some_pixels(12, 64)
    whole = engine.features(pixels)
    for count in (1, 2, 3, 5, 8):
        parts = [engine.features(pixels[first : first + count]) for first in range(0, 12, count)]
        assert np.array_equal(np.concatenate(parts), whole), f"in batches of {count}"
    order = np.random.default_rng(0).permutation(12)
    assert np.array_equal(engine.features(pixels[order]), whole[order])


def test_every_call_of_a_network_has_the_same_shape() -> None:
    shapes = []

    def run(batch: np.ndarray) -> np.ndarray:
        shapes.append(batch.shape)
        return batch[:, 0, 0, :2].astype(np.float32)

    pixels = np.arange(7 * 3, dtype=np.uint8).reshape(7, 1, 1, 3)
    assert np.array_equal(in_batches(pixels, 3, run), pixels[:, 0, 0, :2])
    assert shapes == [(3, 1, 1, 3)] * 3


def test_openvino_agrees_in_float32(
    lite0_weights: Weights, lite0_spec: FeatureSpec, engines: dict[str, Engine], some_pixels: Some
) -> None:
    pytest.importorskip("openvino")
    engine = open_engine(lite0_spec, lite0_weights, engine="openvino")
    pixels = some_pixels(10, 64)
    got, expected = engine.features(pixels), engines["onnxruntime"].features(pixels)
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected), "bfloat16 is off by several per cent"
    assert np.array_equal(engine.features(pixels[3:6]), got[3:6])


def test_a_batch_size_asked_for_is_used(lite0_weights: Weights, lite0_spec: FeatureSpec) -> None:
    engine = open_engine(lite0_spec, lite0_weights, engine="torch", device="cpu", batch_size=3)
    assert engine.batch_size == 3


def test_a_gpu_out_of_memory_gets_half_the_batch(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Some, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played on a CPU: the network refuses batches of more than two."""
    from xfeat.featurize.engines.torch_engine import TorchEngine

    engine = TorchEngine(lite0_spec, lite0_weights, device="cpu", batch_size=8)
    pixels = some_pixels(5, 64)
    expected = TorchEngine(lite0_spec, lite0_weights, device="cpu", batch_size=2).features(pixels)
    run = engine._run

    def small_gpu(batch: np.ndarray) -> np.ndarray:
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return run(batch)

    monkeypatch.setattr(engine, "_run", small_gpu)
    assert np.array_equal(engine.features(pixels), expected)
    assert engine.batch_size == 2


# What is not there


def test_a_gpu_that_was_asked_for_is_never_replaced(lite0_weights: Weights, lite0_spec: FeatureSpec) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for engine in ("auto", "torch", "onnxruntime"):
        with pytest.raises(DeviceError, match="cannot use cuda"):
            open_engine(lite0_spec, lite0_weights, engine=engine, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_wrong(device: str) -> None:
    with pytest.raises(SpecError, match="unknown device"):
        resolve_device(device)


def test_an_unknown_engine_is_wrong(lite0_weights: Weights, lite0_spec: FeatureSpec) -> None:
    with pytest.raises(SpecError, match="unknown engine"):
        open_engine(lite0_spec, lite0_weights, engine="tensorflow")
    with pytest.raises(SpecError, match="openvino runs on the CPU"):
        open_engine(lite0_spec, lite0_weights, engine="openvino", device="cuda")


def test_an_engine_that_is_not_installed_says_how_to_get_it(
    lite0_weights: Weights, lite0_spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xfeat-onnx\[openvino\]'"):
        open_engine(lite0_spec, lite0_weights, engine="openvino")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xfeat-onnx\[train\]'"):
        load_backbone(lite0_spec, lite0_weights)


# The kept graph


def test_a_converted_graph_is_kept_and_a_damaged_one_is_made_again(
    lite0_weights: Weights,
    lite0_spec: FeatureSpec,
    engines: dict[str, Engine],
    some_pixels: Some,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The conversion is stood in for by a copy of what it once gave."""
    whole = graph_file(lite0_spec, lite0_weights).read_bytes()
    monkeypatch.setenv("XFEAT_CACHE_DIR", str(tmp_path))
    converted = []

    def convert(spec: FeatureSpec, weights: Weights, path: Path) -> None:
        converted.append(path)
        path.write_bytes(whole)

    monkeypatch.setattr("xfeat.featurize.engines.conversion.convert_feature_network", convert)
    path = graph_file(lite0_spec, lite0_weights)
    assert graph_file(lite0_spec, lite0_weights) == path
    assert converted == [path]
    for changed in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(changed)
        again = OnnxEngine(lite0_spec, lite0_weights, device="cpu")
    assert converted == [path, path, path]
    pixels = some_pixels(2, 64)
    assert np.array_equal(again.features(pixels), engines["onnxruntime"].features(pixels))


@pytest.mark.slow
def test_the_same_network_is_converted_to_the_same_bytes(
    lite0_weights: Weights, lite0_spec: FeatureSpec, tmp_path: Path
) -> None:
    convert_feature_network(lite0_spec, lite0_weights, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == graph_file(lite0_spec, lite0_weights).read_bytes()


def test_a_folder_for_graphs_that_cannot_be_written_is_named_and_another_is_used(
    lite0_weights: Weights,
    lite0_spec: FeatureSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XFEAT_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(
        "xfeat.featurize.engines.conversion.to_onnx",
        lambda *_a, **_k: SimpleNamespace(SerializeToString=lambda **_: b"x"),
    )
    assert graph_file(lite0_spec, lite0_weights).read_bytes() == b"x"
    assert "set XFEAT_CACHE_DIR to a folder that can be written" in caplog.text


# Weights of another network


def saved(path: Path, content: object) -> Weights:
    torch.save(content, path)
    return find_weights("efficientnet-b0", file=path)


def test_weights_of_another_network_are_refused(b0_weights: Weights, lite0_weights: Weights, tmp_path: Path) -> None:
    state = torch.load(b0_weights.path, weights_only=True)
    stem = state["_conv_stem.weight"]
    cases: dict[str, object] = {
        "tensors missing": {key: value for key, value in state.items() if key != "_conv_head.weight"},
        "unknown tensors, such as extra": {**state, "extra": stem},
        "has shape": {**state, "_conv_stem.weight": stem[:, :1]},
        "not a state dict": {"state_dict": state, "epoch": 3},
        "a list, not a state dict": [stem],
    }
    for number, (said, content) in enumerate(cases.items()):
        weights = saved(tmp_path / f"{number}.pth", content)
        with pytest.raises(WeightsError, match=said):
            load_backbone(spec_of(weights), weights)
    for foreign in (b"", b"not a checkpoint", b"PK\x03\x04broken"):
        (tmp_path / "x.pth").write_bytes(foreign)
        weights = find_weights("efficientnet-b0", file=tmp_path / "x.pth")
        with pytest.raises(WeightsError, match="cannot load as plain tensors"):
            load_backbone(spec_of(weights), weights)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    weights = saved(tmp_path / "evil.pth", {"x": Evil()})
    with pytest.raises(WeightsError, match="cannot load as plain tensors"):
        load_backbone(spec_of(weights), weights)
    assert not (tmp_path / "ran").exists()


def test_a_classifier_of_any_width_is_accepted(b0_weights: Weights, tmp_path: Path, some_pixels: Some) -> None:
    """Fine-tuned files have one of their own; it is not used."""
    state = torch.load(b0_weights.path, weights_only=True)
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(2, 1280), torch.zeros(2)
    tuned = saved(tmp_path / "tuned.pth", state)
    images = normalized(some_pixels(1, 64), spec_of(tuned))
    with torch.no_grad():
        expected = load_backbone(spec_of(b0_weights), b0_weights)(images)
        assert torch.equal(load_backbone(spec_of(tuned), tuned)(images), expected)


@pytest.mark.parametrize("name", ["b1", "b2", "lite1", "lite4"])
def test_other_members_of_the_family_are_built_too(name: str) -> None:
    """Widths, source: round_filters of the packages applied to 1280."""
    import importlib

    package = importlib.import_module("efficientnet_lite_pytorch" if "lite" in name else "efficientnet_pytorch")
    model = package.EfficientNet.from_name(f"efficientnet-{name}", image_size=64)
    assert Backbone(model).dim == {"b1": 1280, "b2": 1408, "lite1": 1280, "lite4": 1280}[name]
    assert Backbone(model).dim == backbone_info(f"efficientnet-{name}").final_dim
    images = torch.zeros(1, 3, 64, 64)
    multilevel = Backbone(model, "multilevel")
    assert multilevel(images).shape == (1, multilevel.dim)

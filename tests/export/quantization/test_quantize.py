"""Models in 8 bits and half precision, and the accuracy gate. Scores are compared with scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import Result
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from xfeat.export.model.batches import to_nchw
from xfeat.export.model.file import open_model
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.accuracy_loss import Scores, acceptable, losses, measure
from xfeat.export.parity.run_images import labelled_images
from xfeat.export.quantization.int8 import PreparedModel, quantize_backbone
from xfeat.export.quantization.qdq import store_matrices_in_8_bits
from xfeat.export.quantization.rounding import QuantizedLayers

pytestmark = pytest.mark.slow

Xexport = Callable[..., Result]


@pytest.fixture(scope="module")
def quantized(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An INT8 model that may lose anything, since its weights are random."""
    from click.testing import CliRunner

    from xfeat.export.cli import main

    target = tmp_path_factory.mktemp("int8") / "m.int8.onnx"
    arguments = ["quantize", exported.model, "--run", exported.run.folder, "-o", target, "--gate", "100", "--json"]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return target, json.loads(done.stdout)


def metadata_with(file: Path, **changes: object) -> ModelMetadata:
    return replace(open_model(file).metadata, **changes)


def test_an_int8_model_is_smaller_and_its_metadata_tell_the_precision(
    quantized: tuple[Path, dict[str, Any]], exported: Any
) -> None:
    target, printed = quantized
    model = open_model(target)
    assert model.metadata.precision == "int8"
    assert model.metadata.head_sha256 == exported.run.head_sha256
    assert printed["bytes_after"] == target.stat().st_size < 0.4 * exported.model.stat().st_size
    assert printed["bytes_before"] == exported.model.stat().st_size
    assert model.metadata.float_layers == ()
    assert [each["float_layers"] for each in printed["attempts"]] == [0]


def test_an_int8_model_keeps_inputs_and_outputs(quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    for name in ("m.int8.onnx", "m.int8.core.onnx"):
        found = open_model(quantized[0].with_name(name)).session
        expected = ort.InferenceSession(exported.model if "core" not in name else exported.core)
        assert [(i.name, i.type, i.shape) for i in found.get_inputs()] == [
            (i.name, i.type, i.shape) for i in expected.get_inputs()
        ]
        assert [o.name for o in found.get_outputs()] == [o.name for o in expected.get_outputs()]


def test_its_convolutions_compute_in_8_bits_with_a_scale_per_channel(quantized: tuple[Path, dict[str, Any]]) -> None:
    graph = onnx.load(quantized[0]).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 49
    for node in convolutions:
        source = dequantized[node.input[1]]
        assert weights[source.input[0]].data_type == onnx.TensorProto.INT8
        assert list(weights[source.input[1]].dims) == [weights[source.input[0]].dims[0]]


@pytest.mark.slow
def test_openvino_agrees_with_onnxruntime(quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    """It may use bfloat16 between layers, so an image near the threshold may differ, but not the average."""
    openvino = pytest.importorskip("openvino")
    core = quantized[0].with_name("m.int8.core.onnx")
    pixels = to_nchw(labelled_images(exported.run, "valid", None)[0].pixels)
    model = openvino.Core().compile_model(core, "CPU")
    expected = open_model(core).session.run(["probabilities"], {"image": pixels})[0]
    difference = np.abs(model({"image": pixels})["probabilities"] - expected)
    assert difference.mean() < 0.05
    assert difference.max() < 0.2


def test_verify_accepts_an_int8_model(xexport: Xexport, quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    done = xexport("verify", quantized[0], "--data", exported.data)
    assert done.exit_code == 0, done.output


def test_a_loss_over_the_gate_writes_nothing_and_shows_all_attempts(
    xexport: Xexport, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantised model is replaced by one whose classes are exchanged."""

    def exchanged(prepared: PreparedModel, *_: object) -> onnx.ModelProto:
        model = deepcopy(prepared.model)
        gemm = next(node for node in model.graph.node if "logits" in node.output)
        for tensor in model.graph.initializer:
            if tensor.name in gemm.input[1:]:
                values = -onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr("xfeat.export.quantization.quantize.quantize_backbone", lambda *_: None)
    monkeypatch.setattr("xfeat.export.quantization.quantize.write_int8", exchanged)
    done = xexport("quantize", exported.model, "--run", exported.run.folder, "-o", tmp_path / "m.onnx")
    assert done.exit_code == 1
    for part in ("loses more than the gate allows; nothing was written", "accuracy", "sensitivity", "--fp16"):
        assert part in done.stderr
    assert done.stderr.index("all layers in 8 bits:") < done.stderr.index("stem and first block in float32:")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_stem_and_first_block_stay_in_float32_if_the_gate_refuses_8_bits(
    xexport: Xexport, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refused attempt is not quantised, to save time."""

    def only_second(prepared: PreparedModel, float_layers: tuple[str, ...], *_: object) -> QuantizedLayers:
        return quantize_backbone(prepared, float_layers) if float_layers else QuantizedLayers()

    monkeypatch.setattr("xfeat.export.quantization.quantize.quantize_backbone", only_second)
    answers = iter([False, True])
    monkeypatch.setattr("xfeat.export.quantization.quantize.within_gate", lambda *_: next(answers))
    target = tmp_path / "m.onnx"
    done = xexport("quantize", exported.model, "--run", exported.run.folder, "-o", target, "--json")
    assert done.exit_code == 0, done.output
    block = ("_conv_stem", "_blocks.0._depthwise_conv", "_blocks.0._project_conv")
    assert open_model(target).metadata.float_layers == tuple(json.loads(done.stdout)["float_layers"]) == block
    certificate = json.loads(target.with_suffix(".certificate.json").read_text())
    assert [each["float_layers"] for each in certificate["gate"]["attempts"]] == [0, 3]
    graph = onnx.load(target).graph
    float32 = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert sum(node.input[1] in float32 for node in graph.node if node.op_type == "Conv") == 3


def test_half_precision_is_not_calibrated(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    options = ("--fp16", "--calibration-images", 5)
    done = xexport("quantize", exported.model, "--run", exported.run.folder, "-o", tmp_path / "m.onnx", *options)
    assert done.exit_code == 2
    assert "calibration_images is for int8 only" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [4, 8, None])
def test_metadata_of_version_0_1_can_be_read(exported: Any, bits: int | None) -> None:
    """Its INT8 files carry the bits of the head's first matrix."""
    metadata = metadata_with(exported.model, precision="int8")
    props = metadata.to_props()
    props["xfeat.metadata"] = json.dumps(json.loads(props["xfeat.metadata"]) | {"head_bits": bits})
    assert ModelMetadata.from_props(props, exported.model) == metadata


def test_the_input_model_is_not_overwritten(xexport: Xexport, copied: Any) -> None:
    before = copied.model.read_bytes()
    done = xexport("quantize", copied.model, "--run", copied.run.folder, "-o", copied.model, "--fp16")
    assert done.exit_code == 1
    assert "output would overwrite the input model" in done.stderr
    assert copied.model.read_bytes() == before


def test_half_precision_changes_probabilities_little(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    done = xexport(
        *("quantize", exported.model, "--run", exported.run.folder, "-o", target),
        *("--fp16", "--gate", "100", "--json"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["max_difference"] < 0.05
    assert open_model(target).metadata.precision == "float16"
    assert target.stat().st_size < 0.7 * exported.model.stat().st_size


@pytest.mark.parametrize(("positive", "threshold"), [(None, None), ("disc", 0.3)])
def test_scores_agree_with_scikit_learn(exported: Any, positive: str | None, threshold: float | None) -> None:
    rng = np.random.default_rng(0)
    second = rng.random(50).astype(np.float32)
    probabilities = np.stack([1 - second, second], axis=1)
    labels = ["disc" if value else "bar" for value in rng.random(50) < 0.2 + 0.6 * second]
    metadata = metadata_with(exported.model, positive=positive, threshold=threshold)
    decided = ["disc" if p >= (threshold or 0.5) else "bar" for p in second]
    found = measure(probabilities, labels, metadata)
    assert found.accuracy == pytest.approx(accuracy_score(labels, decided))
    recall = (
        recall_score(labels, decided, pos_label="disc") if positive else recall_score(labels, decided, average="macro")
    )
    assert found.sensitivity == pytest.approx(recall)
    assert found.auc == pytest.approx(roc_auc_score([label == "disc" for label in labels], second))


def test_losses_are_in_points() -> None:
    before, after = Scores(accuracy=0.99, sensitivity=0.95, auc=None), Scores(accuracy=0.98, sensitivity=0.96, auc=None)
    assert losses(before, after) == {"accuracy": pytest.approx(1.0), "sensitivity": pytest.approx(-1.0)}


@pytest.mark.parametrize(
    ("accuracy", "auc", "decided_differently", "accepted"),
    [
        (0.98, 0.95, 1, True),
        (0.98, None, 1, True),
        (0.99, 0.95, 9, True),
        (0.98, 0.95, 2, False),
        (0.98, 0.94, 1, False),
    ],
)
def test_one_changed_decision_is_accepted_and_two_that_lose_are_not(
    accuracy: float, auc: float | None, decided_differently: int, accepted: bool
) -> None:
    before = Scores(accuracy=0.99, sensitivity=0.95, auc=None if auc is None else 0.95)
    after = Scores(accuracy=accuracy, sensitivity=0.95, auc=auc)
    assert acceptable(before, after, 0.5, decided_differently) is accepted


def test_matrices_of_the_head_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    """Compared with torch's fake quantisation, a scale per column; onnxruntime converts them once, on loading."""
    values = np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [128, 128])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [128, 256])],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    store_matrices_in_8_bits(model)
    assert [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT] == [
        "w_scale"
    ]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.eye(128, dtype=np.float32)})[0]
    step = torch.from_numpy(np.abs(values).max(0) / 127)
    zero = torch.zeros(256, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(torch.from_numpy(values), step, zero, 1, -127, 127)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node] == ["MatMul"]


def test_verify_with_the_run_repeats_the_gate(
    xexport: Xexport, exported: Any, quantized: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    core = quantized[0].with_name("m.int8.core.onnx")
    for model in (quantized[0], core):
        done = xexport("verify", model, "--run", exported.run.folder, "--gate", "100", "--json")
        assert done.exit_code == 0, done.output
        printed = json.loads(done.stdout)
        assert (printed["reference"], printed["checks"]) == ("torch", {})
        before, after = printed["worth"]["CPUExecutionProvider"]
        assert set(before) == set(after) == {"accuracy", "sensitivity", "auc"}
    broken = onnx.load(core)
    last = next(node for node in broken.graph.node if "probabilities" in node.output)
    turned = onnx.helper.make_node("Neg", [last.input[0]], ["turned"])
    last.input[0] = "turned"
    broken.graph.node.insert(list(broken.graph.node).index(last), turned)
    onnx.save(broken, tmp_path / "broken.onnx")
    done = xexport("verify", tmp_path / "broken.onnx", "--run", exported.run.folder)
    assert done.exit_code == 1
    assert "loses more against its run than the gate allows" in done.stderr


def test_the_repeated_gate_counts_missing_images(xexport: Xexport, copied: Any, tmp_path: Path) -> None:
    options = ("--run", copied.run.folder, "--gate", "100")
    done = xexport("quantize", copied.model, *options, "-o", tmp_path / "half.onnx", "--fp16", "--json")
    images = json.loads(done.stdout)["images"]
    next(copied.data.glob("valid/disc/*.png")).unlink()
    done = xexport("verify", tmp_path / "half.onnx", *options, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["missing_images"] == 1
    assert f"1 of the run's {images} valid images are missing or unreadable" in done.stderr


def test_the_ood_threshold_is_set_again(quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    """Compared with numpy, from the scores that the files give for the validation images."""
    target, printed = quantized
    pixels = labelled_images(exported.run, "valid", None)[0].pixels
    scores = open_model(target).session.run(["ood"], {"image": pixels})[0]
    before, after = open_model(exported.model).metadata.ood_threshold, open_model(target).metadata.ood_threshold
    assert after == printed["familiar"]["threshold_after"] == pytest.approx(np.quantile(scores, 0.95), rel=1e-4)
    assert printed["familiar"]["threshold_before"] == before != after
    assert printed["familiar"]["beyond_old_threshold"] == pytest.approx((scores > before).mean())


@pytest.mark.parametrize("what", ["core", "other run"])
def test_models_that_cannot_be_quantised_are_refused(xexport: Xexport, copied: Any, what: str, tmp_path: Path) -> None:
    if what == "core":
        done = xexport("quantize", copied.core, "--run", copied.run.folder)
        message = "not a full model in float32"
    else:
        file = copied.run.folder / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"head_sha256": "0" * 64}))
        done = xexport("quantize", copied.model, "--run", copied.run.folder)
        message = "not a model of run first"
    assert done.exit_code == 1
    assert message in done.stderr

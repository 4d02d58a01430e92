"""Models in fewer bits, and the gate that keeps worse ones out. Worth is counted again with scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable
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

from xfeat.export.build.reference_model import labelled_images
from xfeat.export.model.file import describe_model, open_model
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.accuracy_loss import Worth, losses, measure
from xfeat.export.parity.agreement import planes_of
from xfeat.export.quantization.int8 import Ready
from xfeat.export.quantization.onnx_graph import copied
from xfeat.export.quantization.qdq import store_matrices_in_8_bits

Xexport = Callable[..., Result]


def metadata_with(file: Path, **changes: object) -> ModelMetadata:
    return replace(open_model(file).metadata, **changes)


def test_an_int8_model_is_smaller_and_says_what_it_is(quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    target, said = quantized
    model = open_model(target)
    assert model.metadata.precision == "int8"
    assert model.metadata.head_sha256 == exported.run.head_sha256
    assert said["bytes_after"] == target.stat().st_size < 0.4 * exported.model.stat().st_size
    assert said["bytes_before"] == exported.model.stat().st_size
    assert model.metadata.head_bits == said["head_bits"] == 4
    assert describe_model(target)["head_bits"] == 4


def test_an_int8_model_keeps_inputs_and_outputs(quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    for name in ("m.int8.onnx", "m.int8.core.onnx"):
        found = open_model(quantized[0].with_name(name)).session
        expected = ort.InferenceSession(exported.model if "core" not in name else exported.core)
        assert [(i.name, i.type, i.shape) for i in found.get_inputs()] == [
            (i.name, i.type, i.shape) for i in expected.get_inputs()
        ]
        assert [o.name for o in found.get_outputs()] == [o.name for o in expected.get_outputs()]


def test_its_convolutions_compute_in_8_bits_with_a_scale_a_channel(quantized: tuple[Path, dict[str, Any]]) -> None:
    graph = onnx.load(quantized[0]).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    widened = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 49
    for node in convolutions:
        source = widened[node.input[1]]
        assert weights[source.input[0]].data_type == onnx.TensorProto.INT8
        assert list(weights[source.input[1]].dims) == [weights[source.input[0]].dims[0]]


def test_openvino_answers_as_onnxruntime_does(quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    """It may hold what lies between layers in bfloat16: an image near the border may move, not the run of them."""
    openvino = pytest.importorskip("openvino")
    core = quantized[0].with_name("m.int8.core.onnx")
    pixels = planes_of(labelled_images(exported.run, "valid", None)[0].pixels)
    model = openvino.Core().compile_model(core, "CPU")
    expected = open_model(core).session.run(["probabilities"], {"image": pixels})[0]
    moved = np.abs(model({"image": pixels})["probabilities"] - expected)
    assert moved.mean() < 0.05
    assert moved.max() < 0.2


def test_verify_repeats_the_answers_of_an_int8_model(
    xexport: Xexport, quantized: tuple[Path, dict[str, Any]], exported: Any
) -> None:
    done = xexport("verify", quantized[0], "--data", exported.data)
    assert done.exit_code == 0, done.output


def test_a_loss_over_the_gate_writes_nothing_and_shows_the_table(
    xexport: Xexport, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantised graph is stood in for by one whose classes are exchanged."""

    def worse(ready: Ready, *_: object) -> onnx.ModelProto:
        traced = copied(ready.model)
        gemm = next(node for node in traced.graph.node if "logits" in node.output)
        for tensor in traced.graph.initializer:
            if tensor.name in gemm.input[1:]:
                values = -onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return traced

    monkeypatch.setattr("xfeat.export.quantization.quantize.write_int8", worse)
    done = xexport(
        "quantize", exported.model, "--run", exported.run.folder, "-o", tmp_path / "m.onnx", "--float-layers", 0
    )
    assert done.exit_code == 1
    for part in ("worse than the gate allows; nothing was written", "accuracy", "sensitivity", "--float-layers"):
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_original_is_not_replaced(xexport: Xexport, copied: Any) -> None:
    before = copied.model.read_bytes()
    done = xexport("quantize", copied.model, "--run", copied.run.folder, "-o", copied.model, "--fp16")
    assert done.exit_code == 1
    assert "would take the place of its original" in done.stderr
    assert copied.model.read_bytes() == before


@pytest.mark.slow
def test_a_refusal_shows_the_attempt_that_lost_least(
    xexport: Xexport, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What candidates are worth is stood in for: 4 bits in the head lose less than 8."""
    worths = iter([Worth(accuracy=each, sensitivity=each, auc=each) for each in (0.9, 0.7, 0.5)])
    monkeypatch.setattr("xfeat.export.quantization.acceptance.measure", lambda *_: next(worths))
    monkeypatch.setattr(
        "xfeat.export.quantization.quantize.measure", lambda *_: Worth(accuracy=1.0, sensitivity=1.0, auc=1.0)
    )
    done = xexport(
        *("quantize", exported.model, "--run", exported.run.folder, "-o", tmp_path / "m.onnx", "--float-layers", 0)
    )
    assert done.exit_code == 1
    assert "best of 2 attempts: 0 layers in float32, the head's first matrix in 4 bits" in done.stderr
    assert "90.00%" in done.stderr
    assert "70.00%" not in done.stderr


def test_a_model_of_half_precision_answers_almost_as_before(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
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
def test_worth_is_that_of_scikit_learn(exported: Any, positive: str | None, threshold: float | None) -> None:
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
    before, after = Worth(accuracy=0.99, sensitivity=0.95, auc=None), Worth(accuracy=0.98, sensitivity=0.96, auc=None)
    assert losses(before, after) == {"accuracy": pytest.approx(1.0), "sensitivity": pytest.approx(-1.0)}


def test_matrices_of_the_head_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    """Against torch's fake quantisation, a scale a column; onnxruntime widens them once, when it loads the file."""
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


@pytest.mark.slow
def test_layers_stay_in_float32_until_the_gate_is_passed(
    xexport: Xexport, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is stood in for by one that wants one more layer in float32 than the first block has, and 8 bits.

    Each time, the command tries the head's first matrix in 4 bits and then in 8.
    """

    def allows(_: object, candidate: Any) -> bool:
        return len(candidate.float_layers) >= 4 and candidate.head_bits == 8

    monkeypatch.setattr("xfeat.export.quantization.acceptance.Gate.allows", allows)
    target = tmp_path / "m.onnx"
    done = xexport("quantize", exported.model, "--run", exported.run.folder, "-o", target, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert open_model(target).metadata.float_layers == tuple(said["float_layers"])
    assert len(said["float_layers"]) == 4
    assert said["float_layers"][:3] == ["_conv_stem", "_blocks.0._depthwise_conv", "_blocks.0._project_conv"]
    certificate = json.loads(target.with_suffix(".certificate.json").read_text())
    attempts = [(each["float_layers"], each["head_bits"]) for each in certificate["gate"]["attempts"]]
    assert attempts == [(layers, bits) for layers in (0, 3, 4) for bits in (4, 8)]
    assert open_model(target).metadata.head_bits == said["head_bits"] == 8
    graph = onnx.load(target).graph
    kept = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert sum(node.input[1] in kept for node in graph.node if node.op_type == "Conv") == 4


def test_with_its_run_the_gate_is_repeated_for_fewer_bits(
    xexport: Xexport, exported: Any, quantized: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    core = quantized[0].with_name("m.int8.core.onnx")
    for model in (quantized[0], core):
        done = xexport("verify", model, "--run", exported.run.folder, "--gate", "100", "--json")
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert (said["reference"], said["checks"]) == ("torch", {})
        before, after = said["worth"]["CPUExecutionProvider"]
        assert set(before) == set(after) == {"accuracy", "sensitivity", "auc"}
    broken = onnx.load(core)
    last = next(node for node in broken.graph.node if "probabilities" in node.output)
    turned = onnx.helper.make_node("Neg", [last.input[0]], ["turned"])
    last.input[0] = "turned"
    broken.graph.node.insert(list(broken.graph.node).index(last), turned)
    onnx.save(broken, tmp_path / "broken.onnx")
    done = xexport("verify", tmp_path / "broken.onnx", "--run", exported.run.folder)
    assert done.exit_code == 1
    assert "worse than its run by more than the gate allows" in done.stderr


def test_the_repeated_gate_says_how_many_images_are_gone(xexport: Xexport, copied: Any, tmp_path: Path) -> None:
    options = ("--run", copied.run.folder, "--gate", "100")
    done = xexport("quantize", copied.model, *options, "-o", tmp_path / "half.onnx", "--fp16", "--json")
    images = json.loads(done.stdout)["images"]
    next(copied.data.glob("valid/disc/*.png")).unlink()
    done = xexport("verify", tmp_path / "half.onnx", *options)
    assert done.exit_code == 0, done.output
    assert f"1 of {images} valid images can no longer be read" in done.stderr


@pytest.mark.slow
def test_another_rounding_is_tried_before_layers_stay_in_float32(
    xexport: Xexport, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is stood in for by one that refuses what was rounded first."""
    seen: list[Any] = []

    def allows(_: object, candidate: Any) -> bool:
        seen.append(candidate)
        return len(seen) > 2

    monkeypatch.setattr("xfeat.export.quantization.acceptance.Gate.allows", allows)
    monkeypatch.setattr(
        "xfeat.export.quantization.int8._FOLLOWED", 0
    )  # and so no more than at least, of small images too
    target = tmp_path / "m.onnx"
    done = xexport("quantize", exported.model, "--run", exported.run.folder, "-o", target, "--json")
    assert done.exit_code == 0, done.output
    attempts = [(each["float_layers"], each["head_bits"]) for each in json.loads(done.stdout)["attempts"]]
    assert attempts == [(0, 4), (0, 8), (0, 4)]
    assert np.abs(seen[0].answers - seen[2].answers).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fp16", "--float-layers", 0), "half precision keeps no layers in float32"),
        (("--fp16", "--calibration-images", 5), "half precision is not calibrated"),
        (("--float-layers", 50), "more layers in float32 than the model has"),
    ],
)
def test_options_that_say_nothing_are_refused(
    xexport: Xexport,
    exported: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    """Before any image is read."""
    monkeypatch.setattr("xfeat.export.quantization.quantize.labelled_images", pytest.fail)
    done = xexport("quantize", exported.model, "--run", exported.run.folder, "-o", tmp_path / "m.onnx", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_threshold_of_the_distance_is_set_again(quantized: tuple[Path, dict[str, Any]], exported: Any) -> None:
    """By numpy, from what the files say of the validation images."""
    target, said = quantized
    pixels = labelled_images(exported.run, "valid", None)[0].pixels
    distances = open_model(target).session.run(["ood"], {"image": pixels})[0]
    before, after = open_model(exported.model).metadata.ood_threshold, open_model(target).metadata.ood_threshold
    assert after == said["familiar"]["threshold_after"] == pytest.approx(np.quantile(distances, 0.95), rel=1e-4)
    assert said["familiar"]["threshold_before"] == before != after
    assert said["familiar"]["beyond_old_threshold"] == pytest.approx((distances > before).mean())


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

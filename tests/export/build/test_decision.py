"""The decision in the graph is that of ``ModelMetadata.decide``, bit for bit, ties at the threshold included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfeat.export.build.assemble import detach_resize
from xfeat.export.build.decision import add_decision, remove_decision
from xfeat.export.model.file import open_model
from xfeat.export.model.interface import float32_threshold
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.errors import ModelError
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

NAMES = ("first", "second", "third")


def metadata(**settings: Any) -> ModelMetadata:
    spec = FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64)
    sums = {"cache_sha256": "0", "head_sha256": "0", "run": "r"}
    return ModelMetadata(**({"variant": "full", "class_names": NAMES, "feature_spec": spec} | sums | settings))


def graph_of(about: ModelMetadata) -> onnx.ModelProto:
    """Return a graph whose probabilities are its input."""
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", len(about.class_names)])
        for name in ("image", "probabilities")
    ]
    node = onnx.helper.make_node("Identity", ["image"], ["probabilities"])
    graph = onnx.helper.make_graph([node], "g", [values[0]], [values[1]])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    add_decision(proto, about)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def decided(proto: onnx.ModelProto, probabilities: np.ndarray, **feeds: Any) -> list[int]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(["decision"], {"image": probabilities, **feeds})
    assert found.dtype == np.int64
    return list(found)


def by_rule(about: ModelMetadata, probabilities: np.ndarray, threshold: float | None = None) -> list[int]:
    return [about.class_names.index(about.decide(row, threshold)) for row in probabilities.tolist()]


SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 1.0]) | st.floats(0, 1, width=32)


@given(rows=st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=1, max_size=5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_graph_decides_as_the_rule_does(rows: list[tuple[float, ...]], data: st.DataObject) -> None:
    probabilities = np.array(rows, np.float32)
    positive = data.draw(st.sampled_from([None, *NAMES]))
    if positive is None:
        about = metadata()
    else:
        at = float(probabilities[0, NAMES.index(positive)])
        near = [at, np.nextafter(at, 2), np.nextafter(at, -1), float(np.nextafter(np.float32(at), np.float32(2)))]
        threshold = data.draw(st.sampled_from([min(max(each, 0.0), 1.0) for each in near]) | st.floats(0, 1))
        about = metadata(positive=positive, threshold=threshold)
    assert decided(graph_of(about), probabilities) == by_rule(about, probabilities)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1 / 3, 0.5, 1 - 2**-30, 1.0, 5e-324])
def test_the_threshold_of_the_graph_is_the_lowest_float32_that_reaches_it(threshold: float) -> None:
    found = float32_threshold(threshold)
    assert float(found) >= threshold
    assert threshold == 0 or float(np.nextafter(found, np.float32(-1))) < threshold


@pytest.mark.parametrize("moved", [0.0, 0.2, 0.6, 0.61, 1.0])
def test_the_threshold_can_be_moved(moved: float) -> None:
    about = metadata(positive="second", threshold=0.5)
    probabilities = np.array([[0.1, 0.6, 0.3], [0.7, 0.2, 0.1], [0.0, 1.0, 0.0]], np.float32)
    found = decided(graph_of(about), probabilities, threshold=np.array(moved, np.float32))
    assert found == by_rule(about, probabilities, float(np.float32(moved)))


def test_without_a_positive_class_there_is_no_threshold_to_move() -> None:
    proto = graph_of(metadata())
    assert [value.name for value in proto.graph.input] == ["image"]


@pytest.mark.parametrize("about", [metadata(), metadata(positive="first", threshold=0.5)])
@pytest.mark.parametrize("row", [[np.nan] * 3, [0.5, np.nan, 0.1], [np.nan, 0.9, 0.1]])
def test_what_is_not_a_number_has_no_decision(about: ModelMetadata, row: list[float]) -> None:
    assert decided(graph_of(about), np.array([row, [0.1, 0.7, 0.2]], np.float32)) == [-1, 1]


@pytest.mark.parametrize("about", [metadata(), metadata(positive="third", threshold=0.5)])
def test_what_was_added_can_be_removed(about: ModelMetadata) -> None:
    proto = graph_of(about)
    remove_decision(proto)
    assert [node.op_type for node in proto.graph.node] == ["Identity"]
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["image", "probabilities"]
    assert list(proto.graph.initializer) == []


def test_an_exported_model_decides_and_its_resize_is_detached_without_the_decision(exported: Any) -> None:
    model = open_model(exported.model)
    assert "decision" in {tensor.name for tensor in model.outputs}
    assert [tensor.name for tensor in model.inputs] == ["image"]
    found = model.run(np.zeros((2, 64, 64, 3), np.uint8))
    assert found.decision is not None
    assert found.decision.tolist() == by_rule(model.metadata, found.probabilities)
    traced = detach_resize(onnx.load(exported.model), PreprocessSpec(size=64))
    assert [value.name for value in traced.graph.output] == ["probabilities", "logits", "heatmap", "ood"]
    assert not any(node.name.startswith("decision") for node in traced.graph.node)


def test_a_decision_of_another_type_is_refused(exported: Any, tmp_path: Path) -> None:
    proto = onnx.load(exported.model)
    [last] = [node for node in proto.graph.node if "decision" in node.output]
    last.output[:] = ["decision_int64"]
    proto.graph.node.append(onnx.helper.make_node("Cast", ["decision_int64"], ["decision"], to=onnx.TensorProto.FLOAT))
    [value] = [value for value in proto.graph.output if value.name == "decision"]
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="outputs do not match its metadata"):
        open_model(tmp_path / "m.onnx")


def test_a_model_without_the_decision_still_works(exported: Any, tmp_path: Path) -> None:
    proto = onnx.load(exported.model)
    remove_decision(proto)
    onnx.save(proto, tmp_path / "m.onnx")
    model = open_model(tmp_path / "m.onnx")
    found = model.run(np.zeros((1, 64, 64, 3), np.uint8))
    assert (found.decision, found.probabilities.shape) == (None, (1, 2))
    assert replace(model.metadata, variant="core") == open_model(exported.core).metadata


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_models_of_lower_precision_decide_by_their_own_probabilities(
    xexport: Any, exported: Any, quantized: Any, tmp_path: Path, precision: str
) -> None:
    path = quantized[0]
    if precision == "float16":
        path = tmp_path / "half.onnx"
        done = xexport("quantize", exported.model, "--fp16", "--run", exported.run.folder, "-o", path, "--gate", 100)
        assert done.exit_code == 0, done.output
    model = open_model(path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    found = model.run(pixels)
    assert model.metadata.precision == precision
    assert found.decision is not None
    assert found.decision.tolist() == by_rule(model.metadata, found.probabilities)

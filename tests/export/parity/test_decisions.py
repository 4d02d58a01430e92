"""A model whose decision does not follow from its probabilities passes no check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from xfeat.export.model.file import open_model
from xfeat.export.parity.checks import onnx_probabilities
from xfeat.export.parity.decisions import check_decisions
from xfeat.featurize.errors import ParityError

BLACK = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.fixture
def with_threshold(exported: Any, tmp_path: Path) -> onnx.ModelProto:
    """The exported model with a positive class, although its run has none."""
    from dataclasses import replace

    from xfeat.export.build.decision import add_decision, remove_decision

    proto = onnx.load(exported.model)
    remove_decision(proto)
    about = replace(open_model(exported.model).metadata, positive="bar", threshold=1e-6)
    add_decision(proto, about)
    onnx.helper.set_model_props(proto, about.to_props())
    return proto


def changed(proto: onnx.ModelProto, what: str) -> None:
    graph = proto.graph
    if what == "comparison":
        [node] = [node for node in graph.node if node.op_type == "GreaterOrEqual" and "threshold" in node.input]
        node.op_type = "Greater"
    elif what == "threshold":
        [weight] = [weight for weight in graph.initializer if weight.name == "threshold"]
        weight.CopyFrom(onnx.numpy_helper.from_array(np.array(2, np.float32), weight.name))


@pytest.mark.parametrize("what", ["nothing", "comparison", "threshold"])
def test_a_changed_decision_is_found(with_threshold: onnx.ModelProto, tmp_path: Path, what: str) -> None:
    changed(with_threshold, what)
    onnx.save(with_threshold, tmp_path / "m.onnx")
    model = open_model(tmp_path / "m.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)

    def check() -> None:
        onnx_probabilities(model, pixels)
        check_decisions(model, pixels)

    if what == "nothing":
        check()
    else:
        with pytest.raises(ParityError, match="decision does not follow"):
            check()


@pytest.mark.parametrize("model", ["model", "core"])
def test_models_without_a_threshold_pass(exported: Any, model: str) -> None:
    check_decisions(open_model(getattr(exported, model)), BLACK)

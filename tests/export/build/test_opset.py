"""The core model for older runtimes, against itself at opset 18."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from xfeat.export.build.opset import lower_opset
from xfeat.export.specs import ExportSpec
from xfeat.featurize.errors import SpecError


def planes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64)).astype(np.float32)


def test_at_opset_13_the_core_model_gives_the_same_outputs(exported: Any) -> None:
    lowered = lower_opset(onnx.load(exported.core), 13)
    assert [(entry.domain, entry.version) for entry in lowered.opset_import] == [("", 13)]
    assert "ReduceMean" not in {node.op_type for node in lowered.graph.node}
    found = ort.InferenceSession(lowered.SerializeToString()).run(None, {"image": planes()})
    expected = ort.InferenceSession(exported.core).run(None, {"image": planes()})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_metadata_are_the_same_at_the_older_opset(exported: Any) -> None:
    model = onnx.load(exported.core)
    before = {entry.key: entry.value for entry in model.metadata_props}
    assert {entry.key: entry.value for entry in lower_opset(model, 13).metadata_props} == before


def test_an_unsupported_opset_is_refused(xexport: Any) -> None:
    with pytest.raises(SpecError, match="unsupported opset"):
        ExportSpec(opset=11)
    done = xexport("onnx", "--opset", "11")
    assert done.exit_code == 2
    assert "13" in done.stderr


def test_the_command_writes_and_checks_a_core_model_of_opset_13(
    xexport: Any, copied: Any, quick_trace: None, tmp_path: Any
) -> None:
    done = xexport("onnx", copied.run.folder, "-o", tmp_path / "m.onnx", "--opset", "13", "--json")
    assert done.exit_code == 0, done.output
    assert onnx.load(tmp_path / "m.core.onnx").opset_import[0].version == 13
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 18

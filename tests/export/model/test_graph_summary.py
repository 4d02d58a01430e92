"""What a file consists of, read without the package onnx, against what that package reads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from xfeat.export.model.graph_summary import summarize_graph


def model(*tensors: onnx.TensorProto, opsets: tuple[tuple[str, int], ...] = (("", 18),)) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    nodes = [helper.make_node(kind, ["x"], [f"{kind}{n}"]) for n, kind in enumerate(["Abs", "Relu", "Abs", "Größe"])]
    graph = helper.make_graph(nodes, "g", [value], [value], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*pair) for pair in opsets])


def array(*shape: int) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.zeros(shape, np.float32), f"t{shape}")


MODELS = {
    "no weights": model(),
    "scalar": model(array()),
    "several": model(array(2, 3), array(300, 2), array(1, 1, 1, 1)),
    "empty tensor": model(array(0, 5)),
    "values not raw": model(helper.make_tensor("w", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])),
    "another domain first": model(opsets=(("com.microsoft", 1), ("", 13))),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_summary_is_what_onnx_reads(name: str) -> None:
    proto = MODELS[name]
    found = summarize_graph(proto.SerializeToString())
    assert found.opset == next(entry.version for entry in proto.opset_import if not entry.domain)
    assert found.parameters == sum(int(np.prod(tensor.dims)) for tensor in proto.graph.initializer)
    assert found.operators == Counter(node.op_type for node in proto.graph.node)
    assert next(iter(found.operators)) == "Abs"


def test_dimensions_may_be_packed() -> None:
    """As other writers of protobuf store them: field 1 of the tensor as one field of bytes."""
    tensor = b"\x0a\x03\x02\xac\x02"  # 2 and 300
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    assert summarize_graph(b"\x3a" + bytes([len(graph)]) + graph).parameters == 600


def test_what_is_cut_or_no_onnx_file_is_refused() -> None:
    content = MODELS["several"].SerializeToString()
    for end in range(1, len(content)):
        try:
            summarize_graph(content[:end])
        except ValueError:
            continue
    for wrong in (b"\xff" * 20, b"\x3a\x05ab", b"\x38\x01", b"\x3b"):
        with pytest.raises(ValueError, match=r"number|field|wire"):
            summarize_graph(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["model", "core"])
def test_info_runs_where_neither_onnx_nor_torch_is_installed(exported: Any, variant: str) -> None:
    code = (
        "import sys\n"
        "for name in ('onnx', 'torch', 'onnxscript', 'scipy', 'sklearn', 'h5py', 'fastapi'): sys.modules[name] = None\n"
        "from xfeat.export.cli import main\n"
        "main(['info', sys.argv[1], '--json'])"
    )
    path = getattr(exported, variant)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, proto = json.loads(done.stdout), onnx.load(path)
    assert said["operators"] == Counter(node.op_type for node in proto.graph.node)
    assert said["optional_inputs"] == []

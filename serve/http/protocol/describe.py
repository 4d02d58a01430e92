"""Models as the protocol describes them, and as Triton's clients ask for their configuration."""

from __future__ import annotations

from typing import Any

from xfeat.export.model.interface import DECISION, INPUT, Outputs
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ServedModel

VERSION = "1"
_PLATFORM = "onnxruntime_onnx"
# Images may have any size, whatever the graph's input: the server resizes them like files.
_ANY_IMAGE = [-1, -1, 3]


def describe_outputs(predictor: Predictor) -> dict[str, list[int]]:
    """Return the shapes of the outputs by their names, in the protocol's order; -1 is an axis of any length.

    Every model has a decision here: the server decides by the probabilities, where the file has no such output.
    """
    shapes = {tensor.name: list(tensor.shape) for tensor in predictor.model.outputs} | {DECISION: [-1]}
    return {name: shapes[name] for name in Outputs._fields if name in {*predictor.model.known_outputs, DECISION}}


def _datatype(name: str) -> str:
    return "INT64" if name == DECISION else "FP32"


def describe_model(model: ServedModel) -> dict[str, Any]:
    """Return the metadata that the protocol defines, as plain JSON types."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": _PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *_ANY_IMAGE]}],
        "outputs": [
            {"name": name, "datatype": _datatype(name), "shape": shape}
            for name, shape in describe_outputs(model.predictor).items()
        ],
    }


def describe_config(model: ServedModel, max_images: int) -> dict[str, Any]:
    """Return the configuration that Triton would have of the model, as plain JSON types.

    Args:
        model: to describe.
        max_images: most images per request. Its axis is left out of the shapes, as Triton's configurations do.
    """
    return {
        "name": model.name,
        "platform": _PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": max_images,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": _ANY_IMAGE}],
        "output": [
            {"name": name, "data_type": f"TYPE_{_datatype(name)}", "dims": shape[1:]}
            for name, shape in describe_outputs(model.predictor).items()
        ],
    }

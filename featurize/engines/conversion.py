"""Torch to ONNX: the only module that calls the exporter, for the feature engine and for ``xexport``."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from xfeat.featurize.backbones.network import FeatureNetwork, load_backbone
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.atomic import ELSEWHERE, replacing
from xfeat.featurize.system.user_cache import ANOTHER_CACHE, temporary_folder

OPSET = 18


def to_onnx(
    module: nn.Module, example: torch.Tensor, *, input_name: str, output_names: list[str], dynamic: dict[int, str]
) -> onnx.ModelProto:
    """Trace a module into a clean ONNX model, opset 18.

    Args:
        module: in evaluation mode, with one tensor as input.
        example: an input; its shape is fixed in the graph except along ``dynamic``.
        input_name: name of the graph's input.
        output_names: names of its outputs.
        dynamic: axis number to name, for axes of variable size.

    Returns:
        The checked model, without stack traces, local paths or stale shapes.
    """
    if module.training:
        raise ValueError("the module must be in evaluation mode")
    shapes = {axis: torch.export.Dim(name) for axis, name in dynamic.items()}
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        # Without a place for temporary files, the exporter fails with an error about something else.
        with temporary_folder(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecated internals
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[input_name],
                output_names=output_names,
                dynamic_shapes=(shapes,),
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return _cleaned(program.model_proto)


def write_model(model: onnx.ModelProto, path: Path, *, elsewhere: str = ELSEWHERE) -> None:
    """Write a model to ``path``, with the same bytes for the same model; ``elsewhere`` says how to choose another path.

    Raises:
        OutputError: if it cannot be written; nothing is then left behind.
    """
    content = model.SerializeToString(deterministic=True)
    with replacing(path, elsewhere=elsewhere) as partial:
        partial.write_bytes(content)


def convert_feature_network(spec: FeatureSpec, weights: Weights, path: Path) -> None:
    """Convert the frozen network of ``spec`` to ONNX: ``image`` uint8 (N, S, S, 3) to ``features`` float32 (N, D)."""
    network = FeatureNetwork(load_backbone(spec, weights), spec.preprocess).eval()
    example = torch.zeros((2, spec.preprocess.size, spec.preprocess.size, 3), dtype=torch.uint8)
    model = to_onnx(network, example, input_name="image", output_names=["features"], dynamic={0: "N"})
    write_model(model, path, elsewhere=ANOTHER_CACHE)


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    # Nodes carry stack traces with local paths; intermediate shapes carry symbols that some runtimes refuse.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != OPSET:
        raise RuntimeError(f"the exporter wrote opset {versions.get('')} instead of {OPSET}")
    onnx.checker.check_model(model, full_check=True)
    return model

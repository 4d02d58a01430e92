"""Composes one graph: normalisation, the ONNX file of an encoder, and the tail of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
import onnx.compose
import onnx.inliner
import onnx.version_converter
import torch
from onnx.external_data_helper import uses_external_data
from onnxscript import optimizer

from xfeat.export.build.assemble import EXAMPLES
from xfeat.export.build.encoder_network import EncoderNetwork, EncoderTail
from xfeat.export.build.fused_model import Tail
from xfeat.export.build.graph import keep, parse_graph
from xfeat.featurize.backbones.encoder_file import EncoderFile
from xfeat.featurize.engines.conversion import OPSET, to_onnx
from xfeat.featurize.errors import ModelError
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.onnx_session import first_line

ENCODED = "encoded"
"""Name of the encoder's output in a composed graph: everything before it is the encoder, everything after the tail."""

_MIN_IR_VERSION = 8  # before 4, weights stand among the inputs as well
# protobuf's limit is 2^31 bytes per file; the rest is for the other parts of the model.
_MAX_BYTES = 2**31 - 2**27

_NORMALISATION = """
normalisation (float[N, 3, {side}, {side}] image) => (float[N, 3, {side}, {side}] normalised) <
    float normalise_white = {{255}},
    float[1, 3, 1, 1] normalise_mean = {{{mean}}}, float[1, 3, 1, 1] normalise_std = {{{std}}}
> {{
    normalise_share = Div (image, normalise_white)
    normalise_centred = Sub (normalise_share, normalise_mean)
    normalised = Div (normalise_centred, normalise_std)
}}
"""

# Runs an encoder of fixed batch size on any number of images: the last batch is filled up with zeros.
# Source: https://onnx.ai/onnx/operators/onnx__Scan.html
_IN_BATCHES = """
in_batches (float[N, 3, {side}, {side}] images) => (float[N, {rest}] joined) <
    int64[1] first = {{0}}, int64[1] one = {{1}}, float zero = {{0}}, int64[1] batch = {{{batch}}},
    int64[5] batched_shape = {{-1, {batch}, 3, {side}, {side}}}, int64[{rank}] joined_shape = {{-1, {rest}}}
> {{
    shape = Shape (images)
    count = Slice (shape, first, one)
    negative = Neg (count)
    missing = Mod (negative, batch)
    pads = Concat <axis = 0> (first, missing)
    filled = Pad (images, pads, zero, first)
    batched = Reshape (filled, batched_shape)
    encoded_batches = Scan <num_scan_inputs = 1> (batched)
    joined_batches = Reshape (encoded_batches, joined_shape)
    joined = Slice (joined_batches, first, count)
}}
"""


def compose(network: EncoderNetwork, tail: Tail, preprocess: PreprocessSpec) -> onnx.ModelProto:
    """Compose a model, as :func:`xfeat.export.build.assemble.trace` makes one of a network of this project.

    Args:
        network: the encoder and its pooling.
        tail: everything after the features, as for :class:`EncoderTail`.
        preprocess: size, mean and std.

    Returns:
        ``image`` float32 (N, 3, S, S), RGB in 0..255, and all outputs; the tensor between encoder and tail is ENCODED.

    Raises:
        ModelError: if the encoder cannot be part of a model that runs elsewhere.
    """
    encoder = network.encoder
    middle, rest = _read(encoder, preprocess.size), _shape_after_batch(encoder)
    if encoder.batch is not None:
        middle = _in_batches(middle, encoder.batch, preprocess.size, rest)
    _rename_output(middle, ENCODED)
    opset = _opset(middle)
    first = _normalisation(preprocess, opset)
    last = to_onnx(
        EncoderTail(encoder, network.pooling, tail),
        torch.zeros((EXAMPLES, *rest)),
        input_name=ENCODED,
        output_names=tail.output_names,
        dynamic={0: "N"},
    )
    last = onnx.version_converter.convert_version(last, opset)
    for part in (first, middle, last):
        part.ir_version = max(last.ir_version, middle.ir_version)
    model = onnx.compose.merge_models(first, middle, io_map=[("normalised", middle.graph.input[0].name)])
    model = onnx.compose.merge_models(model, last, io_map=[(ENCODED, ENCODED)])
    optimizer.remove_unused_nodes(model)
    del model.graph.value_info[:]
    return model


def _normalisation(preprocess: PreprocessSpec, opset: int) -> onnx.ModelProto:
    """Return the graph of :class:`xfeat.featurize.backbones.network.Normalize`, from ``image`` to ``normalised``."""
    mean, std = (", ".join(map(repr, values)) for values in (preprocess.mean, preprocess.std))
    graph = parse_graph(_NORMALISATION.format(side=preprocess.size, mean=mean, std=std))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def _shape_after_batch(encoder: EncoderFile) -> tuple[int, ...]:
    match encoder.kind, encoder.grid:
        case "map", (height, width):
            return (encoder.dim, height, width)
        case "tokens", _:
            return (encoder.tokens, encoder.dim)
        case _:
            return (encoder.dim,)


def _read(encoder: EncoderFile, side: int) -> onnx.ModelProto:
    """Read an encoder with all its data: one input, one output, opset 18 or higher, names of its own."""
    _check_size(encoder)
    model = onnx.load(encoder.path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph, batch = model.graph, encoder.batch or "N"
    model.ir_version = max(model.ir_version, _MIN_IR_VERSION)
    _check_domains(encoder, model)
    keep(graph.input, lambda value: value.name == encoder.input_name)  # weights may stand among the inputs
    keep(graph.output, lambda value: value.name == encoder.output_name)
    # Shapes that a file states can be wrong or free: those that count were seen when it ran.
    for value, shape in ((graph.input[0], (3, side, side)), (graph.output[0], _shape_after_batch(encoder))):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [batch, *shape]))
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    graph.doc_string = ""
    for number, node in enumerate(_nodes(graph.node)):
        del node.metadata_props[:]  # and local paths in them
        node.doc_string, node.name = "", f"{number}_{node.op_type}"
    optimizer.remove_unused_nodes(model)
    if _opset(model) < OPSET:
        model = _raised(encoder, model)
    _store_constants(model.graph)
    return onnx.compose.add_prefix(model, "encoder_")


def _store_constants(graph: onnx.GraphProto) -> None:
    """Store constants as weights, where the rest of the export looks for them."""
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        graph.initializer.add().CopyFrom(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _rename_output(model: onnx.ModelProto, wanted: str) -> None:
    name = model.graph.output[0].name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [wanted if each == name else each for each in names]
    model.graph.output[0].name = wanted


def _check_size(encoder: EncoderFile) -> None:
    graph = onnx.load(encoder.path, load_external_data=False).graph
    outside = sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
        if uses_external_data(tensor)
    )
    size = encoder.path.stat().st_size + outside
    if size > _MAX_BYTES:
        raise ModelError(
            "the encoder is too large for one ONNX file",
            path=encoder.path,
            expected=f"at most {_MAX_BYTES / 1e9:.1f} GB with its data",
            found=f"{size / 1e9:.1f} GB",
            fix="xfeat featurize with a smaller encoder; features and heads of this one can be used without a model",
        )


def _check_domains(encoder: EncoderFile, model: onnx.ModelProto) -> None:
    for each in (*model.opset_import, *model.graph.node):
        if each.domain == "ai.onnx":  # another name of the default domain
            each.domain = ""
    others = sorted({f"{node.domain}.{node.op_type}" for node in _nodes(model.graph.node) if node.domain})
    if others:
        raise ModelError(
            "the encoder has operators that are not ONNX's own, which other runtimes do not have",
            path=encoder.path,
            expected="operators of ONNX",
            found=", ".join(others),
            fix=_again("without them (they are written by optimisation tools, such as onnxruntime's)"),
        )
    keep(model.opset_import, lambda entry: entry.domain == "")


def _nodes(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return nodes and those of their subgraphs."""
    inner = [attribute.g.node for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    return [*nodes, *(node for each in inner for node in _nodes(each))]


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _raised(encoder: EncoderFile, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in opset 18. That it computes the same is part of the check of the whole model."""
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:  # ConvertError is a RuntimeError
        raise ModelError(
            f"the encoder's opset {_opset(model)} cannot be raised to {OPSET}",
            path=encoder.path,
            expected=f"opset {OPSET}, or operators that onnx.version_converter knows",
            found=first_line(error),
            fix=_again(f"opset_version={OPSET}"),
        ) from error


def _in_batches(encoder: onnx.ModelProto, batch: int, side: int, rest: tuple[int, ...]) -> onnx.ModelProto:
    """Return a model for any number of images, which an encoder of fixed batch size computes batch by batch."""
    text = _IN_BATCHES.format(batch=batch, side=side, rest=", ".join(map(str, rest)), rank=1 + len(rest))
    graph = parse_graph(text)
    for node in graph.node:
        if node.op_type == "Scan":
            node.attribute.append(onnx.helper.make_attribute("body", encoder.graph))
    graph = onnx.compose.add_prefix_graph(graph, "in_batches_")
    return onnx.helper.make_model(graph, opset_imports=encoder.opset_import, ir_version=encoder.ir_version)


def _again(how: str) -> str:
    return f"export the encoder to ONNX again {how}, then xfeat featurize and xhead train"

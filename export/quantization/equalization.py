"""Rewriting a float32 model so that 8 bits suit it: the same answers, with channels of about one range."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.assemble import INPUT
from xfeat.export.model.batches import batches
from xfeat.export.quantization.onnx_graph import Graph, attribute, run_model
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import PreprocessSpec

# Operators that a positive factor a channel passes through.
_PASS = ("Clip", "Relu", "Add")
# The square root shares the gain between a layer's activations and the next layer's weights, which get narrower by as
# much as the channels get wider. Source: cross-layer equalisation, Nagel et al. 2019 (arXiv:1906.04721), section 4.1.
# Where no bound cuts, rounding activations costs several times what rounding weights does: they get all of it.
_EXPONENT, _UNBOUNDED_EXPONENT = 0.5, 1.0
_MAX_STRETCH = 1000.0
# Of fewer images, what a bound then cuts off others costs more than narrow channels do.
_FEWEST = 50
# The image with its mean taken off.
CENTRED = "centred"

Array = NDArray[np.float64]


def equalise(model: onnx.ModelProto, pixels: Pixels) -> None:
    """Widen the narrow channels between convolutions, and divide the weights that read them by as much.

    One scale for all channels of a tensor leaves a narrow channel only some of the 256 levels. A Clip at the channel's
    bound stays where it is: what is widened is cut off halfway, in proportion, between the largest value that the
    images reached and the bound. Few images reach too little of what others do: then such channels stay as they are.

    Args:
        model: float32, changed in place.
        pixels: uint8 (n, S, S, 3), images of the training.
    """
    graph = Graph(model)
    producers = graph.producers()
    groups = _groups(graph)
    widths = _widths(model, [name for group in groups for name in group], pixels)
    for group in groups:
        bounds = {name: _upper_bound(graph, producers[name]) for name in group}
        cut = [name for name, bound in bounds.items() if bound is not None]
        if cut and len(pixels) < _FEWEST:
            continue
        width = np.max([widths[name] for name in cut or group], axis=0)
        top = max((bound for bound in bounds.values() if bound is not None), default=float(width.max()))
        stretch = np.clip(top / np.maximum(width, 1e-6), 1, _MAX_STRETCH) ** (_EXPONENT if cut else _UNBOUNDED_EXPONENT)
        for name in group:
            _stretch(graph, name, producers[name], stretch)


def fold_normalisation(model: onnx.ModelProto, preprocess: PreprocessSpec) -> None:
    """Leave one pass over the image, taking off the mean, of three: the first weights divide by the deviation.

    Args:
        model: float32, changed in place.
        preprocess: the normalisation inside.
    """
    graph = Graph(model)
    first = graph.convolutions[0]
    behind = graph.nodes[graph.nodes.index(first) :]
    mean, deviation = (255 * np.reshape(each, (1, -1, 1, 1)) for each in (preprocess.mean, preprocess.std))
    _scale(graph, first.input[1], 1 / deviation)
    graph.set_weight(f"{CENTRED}_by", mean.astype(np.float32))
    behind[0].input[0] = CENTRED
    graph.replace_nodes([onnx.helper.make_node("Sub", [INPUT, f"{CENTRED}_by"], [CENTRED], name=CENTRED), *behind])


def common_mean(graph: Graph) -> float | None:
    """Return what a model made ready takes off the grey levels of every channel; ``None`` if channels differ."""
    means = np.unique(graph.weight(f"{CENTRED}_by"))
    return float(means[0]) if len(means) == 1 else None


def _widths(model: onnx.ModelProto, names: Collection[str], pixels: Pixels) -> dict[str, Array]:
    """Return the largest magnitude (C,) in each channel of tensors (N, C, h, w)."""
    found: dict[str, list[Array]] = {name: [] for name in names}
    for block in batches(pixels):
        for name, values in zip(names, run_model(model, block, list(names)), strict=True):
            found[name].append(np.abs(values).max((0, 2, 3)))
    return {name: np.max(each, axis=0) for name, each in found.items()}


def _groups(graph: Graph) -> list[list[str]]:
    """Return sets of tensors that must have the same factors, each made by convolutions alone."""
    producers = graph.producers()
    parent: dict[str, str] = {node.output[0]: node.output[0] for node in graph.convolutions}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op_type in _PASS:
            for name in node.input if node.op_type == "Add" else node.input[:1]:
                parent[root(name)] = root(node.output[0])
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(root(name), []).append(name)
    made = [*_PASS, "Conv"]
    return [
        group
        for group in groups.values()
        if all(name in producers and producers[name].op_type in made for name in group)
    ]


def _upper_bound(graph: Graph, node: onnx.NodeProto) -> float | None:
    if node.op_type != "Clip" or not graph.is_weight(node.input[2]):
        return None
    return float(graph.weight(node.input[2]))


def _stretch(graph: Graph, name: str, producer: onnx.NodeProto, stretch: Array) -> None:
    """Multiply the channels of a tensor where a convolution makes them, and divide where they are read."""
    if producer.op_type == "Conv":
        _scale(graph, producer.input[1], stretch.reshape(-1, 1, 1, 1))
        _scale(graph, producer.input[2], stretch)
    others = []
    for reader in graph.readers().get(name, []):
        if reader.op_type == "Conv":
            by_input = attribute(reader, "group", 1) == 1
            _scale(graph, reader.input[1], 1 / stretch.reshape((1, -1, 1, 1) if by_input else (-1, 1, 1, 1)))
        elif reader.op_type == "ReduceMean":  # over height and width: dividing the means is less work
            shape = (1, -1, 1, 1) if attribute(reader, "keepdims", 1) else (1, -1)
            _divide(graph, reader.output[0], stretch.reshape(shape), graph.readers()[reader.output[0]])
        elif reader.op_type not in _PASS:
            others.append(reader)
    if others:
        _divide(graph, name, stretch.reshape(1, -1, 1, 1), others)


def _divide(graph: Graph, name: str, stretch: Array, readers: Sequence[onnx.NodeProto]) -> None:
    """Let some readers of a tensor read it divided."""
    graph.set_weight(f"{name}_unstretch", (1 / stretch).astype(np.float32))
    back = onnx.helper.make_node("Mul", [name, f"{name}_unstretch"], [f"{name}_level"], name=f"{name}_level")
    graph.insert_behind(name, back, readers)


def _scale(graph: Graph, name: str, factor: Array) -> None:
    graph.set_weight(name, (graph.weight(name).astype(np.float64) * factor).astype(np.float32))

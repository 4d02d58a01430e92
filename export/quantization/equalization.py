"""Cross-layer equalisation: the same function, with channels of similar range, which 8 bits represent better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.build.graph import Graph, attribute, make_node
from xfeat.export.model.interface import INPUT
from xfeat.export.quantization.subgraphs import run_model
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import PreprocessSpec

# Operators that commute with a positive factor per channel.
_COMMUTING = ("Clip", "Relu", "Add")
# The square root shares the gain between a layer's activations and the weights that read them, whose range shrinks by
# the same factor. Source: cross-layer equalisation, Nagel et al. 2019 (arXiv:1906.04721), section 4.1.
# Without a Clip, rounding activations costs several times as much as rounding weights: activations get all of the gain.
_EXPONENT, _UNBOUNDED_EXPONENT = 0.5, 1.0
_MAX_FACTOR = 1000.0
# With fewer images, the Clip would cut off values of other images, which costs more than narrow channels do.
_MIN_IMAGES = 50
# The image minus its mean.
CENTRED = "centred"

Array = NDArray[np.float64]


def equalise(model: onnx.ModelProto, pixels: Pixels) -> None:
    """Widen narrow channels between convolutions, and divide the weights that read them by the same factor.

    A tensor has one scale for all channels, so a narrow channel uses only a few of the 256 levels. A Clip keeps its
    bound. The largest value of a channel on the images moves halfway (geometrically) towards it; larger values of other
    images may be cut off. With few images, channels before a Clip are therefore left unchanged.

    Args:
        model: float32, changed in place.
        pixels: uint8 (n, S, S, 3), training images.
    """
    graph = Graph(model)
    producers = graph.producers()
    groups = _groups(graph)
    ranges = _channel_ranges(model, [name for group in groups for name in group], pixels)
    for group in groups:
        bounds = {name: _upper_bound(graph, producers[name]) for name in group}
        bounded = [name for name, bound in bounds.items() if bound is not None]
        if bounded and len(pixels) < _MIN_IMAGES:
            continue
        channel_range = np.max([ranges[name] for name in bounded or group], axis=0)
        target = max((bound for bound in bounds.values() if bound is not None), default=float(channel_range.max()))
        factor = np.clip(target / np.maximum(channel_range, 1e-6), 1, _MAX_FACTOR)
        factor **= _EXPONENT if bounded else _UNBOUNDED_EXPONENT
        for name in group:
            _multiply_channels(graph, name, producers[name], factor)


def fold_normalisation(model: onnx.ModelProto, preprocess: PreprocessSpec) -> None:
    """Replace the normalisation by a subtraction of the mean; the first weights absorb the standard deviation.

    Args:
        model: float32, changed in place.
        preprocess: the normalisation that the model contains.
    """
    graph = Graph(model)
    first = graph.convolutions[0]
    following = graph.nodes[graph.nodes.index(first) :]
    mean, deviation = (255 * np.reshape(each, (1, -1, 1, 1)) for each in (preprocess.mean, preprocess.std))
    _scale(graph, first.input[1], 1 / deviation)
    graph.set_weight(f"{CENTRED}_by", mean.astype(np.float32))
    following[0].input[0] = CENTRED
    graph.replace_nodes([make_node("Sub", [INPUT, f"{CENTRED}_by"], CENTRED), *following])


def common_mean(graph: Graph) -> float | None:
    """Return the mean that a prepared model subtracts from grey levels; ``None`` if it differs between channels."""
    means = np.unique(graph.weight(f"{CENTRED}_by"))
    return float(means[0]) if len(means) == 1 else None


def _channel_ranges(model: onnx.ModelProto, names: Sequence[str], pixels: Pixels) -> dict[str, Array]:
    """Return the largest magnitude (C,) per channel of tensors (N, C, h, w)."""
    found = run_model(model, pixels, names, lambda values: np.abs(values).max((2, 3)))
    return {name: values.max(0) for name, values in zip(names, found, strict=True)}


def _groups(graph: Graph) -> list[list[str]]:
    """Return sets of tensors that must share their factors; each is computed from convolutions alone."""
    producers = graph.producers()
    parent: dict[str, str] = {node.output[0]: node.output[0] for node in graph.convolutions}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op_type in _COMMUTING:
            for name in node.input if node.op_type == "Add" else node.input[:1]:
                parent[root(name)] = root(node.output[0])
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(root(name), []).append(name)
    allowed = [*_COMMUTING, "Conv"]
    return [
        group
        for group in groups.values()
        if all(name in producers and producers[name].op_type in allowed for name in group)
    ]


def _upper_bound(graph: Graph, node: onnx.NodeProto) -> float | None:
    if node.op_type != "Clip" or not graph.is_weight(node.input[2]):
        return None
    return float(graph.weight(node.input[2]))


def _multiply_channels(graph: Graph, name: str, producer: onnx.NodeProto, factor: Array) -> None:
    """Multiply the channels of a tensor in the convolution that computes them, and divide in its readers."""
    if producer.op_type == "Conv":
        _scale(graph, producer.input[1], factor.reshape(-1, 1, 1, 1))
        _scale(graph, producer.input[2], factor)
    others = []
    for reader in graph.readers().get(name, []):
        if reader.op_type == "Conv":
            dense = attribute(reader, "group", 1) == 1
            _scale(graph, reader.input[1], 1 / factor.reshape((1, -1, 1, 1) if dense else (-1, 1, 1, 1)))
        elif reader.op_type == "ReduceMean":  # over height and width: dividing the means is less work
            shape = (1, -1, 1, 1) if attribute(reader, "keepdims", 1) else (1, -1)
            _divide(graph, reader.output[0], factor.reshape(shape), graph.readers()[reader.output[0]])
        elif reader.op_type not in _COMMUTING:
            others.append(reader)
    if others:
        _divide(graph, name, factor.reshape(1, -1, 1, 1), others)


def _divide(graph: Graph, name: str, factor: Array, readers: Sequence[onnx.NodeProto]) -> None:
    """Divide a tensor for some of its readers."""
    graph.set_weight(f"{name}_inverse_factor", (1 / factor).astype(np.float32))
    graph.insert_after(name, make_node("Mul", [name, f"{name}_inverse_factor"], f"{name}_divided"), readers)


def _scale(graph: Graph, name: str, factor: Array) -> None:
    graph.set_weight(name, (graph.weight(name).astype(np.float64) * factor).astype(np.float32))

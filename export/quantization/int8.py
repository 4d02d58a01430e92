"""A traced model in 8 bits: made ready for them, rounded on training images, its features put right."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from xfeat.export.model.outputs import LOGITS
from xfeat.export.model.progress import Progress
from xfeat.export.parity.subsample import subsample
from xfeat.export.quantization.equalization import common_mean, equalise, fold_normalisation
from xfeat.export.quantization.first_layer import dither_stem
from xfeat.export.quantization.four_bit_head import first_matrix, half_bytes
from xfeat.export.quantization.onnx_graph import Graph, cleaned, copied, cut_at, features_name, run_model
from xfeat.export.quantization.qdq import shorten_names, store_matrices_in_8_bits, store_matrix_in_4_bits, write_rounded
from xfeat.export.quantization.rounding import Rounded, round_model
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import PreprocessSpec

# Both versions of an image are followed at once, in some 50 MB at this side; of larger images fewer are followed.
_FOLLOWED = 32
_SIDE = 224
_MIN_FOLLOWED = 8
# How often a model is rounded, on other images each time. One rounding is worse than another by as much as most of what
# was tried to make them better.
_ROUNDINGS = 3


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A float32 model made ready for 8 bits, and what it is rounded on.

    Attributes:
        model: ``image`` float32 (N, 3, S, S) and all outputs; BatchNorms folded, channels equalised.
        pixels: uint8 (n, S, S, 3), images of the training.
        features: what the float32 model gives for them, float32 (n, D).
        logits: the same, float32 (n, C).
        start: where, from 0 to 1, the first followed image lies between the first image and where the second would be.
    """

    model: onnx.ModelProto
    pixels: Pixels
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    start: float = 0.5

    @property
    def followed(self) -> NDArray[np.intp]:
        """Indices of the images, spread evenly, that rounding follows through the layers."""
        most = max(_MIN_FOLLOWED, _FOLLOWED * _SIDE**2 // self.pixels.shape[1] ** 2)
        count = min(most, len(self.pixels))
        places: NDArray[np.intp] = ((np.arange(count) + self.start) * len(self.pixels) / count).astype(np.intp)
        return places

    @cached_property
    def backbone(self) -> onnx.ModelProto:
        """The part of the model that features need."""
        return cut_at(self.model, self.features_name)

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions, from the input on."""
        return [node.name for node in Graph(self.model).convolutions]

    @property
    def reads_grey_levels(self) -> bool:
        """Whether the first convolution in 8 bits reads the image's grey levels as they are."""
        return common_mean(Graph(self.model)) is not None

    @property
    def features_name(self) -> str:
        """What the head reads."""
        return features_name(self.model)

    @property
    def head_bits(self) -> tuple[int | None, ...]:
        """Bits that a number of the head's first matrix can have, the fewest first; ``None``: too small for 4."""
        return (None,) if first_matrix(self.model) is None else (4, 8)


def make_ready(traced: onnx.ModelProto, pixels: Pixels, preprocess: PreprocessSpec) -> Ready:
    """Fold, equalise and centre a traced model, without changing what it answers.

    Args:
        traced: ``image`` float32 (N, 3, S, S) and all outputs, float32.
        pixels: uint8 (n, S, S, 3), images of the training.
        preprocess: the normalisation inside.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared = Path(folder) / "given.onnx", Path(folder) / "prepared.onnx"
        onnx.save(traced, given)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
    del model.graph.value_info[:]
    for place, node in enumerate(model.graph.node):
        node.name = _layer_name(node) or node.name or f"node_{place}"
    features, logits = run_model(model, pixels, [features_name(model), LOGITS])
    equalise(model, pixels)
    fold_normalisation(model, preprocess)
    dither_stem(model)
    return Ready(model=model, pixels=pixels, features=features, logits=logits)


def round_ready(ready: Ready, float_layers: Collection[str] = (), progress: Progress | None = None) -> Rounded:
    """Round the backbone.

    Args:
        ready: the model.
        float_layers: names of convolutions that stay in float32.
        progress: told the nodes done and their number.
    """
    return round_model(ready.backbone, ready.pixels[ready.followed], float_layers=float_layers, progress=progress)


def round_repeatedly(
    ready: Ready, float_layers: Collection[str] = (), progress: Progress | None = None
) -> list[tuple[Ready, Rounded]]:
    """Round the backbone, following other images each time, and return the roundings with what they followed.

    The first is the one whose logits are nearest to float32's (root mean square) on the images that it did not follow.
    If more than half of all are followed, there is only one.

    Args:
        ready: the model.
        float_layers: names of convolutions that stay in float32.
        progress: told the nodes done and their number, over all roundings.
    """
    count = _ROUNDINGS if 2 * len(ready.followed) <= len(ready.pixels) else 1
    found: list[tuple[float, Ready, Rounded]] = []
    for place in range(count):

        def advance(done: int, total: int, before: int = place) -> None:
            if progress is not None:
                progress(before * total + done, count * total)

        following = replace(ready, start=(place + 0.5) / count)
        rounded = round_ready(following, float_layers, advance)
        found.append((_logit_error(following, rounded) if count > 1 else 0.0, following, rounded))
    return [(following, rounded) for _, following, rounded in sorted(found, key=lambda each: each[0])]


def write_int8(ready: Ready, rounded: Rounded, head_bits: int | None = None) -> onnx.ModelProto:
    """Write a rounded backbone into the model, and store the head's matrices in 8 bits, its first one in fewer.

    Activations are unsigned and weights signed with one scale a channel, the form that CPUs with VNNI compute fastest.
    What is left of the mean shift of each feature is added back at the end: a head reads a shift as a finding.

    Args:
        ready: the model.
        rounded: its backbone.
        head_bits: 4 for the first matrix of the head in 4 bits, one of those that ``ready`` has.
    """
    quantised = copied(ready.model)
    write_rounded(quantised, rounded)
    found = run_model(cut_at(quantised, ready.features_name), ready.pixels, [ready.features_name])[0]
    shift = (ready.features - found).mean(0).astype(np.float32)
    first = first_matrix(ready.model)
    if head_bits == 4 and first is not None:
        weight, bias = (Graph(quantised).weight(name) for name in first)
        store_matrix_in_4_bits(quantised, first[0], half_bytes(weight, bias, found + shift))
    _add_to(quantised, ready.features_name, shift)
    store_matrices_in_8_bits(quantised)
    shorten_names(quantised)
    return cleaned(quantised)


def feature_error(ready: Ready, rounded: Rounded, count: int) -> float:
    """Return what a rounding costs: the mean squared error of the features in units of their variance over images.

    A constant shift does not count, since :func:`write_int8` takes it off.

    Args:
        ready: the model.
        rounded: all of it, or a part.
        count: images to look at, at most, spread evenly.
    """
    backbone = copied(ready.backbone)
    write_rounded(backbone, rounded)
    places = list(subsample(range(len(ready.pixels)), count))
    error = run_model(backbone, ready.pixels[places], [ready.features_name])[0] - ready.features[places]
    deviation = ready.features.std(0)
    # Features that hardly vary would count for more than all others.
    deviation = np.maximum(deviation, 0.1 * float(np.median(deviation)) + np.finfo(np.float32).tiny)
    return float(np.square((error - error.mean(0)) / deviation).mean())


def _logit_error(ready: Ready, rounded: Rounded) -> float:
    """Return the root mean square of what a rounding changes in the logits of the images that it did not follow.

    What it changes in all logits of an image alike does not count: no probability changes by that.
    """
    model = write_int8(ready, rounded, ready.head_bits[0])
    others = np.setdiff1d(np.arange(len(ready.pixels)), ready.followed)
    error = run_model(model, ready.pixels[others], [LOGITS])[0] - ready.logits[others]
    return float(np.sqrt(np.square(error - error.mean(1, keepdims=True)).mean()))


def _layer_name(node: onnx.NodeProto) -> str | None:
    """Return what the training called a layer, such as ``_blocks.3._project_conv``."""
    if node.op_type != "Conv":
        return None
    return str(node.input[1]).removeprefix("backbone.").removeprefix("model.").removesuffix(".weight")


def _add_to(model: onnx.ModelProto, name: str, shift: NDArray[np.float32]) -> None:
    graph = Graph(model)
    graph.set_weight("feature_shift", shift)
    readers: Sequence[onnx.NodeProto] = graph.readers()[name]
    corrected = onnx.helper.make_node("Add", [name, "feature_shift"], [f"{name}_corrected"], name="correct_features")
    graph.insert_behind(name, corrected, readers)


@contextmanager
def _quiet() -> Iterator[None]:
    # onnxruntime's quantiser gives advice on the root logger that is not meant for our users.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)

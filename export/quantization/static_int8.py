"""The encoder of a composed model in 8 bits, by onnxruntime's own static quantisation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from xfeat.export.build.compose import ENCODED
from xfeat.export.build.graph import Graph
from xfeat.export.model.batches import to_nchw
from xfeat.export.model.interface import INPUT
from xfeat.export.quantization.int8 import finish_int8
from xfeat.export.quantization.subgraphs import after_pooling, cut_at, features_name, run_model
from xfeat.featurize.errors import ModelError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.onnx_session import first_line
from xfeat.featurize.system.user_cache import temporary_folder

# onnxruntime's other methods hold the activations of all images in memory.
RANGES: dict[str, dict[str, bool]] = {
    "ranges over all images": {},
    "ranges averaged over images": {"CalibMovingAverage": True},
}


def quantize_encoder(traced: onnx.ModelProto, pixels: Pixels, ranges: Mapping[str, bool]) -> onnx.ModelProto:
    """Return a composed model with its encoder in 8 bits, and the head's matrices stored in 8 bits.

    Activations are unsigned, weights signed with one scale per channel. The mean shift of each feature is added back.

    Args:
        traced: from :func:`xfeat.export.build.compose.compose`.
        pixels: uint8 (n, S, S, 3), training images, from which the ranges of activations come.
        ranges: how, a value of RANGES.

    Raises:
        ModelError: if onnxruntime cannot quantise the encoder.
    """
    (features,) = run_model(traced, pixels, [features_name(traced)])
    with temporary_folder() as folder:
        quantized = _quantized(cut_at(traced, ENCODED), pixels, ranges, Path(folder))
    model, tail = deepcopy(traced), after_pooling(traced)
    graph = Graph(model)
    graph.replace_nodes(tail)  # and with them the weights of the encoder, whose names the quantiser uses again
    for tensor in quantized.graph.initializer:
        graph.set_weight(tensor.name, onnx.numpy_helper.to_array(tensor))
    graph.replace_nodes([*quantized.graph.node, *tail])
    return finish_int8(model, features, pixels)


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The images of a calibration, one per call, as the quantiser asks for them."""

    def __init__(self, pixels: Pixels) -> None:
        self._images = iter(pixels)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next input; ``None`` after the last one."""
        image = next(self._images, None)
        return None if image is None else {INPUT: to_nchw(image[None])}


def _quantized(encoder: onnx.ModelProto, pixels: Pixels, ranges: Mapping[str, bool], folder: Path) -> onnx.ModelProto:
    original, prepared, result = (folder / f"{name}.onnx" for name in ("encoder", "prepared", "quantized"))
    operators = {node.op_type for node in encoder.graph.node}
    if "Scan" in operators:
        raise _not_quantized("the encoder takes a fixed number of images, and runs inside a Scan")
    if "QuantizeLinear" in operators:
        raise _not_quantized("parts of the encoder are in 8 bits already")
    logging.root.addHandler(silent := logging.NullHandler())  # the quantiser writes to the root logger
    try:
        onnx.save(encoder, original)  # onnxruntime 1.31 mistakes what it does to a model in memory
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        names = [node.name for node in onnx.load(prepared).graph.node]
        quantize_static(
            prepared,
            result,
            _Images(pixels),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[name for name in names if not name.startswith("encoder_")],
            extra_options=dict(ranges),
        )
    except Exception as error:  # the quantiser has no errors of its own
        raise _not_quantized(first_line(error)) from error
    finally:
        logging.root.removeHandler(silent)
    return onnx.load(result)


def _not_quantized(reason: str) -> ModelError:
    return ModelError(
        "the encoder of the model cannot be quantised",
        expected="an encoder in float32 for any number of images, which onnxruntime's quantize_static accepts",
        found=reason,
        fix="keep the float32 model, or use --fp16",
    )

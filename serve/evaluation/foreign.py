"""An ONNX classifier that was written elsewhere, opened like a model of this project."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfeat.export.model.cuda_graphs import Session
from xfeat.export.model.file import ModelFile, tensors
from xfeat.export.model.interface import PROBABILITIES, Outputs, Tensor
from xfeat.export.model.metadata import FORMAT_KEY, ModelMetadata
from xfeat.featurize.errors import SpecError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.text import listed
from xfeat.serve.evaluation.specs import LAYOUTS, ClassifierSpec

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
_LEVELS = "tensor(uint8)"
# Probabilities in half precision add up to 1 less exactly.
_SUM_TOLERANCE = 1e-2


class ForeignClassifier(ModelFile):
    """A model without metadata of xfeat. Its only known output is the probabilities.

    Args:
        path: the file.
        sha256: of its content.
        session: on ``device``.
        device: ``cpu`` or ``cuda:N``.
        spec: how images are prepared, and what the output means.

    Attributes:
        maybe_softmax_twice: whether ``softmax`` is set, and all outputs so far lay between 0 and 1.

    Raises:
        SpecError: if the model describes itself, or its inputs and outputs do not fit the spec.
    """

    def __init__(self, path: Path, sha256: str, session: Session, device: str, *, spec: ClassifierSpec) -> None:
        self.path, self.sha256, self.session, self.device, self._spec = path, sha256, session, device, spec
        self.inputs, self.outputs = tensors(session.get_inputs()), tensors(session.get_outputs())
        self.optional_inputs, self.known_outputs = (), frozenset([PROBABILITIES])
        self.maybe_softmax_twice = spec.softmax
        if FORMAT_KEY in session.get_modelmeta().custom_metadata_map:
            raise self._misfit("the model was written by xexport and describes itself", fix="leave out its description")
        if not spec.classes:
            raise self._misfit("the names of the model's outputs are not known", fix="name them with --classes A,B")
        self._input, self._channels_last, side = self._find_input()
        self._output = self._find_output()
        self.metadata = ModelMetadata(
            variant="core",
            class_names=spec.classes,
            feature_spec=FeatureSpec(
                backbone=f"onnx:{path.stem}", weights_sha256=sha256, preprocess=spec.preprocess(side)
            ),
            positive=spec.positive,
            threshold=spec.threshold,
            cache_sha256="",
            head_sha256=sha256,
            run="",
        )

    def run(
        self, pixels: Pixels, *, heatmap: bool = False, threshold: np.float32 | None = None, whole: bool = False
    ) -> Outputs:
        """Run the network on uint8 (N, S, S, 3), RGB. It has no heatmap, no input for a threshold, and cuts nothing.

        Raises:
            ModelError: if onnxruntime fails.
            SpecError: if the output is not what the spec says.
        """
        fixed = self._input.shape[0]
        size = len(pixels) if fixed == -1 else fixed
        found = [self._run_batch(pixels[first : first + size], size) for first in range(0, len(pixels), size)]
        return Outputs(self._probabilities(np.concatenate(found)))

    def _run_batch(self, pixels: Pixels, size: int) -> NDArray[np.float32]:
        batch = np.zeros((size, *pixels.shape[1:]), np.uint8)
        batch[: len(pixels)] = pixels
        values = batch if self._channels_last else np.ascontiguousarray(np.moveaxis(batch, -1, 1))
        with self._failures():
            [found] = self.session.run([self._output.name], {self._input.name: self._normalize(values)})
        expected = (size, len(self._spec.classes))
        if found.shape[:2] != expected or math.prod(found.shape) != math.prod(expected):
            raise self._misfit("the model's output has another shape", str(list(expected)), str(list(found.shape)))
        return np.asarray(found, np.float32).reshape(expected)[: len(pixels)]

    def _normalize(self, levels: NDArray[np.uint8]) -> NDArray[np.generic]:
        if self._input.kind == _LEVELS:
            return levels
        shape = (1, 1, 1, 3) if self._channels_last else (1, 3, 1, 1)
        preprocess = self.metadata.feature_spec.preprocess
        mean, std = (np.array(values, np.float32).reshape(shape) for values in (preprocess.mean, preprocess.std))
        return np.asarray((levels.astype(np.float32) / 255 - mean) / std, _TYPES[self._input.kind])

    def _probabilities(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        is_finite = np.asarray(np.isfinite(values).all(axis=1))
        finite = values[is_finite]
        within = (finite >= 0).all(axis=1) & (finite <= 1 + _SUM_TOLERANCE).all(axis=1)
        self.maybe_softmax_twice &= bool(within.all())
        add_up = np.abs(finite.sum(axis=1) - 1) <= _SUM_TOLERANCE
        are_probabilities = within & add_up
        if self._spec.softmax:
            if len(finite) and are_probabilities.all():
                raise self._misfit("the model's outputs are probabilities already", fix="leave out --softmax")
            values = np.where(is_finite[:, None], values, np.nan)
            powers = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
        if not are_probabilities.all():
            wrong = finite[~are_probabilities][0]
            fix = "add --softmax if they are logits"
            if within.all():
                fix = "measure the logits before the sigmoids, with --softmax: an image has one class here"
            raise self._misfit(
                "the model's outputs are not probabilities",
                "numbers from 0 to 1 that add up to 1",
                ", ".join(f"{value:.4g}" for value in wrong[:5]),
                fix,
            )
        return values

    def _find_output(self) -> Tensor:
        wanted, count = self._spec.output, len(self._spec.classes)
        fitting = [
            tensor
            for tensor in self.outputs
            if len(tensor.shape) >= 2 and tensor.shape[1] in (-1, count) and set(tensor.shape[2:]) <= {1, -1}
        ]
        named = [tensor for tensor in fitting if wanted in (None, tensor.name)]
        if len(named) != 1:
            expected = f"{'one output' if wanted is None else wanted} of shape [N, {count}], a value per class"
            several = len(named) > 1
            fix = "name every output, in order, with --classes" if not fitting else "name one with --output-name"
            what = "several outputs could be meant" if several else "the model has no such output"
            raise self._misfit(what, expected, _listed(self.outputs), fix)
        return named[0]

    def _find_input(self) -> tuple[Tensor, bool, int]:
        """Return the input, whether its channels are last, and the side of its images."""
        spec = self._spec
        if len(self.inputs) != 1 or len(self.inputs[0].shape) != 4 or self.inputs[0].kind not in _TYPES:
            expected = f"one input [N, 3, H, W] or [N, H, W, 3], {', '.join(_TYPES)}"
            raise self._misfit("the model does not take images", expected, _listed(self.inputs))
        [tensor] = self.inputs
        channels = dict(zip(LAYOUTS, (tensor.shape[1], tensor.shape[3]), strict=True))
        stated = [layout for layout in LAYOUTS if channels[layout] == 3]
        free = [layout for layout in LAYOUTS if channels[layout] == -1 and (spec.layout or len(stated) != 1)]
        possible = [layout for layout in stated + free if spec.layout in (None, layout)]
        if not stated and len(free) != len(LAYOUTS) and spec.layout is None:
            possible = []
        if len(possible) != 1:
            if possible:
                raise self._misfit(
                    "the order of the input's axes is not known", None, str(tensor), "--layout NCHW or NHWC"
                )
            raise self._misfit("the model takes no images of 3 channels", spec.layout or "NCHW or NHWC", str(tensor))
        [layout] = possible
        sides = tensor.shape[2:] if layout == "NCHW" else tensor.shape[1:3]
        fixed = {side for side in sides if side != -1}
        size = spec.size or next(iter(fixed), None)
        if size is None:
            raise self._misfit("the size of the model's images is not known", found=str(tensor), fix="--size PIXELS")
        if fixed - {size}:
            raise self._misfit("the model takes images of another size", f"{size}×{size} pixels", str(tensor))
        if (tensor.kind == _LEVELS) != (spec.mean is None):
            what, fix = "a model of uint8 normalises its images itself", "leave out --mean and --std"
            if tensor.kind != _LEVELS:
                what = "it is not known how the model's images are normalised"
                fix = "--mean and --std, of pixels from 0 to 1 (0.5 and 0.5: -1 to 1; 0 and 1: as they are)"
            raise self._misfit(what, found=str(tensor), fix=fix)
        return tensor, layout == "NHWC", size

    def _misfit(
        self, what: str, expected: str | None = None, found: str | None = None, fix: str | None = None
    ) -> SpecError:
        return SpecError(what, path=self.path, expected=expected, found=found, fix=fix)


def _listed(values: tuple[Tensor, ...]) -> str:
    return listed(map(str, values)) or "none"

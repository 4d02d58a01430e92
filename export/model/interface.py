"""What goes into a model and comes out of it: names, types, shapes. Imported where torch is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.errors import ModelError

INPUT = "image"
PROBABILITIES, LOGITS, HEATMAP, OOD = "probabilities", "logits", "heatmap", "ood"
CORE_OUTPUTS = (PROBABILITIES, LOGITS)
# Of full models since version 0.2: the predicted class, and the input that moves its threshold.
DECISION, THRESHOLD = "decision", "threshold"


class Outputs(NamedTuple):
    """The model's outputs for a batch; ``None`` for an output that it lacks or that was not requested.

    Attributes:
        probabilities: float32 (N, C).
        logits: float32 (N, C).
        ood: float32 (N,), out-of-distribution score.
        heatmap: float32 (N, C, h, w), 0 or more.
        decision: int64 (N,), index of the predicted class; -1 where a probability is not a number.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None
    ood: NDArray[np.float32] | None = None
    heatmap: NDArray[np.float32] | None = None
    decision: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Tensor:
    """An input or output of the graph; -1 means an axis of any size."""

    name: str
    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.kind} {list(self.shape)}"

    def accepts(self, wanted: Tensor) -> bool:
        """Return whether this tensor has the name and type of ``wanted``, and its sizes or free ones."""
        return (self.name, self.kind, len(self.shape)) == (wanted.name, wanted.kind, len(wanted.shape)) and all(
            axis in (-1, size) for axis, size in zip(self.shape, wanted.shape, strict=True)
        )


def check_interface(metadata: ModelMetadata, inputs: Sequence[Tensor], outputs: Sequence[Tensor], path: Path) -> None:
    """Check inputs and outputs of a graph.

    Raises:
        ModelError: if they do not match the metadata.
    """
    side = metadata.feature_spec.preprocess.size
    image = Tensor(INPUT, "tensor(uint8)", (-1, side, side, 3))
    if metadata.variant == "core":
        image = Tensor(INPUT, "tensor(float)", (-1, 3, side, side))
    probabilities = Tensor(PROBABILITIES, "tensor(float)", (-1, len(metadata.class_names)))
    decision = Tensor(DECISION, "tensor(int64)", (-1,))
    named = [output for output in outputs if output.name == DECISION]
    for what, found, wanted, matches in (
        ("inputs", inputs, image, len(inputs) == 1 and inputs[0].accepts(image)),
        ("outputs", outputs, probabilities, any(output.accepts(probabilities) for output in outputs)),
        ("outputs", outputs, decision, all(output.accepts(decision) for output in named)),
    ):
        if not matches:
            raise ModelError(
                f"the model's {what} do not match its metadata",
                path=path,
                expected=str(wanted),
                found=", ".join(map(str, found)) or "none",
                fix="export the run again with xexport onnx",
            )


def float32_threshold(threshold: float) -> np.float32:
    """Return the lowest float32 that is not below a threshold: for float32 probabilities it decides the same."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) >= threshold else np.nextafter(rounded, np.float32(np.inf))

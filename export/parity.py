"""The proof: image files through Pillow and torch, against the same files through the exported model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.fused import FusedModel
from featurize.engines.devices import cuda_driver_present
from featurize.errors import ImageError, ModelError
from featurize.preprocess import Pixels, load_pixels
from featurize.specs import PreprocessSpec

Probabilities = NDArray[np.float32]

# Largest difference of a probability that counts as the same answer.
TOLERANCE = 1e-4
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two sets of answers agree.

    Attributes:
        images: number of images compared.
        max_difference: largest difference of a probability.
        mean_difference: mean difference of a probability.
        changed_decisions: images whose most probable class differs.
    """

    images: int
    max_difference: float
    mean_difference: float
    changed_decisions: int

    @property
    def holds(self) -> bool:
        """Whether both sets say the same."""
        return self.max_difference <= TOLERANCE and self.changed_decisions == 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def compare(expected: Probabilities, found: Probabilities) -> Agreement:
    """Compare probabilities (n, C) with those expected; a value that is not finite never agrees."""
    difference = np.abs(expected.astype(np.float64) - found)
    difference[~np.isfinite(difference)] = np.inf
    return Agreement(
        images=len(expected),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        changed_decisions=int((expected.argmax(1) != found.argmax(1)).sum()),
    )


def load_images(root: Path, paths: Sequence[str], spec: PreprocessSpec) -> tuple[list[str], Pixels]:
    """Read image files as the server does; those that have gone or broken since the training are left out.

    Returns:
        The paths that could be read, and uint8 (n, S, S, 3).
    """
    kept, pixels = [], []
    for path in paths:
        try:
            pixels.append(load_pixels((root / path).read_bytes(), spec))
        except (OSError, ImageError):
            continue
        kept.append(path)
    stacked = np.stack(pixels) if pixels else np.empty((0, spec.size, spec.size, 3), np.uint8)
    return kept, stacked


def torch_probabilities(model: FusedModel, pixels: Pixels) -> Probabilities:
    """Run the torch model: uint8 (n, S, S, 3) to float32 (n, C)."""
    with torch.inference_mode():
        answers = [model(torch.from_numpy(block)).probabilities.numpy() for block in _blocks(pixels)]
    return np.concatenate(answers)


def onnx_probabilities(session: ort.InferenceSession, pixels: Pixels, variant: str) -> Probabilities:
    """Run an exported model: uint8 (n, S, S, 3) to float32 (n, C), in the form that its variant wants."""
    answers = []
    for block in _blocks(pixels):
        given = block if variant == "full" else np.moveaxis(block, -1, 1).astype(np.float32)
        answers.append(session.run(["probabilities"], {"image": given})[0])
    return np.concatenate(answers)


def open_sessions(file: Path) -> dict[str, ort.InferenceSession]:
    """Open a model once per provider that really runs here.

    Raises:
        ModelError: if onnxruntime refuses the file.
    """
    providers = ["CPUExecutionProvider"]
    # onnxruntime lists CUDA wherever its GPU wheel is installed; without the driver it only prints errors.
    if "CUDAExecutionProvider" in ort.get_available_providers() and cuda_driver_present():
        ort.preload_dlls()
        providers.append("CUDAExecutionProvider")
    sessions = {}
    for provider in providers:
        try:
            session = ort.InferenceSession(file, providers=[provider])
        except Exception as error:  # onnxruntime's exceptions share no base
            raise ModelError(f"onnxruntime refuses the model on {provider}", path=file, found=str(error)) from error
        if session.get_providers()[0] == provider:
            sessions[provider] = session
    return sessions


def _blocks(pixels: Pixels) -> Iterator[Pixels]:
    return (pixels[first : first + _BATCH] for first in range(0, len(pixels), _BATCH))

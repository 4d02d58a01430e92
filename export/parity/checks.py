"""An exported model against expected answers, on every provider of this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xfeat.export.model.batches import BATCH_SIZE, batches, to_nchw
from xfeat.export.model.cuda_graphs import BoundSession, Session, open_network
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Advance
from xfeat.export.parity.agreement import RESIZE_TOLERANCE, TOLERANCES, Agreement, Probabilities, compare
from xfeat.export.parity.check_images import MAX_ORIGINALS, CheckImages
from xfeat.featurize.errors import DeviceError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.cuda import PROVIDER as CUDA
from xfeat.featurize.system.onnx_session import CPU, cuda_possible

logger = logging.getLogger(__name__)

Checks = dict[str, dict[str, Agreement]]
"""Provider to name of a check to agreement."""


def checks_as_json(checks: Checks) -> dict[str, Any]:
    """Return plain JSON types."""
    return {
        provider: {name: agreement.to_dict() for name, agreement in agreements.items()}
        for provider, agreements in checks.items()
    }


def check_variant(
    session: Session,
    metadata: ModelMetadata,
    images: CheckImages,
    expected: Probabilities,
    advance: Advance = lambda done: None,
) -> dict[str, Agreement]:
    """Hold an exported model against expected probabilities (n, C), within the tolerance of its precision.

    Returns:
        The agreement under the name of the variant, and for the full model in float32 another under
        ``resized_inside``: files at their own size, resized in the graph, against the same expectation.
    """
    variant = metadata.variant
    found = onnx_probabilities(session, images.pixels, variant, advance)
    agreements = {variant: compare(expected, found, metadata.decide, TOLERANCES[metadata.precision])}
    if _resizes(metadata):
        positions, answers = [], []
        for position, pixels in images.originals():
            positions.append(position)
            answers.append(onnx_probabilities(session, pixels, variant, advance)[0])
        agreements["resized_inside"] = compare(
            expected[positions], np.stack(answers), metadata.decide, RESIZE_TOLERANCE
        )
    return agreements


def count_predictions(metadata: ModelMetadata, images: int) -> int:
    """Return how many answers :func:`check_variant` asks for."""
    return images + (min(images, MAX_ORIGINALS) if _resizes(metadata) else 0)


def _resizes(metadata: ModelMetadata) -> bool:
    return metadata.variant == "full" and metadata.precision == "float32"


def onnx_probabilities(
    session: Session, pixels: Pixels, variant: str, advance: Advance = lambda done: None
) -> Probabilities:
    """Run an exported model: uint8 (n, H, W, 3) to float32 (n, C), in the form that its variant wants."""
    answers = []
    for block in batches(pixels):
        feed = {"image": block if variant == "full" else to_nchw(block)}
        if len(block) == BATCH_SIZE and isinstance(session, BoundSession):
            session.keep(feed)  # whole batches run as they do in service
        answers.append(session.run(["probabilities"], feed)[0])
        advance(len(block))
    return np.concatenate(answers)


def open_sessions(file: Path, *, require_cuda: bool = False) -> dict[str, Session]:
    """Open a model once per provider that really runs here.

    Args:
        file: the model.
        require_cuda: do not go on without a GPU, or with one that leaves nodes to the CPU.

    Raises:
        ModelError: if onnxruntime refuses the file.
        DeviceError: if a GPU is required and cannot be used.
    """
    sessions = {CPU: open_network(file)}
    if require_cuda or cuda_possible():
        try:
            sessions[CUDA] = open_network(file, device="cuda", whole=require_cuda)
        except DeviceError as error:
            if require_cuda:
                raise
            logger.warning("the GPU was not tried: %s", error.found)
    return sessions


def milliseconds_per_image(run: Callable[[Pixels], object], pixels: Pixels) -> float:
    """Return how long a batch of at most 8 images takes, divided by their number; the first call does not count."""
    batch = pixels[:BATCH_SIZE]
    run(batch)
    started = time.perf_counter()
    run(batch)
    return (time.perf_counter() - started) / len(batch) * 1000

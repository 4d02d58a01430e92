"""Parity checks: an exported model against expected predictions, on every provider of this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
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

TIMED_CALLS = 5

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
    *,
    found: Probabilities | None = None,
) -> dict[str, Agreement]:
    """Compare an exported model with expected probabilities (n, C), within the tolerance of its precision.

    Args:
        session: of the model.
        metadata: of the model.
        images: to predict.
        expected: probabilities (n, C).
        advance: called with the number of predictions made since the last call.
        found: the model's probabilities of the images, if they have been computed already.

    Returns:
        The agreement under the name of the variant. The full model in float32 has a second one, ``resized_inside``:
        files at their original size, resized in the graph.
    """
    variant = metadata.variant
    if found is None:
        found = onnx_probabilities(session, images.pixels, variant, advance)
    agreements = {variant: compare(expected, found, metadata.decide, TOLERANCES[metadata.precision])}
    if _resizes(metadata):
        positions, predictions = [], []
        for position, pixels in images.originals():
            positions.append(position)
            predictions.append(onnx_probabilities(session, pixels, variant, advance)[0])
        agreements["resized_inside"] = compare(
            expected[positions], np.stack(predictions), metadata.decide, RESIZE_TOLERANCE
        )
    return agreements


def count_predictions(metadata: ModelMetadata, images: int) -> int:
    """Return how many predictions :func:`check_variant` makes."""
    return images + (min(images, MAX_ORIGINALS) if _resizes(metadata) else 0)


def _resizes(metadata: ModelMetadata) -> bool:
    return metadata.variant == "full" and metadata.precision == "float32"


def onnx_probabilities(
    session: Session, pixels: Pixels, variant: str, advance: Advance = lambda done: None
) -> Probabilities:
    """Run an exported model: uint8 (n, H, W, 3) to float32 (n, C). ``variant`` decides the layout of its input."""
    predictions = []
    for batch in batches(pixels):
        feed = {"image": batch if variant == "full" else to_nchw(batch)}
        if len(batch) == BATCH_SIZE and isinstance(session, BoundSession):
            session.bind(feed)  # full batches run as they do in serving
        predictions.append(session.run(["probabilities"], feed)[0])
        advance(len(batch))
    return np.concatenate(predictions)


def open_sessions(file: Path, *, require_cuda: bool = False) -> dict[str, Session]:
    """Open a model once per provider that works on this machine.

    Args:
        file: the model.
        require_cuda: fail without a GPU, or if the GPU leaves nodes to the CPU.

    Raises:
        ModelError: if onnxruntime refuses the file.
        DeviceError: if a GPU is required and cannot be used.
    """
    sessions = {CPU: open_network(file)}
    if require_cuda or cuda_possible():
        try:
            sessions[CUDA] = open_network(file, device="cuda", all_on_gpu=require_cuda)
        except DeviceError as error:
            if require_cuda:
                raise
            logger.warning("the model was not checked on the GPU: %s", error.found)
    return sessions


def milliseconds_per_image(run: Callable[[Pixels], object], pixels: Pixels) -> float:
    """Return the median time of several calls with a batch of at most 8 images, per image, after a warm-up call."""
    batch = pixels[:BATCH_SIZE]
    run(batch)
    seconds = []
    for _ in range(TIMED_CALLS):
        started = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - started)
    return median(seconds) / len(batch) * 1000

"""Parity checks: an exported model against expected predictions, on every provider of this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import median

import numpy as np

from xfeat.export.model.batches import BATCH_SIZE, in_batches
from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Advance
from xfeat.export.parity.agreement import RESIZE_TOLERANCE, TOLERANCES, Agreement, Probabilities, compare
from xfeat.export.parity.check_images import MAX_ORIGINALS, CheckImages
from xfeat.export.parity.decisions import check_decisions, require_decisions
from xfeat.featurize.errors import DeviceError, ParityError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.cuda import PROVIDER as CUDA
from xfeat.featurize.system.onnx_session import CPU, cuda_possible

logger = logging.getLogger(__name__)

TIMED_CALLS = 5

Checks = dict[str, dict[str, Agreement]]
"""Provider to name of a check to agreement."""


def open_on_providers(
    file: Path, *, require_cuda: bool = False, digests: Collection[str] | None = None
) -> dict[str, ModelFile]:
    """Open a model once per provider that works on this machine; ``digests`` as for ``open_model``.

    Raises:
        ModelError: if onnxruntime refuses the file.
        MismatchError: if it has none of the digests.
        DeviceError: if a GPU is required and cannot be used for the whole network.
    """
    models = {CPU: open_model(file, digests=digests)}
    if require_cuda or cuda_possible():
        try:
            models[CUDA] = open_model(file, device="cuda", all_on_gpu=require_cuda, digests=[models[CPU].sha256])
        except DeviceError as error:
            if require_cuda:
                raise
            logger.warning("the model was not checked on the GPU: %s", error)
    return models


def check_variant(
    model: ModelFile, images: CheckImages, expected: Probabilities, advance: Advance = lambda done: None
) -> tuple[dict[str, Agreement], Probabilities]:
    """Run an exported model, and compare it with expected probabilities, within the tolerance of its precision.

    Args:
        model: the exported model.
        images: n images.
        expected: probabilities (n, C).
        advance: called with the number of predictions made since the last call.

    Returns:
        The agreement under the name of the variant. The full model in float32 has a second one, ``resized_inside``:
        files at their original size, resized in the graph. Then the model's probabilities (n, C).

    Raises:
        ParityError: if its decisions do not follow from its probabilities.
    """
    found = onnx_probabilities(model, images.pixels, advance)
    check_decisions(model, images.pixels)
    decide = model.metadata.decide
    agreements = {model.metadata.variant: compare(expected, found, decide, TOLERANCES[model.metadata.precision])}
    if _resizes(model.metadata):
        positions, predictions = [], []
        for position, pixels in images.originals():
            positions.append(position)
            predictions.append(onnx_probabilities(model, pixels, advance, whole=True)[0])
        agreements["resized_inside"] = compare(expected[positions], np.stack(predictions), decide, RESIZE_TOLERANCE)
    return agreements, found


def count_predictions(metadata: ModelMetadata, images: int) -> int:
    """Return how many predictions a check of a model makes: of all images, and those of :func:`check_variant`."""
    return images + (min(images, MAX_ORIGINALS) if _resizes(metadata) else 0)


def _resizes(metadata: ModelMetadata) -> bool:
    return metadata.variant == "full" and metadata.precision == "float32"


def require_agreement(checks: Checks, message: str, path: Path, fix: str | None = None) -> None:
    """Require that all checks hold.

    Args:
        checks: to require.
        message: with ``{}`` for the name of the check and its provider.
        path: of the model, for the message.
        fix: for the message.

    Raises:
        ParityError: if one does not hold.
    """
    for provider, agreements in checks.items():
        for name, agreement in agreements.items():
            if not agreement.holds:
                what = message.format(f"{name}, {provider}")
                raise ParityError(what, path=path, expected=agreement.expected, found=agreement.found, fix=fix)


def onnx_probabilities(
    model: ModelFile, pixels: Pixels, advance: Advance = lambda done: None, *, whole: bool = False
) -> Probabilities:
    """Run an exported model: uint8 (n, H, W, 3) to float32 (n, C); on a GPU, full batches run as they do in serving.

    The pixels are as for :meth:`xfeat.export.model.file.ModelFile.run`.

    Raises:
        ParityError: if its decisions do not follow from its probabilities.
    """
    if len(pixels) >= BATCH_SIZE and not whole:
        model.bind([pixels[:BATCH_SIZE]])

    def run(batch: Pixels) -> Probabilities:
        outputs = model.run(batch, whole=whole)
        require_decisions(model, outputs)
        return outputs.probabilities

    return in_batches(run, pixels, advance)


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

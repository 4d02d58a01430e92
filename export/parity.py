"""The proof: image files through Pillow and torch, against the same files through the exported model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.metadata import ModelMetadata
from export.thinning import thinned
from featurize.cuda import PROVIDER as CUDA
from featurize.cuda import cuda_driver_present, cuda_provider
from featurize.errors import ImageError, ModelError
from featurize.images import decode
from featurize.preprocess import Pixels, resize
from featurize.sources import open_source
from featurize.specs import PreprocessSpec

Probabilities = NDArray[np.float32]
Decide = Callable[[list[float]], str]

# Largest difference of a probability that counts as the same answer.
TOLERANCE = 1e-4
# The same for models of fewer bits, of which every processor rounds and adds up a little otherwise.
LOWER_TOLERANCES = {"float32": TOLERANCE, "float16": 1e-2, "int8": 5e-2}
# The same when the model resizes the image itself. Its pixels are Pillow's but for one grey level on under 1 % of them,
# which moves a probability further than rounding in float32 does; docs/export-parity.md has the figures.
RESIZE_TOLERANCE = 5e-2
# Files checked at their own size; each goes through the network alone, since sizes differ.
MAX_ORIGINALS = 64
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two sets of answers agree.

    Attributes:
        images: number of images compared.
        max_difference: largest difference of a probability.
        mean_difference: mean difference of a probability.
        changed_decisions: images that are decided otherwise although a probability is off by more than the tolerance.
        close_calls: images that are decided otherwise while all probabilities are within it: they lay on the border.
        tolerance: largest difference that counts as the same answer.
    """

    images: int
    max_difference: float
    mean_difference: float
    changed_decisions: int
    close_calls: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether both sets say the same."""
        return self.max_difference <= self.tolerance and self.changed_decisions == 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Image files to hold models against each other with.

    Attributes:
        root: their folder.
        paths: relative to it, of those that could be read.
        sha256: of their content.
        pixels: uint8 (n, S, S, 3), resized by Pillow.
    """

    root: Path
    paths: list[str]
    sha256: list[str]
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.paths)

    def originals(self) -> Iterator[tuple[int, Pixels]]:
        """Yield position and uint8 (1, H, W, 3) of at most MAX_ORIGINALS of them, spread evenly, at their own size."""
        source = open_source(self.root)
        for position in thinned(range(len(self)), MAX_ORIGINALS):
            image = decode(source.read(self.paths[position])[0])
            yield position, np.asarray(image.convert("RGB"))[None]


Checks = dict[str, dict[str, Agreement]]
"""Provider to name of a check to agreement."""


def checks_as_json(checks: Checks) -> dict[str, Any]:
    """Return plain JSON types."""
    return {
        provider: {name: agreement.to_dict() for name, agreement in agreements.items()}
        for provider, agreements in checks.items()
    }


def compare(expected: Probabilities, found: Probabilities, decide: Decide, tolerance: float = TOLERANCE) -> Agreement:
    """Compare probabilities (n, C) with those expected; a value that is not finite never agrees."""
    difference = np.abs(expected.astype(np.float64) - found)
    difference[~np.isfinite(difference)] = np.inf
    pairs = zip(expected.tolist(), found.tolist(), strict=True)
    changed = np.array([decide(before) != decide(after) for before, after in pairs], dtype=bool)
    within = difference.max(1) <= tolerance
    return Agreement(
        images=len(expected),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        changed_decisions=int((changed & ~within).sum()),
        close_calls=int((changed & within).sum()),
        tolerance=tolerance,
    )


def load_images(root: Path, paths: Sequence[str], spec: PreprocessSpec) -> CheckImages:
    """Read image files as the server does; those that have gone or broken since the training are left out."""
    kept, digests, pixels = [], [], []
    source = open_source(root)
    for path in paths:
        try:
            content, _ = source.read(path)
            pixels.append(resize(decode(content), spec))
        except ImageError:
            continue
        kept.append(path)
        digests.append(hashlib.sha256(content).hexdigest())
    stacked = np.stack(pixels) if pixels else np.empty((0, spec.size, spec.size, 3), np.uint8)
    return CheckImages(root=root, paths=kept, sha256=digests, pixels=stacked)


def check_variant(
    session: ort.InferenceSession,
    metadata: ModelMetadata,
    images: CheckImages,
    expected: Probabilities,
    tolerance: float = TOLERANCE,
) -> dict[str, Agreement]:
    """Hold an exported model against expected probabilities (n, C).

    Returns:
        The agreement under the name of the variant, and for the full model in float32 another under
        ``resized_inside``: files at their own size, resized in the graph, against the same expectation.
    """
    variant = metadata.variant
    found = onnx_probabilities(session, images.pixels, variant)
    agreements = {variant: compare(expected, found, metadata.decide, tolerance)}
    if variant == "full" and metadata.precision == "float32":
        positions, answers = [], []
        for position, pixels in images.originals():
            positions.append(position)
            answers.append(onnx_probabilities(session, pixels, variant)[0])
        agreements["resized_inside"] = compare(
            expected[positions], np.stack(answers), metadata.decide, RESIZE_TOLERANCE
        )
    return agreements


def onnx_probabilities(session: ort.InferenceSession, pixels: Pixels, variant: str) -> Probabilities:
    """Run an exported model: uint8 (n, H, W, 3) to float32 (n, C), in the form that its variant wants."""
    answers = []
    for block in blocks(pixels):
        given = block if variant == "full" else planes_of(block)
        answers.append(session.run(["probabilities"], {"image": given})[0])
    return np.concatenate(answers)


def open_sessions(file: Path) -> dict[str, ort.InferenceSession]:
    """Open a model once per provider that really runs here.

    Raises:
        ModelError: if onnxruntime refuses the file.
    """
    providers: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    # onnxruntime lists CUDA wherever its GPU wheel is installed; without the driver it only prints errors.
    if CUDA in ort.get_available_providers() and cuda_driver_present():
        ort.preload_dlls()
        providers.append(cuda_provider(0))
    sessions = {}
    for provider, settings in providers:
        try:
            session = ort.InferenceSession(file, providers=[(provider, settings)])
        except Exception as error:  # onnxruntime's exceptions share no base
            reason = str(error).strip().splitlines()[0]
            raise ModelError(
                f"onnxruntime refuses the model on {provider}", path=file, found=reason, mend="xexport onnx"
            ) from error
        if session.get_providers()[0] == provider:
            sessions[provider] = session
    return sessions


def planes_of(pixels: Pixels) -> NDArray[np.float32]:
    """Turn uint8 (n, S, S, 3) into float32 (n, 3, S, S), as the core model takes them."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 1), dtype=np.float32)


def milliseconds_an_image(run: Callable[[Pixels], object], pixels: Pixels) -> float:
    """Return how long a batch of at most 8 images takes, divided by their number; the first call does not count."""
    batch = pixels[:_BATCH]
    run(batch)
    started = time.perf_counter()
    run(batch)
    return (time.perf_counter() - started) / len(batch) * 1000


def blocks(pixels: Pixels) -> Iterator[Pixels]:
    """Cut images (n, …) into batches."""
    return (pixels[first : first + _BATCH] for first in range(0, len(pixels), _BATCH))

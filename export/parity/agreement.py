"""The proof: image files through Pillow and torch, against the same files through the exported model."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.export.model.cuda_graphs import BoundSession, Session, open_network
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.session import CPU, cuda_possible
from xfeat.export.parity.subsample import thinned
from xfeat.featurize.datasets.sources import open_source
from xfeat.featurize.errors import DeviceError, ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.preprocess import Pixels, resize
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.cuda import PROVIDER as CUDA

logger = logging.getLogger(__name__)

Probabilities = NDArray[np.float32]
Decide = Callable[[list[float]], str]
Advance = Callable[[int], None]
"""Called with the number of images that are done with since the last call."""

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

    @property
    def wanted(self) -> str:
        """What would hold, for a message."""
        return f"probabilities within {self.tolerance} and no changed decision"

    @property
    def found(self) -> str:
        """What was found, for a message."""
        return f"{self.max_difference:.2g} and {self.changed_decisions} of {self.images} decisions changed"

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


def load_images(
    root: Path, paths: Sequence[str], spec: PreprocessSpec, advance: Advance = lambda done: None
) -> CheckImages:
    """Read image files as the server does; those that have gone or broken since the training are left out."""
    kept, digests, pixels = [], [], []
    source = open_source(root)
    for path in paths:
        advance(1)
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
    agreements = {variant: compare(expected, found, metadata.decide, LOWER_TOLERANCES[metadata.precision])}
    if _resizes(metadata):
        positions, answers = [], []
        for position, pixels in images.originals():
            positions.append(position)
            answers.append(onnx_probabilities(session, pixels, variant, advance)[0])
        agreements["resized_inside"] = compare(
            expected[positions], np.stack(answers), metadata.decide, RESIZE_TOLERANCE
        )
    return agreements


def count_answers(metadata: ModelMetadata, images: int) -> int:
    """Return how many answers :func:`check_variant` asks for."""
    return images + (min(images, MAX_ORIGINALS) if _resizes(metadata) else 0)


def _resizes(metadata: ModelMetadata) -> bool:
    return metadata.variant == "full" and metadata.precision == "float32"


def onnx_probabilities(
    session: Session, pixels: Pixels, variant: str, advance: Advance = lambda done: None
) -> Probabilities:
    """Run an exported model: uint8 (n, H, W, 3) to float32 (n, C), in the form that its variant wants."""
    answers = []
    for block in blocks(pixels):
        feed = {"image": block if variant == "full" else planes_of(block)}
        if len(block) == _BATCH and isinstance(session, BoundSession):
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

"""From read images to features, in order: images are batched, and several batches are computed at a time."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np

from xfeat.featurize.cache.reader import finite_rows
from xfeat.featurize.cache.shards import Features, FileIdentity
from xfeat.featurize.engines import Engine
from xfeat.featurize.engines.device_group import concurrent_calls_of
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.pipeline.reading import ReadImage
from xfeat.featurize.specs import FeatureSpec

logger = logging.getLogger(__name__)

# A hint is given after so many seconds, if so much of them was spent waiting for the network.
_LONG_RUN_S = 30.0
_LIMITING = 0.5
# So many images without work for the network are passed on at a time.
_IDLE_IMAGES = 256


def beyond_range(spec: FeatureSpec) -> str:
    """Return the reason for skipping an image whose features are not finite."""
    narrowest = "float16" if "float16" in (spec.dtype, spec.precision) else spec.dtype
    return f"its features are beyond the range of {narrowest}"


class Outcome(NamedTuple):
    """The outcome of one image.

    Attributes:
        identity: the state the file was read in, or ``None`` if it could not be read.
        features: (D,) or (V, D), in the stored dtype; ``None`` if the same content has been or is being
            computed, or if there is a reason.
        reason: why the image is skipped, else empty.
    """

    identity: FileIdentity | None
    features: Features | None
    reason: str = ""


def infer(
    images: Iterable[ReadImage],
    spec: FeatureSpec,
    *,
    open_engine: Callable[[], Engine],
    is_known: Callable[[str], bool],
) -> Generator[list[Outcome], None, None]:
    """Compute the features of images that have pixels, and yield the outcome of every image in the given order.

    While the network computes, the next batch is filled; each device computes a batch of its own.

    Args:
        images: read ahead.
        spec: what to compute.
        open_engine: called once, when the first image needs it.
        is_known: tells from a SHA-256 whether features are stored; the image may be decoded already.
    """
    batches = _Batches(spec, open_engine, is_known)
    with closing(batches):
        for image in images:
            batches.add(image)
            yield from batches.finished()
        batches.finish()
        yield from batches.finished()
        batches.log_hint()


class _Batches:
    """Batches: one is being filled, the others are submitted to the engine."""

    def __init__(self, spec: FeatureSpec, open_engine: Callable[[], Engine], is_known: Callable[[str], bool]) -> None:
        self._spec = spec
        self._open_engine = open_engine
        self._is_known = is_known
        self._engine: Engine | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._max_pending = 0  # unfinished batches
        self._next_images: list[tuple[ReadImage, bool]] = []  # each with whether its features are to be computed
        self._next_pixels: list[Pixels] = []
        self._contents: set[str] = set()  # of images being computed
        self._opened_s = self._waited_s = 0.0
        self._submitted: deque[tuple[list[tuple[ReadImage, bool]], Future[Features] | None]] = deque()

    def add(self, image: ReadImage) -> None:
        """Add an image; a full batch is submitted."""
        sha256, pixels = image.identity.sha256 if image.identity is not None else "", image.pixels
        if pixels is not None and (sha256 in self._contents or self._is_known(sha256)):
            pixels = None
        if pixels is not None:
            self._contents.add(sha256)
            self._next_pixels.append(pixels)
        self._next_images.append((image._replace(pixels=None), pixels is not None))
        full = self._next_pixels and len(self._next_pixels) >= max(1, self._open().batch_size // self._spec.views)
        if full or len(self._next_images) >= _IDLE_IMAGES + len(self._next_pixels):
            self._submit()

    def finish(self) -> None:
        """Submit the last batch; from now on :meth:`finished` waits for all."""
        if self._next_images:
            self._submit()
        self._max_pending = 0

    def finished(self) -> Generator[list[Outcome], None, None]:
        """Yield the outcomes of finished batches, oldest first; wait if too many are unfinished."""
        while self._submitted:
            images, future = self._submitted[0]
            if len(self._submitted) <= self._max_pending and future is not None and not future.done():
                return
            started = time.monotonic()
            rows = iter(future.result() if future is not None else ())
            self._waited_s += time.monotonic() - started
            self._submitted.popleft()
            yield [self._outcome(image, next(rows) if computes else None) for image, computes in images]

    def log_hint(self) -> None:
        """Name the faster precision if a long run mostly waited for a GPU that computes in float32."""
        seconds = time.monotonic() - self._opened_s
        on_gpu = self._engine is not None and "cuda" in self._engine.name
        if (
            on_gpu
            and self._spec.precision == "float32"
            and seconds > _LONG_RUN_S
            and self._waited_s > _LIMITING * seconds
        ):
            logger.info(
                "%.0f %% of the time was spent waiting for the GPU: --precision float16 would be faster, but the "
                "exported model computes in float32",
                100 * self._waited_s / seconds,
            )

    def close(self) -> None:
        """Wait for running calls of the network; cancel the others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _open(self) -> Engine:
        if self._engine is None:
            self._engine = self._open_engine()
            self._opened_s = time.monotonic()
            concurrent_calls = concurrent_calls_of(self._engine)
            self._pool = ThreadPoolExecutor(concurrent_calls, thread_name_prefix="infer")
            self._max_pending = concurrent_calls + 1  # one batch is ready, so that no device is idle
        return self._engine

    def _submit(self) -> None:
        images, self._next_images = self._next_images, []
        pixels, self._next_pixels = self._next_pixels, []
        future = self._pool.submit(self._compute, pixels) if pixels and self._pool is not None else None
        self._submitted.append((images, future))

    def _compute(self, pixels: list[Pixels]) -> Features:
        with np.errstate(over="ignore"):
            features = self._open().features(np.concatenate(pixels)).astype(self._spec.dtype)
        return features.reshape(len(pixels), *self._spec.row_shape(features.shape[1]))

    def _outcome(self, image: ReadImage, row: Features | None) -> Outcome:
        if row is None or image.identity is None:
            return Outcome(image.identity, None, image.reason)
        self._contents.discard(image.identity.sha256)
        if not finite_rows(row[None]).all():
            return Outcome(image.identity, None, beyond_range(self._spec))
        return Outcome(image.identity, row)

"""Batches of images from several requests: a queue of limited length, decoding threads, one worker per session.

The way of an image: ``submit`` (rejected if the queue is full), a decoding thread (unless it is pixels already), the
ready queue, a batch; then its future gets the result. Every accepted image gets a result, also when the server stops.
An image whose future is cancelled before its batch starts is not computed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.cores import cores
from xfeat.serve.inference.isolate import run_isolated
from xfeat.serve.inference.predictor import ImageContent, Predictor
from xfeat.serve.inference.results import Result, SkippedImage

logger = logging.getLogger(__name__)

STAGES = ("queue", "decode", "infer")


class QueueFullError(Exception):
    """The images do not fit into the queue, or it is closed; no image of the request was accepted."""


# The outcome of a cancelled image; nobody reads it.
_CANCELLED = QueueFullError("cancelled")


@dataclass(frozen=True, kw_only=True, eq=False)
class QueuedImage:
    """One image from its submission to its result.

    Attributes:
        name: of the image.
        content: its file content, later its pixels, as the only element; empty once nobody waits for the result.
        heatmap: whether a heatmap was requested.
        submitted_s: time of submission, on the monotonic clock.
        future: receives the result.
    """

    name: str
    content: list[Any]
    heatmap: bool
    submitted_s: float
    future: Future[Result] = field(default_factory=Future)

    def __post_init__(self) -> None:
        content = self.content  # not self, which a finished future would keep alive
        self.future.add_done_callback(lambda _: content.clear())

    def take(self) -> Any:
        """Remove and return the content, or return ``None`` if nobody waits for the result."""
        try:
            return None if self.future.cancelled() else self.content.pop()
        except IndexError:  # cancelled in between
            return None

    def resolve(self, outcome: Result | Exception) -> None:
        """Set the result, if somebody still waits for it."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


Decoded = tuple[QueuedImage, Pixels]


class Observer:
    """Is notified of batch sizes and times; this base class ignores them."""

    def on_batch(self, images: int) -> None:
        """Note the size of a batch that was computed."""

    def on_stage(self, stage: str, seconds: float) -> None:
        """Note how long an image waited (``queue``), or how long its decoding or its batch (``infer``) took."""


class Batcher:
    """Forms batches from the images of several requests.

    Args:
        predictors: sessions of one model file; each computes its own batches. The first one decodes.
        max_queue: most images that are accepted and have no result yet.
        max_batch: most images per call of the network; the default depends on the device.
        batch_wait_s: how long the first image of a batch waits while others are being decoded.
        observer: is notified of batch sizes and times.
    """

    def __init__(
        self,
        *predictors: Predictor,
        max_queue: int,
        max_batch: int | None = None,
        batch_wait_s: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        self._predictor = predictors[0]
        self._max_queue = max_queue
        self._max_batch = max_batch or self._predictor.batch_size
        self._batch_wait_s = batch_wait_s
        self._observer = observer or Observer()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # only the worker that forms a batch waits on it
        self._forming = threading.Lock()
        self._pending = 0
        self._decoding = 0
        self._ready: deque[QueuedImage] = deque()
        self._closed = False
        self._all_decoded = False
        self._decoders = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        self._workers = [
            threading.Thread(target=self._run, args=[predictor], name=f"inference-{number}", daemon=True)
            for number, predictor in enumerate(predictors)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def pending(self) -> int:
        """Number of images that are accepted and have no result yet."""
        return self._pending

    @property
    def closed(self) -> bool:
        """Whether no more images are accepted."""
        return self._closed

    def submit(self, images: Sequence[tuple[str, ImageContent]], *, heatmap: bool = False) -> list[Future[Result]]:
        """Accept all images of a request, or none.

        Args:
            images: name and content of each file.
            heatmap: include heatmaps in the predictions.

        Returns:
            One future per image, in the order given.

        Raises:
            QueueFullError: if they do not fit into the queue, or it is closed.
        """
        now = time.monotonic()
        queued = [QueuedImage(name=name, content=[data], heatmap=heatmap, submitted_s=now) for name, data in images]
        with self._lock:
            if self._closed:
                raise QueueFullError("the server is stopping")
            if self._pending + len(queued) > self._max_queue:
                raise QueueFullError(f"{self._pending} images are in the queue")
            self._pending += len(queued)
            for image, (_, data) in zip(queued, images, strict=True):
                if self._predictor.ready_pixels(data) is not None:
                    self._ready.append(image)
                else:
                    self._decoding += 1
                    self._decoders.submit(self._decode, image)
            if self._ready:
                self._changed.notify()
        return [image.future for image in queued]

    def close(self) -> None:
        """Accept no more images, compute those accepted, and stop the threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._decoders.shutdown(wait=True)
        with self._lock:
            self._all_decoded = True
            self._changed.notify()
        for worker in self._workers:
            worker.join()

    def _decode(self, image: QueuedImage) -> None:
        started = time.monotonic()
        failure: Result | Exception | None = None
        content = image.take()
        if content is None:
            failure = _CANCELLED
        else:
            try:
                image.content.append(self._predictor.decode(content))
            except ImageError as error:
                failure = SkippedImage(path=image.name, reason=error.what)
            except Exception as error:  # noqa: BLE001 - it is passed on to whoever waits for the future
                failure = error
        with self._lock:
            self._decoding -= 1
            if failure is None:
                self._ready.append(image)
            # Waking the worker costs time: it is not woken for every single image.
            if len(self._ready) in (1, self._max_batch) or not self._decoding:
                self._changed.notify()
        if failure is not None:
            self._finish([(image, failure)])
        else:
            self._observer.on_stage("decode", time.monotonic() - started)

    def _run(self, predictor: Predictor) -> None:
        while batch := self._form_batch():
            self._process(predictor, batch)

    def _form_batch(self) -> list[QueuedImage]:
        """Wait for images and take them from the queue; the result is empty after the last one."""
        with self._forming, self._lock:  # one worker at a time: idle ones would split the batch
            while not self._ready and not self._all_decoded:
                self._changed.wait()
            deadline = time.monotonic() + self._batch_wait_s
            while len(self._ready) < self._max_batch and self._decoding:
                wait_s = deadline - time.monotonic()
                if wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            return [self._ready.popleft() for _ in range(min(len(self._ready), self._max_batch))]

    def _process(self, predictor: Predictor, images: list[QueuedImage]) -> None:
        batch: list[Decoded] = []
        for image in images:
            pixels = image.take()
            if pixels is None:
                self._finish([(image, _CANCELLED)])
            else:
                batch.append((image, pixels))
        if not batch:
            return
        # Predictor.infer skips images that the model fails on; this handles defects of the program.
        outcomes = run_isolated(partial(self._infer, predictor), batch, Exception)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                logger.error("inference failed", exc_info=outcome)
        self._finish([(image, outcome) for (image, _), outcome in zip(batch, outcomes, strict=True)])

    def _infer(self, predictor: Predictor, batch: Sequence[Decoded]) -> list[Result]:
        started = time.monotonic()
        heatmap = any(image.heatmap for image, _ in batch)
        results = predictor.infer([image.name for image, _ in batch], [pixels for _, pixels in batch], heatmap=heatmap)
        self._observer.on_batch(len(batch))
        self._observer.on_stage("infer", time.monotonic() - started)
        for image, _ in batch:
            self._observer.on_stage("queue", started - image.submitted_s)
        return results

    def _finish(self, outcomes: Sequence[tuple[QueuedImage, Result | Exception]]) -> None:
        with self._lock:
            self._pending -= len(outcomes)
        for image, outcome in outcomes:
            image.resolve(outcome)

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
from xfeat.featurize.images.grey_range import RangeWatch
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.cores import cores
from xfeat.serve.inference.isolate import run_isolated
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.inference.reading import ImageContent
from xfeat.serve.inference.results import Result, SkippedImage
from xfeat.serve.models.metrics import ServerMetrics
from xfeat.serve.models.statistics import ModelStatistics

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """The images do not fit into the queue, or it is closed; no image of the request was accepted."""


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

    def resolve(self, outcome: Result | Exception | None) -> None:
        """Set the result, if somebody still waits for it; ``None`` if nobody does."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        elif outcome is not None:
            self.future.set_result(outcome)


class Batcher:
    """Forms batches from the images of several requests.

    Args:
        predictors: sessions of one model file; each computes its own batches. The first one decodes.
        max_queue: most images that are accepted and have no result yet.
        max_batch: most images per call of the network; the default depends on the device.
        batch_wait_s: how long the first image of a batch waits while others are being decoded.
        metrics: count the batches and time the stages; by default metrics that nobody reads.

    Attributes:
        predictors: as given.
        pending: number of images that are accepted and have no result yet.
        closed: whether no more images are accepted.
        statistics: counts and times.
    """

    def __init__(
        self,
        *predictors: Predictor,
        max_queue: int,
        max_batch: int | None = None,
        batch_wait_s: float = 0.0,
        metrics: ServerMetrics | None = None,
    ) -> None:
        self.predictors = predictors
        self.pending = 0
        self.closed = False
        self.statistics = ModelStatistics()
        self._max_queue = max_queue
        self._max_batch = max_batch or predictors[0].batch_size
        self._batch_wait_s = batch_wait_s
        self._metrics = metrics or ServerMetrics()
        self._range_watch = RangeWatch(predictors[0].metadata.feature_spec.preprocess)
        self._changed = threading.Condition()  # guards the state; only the worker that forms a batch waits on it
        self._forming = threading.Lock()
        self._decoding = 0
        self._ready: deque[QueuedImage] = deque()
        self._decoders = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        self._workers = [
            threading.Thread(target=self._run, args=[predictor], name=f"inference-{number}", daemon=True)
            for number, predictor in enumerate(predictors)
        ]
        for worker in self._workers:
            worker.start()

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
        with self._changed:
            if self.closed:
                raise QueueFullError("the server is stopping")
            if self.pending + len(queued) > self._max_queue:
                raise QueueFullError(f"{self.pending} images are in the queue")
            self.pending += len(queued)
            for image, (_, data) in zip(queued, images, strict=True):
                if self.predictors[0].ready_pixels(data) is not None:
                    self._ready.append(image)
                else:
                    self._decoding += 1
                    self._decoders.submit(self._decode, image)
            if self._ready:
                self._changed.notify()
        return [image.future for image in queued]

    def close(self) -> None:
        """Accept no more images, compute those accepted, and stop the threads."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._decoders.shutdown(wait=True)
        for worker in self._workers:
            worker.join()

    def _decode(self, image: QueuedImage) -> None:
        started = time.monotonic()
        failure: Result | Exception | None = None
        try:
            if (content := image.take()) is not None:
                image.content.append(self.predictors[0].decode(content))
                if isinstance(content, bytes):
                    self._range_watch.look_at(content)
                seconds = time.monotonic() - started
                self._metrics.stages["decode"].observe(seconds)
                self.statistics.add("compute_input", seconds)
        except ImageError as error:
            failure = SkippedImage(path=image.name, reason=error.what)
        except Exception as error:  # noqa: BLE001 - it is passed on to whoever waits for the future
            failure = error
        with self._changed:
            self._decoding -= 1
            if failure is None:
                self._ready.append(image)
            # Waking the worker costs time: it is not woken for every single image.
            if len(self._ready) in (1, self._max_batch) or not self._decoding:
                self._changed.notify()
        if failure is not None:
            self._finish(image, failure)

    def _run(self, predictor: Predictor) -> None:
        while images := self._form_batch():
            self._process(predictor, images)

    def _form_batch(self) -> list[QueuedImage]:
        """Wait for images and take them from the queue; the result is empty after the last one."""
        with self._forming, self._changed:  # one worker at a time: idle ones would split the batch
            while not self._ready and not (self.closed and not self._decoding):
                self._changed.wait()
            deadline = time.monotonic() + self._batch_wait_s
            while len(self._ready) < self._max_batch and self._decoding:
                wait_s = deadline - time.monotonic()
                if wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            return [self._ready.popleft() for _ in range(min(len(self._ready), self._max_batch))]

    def _process(self, predictor: Predictor, images: list[QueuedImage]) -> None:
        batch: list[tuple[QueuedImage, Pixels]] = []
        for image in images:
            pixels = image.take()
            if pixels is None:
                self._finish(image, None)
            else:
                batch.append((image, pixels))
        if not batch:
            return
        # Predictor.infer skips images that the model fails on; this handles defects of the program.
        outcomes = run_isolated(partial(self._infer, predictor), batch, Exception)
        for (image, _), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                logger.error("inference failed", exc_info=outcome)
            self._finish(image, outcome)

    def _infer(self, predictor: Predictor, batch: Sequence[tuple[QueuedImage, Pixels]]) -> list[Result]:
        started = time.monotonic()
        heatmap = any(image.heatmap for image, _ in batch)
        results = predictor.infer([image.name for image, _ in batch], [pixels for _, pixels in batch], heatmap=heatmap)
        self._metrics.batches.observe(len(batch))
        seconds = time.monotonic() - started
        self._metrics.stages["infer"].observe(seconds)
        self.statistics.add_batch(len(batch), seconds)
        for image, _ in batch:
            self._metrics.stages["queue"].observe(started - image.submitted_s)
            self.statistics.add("queue", started - image.submitted_s)
        return results

    def _finish(self, image: QueuedImage, outcome: Result | Exception | None) -> None:
        with self._changed:
            self.pending -= 1
        image.resolve(outcome)

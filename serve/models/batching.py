"""Images of many requests in common batches: a bounded queue, decoding threads, one thread a session of the network.

An image passes ``submit`` (refused if the queue is full), a decoding thread unless it is pixels already, the ready
queue and a batch; its future is then resolved with a result. Whatever was accepted is answered, also when the server
stops. A future that is cancelled before its batch starts costs nothing more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.cores import cores
from xfeat.serve.inference.predictor import ImageContent, Predictor
from xfeat.serve.inference.results import Result, SkippedImage

logger = logging.getLogger(__name__)

STAGES = ("queue", "decode", "infer")


class QueueFullError(Exception):
    """The images would not fit into the queue, or the queue is closed; nothing of the request was accepted."""


# What a cancelled future is settled with; nobody sees it.
_GIVEN_UP = QueueFullError("given up")


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One image on its way.

    Attributes:
        name: of the image.
        held: its content, later its pixels; empty from when nobody waits for it any more.
        heatmap: whether one is wanted.
        submitted_s: when it came, on the monotonic clock.
        future: where its result goes.
    """

    name: str
    held: list[Any]
    heatmap: bool
    submitted_s: float
    future: Future[Result] = field(default_factory=Future)

    def __post_init__(self) -> None:
        held = self.held  # not self, which a finished future would keep alive
        self.future.add_done_callback(lambda _: held.clear())

    def take(self) -> Any:
        """Return what is held, which then is the caller's alone, or ``None`` if nobody waits for the result."""
        try:
            return None if self.future.cancelled() else self.held.pop()
        except IndexError:  # cancelled just now
            return None

    def settle(self, outcome: Result | Exception) -> None:
        """Give the result to whoever waits for it, if anybody still does."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


Item = tuple[Job, Pixels]


class Observer:
    """Hears how batches are formed; this one ignores it."""

    def on_batch(self, images: int) -> None:
        """Hear of a batch and its size."""

    def on_stage(self, stage: str, seconds: float) -> None:
        """Hear how long an image waited (``queue``), was decoded, or its batch was computed (``infer``)."""


class Batcher:
    """Forms batches of what several requests ask for at the same time.

    Args:
        predictors: sessions of one model file; each runs its own batches. The first one decodes.
        max_queue: images accepted and not yet answered.
        max_batch: images per call of the network; by default what suits the device.
        batch_wait_s: how long the first image of a batch waits for others, while others are being decoded.
        observer: hears of sizes and times.
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
        self._changed = threading.Condition(self._lock)  # only the worker that forms a batch waits for it
        self._forming = threading.Lock()
        self._pending = 0
        self._decoding = 0
        self._ready: deque[Job] = deque()
        self._closed = False
        self._ended = False
        self._decoders = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        self._workers = [
            threading.Thread(target=self._run, args=[predictor], name=f"inference-{number}", daemon=True)
            for number, predictor in enumerate(predictors)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def pending(self) -> int:
        """Number of images accepted and not yet answered."""
        return self._pending

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._closed

    def submit(self, images: Sequence[tuple[str, ImageContent]], *, heatmap: bool = False) -> list[Future[Result]]:
        """Accept the images of a request, all or none.

        Args:
            images: name and content of each file.
            heatmap: put heatmaps into the answers.

        Returns:
            A future a image, in the order given.

        Raises:
            QueueFullError: if they do not fit into the queue, or it is closed.
        """
        now = time.monotonic()
        jobs = [Job(name=name, held=[content], heatmap=heatmap, submitted_s=now) for name, content in images]
        with self._lock:
            if self._closed:
                raise QueueFullError("the server is stopping")
            if self._pending + len(jobs) > self._max_queue:
                raise QueueFullError(f"{self._pending} images are waiting already")
            self._pending += len(jobs)
            for job, (_, content) in zip(jobs, images, strict=True):
                if self._predictor.as_pixels(content) is not None:
                    self._ready.append(job)
                else:
                    self._decoding += 1
                    self._decoders.submit(self._decode, job)
            if self._ready:
                self._changed.notify()
        return [job.future for job in jobs]

    def close(self) -> None:
        """Accept nothing more, answer everything accepted, and stop the threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._decoders.shutdown(wait=True)
        with self._lock:
            self._ended = True
            self._changed.notify()
        for worker in self._workers:
            worker.join()

    def _decode(self, job: Job) -> None:
        started = time.monotonic()
        outcome: Result | Exception | None = None
        content = job.take()
        if content is None:
            outcome = _GIVEN_UP
        else:
            try:
                job.held.append(self._predictor.decode(content))
            except ImageError as error:
                outcome = SkippedImage(path=job.name, reason=error.what)
            except Exception as error:  # noqa: BLE001 - whoever waits for the future must hear of it
                outcome = error
        with self._lock:
            self._decoding -= 1
            if outcome is None:
                self._ready.append(job)
            # Each wake of the worker costs as much as a little work: it need not count the images one by one.
            if len(self._ready) in (1, self._max_batch) or not self._decoding:
                self._changed.notify()
        if outcome is not None:
            self._finish([(job, outcome)])
        else:
            self._observer.on_stage("decode", time.monotonic() - started)

    def _run(self, predictor: Predictor) -> None:
        while batch := self._form_batch():
            self._answer(predictor, batch)

    def _form_batch(self) -> list[Job]:
        """Wait for images and take them; the result is empty when the queue has ended."""
        with self._forming, self._lock:  # one worker at a time, so that idle ones do not tear batches apart
            while not self._ready and not self._ended:
                self._changed.wait()
            deadline = time.monotonic() + self._batch_wait_s
            while len(self._ready) < self._max_batch and self._decoding:
                wait_s = deadline - time.monotonic()
                if wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            return [self._ready.popleft() for _ in range(min(len(self._ready), self._max_batch))]

    def _answer(self, predictor: Predictor, batch: list[Job]) -> None:
        wanted: list[Item] = []
        for job in batch:
            pixels = job.take()
            if pixels is None:
                self._finish([(job, _GIVEN_UP)])
            else:
                wanted.append((job, pixels))
        if wanted:
            self._compute(predictor, wanted)

    def _compute(self, predictor: Predictor, batch: list[Item]) -> None:
        started = time.monotonic()
        jobs = [job for job, _ in batch]
        try:
            results = predictor.infer(
                [job.name for job in jobs],
                [pixels for _, pixels in batch],
                heatmap=any(job.heatmap for job in jobs),
            )
        except Exception as error:
            if len(batch) > 1:  # only the image that is at fault may suffer
                for one in batch:
                    self._compute(predictor, [one])
                return
            logger.exception("inference failed")
            self._finish([(jobs[0], error)])
            return
        self._finish(list(zip(jobs, results, strict=True)))
        self._observer.on_batch(len(batch))
        self._observer.on_stage("infer", time.monotonic() - started)
        for job in jobs:
            self._observer.on_stage("queue", started - job.submitted_s)

    def _finish(self, outcomes: Sequence[tuple[Job, Result | Exception]]) -> None:
        with self._lock:
            self._pending -= len(outcomes)
        for job, outcome in outcomes:
            job.settle(outcome)

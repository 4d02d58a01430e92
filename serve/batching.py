"""Images of many requests in common batches: a bounded queue, decoding threads, one thread that runs the network.

An image passes ``submit`` (refused if the queue is full), a decoding thread, the ready queue and a batch; its future is
then resolved with a result. Whatever was accepted is answered, also when the server stops. A future that is cancelled
before its batch starts costs nothing more.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from featurize.cores import cores
from featurize.errors import ImageError
from featurize.preprocess import Pixels
from serve.predictor import ImageContent, Predictor
from serve.results import Result, SkippedImage

logger = logging.getLogger(__name__)

STAGES = ("queue", "decode", "infer")


class QueueFullError(Exception):
    """The images would not fit into the queue, or the queue is closed; nothing of the request was accepted."""


# What a cancelled future is settled with; nobody sees it.
_GIVEN_UP = QueueFullError("given up")


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One image on its way: its name, its content, whether a heatmap is wanted, and where its result goes."""

    name: str
    content: ImageContent
    heatmap: bool
    submitted_s: float
    future: Future[Result] = field(default_factory=Future)

    def settle(self, outcome: Result | Exception) -> None:
        """Give the result to whoever waits for it, if anybody still does."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Observer:
    """Hears how batches are formed; this one ignores it."""

    def on_batch(self, images: int) -> None:
        """Hear of a batch and its size."""

    def on_stage(self, stage: str, seconds: float) -> None:
        """Hear how long an image waited (``queue``), was decoded, or its batch was computed (``infer``)."""


class Batcher:
    """Forms batches of what several requests ask for at the same time.

    Args:
        predictor: decodes and runs the network.
        max_queue: images accepted and not yet answered.
        max_batch: images per call of the network; by default what suits the device.
        batch_wait_s: how long the first image of a batch waits for others, while others are being decoded.
        observer: hears of sizes and times.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_queue: int,
        max_batch: int | None = None,
        batch_wait_s: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        self._predictor = predictor
        self._max_queue = max_queue
        self._max_batch = max_batch or predictor.batch_size
        self._batch_wait_s = batch_wait_s
        self._observer = observer or Observer()
        self._lock = threading.Lock()
        self._pending = 0
        self._closed = False
        self._ready: queue.SimpleQueue[tuple[Job, Pixels] | None] = queue.SimpleQueue()
        self._decoders = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        self._worker = threading.Thread(target=self._run, name="inference", daemon=True)
        self._worker.start()

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
        jobs = [Job(name=name, content=content, heatmap=heatmap, submitted_s=now) for name, content in images]
        with self._lock:
            if self._closed:
                raise QueueFullError("the server is stopping")
            if self._pending + len(jobs) > self._max_queue:
                raise QueueFullError(f"{self._pending} images are waiting already")
            self._pending += len(jobs)
            for job in jobs:
                self._decoders.submit(self._decode, job)
        return [job.future for job in jobs]

    def close(self) -> None:
        """Accept nothing more, answer everything accepted, and stop the threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._decoders.shutdown(wait=True)
        self._ready.put(None)
        self._worker.join()

    def _decode(self, job: Job) -> None:
        started = time.monotonic()
        if job.future.cancelled():
            self._finish([(job, _GIVEN_UP)])
            return
        try:
            pixels = self._predictor.decode(job.content)
        except ImageError as error:
            self._finish([(job, SkippedImage(path=job.name, reason=error.what))])
        except Exception as error:  # noqa: BLE001 - whoever waits for the future must hear of it
            self._finish([(job, error)])
        else:
            self._observer.on_stage("decode", time.monotonic() - started)
            self._ready.put((job, pixels))

    def _run(self) -> None:
        while (first := self._ready.get()) is not None:
            batch = [first]
            more = self._fill(batch)
            self._answer(batch)
            if not more:
                return

    def _fill(self, batch: list[tuple[Job, Pixels]]) -> bool:
        """Add what is ready, and wait for what is still being decoded; ``False`` if the queue has ended."""
        deadline = time.monotonic() + self._batch_wait_s
        while len(batch) < self._max_batch:
            wait_s = deadline - time.monotonic() if self._pending > len(batch) else 0.0
            try:
                item = self._ready.get(timeout=wait_s) if wait_s > 0 else self._ready.get_nowait()
            except queue.Empty:
                return True
            if item is None:
                return False
            batch.append(item)
        return True

    def _answer(self, batch: list[tuple[Job, Pixels]]) -> None:
        wanted: list[tuple[Job, Pixels]] = []
        for job, pixels in batch:
            if job.future.cancelled():
                self._finish([(job, _GIVEN_UP)])
            else:
                wanted.append((job, pixels))
        if wanted:
            self._compute(wanted)

    def _compute(self, batch: list[tuple[Job, Pixels]]) -> None:
        started = time.monotonic()
        jobs = [job for job, _ in batch]
        try:
            results = self._predictor.infer(
                [job.name for job in jobs],
                [pixels for _, pixels in batch],
                heatmap=any(job.heatmap for job in jobs),
            )
        except Exception as error:
            if len(batch) > 1:  # only the image that is at fault may suffer
                for one in batch:
                    self._compute([one])
                return
            logger.exception("inference failed")
            self._finish([(jobs[0], error)])
            return
        self._observer.on_batch(len(batch))
        self._observer.on_stage("infer", time.monotonic() - started)
        for job in jobs:
            self._observer.on_stage("queue", started - job.submitted_s)
        self._finish(list(zip(jobs, results, strict=True)))

    def _finish(self, outcomes: Sequence[tuple[Job, Result | Exception]]) -> None:
        with self._lock:
            self._pending -= len(outcomes)
        for job, outcome in outcomes:
            job.settle(outcome)

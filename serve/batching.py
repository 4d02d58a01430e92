"""Images of many requests in common batches: a bounded queue, decoding threads, one thread that runs the network.

An image passes ``submit`` (refused if the queue is full), a decoding thread, the ready queue and a batch; its future is
then resolved with a result. Whatever was accepted is answered, also when the server stops.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from featurize.errors import ImageError
from featurize.preprocess import Pixels
from serve.predictor import Predictor
from serve.results import Result, SkippedImage
from serve.session import available_cores

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """The images would not fit into the queue, or the queue is closed; nothing of the request was accepted."""


class Job(NamedTuple):
    """One image on its way: its name, the content of its file, and where its result goes."""

    name: str
    content: bytes
    future: Future[Result]


class Batcher:
    """Forms batches of what several requests ask for at the same time.

    Args:
        predictor: decodes and runs the network.
        max_queue: images accepted and not yet answered.
        max_batch: images per call of the network; by default what suits the device.
        batch_wait_s: how long the first image of a batch waits for others, while others are being decoded.
        on_batch: called with the size of each batch.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_queue: int,
        max_batch: int | None = None,
        batch_wait_s: float = 0.0,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._predictor = predictor
        self._max_queue = max_queue
        self._max_batch = max_batch or predictor.batch_size
        self._batch_wait_s = batch_wait_s
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._pending = 0
        self._closed = False
        self._ready: queue.SimpleQueue[tuple[Job, Pixels] | None] = queue.SimpleQueue()
        self._decoders = ThreadPoolExecutor(available_cores(), thread_name_prefix="decode")
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

    def submit(self, images: Sequence[tuple[str, bytes]]) -> list[Future[Result]]:
        """Accept the images of a request, all or none.

        Args:
            images: name and content of each file.

        Returns:
            A future a image, in the order given.

        Raises:
            QueueFullError: if they do not fit into the queue, or it is closed.
        """
        jobs = [Job(name, content, Future()) for name, content in images]
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
        # A request that was given up cancels its futures; from here on they run.
        if not job.future.set_running_or_notify_cancel():
            self._leave(1)
            return
        try:
            pixels = self._predictor.decode(job.content)
        except ImageError as error:
            self._leave(1)
            job.future.set_result(SkippedImage(path=job.name, reason=error.what))
        except Exception as error:  # noqa: BLE001 - whoever waits for the future must hear of it
            self._leave(1)
            job.future.set_exception(error)
        else:
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
        jobs = [job for job, _ in batch]
        try:
            results = self._predictor.infer([job.name for job in jobs], [pixels for _, pixels in batch])
            if self._on_batch is not None:
                self._on_batch(len(batch))
        except Exception as error:
            logger.exception("a batch failed")
            self._leave(len(jobs))
            for job in jobs:
                job.future.set_exception(error)
            return
        self._leave(len(jobs))
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)

    def _leave(self, number: int) -> None:
        with self._lock:
            self._pending -= number

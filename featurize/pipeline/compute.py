"""The slow part of a run: new images go through the network, and their features into shards."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.cache.index import NOT_STORED, FeatureIndex, IndexRows
from xfeat.featurize.cache.shards import Identities, Row, Shard, ShardStore
from xfeat.featurize.engines import Engine
from xfeat.featurize.errors import DataError, Interrupted, OutputError
from xfeat.featurize.pipeline.inference import Outcome, beyond_range, infer
from xfeat.featurize.pipeline.reading import ReadImage, read_images
from xfeat.featurize.pipeline.reading_processes import read_in_processes, suits_processes
from xfeat.featurize.progress import Steps
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.cores import cores
from xfeat.featurize.urls import Root

logger = logging.getLogger(__name__)

# A killed run loses at most one shard: so many images, or the work of so many seconds.
SHARD_ROWS = 512
SHARD_SECONDS = 20.0

Outcomes = Generator[list[tuple[int, Outcome]], None, None]
"""Batches of outcomes, each outcome with the position of its image."""


class Cluster(Protocol):
    """Several machines that read images and compute their features. Only this process writes."""

    @property
    def name(self) -> str:
        """What ran, for messages."""
        ...

    def outcomes(self, source: ImageSource, root: Root, paths: Sequence[str], known: NDArray[np.bytes_]) -> Outcomes:
        """Yield the outcome of every image, in any order.

        Args:
            source: the data root, as this process sees it.
            root: its path.
            paths: relative to it.
            known: SHA-256 of content whose features are stored, sorted, 64 hexadecimal digits each.

        Raises:
            DeviceError: if there is no cluster, or it cannot compute this.
        """
        ...


@dataclass
class RunState:
    """The state of a run over N images; all columns are in the order of ``paths``.

    Attributes:
        paths: relative to the data root.
        identities: the state in which each image was read.
        index_rows: where its features are stored, or ``NOT_STORED``.
        skipped: images that could not be read.
        computed: number of images that went through the network.
        rehashed: number of images that were read again and had not changed.
        seconds: time for reading and computing, without opening the engine.
        engine: name of the engine, empty if nothing was computed.
    """

    paths: Sequence[str]
    identities: Identities
    index_rows: IndexRows
    skipped: list[Skipped] = field(default_factory=list)
    computed: int = 0
    rehashed: int = 0
    seconds: float = 0.0
    engine: str = ""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run; none of them changes the features.

    Attributes:
        open_engine: opens the network; called when the first image needs it.
        cluster: reads and computes on other machines; the engine is not opened then.
        workers: decoding threads or processes; ``None`` takes one per core.
        decode_in: ``threads``, ``processes``, or ``auto``: processes where workers and images are many.
        fail_on_error: stop at the first image that cannot be read instead of skipping it.
        force: replace an existing cache of another spec, and recompute everything; only images that a stopped run with
            ``force`` finished are reused.
        progress: called as images are done.
    """

    open_engine: Callable[[], Engine]
    cluster: Cluster | None = None
    workers: int | None = None
    decode_in: str = "auto"
    fail_on_error: bool = False
    force: bool = False
    progress: Steps | None = None


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a computation needs.

    Attributes:
        root: the data root.
        source: where image files are read.
        spec: what to compute.
        store: where finished images are stored.
        known: the index of stored features.
        options: options of the run.
    """

    root: Root
    source: ImageSource
    spec: FeatureSpec
    store: ShardStore
    known: FeatureIndex
    options: RunOptions


def compute_features(todo: Sequence[int], state: RunState, context: RunContext) -> None:
    """Compute the images with the numbers in ``todo`` and update ``state``.

    Raises:
        DataError: if an image cannot be read and ``fail_on_error`` is set.
        OutputError: if a shard cannot be written.
        Interrupted: on Ctrl-C or SIGTERM. After any error, finished images are stored if the disk allows it.
    """
    run = _Run(state, context, todo)
    started = time.monotonic()
    try:
        with contextlib.closing(run.outcomes()) as outcomes:
            # Stored before the outcomes are closed: stopping a cluster can take long, or fail.
            try:
                for batch in outcomes:
                    run.record(batch)
            except Exception:
                with contextlib.suppress(OutputError):  # the first error is reported
                    run.finish_shards()
                raise
            except KeyboardInterrupt:
                run.finish_shards()
                raise
            run.finish_shards()
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped; {run.done} of {len(todo)} images are finished and stored in {context.store.folder}",
            fix="run the same command again: it resumes",
        ) from error
    state.skipped.sort()
    state.seconds = time.monotonic() - started - run.opening_seconds


class _Run:
    """The state of one computation."""

    def __init__(self, state: RunState, context: RunContext, todo: Sequence[int]) -> None:
        self.state = state
        self.context = context
        self.todo = todo
        self.done = 0
        self.opening_seconds = 0.0
        self._rows: list[Row] = []
        self._waiting: dict[str, list[int]] = {}  # content that is in no shard yet -> its images
        self._last_shard = time.monotonic()
        # One shard is flushed to disk while the next one fills.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._being_written: tuple[list[Row], Future[tuple[Shard, Identities]]] | None = None

    def outcomes(self) -> Outcomes:
        """Read and compute, here or on a cluster."""
        context, options = self.context, self.context.options
        paths = [self.state.paths[number] for number in self.todo]
        if options.cluster is not None:
            self._set_engine(options.cluster.name)
            yield from options.cluster.outcomes(context.source, context.root, paths, context.known.contents())
            return
        images = self._read(paths)
        position = 0
        with contextlib.closing(images):
            batches = infer(images, context.spec, open_engine=self._open, is_known=self._is_known)
            with contextlib.closing(batches):
                for batch in batches:
                    yield list(enumerate(batch, start=position))
                    position += len(batch)

    def _read(self, paths: Sequence[str]) -> Generator[ReadImage, None, None]:
        context, options = self.context, self.context.options
        workers = options.workers or cores()
        suits = options.decode_in == "auto" and suits_processes(workers, len(paths))
        if suits or options.decode_in == "processes":
            known = context.known.contents()
            return read_in_processes(context.source, paths, context.spec, known=known, workers=workers)
        return read_images(context.source, paths, context.spec, is_known=self._is_known, workers=workers)

    def record(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Record the outcomes of some images; write a shard if there are enough."""
        for position, outcome in outcomes:
            self._record_one(self.todo[position], outcome)
        self.done += len(outcomes)
        if self.context.options.progress is not None:
            self.context.options.progress(self.done, len(self.todo))
        if len(self._rows) >= SHARD_ROWS or time.monotonic() - self._last_shard > SHARD_SECONDS:
            self.write_shard()

    def write_shard(self) -> None:
        """Write finished images as a shard, once the last one is written."""
        self._wait_for_shard()
        if self._rows:
            self._being_written = self._rows, self._writer.submit(self.context.store.append, self._rows)
            self._rows = []
        self._last_shard = time.monotonic()

    def finish_shards(self) -> None:
        """Write all finished images; they are on disk when this returns."""
        try:
            self.write_shard()
        finally:
            self._wait_for_shard()
            self._writer.shutdown()

    def _wait_for_shard(self) -> None:
        if self._being_written is None:
            return
        rows, future = self._being_written
        wait([future])  # Ctrl-C may end this; then it is waited for again
        self._being_written = None
        first = self.context.known.add_shard(*future.result())
        for index_row, row in enumerate(rows, start=first):
            for number in self._waiting.pop(row.identity.sha256, []):
                self.state.index_rows[number] = index_row

    def _record_one(self, number: int, outcome: Outcome) -> None:
        if outcome.reason or outcome.identity is None:
            self._skip(number, outcome.reason)
            return
        identity, features = outcome.identity, outcome.features
        self.state.rehashed += bool(self.state.identities["sha256"][number] == identity.sha256.encode())
        self.state.identities[number] = identity
        if (index_row := self.context.known.find_content(identity.sha256)) != NOT_STORED:
            self.state.index_rows[number] = index_row
        elif identity.sha256 in self._waiting:
            self._waiting[identity.sha256].append(number)
        elif features is not None:
            self._waiting[identity.sha256] = [number]
            self._rows.append(Row(self.state.paths[number], identity, features))
            self.state.computed += 1
        else:  # an image with the same content was refused
            self._skip(number, beyond_range(self.context.spec))

    def _skip(self, number: int, reason: str) -> None:
        path = self.state.paths[number]
        if self.context.options.fail_on_error:
            raise DataError(
                reason, path=self.context.root / path, fix="remove the file, or skip it with --on-error skip"
            )
        self.state.skipped.append(Skipped(path, reason))
        self.state.index_rows[number] = NOT_STORED

    def _is_known(self, sha256: str) -> bool:
        return sha256 in self._waiting or self.context.known.find_content(sha256) != NOT_STORED

    def _open(self) -> Engine:
        started = time.monotonic()
        engine = self.context.options.open_engine()
        self._set_engine(engine.name)
        self.opening_seconds = time.monotonic() - started
        return engine

    def _set_engine(self, name: str) -> None:
        self.state.engine = name
        logger.info("%d images to read with %s", len(self.todo), name)

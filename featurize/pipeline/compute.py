"""The part of a run that costs time: images that are not known go through the network and into shards."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.cache.index import NOT_STORED, FeatureIndex, IndexRows
from xfeat.featurize.cache.shards import Identities, Row, ShardStore
from xfeat.featurize.datasets.sources import ImageSource
from xfeat.featurize.engines import Engine
from xfeat.featurize.errors import DataError, Interrupted, OutputError
from xfeat.featurize.pipeline.inference import Outcome, beyond_range, infer
from xfeat.featurize.pipeline.reading import ReadImage, read_images
from xfeat.featurize.pipeline.reading_processes import read_in_processes, suits_processes
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.cores import cores

logger = logging.getLogger(__name__)

# A kill loses at most one shard: this many images, or what was computed in this time.
SHARD_ROWS = 512
SHARD_SECONDS = 20.0

Progress = Callable[[int, int], None]
"""Called with images done and images to do."""

Outcomes = Generator[list[tuple[int, Outcome]], None, None]
"""Outcomes as they come, each with the position of its image; all that came together are noted together."""


class Cluster(Protocol):
    """Many machines that read images and compute their features. This process alone writes."""

    @property
    def name(self) -> str:
        """What ran, for people."""
        ...

    def outcomes(self, source: ImageSource, root: Path, paths: Sequence[str], known: NDArray[np.bytes_]) -> Outcomes:
        """Yield the outcome of every image, in any order.

        Args:
            source: the data root, as this process sees it.
            root: where it lies.
            paths: relative to it.
            known: SHA-256 of content that need not be computed, sorted, 64 hexadecimal digits each.

        Raises:
            DeviceError: if there is no cluster, or one that cannot do this.
        """
        ...


@dataclass
class RunState:
    """What a run knows of each of its N images; all columns are in the order of ``paths``.

    Attributes:
        paths: relative to the data root.
        identities: the state in which each image was read.
        index_rows: where its features are, ``NOT_STORED`` as long as there are none.
        skipped: images that could not be read.
        computed: number of images that went through the network.
        rehashed: number of images that were read again and are what they were.
        seconds: time for reading and computing, without opening the engine.
        engine: name of the engine that computed, empty if nothing had to be.
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
    """How a run is done; none of this changes what is computed.

    Attributes:
        open_engine: opens the network; called when the first image needs it.
        cluster: reads and computes elsewhere; the engine is not opened then.
        workers: decoding threads or processes; ``None`` takes as many as there are cores.
        decode_in: ``threads``, ``processes``, or ``auto``: processes where workers and images are many.
        fail_on_error: stop at the first image that cannot be read instead of skipping it.
        force: replace an existing cache of another spec, and compute everything anew; only what a stopped run with
            ``force`` finished is kept.
        progress: called as images are done.
    """

    open_engine: Callable[[], Engine]
    cluster: Cluster | None = None
    workers: int | None = None
    decode_in: str = "auto"
    fail_on_error: bool = False
    force: bool = False
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a computation works with.

    Attributes:
        root: the data root.
        source: where image files are read.
        spec: what to compute.
        store: where finished images are kept.
        known: where features are found again.
        options: how it is done.
    """

    root: Path
    source: ImageSource
    spec: FeatureSpec
    store: ShardStore
    known: FeatureIndex
    options: RunOptions


def compute_features(todo: Sequence[int], state: RunState, context: RunContext) -> None:
    """Bring the images with the numbers in ``todo`` up to date in ``state``.

    Raises:
        DataError: if an image cannot be read and ``fail_on_error`` is set.
        OutputError: if a shard cannot be written.
        Interrupted: on Ctrl-C or SIGTERM. Whatever is raised, finished images are kept if the disk lets them.
    """
    run = _Run(state, context, todo)
    started = time.monotonic()
    try:
        with contextlib.closing(run.outcomes()) as outcomes:
            # Kept before the outcomes are closed: ending a cluster may take a while, or end badly.
            try:
                for together in outcomes:
                    run.take(together)
            except Exception:
                with contextlib.suppress(OutputError):  # what went wrong first is told
                    run.keep()
                raise
            except KeyboardInterrupt:
                run.keep()
                raise
            run.keep()
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped; {run.done} of {len(todo)} images are finished and kept in {context.store.folder}",
            fix="run the same command again: it goes on from there",
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
        self._waiting: dict[str, list[int]] = {}  # content that is in no shard yet -> images that have it
        self._last_shard = time.monotonic()

    def outcomes(self) -> Outcomes:
        """Read and compute, here or elsewhere."""
        context, options = self.context, self.context.options
        paths = [self.state.paths[number] for number in self.todo]
        if options.cluster is not None:
            self._say(options.cluster.name)
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
            return read_in_processes(context.root, paths, context.spec, known=context.known.contents(), workers=workers)
        return read_images(context.source, paths, context.spec, is_known=self._is_known, workers=workers)

    def take(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Note what became of some images; keep them if there are enough for a shard."""
        for position, outcome in outcomes:
            self._note(self.todo[position], outcome)
        self.done += len(outcomes)
        if self.context.options.progress is not None:
            self.context.options.progress(self.done, len(self.todo))
        if len(self._rows) >= SHARD_ROWS or time.monotonic() - self._last_shard > SHARD_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write finished images as a shard."""
        if not self._rows:
            return
        shard, identities = self.context.store.append(self._rows)
        first = self.context.known.add_shard(shard, identities)
        for index_row, row in enumerate(self._rows, start=first):
            for number in self._waiting.pop(row.identity.sha256, []):
                self.state.index_rows[number] = index_row
        self._rows.clear()
        self._last_shard = time.monotonic()

    def _note(self, number: int, outcome: Outcome) -> None:
        if outcome.reason or outcome.identity is None:
            self._skip(number, outcome.reason)
            return
        identity, features = outcome.identity, outcome.features
        self.state.rehashed += bool(self.state.identities.sha256[number] == identity.sha256.encode())
        self.state.identities.set(number, identity)
        if (index_row := self.context.known.find_content(identity.sha256)) != NOT_STORED:
            self.state.index_rows[number] = index_row
        elif identity.sha256 in self._waiting:
            self._waiting[identity.sha256].append(number)
        elif features is not None:
            self._waiting[identity.sha256] = [number]
            self._rows.append(Row(self.state.paths[number], identity, features))
            self.state.computed += 1
        else:  # its twin was refused
            self._skip(number, beyond_range(self.context.spec))

    def _skip(self, number: int, reason: str) -> None:
        path = self.state.paths[number]
        if self.context.options.fail_on_error:
            raise DataError(
                reason, path=self.context.root / path, fix="remove it, or leave it out with --on-error skip"
            )
        self.state.skipped.append(Skipped(path, reason))
        self.state.index_rows[number] = NOT_STORED

    def _is_known(self, sha256: str) -> bool:
        return sha256 in self._waiting or self.context.known.find_content(sha256) != NOT_STORED

    def _open(self) -> Engine:
        started = time.monotonic()
        engine = self.context.options.open_engine()
        self._say(engine.name)
        self.opening_seconds = time.monotonic() - started
        return engine

    def _say(self, name: str) -> None:
        self.state.engine = name
        logger.info("%d images to look at with %s", len(self.todo), name)

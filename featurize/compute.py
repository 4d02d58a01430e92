"""The part of a run that costs time: images that are not known go through the network and into shards."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurize.cache import Skipped
from featurize.cores import cores
from featurize.engines import Engine
from featurize.errors import DataError, Interrupted, OutputError
from featurize.known import NOWHERE, KnownFeatures, Places
from featurize.preprocess import Pixels
from featurize.reading import ReadImage, read_images
from featurize.shards import FileIdentity, Identities, Row, ShardStore
from featurize.sources import ImageSource
from featurize.specs import FeatureSpec

logger = logging.getLogger(__name__)

# A kill loses at most one shard: this many images, or what was computed in this time.
SHARD_ROWS = 512
SHARD_SECONDS = 20.0
_REPORT_EVERY = 100

Progress = Callable[[int, int], None]
"""Called with images done and images to do."""


@dataclass
class Ledger:
    """What a run knows of each of its N images; all columns are in the order of ``paths``.

    Attributes:
        paths: relative to the data root.
        identities: the state in which each image was read.
        places: where its features are, ``NOWHERE`` as long as there are none.
        skipped: images that could not be read.
        computed: number of images that went through the network.
        seconds: time for reading and computing, without opening the engine.
        engine: name of the engine that computed, empty if nothing had to be.
    """

    paths: Sequence[str]
    identities: Identities
    places: Places
    skipped: list[Skipped] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0
    engine: str = ""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a computation works with.

    Attributes:
        root: the data root, for messages.
        source: where image files are read.
        spec: what to compute.
        open_engine: opens the network; called when the first image needs it.
        store: where finished images are kept.
        known: where features are found again.
        workers: decoding threads; ``None`` takes as many as there are cores.
        fail_on_error: stop at an image that cannot be read.
        progress: called as images are done.
    """

    root: Path
    source: ImageSource
    spec: FeatureSpec
    open_engine: Callable[[], Engine]
    store: ShardStore
    known: KnownFeatures
    workers: int | None = None
    fail_on_error: bool = False
    progress: Progress | None = None


def compute_features(todo: Sequence[int], ledger: Ledger, tools: Tools) -> None:
    """Bring the images with the numbers in ``todo`` up to date in ``ledger``.

    Raises:
        DataError: if an image cannot be read and ``fail_on_error`` is set.
        OutputError: if a shard cannot be written.
        Interrupted: on Ctrl-C or SIGTERM. Whatever is raised, finished images are kept if the disk lets them.
    """
    run = _Run(ledger, tools, len(todo))
    started = time.monotonic()
    try:
        images = read_images(
            tools.source,
            (ledger.paths[number] for number in todo),
            tools.spec,
            is_known=lambda sha256: tools.known.find_content(sha256) != NOWHERE,
            workers=tools.workers or cores(),
        )
        with contextlib.closing(images):
            for number, image in zip(todo, images, strict=True):
                run.take(number, image)
        run.finish()
    except KeyboardInterrupt as error:
        run.keep()
        raise Interrupted(
            f"stopped; {run.done} of {len(todo)} images are finished and kept in {tools.store.folder}",
            mend="run the same command again: it goes on from there",
        ) from error
    except Exception:
        with contextlib.suppress(OutputError):
            run.keep()
        raise
    ledger.seconds = time.monotonic() - started - run.opening_seconds


class _Run:
    """The state of one computation."""

    def __init__(self, ledger: Ledger, tools: Tools, total: int) -> None:
        self.ledger = ledger
        self.tools = tools
        self.total = total
        self.done = 0
        self.opening_seconds = 0.0
        self._engine: Engine | None = None
        self._batch: list[tuple[int, FileIdentity, Pixels]] = []
        self._rows: list[Row] = []
        self._waiting: dict[str, list[int]] = {}  # content that is being computed -> images that have it
        self._last_shard = time.monotonic()

    def take(self, number: int, image: ReadImage) -> None:
        """Note what became of one file; compute when a batch is full."""
        if image.identity is None:
            self._skip(number, image.reason)
            return
        self.ledger.identities.set(number, image.identity)
        sha256 = image.identity.sha256
        if (place := self.tools.known.find_content(sha256)) != NOWHERE:
            self.ledger.places[number] = place
            self._advance(1)
        elif sha256 in self._waiting:
            self._waiting[sha256].append(number)
            self._advance(1)
        elif image.pixels is not None:
            self._waiting[sha256] = [number]
            self._batch.append((number, image.identity, image.pixels))
            if len(self._batch) >= max(1, self._open().batch_size // self.tools.spec.views):
                self._compute()

    def finish(self) -> None:
        """Compute and keep what is left."""
        if self._batch:
            self._compute()
        self.keep()

    def keep(self) -> None:
        """Write finished images as a shard."""
        if not self._rows:
            return
        shard, identities = self.tools.store.append(self._rows)
        first = self.tools.known.add_shard(shard, identities)
        for place, row in enumerate(self._rows, start=first):
            for number in self._waiting.pop(row.identity.sha256, []):
                self.ledger.places[number] = place
        self._rows.clear()
        self._last_shard = time.monotonic()

    def _open(self) -> Engine:
        if self._engine is None:
            started = time.monotonic()
            self._engine = self.tools.open_engine()
            self.opening_seconds = time.monotonic() - started
            self.ledger.engine = self._engine.name
            logger.info("%d images to look at with %s", self.total, self._engine.name)
        return self._engine

    def _compute(self) -> None:
        spec = self.tools.spec
        batch, self._batch = self._batch, []
        pixels = np.concatenate([views for _, _, views in batch])
        with np.errstate(over="ignore"):
            features = self._open().features(pixels).astype(spec.dtype)
        features = features.reshape(len(batch), *spec.row_shape(features.shape[1]))
        finite = np.isfinite(features).reshape(len(batch), -1).all(axis=1)
        for (number, identity, _), row, good in zip(batch, features, finite, strict=True):
            if good:
                self._rows.append(Row(self.ledger.paths[number], identity, row))
            else:
                for twin in self._waiting.pop(identity.sha256):
                    self._skip(twin, f"its features are beyond the range of {spec.dtype}")
        self.ledger.computed += int(finite.sum())
        self._advance(len(batch))
        if len(self._rows) >= SHARD_ROWS or time.monotonic() - self._last_shard > SHARD_SECONDS:
            self.keep()

    def _skip(self, number: int, reason: str) -> None:
        path = self.ledger.paths[number]
        if self.tools.fail_on_error:
            raise DataError(reason, path=self.tools.root / path, mend="remove it, or leave it out with --on-error skip")
        self.ledger.skipped.append(Skipped(path, reason))
        self.ledger.places[number] = NOWHERE
        self._advance(1)

    def _advance(self, images: int) -> None:
        before, self.done = self.done, self.done + images
        crossed = self.done // _REPORT_EVERY != before // _REPORT_EVERY
        if self.tools.progress is not None and (images > 1 or crossed or self.done >= self.total):
            self.tools.progress(self.done, self.total)

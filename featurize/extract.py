"""From a data set to ``features.h5``: what is known is reused, the rest is computed, nothing finished is lost."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from featurize.atomic import output_error
from featurize.cache import Columns, FeatureCache, Skipped, write_cache
from featurize.dataset import Dataset, ImageEntry
from featurize.engines import Engine
from featurize.errors import BusyError, DataError, Interrupted, MismatchError, XfeatError
from featurize.known import KnownFeatures
from featurize.reading import read_images
from featurize.shards import FileIdentity, Row, ShardStore
from featurize.specs import FeatureSpec
from featurize.weights import Weights

logger = logging.getLogger(__name__)

# A kill loses at most one shard: this many images, or what was computed in this time.
SHARD_ROWS = 512
SHARD_SECONDS = 20.0
_WRITE_ROWS = 2048

Progress = Callable[[int, int], None]
"""Called with images done and images to do."""


@dataclass(frozen=True)
class Extraction:
    """What a run did.

    Attributes:
        output: the cache.
        images: rows in the cache.
        computed: images that went through the network.
        reused: images whose features were known.
        skipped: images that could not be read.
        truncated: paths of images whose end is missing.
        seconds: time for reading and computing, without start-up.
        up_to_date: the cache was already as it should be and has not been touched.
    """

    output: Path
    images: int
    computed: int
    reused: int
    skipped: list[Skipped]
    truncated: list[str]
    seconds: float
    up_to_date: bool = False

    @property
    def images_per_second(self) -> float:
        """Images computed a second; 0 if none was."""
        return self.computed / self.seconds if self.computed and self.seconds > 0 else 0.0


@dataclass
class _Outcome:
    """What is known so far of the images to compute."""

    identities: dict[str, FileIdentity] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0


class _Work(NamedTuple):
    dataset: Dataset
    spec: FeatureSpec
    weights: Weights
    output: Path
    fail_on_error: bool


def parts_folder(output: Path) -> Path:
    """Return the folder of shards that belongs to a cache."""
    return output.with_name(output.name + ".parts")


def extract_features(
    dataset: Dataset,
    spec: FeatureSpec,
    weights: Weights,
    output: Path,
    *,
    open_engine: Callable[[], Engine],
    workers: int | None = None,
    batch_size: int | None = None,
    fail_on_error: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """Compute the features of a data set into ``output``.

    Unchanged images of an existing cache with the same spec are not computed again, nor are those that a stopped run
    finished. The cache is replaced in one step at the end.

    Args:
        dataset: the images.
        spec: what to compute.
        weights: the backbone's weights; only their path is noted here, the engine reads them.
        output: the cache to write or to bring up to date.
        open_engine: called once if anything has to be computed.
        workers: decoding threads; by default as many as there are cores.
        batch_size: images per call of the engine; by default the engine's own.
        fail_on_error: stop at the first image that cannot be read instead of skipping it.
        force: replace an existing cache of another spec, and compute everything anew.
        progress: called after each batch.

    Raises:
        MismatchError: if ``output`` holds features of another spec.
        BusyError: if another process is writing ``output``.
        ImageError, DataError: if an image cannot be read and ``fail_on_error`` is set, or if none can.
        OutputError: if something cannot be written.
        Interrupted: on Ctrl-C; finished images are kept.
    """
    work = _Work(dataset, spec, weights, output, fail_on_error)
    with _locked(output):
        store = ShardStore(parts_folder(output), spec.fingerprint)
        known, old = _known_features(work, store, force=force)
        todo = [entry.path for entry in dataset.entries if not _is_unchanged(dataset, entry.path, known)]
        outcome = _Outcome()
        if todo:
            _compute(work, todo, known, store, outcome, open_engine, workers, batch_size, progress)
        result = _finish(work, known, old, outcome)
        store.delete()
        return result


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the output's lock; the operating system releases a dead process's lock by itself."""
    lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=0)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            "another process is writing this cache",
            path=output,
            mend="wait for it, or choose another file with -o",
        ) from error
    except OSError as error:
        raise output_error(output, error) from error
    try:
        yield
    finally:
        lock.release()


def _known_features(work: _Work, store: ShardStore, *, force: bool) -> tuple[KnownFeatures, FeatureCache | None]:
    known, old = KnownFeatures(), None
    if force:
        store.delete()
        return known, None
    if work.output.exists():
        old = FeatureCache.open(work.output)
        if old.spec.fingerprint != work.spec.fingerprint:
            raise MismatchError(
                "the cache holds features of another kind",
                path=work.output,
                expected=work.spec.describe(),
                found=old.spec.describe(),
                mend="choose another file with -o, or replace this one with --force",
            )
        known.add_cache(old)
    store.load()
    for shard in store.shards:
        known.add_shard(shard)
    if store.shards:
        logger.info("going on from %d finished images", sum(len(shard.paths) for shard in store.shards))
    return known, old


def _is_unchanged(dataset: Dataset, path: str, known: KnownFeatures) -> bool:
    if path not in known.identities:
        return False
    try:
        state = os.stat(dataset.root / path)
    except OSError:
        return False  # reading it will say why
    return known.has_state(path, state.st_size, state.st_mtime_ns)


def _compute(
    work: _Work,
    todo: list[str],
    known: KnownFeatures,
    store: ShardStore,
    outcome: _Outcome,
    open_engine: Callable[[], Engine],
    workers: int | None,
    batch_size: int | None,
    progress: Progress | None,
) -> None:
    engine = open_engine()
    logger.info("%d images to compute with %s", len(todo), engine.name)
    started = last_shard = time.monotonic()
    rows: list[Row] = []
    try:
        for batch in _batches(work, todo, known, outcome, workers or _cores(), batch_size or engine.batch_size):
            features = engine.features(np.stack([pixels for _, _, pixels in batch])).astype(work.spec.dtype)
            rows += [Row(path, identity, row) for (path, identity, _), row in zip(batch, features, strict=True)]
            outcome.computed += len(batch)
            if len(rows) >= SHARD_ROWS or time.monotonic() - last_shard > SHARD_SECONDS:
                _keep(rows, store, known)
                last_shard = time.monotonic()
            if progress is not None:
                progress(len(outcome.identities) + len(outcome.skipped), len(todo))
    except KeyboardInterrupt as error:
        _keep(rows, store, known)
        raise Interrupted(
            f"stopped; {len(outcome.identities)} of {len(todo)} images are finished and kept in {store.folder}",
            mend="run the same command again: it goes on from there",
        ) from error
    except XfeatError:
        _keep(rows, store, known)
        raise
    _keep(rows, store, known)
    outcome.seconds = time.monotonic() - started


def _batches(
    work: _Work, todo: list[str], known: KnownFeatures, outcome: _Outcome, workers: int, batch_size: int
) -> Iterator[list[tuple[str, FileIdentity, NDArray[np.uint8]]]]:
    """Yield batches of images that need the network; note the others in ``outcome``."""
    batch: list[tuple[str, FileIdentity, NDArray[np.uint8]]] = []
    images = read_images(work.dataset.root, todo, work.spec.preprocess, is_known=known.has_content, workers=workers)
    for path, identity, pixels, reason in images:
        if identity is None:
            if work.fail_on_error:
                raise DataError(
                    reason,
                    path=work.dataset.root / path,
                    mend="remove it, or leave it out with --on-error skip",
                )
            outcome.skipped.append(Skipped(path, reason))
            continue
        outcome.identities[path] = identity
        if pixels is not None:
            batch.append((path, identity, pixels))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _keep(rows: list[Row], store: ShardStore, known: KnownFeatures) -> None:
    if rows:
        store.append(rows)
        known.add_shard(store.shards[-1])
        rows.clear()


def _finish(work: _Work, known: KnownFeatures, old: FeatureCache | None, outcome: _Outcome) -> Extraction:
    identity_of = known.identities | outcome.identities
    gone = {path for path, _ in outcome.skipped}
    entries = [entry for entry in work.dataset.entries if entry.path not in gone]
    if not entries:
        raise DataError(
            "none of the images can be read",
            path=work.dataset.root,
            found="; ".join(f"{path}: {reason}" for path, reason in outcome.skipped[:3]),
            mend="check that these files are images",
        )
    columns = _columns(entries, identity_of)
    up_to_date = old is not None and not outcome.computed and _says_the_same(old, work, columns, outcome.skipped)
    if not up_to_date:
        first = known.gather([columns.sha256[0]])
        write_cache(
            work.output,
            spec=work.spec,
            class_names=work.dataset.class_names,
            data_root=str(work.dataset.root.resolve()),
            weights_path=str(work.weights.path.resolve()),
            blocks=_blocks(known, columns),
            dim=first.shape[1],
            columns=columns,
            skipped=outcome.skipped,
        )
    return Extraction(
        output=work.output,
        images=len(entries),
        computed=outcome.computed,
        reused=len(entries) - outcome.computed,
        skipped=outcome.skipped,
        truncated=[path for path, cut in zip(columns.path, columns.truncated, strict=True) if cut],
        seconds=outcome.seconds,
        up_to_date=up_to_date,
    )


def _blocks(known: KnownFeatures, columns: Columns) -> Iterator[tuple[int, NDArray[Any]]]:
    for first in range(0, len(columns.path), _WRITE_ROWS):
        yield first, known.gather(list(columns.sha256[first : first + _WRITE_ROWS]))


def _columns(entries: list[ImageEntry], identity_of: dict[str, FileIdentity]) -> Columns:
    identities = [identity_of[entry.path] for entry in entries]
    return Columns(
        label=np.array([entry.label for entry in entries], np.int32),
        split=np.array([entry.split for entry in entries], np.uint8),
        path=[entry.path for entry in entries],
        group=[entry.group for entry in entries],
        sha256=[identity.sha256 for identity in identities],
        size=np.array([identity.size for identity in identities], np.int64),
        mtime_ns=np.array([identity.mtime_ns for identity in identities], np.int64),
        truncated=np.array([identity.truncated for identity in identities], np.bool_),
    )


def _says_the_same(old: FeatureCache, work: _Work, columns: Columns, skipped: list[Skipped]) -> bool:
    return (
        list(old.columns.path) == columns.path
        and list(old.columns.group) == columns.group
        and list(old.columns.sha256) == columns.sha256
        and np.array_equal(old.columns.label, columns.label)
        and np.array_equal(old.columns.split, columns.split)
        and np.array_equal(old.columns.mtime_ns, columns.mtime_ns)
        and old.class_names == work.dataset.class_names
        and old.skipped == skipped
        and old.data_root == str(work.dataset.root.resolve())
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

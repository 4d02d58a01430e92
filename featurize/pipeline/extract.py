"""From a data set to ``features.h5``: stored features are reused, the rest is computed, finished work is never lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.columns import CacheDescription, Columns, Skipped, decode_column
from xfeat.featurize.cache.index import NOT_STORED, FeatureIndex, IndexRows
from xfeat.featurize.cache.layout import SCHEMA_VERSION
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.shards import IDENTITY, FileIdentity, Identities, ShardStore
from xfeat.featurize.cache.writer import check_replaceable, write_cache
from xfeat.featurize.columns.gather import Gathered, gather, table_columns
from xfeat.featurize.datasets.layouts import Dataset
from xfeat.featurize.errors import DataError, Interrupted, MismatchError
from xfeat.featurize.pipeline.compute import RunContext, RunOptions, RunState, compute_features
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.locks import locked
from xfeat.featurize.urls import real_root

logger = logging.getLogger(__name__)

_WRITE_ROWS = 2048


class Changes(NamedTuple):
    """How the readable images differ from those of the previous cache.

    Attributes:
        new: not in the previous cache.
        changed: with another content.
        vanished: whose files no longer exist; files that can no longer be read count as skipped instead.
    """

    new: int
    changed: int
    vanished: int


@dataclass(frozen=True)
class Extraction:
    """The result of a run.

    Attributes:
        output: the cache.
        images: rows in the cache.
        computed: images that went through the network.
        reused: images whose features were stored already.
        rehashed: of those, images that were read again because they might have changed, and had not.
        changes: images that are new, changed or gone since the last run.
        skipped: images that could not be read.
        truncated: paths of image files whose end is missing.
        seconds: time for reading and computing, without start-up.
        engine: name of the engine, empty if nothing was computed.
        up_to_date: the cache needed no change and was not written.
    """

    output: Path
    images: int
    computed: int
    reused: int
    rehashed: int
    changes: Changes
    skipped: list[Skipped]
    truncated: list[str]
    seconds: float
    engine: str = ""
    up_to_date: bool = False

    @property
    def images_per_second(self) -> float:
        """Images computed per second; 0 if none was."""
        return self.computed / self.seconds if self.computed and self.seconds > 0 else 0.0


class _Work(NamedTuple):
    dataset: Dataset
    spec: FeatureSpec
    weights: Weights
    output: Path

    @property
    def data_root(self) -> str:
        return str(self.dataset.root.resolve())


def parts_folder(output: Path) -> Path:
    """Return the folder of the shards of a cache."""
    return output.with_name(output.name + ".parts")


def extract_features(
    dataset: Dataset, spec: FeatureSpec, weights: Weights, output: Path, options: RunOptions
) -> Extraction:
    """Compute the features of a data set into ``output``.

    Unchanged images of an existing cache with the same spec are not computed again, nor are those that a stopped run
    finished. If the data root is the same, size and time show that a file is unchanged; files of another root are read
    and compared by content. The cache is replaced in one step at the end.

    Args:
        dataset: the images.
        spec: what to compute.
        weights: the backbone's weights; only their path is recorded here, the engine reads them.
        output: the cache to write or update.
        options: options of the run.

    Raises:
        CacheError: if ``output`` is another file, or a damaged cache and ``force`` is not set.
        MismatchError: if ``output`` holds features of another spec.
        BusyError: if another process is writing ``output``.
        DataError: if an image cannot be read and ``fail_on_error`` is set, or if no image can be read.
        OutputError: if the cache or a shard cannot be written.
        Interrupted: on Ctrl-C or SIGTERM; finished images are stored.
    """
    work = _Work(dataset, spec, weights, output)
    lock_file = output.with_name(f".{output.name}.lock")
    with locked(lock_file, "another process is writing this cache", of=output), _resumable():
        source = dataset.open()
        store = ShardStore(parts_folder(output), spec.fingerprint, work.data_root)
        known, old = _known_features(work, store, force=options.force)
        tables = table_columns(dataset)
        state = _start_state(dataset, known)
        todo = sorted(_outdated(source, state), key=lambda number: source.order(state.paths[number]))
        if todo:
            context = RunContext(root=dataset.root, source=source, spec=spec, store=store, known=known, options=options)
            compute_features(todo, state, context)
        rows = np.flatnonzero(state.index_rows != NOT_STORED).tolist()
        contents = [sha256.decode() for sha256 in state.identities["sha256"][rows].tolist()]
        further = gather(dataset, tables, rows, contents, source, old)
        result = _finish(work, known, old, state, further)
        store.delete()
        return result


@contextmanager
def _resumable() -> Iterator[None]:
    """Say how to resume after Ctrl-C, whatever the run was doing."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted("stopped", fix="run the same command again: it resumes") from error


def _known_features(work: _Work, store: ShardStore, *, force: bool) -> tuple[FeatureIndex, FeatureCache | None]:
    known, old = FeatureIndex(), None
    if force:
        check_replaceable(work.output)
        store.discard_earlier()
    elif work.output.exists():
        old = FeatureCache.open(work.output)
        if old.spec.fingerprint != work.spec.fingerprint:
            renamed = replace(work.spec, backbone=old.spec.backbone).fingerprint == old.spec.fingerprint
            raise MismatchError(
                "the cache was computed with other settings",
                path=work.output,
                expected=work.spec.describe(),
                found=old.spec.describe(),
                fix="leave out --backbone, and name its file with --weights"
                if renamed
                else "choose another file with -o, or replace this one with --force",
            )
        known.add_cache(old, work.data_root)
    if not force:
        store.resume()
    finished = 0
    for shard, paths, identities in store.load():
        known.add_shard(shard, identities, paths)
        finished += shard.rows
    if finished:
        logger.info("resuming with %d finished images", finished)
    return known, old


def _start_state(dataset: Dataset, known: FeatureIndex) -> RunState:
    paths = [entry.path for entry in dataset.entries]
    identities = np.zeros(len(paths), IDENTITY)
    return RunState(paths, identities, known.find_paths(paths, identities))


def _outdated(source: ImageSource, state: RunState) -> list[int]:
    """Return the numbers of the images that are new or may have changed."""
    states = state.identities[["size", "mtime_ns", "change_mark"]].tolist()
    stored = (state.index_rows != NOT_STORED).tolist()
    outdated = []
    for number, path in enumerate(state.paths):
        # A time of 0, which was too recent to be relied on, is that of no file.
        if stored[number] and source.state(path) == states[number]:
            continue
        state.index_rows[number] = NOT_STORED
        outdated.append(number)
    return outdated


def _finish(
    work: _Work, known: FeatureIndex, old: FeatureCache | None, state: RunState, further: Gathered
) -> Extraction:
    rows = np.flatnonzero(state.index_rows != NOT_STORED)
    if not len(rows):
        raise DataError(
            "none of the images can be read",
            path=work.dataset.root,
            found="; ".join(f"{path}: {reason}" for path, reason in state.skipped[:3]),
            fix="check that these files are images",
        )
    columns = _columns(work.dataset, state.identities, rows, further.groups)
    index_rows = state.index_rows[rows]
    up_to_date = old is not None and not state.computed and _is_up_to_date(old, work, columns, state.skipped, further)
    if not up_to_date:
        if old is not None:
            _warn_of_replaced_features(old, work, columns)
        description = CacheDescription(
            spec=work.spec,
            class_names=work.dataset.class_names,
            data_root=str(work.dataset.root.absolute()),
            weights_path=str(work.weights.path.absolute()),
            columns=columns,
            skipped=state.skipped,
            layout=work.dataset.layout,
            left_out=work.dataset.left_out,
            corrections=work.dataset.corrections,
        )
        write_cache(
            work.output,
            description,
            blocks=_blocks(known, index_rows),
            dim=known.gather(index_rows[:1]).shape[-1],
            extra=further.extra,
        )
    return Extraction(
        output=work.output,
        images=len(rows),
        computed=state.computed,
        reused=len(rows) - state.computed,
        rehashed=state.rehashed,
        changes=_changes(old, state) if not up_to_date else Changes(0, 0, 0),
        skipped=state.skipped,
        truncated=[columns.path[row] for row in np.flatnonzero(columns.truncated).tolist()],
        seconds=state.seconds,
        engine=state.engine,
        up_to_date=up_to_date,
    )


def _warn_of_replaced_features(old: FeatureCache, work: _Work, columns: Columns) -> None:
    if not _had_this_root(old, work) and set(old.columns.sha256).isdisjoint(columns.sha256):
        logger.warning(
            "%s contained the features of %d images of %s; none of them is in %s, whose features replace them. "
            "To keep both, give each data set its own file with -o",
            work.output,
            len(old),
            old.data_root,
            work.data_root,
        )


def _blocks(known: FeatureIndex, index_rows: IndexRows) -> Iterator[tuple[int, NDArray[Any]]]:
    for first in range(0, len(index_rows), _WRITE_ROWS):
        yield first, known.gather(index_rows[first : first + _WRITE_ROWS])


def _columns(dataset: Dataset, identities: Identities, rows: NDArray[np.intp], groups: list[str]) -> Columns:
    entries = [dataset.entries[row] for row in rows]
    states = {name: decode_column(name, identities[name][rows]) for name in FileIdentity._fields}
    return Columns(
        label=np.array([entry.label for entry in entries], np.int32),
        split=np.array([entry.split for entry in entries], np.uint8),
        path=[entry.path for entry in entries],
        group=groups,
        **states,
    )


def _changes(old: FeatureCache | None, state: RunState) -> Changes:
    before = dict(zip(old.columns.path, old.columns.sha256, strict=True)) if old is not None else {}
    found = sum(path in before for path in state.paths)
    read = [(before.get(state.paths[row]), row) for row in np.flatnonzero(state.index_rows != NOT_STORED).tolist()]
    changed = sum(sha256 not in (None, state.identities["sha256"][row].decode()) for sha256, row in read)
    return Changes(new=sum(sha256 is None for sha256, _ in read), changed=changed, vanished=len(before) - found)


def _had_this_root(old: FeatureCache, work: _Work) -> bool:
    return work.data_root == real_root(old.stored_root.original)


def _is_up_to_date(old: FeatureCache, work: _Work, columns: Columns, skipped: list[Skipped], further: Gathered) -> bool:
    # A time of 0 was too recent to be relied on. It may be old enough now; storing it saves the next run a read.
    names = ("path", "label", "split", "group", "sha256", "mtime_ns", "change_mark")
    return (
        old.schema_version == SCHEMA_VERSION
        and all(list(getattr(old.columns, name)) == list(getattr(columns, name)) for name in names)
        and old.extra.keys() == further.extra.keys()
        and all(column.same_as(old.extra[name]) for name, column in further.extra.items())
        and old.class_names == work.dataset.class_names
        and old.skipped == skipped
        and _had_this_root(old, work)
        and (old.layout, old.left_out) == (work.dataset.layout, work.dataset.left_out)
        and old.corrections == work.dataset.corrections
    )

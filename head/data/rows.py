"""The rows a head trains on: in memory, or on the disk and read in blocks. docs/decisions/0033 says why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.rows import ROWS_AT_ONCE, read_rows
from xfeat.head.data.counter_rng import ORDER, VIEWS, integers, key_of, permutation
from xfeat.head.specs import MemorySpec

# A disk reads blocks of this size nearly as fast as one long file.
_BLOCK_BYTES = 1 << 20
# Heads that are trained at the same time each have their own buffer; this many together use the allowed memory.
MOST_READERS = 8
_BLOCKS_PER_BUFFER = 16


class EqualBatches(NamedTuple):
    """Consecutive batches of one size.

    Attributes:
        features: float32 or float16 (n, D), from which the batches take their rows.
        places: int64 (T, B), the row numbers in ``features`` of each of T batches.
        labels: int64 (T, B).
    """

    features: Tensor
    places: Tensor
    labels: Tensor


class Rows(NamedTuple):
    """Rows in memory: all of a tensor, or some of them without a copy.

    Trainings that run at the same time, such as folds, share the features.

    Attributes:
        features: float32 (N, D), or (N, V, D) with V views, the first of which is the unchanged image.
        labels: int64 (n,).
        places: int64 (n,), which of the features belong to the rows; ``None`` for all of them.
    """

    features: Tensor
    labels: Tensor
    places: Tensor | None = None

    @property
    def dim(self) -> int:
        """Return D."""
        return self.features.shape[-1]

    def clean_blocks(self) -> Iterator[Tensor]:
        """Yield the features (≤ 4096, D) of the unchanged images, in order."""
        clean = self.features if self.features.ndim == 2 else self.features[:, 0]
        if self.places is None:
            yield from torch.split(clean, ROWS_AT_ONCE)
        else:
            yield from (clean[part] for part in torch.split(self.places, ROWS_AT_ONCE))

    def epoch(self, batch_size: int, seed: int, epoch: int) -> Iterator[EqualBatches]:
        """Yield every row once, in a new random order, with one random view of each.

        Args:
            batch_size: rows per batch.
            seed: of the training.
            epoch: its number; each has an order and views of its own.
        """
        order = permutation(key_of(seed, ORDER, epoch), len(self.labels))
        places = order if self.places is None else self.places[order]
        features, views = self.features, _draw_views(self.features, len(order), seed, epoch)
        if views is not None:
            places, features = places * features.shape[1] + views[order], features.flatten(0, 1)
        yield from _equal_batches(features, places, self.labels[order], batch_size)

    def take(self, places: NDArray[np.int64]) -> Rows:
        """Return the rows at ``places``."""
        chosen = torch.from_numpy(places)
        return Rows(self.features, self.labels[chosen], chosen if self.places is None else self.places[chosen])


@dataclass(frozen=True)
class DiskRows:
    """Rows of a cache that stay on the disk: :class:`Rows` in the memory of one buffer.

    Blocks of neighbouring rows are shuffled, and then the rows of as many blocks as fit into the buffer: see
    :func:`blockwise_order`.

    Attributes:
        cache: its features are memory-mapped.
        rows: int64 (n,), row numbers in the cache, ascending.
        block_rows: rows of a block, which are read together.
        buffer_rows: rows in memory at a time.
    """

    cache: FeatureCache
    rows: NDArray[np.int64]
    block_rows: int
    buffer_rows: int

    @cached_property
    def labels(self) -> Tensor:
        """Labels int64 (n,)."""
        return _labels(self.cache, self.rows)

    @property
    def dim(self) -> int:
        """Return D."""
        return int(self.cache.features.shape[-1])

    def clean_blocks(self) -> Iterator[Tensor]:
        """Yield the features float32 (≤ 4096, D) of the unchanged images, in order."""
        for part in _pieces(self.rows):
            yield torch.from_numpy(read_rows(self.cache, part, views=0)).float()

    def epoch(self, batch_size: int, seed: int, epoch: int) -> Iterator[EqualBatches]:
        """Yield every row once, as :meth:`Rows.epoch` does, but in blockwise order."""
        views = _draw_views(self.cache.features, len(self.rows), seed, epoch)
        # A buffer holds whole batches, so that no batch needs rows of two buffers.
        buffer_rows = max(1, self.buffer_rows // batch_size) * batch_size
        for part in blockwise_order(len(self.rows), self.block_rows, buffer_rows, seed, epoch):
            yield from self._read_batches(part, views, batch_size)

    def _read_batches(self, part: Tensor, views: Tensor | None, batch_size: int) -> Iterator[EqualBatches]:
        ascending, back = part.sort()
        chosen = None if views is None else views[ascending].numpy()
        buffer = torch.from_numpy(read_rows(self.cache, self.rows[ascending.numpy()], views=chosen))
        yield from _equal_batches(buffer, back.argsort(), self.labels[part], batch_size)

    def take(self, places: NDArray[np.int64]) -> DiskRows:
        """Return the rows at ``places``, which must be ascending."""
        return replace(self, rows=self.rows[places])


AnyRows = Rows | DiskRows


def single_batches(rows: AnyRows, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every row once, in the order of ``epoch``: features float32 (B, D) and labels int64 (B,) of each batch."""
    for series in rows.epoch(batch_size, seed, epoch):
        for places, labels in zip(series.places, series.labels, strict=True):
            yield series.features[places].float(), labels
        del series  # frees the buffer before the next is read


@dataclass(frozen=True)
class Reading:
    """Whether rows are in memory or read in blocks, as stored in run.json.

    Attributes:
        memory_mb: the limit for features.
        block_rows: rows that are read together; ``None`` if all rows are in memory.
        buffer_rows: rows in memory at a time; ``None`` if all are.
    """

    memory_mb: float
    block_rows: int | None = None
    buffer_rows: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return ``mode`` (``memory`` or ``blocks``) and the attributes as plain JSON types."""
        return {"mode": "memory" if self.block_rows is None else "blocks", **vars(self)}

    def load(self, cache: FeatureCache, rows: NDArray[np.int64]) -> AnyRows:
        """Return rows of a cache, given by ascending row numbers.

        Raises:
            CacheError: if the file cannot be read; for rows on the disk, when they are read.
        """
        if self.block_rows is None or self.buffer_rows is None:
            return labelled_rows(cache, rows)
        return DiskRows(cache, rows, self.block_rows, self.buffer_rows)


def plan_reading(cache: FeatureCache, count: int, memory: MemorySpec) -> Reading:
    """Decide whether ``count`` rows of a cache fit into memory, and the block and buffer sizes if they do not."""
    limit = memory.memory_mb * 1e6
    row_shape = cache.features.shape[1:]
    if count * int(np.prod(row_shape)) * 4 <= limit:
        return Reading(memory.memory_mb)
    row_bytes = row_shape[-1] * cache.features.dtype.itemsize  # one view of each row
    buffer_bytes = int(limit) // MOST_READERS
    block_rows = max(1, min(_BLOCK_BYTES, buffer_bytes // _BLOCKS_PER_BUFFER) // row_bytes)
    return Reading(memory.memory_mb, block_rows, max(block_rows, buffer_bytes // row_bytes))


def as_rows(features: NDArray[np.floating], labels: NDArray[np.integer]) -> Rows:
    """Copy features (n, D) or (n, V, D) of any float type and labels (n,) into tensors."""
    return Rows(torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def labelled_rows(cache: FeatureCache, rows: NDArray[np.int64]) -> Rows:
    """Load rows of a cache into memory.

    Raises:
        CacheError: if the file cannot be read.
    """
    features = torch.empty((len(rows), *cache.features.shape[1:]))
    for part, target in zip(_pieces(rows), torch.split(features, ROWS_AT_ONCE), strict=True):
        target.copy_(torch.from_numpy(read_rows(cache, part)))
    return Rows(features, _labels(cache, rows))


def labelled_blocks(cache: FeatureCache, rows: NDArray[np.int64]) -> Iterator[Rows]:
    """Load rows of a cache, a few thousand at a time.

    Raises:
        CacheError: if the file cannot be read.
    """
    for part in _pieces(rows):
        yield labelled_rows(cache, part)


def blockwise_order(count: int, block_rows: int, buffer_rows: int, seed: int, epoch: int) -> list[Tensor]:
    """Draw a random order of ``count`` rows that can be read from a disk efficiently.

    Blocks of ``block_rows`` neighbours are shuffled and cut into buffers; then the rows within each buffer are
    shuffled.

    Returns:
        One int64 array (``buffer_rows``,) per buffer; the last one may have another length. Together they hold each of
        0 to ``count`` - 1 once.
    """
    blocks = torch.split(torch.arange(count), block_rows)
    shuffled = permutation(key_of(seed, ORDER, epoch), len(blocks))
    parts = batches(torch.cat([blocks[number] for number in shuffled.tolist()]), buffer_rows)
    return [
        part[permutation(key_of(seed, ORDER, epoch, number), len(part))] for number, part in enumerate(parts, start=1)
    ]


def batches(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Cut ``order`` into batches; a single remaining row joins the last batch, since BatchNorm needs two rows."""
    edge = _whole_batches(len(order), batch_size)
    yield from order[:edge].view(-1, batch_size)
    if edge < len(order):
        yield order[edge:]


def _equal_batches(features: Tensor, places: Tensor, labels: Tensor, batch_size: int) -> Iterator[EqualBatches]:
    """Cut ordered rows into batches: those of the full size together, then the last one if its size differs."""
    edge = _whole_batches(len(labels), batch_size)
    for part, width in ((slice(edge), batch_size), (slice(edge, None), len(labels) - edge)):
        if len(labels[part]):
            yield EqualBatches(features, places[part].view(-1, width), labels[part].view(-1, width))


def _whole_batches(count: int, batch_size: int) -> int:
    """Return how many rows are in batches of ``batch_size``; the rest is one batch that is smaller, or larger by 1."""
    rest = count % batch_size
    return max(0, count - rest - batch_size) if rest == 1 else count - rest


def collected(blocks: Iterable[Tensor], count: int, dim: int = 0) -> Tensor:
    """Concatenate blocks along ``dim``, to a total length of ``count``.

    The memory is allocated once: small results allocated between large temporary blocks would fragment it.
    """
    result, done = torch.empty(0), 0
    for block in blocks:
        if not done:
            result = block.new_empty((*block.shape[:dim], count, *block.shape[dim + 1 :]))
        result.narrow(dim, done, block.shape[dim]).copy_(block)
        done += block.shape[dim]
    return result


def _draw_views(features: Tensor | NDArray[np.floating], count: int, seed: int, epoch: int) -> Tensor | None:
    return None if features.ndim == 2 else integers(key_of(seed, VIEWS, epoch), features.shape[1], count)


def _labels(cache: FeatureCache, rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.asarray(cache.columns.label)[rows].astype(np.int64))


def _pieces(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[first : first + ROWS_AT_ONCE] for first in range(0, max(1, len(rows)), ROWS_AT_ONCE)]

"""Rows of features on the disk until all of them are known: their digest is part of what is written before them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.system.atomic import output_error

_BLOCK_ROWS = 2048


class StagedRows:
    """Rows of one length, for a ``with`` statement: the file has no name, and is gone afterwards.

    Attributes:
        order: int64 (N,), the row that comes first, and so on; set once all rows are there.
        width: numbers per row.
        dtype: of the numbers: that of the first block.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._count, self.width, self.dtype = 0, 0, np.dtype[Any](np.float32)
        self.order: NDArray[np.int64] = np.zeros(0, np.int64)

    def __enter__(self) -> Self:
        try:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._output.parent)
        except OSError as error:
            raise output_error(self._output, error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, block: NDArray[Any]) -> None:
        """Add rows (n, D), all blocks with the same D.

        Raises:
            OutputError: if they cannot be written.
        """
        if not self._count:
            self.width, self.dtype = block.shape[1], block.dtype
        try:
            self._file.write(np.ascontiguousarray(block, self.dtype).data)
        except OSError as error:
            raise output_error(self._output, error) from error
        self._count += len(block)

    def sorted(self, first: int, last: int) -> NDArray[Any]:
        """Return rows in :attr:`order`, (n, D)."""
        self._file.flush()
        stored = np.memmap(self._file, self.dtype, "r", shape=(self._count, self.width))
        return np.asarray(stored[self.order[first:last]])

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield all rows in :attr:`order`: the number of the first one of a block, and the block (n, D)."""
        for first in range(0, self._count, _BLOCK_ROWS):
            yield first, self.sorted(first, first + _BLOCK_ROWS)

    def digest(self) -> hashlib._Hash:
        """Return the SHA-256 of all rows in their order."""
        digest = hashlib.sha256()
        for _, block in self.blocks():
            digest.update(np.ascontiguousarray(block).data)
        return digest

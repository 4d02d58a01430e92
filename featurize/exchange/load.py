"""Makes a cache of features that were computed elsewhere, or dumped: a table in, ``features.h5`` out."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xfeat.featurize.cache.columns import CacheDescription, Columns, Correction, Skipped, content_digest
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import check_replaceable, write_cache
from xfeat.featurize.datasets.column_choice import ColumnChoice
from xfeat.featurize.errors import CacheError
from xfeat.featurize.exchange.cells import cell_texts, extra_columns, label_codes, path_names, split_codes
from xfeat.featurize.exchange.named_encoder import NamedEncoder
from xfeat.featurize.exchange.staging import StagedRows
from xfeat.featurize.exchange.table_columns import TableColumns, read_columns
from xfeat.featurize.exchange.table_files import TableFile, open_table
from xfeat.featurize.exchange.table_rows import Cells, read_rows
from xfeat.featurize.specs import LOADED, FeatureSpec
from xfeat.featurize.urls import Root

logger = logging.getLogger(__name__)

# Where nothing is known of an image file. No file has this size.
_UNKNOWN_SIZE = -1
_SHA256 = re.compile("[0-9a-f]{64}")


class Loaded(NamedTuple):
    """The result of loading a table.

    Attributes:
        cache: what was written.
        restored: whether the table is a dump whose settings hold.
        compared: number of images whose features were computed and compared.
        difference: the largest difference of these, relative to the largest feature of the image.
    """

    cache: FeatureCache
    restored: bool
    compared: int
    difference: float


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a table is read.

    Attributes:
        choice: what the user says of its columns.
        name: of the features, where no encoder is named; by default that of the file.
        data: where the images are that its paths name; by default the folder of the table.
        encoder: that computed the features, if the user names one.
        force: replace an existing cache.
    """

    choice: ColumnChoice = field(default_factory=ColumnChoice)
    name: str | None = None
    data: Root | None = None
    encoder: NamedEncoder | None = None
    force: bool = False


def load_table(path: Path, output: Path, options: LoadOptions) -> Loaded:
    """Write a cache with the features of a table.

    Args:
        path: ``.parquet``, ``.npz`` or ``.csv`` with path, label, features, and more columns if there are.
        output: the cache to write.
        options: how the table is read.

    Raises:
        DataError: if the table cannot be read, or a row cannot be right; rows are named.
        CacheError: if ``output`` exists and ``force`` is not set, or is no cache.
        MismatchError: if the named encoder computes other features.
        OutputError: if ``output`` cannot be written.
        MissingExtraError: if pyarrow is not installed.
    """
    table = open_table(path)
    if options.force:
        check_replaceable(output)
    elif output.exists():
        fix = "choose another file with -o, or replace this one with --force"
        raise CacheError("there is a file already", path=output, fix=fix)
    columns = read_columns(table, options.choice)
    for note in columns.notes:
        logger.warning("%s: %s", path, note)
    compared, difference = 0, 0.0
    with StagedRows(output) as rows:
        cells = read_rows(table, columns, rows)
        described = _described(table, columns, cells, rows, options)
        restored = options.encoder is None and not described.spec.backbone.startswith(LOADED)
        if options.encoder is not None:
            described, (compared, difference) = options.encoder.applied(described, rows)
        extra = extra_columns(table, columns, cells, rows.order)
        width = rows.width // described.spec.views
        shape = described.spec.row_shape(width)
        blocks = ((first, block.reshape(-1, *shape)) for first, block in rows.blocks())
        write_cache(output, described, blocks=blocks, dim=width, extra=extra)
    return Loaded(FeatureCache.open(output), restored, compared, difference)


def _described(
    table: TableFile, columns: TableColumns, cells: Cells, rows: StagedRows, options: LoadOptions
) -> CacheDescription:
    """Return everything of the cache but the features; sorts the rows by path."""
    role = {name: cells[column] for name, column in columns.roles.items()}
    root, paths = path_names(table, role.get("path"), len(rows), options.data)
    rows.order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
    digest = rows.digest()
    note = table.note if table.note and table.note["features_sha256"] == digest.hexdigest() else None
    if table.note and note is None:
        logger.warning("%s: not the features that were dumped; what the dump says of them is ignored", table.path)
    names, labels = label_codes(role["label"], note["class_names"] if note else ())
    missing = [None] * len(rows)
    splits = split_codes(table, columns.roles.get("split", ""), role.get("split", missing))
    groups = cell_texts(role.get("group", missing))
    order = rows.order.tolist()
    paths, groups = [paths[at] for at in order], [groups[at] for at in order]
    files = _file_columns(table.path, cells if note else {}, paths, order)
    placed = Columns(label=labels[rows.order], split=splits[rows.order], path=paths, group=groups, **files)
    return CacheDescription(
        spec=FeatureSpec.from_dict(note["spec"]) if note else _own_spec(table.path, options.name, rows, digest, placed),
        class_names=names,
        columns=placed,
        data_root=note["data_root"] if note and options.data is None else str(root),
        weights_path=note["weights_path"] if note else "",
        layout=note["layout"] if note else f"rows of {table.path.name}",
        left_out=dict(note["left_out"]) if note else {},
        skipped=[Skipped(*row) for row in note["skipped"]] if note else [],
        corrections=tuple(Correction(*row) for row in note["corrections"]) if note else (),
    )


def _own_spec(path: Path, name: str | None, rows: StagedRows, digest: hashlib._Hash, columns: Columns) -> FeatureSpec:
    """Return a spec that no other features have: they are known by their content alone."""
    backbone = LOADED + re.sub(r"[^\w.-]+", "_", name or path.stem)
    content = content_digest(digest.copy(), columns)
    return FeatureSpec(backbone=backbone, weights_sha256=content, dtype=rows.dtype.name)


def _file_columns(path: Path, cells: Cells, paths: Sequence[str], order: Sequence[int]) -> dict[str, Any]:
    """Return what is known of the image files: what a dump says of them, or stand-ins."""
    zeros = np.zeros(len(order), np.int64)
    # Different for every image: equal digests would make copies of each other of them.
    sha256 = [hashlib.sha256(b"path:" + path.encode("utf-8", "surrogateescape")).hexdigest() for path in paths]
    found: dict[str, Any] = {"sha256": sha256, "size": zeros + _UNKNOWN_SIZE, "truncated": zeros.astype(bool)}
    if cells:
        try:
            sha256, size, truncated = ([cells[name][at] for at in order] for name in found)
            if not all(map(_SHA256.fullmatch, sha256)):
                raise ValueError
            ends = [str(value).lower() == "true" for value in truncated]
            found = {"sha256": sha256, "size": np.array(size, np.int64), "truncated": np.array(ends)}
        except (KeyError, ValueError, TypeError):
            logger.warning("%s: what it says of the image files (%s) is not what was dumped", path, ", ".join(found))
    return {**found, "mtime_ns": zeros, "change_mark": zeros}

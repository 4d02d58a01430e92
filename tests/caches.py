"""Caches of made-up features, for tests in which no image is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xfeat.featurize.cache.columns import CacheDescription, Columns
from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.cache.layout import read_header, rest_digest, user_block
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.specs import FeatureSpec


def write_made_up(
    path: Path,
    features: np.ndarray,
    columns: dict[str, Sequence[Any] | np.ndarray],
    class_names: Sequence[str],
    *,
    data_root: Path | None = None,
    extra: Mapping[str, ExtraColumn] | None = None,
    **spec: Any,
) -> FeatureCache:
    """Write and open a cache.

    Args:
        path: where.
        features: (N, D) or (N, V, D).
        columns: ``label``, ``split`` and ``path``; ``group`` if there are any, ``contents`` (texts in place of the
            files' contents, by default the paths).
        class_names: names of the classes.
        data_root: by default the folder of the cache.
        extra: further columns, made by :func:`extra_column`.
        spec: what of the specification matters.
    """
    count = len(features)
    write_cache(
        path,
        CacheDescription(
            spec=FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64, **spec),
            class_names=list(class_names),
            data_root=str(data_root or path.parent),
            weights_path="",
            columns=Columns(
                label=np.asarray(columns["label"], np.int32),
                split=np.asarray(columns["split"], np.uint8),
                path=list(columns["path"]),
                group=list(columns.get("group", [""] * count)),
                sha256=[hashlib.sha256(text.encode()).hexdigest() for text in columns.get("contents", columns["path"])],
                size=np.ones(count, np.int64),
                mtime_ns=np.ones(count, np.int64),
                change_mark=np.ones(count, np.int64),
                truncated=np.zeros(count, np.bool_),
            ),
            skipped=[],
        ),
        blocks=[(0, features)],
        dim=features.shape[-1],
        extra=extra,
    )
    return FeatureCache.open(path)


def extra_column(kind: str, values: Sequence[Any], source: str = "patients.csv") -> ExtraColumn:
    """Make a further column for :func:`write_made_up`; ``None`` is an unknown value.

    Args:
        kind: ``number``, ``category``, ``text``, or ``date``.
        values: numbers, texts, or dates as ``2024-12-31``.
        source: where the column comes from.
    """
    if kind == "category":
        names = sorted({value for value in values if value is not None})
        return ExtraColumn(
            kind, np.array([names.index(v) if v is not None else -1 for v in values], "i4"), names, source
        )
    empty, dtype = {"number": (np.nan, "f8"), "text": (b"", "S"), "date": ("NaT", "M8[D]")}[kind]
    stored = [value.encode() if kind == "text" and value is not None else value for value in values]
    return ExtraColumn(kind, np.array([empty if value is None else value for value in stored], dtype), (), source)


def edit_cache(
    path: Path, arrays: dict[str, Any] | None = None, *, replaced: dict[str, Any] | bytes | None = None, **header: Any
) -> None:
    """Change a cache and its digest of everything but the features, as who knows the format can.

    Args:
        path: the file.
        arrays: new values by name, of the same type and shape.
        replaced: the whole header, or what is there instead.
        header: new values by key.
    """
    with path.open("r+b") as file:
        _, stored = read_header(file, path)
        for name, values in (arrays or {}).items():
            place = stored["arrays"][name]
            file.seek(place["offset"])
            file.write(np.asarray(values, place["dtype"]).reshape(place["shape"]).tobytes())
        text = replaced if isinstance(replaced, bytes) else json.dumps(replaced or {**stored, **header}).encode()
        offset = file.seek(0, 2)
        file.write(text)
        file.flush()
        block = user_block(offset, len(text), rest_digest(file, stored["arrays"]["features"]))
        file.seek(0)
        file.write(block)


def header_of(path: Path) -> dict[str, Any]:
    """Return the header of a cache."""
    with path.open("rb") as file:
        return dict(read_header(file, path)[1])


def as_schema1(path: Path, **attributes: str) -> Path:
    """Write a cache again as 0.1 did: text in HDF5's heaps, settings in attributes; return its path."""
    cache = FeatureCache.open(path)
    header, text = header_of(path), h5py.string_dtype("utf-8")
    columns, skipped = cache.columns, [tuple(map(_encoded, row)) for row in cache.skipped]
    states = [columns.size, columns.mtime_ns, columns.change_mark, columns.truncated]
    digest = hashlib.sha256("".join(columns.sha256).encode() + b"".join(values.tobytes() for values in states))
    digest.update(b"".join(value + b"\0" for row in skipped for value in row))
    features = np.array(cache.features)
    path.unlink()
    with h5py.File(path, "w", libver=("earliest", "latest")) as file:
        file.create_dataset("features", data=features)
        for name, values in vars(columns).items():
            coded = np.array([_encoded(value) for value in values], text) if name in ("path", "group") else values
            file.create_dataset(name, data=np.array(values, "S64") if name == "sha256" else coded)
        file.create_dataset("skipped", data=np.array(skipped, np.dtype([("path", text), ("reason", text)])))
        file.attrs["schema_version"] = 1
        stored = {
            "format": "xfeat.features",
            "counts": json.dumps(cache.counts),
            "columns_sha256": digest.hexdigest(),
            **{name: value if isinstance(value, str) else json.dumps(value) for name, value in header.items()},
            **attributes,
        }
        for name in stored.keys() - {"arrays", "extra", "skipped"}:
            file.attrs.create(name, _encoded(stored[name]), dtype=text)
    return path


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

"""Where everything in ``features.h5`` lies, schema version 2, read without HDF5.

HDF5 leaves a block at the start of a file to its users. Ours has a digest, and where the header lies, which is JSON and
says where each array lies. All are checked against the size of the file before anything is read or allocated; the HDF5
library, which damaged or forged files can send into endless loops, is only for the programs of others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import CacheError
from xfeat.featurize.typed_json import check_types, parse_json

FORMAT = "xfeat.features"
SCHEMA_VERSION = 2
BLOCK_BYTES = 512
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
REBUILD = "delete the file and run xfeat featurize again, or restore a copy"
_BLOCK_START = json.dumps({"format": FORMAT})[:-1].encode()
_CHUNK_BYTES = 1 << 20

# The type of each array, as numpy writes it.
ARRAYS = {
    "features": r"<f[24]",
    "label": r"<i4",
    "split": r"\|u1",
    "path": r"\|S\d+",
    "group": r"\|S\d+",
    "sha256": r"\|S64",
    "size": r"<i8",
    "mtime_ns": r"<i8",
    "change_mark": r"<i8",
    "truncated": r"\|b1",
}
COLUMNS = tuple(name for name in ARRAYS if name != "features")


class Block(TypedDict):
    """The user block: ``sha256`` is of everything after it, except the features."""

    format: str
    schema_version: int
    header_offset: int
    header_bytes: int
    sha256: str


class Place(TypedDict):
    """An array: its type as numpy writes it, its shape, and where in the file it starts."""

    dtype: str
    shape: list[int]
    offset: int


class LeftOut(TypedDict):
    """Files that are not images of the data set, for one reason."""

    files: int
    suffixes: dict[str, int]
    example: str


class _Header(TypedDict):
    spec: dict[str, Any]
    fingerprint: str
    class_names: list[str]
    split_names: list[str]
    data_root: str
    weights_path: str
    written_in: str
    layout: str
    left_out: dict[str, LeftOut]
    skipped: list[list[str]]
    content_sha256: str
    created: str
    versions: dict[str, str]
    arrays: dict[str, Place]
    extra: dict[str, dict[str, Any]]


class Header(_Header, total=False):
    """Everything in a cache that is no array; docs/formats.md describes the keys. ``corrections`` may be missing."""

    corrections: list[list[str]]


@dataclass(frozen=True)
class Stored:
    """The content of a file: the header, the columns as they are stored, and the place of the features."""

    header: Header
    columns: dict[str, NDArray[Any]]
    features: Place
    schema_version: int = SCHEMA_VERSION


def damaged(path: Path, found: str) -> CacheError:
    """Return the error for a file whose content cannot be right."""
    return CacheError(
        "damaged", path=path, expected="a file that xfeat featurize wrote, unchanged", found=found, fix=REBUILD
    )


def not_a_cache(path: Path, found: str) -> CacheError:
    """Return the error for a file of another kind."""
    return CacheError(
        "not a feature cache",
        path=path,
        expected="an HDF5 file that xfeat featurize wrote",
        found=found,
        fix="choose another file, or move this one away and run xfeat featurize",
    )


def other_version(path: Path, version: int) -> CacheError:
    """Return the error for a file of a schema version that is not known here."""
    return CacheError(
        "the feature cache has another schema version",
        path=path,
        expected=f"version 1 or {SCHEMA_VERSION}",
        found=f"version {version}",
        fix="install the version of xfeat that wrote it, or run xfeat featurize --force",
    )


def has_user_block(file: BinaryIO) -> bool:
    """Tell whether a file begins with our user block, of this or a later version."""
    file.seek(0)
    return file.read(len(_BLOCK_START)) == _BLOCK_START


def read_header(file: BinaryIO, path: Path) -> tuple[Block, Header]:
    """Return the user block and the header, with values of the right types; no digest is compared.

    Raises:
        CacheError: if the version is not known, or anything lies outside the file.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    try:
        block: Block = parse_object(file.read(BLOCK_BYTES), Block)
        if block["schema_version"] != SCHEMA_VERSION:
            raise other_version(path, block["schema_version"])
        offset, length = block["header_offset"], block["header_bytes"]
        _check_inside("the header", offset, length, size)
        file.seek(offset)
        header: Header = parse_object(file.read(length), Header)
        for name, place in header["arrays"].items():
            _check_inside(name, place["offset"], _byte_count(name, place), size)
        check_lengths({name: place["shape"] for name, place in header["arrays"].items()})
    except CacheError:
        raise
    except ValueError as error:
        raise damaged(path, str(error)) from error
    return block, header


def read_stored(file: BinaryIO, path: Path) -> Stored:
    """Read everything but the features, compared with its digest.

    Raises:
        CacheError: if the version is not known, or the file is damaged or was changed.
    """
    block, header = read_header(file, path)
    features = header["arrays"]["features"]
    if (found := rest_digest(file, features)) != block["sha256"]:
        raise CacheError(
            "the header, columns or structure have changed since it was written",
            path=path,
            expected=block["sha256"],
            found=found,
            fix=REBUILD,
        )
    columns = {name: _read_array(file, header["arrays"][name]) for name in COLUMNS}
    return Stored(header, columns, features)


def rest_digest(file: BinaryIO, features: Place) -> str:
    """Return the SHA-256 of a file without the user block and the features."""
    digest = hashlib.sha256()
    start = features["offset"]
    for first, last in (
        (BLOCK_BYTES, start),
        (start + _byte_count("features", features), os.fstat(file.fileno()).st_size),
    ):
        file.seek(first)
        while first < last and (chunk := file.read(min(_CHUNK_BYTES, last - first))):
            digest.update(chunk)
            first += len(chunk)
    return digest.hexdigest()


def user_block(header_offset: int, header_bytes: int, sha256: str) -> bytes:
    """Return the user block of a file."""
    block = Block(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        header_offset=header_offset,
        header_bytes=header_bytes,
        sha256=sha256,
    )
    return json.dumps(block).encode().ljust(BLOCK_BYTES - 1) + b"\n"


def parse_object(text: bytes, kind: type) -> Any:
    """Parse an object of a kind.

    Raises:
        ValueError: if it is not valid JSON, or a value is missing or has another type.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError("the header is not valid JSON") from error
    if not isinstance(values, dict):
        raise ValueError("the header is not an object")
    if missing := sorted(getattr(kind, "__required_keys__", frozenset()) - values.keys()):
        raise ValueError(f"nothing is stored for {', '.join(missing)}")
    check_types(values, kind)
    return values


def _check_inside(name: str, offset: int, length: int, size: int) -> None:
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"its end is missing: {name} is at bytes {offset} to {offset + length} of {size}")


def _byte_count(name: str, place: Place) -> int:
    pattern = ARRAYS.get(name, r"[<|][fiuSb]\d+")
    if not re.fullmatch(pattern, place["dtype"], re.ASCII) or not place["dtype"][2:].strip("0"):
        raise ValueError(f"{name} has the type {place['dtype'][:20]}")
    if min(place["shape"], default=0) < 0 or len(place["shape"]) > 3:
        raise ValueError(f"{name} has the shape {place['shape'][:4]}")
    return math.prod(place["shape"]) * int(place["dtype"][2:])


def check_lengths(shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that all arrays are there: columns (N,), and features (N, D) or (N, V, D), with the same N.

    Raises:
        ValueError: if they are not.
    """
    if missing := sorted(ARRAYS.keys() - shapes.keys()):
        raise ValueError(f"nothing is stored for {', '.join(missing)}")
    shape = shapes["features"]
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"features has the shape {list(shape)[:4]}")
    for name in COLUMNS:
        if list(shapes[name]) != [shape[0]]:
            raise ValueError(f"its columns differ in length: {name} has the shape {list(shapes[name])[:4]}")


def _read_array(file: BinaryIO, place: Place) -> NDArray[Any]:
    dtype = np.dtype(place["dtype"].replace("b1", "u1"))  # any byte but 0 is true, and numpy expects 1
    file.seek(place["offset"])
    found = np.frombuffer(file.read(math.prod(place["shape"]) * dtype.itemsize), dtype).reshape(place["shape"])
    return found != 0 if place["dtype"] == "|b1" else found

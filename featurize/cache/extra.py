"""The further columns of a cache: age, sex, hospital, date, whatever a table or the files say of each image."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.feature_file import FeatureFile
from xfeat.featurize.cache.layout import Header, damaged

# How each kind is stored, as numpy writes the type.
KINDS = {"number": "<f8", "category": "<i4", "text": "|S", "date": "<i8", "labels": "|i1"}
_FOLDER = "extra/"


class ExtraColumn(NamedTuple):
    """A column of N images besides those that every cache has.

    Attributes:
        kind: ``number`` (float64, NaN if unknown), ``category`` (int32, index into ``names``, -1 if unknown),
            ``text`` (UTF-8 bytes of one width, empty if unknown), ``date`` (datetime64[D], NaT if unknown), or
            ``labels`` (int8 (N, len(names)): 1 yes, 0 no, -1 unknown).
        values: (N,), or (N, L) for ``labels``.
        names: of the categories or labels.
        source: where it comes from: the name of a table, or ``DICOM``.
    """

    kind: str
    values: NDArray[Any]
    names: Sequence[str] = ()
    source: str = ""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether each row has a value, bool (N,); of ``labels``, at least one."""
        found: Any = self.values
        if self.kind in ("number", "date"):
            found = ~(np.isnan(found) if self.kind == "number" else np.isnat(found))
        elif self.kind == "text":
            found = np.char.str_len(found) > 0
        else:
            found = found >= 0 if self.kind == "category" else (found >= 0).any(axis=1)
        known: NDArray[np.bool_] = found
        return known

    def texts(self) -> list[str]:
        """Return the value of each row as text, empty if it is unknown; of ``labels``, those that are yes."""
        if self.kind == "category":
            return [self.names[code] if code >= 0 else "" for code in self.values.tolist()]
        if self.kind == "text":
            return [value.decode("utf-8", "replace") for value in self.values.tolist()]
        if self.kind == "labels":
            return ["|".join(np.asarray(self.names)[row == 1].tolist()) for row in self.values]
        written = (
            [f"{value:.15g}" for value in self.values.tolist()] if self.kind == "number" else self.values.astype(str)
        )
        return [text if known else "" for text, known in zip(written, self.known.tolist(), strict=True)]

    def take(self, rows: Sequence[int]) -> ExtraColumn:
        """Return the column of some rows."""
        return self._replace(values=self.values[np.asarray(rows, np.intp)])

    def same_as(self, other: ExtraColumn | None) -> bool:
        """Tell whether two columns are equal in every respect; unknown values are equal."""
        return (
            other is not None
            and (self.kind, tuple(self.names), self.source) == (other.kind, tuple(other.names), other.source)
            and np.array_equal(self.values, other.values, equal_nan=self.kind in ("number", "date"))
        )


class StoredColumns(Mapping[str, ExtraColumn]):
    """The further columns of an opened cache, each read from the file when it is used first."""

    def __init__(self, file: FeatureFile, header: Header) -> None:
        self._file, self._places, self._read = file, header["arrays"], dict[str, ExtraColumn]()
        # A kind of a later version is left out.
        self._about = {name: about for name, about in header["extra"].items() if str(about.get("kind")) in KINDS}

    def __getitem__(self, name: str) -> ExtraColumn:
        if name not in self._read:
            about = self._about[name]
            values = self._file.read_array(self._places[_FOLDER + name])
            kind, names = about["kind"], about.get("names", [])
            if kind == "category" and values.size and not -1 <= values.min() <= values.max() < len(names):
                raise damaged(self._file.path, f"a value of the column {name} is outside its names")
            values = values.view("datetime64[D]") if kind == "date" else values
            self._read[name] = ExtraColumn(kind, values, tuple(names), about.get("source", ""))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._about)

    def __len__(self) -> int:
        return len(self._about)


def columns_digest(extra: Mapping[str, ExtraColumn]) -> str:
    """Return the SHA-256 of all columns, empty if there are none."""
    digest = hashlib.sha256()
    for name, values in stored_arrays(extra).items():
        column = extra[name.removeprefix(_FOLDER)]
        digest.update(json.dumps([name, column.kind, list(column.names), values.dtype.str]).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest() if extra else ""


def check_extra(header: Header) -> None:
    """Check that what a header says of its further columns fits their arrays, before one of them is read.

    Raises:
        ValueError: if it does not.
    """
    rows = header["arrays"]["features"]["shape"][0]
    for name, about in header["extra"].items():
        names, place = about.get("names", []), header["arrays"].get(_FOLDER + name)
        if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
            raise ValueError(f"the names of the column {name} are no texts")
        if not isinstance(about.get("source", ""), str) or place is None:
            raise ValueError(f"nothing is stored for the column {name}")
        shape = [rows, len(names)] if about.get("kind") == "labels" else [rows]
        stored = KINDS.get(str(about.get("kind")))
        if stored is not None and (not place["dtype"].startswith(stored) or place["shape"] != shape):
            raise ValueError(f"the column {name} has the type {place['dtype'][:20]} and the shape {place['shape'][:4]}")


def stored_arrays(extra: Mapping[str, ExtraColumn]) -> dict[str, NDArray[Any]]:
    """Return each column as it is stored, by its name in the header."""
    return {
        _FOLDER + name: column.values.astype("datetime64[D]").view(np.int64) if column.kind == "date" else column.values
        for name, column in extra.items()
    }


def dataset_name(name: str) -> str:
    """Return the name of an array in HDF5, where a slash or a name of dots would mean a folder."""
    return _FOLDER + re.sub(r"[%/]|^\.+$", _escaped, name.removeprefix(_FOLDER)) if name.startswith(_FOLDER) else name


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"%{ord(letter):02X}" for letter in found[0])

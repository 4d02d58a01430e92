"""The columns of a cache besides the features: in memory, as they are stored, and their digests."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, SPLITS
from xfeat.featurize.specs import FeatureSpec

EXCLUDE, RELABEL, GROUP = "exclude", "relabel", "group"


class Correction(NamedTuple):
    """A correction of one image.

    Attributes:
        path: of the image, as in the cache.
        action: ``exclude``, ``relabel`` or ``group``.
        value: the class or group that it gets; empty if it is excluded.
        reason: for people.
    """

    path: str
    action: str
    value: str = ""
    reason: str = ""


def describe_corrections(corrections: Iterable[Correction]) -> str:
    """Return what corrections do, such as ``2 images excluded, 1 relabelled``; empty if there are none."""
    done = Counter(correction.action for correction in corrections)
    parts = {EXCLUDE: "excluded", RELABEL: "relabelled", GROUP: "given another group"}
    texts = [f"{done[action]} {text}" for action, text in parts.items() if done[action]]
    if not texts:
        return ""
    number, rest = texts[0].split(" ", 1)
    return ", ".join([f"{number} image{'s' * (number != '1')} {rest}", *texts[1:]])


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a cache with N images, besides the features; all of length N.

    Attributes:
        label: int32, index into the class names, -1 if none.
        split: uint8, index into train, valid, test; 255 if none.
        path: relative to the data root, forward slashes.
        group: patient or series, empty if unknown.
        sha256: of the file's content, 64 hexadecimal digits.
        size: int64, bytes.
        mtime_ns: int64, nanoseconds since 1970.
        change_mark: int64, of :class:`xfeat.featurize.sources.image_source.FileState`; 0 in caches of
            earlier versions.
        truncated: bool, the end of the image file is missing.
    """

    label: NDArray[np.int32]
    split: NDArray[np.uint8]
    path: Sequence[str]
    group: Sequence[str]
    sha256: Sequence[str]
    size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    change_mark: NDArray[np.int64]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CacheDescription:
    """The content of a cache besides its features.

    Attributes:
        spec: what a row of features is.
        class_names: sorted; labels are indices into it.
        data_root: absolute path of the folder or archive that paths are relative to. Of an opened cache: where the
            stored path leads now; see :attr:`xfeat.featurize.cache.reader.FeatureCache.images`.
        weights_path: the same of the weights file that was used.
        columns: one value per row each.
        skipped: images that could not be read.
        layout: how the folders of the data set were read; empty in caches of earlier versions.
        left_out: per reason, the ``files`` that are not images of the data set, their ``suffixes`` and an ``example``.
        corrections: that were applied to ``columns``. Excluded images keep their rows, without label and split.
    """

    spec: FeatureSpec
    class_names: tuple[str, ...]
    data_root: str
    weights_path: str
    columns: Columns
    skipped: list[Skipped]
    layout: str = ""
    left_out: dict[str, Any] = field(default_factory=dict)
    corrections: tuple[Correction, ...] = ()

    @cached_property
    def excluded(self) -> NDArray[np.bool_]:
        """Whether a correction excludes a row, bool (N,)."""
        paths = {correction.path for correction in self.corrections if correction.action == EXCLUDE}
        return np.array([path in paths for path in self.columns.path], np.bool_)

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images per split and class, without excluded ones; images without either count under ``none``."""
        rows = ~self.excluded
        pairs = Counter(zip(self.columns.split[rows].tolist(), self.columns.label[rows].tolist(), strict=True))
        counts: dict[str, dict[str, int]] = {}
        for (split, label), number in sorted(pairs.items()):
            split_name = "none" if split == NO_SPLIT else SPLITS[split]
            class_name = "none" if label == NO_LABEL else self.class_names[label]
            counts.setdefault(split_name, {})[class_name] = number
        return counts


def content_digest(features: hashlib._Hash, columns: Columns) -> str:
    """Finish a digest over all features with labels, splits, paths and groups."""
    features.update(np.asarray(columns.label, np.int32).tobytes() + np.asarray(columns.split, np.uint8).tobytes())
    for texts in (columns.path, columns.group):
        features.update("\0".join(texts).encode("utf-8", "surrogateescape") + b"\0\0")
    return features.hexdigest()


def encode_column(name: str, values: Any) -> NDArray[Any]:
    """Return a column as it is stored: text as bytes of one width."""
    if name in ("path", "group"):
        return np.array([to_bytes(text) for text in values], "S")
    return np.array(values, "S64") if name == "sha256" else np.asarray(values)


def decode_column(name: str, values: NDArray[Any]) -> Any:
    """Return a column as :class:`Columns` has it."""
    if name in ("path", "group", "sha256"):
        return [to_text(value) for value in values.tolist()]
    return values


def to_bytes(text: str) -> bytes:
    """Encode a file name, which is bytes to the operating system; surrogates stand for those that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def to_text(value: bytes) -> str:
    """Decode :func:`to_bytes`."""
    return value.decode("utf-8", "surrogateescape")

"""What run.json and crossval.json say of the cache they were made from: relative in the file, absolute in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from xfeat.featurize.system.stored_paths import absolute_form, stored_form
from xfeat.featurize.typed_json import check_types

if TYPE_CHECKING:
    from xfeat.featurize.cache.reader import FeatureCache


class CacheOrigin(TypedDict):
    """The cache that a run was trained on: its file, its digest, and the files it was made from.

    In memory, paths are absolute: where the stored ones lead now. :mod:`xfeat.head.runs.inputs` finds what has moved.
    ``written_in`` is the absolute folder of run.json when it was written, empty in runs of earlier versions.
    ``corrections`` are those of the labels and groups in the file.
    """

    path: str
    content_sha256: str
    data_root: str
    weights_path: str
    written_in: str
    corrections: list[list[str]]


_PATHS = ("path", "data_root", "weights_path")


def origin_of(cache: FeatureCache) -> CacheOrigin:
    """Describe a cache."""
    return CacheOrigin(
        path=os.path.abspath(cache.path),
        content_sha256=cache.content_sha256,
        data_root=str(cache.images.path or cache.data_root),
        weights_path=cache.weights_path,
        written_in="",
        corrections=[list(correction) for correction in cache.corrections],
    )


def stored_origin(origin: CacheOrigin, folder: Path) -> dict[str, Any]:
    """Return what a file in ``folder`` stores of a cache."""
    content: dict[str, Any] = {**origin}
    paths = {name: stored_form(content[name], folder) for name in _PATHS}
    return {**content, **paths, "written_in": os.path.abspath(folder)}


def opened_origin(stored: dict[str, Any], folder: Path) -> CacheOrigin:
    """Return what a file in ``folder`` says of a cache.

    Raises:
        KeyError, TypeError, ValueError: if something is missing, or is not text.
    """
    if not isinstance(stored, dict):
        raise TypeError("cache: not an object")
    check_types(stored, CacheOrigin)
    paths = {name: absolute_form(stored[name], folder) for name in _PATHS}
    return CacheOrigin(**{"written_in": "", "corrections": [], **stored, **paths})  # type: ignore[typeddict-item]

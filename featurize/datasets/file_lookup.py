"""Finds the files that a table names: as written, or below the data folder if only one can be meant."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from xfeat.featurize.datasets.image_files import IMAGE_SUFFIXES

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def find_files(
    names: Sequence[str], root: Path, exists: Callable[[str], bool], files: Callable[[], Iterable[str]]
) -> list[list[str]]:
    """Find files by name.

    A name is taken as it is written if there is such a file. Otherwise it must be the end of a path below ``root``,
    with folders if it has any: upper and lower case, composed letters, the kind of slash and a missing image suffix do
    not count. Absolute names from another machine count without the folders that all of them share.

    Args:
        names: as the table has them: relative to ``root``, absolute, with slashes or backslashes, or only file names.
        root: the data folder.
        exists: tells whether there is a file at a path relative to ``root``.
        files: lists the files below ``root``; called only if a name is not found as written.

    Returns:
        For each name the paths it can mean, relative to ``root``: one; none if it is missing; several if only more
        folders would tell which.
    """
    found = [_as_written(name, root, exists) for name in names]
    if all(found):
        return found
    paths = [PureWindowsPath(name) for name in names]  # knows both slashes, and drives
    parts = [[_key(part) for part in path.relative_to(path.anchor).parts] for path in paths]
    foreign = [part[:-1] for part, path, ready in zip(parts, paths, found, strict=True) if path.anchor and not ready]
    shared = min((_same_start(foreign[0], folders) for folders in foreign), default=0)
    by_name, by_stem = _index(files())
    above = [_key(part) for part in root.resolve().parts]

    def search(part: list[str], written: str, absolute: bool) -> list[str]:
        if not part:
            return []
        needed = len(part) - shared if absolute else len(part)
        candidates = by_name.get(part[-1]) or by_stem.get(part[-1]) or []
        ends = {path: _same_start(part[::-1], (above + parts_below)[::-1]) for path, parts_below in candidates}
        longest = max([needed, *ends.values()])
        meant = [path for path, end in ends.items() if end == longest]
        return [path for path in meant if posixpath.basename(path) == written] or meant

    return [
        ready or search(part, path.name, bool(path.anchor))
        for ready, part, path in zip(found, parts, paths, strict=True)
    ]


def is_url(name: str) -> bool:
    """Tell whether a name is an address such as ``https://…`` or ``s3://…``."""
    return bool(_URL.match(name))


def is_outside(name: str, root: Path) -> bool:
    """Tell whether an absolute name is a file of this machine that is not below ``root``."""
    return os.path.isabs(name) and os.path.exists(name) and _relative(name, root) is None


def written_path(name: str) -> str:
    """Return a name with forward slashes and without ``./``, for a file that is not there."""
    return posixpath.normpath(name.replace("\\", "/"))


def _as_written(name: str, root: Path, exists: Callable[[str], bool]) -> list[str]:
    for text in dict.fromkeys((name, name.replace("\\", "/"))):  # a backslash may also be part of a file's name
        path = _relative(text, root)
        if path is not None and exists(path):
            return [path]
    return []


def _relative(name: str, root: Path) -> str | None:
    """Return a normal path relative to ``root``, ``None`` for an absolute one that is not below it."""
    path = posixpath.normpath(name)
    if not os.path.isabs(path):
        return path
    for base in (Path(os.path.abspath(root)), root.resolve()):
        with suppress(ValueError):
            return Path(path).relative_to(base).as_posix()
    return None


_Index = dict[str, list[tuple[str, list[str]]]]


def _index(files: Iterable[str]) -> tuple[_Index, _Index]:
    """Return the files by their names, and by their names without the suffix of an image."""
    by_name: _Index = defaultdict(list)
    by_stem: _Index = defaultdict(list)
    for path in files:
        parts = [_key(part) for part in path.split("/")]
        by_name[parts[-1]].append((path, parts))
        stem, suffix = posixpath.splitext(parts[-1])
        if suffix in IMAGE_SUFFIXES:
            by_stem[stem].append((path, [*parts[:-1], stem]))
    return by_name, by_stem


def _same_start(one: list[str], other: list[str]) -> int:
    """Return how many items at the start are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _key(part: str) -> str:
    """Return what names are compared by; bytes that are not UTF-8 count as Latin-1, as they do in tables."""
    raw = part.encode("utf-8", "surrogateescape")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return unicodedata.normalize("NFC", text).casefold().strip()

"""Finds the files that a table names: as written, or below the data folder if only one can be meant."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from itertools import takewhile
from pathlib import Path

from xfeat.featurize.datasets.image_files import IMAGE_SUFFIXES
from xfeat.featurize.urls import Root

# A slash, a drive, or the name of a Windows server and its share.
_ANCHOR = re.compile(r"[a-z]:[/\\]*|[/\\]{2}[^/\\]+[/\\][^/\\]+[/\\]|[/\\]", re.IGNORECASE)
# Python reads bytes of names that are not UTF-8 as these lone surrogates.
_BYTES_AS_LATIN_1 = {0xDC00 + byte: chr(byte) for byte in range(0x80, 0x100)}
_SEARCHED = 1 << 14


def find_files(
    names: Sequence[str], root: Root, exists: Callable[[str], bool], files: Callable[[], Iterable[str]]
) -> list[Sequence[str]]:
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
    root = Path(root)
    found: list[Sequence[str]] = [_as_written(name, root, exists) for name in names]
    if all(found):
        return found
    foreign = (_parts(name)[:-1] for name, ready in zip(names, found, strict=True) if _ANCHOR.match(name) and not ready)
    first = next(foreign, [])
    shared = min((_same_start(first, folders) for folders in foreign), default=len(first))
    above = _parts(root.resolve().as_posix())
    listed = [(path, [*above, *_key(path).split("/")]) for path in files()]
    deepest = max((len(parts) for _, parts in listed), default=0)
    index = cache(partial(_by_end, listed))

    @lru_cache(_SEARCHED)  # of a name such as image.png, there may be as many files as rows
    def search(name: str) -> Sequence[str]:
        parts = _parts(name)
        needed = len(parts) - shared if _ANCHOR.match(name) else len(parts)
        with_suffix, without = index(min(needed, deepest))
        end = "/".join(parts[-needed:])
        possible = with_suffix.get(end) or without.get(end, [])
        same = {path: _same_start(parts[::-1], other[::-1]) for path, other in possible}
        longest = max(same.values(), default=0)
        meant = [path for path, length in same.items() if length == longest]
        return [path for path in meant if name.endswith(posixpath.basename(path))] or meant or ()

    for row, name in enumerate(names):
        found[row] = found[row] or search(name)
    return found


def is_outside(name: str, root: Root) -> bool:
    """Tell whether an absolute name is a file of this machine that is not below ``root``."""
    return os.path.isabs(name) and os.path.exists(name) and _relative(name, Path(root)) is None


def name_as_text(path: str) -> str:
    """Return a path as a table in UTF-8 can hold it: bytes that are not UTF-8 are read as Latin-1, as tables are."""
    return path.translate(_BYTES_AS_LATIN_1)


def written_path(name: str) -> str:
    """Return a name with forward slashes and without ``./``, for a file that is not there."""
    return posixpath.normpath(name.replace("\\", "/"))


def _as_written(name: str, root: Path, exists: Callable[[str], bool]) -> tuple[str, ...]:
    for text in dict.fromkeys((name, name.replace("\\", "/"))):  # a backslash may also be part of a file's name
        path = _relative(text, root)
        if path is not None and exists(path):
            return (path,)
    return ()


def _relative(name: str, root: Path) -> str | None:
    """Return a normal path relative to ``root``, ``None`` for an absolute one that is not below it."""
    path = posixpath.normpath(name)
    if path.startswith(".."):  # it may come back in
        return _relative(os.path.join(os.path.abspath(root), path), root) or path
    if not os.path.isabs(path):
        return path
    for base in (Path(os.path.abspath(root)), root.resolve()):
        with suppress(ValueError):
            return Path(path).relative_to(base).as_posix()
    return None


_Listed = list[tuple[str, list[str]]]
"""Paths, and their parts as they are compared."""


def _by_end(listed: _Listed, size: int) -> tuple[defaultdict[str, _Listed], defaultdict[str, _Listed]]:
    """Return the files by the last ``size`` parts of their paths, with and without the suffix of an image."""
    with_suffix: defaultdict[str, _Listed] = defaultdict(list)
    without: defaultdict[str, _Listed] = defaultdict(list)
    for path, parts in listed:
        with_suffix["/".join(parts[-size:])].append((path, parts))
        stem, suffix = posixpath.splitext(parts[-1])
        if suffix in IMAGE_SUFFIXES:
            bare = [*parts[:-1], stem]
            without["/".join(bare[-size:])].append((path, bare))
    return with_suffix, without


def _same_start(one: list[str], other: list[str]) -> int:
    """Return how many parts at the start are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _parts(name: str) -> list[str]:
    """Return the parts of a name, without a drive or server, as they are compared."""
    anchor = _ANCHOR.match(name)
    slashed = _key(name[anchor.end() :] if anchor else name).replace("\\", "/")
    return [part for part in slashed.split("/") if part not in ("", ".")]


def _key(name: str) -> str:
    """Return what names are compared by."""
    composed = name if name.isascii() else unicodedata.normalize("NFC", name_as_text(name))
    return composed.casefold().strip()

"""Paths that files store: how they are written, and how what they name is found again after a move."""

from __future__ import annotations

import logging
import ntpath
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from xfeat.featurize.text import first_ten, listed
from xfeat.featurize.urls import Root, Url, is_url

# Folders further above may be a home or a whole disk, and are not listed.
_MOST_ABOVE = 2
_MOST_LISTED = 10_000
_NOTHING = "nothing there"

logger = logging.getLogger(__name__)

Refusal = Callable[[Path], str]
"""Returns why an existing file or folder is not the wanted one, or nothing if it is."""


def stored_form(target: str | os.PathLike[str], folder: Path) -> str:
    """Return how a file in ``folder`` stores the path of ``target``; nothing stays nothing.

    Args:
        target: the file or folder that is named; an address stays as it is.
        folder: of the file that stores the path; it need not exist yet.

    Returns:
        A relative path with forward slashes if both have a folder in common, other than the root of the file system;
        else the absolute path. A link keeps its name, so that it can be exchanged for what it points to.
    """
    if not os.fspath(target) or is_url(os.fspath(target)):
        return os.fspath(target)
    path = Path(os.path.abspath(target))
    if not _is_same(path, Path(target)):  # ``link/..`` is not the folder that contains the link
        path = Path(target).resolve()
    folders = (Path(os.path.abspath(folder)), folder.resolve())
    found = []
    for start, end in zip(folders, (path, path.parent.resolve() / path.name), strict=True):
        with suppress(ValueError):  # on two drives
            common = Path(os.path.commonpath([start, end]))
            text = os.path.relpath(end, start)
            # Where a folder is a link, ``..`` has two meanings: both have to lead to the target.
            if common in (start, *start.parents[:-1]) and all(_is_same(_joined(each, text), path) for each in folders):
                found.append(PurePath(text).as_posix())
    return min(found, key=lambda text: text.split("/").count(".."), default=str(path))


def absolute_form(text: str, folder: Path) -> str:
    """Return the absolute path that ``text``, stored in a file in ``folder``, names now; nothing stays nothing."""
    path = _flavour(text)
    if not text or is_url(text) or path.is_absolute() or Path(text).is_absolute():
        return text
    here = Path(os.path.abspath(folder))
    as_it_is = _joined(here, text)
    return str(as_it_is if os.path.lexists(as_it_is) else _joined(here, path.as_posix()))


@dataclass(frozen=True, kw_only=True)
class StoredPath:
    """A path that was read from a file.

    Attributes:
        now: the absolute path that it names now, from :func:`absolute_form`.
        folder: of the file.
        written_in: absolute folder of the file when it was written; empty if that is not known, or for a path that is
            stored as an absolute one.
        above: how many folders above the file its project is, where ``written_in`` is not known.
    """

    now: str
    folder: Path
    written_in: str = ""
    above: int = 0

    @property
    def original(self) -> str:
        """The absolute path when the file was written; ``now`` if that is not known."""
        relative = self._relative
        if not self.written_in or not relative:
            return self.now
        path = _flavour(self.written_in) / relative
        return str((ntpath if isinstance(path, PureWindowsPath) else posixpath).normpath(str(path)))

    @property
    def _relative(self) -> str:
        if not Path(self.now).is_absolute():  # of another system
            return ""
        with suppress(ValueError):
            return PurePath(os.path.relpath(self.now, os.path.abspath(self.folder))).as_posix()
        return ""

    @property
    def _folders(self) -> list[Path]:
        """The folder of the file by name, and, if there are links on the way, where it really is."""
        return list(dict.fromkeys([Path(os.path.abspath(self.folder)), self.folder.resolve()]))

    def named(self) -> Iterator[Path]:
        """Yield the places that the path names, relative to the file first."""
        texts = [self.now, *(str(_joined(folder, self._relative)) for folder in self._folders if self._relative)]
        yield from (Path(text) for text in [*texts, self.original] if Path(text).is_absolute())

    def beside(self) -> Iterator[Path]:
        """Yield the ends of the path below the folder of the file and those above it, the nearest folder first."""
        for start in self._folders:
            for folder in (start, *start.parents):
                for text in (self.original, self.now):
                    path = _flavour(text)
                    parts = path.parts[1:] if path.anchor else path.parts
                    yield from (folder.joinpath(*parts[first:]) for first in range(len(parts)))

    def listed(self) -> Iterator[Path]:
        """Yield the project, what is in it, and what is in folders there.

        The project is the folder that the file and what it names had in common.
        """
        above = self._relative.split("/").count("..") if self.written_in else self.above
        start = self._folders[0]
        project = (start, *start.parents)[min(above, _MOST_ABOVE, len(start.parents))]
        if project == Path(project.anchor):
            return
        yield project
        yield from (inside := _content(project))
        for each in inside:
            yield from _content(each)


@dataclass(frozen=True)
class Search:
    """Where a file or folder was looked for.

    Attributes:
        path: what was found, or ``None``.
        refused: what is at a place that the path names, but is not what was wanted; ``None`` if nothing is there.
        report: places, and why what was wanted is not there, a line per place.
        url: the address that the path is; whether something is there was not asked.
    """

    path: Path | None
    refused: Path | None = None
    report: str = ""
    url: Url | None = None

    @property
    def root(self) -> Root | None:
        """What was found, here or at an address."""
        return self.url or self.path


def find_stored(paths: Sequence[StoredPath], refusal: Refusal, *, similar: Callable[[Path], bool] | None) -> Search:
    """Find what stored paths name: where they say, then by name in the folders above, then by content alone.

    Args:
        paths: all of them name the same file or folder.
        refusal: decides about each place at which there is something.
        similar: whether a file or folder nearby may be the wanted one under another name; ``None``: do not look by
            name or content, because ``refusal`` cannot tell.
    """
    named = [place for stored in paths for place in stored.named()]
    nearby: Iterable[Path] = ()
    if similar is not None:
        beside = (place for stored in paths for place in stored.beside() if os.path.exists(place))
        contents = (place for stored in paths for place in islice(stored.listed(), _MOST_LISTED))
        nearby = chain(beside, filter(similar, contents))
    looked: dict[Path, str] = {}
    for path in chain(named, nearby):
        if path not in looked:
            looked[path] = refusal(path) if os.path.exists(path) else _NOTHING
        if not looked[path]:
            _say_once(path, Path(paths[0].now))
            return Search(path)
    report = first_ten((f"{path}: {reason}" for path, reason in looked.items()), "more places")
    if similar is not None:
        folders = dict.fromkeys(os.path.abspath(stored.folder) for stored in paths)
        report.append(f"nothing with that content nearby: in {listed(folders, ' and ')}, and in the folders above")
    return Search(None, next((path for path in named if looked[path] != _NOTHING), None), "\n".join(report))


@lru_cache
def _say_once(path: Path, wanted: Path) -> None:
    if path != wanted:
        logger.info("using %s: it has the content that was at %s", path, wanted)


def _content(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    return []


def _flavour(text: str) -> PurePath:
    """Return a path as the system that wrote it understands it: Windows if it has a drive, or backslashes alone."""
    windows = PureWindowsPath(text)
    return windows if windows.drive or ("\\" in text and "/" not in text) else PurePosixPath(text)


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first == second or first.samefile(second)
    except (OSError, ValueError):
        return False


def _joined(folder: Path, text: str) -> Path:
    return Path(os.path.normpath(folder / text))

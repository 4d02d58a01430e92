"""Images in a tar archive, also as WebDataset shards with a label beside each image. Nothing is unpacked."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.sources.container_file import ContainerFile
from xfeat.featurize.sources.image_source import (
    EPOCH,
    MAX_NAME,
    MOST_IN_A_ROW,
    READ_LIMIT_S,
    FileState,
    ImageSource,
    Records,
    check_size,
    safe_name,
    translating,
)
from xfeat.featurize.system.time_limit import limited
from xfeat.featurize.text import listed, quote
from xfeat.featurize.typed_json import parse_json

LABEL_KINDS = (".cls", ".json", ".txt")
# A label is a word; a record of JSON may have more. Larger ones are no labels.
_MAX_LABEL_BYTES = 1 << 16
# Headers of extended names take more than a block; what asks for more is no header.
_MAX_HEADER_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_MOST_ZEROS = 1 << 20
_NOT_TAR = "the file is damaged or cut short: download or pack it again"


class _Member(NamedTuple):
    """A file in the archive: where its content starts, and what its header says."""

    offset: int
    size: int
    mtime_ns: int
    header: int


class TarSource(ImageSource):
    """Members of a tar archive that are regular files, or hard links to one.

    Attributes:
        doubts: what the user should know of how it was read.

    Raises:
        DataError: if it is no tar archive, or its end is missing.
    """

    def __init__(self, file: ContainerFile) -> None:
        self._file = file
        self.doubts: list[str] = []
        self._members: dict[str, _Member] = {}
        self._labels: dict[str, dict[str, str]] = {}  # kind -> key of the sample -> content
        left_out: Counter[str] = Counter()
        kinds = tarfile.TarError, OSError, ValueError, EOFError
        damaged = translating("the tar archive cannot be read", *kinds, path=file.path, fix=_NOT_TAR)
        with damaged, file.open() as opened:
            handle = _BoundedReads(opened)
            start: int | None = 0
            while start is not None and start < file.size:
                start = self._list(handle, start, left_out)
        if again := left_out.pop("again", 0):
            self.doubts.append(f"names that the archive has more than once, of which the last file is read: {again}")
        if left_out:
            found = ", ".join(f"{number} {kind}" for kind, number in left_out.items())
            self.doubts.append(f"{file.path}: not read from the archive: {found}")

    def names(self) -> Iterator[str]:
        """Yield the members that are files, without those that hold the labels of images."""
        samples = ((name, *sample_of(name)) for name in self._members)
        return (name for name, key, kind in samples if key not in self._labels.get(kind, ()))

    def records(self) -> Records | None:
        """Return the labels that ``.cls``, ``.json`` and ``.txt`` members give the images of their sample."""
        names = [name for name in self._members if sample_of(name)[1] not in LABEL_KINDS]
        columns: dict[str, list[str]] = {}
        for kind, labels in self._labels.items():
            found = [labels.get(sample_of(name)[0]) for name in names]
            if kind == ".json":
                read = [{} if text is None else _fields(text) for text in found]
                if broken := [name for name, values in zip(names, read, strict=True) if values is None]:
                    self.doubts.append(f"the .json files of these images are no JSON: {listed(map(quote, broken))}")
                fields = [values or {} for values in read]
                known = dict.fromkeys(name for values in fields for name in values)
                nested = [name for name in known if any(isinstance(values.get(name), dict | list) for values in fields)]
                cells = {name: [_cell(values.get(name)) for values in fields] for name in known}
                columns |= {name: texts for name, texts in cells.items() if any(texts)}
                if nested:
                    self.doubts.append(f"not kept: {listed(map(quote, nested))} (lists or objects in .json files)")
            elif any(found):
                columns[kind.removeprefix(".")] = [(text or "").strip() for text in found]
        return Records(names, columns, "cls" if "cls" in columns else "") if columns else None

    def state(self, path: str) -> FileState | None:
        """Return the state of a member from its header, ``None`` if it does not exist."""
        member = self._members.get(path)
        if member is None:
            return None
        return self._file.state(member.offset, member.header, size=member.size, mtime_ns=member.mtime_ns)

    def read(self, path: str) -> tuple[bytes, FileState]:
        """Return a member's content and its state.

        Raises:
            ImageError: if it cannot be read.
        """
        state = self.state(path)
        if state is None:
            raise ImageError("cannot be read: no such file in the archive")
        check_size(state.size)
        data = self._read(self._members[path], state.size)
        if len(data) < state.size:
            raise ImageError("its end is missing in the archive")
        return data, state

    def _start(self, path: str, size: int) -> bytes:
        return self._read(self._members[path], size)

    def order(self, path: str) -> tuple[str, int]:
        """Return where a member starts."""
        member = self._members.get(path)
        return "", member.offset if member is not None else 0

    @limited(READ_LIMIT_S, "read", most_in_a_row=MOST_IN_A_ROW)
    def _read(self, member: _Member, size: int) -> bytes:
        with translating("cannot be read from the archive", OSError):
            return self._file.read_at(member.offset, min(size, member.size))

    def _list(self, handle: _BoundedReads, start: int, left_out: Counter[str]) -> int | None:
        """List the archive that starts there; return where another one starts after its end, if one does."""
        handle.seek(start)
        with tarfile.TarFile(fileobj=handle, mode="r", ignore_zeros=False, errorlevel=0) as archive:  # type: ignore[arg-type]
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # Python keeps them all
                self._add(info, handle, left_out)
            return self._next_start(handle, archive.offset)

    def _next_start(self, handle: _BoundedReads, end: int) -> int | None:
        """Return where another archive starts after the blocks of zeros that end one, ``None`` if none does."""
        position = end
        while position < min(self._file.size, end + _MOST_ZEROS):
            handle.seek(position)
            block = handle.read(_BLOCK)
            if block.strip(b"\0"):
                if _is_header(block):
                    return position
                if position == end:  # Python's reader gave this block up
                    raise tarfile.ReadError("a damaged header")
                self.doubts.append(f"{self._file.path}: what follows the end of the archive is not read")
                return None
            position += _BLOCK
        if position == end:
            self.doubts.append(f"{self._file.path}: the archive has no end marker; it may have been cut short")
        return None

    def _add(self, info: tarfile.TarInfo, handle: _BoundedReads, left_out: Counter[str]) -> None:
        name, target = safe_name(info.name), safe_name(info.linkname)
        if len(info.name) > MAX_NAME:
            what = f"the archive has a name of {len(info.name)} characters"
            raise DataError(what, path=self._file.path, fix=_NOT_TAR)
        if info.isdir() or not name:
            return
        if info.islnk() and target in self._members:
            self._members[name] = self._members[target]
        elif info.islnk():
            left_out["links to files that are not there"] += 1
        elif info.issym():
            left_out["symbolic links"] += 1
        elif not info.isreg():
            left_out["devices and pipes"] += 1
        elif info.issparse():
            left_out["sparse files"] += 1
        else:
            end = info.offset_data + info.size
            if end > self._file.size:
                raise DataError(
                    "the end of the archive is missing",
                    path=self._file.path,
                    expected=f"{end} bytes or more, for {quote(name)}",
                    found=f"{self._file.size} bytes",
                    fix=_NOT_TAR,
                )
            left_out["again"] += name in self._members
            self._members[name] = _Member(info.offset_data, info.size, _time_of(info), info.chksum)
            key, kind = sample_of(name)
            if kind in LABEL_KINDS and info.size <= _MAX_LABEL_BYTES:
                handle.seek(info.offset_data)
                self._labels.setdefault(kind, {})[key] = handle.read(info.size).decode("utf-8", "replace")


def _time_of(info: tarfile.TarInfo) -> int:
    with suppress(ValueError, OverflowError):  # extended headers hold any number
        return min(max(int(info.mtime) * 1_000_000_000, EPOCH), (1 << 63) - 1)
    return EPOCH


def sample_of(name: str) -> tuple[str, str]:
    """Return the sample that a member of a shard belongs to, and its kind: the name to its first dot, and the rest.

    Source: WebDataset's base_plus_ext.
    """
    folder, file = posixpath.split(name)
    stem, dot, kind = file.partition(".")
    return posixpath.join(folder, stem), (dot + kind).lower()


def _is_header(block: bytes) -> bool:
    with suppress(tarfile.TarError, ValueError):
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return True
    return False


def _fields(text: str) -> dict[str, Any] | None:
    """Return the values of a JSON record, or ``None`` if it is damaged; one value alone is the label."""
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else {"label": found}


def _cell(value: object) -> str:
    """Return a value of a JSON record as text; empty for a list, an object and ``null``."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) else ""


class _BoundedReads:
    """A file for Python's reader of archives, whose headers may ask for any number of bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

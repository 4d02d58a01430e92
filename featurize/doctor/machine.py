"""The lines on cores, memory, folders, and what the file system of the current folder offers."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from xfeat.featurize.doctor.report import FAIL, NOTE, OK, Line
from xfeat.featurize.system import filesystem
from xfeat.featurize.system.cores import cores, cpu_quota
from xfeat.featurize.system.user_cache import ANOTHER_CACHE, cache_folder, is_writable

_GB = 1e9
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def cores_and_memory(control_group: Path = _CONTROL_GROUP) -> Iterator[Line]:
    """Say how many cores and how much memory there are, and what a container allows of them.

    Source: the kernel's documentation of control groups, version 2 (``memory.max``) and 1.
    """
    usable, all_cores = cores(), os.cpu_count() or 1
    quota = ", which is the CPU quota of the container" if usable == cpu_quota() else ""
    yield Line("cores", OK, (f"{usable} of {all_cores} may be used" if usable < all_cores else f"{usable}") + quota)
    memory = _first_number(Path("/proc/meminfo"), "MemTotal:")
    allowed = _first_number(control_group / "memory.max") or _first_number(
        control_group / "memory/memory.limit_in_bytes"
    )
    if memory is not None:
        found = f"{memory * 1024 / _GB:.1f} GB"
        if allowed is not None and allowed < memory * 1024:
            found += f", of which the container may use {allowed / _GB:.1f} GB"
        elif (free := _first_number(Path("/proc/meminfo"), "MemAvailable:")) is not None:
            found += f", {free * 1024 / _GB:.1f} GB free"
        yield Line("memory", OK, found)


def _first_number(file: Path, label: str = "") -> int | None:
    try:
        text = file.read_text()
    except OSError:
        return None
    words = text.partition(label)[2].split() if label else text.split()
    return int(words[0]) if words and words[0].isdigit() else None


def folders() -> Iterator[Line]:
    """Say where files are kept that can be made again, and whether there is room."""
    folder = cache_folder()
    if folder is None:
        yield Line("cache folder", NOTE, "there is no home folder: networks are converted each time", ANOTHER_CACHE)
    elif not is_writable(_nearest(folder)):
        yield Line("cache folder", NOTE, f"{folder} cannot be written: networks are converted each time", ANOTHER_CACHE)
    else:
        yield Line("cache folder", OK, str(folder))
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Line("temporary files", FAIL, str(error.strerror), "set TMPDIR to a folder that can be written")
    else:
        yield Line("temporary files", OK, f"{temporary}, {shutil.disk_usage(temporary).free / _GB:.0f} GB free")
    if find_spec("numba") is not None:
        yield _numba_folder()


def _numba_folder() -> Line:
    """Say where numba keeps compiled code: ``NUMBA_CACHE_DIR``, beside the source, or in the user's cache.

    Source: numba/core/caching.py of numba 0.68.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    compiled = Path(__file__).parents[2] / "head/batched/compiled/__pycache__"
    places = [Path(given)] if given else [compiled, *filter(None, [cache_folder()])]
    for place in places:
        if is_writable(_nearest(place)):
            return Line("numba's cache", OK, str(place))
    fix = "set NUMBA_CACHE_DIR to a folder that can be written"
    return Line("numba's cache", NOTE, "no folder can be written: sweeps cannot use numba", fix)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    above = (folder, *folder.absolute().parents)
    return next(place for place in above if os.path.isdir(place))  # False without permission


def file_system() -> Iterator[Line]:
    """Try what the file system of the current folder offers, in a folder that is deleted again."""
    here = Path.cwd()
    try:
        tried = tempfile.TemporaryDirectory(prefix=".xfeat-doctor-", dir=here)
    except OSError as error:
        found = f"{here} cannot be written ({error.strerror}): images can be read from it"
        yield Line("current folder", NOTE, found, "give the commands another place with -o")
        return
    with tried as folder:
        lacking = [line for service in _SERVICES for line in _try(service, Path(folder))]
    yield Line("current folder", OK, f"{here}, {shutil.disk_usage(here).free / _GB:.0f} GB free")
    yield from lacking or [Line("file system", OK, "offers locks, links and everything else that is used")]


def _try(service: filesystem.Service, folder: Path) -> Iterator[Line]:
    """Say what is lost without a service, if it is not there."""
    file = folder / "file"
    file.write_bytes(b"x")  # again each time: an empty file cannot be mapped
    try:
        _SERVICES[service](file)
    except OSError as error:
        if error.errno in service.errors:
            yield Line("file system", NOTE, f"has no {service.name} ({error.strerror}): {service.lost}")
        else:
            yield Line("file system", FAIL, f"{service.name}: {error.strerror}", "check the disk, or use another one")


def _lock(file: Path) -> None:
    with FileLock(file.with_suffix(".lock"), timeout=0, fallback_to_soft=False):
        pass


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _map(file: Path) -> None:
    with file.open("rb") as opened:
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ).close()


def _replace(file: Path) -> None:
    other = file.with_name("other")
    other.touch()
    os.replace(other, file)


_SERVICES: dict[filesystem.Service, Callable[[Path], None]] = {
    filesystem.LOCKS: _lock,
    filesystem.FLUSH: _flush,
    filesystem.FLUSH_FOLDER: lambda file: _flush(file.parent),
    filesystem.REPLACE: _replace,
    filesystem.TIMES: lambda file: os.utime(file, (0, 0)),
    filesystem.SYMBOLIC_LINKS: lambda file: file.with_name("link").symlink_to("file"),
    filesystem.MAPPING: _map,
}

"""Reads ``features.h5`` of schema version 1, in a process of its own.

Version 1 has text in HDF5's heaps and settings in attributes, so that HDF5 must read it; a damaged or forged file can
make it loop for ever, take all memory or crash. In a process with limits that is one error.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.cache.layout import (
    ARRAYS,
    COLUMNS,
    FORMAT,
    HDF5_SIGNATURE,
    SCHEMA_VERSION,
    Header,
    Place,
    Stored,
    check_lengths,
    damaged,
    not_a_cache,
    other_version,
    parse_object,
)
from xfeat.featurize.processes import module_command
from xfeat.featurize.typed_json import parse_json

# Of processor time: 1 MB takes about 0.01 s.
_CPU_S, _BYTES_PER_CPU_S = 0.5, 20 << 20
_MEMORY_BYTES, _MEMORY_TIMES_SIZE = 64 << 20, 20
# Of a process that waits for a disk, or for other processes.
_WALL_TIMES_CPU = 30
_TAIL_BYTES = 1 << 20
_TEXTS = ("path", "group")
_TEXT_BYTES = 16  # of the place of a text in a heap
_OPTIONAL = {"written_in": "", "layout": "", "left_out": "{}", "columns_sha256": ""}  # absent in the first caches
_ATTRIBUTES = ("fingerprint", "data_root", "weights_path", "content_sha256", "created")
_JSON = ("spec", "class_names", "split_names", "versions")


def may_be_schema1(file: BinaryIO) -> bool:
    """Tell, without HDF5, whether a file names its format near its end, where version 1 wrote its attributes."""
    file.seek(0)
    if file.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
        return False
    file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
    return FORMAT.encode() in file.read()


def read_schema1(path: Path) -> Stored:
    """Read everything but the features.

    Raises:
        CacheError: if the file is damaged, of another program or of a later version.
    """
    cpu_s = _CPU_S + path.stat().st_size / _BYTES_PER_CPU_S
    command = module_command("xfeat.featurize.cache.schema1", str(path), str(cpu_s))
    try:
        done = subprocess.run(  # nosec B603  # this Python with this module
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=cpu_s * _WALL_TIMES_CPU, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise damaged(path, f"HDF5 did not read it within {error.timeout:.0f} s") from error
    if done.returncode:
        raise damaged(path, f"HDF5 took more than {cpu_s:.1f} s of processor time, too much memory, or crashed")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as content:
        columns = {name: content[name] for name in content.files}
    answer = columns.pop("answer").tobytes()
    found = json.loads(answer)
    if "version" in found:
        raise other_version(path, found["version"])
    if "kind" in found:
        raise not_a_cache(path, found["kind"])
    if "damage" in found:
        raise damaged(path, found["damage"])
    try:
        header: Header = parse_object(answer, Header)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    return Stored(header, columns, header["arrays"]["features"], schema_version=1)


def _main(file: str, cpu_s: str) -> None:
    """Write the answer of this process to standard output: arrays as in version 2, and the header as ``answer``."""
    import h5py  # before the limits, which are for the file

    _set_limits(float(cpu_s), _MEMORY_BYTES + _MEMORY_TIMES_SIZE * os.stat(file).st_size)
    columns: dict[str, NDArray[Any]] = {}
    try:
        with h5py.File(file, "r", locking=False) as opened:
            answer: Any = _kind(opened) or _content(opened, columns)
    except Exception as error:  # noqa: BLE001 - whatever it is, the file is damaged
        answer, columns = {"damage": str(error) or type(error).__name__}, {}
    content: dict[str, Any] = {"answer": np.frombuffer(json.dumps(answer).encode(), np.uint8), **columns}
    np.savez(stream := io.BytesIO(), **content)
    sys.stdout.buffer.write(stream.getbuffer())


def _set_limits(cpu_s: float, memory_bytes: int) -> None:
    """End this process after some processor time, also within HDF5, and let it take so much more memory than now."""
    if os.name == "nt":  # there, only the process that waits has a limit
        return
    import resource

    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # nobody handles its signal, which ends the process
    with suppress(OSError, ValueError):  # where there is no /proc
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, resource.RLIM_INFINITY))


def _kind(file: Any) -> dict[str, Any] | None:
    """Return why a file is not a cache of version 1; ``None`` if it is."""
    form, version = file.attrs.get("format"), file.attrs.get("schema_version")
    if not isinstance(form, str) or form != FORMAT:
        return {"kind": "an HDF5 file of another program"}
    if not isinstance(version, np.integer) or version < 1:
        return {"damage": f"schema version {version}"}
    if version == SCHEMA_VERSION:
        return {"kind": "a feature cache that another program has rewritten"}
    return {"version": int(version)} if version > SCHEMA_VERSION else None


def _content(file: Any, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the header, and put the columns into ``columns``."""
    attributes = {name: _attribute(file, name) for name in (*_ATTRIBUTES, *_JSON)}
    optional = {name: _attribute(file, name, default) for name, default in _OPTIONAL.items()}
    features = _dataset(file, "features")
    place = Place(dtype=features.dtype.str, shape=list(features.shape), offset=features.id.get_offset())
    for name in COLUMNS:
        columns[name] = _column(file, name)
    check_lengths({"features": features.shape, **{name: values.shape for name, values in columns.items()}})
    skipped = _dataset(file, "skipped")[()].tolist()
    digest = optional.pop("columns_sha256")
    if digest and digest != _digest_of_states(columns, skipped):
        raise ValueError("the file records have changed since it was written")
    return {
        **attributes,
        **{name: parse_json(attributes[name]) for name in _JSON},
        **optional,
        "left_out": parse_json(optional["left_out"]),
        "skipped": [[text.decode("utf-8", "surrogateescape") for text in row] for row in skipped],
        "arrays": {"features": place},
        "extra": {},
    }


def _attribute(file: Any, name: str, default: str | None = None) -> str:
    value = file.attrs.get(name, default)
    if not isinstance(value, str):
        raise TypeError(f"the attribute {name} is {'missing' if value is None else type(value).__name__}")
    return value


def _dataset(file: Any, name: str) -> Any:
    """Return a dataset that is one block of this file, of the right type, before anything of it is read."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"there is no {name}, or only a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or not _is_of_type(name, dataset.dtype):
        raise ValueError(f"{name} is of another type: {getattr(dataset, 'dtype', 'a group')}")
    stored = dataset.id.get_create_plist()
    item = {"skipped": 2 * _TEXT_BYTES, **dict.fromkeys(_TEXTS, _TEXT_BYTES)}.get(name, dataset.dtype.itemsize)
    wanted = math.prod(dataset.shape or ()) * item
    whole = stored.get_layout() == h5py.h5d.CONTIGUOUS and not stored.get_external_count()
    end = (dataset.id.get_offset() or 0) + wanted
    if not whole or dataset.id.get_storage_size() != wanted or end > os.stat(file.filename).st_size:
        raise ValueError(f"{name} is not stored as one block of this file")
    return dataset


def _is_of_type(name: str, dtype: np.dtype[Any]) -> bool:
    import h5py

    if name == "skipped":
        return dtype.names == ("path", "reason") and all(_is_of_type("path", dtype[part]) for part in dtype.names)
    text = h5py.check_string_dtype(dtype)
    if name in _TEXTS:
        return text is not None and text.length is None
    return re.fullmatch(ARRAYS[name], dtype.str) is not None


def _column(file: Any, name: str) -> NDArray[Any]:
    if name == "change_mark" and name not in file:  # of 0.1.0's first caches
        return np.zeros(file["label"].shape, np.int64)
    values = _dataset(file, name)[()]
    return np.array(values.tolist(), "S") if name in _TEXTS else np.asarray(values)


def _digest_of_states(columns: dict[str, NDArray[Any]], skipped: Sequence[tuple[bytes, bytes]]) -> str:
    """Return the digest of file states, content digests and skipped images, as version 1 stored it."""
    digest = hashlib.sha256(columns["sha256"].tobytes())
    for name in ("size", "mtime_ns", "change_mark", "truncated"):
        if name != "change_mark" or columns[name].any():
            digest.update(columns[name].tobytes())
    digest.update(b"".join(text + b"\0" for row in skipped for text in row))
    return digest.hexdigest()


if __name__ == "__main__":
    _main(*sys.argv[1:])

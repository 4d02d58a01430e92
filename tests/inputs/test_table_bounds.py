"""Tables made to cost more than they weigh: memory of at most 20 times their size and 64 MB, and linear time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xfeat.featurize.datasets.manifest import read_manifest
from xfeat.featurize.errors import DataError

pytestmark = pytest.mark.slow

SIZE = 4 << 20
HEADER = b"path,label\n"


def rows(row: bytes, size: int = SIZE) -> bytes:
    return HEADER + row * (size // len(row))


def numbered(row: bytes, size: int = SIZE) -> bytes:
    number = size // len(row.replace(b"%d", b"1000000"))
    return HEADER + b"".join(row.replace(b"%d", b"%d" % n) for n in range(number))


# What it is, its content, and words of the message.
TABLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "distinct rows": (lambda: numbered(b"%d.png,a\n"), "none of its images is there"),
    "distinct short rows": (lambda: numbered(b"%d,a\n", 2 * SIZE), "more than 500000 rows"),
    "distinct labels": (lambda: numbered(b"%d.png,l%d\n"), "none of its images is there"),
    "paths of another machine": (lambda: numbered(b"/data/x/%d.png,a\n"), "none of its images is there"),
    "paths of Windows": (lambda: numbered(rb"C:\data\%d.png,a" + b"\n"), "none of its images is there"),
    "folders in folders": (lambda: HEADER + b"".join(b"x/" * n + b"a,b\n" for n in range(4000)), "none of its images"),
    "the same row": (lambda: rows(b"a,b\n"), "more than 500000 rows"),
    "rows without labels": (lambda: rows(b"a\n"), "more than 500000 rows"),
    "blank lines": (lambda: rows(b"\n"), "read"),
    "rows of spaces": (lambda: rows(b" , \n"), "read"),
    "repeated headers": (lambda: rows(HEADER), "read"),
    "one line": (lambda: b"a" * SIZE, "line 1: a value is longer than 128 KiB"),
    "one long value": (lambda: HEADER + b"a" * SIZE + b",b\n", "line 2: a value is longer than 128 KiB"),
    "one long value in quotation marks": (
        lambda: HEADER + b'"' + b"a" * SIZE + b'",b\n',
        "line 2: a value is longer than 128 KiB",
    ),
    "quotation marks without end": (lambda: HEADER + b'"a,b\n' * (SIZE // 5), "line 2: wrong quotation marks"),
    "one mark without end": (
        lambda: HEADER + b'"a,b\n' + b"c,d\n" * (SIZE // 4),
        "line 2: a value is longer than 128 KiB",
    ),
    "values over many lines": (lambda: HEADER + b'"\n",' * (SIZE // 4), "line 2: a row is longer than 1 MiB"),
    "many columns in the header": (lambda: b"a," * (SIZE // 2) + b"\n", "line 1: a row has more than 16384 values"),
    "many named columns": (
        lambda: b",".join(b"c%d" % n for n in range(SIZE // 8)) + b"\n",
        "line 1: a row has more than 16384 values",
    ),
    "many columns in a row": (
        lambda: HEADER + b"ab," * (SIZE // 3) + b"\n",
        "line 2: a row has more than 16384 values",
    ),
    "many empty columns in a row": (
        lambda: HEADER + b"a,b" + b"," * SIZE + b"\n",
        "line 2: a row has more than 16384 values",
    ),
    "NULs": (lambda: HEADER + bytes(SIZE), "line 2 contains NUL bytes"),
    "NULs first": (lambda: bytes(SIZE), "contains NUL bytes"),
    "digits": (lambda: rows(b"9" * 4000 + b"," + b"9" * 4000 + b"\n"), "none of its images is there"),
    "infinite numbers": (lambda: numbered(b"%d.png,1e400\n"), "none of its images is there"),
    "UTF-16": (lambda: numbered(b"%d.png,a\n").decode().encode("utf-16"), "none of its images is there"),
    "one letter beyond 16 bits": (
        lambda: numbered(b"%d.png,a\n") + "\U0001f600.png,b\n".encode(),
        "none of its images is there",
    ),
    "Latin-1": (lambda: numbered(b"%d.png,\xe4\n"), "none of its images is there"),
    "not UTF-8": (lambda: HEADER + b"\xff" * SIZE, "line 2: a value is longer than 128 KiB"),
    "carriage returns": (lambda: rows(b"a,b\r"), "more than 500000 rows"),
}

READ = """
import pathlib, re, sys, time
from xfeat.featurize.datasets.manifest import read_manifest
from xfeat.featurize.errors import DataError
highest = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before, started = highest(), time.process_time()
try:
    read_manifest(pathlib.Path(sys.argv[1]))
    text = "read"
except DataError as error:
    text = str(error)
took = time.process_time() - started
print(highest() - before, took, text[:1000])
"""


@pytest.mark.parametrize("kind", TABLES)
def test_a_costly_table_needs_memory_and_time_in_proportion_to_its_size(tmp_path: Path, kind: str) -> None:
    make, words = TABLES[kind]
    path = tmp_path / "table.csv"
    path.write_bytes(make())
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    kilobytes, seconds, text = done.stdout.split(" ", 2)
    size, memory = path.stat().st_size, int(kilobytes) << 10
    sys.stdout.write(f"\n| {kind}, {size / 1e6:.0f} MB | {words} | {float(seconds):.1f} s | {memory / 1e6:.0f} MB |")
    assert words in text
    assert memory < 20 * size + (64 << 20)


def test_a_table_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match="1024 MB is more than the limit of 512 MB"):
        read_manifest(path)

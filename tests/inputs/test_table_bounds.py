"""Tables made to cost more than they weigh: memory of at most 20 times their size and 64 MB, and linear time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SIZE = 12 << 20
HEADER = b"path,label\n"


def rows(row: bytes, size: int = SIZE) -> bytes:
    return HEADER + row * (size // len(row))


def numbered(row: bytes, size: int = SIZE) -> bytes:
    number = size // len(row % 1_000_000)
    return HEADER + b"".join(row % n for n in range(number))


# What it is, its content, and words of the message; none if it is read.
TABLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "distinct rows": (lambda: numbered(b"%d.png,a\n"), ""),
    "distinct short rows": (lambda: numbered(b"%d,a\n"), ""),
    "distinct labels": (lambda: numbered(b"%d.png,a label that ends in N\n").replace(b"N", b""), ""),
    "the same row": (lambda: rows(b"a,b\n"), ""),
    "rows without labels": (lambda: rows(b"a\n"), ""),
    "blank lines": (lambda: rows(b"\n"), ""),
    "rows of spaces": (lambda: rows(b" , \n"), ""),
    "repeated headers": (lambda: rows(HEADER), ""),
    "one line": (lambda: b"a" * SIZE, ""),
    "one long value": (lambda: HEADER + b"a" * SIZE + b",b\n", ""),
    "one long value in quotation marks": (lambda: HEADER + b'"' + b"a" * SIZE + b'",b\n', ""),
    "quotation marks without end": (lambda: HEADER + b'"a,b\n' * (SIZE // 5), ""),
    "one mark without end": (lambda: HEADER + b'"a,b\n' + b"c,d\n" * (SIZE // 4), ""),
    "values over many lines": (lambda: HEADER + b'"\n",' * (SIZE // 4), ""),
    "many columns in the header": (lambda: b"a," * (SIZE // 2) + b"\n", ""),
    "many named columns": (lambda: b",".join(b"c%d" % n for n in range(SIZE // 8)) + b"\n", ""),
    "many columns in a row": (lambda: HEADER + b"ab," * (SIZE // 3) + b"\n", ""),
    "many empty columns in a row": (lambda: HEADER + b"a,b" + b"," * SIZE + b"\n", ""),
    "NULs": (lambda: HEADER + bytes(SIZE), ""),
    "NULs first": (lambda: bytes(SIZE), ""),
    "digits": (lambda: rows(b"9" * 4000 + b"," + b"9" * 4000 + b"\n"), ""),
    "infinite numbers": (lambda: numbered(b"%d.png,1e400\n"), ""),
    "UTF-16": (lambda: numbered(b"%d.png,a\n").decode().encode("utf-16"), ""),
    "one letter beyond 16 bits": (lambda: numbered(b"%d.png,a\n") + "\U0001f600.png,b\n".encode(), ""),
    "Latin-1": (lambda: numbered(b"%d.png,\xe4\n"), ""),
    "not UTF-8": (lambda: HEADER + b"\xff" * SIZE, ""),
    "carriage returns": (lambda: rows(b"a,b\r"), ""),
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
    size = path.stat().st_size
    sys.stdout.write(
        f"\n| {kind} | {size / 1e6:.0f} MB | {int(kilobytes) // 1024} MB | {int(kilobytes) * 1024 / size:.1f} | {float(seconds):.1f} s | {text!r:.300} {done.stderr!r:.200} |"
    )
    assert words in text
    assert int(kilobytes) * 1024 < 20 * size + (64 << 20)

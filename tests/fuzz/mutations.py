"""What can be wrong with a file: its bytes, the values of its JSON, the cells of its table."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

from google.protobuf.message import DecodeError
from hypothesis import strategies as st

Change = Callable[[random.Random, bytes, bytes], bytes]
"""Changes the content of a file; another file of the same kind is there to take parts from."""

# JSON texts, so that those are among them that no Python value becomes.
WRONG_JSON = (
    *("null", "true", "false", "0", "-1", "1", "0.5", "1e308", "5e-324", "1e400", "NaN", "-Infinity", "1" + 30 * "0"),
    *("2", "1000000000", "9007199254740993", "1e9"),
    *('""', '"text"', '"1"', '"nan"', '"\\ud800"', '"a\\u0000b"', '"../../../etc/passwd"', '"' + 70_000 * "x" + '"'),
    *("[]", '["a", "a"]', "[[1]]", "[null]", "[0.5, 0.5]", "{}", '{"a": {"b": []}}', 4_000 * "9"),
    *(100_000 * "[" + 100_000 * "]", 100_000 * '{"a":' + "1" + 100_000 * "}"),
)
WRONG_CELLS = (
    *("", " ", "nan", "NaN", "inf", "-1", "0", "1", "0.5", "1e400", "text", "None", "[]", 4_000 * "9", "1" + 30 * "0"),
    *("a\0b", '"', '""', "\n", ",", ";", "a\rb", "\udc80\udcff", "\ufeff", "../../../etc/passwd", "é", 200_000 * "x"),
)


# Bytes


def _flip(chance: random.Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _zero(chance: random.Random, content: bytes, _: bytes) -> bytes:
    start, end = _range(chance, content)
    return content[:start] + bytes(end - start) + content[end:]


def _cut_short(chance: random.Random, content: bytes, _: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def _cut_out(chance: random.Random, content: bytes, _: bytes) -> bytes:
    start, end = _range(chance, content)
    return content[:start] + content[end:]


def _double(chance: random.Random, content: bytes, _: bytes) -> bytes:
    start, end = _range(chance, content)
    return content[:end] + content[start:]


def _insert(chance: random.Random, content: bytes, _: bytes) -> bytes:
    start = chance.randrange(len(content) + 1)
    return content[:start] + chance.randbytes(chance.choice((1, 2, 4, 8, 100, 5_000))) + content[start:]


def _splice(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: chance.randrange(len(content))] + other[chance.randrange(len(other)) :]


BYTES: tuple[Change, ...] = (_flip, _flip, _zero, _cut_short, _cut_out, _double, _insert, _splice)


def _range(chance: random.Random, content: bytes) -> tuple[int, int]:
    start = chance.randrange(len(content))
    longest = chance.choice((1, 4, 16, 512, 8192, len(content)))
    return start, min(len(content), start + chance.randint(1, longest))


# JSON


def change_json(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Remove a value, replace it, put it into a list or a text, or take that of the other file."""
    document = json.loads(content)
    holder, key = chance.choice(list(_places(document)))
    value = holder[key]
    match chance.randrange(8):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [value]
        case 2:
            holder[key] = json.dumps(value)
        case 3:
            holder[key] = chance.choice([others[place] for others, place in _places(json.loads(other))])
        case 4 if isinstance(value, list) and value:
            holder[key] = chance.choice((value * 2, value[::-1], value[1:], [*value, value]))
        case _:
            marker = "\ufdd0"
            holder[key] = marker
            return json.dumps(document).replace(json.dumps(marker), chance.choice(WRONG_JSON)).encode()
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the holder and the key of every value below this one."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


# Tables


def change_table(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Change a cell, a row or a column."""
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    row, column = chance.choice(rows), chance.randrange(len(rows[0]))
    match chance.randrange(9):
        case 0:
            rows.remove(row)
        case 1:
            rows.append(row)
        case 2:
            rows = [cells[:column] + cells[column + 1 :] for cells in rows]
        case 3:
            rows = [[*cells, cells[column]] for cells in rows]
        case 4:
            row.append(chance.choice(WRONG_CELLS))
        case 5:
            chance.shuffle(rows[0])
        case _:
            row[column] = chance.choice((*WRONG_CELLS, *chance.choice(rows)))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


_UNCHANGEABLE = (ValueError, LookupError, TypeError, RecursionError, OSError, csv.Error, BadZipFile, DecodeError)


@dataclass(frozen=True)
class Mutation:
    """One to three changes that follow from a seed, of the bytes of a file or of its structure."""

    seed: int
    changes: int
    of_structure: bool

    def apply(self, content: bytes, other: bytes, structure: Change | None) -> bytes:
        """Return changed content; without a structure, of its bytes."""
        chance = random.Random(self.seed)
        for _ in range(self.changes):
            if not content:
                break
            if structure is None or not self.of_structure:
                content = chance.choice(BYTES)(chance, content, other)
                continue
            try:
                content = structure(chance, content, other)
            except _UNCHANGEABLE:  # the change before left nothing that can be changed
                break
        return content


MUTATIONS = st.builds(
    Mutation, seed=st.integers(0, 2**32 - 1), changes=st.sampled_from((1, 1, 2, 3)), of_structure=st.booleans()
)

"""Changes of files, as an attacker or a failing disk makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def edit_json(file: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))


def flip(file: Path, place: int | None = None) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    file.write_bytes(content)


def exchange(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)

"""A row of a card: one fact, in words, with the place that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from xfeat.export.card.sources import Document
from xfeat.featurize.text import printable

FILL_IN = "for you to fill in"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fact of a card.

    Attributes:
        id: by which checklists find it, such as ``data.split``; rows of several files may share one.
        label: what the fact is about.
        text: the fact in words; empty if only the author knows it.
        where: file and key that it comes from; empty without a text.
    """

    id: str
    label: str
    text: str = ""
    where: str = ""


def printable_json(value: Any) -> Any:
    """Return plain JSON types with every text printable: YAML and the eye take no control characters."""
    if isinstance(value, dict):
        return {printable(name): printable_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [printable_json(each) for each in value]
    return printable(value) if isinstance(value, str) else value


Words = Callable[[Any], str]


def fact(id: str, label: str, document: Document | None, key: str, words: Words = str) -> Iterator[Row]:
    """Yield the row of a key, if there is a document with it, and words for its value.

    Args:
        id: of the row.
        label: of the row.
        document: that has the key; ``None`` if it is missing.
        key: such as ``split.source``.
        words: from the value to a text; an empty text yields no row.
    """
    value = None if document is None else document.get(key)
    if document is None or value is None or value in ("", [], {}):
        return
    if text := words(value):
        yield row_of(document, key, id, label, text)


def row_of(document: Document, key: str, id: str, label: str, text: str) -> Row:
    """Return a row of what a document says under a key."""
    return Row(id=id, label=label, text=text, where=document.at(key))


def blanks(**labels: str) -> list[Row]:
    """Return rows that only the author can fill in."""
    return [Row(id=f"author.{name}", label=label) for name, label in labels.items()]

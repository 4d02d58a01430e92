"""Checklists of reporting guidelines: which rows of a card answer which item, and what is left to the author."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xfeat.export.card.rows import FILL_IN, Row

FILLED, PARTLY, NOT_APPLICABLE = "filled", "partly", "not applicable"
_MOST_ROWS = 3  # of one kind in an item; the card has all


@dataclass(frozen=True)
class Item:
    """An item of a checklist, and what can be measured of it.

    Attributes:
        number: in the guideline.
        section: of the guideline.
        words: what it asks for, in our own words.
        rows: the rows of a card that answer it: all of them together; none if only the author can.
        also: rows that answer a part of it.
        rest: what only the author can add, although the rows are there; then it is never ``filled``.
        not_applicable: why it cannot apply to any model of this project.
    """

    number: str
    section: str
    words: str
    rows: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    rest: str = ""
    not_applicable: str = ""


@dataclass(frozen=True)
class Checklist:
    """A reporting guideline.

    Attributes:
        file: that is written.
        name: for readers.
        source: the paper.
        items: in its order.
    """

    file: str
    name: str
    source: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Answer:
    """An item as far as it is answered.

    Attributes:
        number, section, words: of the item.
        status: ``filled``, ``partly``, ``for you to fill in`` or ``not applicable``.
        text: what was measured, or why it does not apply.
        where: the places of what was measured.
        rest: what is left to the author.
    """

    number: str
    section: str
    words: str
    status: str
    text: str
    where: list[str]
    rest: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def answers(checklist: Checklist, rows: Iterable[Row]) -> list[Answer]:
    """Answer every item of a checklist with the rows of a card."""
    known: dict[str, list[Row]] = {}
    for row in rows:
        if row.text:
            known.setdefault(row.id, []).append(row)
    return [_answer(item, known) for item in checklist.items]


def _answer(item: Item, known: dict[str, list[Row]]) -> Answer:
    if item.not_applicable:
        return _as(item, NOT_APPLICABLE, item.not_applicable, [], "")
    found = [row for id in (*item.rows, *item.also) for row in known.get(id, [])]
    if not found:
        return _as(item, FILL_IN, "", [], "")
    complete = item.rows and all(id in known for id in item.rows)
    texts = []
    for id in dict.fromkeys(row.id for row in found):
        texts += [f"{row.label}: {row.text}" if row.label else row.text for row in known[id][:_MOST_ROWS]]
        if (more := len(known[id]) - _MOST_ROWS) > 0:
            texts.append(f"{more} more in the card")
    where = list(dict.fromkeys(row.where for row in found if row.where))
    if complete and not item.rest:
        return _as(item, FILLED, "; ".join(texts), where, "")
    return _as(item, PARTLY, "; ".join(texts), where, item.rest or "the rest of this item")


def _as(item: Item, status: str, text: str, where: list[str], rest: str) -> Answer:
    return Answer(item.number, item.section, item.words, status, text, where, rest)

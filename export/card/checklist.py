"""Checklists of reporting guidelines: which rows of a card answer which item, and what is left to the author.

The items are in one table per guideline beside this file, in our own words.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self

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

    @classmethod
    def read(cls, name: str, source: str, stem: str) -> Self:
        """Read the items of a guideline from the table of that name; rows of cards are separated by spaces."""
        table = (resources.files(__package__) / f"{stem}.csv").read_text(encoding="utf-8")
        rows: list[dict[str, Any]] = [*csv.DictReader(table.splitlines())]
        items = [Item(**row | {name: tuple(row[name].split()) for name in ("rows", "also")}) for row in rows]
        return cls(f"{stem}.md", name, source, items)


CLAIM = Checklist.read(
    "CLAIM 2024",
    "Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, "
    "Radiology: Artificial Intelligence 2024;6(4):e240300, doi:10.1148/ryai.240300",
    "claim-2024",
)
TRIPOD = Checklist.read(
    "TRIPOD+AI", "Collins et al., TRIPOD+AI statement, BMJ 2024;385:e078378, doi:10.1136/bmj-2023-078378", "tripod-ai"
)


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


def answers(checklist: Checklist, rows: Iterable[Row]) -> list[Answer]:
    """Answer every item of a checklist with the rows of a card."""
    known: dict[str, list[Row]] = {}
    for row in rows:
        if row.text:
            known.setdefault(row.id, []).append(row)
    return [_answer(item, known) for item in checklist.items]


def _answer(item: Item, known: dict[str, list[Row]]) -> Answer:
    status, rest, texts, where = FILL_IN, "", [], dict[str, None]()
    found = [id for id in dict.fromkeys((*item.rows, *item.also)) if id in known]
    if item.not_applicable:
        status, texts = NOT_APPLICABLE, [item.not_applicable]
    elif found:
        complete = item.rows and known.keys() >= set(item.rows)
        status, rest = (PARTLY, item.rest or "the rest of this item") if item.rest or not complete else (FILLED, "")
        for rows in (known[id] for id in found):
            texts += [f"{row.label}: {row.text}" if row.label else row.text for row in rows[:_MOST_ROWS]]
            if len(rows) > _MOST_ROWS:
                texts.append(f"{len(rows) - _MOST_ROWS} more in the card")
            where |= dict.fromkeys(row.where for row in rows if row.where)
    return Answer(item.number, item.section, item.words, status, "; ".join(texts), list(where), rest)

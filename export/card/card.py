"""The card as data: what Markdown, HTML, JSON and the ML-BOM are written from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from xfeat.export.card.checklist import CLAIM, TRIPOD, Answer, Checklist, answers
from xfeat.export.card.figures import Metric, metrics
from xfeat.export.card.limitations import limitations
from xfeat.export.card.rows import Row
from xfeat.export.card.sections import Section, sections
from xfeat.export.card.sources import Sources
from xfeat.featurize.errors import RunError
from xfeat.featurize.pages.titles import classes_text
from xfeat.featurize.text import listed

FORMAT = "xfeat.card"
SCHEMA_VERSION = 1
CHECKLISTS = (CLAIM, TRIPOD)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What there is to say of a model.

    Attributes:
        sources: the documents that it comes from.
        license: of the model, as Hugging Face names it, or ``None``: the author has not said.
        sections: the facts.
        limitations: that follow from them.
        metrics: the figures among the facts.
        checklists: each guideline with an answer per item.
    """

    sources: Sources
    license: str | None
    sections: list[Section]
    limitations: list[Row]
    metrics: list[Metric]
    checklists: list[tuple[Checklist, list[Answer]]]

    @property
    def name(self) -> str:
        """The name of the model: that of its run."""
        return self.sources.metadata.run

    @property
    def title(self) -> str:
        """What the model tells apart, such as ``covid against normal``."""
        return classes_text(self.sources.metadata.class_names, self.sources.metadata.positive)

    @property
    def created(self) -> str:
        """When the model was exported, ISO 8601; empty without a certificate. The card has no time of its own."""
        certificate = self.sources.certificate
        return str(certificate.get("created")) if certificate else ""

    @property
    def left_to_fill_in(self) -> list[str]:
        """What only the author can say."""
        return [row.label for section in self.sections for row in section.rows if not row.text]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of card.json."""
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "title": self.title,
            "created": self.created,
            "model_sha256": self.sources.sha256,
            "license": self.license,
            "sources": [document.name for document in self.sources.documents],
            "sections": [asdict(section) for section in self.sections],
            "limitations": [{"text": row.text, "where": row.where} for row in self.limitations],
            "metrics": [asdict(metric) for metric in self.metrics],
            "checklists": {checklist.name: [*map(asdict, found)] for checklist, found in self.checklists},
            "for_you_to_fill_in": self.left_to_fill_in,
        }


def make_card(sources: Sources, license: str | None) -> Card:
    """Gather a card from its sources.

    Raises:
        RunError: if one of them is damaged: those of version 0.1 have no digest that would have shown it.
    """
    try:
        return _gathered(sources, license)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunError(
            "a file that the card is made from is damaged",
            expected=f"one of {listed(document.name for document in sources.documents)}, as it was written",
            found=f"{type(error).__name__}: {error}",
            fix="make it again, or leave it out of --eval",
        ) from error


def _gathered(sources: Sources, license: str | None) -> Card:
    parts, limits = sections(sources, license), limitations(sources)
    rows = [*(row for section in parts for row in section.rows), *limits]
    return Card(
        sources=sources,
        license=license,
        sections=parts,
        limitations=limits,
        metrics=metrics(sources),
        checklists=[(checklist, answers(checklist, rows)) for checklist in CHECKLISTS],
    )

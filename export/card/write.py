"""Writes the card of a model into a folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xfeat.export.card.bom import DISTRIBUTION, bill_of_materials
from xfeat.export.card.card import Card, make_card
from xfeat.export.card.markdown import card_page, checklist_page, counts_of
from xfeat.export.card.rows import FILL_IN, printable_json
from xfeat.export.card.sources import read_sources
from xfeat.export.publish import publish
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.errors import OutputError
from xfeat.featurize.pages.templates import page_environment
from xfeat.featurize.specs import require
from xfeat.featurize.typed_json import parse_json, require_unchanged, with_digest

CARD_FILE = "card.json"
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclass(frozen=True, kw_only=True)
class WrittenCard:
    """The files of a card.

    Attributes:
        files: README.md, card.html, card.json, the checklists and bom.cdx.json.
        card: their content.
    """

    files: list[Path]
    card: Card

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"files": [str(file) for file in self.files], **self.card.to_dict()}

    @property
    def lines(self) -> list[str]:
        """What was written, and how much of it, for a terminal."""
        lines = [f"{checklist.name}: {counts_of(found)}" for checklist, found in self.card.checklists]
        return [*lines, f"{len(self.card.left_to_fill_in)} parts of the card are {FILL_IN}", *map(str, self.files)]


def write_card(
    model: Path, output: Path, *, run: Path | None, evaluations: Sequence[Path], license: str | None
) -> WrittenCard:
    """Write the card of a model: the same files for the same sources, bit by bit.

    Args:
        model: a file of ``xexport onnx``.
        output: the folder; files of an earlier card are replaced, others stay.
        run: of the model; ``None`` looks for it.
        evaluations: folders of ``xhead eval`` and ``xhead crossval``.
        license: of the model, such as ``apache-2.0``.

    Raises:
        SpecError: if the license is no identifier.
        XfeatError: as :func:`xfeat.export.card.sources.read_sources` says.
        OutputError: if the folder cannot be written, or has files of these names that were written or edited by hand.
    """
    valid = license is None or _LICENSE.fullmatch(license) is not None
    require(valid, "not the identifier of a license", expected="one such as apache-2.0 or cc-by-nc-4.0", found=license)
    card = make_card(read_sources(model, run, evaluations), license)
    contents = contents_of(card)
    _require_ours(output, contents)
    files = [output / name for name in contents]
    with publish(files) as folder:
        for name, text in contents.items():
            (folder / name).write_bytes(_bytes(text))
    return WrittenCard(files=files, card=card)


def contents_of(card: Card) -> dict[str, str]:
    """Return the text of each file of a card, by name."""
    texts = {
        "README.md": card_page(card),
        "card.html": _html(card),
        **{each.file: checklist_page(each, found, card.title) for each, found in card.checklists},
        "bom.cdx.json": _json(bill_of_materials(card)),
    }
    digests = {name: hashlib.sha256(_bytes(text)).hexdigest() for name, text in texts.items()}
    return {**texts, CARD_FILE: _json(with_digest(printable_json({**card.to_dict(), "file_sha256": digests})))}


def _require_ours(output: Path, names: Iterable[str]) -> None:
    """Refuse to replace files that were written or edited by hand: the author fills in what nobody measured."""
    try:
        known = parse_json((output / CARD_FILE).read_bytes())
        require_unchanged(known)
        digests = {**known["file_sha256"], CARD_FILE: None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        digests = {}
    for name in names:
        file = output / name
        if file.is_file() and (name not in digests or digests[name] not in (None, sha256_of(file))):
            raise OutputError(
                "this file was not written by xexport card, or was edited since: it would be lost",
                path=file,
                fix="choose another folder with -o, or move the file",
            )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _json(content: dict[str, Any]) -> str:
    return json.dumps(printable_json(content), indent=1, ensure_ascii=False) + "\n"


def _html(card: Card) -> str:
    return (
        page_environment(("xfeat.export.card", "."))
        .get_template("card.html")
        .render(
            title=card.title,
            card=card,
            counts_of=counts_of,
            fill_in=FILL_IN,
            spec_line=card.sources.metadata.feature_spec.describe(),
            version=version(DISTRIBUTION),
        )
    )

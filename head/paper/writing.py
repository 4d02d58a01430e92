"""Writes the figures and the methods section of a paper into a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xfeat.featurize.system.atomic import replacing
from xfeat.head.paper.figures import STEMS, paper_figures
from xfeat.head.paper.material import open_material
from xfeat.head.paper.methods import methods_text
from xfeat.head.reports.canvas import FORMATS, save_figure

METHODS_FILE, LIST_FILE = "methods.md", "figures.json"


@dataclass(frozen=True, kw_only=True)
class FigureFiles:
    """A written figure: its name, the names of its files, and its caption."""

    name: str
    files: list[str]
    caption: str


@dataclass(frozen=True, kw_only=True)
class PaperFiles:
    """What was written.

    Attributes:
        folder: of all files.
        result: the run, cross-validation or external test.
        figures: each as SVG, PDF and PNG.
        methods: name of the file with the methods section and the captions.
        notes: what could not be drawn, and why.
    """

    folder: Path
    result: Path
    figures: list[FigureFiles]
    methods: str
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {**asdict(self), "folder": str(self.folder), "result": str(self.result)}


def write_paper(result: Path, folder: Path, features: Path | None = None) -> PaperFiles:
    """Write the figures of a run, a cross-validation or an external test, methods.md and figures.json.

    Files of these names are replaced, and figures of an earlier result that this one does not have are removed. Others
    in the folder stay.

    Raises:
        RunError, CacheError, MismatchError: as :func:`xfeat.head.paper.material.open_material` says.
        OutputError: if a file cannot be written.
    """
    material = open_material(result, features)
    drawn, notes = paper_figures(material)
    written = []
    for figure in drawn:
        files, missing = save_figure(figure.drawing, folder, figure.stem)
        written.append(FigureFiles(name=figure.stem, files=files, caption=figure.caption))
        if missing:
            notes.append(
                f"{figure.stem}: no font of this machine has {missing}, boxes in PDF and PNG; the SVG has the text"
            )
    done = PaperFiles(folder=folder, result=result, figures=written, methods=METHODS_FILE, notes=notes)
    _write(folder / METHODS_FILE, methods_text(material, {each.name: each.caption for each in written}))
    _write(folder / LIST_FILE, json.dumps(done.to_dict(), indent=2, ensure_ascii=False) + "\n")
    for stale in _files_of({*STEMS} - {each.name for each in written}):
        with suppress(FileNotFoundError):
            (folder / stale).unlink()
    return done


def _files_of(stems: set[str]) -> Iterator[str]:
    for stem in sorted(stems):
        yield from (f"{stem}.{kind}" for kind in FORMATS)


def _write(file: Path, text: str) -> None:
    with replacing(file, elsewhere="choose another folder with --figures") as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")

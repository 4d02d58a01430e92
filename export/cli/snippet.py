"""The command ``xexport snippet``."""

from __future__ import annotations

from pathlib import Path

import click

import xfeat
from xfeat.export.cli.options import model_argument
from xfeat.export.specs import SNIPPET_LANGUAGES
from xfeat.featurize.console import PATH, Printed, json_option


@click.command()
@model_argument
@click.option(
    "--lang", "language", type=click.Choice(SNIPPET_LANGUAGES), default="python", help="js is for Node; cpp is C++17."
)
@click.option("-o", "--output", type=PATH, help="File to write.  [default: print it]")
@json_option
def snippet(model: Path, language: str, output: Path | None) -> Printed:
    """Write a program that classifies image files with MODEL, without xfeat.

    It is for that very model: its classes and threshold, and the pixels it was trained on (16-bit images, EXIF
    orientation, transparency, palettes). What the language cannot read as in training is refused.
    """
    text = xfeat.write_snippet(model, language)
    content = {"model": str(model), "language": language}
    if output is None:
        return {**content, "text": text}, text.splitlines()
    from xfeat.featurize.system.atomic import replacing

    with replacing(output) as partial:
        partial.write_text(text, encoding="utf-8")
    return {**content, "output": str(output)}, [f"{output} written"]

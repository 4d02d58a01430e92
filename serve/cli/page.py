"""``xserve page``: the static site."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import xfeat
from xfeat.featurize.console import Printed, json_option
from xfeat.serve.cli.options import model_option


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to write the site to.",
)
@model_option
@click.option(
    "--runtime",
    type=click.Path(path_type=Path, exists=True),
    help="The npm package onnxruntime-web: the archive from npm pack, or the folder it unpacks to.  [default: fetched "
    "once with npm]",
)
@json_option
def page(output: Path, model: Path, runtime: Path | None) -> Printed:
    """Write a web page that runs the model in the browser: a folder for any file server, without xserve.

    The page needs the full model, not the core model. Images never leave the computer on which the page is open.
    """
    sizes = xfeat.write_page(model, output, runtime=runtime)
    size = sum(sizes.values())
    result = {"output": str(output), "model": str(model), "files": len(sizes), "bytes": size}
    return result, [
        f"{output}: {len(sizes)} files, {size / 1e6:.1f} MB",
        f"to open it: {shlex.join(['python', '-m', 'http.server', '-d', str(output)])}",
    ]

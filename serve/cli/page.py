"""``xserve page``: the page without a server."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import xfeat
from xfeat.featurize.console import PATH, Printed, json_option, progress_bars
from xfeat.serve.cli.options import model_option


@click.command()
@click.option(
    "-o", "--output", type=PATH, required=True, help="Folder to write the site to; with --single, the file (.html)."
)
@click.option("--single", is_flag=True, help="Write one HTML file that opens with a double click, without a server.")
@model_option
@click.option(
    "--runtime",
    type=click.Path(path_type=Path, exists=True),
    help="Folder with the two files of onnxruntime-web, or its npm package.  [default: downloaded once]",
)
@json_option
def page(output: Path, single: bool, model: Path, runtime: Path | None) -> Printed:
    """Write a web page that runs the model in the browser, without xserve: a folder for any file server, or one file.

    The page needs the full model, not the core model. Images never leave the computer on which the page is open.
    """
    with progress_bars() as progress:
        sizes = xfeat.write_page(model, output, single=single, runtime=runtime, progress=progress)
    size = sum(sizes.values())
    result = {"output": str(output), "model": str(model), "files": len(sizes), "bytes": size}
    if single:
        return result, [f"{output}: {size / 1e6:.1f} MB", "to open it: double-click it; it needs no connection"]
    return result, [
        f"{output}: {len(sizes)} files, {size / 1e6:.1f} MB",
        f"to open it: {shlex.join(['python', '-m', 'http.server', '-d', str(output)])}",
    ]

"""The command ``xserve``, with one file per subcommand. Each parses, calls one library function and prints."""

from __future__ import annotations

import click

from xfeat.featurize.console import Commands
from xfeat.serve.cli.page import page
from xfeat.serve.cli.predict import predict
from xfeat.serve.cli.settings import name_environment
from xfeat.serve.cli.start import start


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat-onnx")
def main() -> None:
    """Classify images with an exported model: on the command line, over HTTP and on a web page."""


name_environment(start)
for command in (page, predict, start):
    main.add_command(command)

"""The command ``xhead``: a file per command. Each parses, calls one library function and prints."""

from __future__ import annotations

import click

from xfeat.featurize.console import Commands
from xfeat.head.cli.compare import compare
from xfeat.head.cli.crossval import crossval
from xfeat.head.cli.evaluate import evaluate
from xfeat.head.cli.sweep import sweep
from xfeat.head.cli.train import train


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat-onnx")
def main() -> None:
    """Train small classifiers on cached features, in seconds."""


for command in (compare, crossval, evaluate, sweep, train):
    main.add_command(command)

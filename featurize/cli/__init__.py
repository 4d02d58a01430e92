"""The command ``xfeat``: one file per command. Each parses, calls one library function and prints."""

from __future__ import annotations

import click

from xfeat.featurize.cli.audit import audit
from xfeat.featurize.cli.featurize import featurize
from xfeat.featurize.cli.inspect import info, verify
from xfeat.featurize.cli.split import split
from xfeat.featurize.console import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat-onnx")
def main() -> None:
    """Run a frozen EfficientNet over images once and store the features in one HDF5 file."""


for command in (audit, featurize, info, split, verify):
    main.add_command(command)

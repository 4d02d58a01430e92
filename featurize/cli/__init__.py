"""The command ``xfeat``: one file per command. Each parses, calls one library function and prints."""

from __future__ import annotations

from xfeat.featurize.cli.audit import audit
from xfeat.featurize.cli.doctor import doctor
from xfeat.featurize.cli.exchange import dump, load
from xfeat.featurize.cli.featurize import featurize
from xfeat.featurize.cli.inspect import info, verify
from xfeat.featurize.cli.split import split
from xfeat.featurize.console import program

main = program(
    "Run a frozen EfficientNet over images once and store the features in one HDF5 file.",
    *(audit, doctor, dump, featurize, info, load, split, verify),
)

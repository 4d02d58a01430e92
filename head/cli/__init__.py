"""The command ``xhead``: a file per command. Each parses, calls one library function and prints."""

from __future__ import annotations

from xfeat.featurize.console import program
from xfeat.head.cli.compare import compare
from xfeat.head.cli.crossval import crossval
from xfeat.head.cli.evaluate import evaluate
from xfeat.head.cli.report import report
from xfeat.head.cli.sweep import sweep
from xfeat.head.cli.train import train

main = program(
    "Train small classifiers on cached features, in seconds.", *(compare, crossval, evaluate, report, sweep, train)
)

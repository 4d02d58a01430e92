"""The command ``xserve``, with one file per subcommand. Each parses, calls one library function and prints."""

from __future__ import annotations

from xfeat.featurize.console import program
from xfeat.serve.cli.evaluate import evaluate
from xfeat.serve.cli.page import page
from xfeat.serve.cli.predict import predict
from xfeat.serve.cli.start import start

main = program(
    "Classify images with an exported model: on the command line, over HTTP and on a web page.",
    *(evaluate, page, predict, start),
)

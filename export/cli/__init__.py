"""The command ``xexport``: one file per command. Each parses, calls one library function and prints."""

from __future__ import annotations

from xfeat.export.cli.bench import bench
from xfeat.export.cli.card import card
from xfeat.export.cli.explain import explain
from xfeat.export.cli.export import onnx
from xfeat.export.cli.inspect import info
from xfeat.export.cli.quantize import quantize
from xfeat.export.cli.sign import sign
from xfeat.export.cli.snippet import snippet
from xfeat.export.cli.triton import triton
from xfeat.export.cli.verify import verify
from xfeat.featurize.console import program

main = program(
    "Turn a trained run into one ONNX file that is checked against the trained model.",
    *(bench, card, explain, info, onnx, quantize, sign, snippet, triton, verify),
)

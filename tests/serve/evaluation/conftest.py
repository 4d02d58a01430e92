"""Drawn images of three classes, and small ONNX classifiers as others write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.serve.conftest import BIAS, CLASSES, WEIGHTS
from xfeat.serve.cli import main

SIDE = 32
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COLOURS = {"covid": (220, 60, 60), "normal": (60, 200, 60), "pneumonia": (70, 90, 210)}


@pytest.fixture
def xserve() -> Callable[..., Result]:
    """The command, in this process."""
    return lambda *args: CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of one colour a class, near enough to those of other classes that some are mistaken."""
    folder, rng = tmp_path_factory.mktemp("labelled") / "data", np.random.default_rng(3)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(12):
            shade = np.clip(np.array(colour) + rng.normal(0, 70, 3), 0, 255).astype(np.uint8)
            Image.new("RGB", (40, 44), tuple(map(int, shade))).save(folder / name / f"{number}.png")
    rows = [f"{name}/{number}.png,{name}-{number // 3}" for name in COLOURS for number in range(12)]
    (folder / "groups.csv").write_text("path,group\n" + "\n".join(rows) + "\n")
    return folder


def write_foreign(
    path: Path,
    *,
    layout: str = "NCHW",
    kind: int = TensorProto.FLOAT,
    shape: list[Any] | None = None,
    softmax: bool = False,
    last: str = "",
    classes: int = 3,
    batch: int | str = "N",
    spatial: bool = False,
    twice: bool = False,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Path:
    """Write the tiny model as another tool would: normalised input, no metadata.

    The mean of each channel is brought back to 0..1, times WEIGHTS, plus BIAS; ``softmax`` or an operator may follow.
    """
    last = "Softmax" if softmax else last
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    sides = [SIDE, SIDE]
    shape = shape or ([batch, 3, *sides] if layout == "NCHW" else [batch, *sides, 3])
    is_levels = kind == TensorProto.UINT8
    constants = {
        "axes": np.array(axes),
        "std": np.array([1 / 255] * 3 if is_levels else std, np.float32),
        "mean": np.array([0] * 3 if is_levels else mean, np.float32),
        "weights": WEIGHTS[:, :classes],
        "bias": BIAS[:classes],
        "last": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "std"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sums"]),
        helper.make_node(last or "Identity", ["sums"], ["flat"], **({"axis": 1} if softmax else {})),
        helper.make_node("Unsqueeze" if spatial else "Identity", ["flat", "last"] if spatial else ["flat"], ["scores"]),
    ]
    outputs = [("scores", [batch, classes, *([1, 1] if spatial else [])])]
    if twice:
        nodes.append(helper.make_node("Identity", ["sums"], ["raw"]))
        outputs.append(("raw", [batch, classes]))
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model; keyword arguments of :func:`write_foreign`."""
    return partial(write_foreign, tmp_path / "foreign.onnx")


DESCRIBED = (*("--classes", ",".join(CLASSES), "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))),)

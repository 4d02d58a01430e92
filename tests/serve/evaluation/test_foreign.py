"""Classifiers that others wrote: measured when they are described, and refused when the description does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper

from tests.serve.conftest import CLASSES, reference_probabilities
from tests.serve.evaluation.conftest import DESCRIBED, MEAN, SIDE, STD
from tests.serve.evaluation.test_evaluate import Xserve, answer, table

Foreign = Callable[..., Path]
NAMED = ("--classes", ",".join(CLASSES))

FORMS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "probabilities": ({"softmax": True}, DESCRIBED),
    "logits": ({}, (*DESCRIBED, "--softmax")),
    "channels last": ({"layout": "NHWC"}, (*DESCRIBED, "--softmax")),
    "free sides": ({"shape": ["N", 3, "H", "W"]}, (*DESCRIBED, "--softmax", "--size", SIDE)),
    "all axes free": ({"shape": ["N", "C", "H", "W"]}, (*DESCRIBED, "--softmax", "--size", SIDE, "--layout", "NCHW")),
    "all axes free, channels last": (
        {"layout": "NHWC", "shape": ["N", "H", "W", "C"]},
        (*DESCRIBED, "--softmax", "--size", SIDE, "--layout", "NHWC"),
    ),
    "batches of one": ({"batch": 1}, (*DESCRIBED, "--softmax")),
    "batches of five": ({"batch": 5}, (*DESCRIBED, "--softmax")),
    "uint8": ({"kind": TensorProto.UINT8}, (*NAMED, "--softmax")),
    "half precision": ({"kind": TensorProto.FLOAT16}, (*DESCRIBED, "--softmax")),
    "a map of one pixel": ({"spatial": True}, (*DESCRIBED, "--softmax")),
    "two outputs": ({"twice": True}, (*DESCRIBED, "--softmax", "--output-name", "raw")),
    "one number for three": (
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        (*NAMED, "--mean", 0.5, "--std", 0.5, "--softmax"),
    ),
    "pixels of 0 to 255": (
        {"mean": (0.0,) * 3, "std": (1 / 255,) * 3},
        (*NAMED, "--mean", 0, "--std", 1 / 255, "--softmax"),
    ),
}


def rows_of(path: Path) -> dict[str, np.ndarray]:
    return {row["path"]: np.array([float(row[f"p_{name}"]) for name in CLASSES]) for row in table(path)}


@pytest.mark.parametrize("form", FORMS)
def test_a_described_model_gives_its_probabilities(
    xserve: Xserve, foreign: Foreign, data: Path, tmp_path: Path, form: str
) -> None:
    from PIL import Image

    how, options = FORMS[form]
    said = answer(xserve("eval", foreign(**how), data, *options, "-o", tmp_path / "p.csv", "--json"))
    assert said["images"] == 36
    for path, found in rows_of(tmp_path / "p.csv").items():
        colour = Image.open(data / path).getpixel((0, 0))
        tolerance = 5e-3 if form == "half precision" else 1e-5
        np.testing.assert_allclose(found, reference_probabilities(colour), atol=tolerance)


def test_it_can_be_described_in_a_file(xserve: Xserve, foreign: Foreign, data: Path, tmp_path: Path) -> None:
    described = {"classes": CLASSES, "mean": MEAN, "std": STD, "softmax": True, "positive": "covid", "threshold": 0.4}
    (tmp_path / "m.json").write_text(json.dumps(described))
    said = answer(xserve("eval", foreign(), data, "--metadata", tmp_path / "m.json", "--json"))
    assert (said["positive"], said["threshold"]) == ("covid", pytest.approx(0.4))
    by_options = answer(xserve("eval", foreign(), data, *DESCRIBED, "--softmax", "--json"))
    assert said["metrics"] == by_options["metrics"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "not an object"),
        ('{"klasses": ["a", "b"]}', "unknown setting of ClassifierSpec: klasses"),
        ('{"classes": ["a", "a"]}', "stands twice"),
        ('{"classes": "a,b"}', "has another type"),
        ('{"mean": [0, 0, 0]}', "need each other"),
        ('{"size": "224"}', "has another type"),
    ],
)
def test_a_file_that_describes_nothing(
    xserve: Xserve, foreign: Foreign, data: Path, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "m.json").write_text(content)
    done = xserve("eval", foreign(), data, "--metadata", tmp_path / "m.json")
    assert (done.exit_code, words in done.stderr, str(tmp_path / "m.json") in done.stderr) == (1, True, True), (
        done.stderr
    )


REFUSED: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "nothing is known": ({}, (), "the model has no xfeat metadata"),
    "no classes": ({}, ("--softmax",), "--classes A,B"),
    "too few classes": ({}, ("--classes", "a,b", "--mean", 0, "--std", 1), "the model has no such output"),
    "too many classes": ({}, ("--classes", "a,b,c,d", "--mean", 0, "--std", 1), "the model has no such output"),
    "one class": ({}, ("--classes", "a", "--mean", 0, "--std", 1), "too few classes"),
    "not normalised": ({}, (*NAMED, "--softmax"), "--mean and --std, of pixels from 0 to 1"),
    "normalised twice": ({"kind": TensorProto.UINT8}, (*DESCRIBED, "--softmax"), "leave out --mean and --std"),
    "half of it": ({}, (*NAMED, "--mean", 0.5), "--mean and --std need each other"),
    "logits": ({}, DESCRIBED, "add --softmax if they are logits"),
    "softmax twice": ({"softmax": True}, (*DESCRIBED, "--softmax"), "leave out --softmax"),
    "sigmoids": ({"last": "Sigmoid"}, DESCRIBED, "measure the logits before the sigmoids, with --softmax"),
    "another size": ({}, (*DESCRIBED, "--size", 64), "images of another size"),
    "no size": ({"shape": ["N", 3, "H", "W"]}, DESCRIBED, "--size PIXELS"),
    "not square": ({"shape": ["N", 3, 32, 48]}, DESCRIBED, "images of another size"),
    "axes unknown": ({"shape": ["N", "C", "H", "W"]}, (*DESCRIBED, "--size", 32), "--layout NCHW or NHWC"),
    "grey": ({"shape": ["N", 1, "H", "W"]}, (*DESCRIBED, "--size", 32), "no images of 3 channels"),
    "the other layout": ({}, (*DESCRIBED, "--layout", "NHWC"), "no images of 3 channels"),
    "whole numbers": ({"kind": TensorProto.INT64}, DESCRIBED, "does not take images"),
    "five axes": ({"shape": ["N", 3, 32, 32, 1]}, DESCRIBED, "does not take images"),
    "two outputs": ({"twice": True}, DESCRIBED, "name one with --output-name"),
    "no such output": ({}, (*DESCRIBED, "--output-name", "other"), "the model has no such output"),
    "crop out of range": ({}, (*DESCRIBED, "--crop", 0.7), "crop out of range"),
    "mean of 0 to 255": ({}, (*NAMED, "--mean", 127, "--std", 1), "mean out of range"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_fix(xserve: Xserve, foreign: Foreign, data: Path, case: str) -> None:
    how, options, words = REFUSED[case]
    done: Result = xserve("eval", foreign(**how), data, *options)
    assert (done.exit_code in (1, 2), words in done.stderr) == (True, True), done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(("last", "warns"), [("Sigmoid", True), ("HardSigmoid", True), ("", False), ("Tanh", False)])
def test_a_softmax_of_what_may_be_probabilities_is_doubted_once(
    xserve: Xserve, foreign: Foreign, data: Path, caplog: pytest.LogCaptureFixture, last: str, warns: bool
) -> None:
    answer(xserve("eval", foreign(last=last), data, *DESCRIBED, "--softmax", "--batch-size", 5, "--json"))
    assert caplog.text.count("all outputs lie between 0 and 1: are they probabilities already?") == warns


def test_a_model_of_this_project_is_not_described(xserve: Xserve, model: Path, data: Path) -> None:
    done = xserve("eval", model, data, *DESCRIBED)
    assert (done.exit_code, "describes itself" in done.stderr) == (1, True)


def test_what_is_no_onnx_file_or_no_classifier_is_refused(xserve: Xserve, data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    for name, words in (
        ("text.onnx", "not a model that onnxruntime can read"),
        ("a.onnx", "does not take images"),
        ("b.onnx", "model not found"),
    ):
        done = xserve("eval", tmp_path / name, data, *DESCRIBED)
        assert (done.exit_code, words in done.stderr) == (1, True), done.output
        assert "written by xexport" not in done.stderr


def test_outputs_that_are_no_numbers_are_skipped(xserve: Xserve, foreign: Foreign, data: Path) -> None:
    path = foreign()
    proto = onnx.load(path)
    [bias] = [weight for weight in proto.graph.initializer if weight.name == "bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.inf, np.float32), "bias"))
    onnx.save(proto, path)
    for options in ((), ("--softmax",)):
        done = xserve("eval", path, data, *DESCRIBED, *options)
        assert (done.exit_code, "the model returned NaN or infinity" in done.stderr) == (1, True), done.output

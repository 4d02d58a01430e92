"""Which ONNX files are encoders: each kind of file is right, or one message says what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tests.featurize.encoders import graphs
from tests.featurize.encoders.graphs import (
    CLASS_TOKEN,
    DIM,
    FLOAT16,
    INT64,
    MAP,
    REGISTERS,
    SIDE,
    TOKENS,
    UINT8,
    VECTOR,
    constant,
    encoder,
    external,
    node,
)
from xfeat.featurize.backbones.encoder_data import encoder_sha256
from xfeat.featurize.backbones.encoder_file import inspect_encoder
from xfeat.featurize.encoders.find import find_encoder
from xfeat.featurize.encoders.settings import encoder_spec
from xfeat.featurize.engines import open_engine
from xfeat.featurize.errors import ModelError, SpecError, WeightsError
from xfeat.featurize.specs import FeatureRequest

Make = Callable[[Path], Path]
FREE = ("N", 3, "h", "w")
MEAN, STD = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)


def _initializers_are_inputs(model: onnx.ModelProto) -> None:
    """As files of IR version 3 have it."""
    del model.opset_import[1:]
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _with_softmax(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Softmax", "vector", "probabilities", axis=1))


# Name: how it is written; request; kind, grid, prefix tokens, batch, side.
RIGHT: dict[str, tuple[Make, dict[str, Any], tuple[Any, ...]]] = {
    "vector": (lambda path: encoder(path, VECTOR, "vector"), {}, ("vector", None, 0, None, SIDE)),
    "map": (lambda path: encoder(path, MAP, "map"), {}, ("map", (4, 4), 0, None, SIDE)),
    "tokens": (lambda path: encoder(path, TOKENS, "tokens"), {"pooling": "mean"}, ("tokens", (4, 4), 0, None, SIDE)),
    "class token, cls": (
        lambda path: encoder(path, CLASS_TOKEN, "all"),
        {"pooling": "cls"},
        ("tokens", (4, 4), 1, None, SIDE),
    ),
    "class token, mean": (
        lambda path: encoder(path, CLASS_TOKEN, "all"),
        {"pooling": "mean"},
        ("tokens", (4, 4), 1, None, SIDE),
    ),
    "registers": (
        lambda path: encoder(path, REGISTERS, "all"),
        {"pooling": "mean"},
        ("tokens", (4, 4), 3, None, SIDE),
    ),
    "any size": (lambda path: encoder(path, MAP, "map", image=FREE), {"size": 40}, ("map", (5, 5), 0, None, None)),
    "no names of axes": (
        lambda path: encoder(path, VECTOR, "vector", image=(None, None, None, None)),
        {"size": 48},
        ("vector", None, 0, None, None),
    ),
    "batch of 1": (
        lambda path: encoder(path, VECTOR, "vector", image=(1, 3, SIDE, SIDE)),
        {},
        ("vector", None, 0, 1, SIDE),
    ),
    "batch of 4": (lambda path: encoder(path, MAP, "map", image=(4, 3, SIDE, SIDE)), {}, ("map", (4, 4), 0, 4, SIDE)),
    "opset 11": (lambda path: encoder(path, VECTOR, "vector", opset=11), {}, ("vector", None, 0, None, SIDE)),
    "opset 22": (lambda path: encoder(path, VECTOR, "vector", opset=22), {}, ("vector", None, 0, None, SIDE)),
    "weights as inputs": (
        lambda path: encoder(path, VECTOR, "vector", opset=9, change=_initializers_are_inputs),
        {},
        ("vector", None, 0, None, SIDE),
    ),
    "weights in another file": (lambda path: external(path, MAP, "map"), {}, ("map", (4, 4), 0, None, SIDE)),
    "classifier": (
        lambda path: encoder(path, VECTOR, "probabilities", change=_with_softmax),
        {},
        ("vector", None, 0, None, SIDE),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_an_encoder_gives_what_its_graph_computes(name: str, tmp_path: Path, some_pixels: Any) -> None:
    """The reference is ONNX's own evaluator, on pixels normalised by definition; five images are no whole batch."""
    make, asked, (kind, grid, prefix, batch, side) = RIGHT[name]
    weights, found = find_encoder(str(make(tmp_path / "encoder.onnx")), size=asked.get("size"))
    assert (found.kind, found.grid, found.prefix_tokens, found.batch, found.side) == (kind, grid, prefix, batch, side)
    assert (found.dim, weights.backbone) == (DIM, "onnx:encoder")

    spec = encoder_spec(FeatureRequest(mean=MEAN, std=STD, **asked), weights, found)
    size = asked.get("size", side)
    assert (spec.preprocess.size, spec.preprocess.mean) == (size, MEAN)
    pixels = some_pixels(5, size)
    images = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    (output,) = ReferenceEvaluator(str(weights.path)).run([found.output_name], {"image": images})
    expected = graphs.pooled(output, spec.pooling, prefix)
    for engine in ("auto", "openvino"):
        features = open_engine(spec, weights, engine=engine, device="cpu", threads=2).features(pixels)
        assert features.dtype == np.float32
        assert np.allclose(features, expected, atol=1e-5), engine


def _poison(path: Path) -> Path:
    nodes = [*VECTOR, node("Log", "minus_one", "nan"), node("Add", "vector nan", "bad")]
    return encoder(path, nodes, "bad", constants=[constant("minus_one", [-1.0])])


def _large(path: Path) -> Path:
    nodes = [node("Flatten", "image", "flat"), node("Concat", " ".join(["flat"] * 70), "long", axis=1)]
    return encoder(path, nodes, "long")


def _batch_statistics(path: Path) -> Path:
    nodes = [
        *VECTOR,
        node("ReduceMean", "vector", "mean", axes=[0], keepdims=1),
        node("Sub", "vector mean", "centred"),
    ]
    return encoder(path, nodes, "centred")


def _dropout(path: Path) -> Path:
    nodes = [*VECTOR, node("Dropout", "vector ratio training", "dropped")]
    constants = [constant("ratio", 0.5), constant("training", True, np.bool_)]
    return encoder(path, nodes, "dropped", constants=constants)


def _fixed_within(path: Path) -> Path:
    nodes = [*VECTOR, node("Reshape", "vector shape", "rows")]
    return encoder(path, nodes, "rows", constants=[constant("shape", [1, -1], np.int64)])


def _squeezed(path: Path) -> Path:
    return encoder(path, [*VECTOR, node("Squeeze", "vector", "squeezed")], "squeezed")


def _missing_data(path: Path) -> Path:
    external(path, MAP, "map")
    path.with_name("encoder.data").unlink()
    return path


def _outside(path: Path) -> Path:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        onnx.external_data_helper.set_external_data(tensor, "../../etc/passwd")
        tensor.ClearField("raw_data")

    return encoder(path, MAP, "map", change=change)


def _cut(path: Path) -> Path:
    encoder(path, VECTOR, "vector")
    path.write_bytes(path.read_bytes()[:-300])
    return path


def _written(content: bytes) -> Make:
    def make(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return make


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


LAST = [*MAP, node("Transpose", "map", "last", perm=[0, 2, 3, 1])]
# Name: how it is written; request; what the message says.
WRONG: dict[str, tuple[Make, dict[str, Any], str]] = {
    "two inputs": (
        lambda path: encoder(path, MAP, "map", more_inputs=[("mask", graphs.FLOAT, ("N", 5))]),
        {},
        r"more than one input\n.*one input: float32 \(N, 3, S, S\)\n.*mask: float \(N, 5\)",
    ),
    "integer input": (
        lambda path: encoder(path, [node("Cast", "image", "map", to=1)], "map", kind=UINT8),
        {},
        r"another type of number(.|\n)*uint8 \(N, 3, 32, 32\)(.|\n)*float32, without the preprocessing",
    ),
    "float16 input": (
        lambda path: encoder(path, [node("Cast", "image", "map", to=1)], "map", kind=FLOAT16),
        {},
        r"another type of number(.|\n)*float16 \(N, 3(.|\n)*export it in float32",
    ),
    "channels last": (
        lambda path: encoder(path, [node("Identity", "image", "map")], "map", image=("N", SIDE, SIDE, 3)),
        {},
        r"takes the channels last(.|\n)*inputs-as-nchw",
    ),
    "grey": (
        lambda path: encoder(path, [node("Identity", "image", "map")], "map", image=("N", 1, SIDE, SIDE)),
        {},
        "does not take colour images",
    ),
    "video": (
        lambda path: encoder(path, [node("Identity", "image", "map")], "map", image=("N", 3, 8, SIDE, SIDE)),
        {},
        "does not take colour images",
    ),
    "not square": (
        lambda path: encoder(path, MAP, "map", image=("N", 3, SIDE, 2 * SIDE)),
        {},
        "does not take square images",
    ),
    "another size": (
        lambda path: encoder(path, MAP, "map"),
        {"size": 64},
        r"fixed input size\n.*--size 32\n.*--size 64",
    ),
    "a size that it fails at": (
        lambda path: encoder(
            path,
            [*VECTOR, node("Flatten", "map", "flat"), node("Gemm", "flat square", "out")],
            "out",
            image=FREE,
            constants=[constant("square", np.ones((96, 2)))],
        ),
        {"size": 64},
        r"fails on float32 \(1, 3, 64, 64\)(.|\n)*--size that it was made for",
    ),
    "float16 output": (
        lambda path: encoder(path, [*MAP, node("Cast", "map", "half", to=10)], "half", output_kind=FLOAT16),
        {},
        "output is of another type of number",
    ),
    "integer output": (
        lambda path: encoder(path, [*VECTOR, node("ArgMax", "vector", "best", axis=1)], "best", output_kind=INT64),
        {},
        "output is of another type of number",
    ),
    "several outputs": (
        lambda path: encoder(path, VECTOR, "map", "vector"),
        {},
        r"several outputs\n.*\n.*map: .*vector: .*\n.*--backbone 'encoder.onnx#map'",
    ),
    "no such output": (
        lambda path: encoder(path, VECTOR, "vector"),
        {"output": "pool"},
        r"no output pool\n(.*\n)*.*#vector'",
    ),
    "map with the channels last": (
        lambda path: encoder(path, LAST, "last"),
        {},
        r"channels first\n.*\n.*\(N, 4, 4, 6\)",
    ),
    "a number per image": (
        lambda path: encoder(path, [*VECTOR, node("ReduceMean", "vector", "one", axes=[1], keepdims=0)], "one"),
        {},
        "neither a vector, a map nor tokens",
    ),
    "too many features": (_large, {}, r"unusable number of features\n.*up to 32,768\n.*\(N, 215040\)"),
    "a constant": (
        lambda path: encoder(
            path, [*VECTOR, node("Mul", "vector zero", "none")], "none", constants=[constant("zero", [0.0])]
        ),
        {},
        "the same for different images",
    ),
    "thumbnails": (
        lambda path: encoder(path, VECTOR, "vector", image=("N", 3, 16, 16)),
        {},
        r"not supported\n.*32 to 1024 pixels\n.*\(N, 3, 16, 16\)",
    ),
    "NaN": (_poison, {}, "features are not finite"),
    "batch statistics": (_batch_statistics, {}, r"depend on the other images(.|\n)*model\.eval\(\)"),
    "dropout": (_dropout, {}, r"are random(.|\n)*model\.eval\(\)"),
    "a batch fixed within": (_fixed_within, {}, r"another number of rows.*\n.*\(2, …\)(.|\n)*\(1, 12\)"),
    "a batch axis that vanishes": (_squeezed, {}, r"another number of rows"),
    "operators of others": (
        lambda path: encoder(path, [node("Magic", "image", "map", domain="com.example")], "map"),
        {},
        r"can read\n.*\n.*Magic",
    ),
    "missing data file": (
        _missing_data,
        {},
        r"encoder\.data: a data file of the encoder is missing\n.*put encoder\.data",
    ),
    "data outside": (_outside, {}, r"data is outside its folder\n.*\n.*\.\./\.\./etc/passwd"),
    "text": (_written(b"# notes\n" * 40), {}, r"can read\n.*a complete ONNX file"),
    "empty": (_written(b""), {}, r"can read\n.*a complete ONNX file"),
    "a zip of torch": (_written(b"PK\x03\x04" + bytes(400)), {}, r"can read\n.*a complete ONNX file"),
    "cut short": (_cut, {}, r"can read\n.*a complete ONNX file"),
    "folder": (_folder, {}, "encoder file not found"),
    "missing": (lambda path: path, {}, "encoder file not found"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_usable_encoder_is_refused(name: str, tmp_path: Path) -> None:
    make, asked, message = WRONG[name]
    path = make(tmp_path / "encoder.onnx")
    with pytest.raises(ModelError, match=message) as caught:
        inspect_encoder(path, **asked)
    assert str(caught.value).startswith(str(tmp_path))
    assert caught.value.fix


# Name: how it is written; request; what the message says.
REFUSED_SETTINGS: dict[str, tuple[Make, dict[str, Any], str]] = {
    "tokens without a pooling": (
        lambda path: encoder(path, CLASS_TOKEN, "all"),
        {},
        r"output of the encoder is tokens\n.*--pooling cls.*--pooling mean.*\n.*17 tokens of 6 numbers",
    ),
    "no class token": (lambda path: encoder(path, TOKENS, "tokens"), {"pooling": "cls"}, r"no class token(.|\n)*4 × 4"),
    "cls of a map": (lambda path: encoder(path, MAP, "map"), {"pooling": "cls"}, r"impossible(.|\n)*map, a map of 6"),
    "mean of a vector": (
        lambda path: encoder(path, VECTOR, "vector"),
        {"pooling": "mean"},
        r"impossible(.|\n)*vector, a vector of 6",
    ),
    "multilevel": (lambda path: encoder(path, MAP, "map"), {"pooling": "multilevel"}, "multilevel is impossible"),
    "half precision": (lambda path: encoder(path, MAP, "map"), {"precision": "bfloat16"}, "--precision float32"),
}


@pytest.mark.parametrize("name", REFUSED_SETTINGS)
def test_a_setting_that_the_encoder_cannot_have_is_refused(name: str, tmp_path: Path) -> None:
    make, asked, message = REFUSED_SETTINGS[name]
    weights, found = find_encoder(str(make(tmp_path / "encoder.onnx")))
    with pytest.raises(SpecError, match=message):
        encoder_spec(FeatureRequest(**asked), weights, found)


def test_the_torch_engine_is_refused(tmp_path: Path) -> None:
    weights, found = find_encoder(str(encoder(tmp_path / "encoder.onnx", MAP, "map")))
    spec = encoder_spec(FeatureRequest(), weights, found)
    with pytest.raises(SpecError, match=r"torch cannot run an ONNX file\n.*--engine onnxruntime or openvino"):
        open_engine(spec, weights, engine="torch")


@pytest.mark.parametrize(
    ("make", "asked", "said"),
    [
        (lambda path: encoder(path, VECTOR, "vector"), {}, "ImageNet's mean and std are used"),
        (lambda path: encoder(path, VECTOR, "vector"), {"mean": MEAN}, "ImageNet's std is used. Name --std too"),
        (lambda path: encoder(path, VECTOR, "vector"), {"std": STD}, "ImageNet's mean is used. Name --mean too"),
        (lambda path: encoder(path, VECTOR, "vector"), {"normalize": "half"}, ""),
        (lambda path: encoder(path, VECTOR, "vector"), {"normalize": "half", "mean": MEAN}, ""),
        (lambda path: encoder(path, VECTOR, "vector"), {"mean": MEAN, "std": STD}, ""),
        (RIGHT["classifier"][0], {"normalize": "half"}, "its output is probabilities of classes"),
        (
            lambda path: encoder(path, [*VECTOR, node("Gemm", "vector wide", "scores")], "scores", constants=[WIDE]),
            {"normalize": "half"},
            "its output is scores of 1000 classes",
        ),
        (
            lambda path: encoder(
                path, [*TOKENS[:-1], node("Slice", "rows a b two one", "some")], "some", constants=CUT
            ),
            {"normalize": "half", "pooling": "mean"},
            "",
        ),
    ],
    ids=[
        "unknown normalisation",
        "a mean",
        "a std",
        "named",
        "named and a mean",
        "given",
        "softmax",
        "1000 scores",
        "6 tokens",
    ],
)
def test_what_may_be_a_mistake_is_said(
    make: Make, asked: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, found = find_encoder(str(make(tmp_path / "encoder.onnx")))
    encoder_spec(FeatureRequest(**asked), weights, found)
    assert said in caplog.text if said else caplog.text == ""


WIDE = constant("wide", np.random.default_rng(1).standard_normal((DIM, 1000)))
CUT = [constant(name, [value], np.int64) for name, value in (("a", 0), ("b", 12), ("two", 2), ("one", 1))]


def test_an_output_is_named_after_the_file(tmp_path: Path) -> None:
    path = encoder(tmp_path / "my#encoder.v2.ONNX", VECTOR, "map", "vector")
    for output, kind in (("map", "map"), ("vector", "vector")):
        weights, found = find_encoder(f"{path}#{output}")
        assert (weights.backbone, found.kind) == (f"onnx:my_encoder.v2#{output}", kind)
        again, found = find_encoder(weights.backbone, file=path)
        assert (again, found.kind) == (weights, kind)


def test_the_digest_covers_data_in_other_files(tmp_path: Path) -> None:
    path = external(tmp_path / "encoder.onnx", MAP, "map")
    before = encoder_sha256(path)
    data = tmp_path / "encoder.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert encoder_sha256(path) != before
    whole = encoder(tmp_path / "whole.onnx", MAP, "map")
    assert encoder_sha256(whole) == hashlib.sha256(whole.read_bytes()).hexdigest()


def test_an_encoder_that_has_changed_is_not_run(tmp_path: Path) -> None:
    weights, found = find_encoder(str(encoder(tmp_path / "encoder.onnx", MAP, "map")))
    spec = encoder_spec(FeatureRequest(), weights, found)
    encoder(tmp_path / "encoder.onnx", VECTOR, "vector")
    with pytest.raises(WeightsError, match=r"not the encoder of the features\n.*onnx:encoder with SHA-256"):
        open_engine(spec, weights, device="cpu")

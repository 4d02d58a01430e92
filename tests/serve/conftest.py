"""A tiny real model file whose outputs a few lines of numpy can compute, and a server on a real port.

The model: mean of each colour channel, divided by 255, times WEIGHTS, plus BIAS, softmax. The test images have one
colour each, so neither decoding nor resizing changes the mean.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import uvicorn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from xfeat.export.build.resize_graph import PLANES, resize_graph
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.serve.http.app import build_app
from xfeat.serve.http.limits.connections import with_connection_limits
from xfeat.serve.http.service import Service
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import AccessOptions, ServeSpec

SIZE = 32
CLASSES = ("covid", "normal", "pneumonia")
WEIGHTS = np.array([[3.0, -1.0, 0.5], [-2.0, 2.5, 0.0], [0.5, -0.5, 2.0]], np.float32)
BIAS = np.array([0.2, -0.1, 0.0], np.float32)
# With ``fails_above``, an image with a brighter mean makes onnxruntime fail on the whole batch.
FAILS_ABOVE = 200

# With ``heatmap``: class c looks at quarter c of the picture, in reading order.
QUARTERS = np.eye(4, dtype=np.float32)[: len(CLASSES)].reshape(1, len(CLASSES), 2, 2)

Colour = tuple[int, int, int]


def reference_probabilities(colour: Colour) -> np.ndarray:
    """Compute the probabilities of an image of one colour in float64."""
    logits = np.array(colour) / 255 @ WEIGHTS.astype(float) + BIAS
    return np.exp(logits) / np.exp(logits).sum()


def draw(colour: Colour, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    """Return the file of an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def describe(**changes: Any) -> ModelMetadata:
    """Return the metadata of the tiny model; ``preprocess`` are settings of its :class:`PreprocessSpec`."""
    preprocess = PreprocessSpec(size=SIZE, **changes.pop("preprocess", {}))
    facts: dict[str, Any] = {
        "variant": "full",
        "class_names": CLASSES,
        "feature_spec": FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64, preprocess=preprocess),
        "cache_sha256": "1" * 64,
        "head_sha256": "2" * 64,
        "run": "tiny",
        "metrics": {"test": {"accuracy": 0.9375, "confusion_matrix": [[5, 1, 0], [0, 5, 0], [0, 0, 5]]}},
    }
    return ModelMetadata(**{**facts, **changes})


def build_model(
    metadata: ModelMetadata,
    *,
    ood: bool = False,
    fails_above: bool = False,
    free_sides: bool = False,
    heatmap: bool = False,
) -> onnx.ModelProto:
    """Build the tiny model: uint8 (N, S, S, 3) or, for the core variant, float32 (N, 3, S, S).

    Its heatmap of class c is the brightness of quarter c of the picture, where it is zero elsewhere.
    """
    core = metadata.variant == "core"
    sides: list[int | str] = ["H", "W"] if free_sides else [SIZE, SIZE]
    shape = ["N", 3, SIZE, SIZE] if core else ["N", *sides, 3]
    constants = {"axes": [2, 3] if core else [1, 2], "white": 255.0, "weights": WEIGHTS, "bias": BIAS}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
    ]
    outputs = [("probabilities", ["N", len(CLASSES)]), ("logits", ["N", len(CLASSES)])]
    if fails_above:
        constants |= {"table": np.zeros((FAILS_ABOVE, 1), np.float32), "channels": [1]}
        nodes += [
            helper.make_node("ReduceMean", ["means", "channels"], ["brightness"], keepdims=0),
            helper.make_node("Cast", ["brightness"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["nothing"]),
        ]
    nodes.append(helper.make_node("Add", ["sum", "nothing"] if fails_above else ["sum", "zero"], ["logits"]))
    constants["zero"] = 0.0
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    if ood:
        constants["last"] = [1]
        nodes.append(helper.make_node("ReduceMean", ["colour", "last"], ["ood"], keepdims=0))
        outputs.append(("ood", ["N"]))
    if heatmap:
        constants |= {"blocks": [0, 2, SIZE // 2, 2, SIZE // 2, 3], "inside": [2, 4, 5], "one_axis": [1]}
        constants["masks"] = QUARTERS
        nodes += [
            helper.make_node("Reshape", ["pixels", "blocks"], ["parts"]),
            helper.make_node("ReduceMean", ["parts", "inside"], ["quarters"], keepdims=0),
            helper.make_node("Unsqueeze", ["quarters", "one_axis"], ["row"]),
            helper.make_node("Mul", ["row", "masks"], ["heatmap"]),
        ]
        outputs.append(("heatmap", ["N", len(CLASSES), 2, 2]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT if core else TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs],
        [numpy_helper.from_array(_constant(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {**metadata.to_props(), "xfeat.later": "a key of a later version"})
    return model


def _constant(value: Any) -> np.ndarray:
    return np.asarray(value, np.int64 if isinstance(value, list) else np.float32)


WriteModel = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Return a function that writes a tiny model: keyword arguments of ``build_model``, the rest is metadata."""

    def write(name: str = "model.onnx", **changes: Any) -> Path:
        graph = {key: changes.pop(key) for key in ("ood", "fails_above", "free_sides", "heatmap") if key in changes}
        path = tmp_path / name
        onnx.save(build_model(describe(**changes), **graph), path)
        return path

    return write


@pytest.fixture
def write_pixel_model(tmp_path: Path) -> WriteModel:
    """Return a function that writes a model whose outputs depend on the value and position of every pixel."""

    def write(name: str = "pixels.onnx", **changes: Any) -> Path:
        metadata = describe(ood_threshold=0.5, **changes)
        resize = resize_graph(metadata.feature_spec.preprocess)
        weights = np.random.default_rng(0).normal(0, 1, (SIZE**2 * 3, len(CLASSES))).astype(np.float32)
        constants = {"flat": np.array([0, -1]), "white": np.float32(255), "weights": weights, "last": np.array([1])}
        nodes = [
            *resize.node,
            helper.make_node("Div", [PLANES, "white"], ["heatmap"]),
            helper.make_node("Reshape", ["heatmap", "flat"], ["row"]),
            helper.make_node("MatMul", ["row", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
            helper.make_node("ReduceMean", ["row", "last"], ["ood"], keepdims=0),
        ]
        shapes = {"probabilities": ["N", 3], "ood": ["N"], "heatmap": ["N", 3, SIZE, SIZE]}
        graph = helper.make_graph(
            nodes,
            "pixels",
            resize.input,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
            [
                *resize.initializer,
                *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        helper.set_model_props(model, metadata.to_props())
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def model(write_model: WriteModel) -> Path:
    """Return the file of the tiny model."""
    return write_model()


@pytest.fixture
def predictor(model: Path) -> Predictor:
    """Return the tiny model, opened."""
    return Predictor.open(model, device="cpu")


@contextlib.contextmanager
def serving(
    predictor: Predictor | None,
    *,
    models: ModelRegistry | None = None,
    access: AccessOptions | None = None,
    api_key: str | None = None,
    **limits: Any,
) -> Iterator[httpx.Client]:
    """Serve on a free port of this machine, in a thread, and yield a client."""
    spec = ServeSpec(**limits)
    if models is None:
        assert predictor is not None
        models = ModelRegistry(predictor.path, lambda path: [predictor], spec)
    service = Service(models)
    app = build_app(service, access or AccessOptions(api_key=api_key))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as xfeat.serve.http.server does
    protocol = with_connection_limits(service.body_limits)
    # asyncio sends small answers at once only on sockets that name their protocol; others wait 40 ms for an ACK.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, http=protocol, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
                client.service = service  # type: ignore[attr-defined]
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Return the properties of the tiny model, and functions that draw images and compute its probabilities."""
    return SimpleNamespace(
        classes=CLASSES, size=SIZE, describe=describe, build=build_model, draw=draw, reference=reference_probabilities
    )


@pytest.fixture
def serve_model() -> Callable[..., contextlib.AbstractContextManager[httpx.Client]]:
    """Return :func:`serving`."""
    return serving


@pytest.fixture
def client(predictor: Predictor) -> Iterator[httpx.Client]:
    """Return a client of a server with the tiny model."""
    with serving(predictor) as ready:
        yield ready


@pytest.fixture(scope="module")
def fuzz_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client of one server for many examples."""
    path = tmp_path_factory.mktemp("fuzz") / "model.onnx"
    onnx.save(build_model(describe(), ood=True, heatmap=True), path)
    with serving(Predictor.open(path, device="cpu")) as ready:
        yield ready

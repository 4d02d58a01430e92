"""A GPU computes alike wherever it is used: what caches features, what proves a model and what serves it."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
import pytest

from export.parity import open_sessions
from featurize.cuda import cuda_provider
from featurize.engines import onnx_engine
from featurize.specs import FeatureSpec, PreprocessSpec
from featurize.weights import Weights
from serve.session import ModelSession

RealSession = ort.InferenceSession


class Pretending:
    """A session that says it runs where it was asked to, and runs on the CPU."""

    asked: list[Any]

    def __init__(self, model: Any, options: Any = None, *, providers: list[Any], **_: Any) -> None:
        Pretending.asked += providers
        self._names = [each if isinstance(each, str) else each[0] for each in providers]
        self._session = RealSession(model, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return self._names

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What onnxruntime is asked for of CUDA, on a machine that pretends to have it."""
    Pretending.asked = []
    monkeypatch.setattr(ort, "InferenceSession", Pretending)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr("export.onnx_session.cuda_driver_present", lambda: True)
    return lambda: [each for each in Pretending.asked if "CUDAExecutionProvider" in each]


def test_the_options_are_full_float32_on_the_gpu_named():
    name, options = cuda_provider(3)
    assert name == "CUDAExecutionProvider"
    assert (options["device_id"], options["use_tf32"]) == ("3", "0")


def test_serving_opens_the_gpu_with_the_options_of_the_proof(model, asked):
    assert ModelSession.open(model, device="cuda:1").device == "cuda:1"
    assert asked() == [cuda_provider(1)]


def test_the_proof_opens_the_gpu_with_them(model, asked):
    assert set(open_sessions(model)) == {"CUDAExecutionProvider", "CPUExecutionProvider"}
    assert asked() == [cuda_provider(0)]


def test_caching_features_opens_the_gpu_with_them(model, asked, monkeypatch):
    monkeypatch.setattr(onnx_engine, "graph_file", lambda spec, weights: model)
    spec = FeatureSpec(backbone="b", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=64))
    engine = onnx_engine.OnnxEngine(spec, Weights("b", model, "0" * 64), device="cuda:2")
    assert engine.name == "onnxruntime on cuda:2"
    assert asked() == [cuda_provider(2)]

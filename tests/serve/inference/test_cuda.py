"""Caching features, the parity check and serving use a GPU with the same options."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from xfeat.export.parity.checks import open_on_providers
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines import feature_graph, onnx_engine
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.system.cuda import cuda_driver_present, cuda_provider
from xfeat.serve.cli import main
from xfeat.serve.inference.predictor import Predictor

RealSession = ort.InferenceSession


class Pretending:
    """A session that claims to run on the requested device, but runs on the CPU."""

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
    """Return the CUDA providers that onnxruntime is asked for, on a machine that pretends to have a GPU."""
    Pretending.asked = []
    monkeypatch.setattr(ort, "InferenceSession", Pretending)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr("xfeat.featurize.system.onnx_session.check_gpu", lambda device: None)
    monkeypatch.setattr("xfeat.featurize.system.onnx_session.cuda_driver_present", lambda: True)
    original = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        ort.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda shape, kind, device, number: original(shape, kind, "cpu", 0),
    )
    return lambda: [each for each in Pretending.asked if "CUDAExecutionProvider" in each]


@pytest.mark.parametrize("resizes", [True, False])
def test_serving_and_the_parity_check_open_the_gpu_with_the_same_options(write_model, tiny, asked, resizes):
    model = write_model(free_sides=resizes)
    batch = np.zeros((8, tiny.size, tiny.size, 3), np.uint8)
    served = Predictor.open(model, "cuda:0", batch_size=8).model
    assert served.device == "cuda:0"
    served.bind([batch])
    checked = open_on_providers(model)
    assert set(checked) == {"CUDAExecutionProvider", "CPUExecutionProvider"}
    checked["CUDAExecutionProvider"].bind([batch])
    name, options = cuda_provider(0)
    assert asked() == [(name, options), (name, options | {"enable_cuda_graph": "1"})] * 2


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("facts", [{"ood": True, "heatmap": True}, {"variant": "core"}], ids=["full", "core"])
def test_fixed_buffers_give_the_predictions_of_the_cpu(write_model, tiny, facts):
    """Batches are padded with black images; heatmaps are requested for some batches only."""
    model = write_model("model.onnx", **facts)
    gpu, cpu = Predictor.open(model, "cuda:0", batch_size=4), Predictor.open(model, "cpu")
    gpu.warm_up()
    rng = np.random.default_rng(0)
    for number in (3, 1, 4, 2, 5, 3):
        names = [str(index) for index in range(number)]
        pixels = list(rng.integers(0, 256, (number, tiny.size, tiny.size, 3), np.uint8))
        for heatmap in (False, True):
            found, wanted = (each.infer(names, pixels, heatmap=heatmap) for each in (gpu, cpu))
            for one, other in zip(found, wanted, strict=True):
                assert one.label == other.label
                assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
                assert (one.ood, other.ood) == (None, None) or one.ood == pytest.approx(other.ood, abs=1e-6)
                assert (one.heatmap is None) == (other.heatmap is None)
                if other.heatmap is not None:
                    np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=1e-6)


@pytest.mark.usefixtures("asked")
def test_a_batch_that_fails_in_fixed_buffers_skips_only_the_image_at_fault(write_model, tiny):
    predictor = Predictor.open(write_model(fails_above=True), "cuda:0", batch_size=4)
    predictor.warm_up()
    dark, bright = (np.full((tiny.size, tiny.size, 3), level, np.uint8) for level in (9, 250))
    for _ in range(2):
        first, faulty, last = predictor.infer(["a", "faulty", "b"], [dark, bright, dark])
        assert first.probabilities == last.probabilities
        assert faulty.by_model


@pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
@pytest.mark.parametrize(("device", "found"), [("auto", "cannot use cuda:0"), ("cpu", "it runs on the CPU")])
def test_requested_cuda_graphs_are_never_omitted(model, device, found):
    done = CliRunner().invoke(main, ["start", str(model), "--device", device, "--cuda-graphs", "on", "--port", "0"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert found in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_driver_present(), reason="needs a GPU")
@pytest.mark.parametrize("variant", ["full", "core"])
def test_a_gpu_gives_the_predictions_of_the_cpu_before_and_after_it_is_warmed_up(write_model, tiny, variant):
    model = write_model(variant=variant, free_sides=variant == "full")
    gpu, cpu = Predictor.open(model, "cuda", batch_size=4), Predictor.open(model, "cpu")
    images = [tiny.draw((25 * number, 200, 10)) for number in range(10)]
    expected = cpu.predict_bytes(images)
    for warms_up in (False, True):
        if warms_up:
            gpu.warm_up()
        for one, other in zip(gpu.predict_bytes(images), expected, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_caching_features_opens_the_gpu_with_the_same_options(model, asked, monkeypatch):
    monkeypatch.setattr(feature_graph, "graph_file", lambda spec, weights: model)
    spec = FeatureSpec(backbone="b", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=64))
    engine = onnx_engine.OnnxEngine(spec, Weights("b", model, "0" * 64), device="cuda:2")
    assert engine.name == "onnxruntime on cuda:2"
    assert asked() == [cuda_provider(2)]

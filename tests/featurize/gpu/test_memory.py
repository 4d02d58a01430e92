"""Every error by which a library says that GPU memory is full halves the batch, and no other one does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.engines import open_engine
from xfeat.featurize.engines.batch_size import find_batch_size
from xfeat.featurize.engines.engine import Engine
from xfeat.featurize.engines.torch_engine import TorchEngine
from xfeat.featurize.errors import DeviceError
from xfeat.featurize.gpu.memory import is_out_of_memory
from xfeat.featurize.specs import FeatureSpec

ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'conv' "
    "Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
)
CALL = "[ONNXRuntimeError] : 1 : FAIL : /src/cuda_call.cc:129 onnxruntime::CudaCall(ERRTYPE, const char*) "
FULL: dict[str, Exception] = {
    "torch": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total …"),
    "torch, fraction": torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Allocation was preemptively rejected because it would exceed per_process_memory_fraction"
    ),
    "torch, CUDA": torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/"
    ),
    "torch, driver": RuntimeError("CUDA driver error: out of memory"),
    "torch, handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "torch, cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "torch, cuDNN 8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "torch, cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "torch, cuDNN's host": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "torch, heuristics": RuntimeError("GET was unable to find an engine to execute this computation"),
    "torch, search": RuntimeError("FIND was unable to find an engine to execute this computation"),
    "torch, cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    "onnxruntime, arena": ort_state.RuntimeException(
        f"{ARENA}Failed to allocate memory for requested buffer of size 939524096"
    ),
    "onnxruntime, limit": ort_state.Fail(f"{ARENA}Available memory of 1024 is smaller than requested bytes of 4096"),
    "onnxruntime, CUDA": ort_state.Fail(f"{CALL}CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc"),
    "onnxruntime, cuDNN": ort_state.EPFail(
        f"{CALL}CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0 ; expr=execute"
    ),
    "onnxruntime, handle": ort_state.Fail(
        f"{CALL}CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; expr=cudnnCreate(&cudnn_handle_);"
    ),
    "onnxruntime, cuBLAS": ort_state.Fail(f"{CALL}CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=x"),
}
OTHER: dict[str, Exception] = {
    "address": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "card": torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    "driver": RuntimeError("The NVIDIA driver on your system is too old (found version 12040)."),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "cuDNN's version": RuntimeError("cuDNN error: CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(handle, n)`"),
    "recording": ort_state.Fail(f"{CALL}CUDA failure 900: operation not permitted when stream is capturing ; GPU=0"),
    "shape": RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    "bus": torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
}


@pytest.mark.parametrize("text", FULL)
def test_full_memory_is_recognised(text: str) -> None:
    assert is_out_of_memory(FULL[text])


@pytest.mark.parametrize("text", OTHER)
def test_other_errors_are_not_taken_for_full_memory(text: str) -> None:
    assert not is_out_of_memory(OTHER[text])


class Card:
    """Stands for what runs the network: has room for so many images, and fails as a library does beyond."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.sizes = room, error, list[int]()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self._take(len(batch))
        return batch.float().mean((1, 2))

    def run(self, names: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._take(len(feed["image"]))
        return [feed["image"].mean((1, 2), dtype=np.float32)]

    def _take(self, count: int) -> None:
        self.sizes.append(count)
        if count > self.room:
            raise self.error


@pytest.fixture(params=["torch", "onnxruntime"])
def on_card(
    request: pytest.FixtureRequest,
    lite0_weights: Weights,
    lite0_spec: FeatureSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Return a function that opens an engine whose network runs on a :class:`Card`."""

    def opened(card: Card) -> Engine:
        if request.param == "torch":
            engine: Any = TorchEngine(lite0_spec, lite0_weights, device="cpu", threads=1, batch_size=8)
            monkeypatch.setattr(engine, "_network", card)
            return engine
        monkeypatch.setattr("xfeat.featurize.engines.feature_graph.graph_file", lambda spec, weights: "model")
        monkeypatch.setattr("xfeat.featurize.engines.onnx_engine.open_session", lambda *_, **__: card)
        monkeypatch.setattr("xfeat.featurize.engines.resolve_devices", lambda *_: ["cuda:0"])
        return open_engine(lite0_spec, lite0_weights, engine="onnxruntime", device="cuda", batch_size=8)

    return opened


@pytest.mark.parametrize("text", ["torch, CUDA", "torch, cuDNN 9", "onnxruntime, arena", "onnxruntime, cuDNN"])
def test_both_engines_halve_the_batch_and_go_on(on_card: Any, some_pixels: Any, text: str) -> None:
    card = Card(2, FULL[text])
    engine = on_card(card)
    pixels = some_pixels(5, 64)
    assert np.allclose(engine.features(pixels), pixels.mean((1, 2)), rtol=1e-5)
    assert (card.sizes, engine.batch_size) == ([8, 4, 2, 2, 2], 2)


@pytest.mark.parametrize("text", ["torch, heuristics", "onnxruntime, limit"])
def test_the_search_for_a_batch_size_ends_where_memory_does(on_card: Any, text: str) -> None:
    engine = on_card(Card(16, FULL[text]))
    find_batch_size(engine, 64, clock=iter(range(1000)).__next__)
    assert engine.batch_size == 16


def test_a_card_without_room_for_one_image_is_one_message(on_card: Any, some_pixels: Any) -> None:
    engine = on_card(Card(0, FULL["torch, CUDA"]))
    with pytest.raises(DeviceError, match=r"with a single image(.|\n)*error: out of memory(.|\n)*--size"):
        engine.features(some_pixels(1, 64))


def test_another_error_is_not_hidden(on_card: Any, some_pixels: Any) -> None:
    card = Card(0, OTHER["cuDNN"])
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        on_card(card).features(some_pixels(1, 64))
    assert card.sizes == [8]

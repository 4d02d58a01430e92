"""Why a library cannot use a GPU: driver, build and card are compared, and each cause has its own way out."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.gpu import libraries
from xfeat.featurize.gpu.driver import Gpu, free_memory, read_driver
from xfeat.featurize.gpu.explain import Build, device_error
from xfeat.featurize.gpu.libraries import onnxruntime_build
from xfeat.featurize.system import onnx_session
from xfeat.featurize.system.cuda import cuda_driver_present
from xfeat.featurize.system.devices import resolve_device, torch_build
from xfeat.featurize.system.onnx_session import CONVOLUTION, check_gpu

# Where the real libraries find a card of their own, the driver of these tests does not decide.
without_gpu = pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")

TURING_ON = ((7, 5), (8, 0), (8, 6), (9, 0), (12, 0))
CUDA13 = Build("lib 2", (13, 0), TURING_ON, "install lib", "install lib<2")
CUDA12 = Build("lib 1", (12, 8), ((6, 0), (7, 0), (8, 6), (9, 0)), "install lib", "install lib<2", also_newer=True)
CPU_ONLY = Build("lib 2", None, (), "install lib for CUDA", "install lib<2")
NOTHING = {"CUDA": 13000, "DRIVER": "580.65.06", "GPUS": "NVIDIA L4:89"}

# Driver, build, device, what the library said; then the words of the message.
CAUSES: dict[str, tuple[dict[str, object], Build, str, str, tuple[str, ...]]] = {
    "old driver": (
        NOTHING | {"CUDA": 12040, "DRIVER": "550.54.15"},
        CUDA13,
        "cuda",
        "CUDA driver version is insufficient for CUDA runtime version",
        ("CUDA 13: 580 or newer", "550.54.15 (for CUDA 12.4)", "update the driver, or", "install lib<2"),
    ),
    "driver too old for CUDA 12": (NOTHING | {"CUDA": 11080}, CUDA12, "cuda", "x", ("CUDA 12: 525", "for CUDA 11.8")),
    "driver newer than the build": (NOTHING, CUDA12, "cuda", "CUDA error: unknown", ("CUDA error: unknown",)),
    "driver without its version": ({"CUDA": 12020, "GPUS": "T4:75"}, CUDA13, "cuda", "x", ("of unknown version",)),
    "broken driver": (
        NOTHING | {"INIT": 803},
        CUDA13,
        "cuda",
        "x",
        ("does not start: CUDA error 803: system has unsupported display driver", "restart the machine"),
    ),
    "error without a text": (NOTHING | {"INIT": 888}, CUDA13, "cuda", "x", ("CUDA error 888: unknown",)),
    "build for the CPU": (
        NOTHING,
        CPU_ONLY,
        "cuda",
        "Torch not compiled with CUDA enabled",
        ("a build for the CPU only", "580.65.06", "install lib for CUDA"),
    ),
    "no card": (NOTHING | {"GPUS": ""}, CUDA13, "cuda", "x", ("number 0", "no GPU")),
    "no such card": (
        NOTHING | {"GPUS": "NVIDIA L4:89,NVIDIA T4:75"},
        CUDA13,
        "cuda:2",
        "x",
        ("number 2", "cuda:0 NVIDIA L4, cuda:1 NVIDIA T4"),
    ),
    "V100": (NOTHING | {"GPUS": "Tesla V100:70"}, CUDA13, "cuda", "x", ("Tesla V100, which has 7.0", "install lib<2")),
    "P100": (NOTHING | {"GPUS": "Tesla P100:60"}, CUDA13, "cuda", "x", ("Tesla P100, which has 6.0", "install lib<2")),
    "GTX 1080": (NOTHING | {"GPUS": "GTX 1080:61"}, CUDA13, "cuda", "x", ("GTX 1080, which has 6.1",)),
    "GTX 980": (NOTHING | {"GPUS": "GTX 980:52"}, CUDA12, "cuda", "x", ("GTX 980, which has 5.2",)),
    "the second card": (
        NOTHING | {"GPUS": "NVIDIA L4:89,Quadro P400:61"},
        CUDA13,
        "cuda:1",
        "x",
        ("Quadro P400, which has 6.1",),
    ),
    "B200": (NOTHING | {"GPUS": "NVIDIA B200:100"}, CUDA13, "cuda", "x", ("NVIDIA B200, which has 10.0", "fix")),
    "B200, compiled by the driver": (NOTHING | {"GPUS": "NVIDIA B200:100"}, CUDA12, "cuda", "boom", ("boom",)),
    "code for another card of its kind": (NOTHING, CUDA13, "cuda", "boom", ("boom",)),
    "unknown code": (NOTHING, Build("lib 3", (13, 0), (), "i", "j"), "cuda", "boom", ("boom",)),
    "missing library": (
        NOTHING,
        CUDA13,
        "cuda",
        "Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file",
        ("libraries of CUDA 13 and cuDNN 9", "libcublasLt.so.13", "install lib"),
    ),
    "full card": (NOTHING, CUDA13, "cuda", "CUDA failure 2: out of memory", ("free memory", "stop other processes")),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_own_message(use_driver: Any, cause: str) -> None:
    settings, build, device, failure, words = CAUSES[cause]
    use_driver(**settings)
    text = str(device_error(build, device, failure))
    assert [word for word in words if word not in text] == []
    assert text.startswith(f"{build.name} cannot use {device}\n")
    assert "or run on the CPU" in text
    assert text.endswith("xfeat doctor")


def test_without_a_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfeat.featurize.gpu.explain.read_driver", lambda: None)
    assert "no driver (libcuda.so.1 cannot be loaded)" in str(device_error(CUDA13, "cuda", "x"))


def test_every_error_of_a_device_ends_with_the_command_that_tells_more() -> None:
    assert str(DeviceError("gone")).splitlines() == ["gone", "  see:      xfeat doctor"]


def test_the_driver_is_asked_for_cards_and_memory(use_driver: Any) -> None:
    use_driver(**NOTHING | {"GPUS": "NVIDIA L4:89,Tesla T4:75"})
    driver = read_driver()
    assert driver is not None
    assert (driver.version, driver.cuda, driver.failure) == ("580.65.06", (13, 0), None)
    assert driver.gpus == (Gpu("NVIDIA L4", (8, 9), 16 << 30), Gpu("Tesla T4", (7, 5), 16 << 30))
    assert free_memory(1) == 12 << 30


def test_the_error_of_a_full_card_is_told(use_driver: Any) -> None:
    use_driver(**NOTHING | {"CONTEXT": 2})
    with pytest.raises(RuntimeError, match="CUDA error 2: out of memory"):
        free_memory(0)


@pytest.mark.parametrize(
    ("settings", "present"), [({"GPUS": ""}, False), ({"GPUS": "L4:89"}, True), ({"INIT": 999}, True)]
)
def test_a_driver_without_cards_is_none_and_a_broken_one_is_told(
    use_driver: Any, settings: dict[str, object], present: bool
) -> None:
    use_driver(**settings)
    assert cuda_driver_present() == present


@pytest.mark.parametrize("text", [b"", b"not a library"])
def test_another_file_of_that_name_is_no_driver(
    use_driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    use_driver()
    (tmp_path / "libcuda.so.1").write_bytes(text)
    monkeypatch.setattr("xfeat.featurize.gpu.driver.CUDA_LIBRARY", str(tmp_path / "libcuda.so.1"))
    assert read_driver() is None


# What the installed libraries say


def test_the_installed_libraries_are_known() -> None:
    assert torch_build().cuda is not None
    assert onnxruntime_build().cuda is not None
    assert min(torch_build().code_for) == min(onnxruntime_build().code_for) == (7, 5)
    assert (12, 0) in torch_build().code_for


def test_the_convolution_that_is_tried_is_one() -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1]) for name in "xwy"]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    assert model.SerializeToString() == CONVOLUTION


@without_gpu
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("settings", [NOTHING | {"GPUS": "Tesla V100:70"}, NOTHING | {"CUDA": 12040}])
def test_auto_takes_the_cpu_and_says_why_and_cuda_fails(
    use_driver: Any, caplog: pytest.LogCaptureFixture, engine: str, settings: dict[str, object]
) -> None:
    """The real libraries are asked; their CUDA finds the driver of this test not even on the path."""
    use_driver(**settings)
    why = "Tesla V100, which has 7.0" if "V100" in str(settings["GPUS"]) else "CUDA 13: 580 or newer"
    with caplog.at_level(logging.WARNING):
        assert resolve_device("auto", engine) == "cpu"
    assert why in caplog.text
    assert "the GPU is not used" in caplog.text
    with pytest.raises(DeviceError, match=why):
        resolve_device("cuda", engine)


def test_auto_is_quiet_without_a_gpu(use_driver: Any, caplog: pytest.LogCaptureFixture) -> None:
    use_driver(GPUS="")
    assert resolve_device("auto") == resolve_device("auto", "onnxruntime") == "cpu"
    assert caplog.text == ""


@without_gpu
def test_a_torch_without_cuda_beside_a_card_is_told(
    use_driver: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As from PyPI on Windows."""
    use_driver(**NOTHING)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    assert resolve_device("auto") == "cpu"
    assert "a build for the CPU only" in caplog.text
    assert "pytorch.org" in caplog.text


def test_onnxruntime_is_asked_and_not_torch(use_driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(**NOTHING)
    monkeypatch.setattr(onnx_session, "check_gpu", lambda device: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert resolve_device("cuda", "onnxruntime") == resolve_device("auto", "onnxruntime") == "cuda:0"


# The libraries of CUDA


@pytest.fixture
def fresh() -> Any:
    """Ask for the libraries again, before and after."""
    libraries.load_cuda_libraries.cache_clear()
    yield
    libraries.load_cuda_libraries.cache_clear()


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let onnxruntime's own search miss a library, and the system too until it is loaded by its path."""
    loaded: set[str] = set()

    def load(path: str, *_: object, **__: object) -> None:
        if "/" in path:
            loaded.add(Path(path).name)
        elif path not in loaded:
            raise OSError(f"{path}: cannot open shared object file: No such file or directory")

    def preload() -> None:
        try:
            load(name)
        except OSError as error:
            sys.stdout.write(f"Failed to load {name}: {error}\nPlease follow https://onnxruntime.ai/docs/install/\n")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(ort, "preload_dlls", preload)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("folder", ["nvidia/cu13/lib", "nvidia/cudnn/lib", "torch/lib", "nvidia/cublas/lib"])
def test_libraries_are_found_in_any_folder_of_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    for name in ("libcublasLt.so.13", "libcudnn.so.9"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).touch()
    monkeypatch.setattr(libraries, "_package_folders", lambda name: [str(tmp_path / name)])
    without("libcublasLt.so.13", monkeypatch)
    assert libraries.load_cuda_libraries() == ()


@without_gpu
@pytest.mark.usefixtures("fresh")
def test_the_first_library_that_is_missing_is_the_reason(
    use_driver: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_driver(**NOTHING)
    read_driver()
    monkeypatch.setattr(libraries, "_package_folders", lambda name: [])
    without("libcublasLt.so.13", monkeypatch)
    with pytest.raises(DeviceError) as problem:
        check_gpu("cuda:0")
    text = str(problem.value)
    assert "found:    Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file" in text
    assert "fix:      pip install 'onnxruntime-gpu[cuda,cudnn]'" in text
    assert capsys.readouterr() == ("", ""), "stdout is for results, such as --json"


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_driver_present(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_real_card_is_chosen(engine: str) -> None:
    assert resolve_device("auto", engine) == resolve_device("cuda", engine) == "cuda:0"
    assert read_driver().gpus[0].memory >= free_memory(0) > 0  # type: ignore[union-attr]

"""Opens every onnxruntime session: to compute features, and to check, benchmark and serve a model. No torch."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from xfeat.featurize.errors import DeviceError, ModelError
from xfeat.featurize.gpu.explain import device_error
from xfeat.featurize.gpu.libraries import load_cuda_libraries, onnxruntime_build, why_not_loaded
from xfeat.featurize.system.cores import cores
from xfeat.featurize.system.cuda import PROVIDER as CUDA
from xfeat.featurize.system.cuda import cuda_driver_present, cuda_provider, gpu_number
from xfeat.featurize.text import listed

CPU = "CPUExecutionProvider"

# onnxruntime's own exceptions have no common root; the built-in ones come from its Python side.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    OSError,
    RuntimeError,
    ValueError,
)
_SILENT = 4  # onnxruntime's severities go from 0 (verbose) to 4 (fatal)
_severity = 2  # warnings, onnxruntime's default
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"

# One convolution, y = conv(x, w), all of shape (1, 1, 1, 1): the smallest network that needs cuDNN. ONNX, opset 13.
_SHAPE = b"\x12\x16\n\x14\x08\x01\x12\x10" + 4 * b"\n\x02\x08\x01"
CONVOLUTION = (
    b'\x08\x08:k\n\x0f\n\x01x\n\x01w\x12\x01y"\x04Conv\x12\x01g'
    + (b"Z\x1b\n\x01x" + _SHAPE + b"Z\x1b\n\x01w" + _SHAPE + b"b\x1b\n\x01y" + _SHAPE)
    + b"B\x04\n\x00\x10\r"
)

# Beside a GPU, onnxruntime deliberately computes tensor shapes on the CPU: copying a few integers would take longer.
# (`session.disable_cpu_ep_fallback` refuses these nodes too, and with them every model that resizes.) All of these
# operators have CUDA kernels, so none of them is on the CPU for another reason.
_SHAPE_OPERATORS = {
    *("Abs", "Add", "And", "Cast", "Concat", "Div", "Equal", "Floor", "Gather", "Greater", "Max", "Mul", "Range"),
    *("ReduceSum", "Relu", "Reshape", "Shape", "Sub", "Unsqueeze"),
}


def cuda_possible() -> bool:
    """Whether a GPU can be tried: onnxruntime is built for CUDA, and there is a driver."""
    # It lists CUDA wherever its GPU wheel is installed; without the driver it only prints errors.
    return CUDA in ort.get_available_providers() and cuda_driver_present()


def open_session(
    model: Path | bytes,
    *,
    path: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    all_on_gpu: bool = True,
    graphs: bool = False,
    spin: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX model.

    Args:
        model: an ONNX file, or its content, which must hold all weights.
        path: where the content comes from, for messages.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of the network on the CPU; by default one per core that this process may use.
        all_on_gpu: on a GPU, refuse a session that computes part of the network on the CPU.
        graphs: on a GPU, let runs be recorded as CUDA graphs.
        spin: let threads spin while they wait for one another during a run: faster, unless something else needs the
            cores, such as another session or threads that decode images.
        sizes: fixed sizes of axes that the model leaves free, by their names.

    Raises:
        ModelError: if onnxruntime cannot read the model.
        DeviceError: if the GPU cannot be used, or not for the whole network.
    """
    path = path if isinstance(model, bytes) else model
    start = partial(_start, model, path, threads, sizes=sizes)
    if device == "cpu":
        return start([], spin=spin)
    name, settings = cuda_provider(gpu_number(device))
    try:
        check_gpu(device)
        with _quiet():
            session = start([(name, settings | {"enable_cuda_graph": "1"} if graphs else settings)])
    except (DeviceError, ModelError) as error:
        start([])  # if this fails too, the cause is the file and not the device
        if isinstance(error, DeviceError):
            raise
        raise _refused(device, path, first_line(error.__cause__ or error)) from error
    if CUDA not in session.get_providers():
        raise _refused(device, path, _runs_on(session))
    if all_on_gpu:
        _require_all_on_gpu(session, path, device)
    return session


@functools.cache  # once per GPU, if it succeeds
def check_gpu(device: str) -> None:
    """Compute a convolution on a GPU with onnxruntime: only that shows whether driver, libraries and card fit.

    Args:
        device: ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: if it cannot, with the cause.
    """
    missing = load_cuda_libraries()
    one = np.ones((1, 1, 1, 1), np.float32)
    try:
        with _quiet():
            session = _start(CONVOLUTION, None, 1, [cuda_provider(gpu_number(device))])
            # Without a library that it needs, onnxruntime runs on the CPU and says so in its log only.
            if CUDA in session.get_providers():
                session.run(None, {"x": one, "w": one})
                return
        failure = missing[0] if missing else why_not_loaded() or _runs_on(session)
    except ORT_ERRORS as error:  # a ModelError is an OSError
        failure = first_line(error.__cause__ or error)
    raise device_error(onnxruntime_build(), device, failure)


def nodes_on_cpu(placed: list[tuple[str, str, str]]) -> list[str]:
    """Return the nodes on the CPU that do more than compute tensor shapes.

    Args:
        placed: provider, name and operator of each node.
    """
    return [
        f"{name} ({operator})"
        for provider, name, operator in placed
        if provider == CPU and operator not in _SHAPE_OPERATORS
    ]


def node_providers(session: ort.InferenceSession) -> list[tuple[str, str, str]]:
    """Return provider, name and operator of each node of a session that was opened for a GPU."""
    groups = session.get_provider_graph_assignment_info()
    return [(group.ep_name, node.name, node.op_type) for group in groups for node in group.get_nodes()]


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, without onnxruntime's error codes."""
    # From a library of CUDA, or from onnxruntime's memory: file, line and expression surround it.
    if failure := re.search(r"CU\w+ failure \d+: [^;]*[^; ]|Failed to allocate memory for [\w ]+", str(error)):
        return failure.group()
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)


def _start(
    model: Path | bytes,
    path: Path | None,
    threads: int | None,
    providers: list[Any],
    *,
    spin: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # In a container onnxruntime would count the cores of the machine.
    options.intra_op_num_threads = threads or cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # at the end of a run
    # Its log would mix with this project's messages; the exceptions say what matters.
    options.log_severity_level = _SILENT
    for axis, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(axis, size)
    if isinstance(model, bytes):  # or a graph could take its weights from files in the current folder
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if providers:
        options.add_session_config_entry(_RECORD_PLACEMENT, "1")
    try:
        return ort.InferenceSession(model, options, providers=[*providers, CPU], enable_fallback=0)
    except ORT_ERRORS as error:
        raise ModelError(
            "not a model that onnxruntime can read",
            path=path,
            expected="a complete ONNX file",
            found=first_line(error),
            fix="export or copy it again",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep stderr for this project's messages while CUDA is started: a session is asked what went wrong."""
    try:
        ort.set_default_logger_severity(_SILENT)
        yield
    finally:
        ort.set_default_logger_severity(_severity)


def silence_log() -> None:
    """Let onnxruntime write nothing to stderr from now on, where lines past Python's streams would be out of form."""
    global _severity
    _severity = _SILENT
    ort.set_default_logger_severity(_SILENT)


def _runs_on(session: ort.InferenceSession) -> str:
    return f"it runs on {', '.join(session.get_providers())}"


def _refused(device: str, path: Path | None, failure: str) -> DeviceError:
    fix = "free GPU memory by stopping other processes (nvidia-smi), or run on the CPU"
    return DeviceError(f"onnxruntime cannot open the model on {device}", path=path, found=failure, fix=fix)


def _require_all_on_gpu(session: ort.InferenceSession, path: Path | None, device: str) -> None:
    if found := nodes_on_cpu(node_providers(session)):
        raise DeviceError(
            f"part of the network would run on the CPU instead of {device}",
            path=path,
            expected=f"{CUDA} for every node",
            found=f"on the CPU: {listed(found)}",
            fix="use the float32 model, or run on the CPU",
        )

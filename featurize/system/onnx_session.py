"""A model file in onnxruntime, on the CPU or on a GPU: the one place where proving, measuring and serving open one.

Needs onnxruntime alone.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from xfeat.featurize.errors import DeviceError, ModelError
from xfeat.featurize.system.cores import cores
from xfeat.featurize.system.cuda import PROVIDER as CUDA
from xfeat.featurize.system.cuda import cuda_driver_present, cuda_provider

CPU = "CPUExecutionProvider"

# onnxruntime's own exceptions have no common root; the built-in ones come from its Python side.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    OSError,
    RuntimeError,
    ValueError,
)
_SILENT = 4  # onnxruntime's severities go from 0 (verbose) to 4 (fatal)
_WARNING = 2
_RECORD = "session.record_ep_graph_assignment_info"
_SHOWN = 5

# Next to a GPU, onnxruntime computes on the CPU what follows from the sizes of tensors alone, on purpose: copying a few
# whole numbers would take longer. (`session.disable_cpu_ep_fallback` refuses these too, and with them every model that
# resizes.) All of these have kernels for CUDA, so that none is on the CPU for another reason.
_ABOUT_SIZES = {
    *("Abs", "Add", "And", "Cast", "Concat", "Div", "Equal", "Floor", "Gather", "Greater", "Max", "Mul", "Range"),
    *("ReduceSum", "Relu", "Reshape", "Shape", "Sub", "Unsqueeze"),
}


def cuda_possible() -> bool:
    """Tell whether it is worth trying: onnxruntime is built for CUDA, and there is a driver."""
    # It lists CUDA wherever its GPU wheel is installed; without the driver it only prints errors.
    return CUDA in ort.get_available_providers() and cuda_driver_present()


def open_session(
    path: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    whole: bool = True,
    graphs: bool = False,
    spin: bool = False,
) -> ort.InferenceSession:
    """Open a model file; :func:`xfeat.export.model.cuda_graphs.open_network` does so as it is proven and served.

    Args:
        path: an ONNX file.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of the network on the CPU; by default all cores.
        whole: on a GPU, refuse a session that computes part of the network on the CPU.
        graphs: on a GPU, let runs be recorded as CUDA graphs.
        spin: let threads of the network spin while they wait for one another during a run: faster, unless something
            else needs the cores, such as another session or threads that decode.

    Raises:
        ModelError: if onnxruntime cannot read the file.
        DeviceError: if the GPU cannot be used, or not for the whole network.
    """
    if device == "cpu":
        return _start(path, threads, [], spin=spin)
    number = int(device.partition(":")[2] or 0)
    name, settings = cuda_provider(number)
    with _quiet():
        try:
            session = _start(path, threads, [(name, settings | {"enable_cuda_graph": "1"} if graphs else settings)])
        except ModelError as error:
            _start(path, threads, [])  # if this fails too, the file is at fault, not the device
            raise _unusable(number, first_line(error.__cause__ or error)) from error
    if CUDA not in session.get_providers():
        raise _unusable(number, f"onnxruntime {ort.__version__} runs on {', '.join(session.get_providers())}")
    if whole:
        _require_gpu(session, path, number)
    return session


def nodes_on_cpu(assigned: list[tuple[str, str, str]]) -> list[str]:
    """Return the nodes that compute on the CPU although they have more to do than to count.

    Args:
        assigned: of each node the provider, its name and its operator.
    """
    return [
        f"{name} ({operator})"
        for provider, name, operator in assigned
        if provider == CPU and operator not in _ABOUT_SIZES
    ]


def assignment(session: ort.InferenceSession) -> list[tuple[str, str, str]]:
    """Return provider, name and operator of each node of a session that was opened for a GPU.

    Raises:
        DeviceError: if this onnxruntime cannot tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise DeviceError(
            f"onnxruntime {ort.__version__} cannot tell which nodes run on the GPU",
            fix="pip install --upgrade onnxruntime-gpu",
        )
    groups = session.get_provider_graph_assignment_info()
    return [(group.ep_name, node.name, node.op_type) for group in groups for node in group.get_nodes()]


def first_line(error: BaseException) -> str:
    """Return what an exception says, without onnxruntime's codes in front and the lines that follow."""
    if failure := re.search(r"CU\w+ failure \d+: [^;]*[^; ]", str(error)):
        return failure.group()  # of a library of CUDA: around it stand a file, a line and an expression
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)


def _start(path: Path, threads: int | None, providers: list[Any], *, spin: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # In a container onnxruntime would count the cores of the machine.
    options.intra_op_num_threads = threads or cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # at the end of a run
    # Its messages would stand beside ours: what matters of them is in the exceptions.
    options.log_severity_level = _SILENT
    if providers:
        options.add_session_config_entry(_RECORD, "1")
    try:
        return ort.InferenceSession(path, options, providers=[*providers, CPU], enable_fallback=0)
    except ORT_ERRORS as error:
        raise ModelError(
            "not a model that onnxruntime can read",
            path=path,
            expected="a whole ONNX file of xexport onnx",
            found=first_line(error),
            fix="write it again with xexport onnx",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep stdout for results while CUDA's libraries are loaded, and stderr for our messages."""
    try:
        ort.set_default_logger_severity(_SILENT)
        with contextlib.redirect_stdout(io.StringIO()):  # preload_dlls prints
            ort.preload_dlls()
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _unusable(number: int, failure: str) -> DeviceError:
    return DeviceError(
        f"onnxruntime cannot use cuda:{number}",
        expected=CUDA,
        found=failure,
        fix="check nvidia-smi and pip show onnxruntime-gpu, or run on the CPU",
    )


def _require_gpu(session: ort.InferenceSession, path: Path, number: int) -> None:
    if found := nodes_on_cpu(assignment(session)):
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise DeviceError(
            f"part of the network would run on the CPU beside cuda:{number}",
            path=path,
            expected=f"{CUDA} for every node",
            found=f"on the CPU: {', '.join(found[:_SHOWN])}{more}",
            fix="take the model in float32, or run on the CPU",
        )

"""A model file in onnxruntime: opened on the device asked for, checked against its contract, errors translated."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from export.metadata import ModelMetadata
from featurize.cores import cores
from featurize.cuda import PROVIDER as CUDA
from featurize.cuda import check_device_name, cuda_driver_present, cuda_provider
from featurize.errors import DeviceError, ModelError

logger = logging.getLogger(__name__)

INPUT = "image"
CPU = "CPUExecutionProvider"
INPUT_TYPES = {"full": "tensor(uint8)", "core": "tensor(float)"}

_EXPORT = "write a model with xexport onnx"
# onnxruntime's own exceptions have no common root; the built-in ones come from its Python side.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    OSError,
    RuntimeError,
    ValueError,
)
_SILENT = 4  # onnxruntime's severities go from 0 (verbose) to 4 (fatal)


class Outputs(NamedTuple):
    """What the model says of a batch; ``None`` for what it does not give or was not asked for.

    Attributes:
        probabilities: float32 (N, C).
        logits: float32 (N, C).
        ood: float32 (N,), distance from the training images.
        heatmap: float32 (N, C, h, w), 0 or more.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None
    ood: NDArray[np.float32] | None = None
    heatmap: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Tensor:
    """An input or output of the graph; -1 stands for an axis of any size."""

    name: str
    kind: str
    shape: tuple[int, ...]


class ModelSession:
    """A model file that is open and known to keep its contract.

    Attributes:
        path: the file.
        metadata: what it says of itself.
        device: ``cpu`` or ``cuda:N``, where it really runs.
        inputs: of the graph.
        outputs: of the graph.
        gives: which of the outputs that this project knows the graph has.
    """

    def __init__(self, session: ort.InferenceSession, path: Path, device: str) -> None:
        self._session = session
        self.path = path
        self.device = device
        self.metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, path)
        self.inputs = tuple(_tensor(node) for node in session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in session.get_outputs())
        _check_contract(self)
        self.gives = frozenset(out.name for out in self.outputs) & frozenset(Outputs._fields)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None) -> ModelSession:
        """Open a model file.

        Args:
            path: a file of ``xexport onnx``.
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU if onnxruntime can use one.
            threads: CPU threads for inference; by default all cores.

        Raises:
            ModelError: if there is no such file, or it is none that this project wrote.
            DeviceError: if the device that was asked for is not there.
            SpecError: if ``device`` is none of these.
        """
        path = Path(path)
        check_device_name(device)
        if not path.is_file():
            found = "a folder" if path.is_dir() else None
            raise ModelError(
                "no such model",
                path=path,
                found=found,
                mend="run xexport onnx to write one, or name another with its path",
            )
        threads = threads or cores()
        if device == "cpu" or (device == "auto" and not _cuda_possible()):
            return cls(_start(path, threads, []), path, "cpu")
        number = int(device.partition(":")[2] or 0)
        session = _start_on_cuda(path, threads, number, required=device != "auto")
        return cls(session, path, f"cuda:{number}" if CUDA in session.get_providers() else "cpu")

    def run(self, pixels: NDArray[np.uint8], *, heatmap: bool = False) -> Outputs:
        """Run the network once.

        Args:
            pixels: uint8 (N, S, S, 3), RGB.
            heatmap: return heatmaps, if the model gives them.

        Raises:
            ModelError: if onnxruntime fails, or the answer has another shape than it should have.
        """
        batch: NDArray[Any] = pixels
        if self.metadata.variant == "core":
            batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
        wanted = [name for name in Outputs._fields if name in self.gives and (heatmap or name != "heatmap")]
        try:
            found = self._session.run(wanted, {INPUT: batch})
        except _ORT_ERRORS as error:
            raise ModelError("the model failed", path=self.path, found=_first_line(error)) from error
        answers = {name: np.asarray(answer, np.float32) for name, answer in zip(wanted, found, strict=True)}
        if "ood" in answers:
            answers["ood"] = answers["ood"].reshape(-1)
        for name, answer in answers.items():
            self._check_shape(name, answer, len(pixels))
        return Outputs(**answers)

    def _check_shape(self, name: str, answer: NDArray[np.float32], count: int) -> None:
        shape = (count,) if name == "ood" else (count, len(self.metadata.class_names))
        if answer.shape[: len(shape)] != shape or answer.ndim != (4 if name == "heatmap" else len(shape)):
            raise ModelError(
                f"a wrong answer in {name}", path=self.path, expected=f"shape {shape}", found=f"{answer.shape}"
            )


def _cuda_possible() -> bool:
    return CUDA in ort.get_available_providers() and cuda_driver_present()


def _start(path: Path, threads: int, providers: list[Any]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin while they wait take the cores from the threads that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Its messages would stand beside ours: what matters of them is in the exceptions.
    options.log_severity_level = _SILENT
    try:
        return ort.InferenceSession(path, options, providers=[*providers, CPU], enable_fallback=0)
    except _ORT_ERRORS as error:
        raise ModelError(
            "not a model that onnxruntime can read",
            path=path,
            expected="a whole ONNX file of xexport onnx",
            found=_first_line(error),
            mend=_EXPORT,
        ) from error


def _start_on_cuda(path: Path, threads: int, number: int, *, required: bool) -> ort.InferenceSession:
    failure = ""
    try:
        ort.set_default_logger_severity(_SILENT)
        with contextlib.redirect_stdout(io.StringIO()):  # preload_dlls prints, and stdout is for results
            ort.preload_dlls()
        session = _start(path, threads, [cuda_provider(number)])
        if CUDA in session.get_providers():
            return session
        failure = f"onnxruntime {ort.__version__} runs on {', '.join(session.get_providers())}"
    except ModelError as error:
        failure = _first_line(error.__cause__ or error)
        session = _start(path, threads, [])  # if this fails too, the file is at fault, not the device
    finally:
        ort.set_default_logger_severity(2)
    if required:
        raise DeviceError(
            f"onnxruntime cannot use cuda:{number}",
            expected=CUDA,
            found=failure,
            mend="check nvidia-smi and pip show onnxruntime-gpu, or run with --device cpu",
        )
    logger.warning("the GPU cannot be used, running on the CPU: %s", failure)
    return session


def _tensor(node: Any) -> Tensor:
    return Tensor(node.name, node.type, tuple(axis if isinstance(axis, int) else -1 for axis in node.shape))


def _check_contract(model: ModelSession) -> None:
    metadata = model.metadata
    size = metadata.feature_spec.preprocess.size
    shape = (-1, size, size, 3) if metadata.variant == "full" else (-1, 3, size, size)
    expected = Tensor(INPUT, INPUT_TYPES[metadata.variant], shape)
    fits = len(model.inputs) == 1 and _accepts(model.inputs[0], expected)
    _require_fit(model, fits, "inputs", _describe([expected]), _describe(model.inputs))
    outputs = {output.name: output for output in model.outputs}
    wanted = Tensor("probabilities", "tensor(float)", (-1, len(metadata.class_names)))
    fits = wanted.name in outputs and _accepts(outputs[wanted.name], wanted)
    _require_fit(model, fits, "outputs", _describe([wanted]), _describe(model.outputs))


def _accepts(found: Tensor, wanted: Tensor) -> bool:
    """Tell whether a tensor has the name, type and sizes wanted, or leaves those sizes open."""
    return (found.name, found.kind, len(found.shape)) == (wanted.name, wanted.kind, len(wanted.shape)) and all(
        axis in (-1, size) for axis, size in zip(found.shape, wanted.shape, strict=True)
    )


def _require_fit(model: ModelSession, fits: bool, what: str, expected: str, found: str) -> None:
    if not fits:
        raise ModelError(
            f"a model with other {what} than its metadata promise",
            path=model.path,
            expected=expected,
            found=found,
            mend="export the run again with xexport onnx",
        )


def _describe(tensors: tuple[Tensor, ...] | list[Tensor]) -> str:
    return ", ".join(f"{each.name} {each.kind} {list(each.shape)}" for each in tensors) or "none"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""A model file in onnxruntime: opened on the requested device, its inputs and outputs checked, errors translated."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.export.model.cuda_graphs import BoundSession, Session, open_network
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.errors import DeviceError, ModelError
from xfeat.featurize.system.cuda import check_device_name
from xfeat.featurize.system.onnx_session import ORT_ERRORS, cuda_possible, first_line

logger = logging.getLogger(__name__)

INPUT = "image"
INPUT_TYPES = {"full": "tensor(uint8)", "core": "tensor(float)"}


class Outputs(NamedTuple):
    """The model's outputs for a batch; ``None`` for an output that it lacks or that was not requested.

    Attributes:
        probabilities: float32 (N, C).
        logits: float32 (N, C).
        ood: float32 (N,), out-of-distribution score.
        heatmap: float32 (N, C, h, w), 0 or more.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None
    ood: NDArray[np.float32] | None = None
    heatmap: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Tensor:
    """An input or output of the graph; -1 means an axis of any size."""

    name: str
    kind: str
    shape: tuple[int, ...]


class ModelSession:
    """An open model file whose inputs and outputs agree with its metadata.

    Attributes:
        path: the file.
        metadata: of the file.
        device: ``cpu`` or ``cuda:N``, where it actually runs.
        inputs: of the graph.
        outputs: of the graph.
        known_outputs: names of the outputs that are also fields of :class:`Outputs`.
    """

    def __init__(self, session: Session, path: Path, device: str) -> None:
        self._session = session
        self.path = path
        self.device = device
        self.metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, path)
        self.inputs = tuple(_tensor(node) for node in session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in session.get_outputs())
        _check_interface(self)
        self.known_outputs = frozenset(out.name for out in self.outputs) & frozenset(Outputs._fields)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        cuda_graphs: str = "auto",
    ) -> ModelSession:
        """Open a model file.

        Args:
            path: a file of ``xexport onnx``.
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU if onnxruntime can use one.
            threads: CPU threads for inference; by default all cores.
            cuda_graphs: ``auto``, ``on`` (which needs a GPU) or ``off``; see
                :func:`xfeat.export.model.cuda_graphs.open_network`.

        Raises:
            ModelError: if the file does not exist, or was not written by this project.
            DeviceError: if the requested device, or CUDA graphs on it, are not available.
            SpecError: if ``device`` is none of these.
        """
        path = Path(path)
        check_device_name(device)
        if not path.is_file():
            found = "a folder" if path.is_dir() else None
            raise ModelError(
                "model not found",
                path=path,
                found=found,
                fix="run xexport onnx to write one, or give the path of another model",
            )
        if device == "auto" and cuda_graphs != "on":
            return cls._open_auto(path, threads, cuda_graphs)
        device = "cuda:0" if device in ("auto", "cuda") else device
        return cls(open_network(path, device=device, threads=threads, graphs=cuda_graphs), path, device)

    @classmethod
    def _open_auto(cls, path: Path, threads: int | None, cuda_graphs: str) -> ModelSession:
        if cuda_possible():
            try:
                session = open_network(path, device="cuda:0", threads=threads, all_on_gpu=False, graphs=cuda_graphs)
                return cls(session, path, "cuda:0")
            except DeviceError as error:
                logger.warning("the GPU cannot be used, running on the CPU: %s", error.found)
        return cls(open_network(path, threads=threads), path, "cpu")

    def warm_up(self, images: int) -> None:
        """Run the network once on black images; on a GPU, allocate the buffers for all later batches of this size.

        Raises:
            ModelError: as from :meth:`run`.
        """
        side = self.metadata.feature_spec.preprocess.size
        black = np.zeros((images, side, side, 3), np.uint8)
        if isinstance(self._session, BoundSession):
            with self._translated_errors():
                self._session.bind(self._feed(black))
        self.run(black)

    def run(self, pixels: NDArray[np.uint8], *, heatmap: bool = False) -> Outputs:
        """Run the network once.

        Args:
            pixels: uint8 (N, S, S, 3), RGB.
            heatmap: return heatmaps, if the model has them.

        Raises:
            ModelError: if onnxruntime fails, or an output has a wrong shape.
        """
        wanted = [name for name in Outputs._fields if name in self.known_outputs and (heatmap or name != "heatmap")]
        with self._translated_errors():
            found = self._session.run(wanted, self._feed(pixels))
        arrays = {name: np.asarray(array, np.float32) for name, array in zip(wanted, found, strict=True)}
        if "ood" in arrays:
            arrays["ood"] = arrays["ood"].reshape(-1)
        for name, array in arrays.items():
            self._check_shape(name, array, len(pixels))
        return Outputs(**arrays)

    def _feed(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        if self.metadata.variant == "core":
            return {INPUT: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)}
        return {INPUT: pixels}

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except ORT_ERRORS as error:
            raise ModelError("the model failed", path=self.path, found=first_line(error)) from error

    def _check_shape(self, name: str, array: NDArray[np.float32], count: int) -> None:
        shape = (count,) if name == "ood" else (count, len(self.metadata.class_names))
        if array.shape[: len(shape)] != shape or array.ndim != (4 if name == "heatmap" else len(shape)):
            raise ModelError(
                f"wrong shape of the output {name}", path=self.path, expected=str(shape), found=str(array.shape)
            )


def _tensor(node: Any) -> Tensor:
    return Tensor(node.name, node.type, tuple(axis if isinstance(axis, int) else -1 for axis in node.shape))


def _check_interface(model: ModelSession) -> None:
    metadata = model.metadata
    size = metadata.feature_spec.preprocess.size
    shape = (-1, size, size, 3) if metadata.variant == "full" else (-1, 3, size, size)
    expected = Tensor(INPUT, INPUT_TYPES[metadata.variant], shape)
    matches = len(model.inputs) == 1 and _accepts(model.inputs[0], expected)
    _require_match(model, matches, "inputs", _describe([expected]), _describe(model.inputs))
    outputs = {output.name: output for output in model.outputs}
    wanted = Tensor("probabilities", "tensor(float)", (-1, len(metadata.class_names)))
    matches = wanted.name in outputs and _accepts(outputs[wanted.name], wanted)
    _require_match(model, matches, "outputs", _describe([wanted]), _describe(model.outputs))


def _accepts(found: Tensor, expected: Tensor) -> bool:
    """Return whether a tensor has the expected name and type, and the expected sizes or free ones."""
    return (found.name, found.kind, len(found.shape)) == (expected.name, expected.kind, len(expected.shape)) and all(
        axis in (-1, size) for axis, size in zip(found.shape, expected.shape, strict=True)
    )


def _require_match(model: ModelSession, matches: bool, what: str, expected: str, found: str) -> None:
    if not matches:
        raise ModelError(
            f"the model's {what} do not match its metadata",
            path=model.path,
            expected=expected,
            found=found,
            fix="export the run again with xexport onnx",
        )


def _describe(tensors: tuple[Tensor, ...] | list[Tensor]) -> str:
    return ", ".join(f"{each.name} {each.kind} {list(each.shape)}" for each in tensors) or "none"

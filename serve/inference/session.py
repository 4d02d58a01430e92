"""A model file in onnxruntime: opened on the device asked for, checked against its contract, errors translated."""

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

    def __init__(self, session: Session, path: Path, device: str) -> None:
        self._session = session
        self.path = path
        self.device = device
        self.metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, path)
        self.inputs = tuple(_tensor(node) for node in session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in session.get_outputs())
        _check_contract(self)
        self.gives = frozenset(out.name for out in self.outputs) & frozenset(Outputs._fields)

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
            cuda_graphs: ``auto``, ``on`` (which wants a GPU) or ``off``; see
                :func:`xfeat.export.model.cuda_graphs.open_network`.

        Raises:
            ModelError: if there is no such file, or it is none that this project wrote.
            DeviceError: if the device that was asked for is not there, or no graphs where they were asked for.
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
                fix="run xexport onnx to write one, or name another with its path",
            )
        if device == "auto" and cuda_graphs != "on":
            return cls._open_where_possible(path, threads, cuda_graphs)
        device = "cuda:0" if device in ("auto", "cuda") else device
        return cls(open_network(path, device=device, threads=threads, graphs=cuda_graphs), path, device)

    @classmethod
    def _open_where_possible(cls, path: Path, threads: int | None, cuda_graphs: str) -> ModelSession:
        if cuda_possible():
            try:
                session = open_network(path, device="cuda:0", threads=threads, whole=False, graphs=cuda_graphs)
                return cls(session, path, "cuda:0")
            except DeviceError as error:
                logger.warning("the GPU cannot be used, running on the CPU: %s", error.found)
        return cls(open_network(path, threads=threads), path, "cpu")

    def warm_up(self, images: int) -> None:
        """Run the network once on so many black images; on a GPU, make places for all later batches of their number.

        Raises:
            ModelError: as from :meth:`run`.
        """
        side = self.metadata.feature_spec.preprocess.size
        black = np.zeros((images, side, side, 3), np.uint8)
        if isinstance(self._session, BoundSession):
            with self._translated():
                self._session.keep(self._feed(black))
        self.run(black)

    def run(self, pixels: NDArray[np.uint8], *, heatmap: bool = False) -> Outputs:
        """Run the network once.

        Args:
            pixels: uint8 (N, S, S, 3), RGB.
            heatmap: return heatmaps, if the model gives them.

        Raises:
            ModelError: if onnxruntime fails, or the answer has another shape than it should have.
        """
        wanted = [name for name in Outputs._fields if name in self.gives and (heatmap or name != "heatmap")]
        with self._translated():
            found = self._session.run(wanted, self._feed(pixels))
        answers = {name: np.asarray(answer, np.float32) for name, answer in zip(wanted, found, strict=True)}
        if "ood" in answers:
            answers["ood"] = answers["ood"].reshape(-1)
        for name, answer in answers.items():
            self._check_shape(name, answer, len(pixels))
        return Outputs(**answers)

    def _feed(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        if self.metadata.variant == "core":
            return {INPUT: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)}
        return {INPUT: pixels}

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ORT_ERRORS as error:
            raise ModelError("the model failed", path=self.path, found=first_line(error)) from error

    def _check_shape(self, name: str, answer: NDArray[np.float32], count: int) -> None:
        shape = (count,) if name == "ood" else (count, len(self.metadata.class_names))
        if answer.shape[: len(shape)] != shape or answer.ndim != (4 if name == "heatmap" else len(shape)):
            raise ModelError(
                f"a wrong answer in {name}", path=self.path, expected=f"shape {shape}", found=f"{answer.shape}"
            )


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
            fix="export the run again with xexport onnx",
        )


def _describe(tensors: tuple[Tensor, ...] | list[Tensor]) -> str:
    return ", ".join(f"{each.name} {each.kind} {list(each.shape)}" for each in tensors) or "none"

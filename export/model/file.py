"""An open model file: on the requested device, inputs and outputs checked, errors translated. No torch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.export.model.batches import to_nchw
from xfeat.export.model.cuda_graphs import BoundSession, Session, open_network
from xfeat.export.model.interface import DECISION, HEATMAP, INPUT, OOD, THRESHOLD, Outputs, Tensor, check_interface
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.errors import DeviceError, MismatchError, ModelError
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.system.cuda import check_device_name
from xfeat.featurize.system.onnx_session import ORT_ERRORS, cuda_possible, first_line
from xfeat.featurize.system.regular_files import read_regular

logger = logging.getLogger(__name__)

INTACT_COPY = "use an intact copy, or export the run again with xexport onnx"
_NO_MODEL = "run xexport onnx to write one, or give the path of another model"


class ModelFile:
    """An open model file whose inputs and outputs agree with its metadata.

    Attributes:
        path: the file.
        sha256: of the bytes that were loaded, whatever is at ``path`` now.
        session: on ``device``.
        device: ``cpu`` or ``cuda:N``, where it actually runs.
        metadata: stored in the file.
        inputs: of the graph.
        optional_inputs: inputs that may be left out.
        outputs: of the graph.
        known_outputs: names of the outputs that are also fields of :class:`Outputs`.
    """

    def __init__(self, path: Path, sha256: str, session: Session, device: str) -> None:
        self.path = path
        self.sha256 = sha256
        self.session = session
        self.device = device
        try:
            props = session.get_modelmeta().custom_metadata_map
            self.inputs = tensors(session.get_inputs())
            self.optional_inputs = tensors(session.get_overridable_initializers())
            self.outputs = tensors(session.get_outputs())
        except UnicodeDecodeError as error:  # onnxruntime does not look at texts
            raise ModelError(
                "damaged: a text is not UTF-8", path=path, found=str(error), fix="use an intact copy"
            ) from error
        self.metadata = ModelMetadata.from_props(props, path)
        check_interface(self.metadata, self.inputs, self.outputs, path)
        self.known_outputs = frozenset(output.name for output in self.outputs) & frozenset(Outputs._fields)

    def read(self) -> bytes:
        """Return the bytes of the file, as they were loaded.

        Raises:
            ModelError: if the file has changed since.
        """
        content = read_content(self.path, "model", _NO_MODEL)
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise ModelError(
                "the model file has changed since it was opened",
                path=self.path,
                expected=f"SHA-256 {self.sha256[:16]}…",
                found=f"{found[:16]}…",
                fix="run the same command again",
            )
        return content

    def feed(self, pixels: Pixels, *, whole: bool = False) -> dict[str, NDArray[Any]]:
        """Return the model's input for images, as :meth:`run` takes them."""
        if self.metadata.variant == "core":
            return {INPUT: to_nchw(pixels)}
        spec = self.metadata.feature_spec.preprocess
        if spec.cuts and not whole:  # one row, so that the model does not cut them again: xfeat.export.build.box_graph
            return {INPUT: pixels.reshape(len(pixels), 1, spec.size**2, 3)}
        return {INPUT: pixels}

    def bind(self, batches: Sequence[Pixels]) -> None:
        """Run batches uint8 (N, S, S, 3) once, so that later ones of their shapes find everything ready.

        On a GPU, they run in fixed buffers.

        Raises:
            ModelError: if onnxruntime fails, or outputs in the buffers differ.
            DeviceError: if CUDA graphs are required and cannot be recorded.
        """
        if isinstance(self.session, BoundSession):
            with self._failures():
                self.session.bind([self.feed(pixels) for pixels in batches])
        for pixels in batches:
            self.run(pixels)

    def run(
        self, pixels: Pixels, *, heatmap: bool = False, threshold: np.float32 | None = None, whole: bool = False
    ) -> Outputs:
        """Run the network once on uint8 (N, S, S, 3), RGB: pixels that were cut and resized.

        A full model also takes ``whole`` images (N, H, W, 3) of any one size, which it cuts and resizes itself.
        Heatmaps are returned if they are wanted, and if the model has them. A threshold other than the model's own is
        for models that have this input.

        Raises:
            ModelError: if onnxruntime fails, or an output has a wrong shape.
        """
        wanted = [name for name in Outputs._fields if name in self.known_outputs and (heatmap or name != HEATMAP)]
        with self._failures():
            feed = self.feed(pixels, whole=whole) | ({} if threshold is None else {THRESHOLD: np.asarray(threshold)})
            found = self.session.run(wanted, feed)
        arrays: dict[str, Any] = {
            name: np.asarray(array, np.int64 if name == DECISION else np.float32)
            for name, array in zip(wanted, found, strict=True)
        }
        if OOD in arrays:
            arrays[OOD] = arrays[OOD].reshape(-1)
        for name, array in arrays.items():
            self._check_shape(name, array, len(pixels))
        return Outputs(**arrays)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (ModelError, DeviceError):
            raise
        except ORT_ERRORS as error:
            raise ModelError("the model failed", path=self.path, found=first_line(error)) from error

    def _check_shape(self, name: str, array: NDArray[Any], count: int) -> None:
        shape = (count,) if name in (OOD, DECISION) else (count, len(self.metadata.class_names))
        if array.shape[: len(shape)] != shape or array.ndim != (4 if name == HEATMAP else len(shape)):
            raise ModelError(
                f"wrong shape of the output {name}", path=self.path, expected=str(shape), found=str(array.shape)
            )


def open_model(
    path: str | os.PathLike[str],
    threads: int | None = None,
    *,
    device: str = "cpu",
    cuda_graphs: str = "auto",
    all_on_gpu: bool = True,
    spin: bool = False,
    digests: Collection[str] | None = None,
    kind: Callable[[Path, str, Session, str], ModelFile] = ModelFile,
) -> ModelFile:
    """Open a model file, which is read once: its digest is that of the bytes that run.

    Args:
        path: a file of ``xexport onnx``.
        threads: of the network on the CPU; by default one per core that this process may use.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU if onnxruntime can use one.
        cuda_graphs: ``auto``, ``on`` (which needs a GPU) or ``off``; see
            :func:`xfeat.export.model.cuda_graphs.open_network`.
        all_on_gpu: on a GPU that was asked for, refuse a session that computes part of the network on the CPU.
        spin: let threads spin while they wait for one another; see there.
        digests: SHA-256 of the files that may be opened: others do not reach onnxruntime. ``None`` for all.
        kind: :class:`ModelFile`, or what takes its place for a model that was written elsewhere.

    Raises:
        MismatchError: if the file is none of these.
        ModelError: if the file does not exist, was not written by this project, or keeps weights in another file.
        DeviceError: if the requested device, or CUDA graphs on it, are not available; there is no fallback.
        SpecError: if ``device`` is none of these.
    """
    path = Path(path)
    check_device_name(device)
    content = read_content(path, "model", _NO_MODEL)
    sha256 = hashlib.sha256(content).hexdigest()
    if digests is not None and sha256 not in digests:
        raise MismatchError(
            "the model file does not match its certificate",
            path=path,
            expected=f"SHA-256 {' or '.join(f'{each[:16]}…' for each in digests)}",
            found=f"{sha256[:16]}…",
            fix=INTACT_COPY,
        )

    def opened(device: str, *, all_on_gpu: bool = True) -> ModelFile:
        session = open_network(
            content, path=path, device=device, threads=threads, all_on_gpu=all_on_gpu, graphs=cuda_graphs, spin=spin
        )
        return kind(path, sha256, session, device)

    if device == "auto" and cuda_graphs != "on":
        if cuda_possible():
            try:
                return opened("cuda:0", all_on_gpu=False)
            except DeviceError as error:
                logger.warning("the GPU is not used, running on the CPU: %s", error)
        return opened("cpu")
    return opened("cuda:0" if device in ("auto", "cuda") else device, all_on_gpu=all_on_gpu)


def read_content(path: Path, what: str, fix: str) -> bytes:
    """Return the content of a file; ``what`` it is, and ``fix``, are for messages.

    Raises:
        ModelError: if it is missing, or cannot be read.
    """
    try:
        return read_regular(path)
    except FileNotFoundError as error:
        raise ModelError(f"{what} not found", path=path, fix=fix) from error
    except OSError as error:
        raise ModelError(f"{what} cannot be read", path=path, found=error.strerror, fix=fix) from error


def tensors(nodes: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return inputs or outputs of a session."""
    return tuple(
        Tensor(node.name, node.type, tuple(axis if isinstance(axis, int) else -1 for axis in node.shape))
        for node in nodes
    )

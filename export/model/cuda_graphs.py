"""Sessions on a GPU: one per batch shape, with inputs and outputs in fixed buffers, replayed as a CUDA graph.

onnxruntime keeps one plan per convolution, that of the last shape, so in a session of its own no batch waits for new
plans. With all sizes fixed, the full model's resize is folded away too, and the model can be recorded as a CUDA graph.

A CUDA graph reads and writes the addresses that it was recorded with. onnxruntime keeps it in the thread that recorded
it, and during a recording no other thread of the process may allocate or copy on a GPU. So a model has one thread, and
while one records, no other runs or records.

Not run on a GPU yet. Everything except the graphs also runs on a CPU, where the tests run it.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs";
onnxruntime/core/providers/cuda/nn/conv.cc (``last_x_dims``) and cuda_graph.cc (``cudaStreamCaptureModeGlobal``).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from xfeat.export.specs import CUDA_GRAPHS
from xfeat.featurize.errors import DeviceError, ModelError
from xfeat.featurize.specs import require
from xfeat.featurize.system.onnx_session import ORT_ERRORS, first_line, open_session

logger = logging.getLogger(__name__)

Feed = Mapping[str, NDArray[Any]]
Opening = Callable[..., ort.InferenceSession]

# A replay does the same arithmetic as the recorded run; a larger difference means a wrong address.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3

_recording = threading.Lock()
_alive: weakref.WeakSet[BoundSession] = weakref.WeakSet()


class BoundSession:
    """Runs like an ``onnxruntime.InferenceSession``; batches of bound shapes go through sessions of their own.

    Args:
        opening: opens a session on ``device``, with the given sizes of free axes, for CUDA graphs or not.
        device: where the buffers are: ``cpu``, ``cuda`` or ``cuda:N``.
        path: of the model, for messages.
        graphs: ``on``, ``auto`` or ``off``; see :func:`open_network`.

    Attributes:
        graphs: whether bound shapes are recorded as CUDA graphs.
    """

    def __init__(self, opening: Opening, device: str, *, path: Path | None = None, graphs: str = "off") -> None:
        self.graphs = False
        self._path = path
        self._wanted = graphs
        self._opening = opening
        self._session = opening(sizes={}, graphs=False)
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        self.get_modelmeta = self._session.get_modelmeta
        self.get_overridable_initializers = self._session.get_overridable_initializers
        self._device = device
        self._bound: dict[object, _Buffers] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"network-{device}")
        _alive.add(self)

    def bind(self, feeds: Sequence[Feed]) -> None:
        """Run batches, each a mapping from input to array, and open the sessions that later ones of their shapes use.

        Raises:
            ModelError: if the outputs in the buffers differ from those of a plain run.
            DeviceError: if CUDA graphs are required and cannot be recorded.
        """
        if new := [feed for feed in feeds if _shape_of(feed) not in self._bound]:
            self._thread.submit(self._bind, new).result()

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[NDArray[Any]]:
        """Run the network once; the arrays returned are the caller's own.

        Args:
            names: of the outputs wanted; ``None`` for all.
            feed: name to array of each input.
        """
        return self._thread.submit(self._run, names, feed).result()

    def _run(self, names: Sequence[str] | None, feed: Feed) -> list[NDArray[Any]]:
        with self._lock:
            if buffers := self._bound.get(_shape_of(feed)):
                return buffers.run(names, feed)
            return list(self._session.run(names, feed))

    def _bind(self, feeds: Sequence[Feed]) -> None:
        with self._lock:
            batches = [(feed, self._session.run(None, feed)) for feed in feeds]
        if self._wanted != "off":
            try:
                # Whether a graph can be recorded shows only when one is.
                self._open_sessions(batches, graphs=True)
                self.graphs = True
                return
            except ORT_ERRORS as error:
                reason = getattr(error, "found", None) or first_line(error)
                if self._wanted == "on":
                    raise _without_graphs(self._path, reason) from error
                logger.warning("%s runs on %s without CUDA graphs: %s", self._path, self._device, reason)
            self._wanted, self.graphs = "off", False
        self._open_sessions(batches, graphs=False)

    def _open_sessions(self, batches: Sequence[tuple[Feed, list[NDArray[Any]]]], *, graphs: bool) -> None:
        opened = [self._opening(sizes=self._free_sizes(feed), graphs=graphs) for feed, _ in batches]
        with _exclusive() if graphs else self._lock:
            bound = [
                _Buffers(session, self._device, feed, plain)
                for session, (feed, plain) in zip(opened, batches, strict=True)
            ]
            for buffers, (feed, _) in zip(bound, batches, strict=True):
                buffers.run(None, feed)
            # Compared only now: a recording could have taken the memory of an earlier one.
            for buffers, (feed, plain) in zip(bound, batches, strict=True):
                buffers.overwrite_outputs()
                self._compare(buffers.run(None, feed), plain)
        self._bound |= {_shape_of(feed): buffers for buffers, (feed, _) in zip(bound, batches, strict=True)}

    def _compare(self, found: Sequence[NDArray[Any]], plain: Sequence[NDArray[Any]]) -> None:
        for one, other in zip(found, plain, strict=True):
            if not np.allclose(one, other, _RELATIVE, _ABSOLUTE, equal_nan=True):
                raise ModelError(
                    f"outputs in fixed buffers on {self._device} differ from those of a plain run",
                    path=self._path,
                    expected="the same values",
                    found=f"a difference of {np.abs(one - other).max():.2g}",
                )

    def _free_sizes(self, feed: Feed) -> dict[str, int]:
        """Return name and size of the axes that the graph leaves free."""
        return {
            axis: size
            for node in self.get_inputs()
            for axis, size in zip(node.shape, feed[node.name].shape, strict=True)
            if isinstance(axis, str)
        }


class _Buffers:
    """A session for batches of one shape, with buffers for a batch and its outputs."""

    def __init__(self, session: ort.InferenceSession, device: str, feed: Feed, outputs: Sequence[NDArray[Any]]) -> None:
        kind, _, number = device.partition(":")

        def allocate(like: NDArray[Any]) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype.type, kind, int(number or 0))

        self._session, self._binding = session, session.io_binding()
        self._inputs = {name: allocate(array) for name, array in feed.items()}
        nodes = zip(session.get_outputs(), outputs, strict=True)
        self._outputs = {node.name: allocate(output) for node, output in nodes}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def overwrite_outputs(self) -> None:
        """Put numbers there that no model returns: a run that does not write its outputs would leave right ones."""
        for value in self._outputs.values():
            value.update_inplace(np.full_like(value.numpy(), -1))

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[NDArray[Any]]:
        for name, array in feed.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        # On a CPU ``numpy()`` is a view of the buffer, which the next run overwrites.
        return [np.array(self._outputs[name].numpy()) for name in (self._outputs if names is None else names)]


Session: TypeAlias = ort.InferenceSession | BoundSession


def open_network(
    model: Path | bytes,
    *,
    path: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    all_on_gpu: bool = True,
    graphs: str = "auto",
    spin: bool = False,
) -> Session:
    """Open a model file to check, benchmark or serve it; on a GPU, for batches of bound shapes.

    Other arguments as for :func:`xfeat.featurize.system.onnx_session.open_session`; ``spin`` is for the CPU.

    Args:
        model: an ONNX file, or its content.
        path: where the content comes from, for messages.
        graphs: of bound shapes: ``on`` records CUDA graphs or fails; ``auto`` records them, and continues without
            them, with a warning, if that fails; ``off`` records none.

    Raises:
        ModelError: if onnxruntime cannot read the file.
        DeviceError: if the GPU cannot be used, or not for the whole network, or ``graphs`` is ``on`` on a CPU.
        SpecError: if ``graphs`` is none of the three.
    """
    path = path if isinstance(model, bytes) else model
    require(graphs in CUDA_GRAPHS, "unknown setting of CUDA graphs", expected=", ".join(CUDA_GRAPHS), found=graphs)
    if device == "cpu":
        if graphs == "on":
            raise _without_graphs(path, "it runs on the CPU")
        return open_session(model, path=path, threads=threads, spin=spin)
    opening = partial(open_session, model, path=path, device=device, threads=threads, all_on_gpu=all_on_gpu)
    return BoundSession(opening, device, path=path, graphs=graphs)


def _without_graphs(path: Path | None, reason: str) -> DeviceError:
    return DeviceError(
        "the model cannot be recorded as CUDA graphs",
        path=path,
        expected="a float32 model that runs on a GPU as a whole",
        found=reason,
        fix="leave out --cuda-graphs to run without them",
    )


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Wait until no session runs, and let none start."""
    with _recording, contextlib.ExitStack() as held:
        for session in list(_alive):
            held.enter_context(session._lock)
        yield


def _shape_of(feed: Feed) -> object:
    return tuple((name, array.shape, array.dtype.str) for name, array in feed.items())

"""Sessions on a GPU: inputs and outputs in fixed buffers on the device, and batches replayed as CUDA graphs.

A CUDA graph reads and writes the addresses that it was recorded with, so each batch shape has buffers of its own.
onnxruntime keeps a graph in the thread that recorded it, and during a recording no other thread of the process may
allocate or copy on a GPU. So each session has one thread, and while one session records, no other runs or records.

Not tested on a GPU. Everything except the graphs also runs on a CPU, where the tests run it.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs";
onnxruntime/core/providers/cuda/cuda_graph.cc (``cudaStreamCaptureModeGlobal``).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
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

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = -1
# A replay does the same arithmetic as the recorded run; a larger difference means a wrong address.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}

_recording = threading.Lock()
_alive: weakref.WeakSet[BoundSession] = weakref.WeakSet()


class BoundSession:
    """Runs like an ``onnxruntime.InferenceSession``; batches of bound shapes go through fixed buffers.

    Args:
        session: opened on ``device``, with CUDA graphs enabled if ``graphs``.
        device: where the buffers are: ``cpu``, ``cuda`` or ``cuda:N``.
        graphs: record a CUDA graph for each bound shape.

    Attributes:
        graphs: whether graphs are recorded.
    """

    def __init__(self, session: ort.InferenceSession, device: str, *, graphs: bool = False) -> None:
        self.graphs = graphs
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.get_modelmeta = session.get_modelmeta
        self._session = session
        self._device = device
        self._bound: dict[object, _Buffers] = {}
        # No id is used twice: onnxruntime would replay the earlier graph, whose buffers may have been freed.
        self._graph_ids = itertools.count(1)
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"network-{device}")
        _alive.add(self)

    def bind(self, feed: Feed) -> None:
        """Run a batch, and allocate the buffers that all later batches of its shape use.

        Args:
            feed: name to array of each input.

        Raises:
            ModelError: if the outputs in the buffers differ from those of a plain run.
        """
        self._thread.submit(self._bind, feed).result()

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
            return list(self._session.run(names, feed, self._options(_NO_GRAPH)))

    def _bind(self, feed: Feed) -> None:
        if _shape_of(feed) in self._bound:
            return
        with _exclusive() if self.graphs else self._lock:
            plain = self._session.run(None, feed, self._options(_NO_GRAPH))
            buffers = _Buffers(self._session, self._device, feed, plain, self._options(next(self._graph_ids)))
            found = buffers.run(None, feed)
        for one, other in zip(found, plain, strict=True):
            if not np.allclose(one, other, _RELATIVE, _ABSOLUTE, equal_nan=True):
                raise ModelError(
                    f"outputs in fixed buffers on {self._device} differ from those of a plain run",
                    expected="the same values",
                    found=f"a difference of {np.abs(one - other).max():.2g}",
                )
        self._bound[_shape_of(feed)] = buffers

    def _options(self, graph_id: int) -> ort.RunOptions:
        options = ort.RunOptions()
        if self.graphs:
            options.add_run_config_entry(_GRAPH_ID, str(graph_id))
        return options


class _Buffers:
    """Buffers for a batch of one shape and for its outputs, and the run that reads and writes them."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        feed: Feed,
        outputs: Sequence[NDArray[Any]],
        options: ort.RunOptions,
    ) -> None:
        kind, _, number = device.partition(":")

        def allocate(like: NDArray[Any]) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype.type, kind, int(number or 0))

        self._session, self._options, self._binding = session, options, session.io_binding()
        self._inputs = {name: allocate(array) for name, array in feed.items()}
        nodes = zip(session.get_outputs(), outputs, strict=True)
        self._outputs = {node.name: allocate(output) for node, output in nodes}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[NDArray[Any]]:
        for name, array in feed.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
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
    """Open a model file to check, benchmark or serve it: on a GPU with fixed buffers and, if possible, CUDA graphs.

    Other arguments as for :func:`xfeat.featurize.system.onnx_session.open_session`; ``spin`` is for the CPU.

    Args:
        model: an ONNX file, or its content.
        path: where the content comes from, for messages.
        graphs: ``on`` records CUDA graphs or fails; ``auto`` records them for a model that does not resize, and
            continues without them, with a warning, if that fails; ``off`` records none.

    Raises:
        ModelError: if onnxruntime cannot read the file.
        DeviceError: if the GPU cannot be used, or not for the whole network, or ``graphs`` is ``on`` and fails.
        SpecError: if ``graphs`` is none of the three.
    """
    path = path if isinstance(model, bytes) else model
    require(graphs in CUDA_GRAPHS, "unknown setting of CUDA graphs", expected=", ".join(CUDA_GRAPHS), found=graphs)
    if device == "cpu":
        if graphs == "on":
            raise _without_graphs(path, "it runs on the CPU")
        return open_session(model, path=path, threads=threads, spin=spin)
    opening = partial(open_session, model, path=path, device=device, threads=threads, all_on_gpu=all_on_gpu)
    session = opening()
    plain = BoundSession(session, device)
    image, *others = session.get_inputs()
    resizes = others or image.type not in _TYPES or not all(isinstance(size, int) for size in image.shape[1:])
    if resizes and graphs == "on":
        raise _without_graphs(path, f"images of any size: {image.shape}")
    if resizes or graphs == "off":
        return plain
    try:
        # Whether a graph can be recorded shows only when one is.
        recorded = BoundSession(opening(graphs=True), device, graphs=True)
        noise = np.random.default_rng(0).integers(0, 256, (1, *image.shape[1:]))
        recorded.bind({image.name: noise.astype(_TYPES[image.type])})
        return recorded
    except ORT_ERRORS as error:
        reason = getattr(error, "found", None) or first_line(error)
        if graphs == "on":
            raise _without_graphs(path, reason) from error
        logger.warning("%s runs on %s without CUDA graphs: %s", path, device, reason)
        return plain


def _without_graphs(path: Path | None, reason: str) -> DeviceError:
    return DeviceError(
        "the model cannot be recorded as CUDA graphs",
        path=path,
        expected="a model.core.onnx that runs on a GPU as a whole",
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

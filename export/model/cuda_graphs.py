"""A session whose images and answers have fixed places on its device, and whose work a GPU can record once and replay.

A CUDA graph reads and writes the addresses that it was recorded with, so each shape of batch gets places of its own.
onnxruntime holds a graph in the thread that recorded it, and while one is recorded no thread of the process may
allocate or copy on a GPU: hence a thread for each session, and one recording at a time, beside which none runs.

Nothing here has been run on a GPU. All but the graphs themselves runs on a CPU too, where the tests run it.

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

_GRAPH = "gpu_graph_id"
_NO_GRAPH = -1
# What is replayed does the same sums as what was recorded; further off, it reads or writes a wrong place.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}

_recording = threading.Lock()
_alive: weakref.WeakSet[BoundSession] = weakref.WeakSet()


class BoundSession:
    """Runs like an ``onnxruntime.InferenceSession``; batches of the shapes that are kept go through fixed places.

    Args:
        session: opened on ``device``, with CUDA graphs enabled if ``graphs``.
        device: where the places are: ``cpu``, ``cuda`` or ``cuda:N``.
        graphs: record the work on batches of each shape that is kept.

    Attributes:
        graphs: whether it is recorded.
    """

    def __init__(self, session: ort.InferenceSession, device: str, *, graphs: bool = False) -> None:
        self.graphs = graphs
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.get_modelmeta, self.get_providers = session.get_modelmeta, session.get_providers
        self._session = session
        self._device = device
        self._kept: dict[object, _Places] = {}
        # None is used again: onnxruntime would replay what it recorded under it, in places that may be gone.
        self._graphs = itertools.count(1)
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"network-{device}")
        _alive.add(self)

    def keep(self, feed: Feed) -> None:
        """Run a batch, and make places for all later ones of its shape.

        Args:
            feed: name to array of each input.

        Raises:
            ModelError: if the answers that came through the places are others than without them.
        """
        self._thread.submit(self._keep, feed).result()

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[NDArray[Any]]:
        """Run the network once; the arrays returned are the caller's own.

        Args:
            names: of the outputs wanted; ``None`` for all.
            feed: name to array of each input.
        """
        return self._thread.submit(self._run, names, feed).result()

    def _run(self, names: Sequence[str] | None, feed: Feed) -> list[NDArray[Any]]:
        with self._lock:
            places = self._kept.get(_shape_of(feed))
            if places is None:
                return list(self._session.run(names, feed, self._options(_NO_GRAPH)))
            places.run(self._session, feed)
            return places.answers(names)

    def _keep(self, feed: Feed) -> None:
        if _shape_of(feed) in self._kept:
            return
        with _alone() if self.graphs else self._lock:
            plain = self._session.run(None, feed, self._options(_NO_GRAPH))
            places = _Places(self._session, self._device, feed, plain, self._options(next(self._graphs)))
            places.run(self._session, feed)
        for one, other in zip(places.answers(None), plain, strict=True):
            if not np.allclose(one, other, _RELATIVE, _ABSOLUTE, equal_nan=True):
                raise ModelError(
                    f"other answers through fixed places on {self._device}",
                    expected="those of a plain run",
                    found=f"a difference of {np.abs(one - other).max():.2g}",
                )
        self._kept[_shape_of(feed)] = places

    def _options(self, graph: int) -> ort.RunOptions:
        options = ort.RunOptions()
        if self.graphs:
            options.add_run_config_entry(_GRAPH, str(graph))
        return options


class _Places:
    """Buffers for a batch of one shape and for its answers, and the run that reads and writes them."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        feed: Feed,
        answers: Sequence[NDArray[Any]],
        options: ort.RunOptions,
    ) -> None:
        kind, _, number = device.partition(":")

        def place(like: NDArray[Any]) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype.type, kind, int(number or 0))

        self._options = options
        self._binding = session.io_binding()
        self._inputs = {name: place(array) for name, array in feed.items()}
        self._outputs = {node.name: place(answer) for node, answer in zip(session.get_outputs(), answers, strict=True)}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, session: ort.InferenceSession, feed: Feed) -> None:
        for name, array in feed.items():
            self._inputs[name].update_inplace(array)
        session.run_with_iobinding(self._binding, self._options)

    def answers(self, names: Sequence[str] | None) -> list[NDArray[Any]]:
        # On a CPU ``numpy()`` shows the place itself, which the next run overwrites.
        return [np.array(self._outputs[name].numpy()) for name in (self._outputs if names is None else names)]


Session: TypeAlias = ort.InferenceSession | BoundSession


def open_network(
    path: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    whole: bool = True,
    graphs: str = "auto",
    spin: bool = False,
) -> Session:
    """Open a model file as it is proven, measured and served: on a GPU with fixed places and, where it can be, graphs.

    Args:
        path: an ONNX file.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of the network on the CPU; by default all cores.
        whole: on a GPU, refuse a session that computes part of the network on the CPU.
        graphs: ``on`` records CUDA graphs or fails; ``auto`` records those of a model that does not resize, and goes on
            without them, with a warning, if that fails; ``off``.
        spin: on the CPU, as :func:`xfeat.featurize.system.onnx_session.open_session` has it.

    Raises:
        ModelError: if onnxruntime cannot read the file.
        DeviceError: if the GPU cannot be used, or not for the whole network, or has to record graphs and cannot.
        SpecError: if ``graphs`` is none of these.
    """
    require(graphs in CUDA_GRAPHS, "unknown choice of CUDA graphs", expected=", ".join(CUDA_GRAPHS), found=graphs)
    if device == "cpu":
        if graphs == "on":
            raise _without_graphs(path, "it runs on the CPU")
        on_cpu: Session = open_session(path, threads=threads, spin=spin)
        return on_cpu
    session = open_session(path, device=device, threads=threads, whole=whole)
    plain = BoundSession(session, device)
    if graphs == "off":
        return plain
    if not _has_one_size(session):
        if graphs == "on":
            raise _without_graphs(path, f"an image of any size: {session.get_inputs()[0].shape}")
        return plain
    try:
        return _recorded(path, device, threads, whole)
    except ORT_ERRORS as error:
        reason = getattr(error, "found", None) or first_line(error)
        if graphs == "on":
            raise _without_graphs(path, reason) from error
        logger.warning("%s runs on %s without CUDA graphs: %s", path, device, reason)
        return plain


def _has_one_size(session: ort.InferenceSession) -> bool:
    image, *others = session.get_inputs()
    return not others and image.type in _TYPES and all(isinstance(size, int) for size in image.shape[1:])


def _recorded(path: Path, device: str, threads: int | None, whole: bool) -> BoundSession:
    """Open a model with CUDA graphs, and record one at once: what cannot be recorded shows only then."""
    session = open_session(path, device=device, threads=threads, whole=whole, graphs=True)
    recorded = BoundSession(session, device, graphs=True)
    [image] = session.get_inputs()
    noise = np.random.default_rng(0).integers(0, 256, (1, *image.shape[1:]))
    recorded.keep({image.name: noise.astype(_TYPES[image.type])})
    return recorded


def _without_graphs(path: Path, reason: str) -> DeviceError:
    return DeviceError(
        "the model cannot be recorded as CUDA graphs",
        path=path,
        expected="a model.core.onnx, all of it on a GPU",
        found=reason,
        fix="leave --cuda-graphs out, and it runs without them",
    )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let every session finish what it runs, and none begin."""
    with _recording, contextlib.ExitStack() as held:
        for session in list(_alive):
            held.enter_context(session._lock)
        yield


def _shape_of(feed: Feed) -> object:
    return tuple((name, array.shape, array.dtype.str) for name, array in feed.items())

"""Reads images in processes: with many cores, threads would wait for the GIL.

Measurements: docs/decisions/0017-decoding-in-processes.md.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.images.decoder_warnings import ignore_decoder_warnings
from xfeat.featurize.pipeline.reading import ReadImage, is_among, read_image
from xfeat.featurize.processes import ignoring_current_folder
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.cores import look_ahead
from xfeat.featurize.system.user_cache import temporary_folder

# Up to here threads suffice: a file holds the GIL for at most a tenth of its time.
MANY_WORKERS = 8
# ProcessPoolExecutor refuses more on Windows; this process cannot take the images of more anywhere.
MOST_PROCESSES = 61
# Starting the processes takes one or two seconds: threads are faster for fewer images.
_MANY_IMAGES = 2_000
# Each chunk costs this process a message; of small sets every process gets some.
_CHUNK_IMAGES = 32
_CHUNKS_AHEAD = 2


def suits_processes(workers: int, images: int) -> bool:
    """Tell whether processes finish sooner than threads."""
    return workers > MANY_WORKERS and images >= _MANY_IMAGES


def read_in_processes(
    source: ImageSource, paths: Sequence[str], spec: FeatureSpec, *, known: NDArray[np.bytes_], workers: int
) -> Generator[ReadImage, None, None]:
    """Read images in processes, a bounded number ahead, and yield them in the order given.

    Args:
        source: the data root; each process gets a copy that opens its own files.
        paths: relative to it.
        spec: size, and number of views per image.
        known: SHA-256 of content whose features are stored, sorted, 64 hexadecimal digits each.
        workers: number of processes.

    Raises:
        DeviceError: if one of the processes dies.
    """
    workers = min(workers, MOST_PROCESSES)
    size = max(1, min(_CHUNK_IMAGES, len(paths) // (workers * _CHUNKS_AHEAD)))
    chunks = [paths[first : first + size] for first in range(0, len(paths), size)]
    with temporary_folder() as folder:
        file = Path(folder) / "known.npy"
        np.save(file, known)
        # Not forked: threads of torch may be running already.
        context = multiprocessing.get_context("spawn")
        arguments = (source, spec, file)
        with ignoring_current_folder():
            pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=arguments)

        def submit(chunk: Sequence[str]) -> Future[list[ReadImage]]:
            with ignoring_current_folder(), _deaf_to_ctrl_c():  # it may start a process
                return pool.submit(_read_chunk, chunk)

        try:
            for images in look_ahead(submit, chunks, workers * _CHUNKS_AHEAD):
                yield from images
        except BrokenProcessPool as error:
            raise DeviceError(
                "a process that decodes images died",
                found="it was killed (perhaps out of memory), or a decoder crashed",
                fix="run the same command again with fewer --workers or with --decode-in threads: it resumes",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Block Ctrl-C for the processes that are started meanwhile: a terminal sends it to all; this one decides."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would unblock it when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# What follows runs in the processes.

_reader: Callable[[str], ReadImage] | None = None


def _start(source: ImageSource, spec: FeatureSpec, known_file: Path) -> None:
    global _reader  # the only way from an initializer to the calls
    ignore_decoder_warnings()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    is_known = partial(is_among, np.load(known_file))
    # Each process has its own GIL, so the decoder that holds it delays nobody.
    _reader = partial(read_image, source, spec=spec, is_known=is_known, may_hold_gil=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns when the parent is dead, even by SIGKILL; nobody else would end this process
        os._exit(1)


def _read_chunk(paths: Sequence[str]) -> list[ReadImage]:
    assert _reader is not None
    return [_reader(path) for path in paths]

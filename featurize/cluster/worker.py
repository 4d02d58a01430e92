"""The actor that runs on the machines of a cluster: it reads images and computes their features.

Images are sent as tables with the columns ``position`` and ``path`` (bytes: file names need not be text); outcomes are
pickled, a chunk in one row of a table.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.columns import to_text
from xfeat.featurize.engines import BatchSize, Engine, open_engine
from xfeat.featurize.errors import DeviceError, XfeatError
from xfeat.featurize.images.decoder_warnings import ignore_decoder_warnings
from xfeat.featurize.pipeline.inference import Outcome, infer
from xfeat.featurize.pipeline.reading import is_among, read_images
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.user_cache import temporary_folder
from xfeat.featurize.urls import is_url

Result = list[tuple[int, Outcome, str]]
"""Position, outcome and machine of each image."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The task of an actor.

    Attributes:
        spec: what to compute.
        weights_sha256: of the weights.
        weights: reference to names and bytes of their files in Ray's object store: machines need not see the files. The
            first is the file of the weights; others hold data of an encoder.
        source: the data root; each actor's copy opens its own files.
        root: its path.
        known: reference to the SHA-256 of content whose features are stored, sorted.
        device: ``cpu`` or ``cuda:0``, the only GPU that Ray shows an actor.
        threads: for decoding, and for inference on a CPU.
        batch_size: images per call of the network.
    """

    spec: FeatureSpec
    weights_sha256: str
    weights: Any
    source: ImageSource
    root: str
    known: Any
    device: str
    threads: int
    batch_size: BatchSize


class ImageWorker:
    """Reads images and computes their features; the network is opened when the first image needs it."""

    def __init__(self, assignment: Assignment) -> None:
        import ray

        ignore_decoder_warnings()
        self._assignment = assignment
        self._is_known = partial(is_among, ray.get(assignment.known))
        self._engine: Engine | None = None

    def __call__(self, images: pa.Table) -> pa.Table:
        """Return the outcome of every image, or the error that stops the run."""
        try:
            outcomes = self._outcomes([to_text(path) for path in images["path"].to_pylist()])
            host = socket.gethostname()
            positions = images["position"].to_pylist()
            return _packed([(at, outcome, host) for at, outcome in zip(positions, outcomes, strict=True)])
        except XfeatError as problem:
            return _packed(problem)

    def _outcomes(self, paths: Sequence[str]) -> Iterator[Outcome]:
        task = self._assignment
        if not is_url(task.root) and not os.path.exists(task.root):
            raise images_not_found(task.root, socket.gethostname())
        images = read_images(task.source, paths, task.spec, is_known=self._is_known, workers=task.threads)
        with (
            closing(images),
            closing(infer(images, task.spec, open_engine=self._open, is_known=self._is_known)) as done,
        ):
            for batch in done:
                yield from batch

    def _open(self) -> Engine:
        if self._engine is None:
            import ray

            task = self._assignment
            with temporary_folder() as folder:
                files = [(Path(folder) / name, content) for name, content in ray.get(task.weights)]
                for file, content in files:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                weights = Weights(task.spec.backbone, files[0][0], task.weights_sha256)
                self._engine = open_engine(
                    task.spec, weights, device=task.device, threads=task.threads, batch_size=task.batch_size
                )
        return self._engine


def images_not_found(root: str | os.PathLike[str], host: str) -> DeviceError:
    """Return the error of a machine that does not see the images."""
    return DeviceError(
        f"machine {host} of the cluster does not see the images",
        path=root,
        expected="the same files under the same path on every machine",
        fix="put them on a file system that all machines share, mounted at the same path",
    )


def _packed(result: Result | XfeatError) -> pa.Table:
    return pa.table({"pickled": pa.array([pickle.dumps(result)], pa.binary())})


def unpack(table: pa.Table) -> Result:
    """Unpack what an actor returned: position, outcome and machine of each image.

    Raises:
        XfeatError: the error of the machine, if it had one.
    """
    unpacked: Result = []
    for pickled in table["pickled"].to_pylist():
        result = pickle.loads(pickled)  # nosec B301  # from the cluster, which runs this project's code anyway
        if isinstance(result, XfeatError):
            raise result
        unpacked += result
    return unpacked

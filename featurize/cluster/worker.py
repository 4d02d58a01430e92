"""The actor that runs on the machines of a cluster: it reads images and computes their features.

Images are sent as tables with the columns ``position`` and ``path`` (bytes: file names need not be text); outcomes are
returned as the table of :func:`to_table`.
"""

from __future__ import annotations

import pickle
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.shards import FileIdentity
from xfeat.featurize.datasets.sources import ImageSource, open_source
from xfeat.featurize.engines import BatchSize, Engine, open_engine
from xfeat.featurize.errors import DeviceError, XfeatError
from xfeat.featurize.pipeline.inference import Outcome, infer
from xfeat.featurize.pipeline.reading import read_images
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.system.decoder_warnings import ignore_decoder_warnings

_NO_FILE = FileIdentity(0, 0, 0, "", truncated=False)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The task of an actor.

    Attributes:
        spec: what to compute.
        weights_sha256: of the weights.
        weights: reference to their bytes in Ray's object store: machines need not see the file.
        root: the data root.
        known: reference to the SHA-256 of content whose features are stored, sorted.
        device: ``cpu`` or ``cuda:0``, the only GPU that Ray shows an actor.
        threads: for decoding, and for inference on a CPU.
        batch_size: images per call of the network.
    """

    spec: FeatureSpec
    weights_sha256: str
    weights: Any
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
        self._known = ray.get(assignment.known)
        self._source: ImageSource | None = None
        self._engine: Engine | None = None

    def __call__(self, images: pa.Table) -> pa.Table:
        """Return the outcome of every image, or the error that stops the run."""
        try:
            outcomes = self._outcomes([path.as_py() for path in images["path"]])
            return to_table(images["position"].to_pylist(), list(outcomes))
        except XfeatError as problem:
            return _problem_table(problem)

    def _outcomes(self, paths: Sequence[bytes]) -> Iterator[Outcome]:
        task = self._assignment
        if self._source is None:
            self._source = _open_source(Path(task.root))
        names = [path.decode("utf-8", "surrogateescape") for path in paths]
        images = read_images(self._source, names, task.spec, is_known=self._is_known, workers=task.threads)
        with (
            closing(images),
            closing(infer(images, task.spec, open_engine=self._open, is_known=self._is_known)) as done,
        ):
            for batch in done:
                yield from batch

    def _is_known(self, sha256: str) -> bool:
        at = int(np.searchsorted(self._known, sha256.encode()))
        return at < len(self._known) and bool(self._known[at] == sha256.encode())

    def _open(self) -> Engine:
        if self._engine is None:
            import ray

            task = self._assignment
            with tempfile.TemporaryDirectory(prefix="xfeat-") as folder:
                file = Path(folder) / "weights"
                file.write_bytes(ray.get(task.weights))
                weights = Weights(task.spec.backbone, file, task.weights_sha256)
                self._engine = open_engine(
                    task.spec, weights, device=task.device, threads=task.threads, batch_size=task.batch_size
                )
        return self._engine


def _open_source(root: Path) -> ImageSource:
    if not root.exists():
        raise images_not_found(root, socket.gethostname())
    return open_source(root)


def images_not_found(root: Path, host: str) -> DeviceError:
    """Return the error of a machine that does not see the images."""
    return DeviceError(
        f"machine {host} of the cluster does not see the images",
        path=root,
        expected="the same files under the same path on every machine",
        fix="put them on a file system that all machines share, mounted at the same path",
    )


def to_table(positions: Sequence[int], outcomes: Sequence[Outcome]) -> pa.Table:
    """Pack outcomes, one row each; features are bytes, empty if there are none."""
    identities = [outcome.identity or _NO_FILE for outcome in outcomes]
    return _table(
        position=positions,
        readable=[outcome.identity is not None for outcome in outcomes],
        size=[identity.size for identity in identities],
        mtime_ns=[identity.mtime_ns for identity in identities],
        change_mark=[identity.change_mark for identity in identities],
        sha256=[identity.sha256.encode() for identity in identities],
        truncated=[identity.truncated for identity in identities],
        features=[b"" if outcome.features is None else outcome.features.tobytes() for outcome in outcomes],
        reason=[outcome.reason.encode("utf-8", "surrogateescape") for outcome in outcomes],
        host=[socket.gethostname().encode()] * len(outcomes),
        problem=[b""] * len(outcomes),
    )


def from_table(table: pa.Table, spec: FeatureSpec) -> list[tuple[int, Outcome, str]]:
    """Unpack a table of :func:`to_table`: position, outcome and machine of each image.

    Raises:
        XfeatError: the error of the machine, if it had one.
    """
    unpacked = []
    for row in table.to_pylist():
        if row["problem"]:
            raise pickle.loads(row["problem"])
        identity = FileIdentity(
            row["size"], row["mtime_ns"], row["change_mark"], row["sha256"].decode(), row["truncated"]
        )
        features = np.frombuffer(row["features"], spec.dtype)
        outcome = Outcome(
            identity if row["readable"] else None,
            features.reshape(spec.row_shape(len(features) // spec.views)) if len(features) else None,
            row["reason"].decode("utf-8", "surrogateescape"),
        )
        unpacked.append((row["position"], outcome, row["host"].decode()))
    return unpacked


def _problem_table(problem: XfeatError) -> pa.Table:
    empty = {"sha256": b"", "features": b"", "reason": b"", "host": b""}
    numbers = {"position": -1, "size": 0, "mtime_ns": 0, "change_mark": 0}
    flags = {"readable": False, "truncated": False}
    row = {**empty, **numbers, **flags, "problem": pickle.dumps(problem)}
    return _table(**{name: [value] for name, value in row.items()})


_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("readable", pa.bool_()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("change_mark", pa.int64()),
        ("sha256", pa.binary()),
        ("truncated", pa.bool_()),
        ("features", pa.binary()),
        ("reason", pa.binary()),
        ("host", pa.binary()),
        ("problem", pa.binary()),
    ]
)


def _table(**columns: Sequence[Any]) -> pa.Table:
    return pa.table({name: columns[name] for name in _SCHEMA.names}, _SCHEMA)

"""Runs on many machines with Ray Data: actors read images and compute features; this process writes."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.encoder_data import external_files
from xfeat.featurize.backbones.registry import PREFERRED, backbone_info, is_foreign
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.columns import to_bytes
from xfeat.featurize.errors import DeviceError, needs_extra
from xfeat.featurize.pipeline.reading import read_images
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.urls import Root

if TYPE_CHECKING:
    from xfeat.featurize.cluster.connection import ActorPlan
    from xfeat.featurize.cluster.worker import Assignment, Result
    from xfeat.featurize.engines import BatchSize
    from xfeat.featurize.pipeline.compute import Outcomes
    from xfeat.featurize.pipeline.inference import Outcome
    from xfeat.featurize.sources.image_source import ImageSource

logger = logging.getLogger(__name__)

# Images per chunk: what is lost if an actor dies, and computed again elsewhere. With a larger backbone or several views
# a chunk has fewer images, so that it takes no longer.
_CHUNK = 256
_SMALLEST_CHUNK = 8
_CHUNKS_PER_ACTOR = 4
# Ray needs a few kilobytes per chunk in this process.
_MOST_CHUNKS = 100_000
# Ray replaces dead actors and retries their chunks without limit. An image that crashes every actor would never finish,
# so the run fails if no chunk is finished in this time, the start of the first actor included. (256 images take eight
# seconds on one core with the preferred backbone; more expensive chunks get more time.)
_GIVE_UP_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A Ray cluster that reads images and computes their features.

    Attributes:
        spec: what to compute.
        weights: the backbone's weights, or the file of an encoder; they are sent to the machines.
        address: address of the cluster; see :func:`xfeat.featurize.cluster.connection.connected`.
        device: ``auto``, ``cpu``, or ``cuda`` for actors with a GPU each.
        cores: the most cores of the cluster to use; by default all.
        batch_size: images per call of the network.
    """

    spec: FeatureSpec
    weights: Weights
    address: str | None = None
    device: str = "auto"
    cores: int | None = None
    batch_size: BatchSize = None
    name: str = "ray"

    def outcomes(self, source: ImageSource, root: Root, paths: Sequence[str], known: NDArray[np.bytes_]) -> Outcomes:
        """Yield the outcomes of all images, in any order.

        Args:
            source: the data root, as this process sees it.
            root: its path; every machine must see the same files there.
            paths: relative to it.
            known: SHA-256 of content whose features are stored, sorted, 64 hexadecimal digits each.

        Raises:
            MissingExtraError: if Ray is not installed.
            SpecError: if a setting is invalid on a cluster.
            DeviceError: if there is no cluster, or one of its machines cannot compute this.
        """
        with needs_extra("ray"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray warns about its own internals
            import ray
            import ray.data
        from xfeat.featurize.cluster.connection import check_machines, cluster_error, connected, plan_actors

        root = root.absolute()
        with connected(self.address):
            plan = plan_actors(self.device, self.cores)
            check_machines(plan.nodes, root)
            size = f"{plan.cpus} CPUs" + (" and a GPU" if plan.gpus else "")
            logger.info("%d actors with %s each", plan.actors, size)
            try:
                for batch in self._computed(self._assignment(source, root, known, plan), paths, plan):
                    yield [
                        (at, self._recheck_unreadable(one, host, source, (root, paths[at]))) for at, one, host in batch
                    ]
            except (
                ray.exceptions.RayError,
                ray.data.exceptions.SystemException,
                ray.data.exceptions.ExecutionTimeoutError,
            ) as error:
                raise cluster_error(error) from error

    def _assignment(self, source: ImageSource, root: Root, known: NDArray[np.bytes_], plan: ActorPlan) -> Assignment:
        import ray

        from xfeat.featurize.cluster.worker import Assignment

        return Assignment(
            spec=self.spec,
            weights_sha256=self.weights.sha256,
            weights=ray.put([(name, file.read_bytes()) for name, file in _files(self.weights).items()]),
            source=source,
            root=str(root),
            known=ray.put(known),
            device="cuda:0" if plan.gpus else "cpu",
            threads=plan.cpus,
            batch_size=self.batch_size,
        )

    def _computed(self, assignment: Assignment, paths: Sequence[str], plan: ActorPlan) -> Iterator[Result]:
        import ray

        from xfeat.featurize.cluster.worker import ImageWorker, unpack

        _silence_ray_data_log()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cost = _cost(self.spec, self.weights)
            rows = _chunk_rows(len(paths), plan.actors, cost)
            images = ray.data.from_arrow(list(_chunks(paths, rows)))
        images.context.enable_progress_bars = False
        images.context.print_on_execution_start = False
        images.context.execution_no_progress_timeout_s = _GIVE_UP_SECONDS * max(1.0, rows * cost / _CHUNK)
        computed = images.map_batches(
            ImageWorker,
            fn_constructor_args=(assignment,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(plan.actors, images.num_blocks())),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
        )
        for table in computed.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield unpack(table)

    def _recheck_unreadable(self, outcome: Outcome, host: str, source: ImageSource, file: tuple[Root, str]) -> Outcome:
        """Skip an image only if this process cannot read it either: a machine may have lost its files."""
        if outcome.identity is not None:
            return outcome
        root, path = file
        (image,) = read_images(source, [path], self.spec, is_known=lambda _: False, workers=1)
        if image.identity is None:
            return outcome._replace(reason=image.reason)
        raise DeviceError(
            f"machine {host} of the cluster cannot read an image that this machine can read",
            path=root / path,
            found=outcome.reason,
            fix="check what is mounted and installed there, then run the same command again: it resumes",
        )


def _files(weights: Weights) -> dict[str, Path]:
    """Return the file of the weights, and those beside it that hold data of an encoder, by their names there."""
    data = external_files(weights.path) if is_foreign(weights.backbone) else ()
    return {str(file.relative_to(weights.path.parent)): file for file in (weights.path, *data)}


def _cost(spec: FeatureSpec, weights: Weights) -> float:
    """Return the cost of an image relative to one of the preferred backbone at its default size; 1 or more."""
    preferred = backbone_info(PREFERRED)
    if is_foreign(spec.backbone):
        # Nothing states the operations of an encoder. Per weight ResNet-50 has 160, ViT-B/16 200, at 224 pixels.
        bytes_of_weights = sum(file.stat().st_size for file in _files(weights).values())
        giga_macs, side = 200 * bytes_of_weights / 4 / 1e9, preferred.default_size
    else:
        one = backbone_info(spec.backbone)
        giga_macs, side = one.giga_macs, one.default_size
    return max(1.0, spec.views * (spec.preprocess.size / side) ** 2 * giga_macs / preferred.giga_macs)


def _chunk_rows(images: int, actors: int, cost: float) -> int:
    """Return the images per chunk: few enough that every actor gets some, and that a chunk is finished soon."""
    most = max(1, int(_CHUNK / cost))
    rows = min(most, max(_SMALLEST_CHUNK, math.ceil(images / (actors * _CHUNKS_PER_ACTOR))))
    return max(rows, math.ceil(images / _MOST_CHUNKS))


def _chunks(paths: Sequence[str], rows: int) -> Iterator[Any]:
    """Yield the images in tables."""
    import pyarrow as pa

    for first in range(0, len(paths), rows):
        # Names of files are bytes to the operating system; those that are not UTF-8 are not text for Arrow.
        names = [to_bytes(path) for path in paths[first : first + rows]]
        positions = range(first, first + len(names))
        yield pa.table({"position": pa.array(positions, pa.int64()), "path": pa.array(names, pa.binary())})


def _silence_ray_data_log() -> None:
    """Keep the log of Ray Data off the terminal; it is in Ray's log files, and errors are reported by this program."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL + 1)

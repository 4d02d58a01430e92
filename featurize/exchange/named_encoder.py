"""The encoder that the user names for features that were computed elsewhere, and whether it computes them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.columns import CacheDescription
from xfeat.featurize.engines import open_engine
from xfeat.featurize.errors import DataError, ImageError, MismatchError
from xfeat.featurize.exchange.staging import StagedRows
from xfeat.featurize.pipeline.inference import infer
from xfeat.featurize.pipeline.reading import read_images
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.specs import FeatureSpec
from xfeat.featurize.urls import root_of

logger = logging.getLogger(__name__)

_COMPARED = 8
# Of the largest feature of the image. Runtimes differ by 1e-5, another interpolation by 1e-2.
TOLERANCE = 1e-3
_WORKERS = 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class NamedEncoder:
    """An encoder, and how its features are checked.

    Attributes:
        spec: of its features.
        weights: of the encoder.
        check: compute the features of a few images, and compare them.
        progress: called as the image files are read for their digests.
    """

    spec: FeatureSpec
    weights: Weights
    check: bool = True
    progress: Progress | None = None

    def applied(self, described: CacheDescription, rows: StagedRows) -> tuple[CacheDescription, tuple[int, float]]:
        """Return the description of the cache with this encoder; how many images were compared, and the difference.

        Image files that are there get their digests.

        Raises:
            MismatchError: if the rows are none of this encoder.
            DataError: if none of the images is there to compare.
        """
        spec = replace(self.spec, dtype=rows.dtype.name)
        engine = open_engine(spec, self.weights)
        side = spec.preprocess.size
        width = int(engine.features(np.zeros((1, side, side, 3), np.uint8)).shape[-1]) * spec.views
        if width != rows.width:
            raise MismatchError(
                "the encoder computes another number of features",
                expected=f"{width} of {spec.describe()}",
                found=f"{rows.width} in each row of the table",
                fix="name the encoder that computed them, with its --pooling and --views",
            )
        source = open_source(root_of(described.data_root), broken_ok=True)
        there = [row for row, path in enumerate(described.columns.path) if source.state(path) is not None]
        compared = self._compared(source, spec, described, rows, there) if self.check else (0, 0.0)
        columns = replace(described.columns, **self._digests(source, described, there))
        weights_path = str(self.weights.path.absolute())
        return replace(described, spec=spec, columns=columns, weights_path=weights_path), compared

    def _compared(
        self, source: ImageSource, spec: FeatureSpec, described: CacheDescription, rows: StagedRows, there: list[int]
    ) -> tuple[int, float]:
        chosen = there[:: -(-len(there) // _COMPARED)] if there else []
        paths = [described.columns.path[row] for row in chosen]
        images = read_images(source, paths, spec, is_known=lambda _: False, workers=_WORKERS)
        batches = infer(images, spec, open_engine=lambda: open_engine(spec, self.weights), is_known=lambda _: False)
        found = []
        for row, path, outcome in zip(chosen, paths, chain.from_iterable(batches), strict=True):
            if outcome.features is not None:
                stored = rows.sorted(row, row + 1).astype(np.float64).ravel()
                difference = np.abs(outcome.features.astype(np.float64).ravel() - stored).max()
                found.append((float(difference / max(np.abs(stored).max(), np.finfo(np.float32).tiny)), path))
        if not found:
            raise DataError(
                "none of the images is there, so that the encoder cannot be checked",
                path=described.data_root,
                expected=f"images such as {described.columns.path[0]}",
                fix="name their folder with --data DIR, or leave the check out with --no-check",
            )
        largest, path = max(found)
        if largest > TOLERANCE:
            raise MismatchError(
                "the encoder computes other features than the table holds",
                path=path,
                expected=f"a difference of at most {TOLERANCE:g} of the largest feature ({spec.describe()})",
                found=f"{largest:.2g}, on {len(found)} images",
                fix="name the encoder, --size, --mean, --std, --resize, --crop and --interpolation that computed them",
            )
        return len(found), largest

    def _digests(self, source: ImageSource, described: CacheDescription, there: list[int]) -> dict[str, Any]:
        """Read the images that are there, so that later commands recognise them."""
        sha256, size = list(described.columns.sha256), described.columns.size.copy()
        for done, row in enumerate(there, start=1):
            with suppress(ImageError):
                content = source.read(described.columns.path[row])[0]
                sha256[row], size[row] = hashlib.sha256(content).hexdigest(), len(content)
            if self.progress is not None:
                self.progress(done, len(there))
        if len(there) < len(sha256):
            missing = len(sha256) - len(there)
            logger.warning("%d of %d images are not there: %s", missing, len(sha256), described.data_root)
        return {"sha256": sha256, "size": size}

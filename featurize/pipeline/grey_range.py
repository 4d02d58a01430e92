"""The range of 16-bit images: found once, the same for all images of a data set: docs/decisions/0075-pixels.md."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import Dataset
from xfeat.featurize.errors import ImageError, MismatchError
from xfeat.featurize.images.file_kinds import HEAD_BYTES, may_be_deep
from xfeat.featurize.images.grey_range import GreyRange, warn_if_other
from xfeat.featurize.progress import Steps
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.specs import FeatureRequest, FeatureSpec, PreprocessSpec
from xfeat.featurize.system.cores import cores, in_threads

logger = logging.getLogger(__name__)


def with_grey_bits(
    dataset: Dataset,
    request: FeatureRequest,
    spec: FeatureSpec,
    output: Path,
    *,
    force: bool,
    workers: int | None = None,
    progress: Steps | None = None,
) -> FeatureSpec:
    """Return the spec with the range of the data set's 16-bit images.

    The range of an existing cache is kept; images that it does not hold yet must fit.

    Args:
        dataset: the images.
        request: if it gives the number of bits, no image is read.
        spec: without the range.
        output: the cache to be written.
        force: whether an existing ``output`` is to be replaced.
        workers: reading threads; ``None`` takes one per core.
        progress: called as images are looked at.

    Raises:
        MismatchError: if new images do not fit the range of the cache.
        CacheError: if ``output`` exists and is not a cache.
    """
    if request.grey_bits is not None:
        return spec
    source = dataset.open()
    paths = [entry.path for entry in dataset.entries]
    old = FeatureCache.open(output, check=False) if output.exists() and not force else None
    if old is not None:
        bits = old.spec.preprocess.grey_bits
        if measure(source, _new_paths(old, source, paths), spec.preprocess, workers) is not None:
            _check_fits(output, bits, measure(source, paths, spec.preprocess, workers, progress))
    else:
        found = measure(source, paths, spec.preprocess, workers, progress)
        bits = spec.preprocess.grey_bits if found is None else found.bits
        if found is not None and bits < 16:
            _say_range(found)
    return dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, grey_bits=bits))


def _say_range(found: GreyRange) -> None:
    white = 2**found.bits - 1
    if found.all_state:
        logger.info("16-bit images state %d bits: %d is white", found.bits, white)
    else:
        logger.warning(
            "16-bit images hold levels up to %d: read as %d-bit, %d is white; this is a guess, --grey-bits sets it",
            found.highest,
            found.bits,
            white,
        )


def warn_of_other_range(dataset: Dataset, spec: FeatureSpec) -> None:
    """Warn if 16-bit images have another range than a model reads them in."""
    paths = [entry.path for entry in dataset.entries]
    warn_if_other(measure(dataset.open(), paths, spec.preprocess), spec.preprocess)


def measure(
    source: ImageSource,
    paths: Sequence[str],
    spec: PreprocessSpec,
    workers: int | None = None,
    progress: Steps | None = None,
) -> GreyRange | None:
    """Read the images that may have 16 bits per channel; ``None`` if the range of none is open.

    Args:
        source: the data root.
        paths: relative to it; of most files only the first bytes are read.
        spec: which of several frames is read.
        workers: reading threads; ``None`` takes one per core.
        progress: called as images are looked at.
    """
    found: list[GreyRange] = []
    ranges = in_threads(partial(_range_of, source, spec), paths, workers or cores(), "range")
    for number, one in enumerate(ranges, start=1):
        if one is not None:
            found.append(one)
        if progress is not None:
            progress(number, len(paths))
    return GreyRange.of_all(found)


def _range_of(source: ImageSource, spec: PreprocessSpec, path: str) -> GreyRange | None:
    if not may_be_deep(source.head(path, HEAD_BYTES)):
        return None
    with suppress(ImageError):  # of the read; reported when its features are computed
        return GreyRange.of(source.read(path)[0], spec)
    return None


def _new_paths(old: FeatureCache, source: ImageSource, paths: Sequence[str]) -> list[str]:
    """Return the images that are not in a cache, or may have changed since."""
    marks = zip(old.columns.size.tolist(), old.columns.change_mark.tolist(), strict=True)
    known = dict(zip(old.columns.path, marks, strict=True))
    found = ((path, source.state(path)) for path in paths)
    return [path for path, state in found if state is None or known.get(path) != (state.size, state.change_mark)]


def _check_fits(output: Path, bits: int, found: GreyRange | None) -> None:
    if found is None or found.fits(bits):
        return
    raise MismatchError(
        "the range of the 16-bit images differs from that of the cache",
        path=output,
        expected=f"{bits}-bit levels, up to {2**bits - 1}",
        found=f"levels up to {found.highest}, which need {found.bits} bits",
        fix=f"xfeat featurize with --force replaces the cache; with --grey-bits {bits} it keeps the range, and higher "
        "levels become white",
    )

"""Duplicates: equal files, and nearest neighbours in feature space whose pixels agree too."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.alignment import PLAIN, aligned_correlation, equalised
from xfeat.featurize.audit.findings import Pair
from xfeat.featurize.audit.survey import SIDE, Survey
from xfeat.featurize.audit.thresholds import THRESHOLDS

logger = logging.getLogger(__name__)

_PAIRS = 256  # compared at a time
# Registering a pair of images takes this long on one core; for so many pairs the duration is reported.
_PAIR_SECONDS = 0.004
_MANY_PAIRS = 5_000
# Detail finer than about a twentieth of the side; coarser shapes are similar in all images of one kind.
_DETAIL_SIGMA = 1.5
# Correlation above which only the file differs, not the image.
_CERTAIN = 0.97


def same_files(hashes: Sequence[str]) -> tuple[NDArray[np.int64], list[Pair]]:
    """Pair the exact copies of a file with its first occurrence.

    Args:
        hashes: digest of each row's file.

    Returns:
        int64, the first row of each content, ascending; one pair for each further row.
    """
    first_with: dict[str, int] = {}
    pairs = [
        Pair(first, row, "the same file")
        for row, digest in enumerate(hashes)
        if (first := first_with.setdefault(digest, row)) != row
    ]
    return np.fromiter(first_with.values(), np.int64, len(first_with)), pairs


def near_duplicates(
    rows: NDArray[np.int64], neighbours: NDArray[np.int64], cosines: NDArray[np.float32], survey: Survey
) -> tuple[list[Pair], list[Pair]]:
    """Check by pixels which neighbours are duplicates.

    Args:
        rows: int64 (n,), the rows that took part in the search.
        neighbours: int64 (n, k), places in ``rows``.
        cosines: float32 (n, k).
        survey: the small grey images.

    Returns:
        Pairs whose pixels agree, and pairs that are very close in feature space but whose files are missing; the most
        similar pairs first.
    """
    if not neighbours.size:
        return [], []
    own = np.repeat(np.arange(len(rows)), neighbours.shape[1])
    ends = np.sort(np.stack([own, neighbours.ravel()], axis=1), axis=1)
    ends, where, pair_of = np.unique(ends, axis=0, return_index=True, return_inverse=True)
    rank = np.full(len(ends), neighbours.shape[1])
    np.minimum.at(rank, pair_of.ravel(), np.tile(np.arange(neighbours.shape[1]), len(rows)))
    first, second, cosine = rows[ends[:, 0]], rows[ends[:, 1]], cosines.ravel()[where]
    comparable = survey.present[first] & survey.present[second]
    pixels = np.zeros(len(first), np.float32)
    mirrored, inverted, moved = np.zeros((3, len(first)), np.bool_)
    for block in _blocks(np.flatnonzero(comparable)):
        pixels[block], mirrored[block], inverted[block] = detail_correlation(
            survey.grey[first[block]], survey.grey[second[block]]
        )
    candidates = np.flatnonzero(comparable & (pixels < THRESHOLDS.same_pixels) & (rank < THRESHOLDS.laid_over))
    if len(candidates) >= _MANY_PAIRS:
        minutes = len(candidates) * _PAIR_SECONDS / 60
        logger.info("comparing %d pairs of images by registration (about %.0f minutes)", len(candidates), minutes)
    for block in _blocks(candidates):
        found, flipped = overlay_correlation(survey.fine[first[block]], survey.fine[second[block]])
        moved[block] = found >= THRESHOLDS.same_laid_over
        pixels[block] = np.where(moved[block], found, pixels[block])
        mirrored[block] = np.where(moved[block], flipped, mirrored[block])
    confirmed = [
        Pair(
            int(first[i]),
            int(second[i]),
            _describe(pixels[i], mirrored[i], inverted[i], moved[i]),
            float(pixels[i]),
            float(cosine[i]),
        )
        for i in np.flatnonzero(comparable & (pixels >= THRESHOLDS.same_pixels))
    ]
    unconfirmed = [
        Pair(int(first[i]), int(second[i]), "very similar features; pixels not compared", None, float(cosine[i]))
        for i in np.flatnonzero(~comparable & (cosine >= THRESHOLDS.alike_features))
    ]
    return (
        sorted(confirmed, key=lambda pair: -(pair.pixels or 0)),
        sorted(unconfirmed, key=lambda pair: -(pair.features or 0)),
    )


def overlay_correlation(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Correlate images after registration; borderline pairs a second time with equalised histograms.

    Another gamma changes the contrast of fine detail, so that a crop with another gamma only comes near the threshold.
    Arguments and results are those of :func:`xfeat.featurize.audit.alignment.aligned_correlation`.
    """
    found, mirrored = aligned_correlation(first, second)
    doubtful = np.flatnonzero((found >= THRESHOLDS.doubtful_laid_over) & (found < THRESHOLDS.same_laid_over))
    if len(doubtful):
        again, flipped = aligned_correlation(equalised(first[doubtful]), equalised(second[doubtful]))
        better = again >= THRESHOLDS.same_laid_over
        found[doubtful[better]], mirrored[doubtful[better]] = again[better], flipped[better]
    return found, mirrored


def detail_correlation(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Correlate the fine detail of small grey images, as they are and with one of them mirrored, inverted, or both.

    All images of a kind have coarse shapes in common (a chest is bright at the sides and dark in the lungs);
    subtracting a blurred copy leaves the detail of a single image. Brightness and contrast do not matter.

    Args:
        first: uint8 (n, 32, 32).
        second: uint8 (n, 32, 32).

    Returns:
        The largest correlation, float32 (n,), 0 if an image is too uniform; whether the second image was mirrored for
        it, bool (n,); whether its black and white were exchanged for it, bool (n,).
    """
    one, other = _detail(first), _detail(second)
    straight = np.einsum("nij,nij->n", one, other)
    flipped = np.einsum("nij,nij->n", one, other[:, :, ::-1])
    ways = np.stack([straight, flipped, -straight, -flipped])
    best, largest = ways.argmax(axis=0), ways.max(axis=0)
    return largest, best % 2 == 1, (best >= 2) & (largest > 0)


def _detail(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    values = grey.astype(np.float32)
    fine = values - gaussian_filter(values, (0, _DETAIL_SIGMA, _DETAIL_SIGMA))
    fine -= fine.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(fine, axis=(1, 2), keepdims=True)
    plain = length < PLAIN * SIDE  # the norm of SIDE² values of this root mean square
    unit: NDArray[np.float32] = np.where(plain, 0, fine / np.maximum(length, 1e-6)).astype(np.float32)
    return unit


def _blocks(pairs: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [pairs[first : first + _PAIRS] for first in range(0, len(pairs), _PAIRS)]


def _describe(pixels: np.float32, mirrored: np.bool_, inverted: np.bool_, moved: np.bool_) -> str:
    same = "the same image" if pixels >= _CERTAIN else "nearly the same image"
    if moved or inverted:
        change = ", cropped, rotated or stretched" if moved else ", black and white exchanged"
        return same + change + (", and mirrored" if mirrored else "")
    return same + (", mirrored" if mirrored else ", saved again" if pixels >= _CERTAIN else "")

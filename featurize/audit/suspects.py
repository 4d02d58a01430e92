"""Single images that should be looked at: labels that the features contradict, and outliers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.findings import FlaggedImage
from xfeat.featurize.audit.probing import Labels

# Tukey's outer fence: beyond it, a value is "far out".
# Source: J. W. Tukey, Exploratory Data Analysis, 1977, chapter 2.
_FENCE = 3.0
# With fewer images of a class, quartiles are not meaningful.
_MIN_IMAGES = 20


def label_suspects(
    rows: NDArray[np.int64], labels: Labels, probabilities: NDArray[np.float64], names: list[str]
) -> list[FlaggedImage]:
    """Rank the images whose label confident learning (cleanlab) believes to be wrong.

    Args:
        rows: int64 (n,), rows of the cache.
        labels: (n,), 0 to C - 1, as given.
        probabilities: float64 (n, C), out of fold.
        names: the C classes.

    Returns:
        The least likely label first; the score is the probability of the given label.

    Source:
        C. G. Northcutt, L. Jiang, I. L. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels,
        JAIR 70, 2021.
    """
    from cleanlab.filter import find_label_issues

    issues = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    flagged = []
    for place in np.asarray(issues, np.int64).tolist():
        given, likely = int(labels[place]), int(probabilities[place].argmax())
        if given != likely:
            p_given, p_likely = float(probabilities[place, given]), float(probabilities[place, likely])
            why = f"labelled {names[given]} ({p_given:.0%}), looks like {names[likely]} ({p_likely:.0%})"
            flagged.append(FlaggedImage(int(rows[place]), why, p_given))
    return flagged


def outliers(rows: NDArray[np.int64], cosines: NDArray[np.float32], labels: Labels) -> list[FlaggedImage]:
    """Find the images whose distance from their neighbours is unusually large for their class.

    Args:
        rows: int64 (n,), rows of the cache.
        cosines: float32 (n, k), to the nearest neighbours, whatever their class.
        labels: (n,), -1 for none; the spread of images differs between classes.

    Returns:
        The farthest first; the score is the median distance (1 - cosine) to the neighbours, divided by the median of
        the class.
    """
    if not cosines.size:
        return []
    distances = 1 - np.median(cosines, axis=1)
    flagged = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        low, usual, high = np.percentile(distances[own], [25, 50, 75])
        if len(own) < _MIN_IMAGES or usual <= 0:
            continue
        for i in own[distances[own] > high + _FENCE * (high - low)].tolist():
            times = float(distances[i] / usual)
            flagged.append(
                FlaggedImage(
                    int(rows[i]), f"{times:.1f} × as far from its neighbours as the median image of its class", times
                )
            )
    return sorted(flagged, key=lambda one: -one.score)

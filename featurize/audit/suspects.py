"""Findings about single images: labels that the features contradict, and outliers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.findings import NOTE, WARNING, Finding, FlaggedImage, Probe, count_of
from xfeat.featurize.audit.probing import Labels

# Below this AUC, labels that the features contradict are not reported.
_MIN_AUC = 0.65
# Tukey's outer fence: beyond it, a value is "far out".
# Source: J. W. Tukey, Exploratory Data Analysis, 1977, chapter 2.
_FENCE = 3.0
# With fewer images of a class, quartiles are not meaningful.
_MIN_IMAGES = 20


def label_findings(
    rows: NDArray[np.int64], labels: Labels, probabilities: NDArray[np.float64], names: list[str], whole: Probe
) -> Iterator[Finding]:
    """Report the images whose label confident learning (cleanlab) believes to be wrong, the least likely first.

    Args:
        rows: int64 (n,), rows of the cache.
        labels: (n,), 0 to C - 1, as given.
        probabilities: float64 (n, C), out of fold; that of the given label is the score.
        names: the C classes.
        whole: the probe that gave the probabilities.

    Source:
        C. G. Northcutt, L. Jiang, I. L. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels,
        JAIR 70, 2021.
    """
    from cleanlab.filter import find_label_issues

    if whole.best < _MIN_AUC:
        yield Finding(
            kind="labels.unmeasured",
            severity=NOTE,
            title=f"The features do not separate the classes (AUC {whole.best:.2f}; chance is 0.5)",
            meaning="So single labels cannot be checked, and a head will not learn much from these features.",
            fix="check that the images are in the right class folders; "
            "try another backbone, size or --pooling multilevel",
        )
        return
    flagged = []
    for place in find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1):
        given, likely = labels[place], probabilities[place].argmax()
        if given != likely:
            p_given, p_likely = probabilities[place, [given, likely]].tolist()
            why = f"labelled {names[given]} ({p_given:.0%}), looks like {names[likely]} ({p_likely:.0%})"
            flagged.append(FlaggedImage(int(rows[place]), why, p_given))
    if flagged:
        share = len(flagged) / len(rows)
        yield Finding(
            kind="labels.suspect",
            severity=WARNING if share >= 0.01 else NOTE,
            title=f"{count_of(len(flagged), 'label')} ({share:.1%}) contradicted by the features",
            meaning="Some are wrong labels, which reduce accuracy and distort the test; others are hard cases. The "
            "least likely labels come first.",
            fix="look at the first of them, move wrong ones to the right class folder, and run xfeat featurize again",
            images=flagged,
        )


def outlier_findings(rows: NDArray[np.int64], cosines: NDArray[np.float32], labels: Labels) -> Iterator[Finding]:
    """Report the images whose distance from their neighbours is unusually large for their class, the farthest first.

    The score is the median distance (1 - cosine) to the neighbours, divided by the median of the class.

    Args:
        rows: int64 (n,), rows of the cache.
        cosines: float32 (n, k), to the nearest neighbours, whatever their class.
        labels: (n,), -1 for none; the spread of images differs between classes.
    """
    distances = 1 - np.median(cosines, axis=1) if cosines.size else np.zeros(len(rows))
    flagged = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        low, usual, high = np.percentile(distances[own], [25, 50, 75])
        if len(own) < _MIN_IMAGES or usual <= 0:
            continue
        for i in own[distances[own] > high + _FENCE * (high - low)].tolist():
            times = float(distances[i] / usual)
            why = f"{times:.1f} × as far from its neighbours as the median image of its class"
            flagged.append(FlaggedImage(int(rows[i]), why, times))
    if flagged:
        yield Finding(
            kind="outliers",
            severity=NOTE,
            title=f"{count_of(len(flagged), 'image')} out of distribution (outliers)",
            meaning="They may be images of another kind (a photograph, a side view, a test pattern), or rare cases.",
            fix="remove what does not belong; keep what is rare",
            images=sorted(flagged, key=lambda one: -one.score),
        )

"""Shortcuts: can the label be predicted from the border, the surroundings, the file or the grey levels alone?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.findings import Probe
from xfeat.featurize.audit.probing import Labels, out_of_fold, score
from xfeat.featurize.audit.survey import SIDE, Survey
from xfeat.featurize.audit.thresholds import THRESHOLDS

# Of 32 pixels. In the drawn phantoms, whose classes differ only inside the lungs, these areas contain almost nothing of
# the class (AUC 0.49 and 0.58); one pixel more contains the edge of the lungs (0.77). The table is in docs/audit.md.
_BORDER = 3
_AROUND = 5
# Name of a probe to what it is given, in a few words and in full.
EVIDENCE = {
    "border": ("border alone", f"the outer {100 * _BORDER / SIDE:.0f} % on each side, alone"),
    "centre-blacked-out": (
        "centre blacked out",
        f"the image with the middle {100 * (1 - 2 * _AROUND / SIDE):.0f} % of each side blacked out",
    ),
    "file": ("file size and format alone", "width, height, format and length of the file"),
    "grey-levels": ("grey levels alone", "mean, standard deviation and percentiles of the grey levels, colour cast"),
}


def frame_mask(width: int) -> NDArray[np.bool_]:
    """Return a mask, bool (32, 32), of the pixels that are less than ``width`` from an edge."""
    mask = np.ones((SIDE, SIDE), np.bool_)
    mask[width:-width, width:-width] = False
    return mask


MASKS = {"border": frame_mask(_BORDER), "centre-blacked-out": frame_mask(_AROUND)}


def probe_shortcuts(
    survey: Survey, rows: NDArray[np.int64], labels: Labels, names: list[str], groups: NDArray[np.int64]
) -> list[Probe]:
    """Measure how well the label of each of n present rows can be predicted from each kind of information.

    The other arguments are those of :func:`~xfeat.featurize.audit.probing.out_of_fold`, and the C classes.
    """
    return [
        score(name, what, labels, names, out_of_fold(_evidence(name, survey, rows), labels, groups, balanced=True))
        for name, (_, what) in EVIDENCE.items()
    ]


def is_strong(probe: Probe) -> bool:
    """Tell whether a shortcut is strong: its AUC is over the threshold, and significantly above chance."""
    above_chance = probe.best - 2 * probe.standard_error > 0.5
    return not probe.is_control and probe.best >= THRESHOLDS.strong_shortcut and above_chance


def _evidence(name: str, survey: Survey, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    if name in MASKS:
        left, top, right, bottom = (edge[:, None, None] for edge in survey.seen[rows].T)
        down, across = np.ogrid[:SIDE, :SIDE]
        seen = (left <= across) & (across < right) & (top <= down) & (down < bottom)
        return np.where(seen, survey.grey[rows], 0)[:, MASKS[name]].astype(np.float32)
    if name == "file":
        kinds = np.array(survey.kind)[rows]
        return np.hstack([survey.file_facts[rows], kinds[:, None] == np.unique(kinds)])
    return survey.level_facts[rows]

"""Findings about single images: labels that the features contradict, outliers, blank, turned and inverted ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.audit.findings import NOTE, WARNING, Finding, FlaggedImage, Probe
from xfeat.featurize.audit.neighbours import sample_rows
from xfeat.featurize.audit.probing import Labels
from xfeat.featurize.audit.survey import LEVEL_FACTS, SIDE, Survey
from xfeat.featurize.audit.thresholds import THRESHOLDS
from xfeat.featurize.text import count_of

# Below this AUC, labels that the features contradict are not reported.
_MIN_AUC = 0.65
# Tukey's outer fence: beyond it, a value is "far out".
# Source: J. W. Tukey, Exploratory Data Analysis, 1977, chapter 2.
_FENCE = 3.0
# With fewer images of a class, quartiles are not meaningful.
_MIN_IMAGES = 20
# Turned and inverted images are told by 16 × 16 pixels; with fewer images than this, they are not looked for.
_KIND_SIDE = 16
_MIN_KIND_IMAGES = 40
_KIND_FOLDS = 5
# In the first round, share of copies that must be told: a tenth of the originals may be altered, and mirrored X-rays,
# of which 80 % are told, must not count. In the second, log-likelihood ratio that nineteen in twenty copies must reach:
# where it is lower, the first round has only taken out what was in doubt. Measured in docs/audit.md.
_MAY_BE_TOLD = 0.85
_CLEARLY = 5.0
_Pixels = NDArray[np.uint8]
# What may have been done to an image: the kind of the finding, and how a copy is made of upright pixels (n, S, S).
ALTERATIONS: dict[str, tuple[str, Callable[[_Pixels], _Pixels]]] = {
    "turned by 90° to the left": ("images.turned", lambda grey: np.rot90(grey, 1, (1, 2))),
    "turned by 180°": ("images.turned", lambda grey: np.rot90(grey, 2, (1, 2))),
    "turned by 90° to the right": ("images.turned", lambda grey: np.rot90(grey, 3, (1, 2))),
    "mirrored": ("images.mirrored", lambda grey: grey[:, :, ::-1]),
    "inverted (black and white exchanged)": ("images.inverted", lambda grey: 255 - grey),
}


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
            fix="look at the first; choose the right class of wrong ones on the page, save corrections.csv, and "
            "run xfeat featurize --corrections corrections.csv",
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


def picture_findings(survey: Survey, groups: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[Finding]:
    """Report blank images, images in colour among grey ones, and images turned, mirrored or inverted.

    Args:
        survey: the small images.
        groups: int64 (N,), of all rows.
        rows: int64 (n,), rows whose images were read.
    """
    levels = {name: survey.level_facts[rows, at] for at, name in enumerate(LEVEL_FACTS)}
    blank = levels["deviation"] < THRESHOLDS.blank_deviation
    if blank.any():
        yield _pictures(
            "images.blank",
            f"{count_of(int(blank.sum()), 'image')} blank (nearly one grey level)",
            "They show nothing: an empty exposure, a failed export, or a wrong window of a DICOM file.",
            [
                FlaggedImage(int(row), f"grey level {mean:.0f} ± {deviation:.1f}", float(deviation))
                for row, mean, deviation in zip(
                    rows[blank], levels["mean"][blank], levels["deviation"][blank], strict=True
                )
            ],
        )
    colour = levels["colour"] >= THRESHOLDS.colour
    if colour.any() and colour.mean() <= 1 - THRESHOLDS.grey_share:
        yield _pictures(
            "images.colour",
            f"{count_of(int(colour.sum()), 'image')} in colour among grey ones",
            "They may be photographs, screenshots or coloured overlays.",
            [
                FlaggedImage(int(row), f"channels differ by {value:.0f} grey levels", -float(value))
                for row, value in zip(rows[colour], levels["colour"][colour], strict=True)
            ],
        )
    yield from _turned_findings(survey, groups, rows[~blank & ~colour])


def told_kinds(
    survey: Survey, groups: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[dict[str, float], dict[str, list[FlaggedImage]]]:
    """Find images that look like turned, mirrored or inverted copies of the others.

    A linear discriminant analysis learns from the images themselves, each with copies that were made so on purpose; an
    image and its group are judged by a model that has seen neither. What cannot be told here, such as mirrored drawings
    without a left and right, shows in the copies, and is not reported.

    Args:
        survey: the small images.
        groups: int64 (N,), of all rows.
        rows: int64 (n,), rows whose images were read and are not blank.

    Returns:
        By kind, the share of copies that were told from their originals; and the images found, of the kinds whose share
        reaches the threshold.
    """
    _, group = np.unique(groups[rows], return_inverse=True)
    if len(rows) < _MIN_KIND_IMAGES or len(np.unique(group)) < _KIND_FOLDS:
        return {}, {}
    fold = np.random.default_rng(THRESHOLDS.seed).permutation(group.max() + 1)[group] % _KIND_FOLDS
    usual = np.isin(rows, sample_rows(rows, THRESHOLDS.kind_images))
    told, found = {}, {}
    # Images that look altered do not take part in the second round: else they pass for originals.
    for _ in range(2):
        scores, copies = _kind_scores(survey.grey[rows], fold, usual)
        altered = np.zeros(len(rows), np.bool_)
        for at, name in enumerate(ALTERATIONS, start=1):
            of_copies = copies[usual, at - 1]
            told[name] = float((of_copies.argmax(axis=1) == at).mean())
            # Nineteen in twenty of the copies are told as clearly as this; an image must be half as clear.
            least = float(np.percentile(of_copies[:, at] - of_copies[:, 0], 5))
            likeness = scores[:, at] - scores[:, 0]
            looks = (scores.argmax(axis=1) == at) & (likeness >= max(0.0, least / 2))
            altered |= looks & (told[name] >= _MAY_BE_TOLD)
            is_told = told[name] >= THRESHOLDS.kind_recall and least >= _CLEARLY
            places = np.flatnonzero(looks if is_told else ())
            found[name] = [FlaggedImage(int(rows[i]), f"looks {name}", -float(likeness[i])) for i in places.tolist()]
        usual &= ~altered
    return told, found


def _kind_scores(
    grey: NDArray[np.uint8], fold: NDArray[np.int64], usual: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score images (n, 32, 32) by models that have seen other folds.

    Args:
        grey: the images.
        fold: int64 (n,), 0 to 4.
        usual: bool (n,), the images that the models learn from.

    Returns:
        Log-likelihoods that an image is as it should be, or is of each of k kinds, float64 (n, 1 + k); and the same of
        the copies of each kind, (n, k, 1 + k), zero unless an image is among the usual ones.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from threadpoolctl import threadpool_limits

    makers = [make for _, make in ALTERATIONS.values()]
    scores = np.zeros((len(grey), 1 + len(makers)))
    copies = np.zeros((len(grey), len(makers), 1 + len(makers)))
    for held_out in range(_KIND_FOLDS):
        train, test = grey[usual & (fold != held_out)], np.flatnonzero(fold == held_out)
        made = [_outlines(train), *(_outlines(make(train)) for make in makers)]
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
        with threadpool_limits(1):  # small matrices: on busy cores several threads wait for each other
            model.fit(np.vstack(made), np.repeat(np.arange(len(made)), len(train)))
        scores[test] = model.decision_function(_outlines(grey[test]))
        own = test[usual[test]]
        for at, make in enumerate(makers):
            copies[own, at] = model.decision_function(_outlines(make(grey[own])))
    return scores, copies


def _turned_findings(survey: Survey, groups: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[Finding]:
    told, found = told_kinds(survey, groups, rows)
    for kind in dict.fromkeys(kind for kind, _ in ALTERATIONS.values()):
        names = [name for name, (of, _) in ALTERATIONS.items() if of == kind and found.get(name)]
        flagged = sorted((one for name in names for one in found[name]), key=lambda one: one.score)
        if flagged:
            word = kind.removeprefix("images.")
            share = ", ".join(f"{told[name]:.0%} ({name})" for name in names)
            yield _pictures(
                kind,
                f"{count_of(len(flagged), 'image')} look{'s' * (len(flagged) == 1)} {word}",
                "A model sees another picture than the one that was meant; in a test it counts as an error. Of copies "
                f"of these images that were {word} on purpose, the check recognises {share}.",
                flagged,
            )


def _pictures(kind: str, title: str, meaning: str, flagged: list[FlaggedImage]) -> Finding:
    return Finding(
        kind=kind,
        severity=WARNING,
        title=title,
        meaning=meaning,
        fix="look at each; correct the file, or exclude it: tick it, save corrections.csv, and run xfeat featurize "
        "--corrections corrections.csv",
        images=sorted(flagged, key=lambda one: one.score),
    )


def _outlines(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return small images (n, 32, 32) as 256 values each, with mean 0 and deviation 1."""
    step = SIDE // _KIND_SIDE
    cells = np.asarray(grey, np.float32).reshape(len(grey), _KIND_SIDE, step, _KIND_SIDE, step).mean(axis=(2, 4))
    flat = cells.reshape(len(grey), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    result: NDArray[np.float32] = (flat / np.maximum(flat.std(axis=1, keepdims=True), 1)).astype(np.float32)
    return result

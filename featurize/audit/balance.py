"""Findings from counts: small or imbalanced classes, missing or small test splits, unreadable files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xfeat.featurize.audit.findings import NOTE, WARNING, Finding, FlaggedImage, readable
from xfeat.featurize.audit.survey import Survey
from xfeat.featurize.audit.thresholds import THRESHOLDS
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.specs import LOADED
from xfeat.featurize.text import count_of, listed

# If one class is so many times as frequent as another, accuracy is a poor measure.
_IMBALANCE_RATIO = 5


def balance_findings(cache: FeatureCache) -> Iterator[Finding]:
    """Check the counts per split and class."""
    counts = {part: {name: n for name, n in row.items() if name != "none"} for part, row in cache.counts.items()}
    train = counts.get("train", counts.get("none", {}))
    tiny = {name: train.get(name, 0) for name in cache.class_names if train.get(name, 0) < THRESHOLDS.few_class_images}
    if tiny:
        yield Finding(
            kind="balance.tiny-class",
            severity=WARNING,
            title="Very few training images of " + listed(f"{name} ({n})" for name, n in tiny.items()),
            meaning=f"A class with fewer than {THRESHOLDS.few_class_images} training images is hardly learnt.",
            fix="add images of it, or exclude the class with xfeat featurize --classes",
        )
    if train and max(train.values()) >= _IMBALANCE_RATIO * max(1, min(train.values())):
        most, least = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
        yield Finding(
            kind="balance.lopsided",
            severity=WARNING,
            title=f"{train[most] / max(1, train[least]):.0f} times as many training images of {most} as of {least}",
            meaning=f"Predicting {most} for every image would be right in "
            f"{train[most] / sum(train.values()):.0%} of cases: accuracy alone is misleading here.",
            fix="use sensitivity per class and AUC instead; try xhead train --class-weight balanced",
        )
    if list(counts) == ["none"] or not cache.class_names:
        yield Finding(
            kind="splits.none",
            severity=NOTE,
            title="The data has no splits, so leakage cannot be checked",
            meaning="xhead train will split it, image by image if no groups are known.",
            fix="split it with xfeat split, and audit the result",
        )
    else:
        yield from _split_findings(cache.class_names, counts)


def _split_findings(class_names: Sequence[str], counts: dict[str, dict[str, int]]) -> Iterator[Finding]:
    if absent := [f"{name} in {split}" for split, row in counts.items() for name in class_names if not row.get(name)]:
        yield Finding(
            kind="splits.class-missing",
            severity=WARNING,
            title="A class is missing from a split: no " + listed(absent),
            meaning="A class that is missing from a split cannot be learnt or measured there.",
            fix="split the data with xfeat split, which puts every class into every split",
        )
    total = sum(counts.get("test", {}).values())
    if not total:
        yield Finding(
            kind="splits.no-test",
            severity=WARNING,
            title="There is no test split",
            meaning="Metrics on the validation images, which choose the epoch, are optimistically biased.",
            fix="split the data with xfeat split",
        )
    elif total < THRESHOLDS.few_test_images:
        yield Finding(
            kind="splits.small-test",
            severity=WARNING,
            title=f"Only {count_of(total, 'test image')}",
            meaning=f"One image is {100 / total:.1f} percentage points of accuracy: differences of a few points are "
            "not significant.",
            fix="measure with xhead crossval, which tests on every image once, or collect more",
        )


def file_findings(cache: FeatureCache, survey: Survey) -> list[Finding]:
    """Report images that were skipped, truncated, changed or are missing."""
    cut = np.flatnonzero(cache.columns.truncated)
    absent, changed = (
        [readable(cache.columns.path[row]) for row in np.flatnonzero(rows).tolist()]
        for rows in (~survey.present & ~survey.changed, survey.changed)
    )
    fix = "put the images back, or run xfeat featurize again on their new folder"
    if cache.spec.backbone.startswith(LOADED):
        fix = "load the features again with xfeat load TABLE --backbone ENCODER --data IMAGES"
    findings = [
        Finding(
            kind="files.skipped",
            severity=WARNING,
            title=f"{count_of(len(cache.skipped), 'image')} unreadable and skipped",
            meaning="If they are not a random sample (for example, all from one source), the metrics are biased.",
            fix="fix or replace the files and run xfeat featurize again",
            lines=[f"{readable(row.path)}: {row.reason}" for row in cache.skipped],
        ),
        Finding(
            kind="files.gone",
            severity=WARNING,
            title=f"{len(absent)} of {count_of(len(cache), 'image')} not in {readable(cache.data_root)}",
            meaning="Their pixels could not be checked for duplicates and shortcuts.",
            fix=fix,
            lines=absent,
        ),
        Finding(
            kind="files.changed",
            severity=WARNING,
            title=f"{count_of(len(changed), 'image')} changed since the features were computed",
            meaning="They were left out of the checks of pixels, for duplicates and shortcuts.",
            fix="run xfeat featurize and then xfeat audit again",
            lines=changed,
        ),
        Finding(
            kind="files.truncated",
            severity=NOTE,
            title=f"{count_of(len(cut), 'image')} truncated; the part that is there was used",
            meaning="The missing part is grey; if one class has more of them, a model can learn that.",
            fix="download or copy these files again",
            images=[FlaggedImage(int(row), "the end of the file is missing", 0.0) for row in cut],
        ),
    ]
    return [finding for finding in findings if finding.lines or finding.images]

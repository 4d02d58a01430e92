"""What the counts say: tiny classes, a test too small to measure with, images that were never read."""

from __future__ import annotations

import numpy as np

from xfeat.featurize.audit.findings import NOTE, WARNING, Finding, FlaggedImage, count_of, name_of, readable
from xfeat.featurize.audit.specs import AuditSpec
from xfeat.featurize.audit.survey import Survey
from xfeat.featurize.cache.reader import FeatureCache

# One class this many times as frequent as another makes accuracy a poor measure.
_IMBALANCE_RATIO = 5


def balance_findings(cache: FeatureCache, spec: AuditSpec) -> list[Finding]:
    """Judge the counts per split and class."""
    counts = {part: {name: n for name, n in row.items() if name != "none"} for part, row in cache.counts.items()}
    train = counts.get("train", counts.get("none", {}))
    findings = []
    tiny = {name: train.get(name, 0) for name in cache.class_names if train.get(name, 0) < spec.few_class_images}
    if tiny:
        findings.append(
            Finding(
                kind="balance.tiny-class",
                severity=WARNING,
                title="Hardly any training images of " + ", ".join(f"{name} ({n})" for name, n in tiny.items()),
                meaning=f"From fewer than {spec.few_class_images} images a class is learnt by chance, if at all.",
                fix="add images of it, or leave the class out with xfeat featurize --classes",
            )
        )
    if train and max(train.values()) >= _IMBALANCE_RATIO * max(1, min(train.values())):
        most, least = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
        findings.append(
            Finding(
                kind="balance.lopsided",
                severity=WARNING,
                title=f"{train[most] / max(1, train[least]):.0f} times as many training images of {most} as of {least}",
                meaning=f"Calling everything {most} would be right in {train[most] / sum(train.values()):.0%} of "
                "cases: accuracy alone says little here.",
                fix="read sensitivity per class and AUC instead; try xhead train --class-weight balanced",
            )
        )
    return findings + _test_findings(cache, counts, spec)


def file_findings(cache: FeatureCache, survey: Survey) -> list[Finding]:
    """Report images that were skipped, cut short, changed or are gone."""
    absent, changed, cut = map(np.flatnonzero, (~survey.present, survey.changed, cache.columns.truncated))
    findings = [
        Finding(
            kind="files.skipped",
            severity=WARNING,
            title=f"{count_of(len(cache.skipped), 'image')} unreadable and left out",
            meaning="If they are not a random sample (all from one source, say), the figures are skewed.",
            fix="fix or replace the files and run xfeat featurize again",
            lines=[f"{readable(row.path)}: {row.reason}" for row in cache.skipped],
        ),
        Finding(
            kind="files.gone",
            severity=WARNING,
            title=f"{len(absent)} of {count_of(len(cache), 'image')} no longer in {readable(cache.data_root)}",
            meaning="Their pixels could not be checked for duplicates and shortcuts.",
            fix="put the images back, or run xfeat featurize again where they are now",
            lines=[name_of(cache, int(row)) for row in absent],
        ),
        Finding(
            kind="files.changed",
            severity=WARNING,
            title=f"{count_of(len(changed), 'image')} changed since the features were computed",
            meaning="The pixels that were checked here are not the ones that the features came from.",
            fix="run xfeat featurize again, then the audit",
            lines=[name_of(cache, int(row)) for row in changed],
        ),
        Finding(
            kind="files.truncated",
            severity=NOTE,
            title=f"{count_of(len(cut), 'image')} cut short, read as far as the file goes",
            meaning="The missing part is grey; a model can learn that, if one class has more of them.",
            fix="fetch these files again",
            images=[FlaggedImage(int(row), "the end of the file is missing", 0.0) for row in cut],
        ),
    ]
    return [finding for finding in findings if finding.lines or finding.images]


def _test_findings(cache: FeatureCache, counts: dict[str, dict[str, int]], spec: AuditSpec) -> list[Finding]:
    if list(counts) == ["none"] or not cache.class_names:
        return [
            Finding(
                kind="splits.none",
                severity=NOTE,
                title="The data is not divided, so there is no leakage to check",
                meaning="Training will divide it by itself, image by image where no group is known.",
                fix="divide it once and for all with xfeat split, and audit the result",
            )
        ]
    findings = []
    test = counts.get("test", {})
    total = sum(test.values())
    absent = [f"{name} in {split}" for split, row in counts.items() for name in cache.class_names if not row.get(name)]
    if absent:
        findings.append(
            Finding(
                kind="splits.class-missing",
                severity=WARNING,
                title="A class is missing from a split: no " + ", ".join(absent),
                meaning="What a split does not hold it cannot teach or measure.",
                fix="divide the data with xfeat split, which gives each split every class",
            )
        )
    if not total:
        findings.append(
            Finding(
                kind="splits.no-test",
                severity=WARNING,
                title="There is no test split",
                meaning="Figures of the images that chose the epoch are too good.",
                fix="divide the data with xfeat split",
            )
        )
    elif total < spec.few_test_images:
        findings.append(
            Finding(
                kind="splits.small-test",
                severity=WARNING,
                title=f"Only {count_of(total, 'test image')}",
                meaning=f"One image is {100 / total:.1f} percentage points of accuracy: differences of a few points "
                "mean nothing.",
                fix="measure with xhead crossval, which tests on every image once, or collect more",
            )
        )
    return findings

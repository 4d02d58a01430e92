"""Findings from duplicates and groups: leakage between splits, contradictory labels, harmless copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xfeat.featurize.audit.findings import FAILURE, NOTE, WARNING, Finding, Pair, readable
from xfeat.featurize.cache.columns import Columns
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT
from xfeat.featurize.text import count_of

_LEAK = (
    "A model can recognise an image that it has seen in training, or another one of the same patient: the test metrics "
    "are optimistically biased."
)


def duplicate_findings(copies: Sequence[Pair], near: Sequence[Pair], columns: Columns) -> Iterator[Finding]:
    """Report pairs of exact copies, and of images whose pixels agree, by their effect on metrics."""
    for kind, found, what in (
        ("leakage.same-file", copies, "the same file"),
        ("leakage.near-duplicate", near, "nearly the same image"),
    ):
        if leaks := [pair for pair in found if _crosses(columns, pair)]:
            images = len({row for pair in leaks for row in pair[:2]})
            yield Finding(
                kind=kind,
                severity=FAILURE,
                title=f"{count_of(len(leaks), 'pair')} of images in two splits are {what} ({images} images)",
                meaning=_LEAK,
                fix="keep one copy of each (xfeat split also keeps exact copies together); then split the data again "
                "with xfeat split, and run xfeat featurize and xfeat audit again",
                pairs=leaks,
            )
    pairs, labels = [*copies, *near], columns.label
    contradictory = [p for p in pairs if labels[p.first] != labels[p.second] and NO_LABEL not in _both(labels, p)]
    if contradictory:
        yield Finding(
            kind="duplicates.labels",
            severity=WARNING,
            title=f"{count_of(len(contradictory), 'pair')} of the same image with different labels",
            meaning="At least one label of each pair is wrong; a model cannot learn from such a pair, and it counts as "
            "an error in the test.",
            fix="look at each pair, keep the correct copy and remove the other",
            pairs=contradictory,
        )
    if inside := [p for p in pairs if not _crosses(columns, p) and p not in set(contradictory)]:
        undivided = any(columns.split[pair.first] == NO_SPLIT for pair in inside)
        apart = [pair for pair in inside if len(set(_both(columns.group, pair))) > 1 or not columns.group[pair.first]]
        at_risk = undivided and any(pair.how != "the same file" for pair in apart)
        yield Finding(
            kind="duplicates.inside",
            severity=WARNING if at_risk else NOTE,
            title=f"{count_of(len(inside), 'pair')} of the same image "
            + ("before any split" if undivided else "within one split"),
            meaning="A later split may put one copy into training and the other into the test."
            if at_risk
            else "Copies count twice in training or in metrics, but cause no leakage.",
            fix="give both the same group, or remove one, before the data is split"
            if at_risk
            else "remove one of each pair unless the copies are intended",
            pairs=inside,
        )


def group_findings(columns: Columns) -> Iterator[Finding]:
    """Find groups (patients) that have images in several splits, and rows whose group is unknown."""
    first_in: dict[str, dict[int, int]] = {}
    for row, (group, split) in enumerate(zip(columns.group, columns.split.tolist(), strict=True)):
        if group and split != NO_SPLIT:
            first_in.setdefault(group, {}).setdefault(split, row)
    if parted := {group: sorted(rows.values()) for group, rows in first_in.items() if len(rows) > 1}:
        yield Finding(
            kind="leakage.group",
            severity=FAILURE,
            title=f"{count_of(len(parted), 'group')} (patients or series) with images in more than one split",
            meaning=_LEAK,
            fix="split the data again with xfeat split SRC DST --groups FILE, which keeps groups together, and run "
            "xfeat featurize on DST",
            pairs=[
                Pair(rows[0], other, f"group {readable(group)}") for group, rows in parted.items() for other in rows[1:]
            ],
        )
    if unknown := sum(not group for group in columns.group):
        every = unknown == len(columns.group)
        share = "No image has a group" if every else f"{unknown} of {len(columns.group)} images have no group"
        yield Finding(
            kind="groups.unknown",
            severity=WARNING,
            title=f"{share}: whether a patient is in two splits cannot be checked",
            meaning="If images of one patient are in training and test, the test metrics are optimistically biased. "
            "Such images need not be similar enough to be found here.",
            fix="give the patient or series of each image: xfeat featurize DATA --groups FILE|REGEX",
        )


def unconfirmed_finding(pairs: Sequence[Pair], columns: Columns) -> Iterator[Finding]:
    """Report pairs with similar features whose files are missing."""
    if crossing := [pair for pair in pairs if _crosses(columns, pair)]:
        yield Finding(
            kind="leakage.unconfirmed",
            severity=WARNING,
            title=f"{count_of(len(crossing), 'pair')} of very similar images in two splits; the files are missing, so "
            "the pixels could not be compared",
            meaning="If they are the same image, the test metrics are optimistically biased.",
            fix="put the images back where they were when the features were computed, and run xfeat audit again",
            pairs=crossing,
        )


def _crosses(columns: Columns, pair: Pair) -> bool:
    splits = _both(columns.split, pair)
    return splits[0] != splits[1] and NO_SPLIT not in splits


def _both(values: Any, pair: Pair) -> tuple[Any, Any]:
    return values[pair.first], values[pair.second]

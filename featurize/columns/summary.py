"""Describes the further columns of a cache: what each holds, in a line and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.text import MAX_LISTED, aligned, first_ten


def summarize(column: ExtraColumn, groups: Sequence[str]) -> dict[str, Any]:
    """Return what a column holds, as plain JSON types.

    Args:
        column: of N images.
        groups: of the images, empty if unknown.

    Returns:
        ``kind``, ``source``, numbers of images ``known`` and ``unknown``; by kind: ``counts`` per category or label;
        ``lowest``, ``median`` and ``highest`` number; ``first`` and ``last`` date; ``different`` texts. For categories
        ``groups_with_several``: the number of groups whose images have more than one of them.
    """
    known = column.known
    facts = {
        "kind": column.kind,
        "source": column.source.partition(",")[0],
        "known": int(known.sum()),
        "unknown": int((~known).sum()),
    }
    values = column.values[known]
    if column.kind == "category":
        counts = np.bincount(values, minlength=len(column.names)).tolist()
        facts["counts"] = dict(zip(column.names, counts, strict=True))
        pairs = set(zip(groups, column.values.tolist(), strict=True))
        several = Counter(group for group, value in pairs if group and value >= 0)
        facts["groups_with_several"] = sum(number > 1 for number in several.values())
    elif column.kind == "labels":
        facts["counts"] = dict(zip(column.names, (column.values == 1).sum(axis=0).tolist(), strict=True))
    elif column.kind == "text":
        facts["different"] = len(np.unique(values))
    elif column.kind == "number" and len(values):
        facts |= {"lowest": float(values.min()), "median": float(np.median(values)), "highest": float(values.max())}
    elif column.kind == "date" and len(values):
        facts |= {"first": str(values.min()), "last": str(values.max())}
    return facts


def column_lines(extra: Mapping[str, ExtraColumn], groups: Sequence[str], more: str = "more columns") -> list[str]:
    """Return a line for each of the first ten columns, and how many more there are."""
    shown = [(name, _in_words(summarize(extra[name], groups))) for name in islice(extra, MAX_LISTED)]
    return first_ten([*aligned(shown, left=(0, 1)), *islice(extra, MAX_LISTED, None)], more)


def _in_words(facts: Mapping[str, Any]) -> str:
    kind = facts["kind"]
    if "counts" in facts:
        counts = sorted(facts["counts"].items(), key=lambda item: -item[1])
        said = ", ".join(first_ten([f"{name} {number}" for name, number in counts]))
    elif kind == "text":
        said = f"{facts['different']} different"
    elif "median" in facts:
        said = f"{facts['lowest']:.6g} to {facts['highest']:.6g}, median {facts['median']:.6g}"
    else:
        said = f"{facts['first']} to {facts['last']}" if "first" in facts else "nothing known"
    parts = [f"{kind}: {said}"]
    if facts["unknown"]:
        parts.append(f"{facts['unknown']} unknown")
    if several := facts.get("groups_with_several", 0):
        parts.append(f"{several} group{'s have' if several > 1 else ' has'} several")
    return "; ".join(parts)

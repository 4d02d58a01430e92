"""The figures of a study, of subgroups and of other sources as lines for a terminal; sentences for the pages, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xfeat.featurize.text import aligned, listed, printable, shortened
from xfeat.head.reports.formatting import class_lines, percent, points, with_interval

NOT_MEASURED = (
    "These images come from the same source as the training images. How well the model does elsewhere was not "
    "measured: xhead crossval --leave-out COLUMN trains without each hospital in turn, xhead eval tests other images."
)
FIGURE_NAMES = {"sensitivity": "sensitivity", "specificity": "specificity", "auc": "AUC", "accuracy": "accuracy"}


def study_lines(title: str, study: Mapping[str, Any], *, all_in: str) -> list[str]:
    """Write the figures of :func:`xfeat.head.evaluation.study.study`, those at the threshold first.

    Args:
        title: of the images, such as ``test``.
        study: the figures.
        all_in: the file or option that has all of them.
    """
    at, beside = " at the threshold" if study["positive"] else "", study["most_probable"]
    patients = "" if study["patients"] == study["images"] else f" of {study['patients']} patients"
    lines = [
        f"{title}: {study['images']} images{patients}, accuracy{at} {with_interval(**study['accuracy'])}, "
        f"AUC {with_interval(**study['auc'])}",
        *class_lines(study["confusion_matrix"], decided_classes(study), all_in=all_in),
    ]
    if beside and not differing_classes(study):
        lines.append("by the most probable class: the same")
    elif beside:
        plain = beside["classes"][study["positive"]]
        lines.append(
            f"by the most probable class: accuracy {with_interval(**beside['accuracy'])}, sensitivity of "
            f"{printable(study['positive'])} {with_interval(**plain['sensitivity'])}, "
            f"specificity {with_interval(**plain['specificity'])}"
        )
    if curve := study["decision_curve"]:
        row = study["classes"][curve["class"]]
        lines += [
            f"{printable(curve['class'])}: calibration slope {coefficient(row['slope'])}, "
            f"intercept {coefficient(row['intercept'])}",
            benefit_text(curve),
        ]
    by = "by patient" if study["patients"] < study["images"] else "by image"
    return [*lines, f"in brackets, here and below: 95 % confidence intervals {by}"]


def differing_classes(study: Mapping[str, Any]) -> list[str]:
    """Return the classes whose figures by the most probable class differ from those at the threshold."""
    beside = study["most_probable"]["classes"]
    return [name for name, row in beside.items() if any(study["classes"][name][key] != row[key] for key in row)]


def decided_classes(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sensitivity and specificity of each class, at the threshold if there is one."""
    return {
        name: {key: row[key]["value"] for key in ("sensitivity", "specificity")}
        for name, row in study["classes"].items()
    }


def coefficient(estimate: Mapping[str, Any]) -> str:
    """Write a slope or an intercept and its interval: ``0.87 (0.71 to 1.03)``."""
    if estimate["value"] is None:
        return "–"
    if estimate["interval"] is None:
        return _signed(estimate["value"])
    low, high = estimate["interval"]
    return f"{_signed(estimate['value'])} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def benefit_text(curve: Mapping[str, Any]) -> str:
    """Say where acting on the prediction is better than acting on everybody and on nobody."""
    if not curve["useful"]:
        return "net benefit: nowhere above that of acting on everybody or on nobody"
    parts = [percent(low) if low == high else f"{percent(low)} to {percent(high)}" for low, high in curve["useful"]]
    return f"net benefit: above that of acting on everybody and on nobody at {' and '.join(parts)}"


def with_points(value: float | None, interval: Any) -> str:
    """Write a difference of proportions and its interval in percentage points: ``−2.1 (−4.0 to −0.3)``."""
    if value is None:
        return "–"
    ends = "" if interval is None else f" ({points(interval[0])} to {points(interval[1])})"
    return f"{points(value)}{ends}"


def subgroup_lines(subgroups: Mapping[str, Any] | None) -> list[str]:
    """Write the figures per value of each column, and the largest gap of each figure."""
    if not subgroups or not subgroups["columns"]:
        return []
    of = f" of {printable(subgroups['class'])}" if subgroups["class"] else ""
    lines = [f"subgroups; sensitivity and specificity{of}, * from fewer than 10 patients:"]
    for name, column in subgroups["columns"].items():
        note = f" ({column['note']})" if column["note"] else ""
        lines.append(f"{printable(name)}{note}")
        if column["values"]:
            lines += [f"  {line}" for line in aligned(_table(column["values"]))]
        lines += [f"  {printable(gap)}" for gap in gap_texts(column["gaps"], subgroups["comparisons"])]
    return lines


def _table(values: list[dict[str, Any]]) -> list[list[str]]:
    figures = [figure for figure in FIGURE_NAMES if figure in values[0]]
    head = ["", "images", "patients", *(FIGURE_NAMES[figure] for figure in figures)]
    return [head, *(_row(row, figures) for row in values)]


def _row(row: dict[str, Any], figures: list[str]) -> list[str]:
    few = [figure for figure in row["few"] if row[figure]["value"] is not None]
    cells = (f"{with_interval(**row[figure])}{'*' if figure in few else ''}" for figure in figures)
    return [shortened(row["value"]), str(row["images"]), str(row["patients"]), *cells]


def gap_texts(gaps: Mapping[str, Any], comparisons: int) -> Iterator[str]:
    """Say the largest gap of each figure, and whether it is more than chance after so many comparisons."""
    for figure, gap in gaps.items():
        if not gap["gap"]:
            yield f"no gap in {FIGURE_NAMES[figure]}"
            continue
        verdict = "more than chance" if gap["more_than_chance"] else "may be chance"
        others = (
            f", and so are {gap['others_more_than_chance']} smaller ones"
            if gap["more_than_chance"]
            else (f", but {gap['others_more_than_chance']} smaller ones are more than chance")
        )
        verdict += others if gap["others_more_than_chance"] else ""
        ends = gap["interval"]
        interval = "" if ends is None else f" ({points(ends[0])} to {points(ends[1])})"
        yield (
            f"largest gap in {FIGURE_NAMES[figure]}: {100 * gap['gap']:.1f} points{interval}, "
            f"“{gap['high']}” above “{gap['low']}”; {verdict}, corrected for {comparisons} comparisons"
        )


def elsewhere_lines(found: Mapping[str, Any] | None) -> list[str]:
    """Write what leaving out each source in turn has shown."""
    if found is None:
        return []
    column = printable(found["column"])
    if found["unanswerable"]:
        return [f"leaving out {column}: {found['unanswerable']}"]
    lines = [f"leaving out each {column} in turn, beside ordinary folds on the same images:"]
    table = [[column, "images", "figure", "ordinary", "left out", "drop, in points"]]
    for row in found["sources"]:
        name = shortened(row["source"])
        if row["problem"]:
            lines.append(f"  not left out: {row['problem']}")
        table += figure_rows(name, str(row["images"]), row["figures"])
    table += figure_rows("together", "", found["overall"])
    lines += [f"  {line}" for line in aligned(table, left=(0, 2))]
    if found["unknown"]:
        lines.append(f"  {found['unknown']} images without a {column} are neither trained on nor tested here")
    return [*lines, f"  {fewer_images(found)}", expected_elsewhere(found)]


def fewer_images(found: Mapping[str, Any]) -> str:
    """Say how many images the heads of both kinds had, since fewer of them may be the reason for a drop."""
    left = [row["remaining_images"] for row in found["sources"] if row["figures"]]
    few = min(left) if min(left) == max(left) else f"{min(left)} to {max(left)}"
    text = f"heads had {few} images to train and validate on, those of ordinary folds {found['remaining_images']}"
    return text + (": fewer images alone may cause a drop" if min(left) < 0.9 * found["remaining_images"] else "")


def figure_rows(name: str, images: str, figures: Mapping[str, Any]) -> list[list[str]]:
    """Write a row per figure: name, images, figure, ordinary, elsewhere, drop."""
    return [
        [
            name,
            images,
            FIGURE_NAMES[figure],
            with_interval(**row["ordinary"]),
            with_interval(**row["elsewhere"]),
            with_points(**row["drop"]),
        ]
        for figure, row in figures.items()
        if row["elsewhere"]["value"] is not None
    ]


def expected_elsewhere(found: Mapping[str, Any] | None) -> str:
    """Say what to expect elsewhere, if it was measured, or that it was not, and how to measure it."""
    if found is None:
        return NOT_MEASURED
    if found["unanswerable"]:
        return f"How well the model does elsewhere is unknown: {found['unanswerable']}."
    measured = {
        FIGURE_NAMES[key]: row["elsewhere"]
        for key, row in found["overall"].items()
        if row["elsewhere"]["value"] is not None
    }
    figures = ", ".join(f"{name} {with_interval(**figure)}" for name, figure in measured.items())
    text = f"elsewhere: expect {figures}; measured by training without each {found['column']} in turn"
    if same := found["same_as_class"]:
        text += (
            f". This is too optimistic if the model recognises what cannot be told from the class here: {listed(same)}"
        )
    return text


def drop_rows(drop: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Write each figure's drop from the run's own test images: its name, the points with their interval, a verdict."""
    if not drop or not drop["figures"]:
        return []
    rows = []
    for key, row in drop["figures"].items():
        if row["value"] is None:
            continue
        ends, verdict = row["interval"], "may be chance"
        if ends is not None and (ends[0] > 0 or ends[1] < 0):
            verdict = "more than chance" if ends[0] > 0 else "the external result is better"
        rows.append((FIGURE_NAMES[key], with_points(**row), verdict))
    return rows

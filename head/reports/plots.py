"""The figures of a report and of a paper: scikit-learn computes the curves, matplotlib draws them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.text import MAX_LISTED, columns_of
from xfeat.head.evaluation.curves import CalibrationBin, calibration_bins, roc_with_interval
from xfeat.head.evaluation.study import Cases, Study
from xfeat.head.reports.canvas import (
    COLOURS,
    COLUMN_MM,
    GREY,
    INK,
    TICK_COLUMNS,
    WIDTH_MM,
    as_svg,
    labelled,
    name_label,
    new_axes,
)
from xfeat.head.reports.formatting import percent, with_interval
from xfeat.head.training.history import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Eleven classes would look like another: seven colours without yellow, and five kinds of lines for prints in grey.
_LINE_COLOURS = (*COLOURS[:6], COLOURS[7])
_LINE_KINDS = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)))
_CELLS_MM = 56.0  # most of the side of a confusion matrix
_DIGIT_MM = 1.6
_MOST_TICKS = 20  # on one side of it


def training_curve(history: Sequence[EpochRecord], best_epoch: int, quantity: str) -> Figure:
    """Draw ``loss`` or ``accuracy`` per epoch, with the best epoch marked."""
    with new_axes() as axes:
        for colour, part in zip(COLOURS, ("train", "valid"), strict=False):
            _draw_epochs(axes, history, f"{part}_{quantity}", colour, part)
        axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch: {best_epoch}")
        return labelled(axes, f"{quantity} per epoch", "epoch", quantity)


def overlaid_curves(histories: Sequence[Sequence[EpochRecord]], part: str, quantity: str) -> Figure:
    """Draw ``loss`` or ``accuracy`` of one part per epoch for several runs, at most as many as :data:`COLOURS`."""
    with new_axes() as axes:
        for colour, history in zip(COLOURS, histories, strict=False):
            _draw_epochs(axes, history, f"{part}_{quantity}", colour)
        return labelled(axes, f"{part} {quantity} of each run", "epoch", f"{part} {quantity}")


def overlaid_roc(predicted: Sequence[tuple[NDArray[np.int64], NDArray[np.floating]] | None], studied: int) -> Figure:
    """Draw a ROC curve per run, in the colours of :func:`overlaid_curves`.

    Args:
        predicted: labels (n,) and probabilities (n, C) of each run; ``None`` has no curve.
        studied: of two classes, the one whose curve is drawn; of more, the mean over each class versus the rest is.
    """
    from sklearn.metrics import roc_curve

    rates = np.linspace(0, 1, 201)
    with new_axes() as axes:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
        for colour, each in zip(COLOURS, predicted, strict=False):
            labels, probabilities = each or (np.zeros(0, np.int64), np.zeros((0, 0)))
            codes = [studied] if probabilities.shape[1] == 2 else np.unique(labels).tolist()
            positive = [(labels == code, probabilities[:, code]) for code in codes]
            found = [roc_curve(*each)[:2] for each in positive if 0 < each[0].sum() < len(labels)]
            if len(found) == 1:
                axes.plot(*found[0], color=colour)
            elif found:
                means = np.mean([np.interp(rates, *curve) for curve in found], axis=0)
                axes.plot([0, *rates], [0, *means], color=colour)
        return labelled(axes, "ROC curve of each run", "1 − specificity", "sensitivity")


def _draw_epochs(
    axes: Axes, history: Sequence[EpochRecord], column: str, colour: str, label: str | None = None
) -> None:
    from matplotlib.ticker import MaxNLocator

    values = [getattr(record, column) for record in history]
    axes.plot([record.epoch for record in history], values, marker="o", markersize=3, color=colour, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def fold_accuracies(divisions: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the accuracy of each fold as a point and their mean as a line, for patient- and image-level folds."""
    with new_axes(18.0 + 14 * len(divisions)) as axes:
        for place, (colour, accuracies) in enumerate(zip(COLOURS, divisions.values(), strict=False)):
            # side by side, so that equal folds do not hide each other
            spread = place + np.linspace(-0.15, 0.15, len(accuracies))
            axes.plot(accuracies, spread, "o", color=colour, markersize=5, alpha=0.8)
            axes.vlines(float(np.mean(accuracies)), place - 0.32, place + 0.32, color=colour, linewidth=2)
        axes.set_yticks(range(len(divisions)), list(divisions))
        axes.set_ylim(len(divisions) - 0.4, -0.6)
        return labelled(axes, "accuracy of each fold", "accuracy of each fold, and their mean", "")


def evaluation_figures(
    cases: Cases, study: Study, uncalibrated: NDArray[np.floating] | None = None
) -> dict[str, Figure]:
    """Draw all figures of predicted images: those of a page, and those of a paper.

    Args:
        cases: the images.
        study: their figures.
        uncalibrated: their probabilities (n, C) before calibration, if it changed them.

    Returns:
        ``roc``, ``precision_recall``, ``reliability``, ``confusion``, and ``benefit`` if there is a decision curve.
    """
    curve = study["decision_curve"]
    return {
        "roc": roc_curves(cases, study),
        "precision_recall": precision_recall_curves(cases),
        "reliability": reliability_diagram(cases, uncalibrated),
        "confusion": confusion_matrix_plot(study["confusion_matrix"], cases.class_names),
        **({} if curve is None else {"benefit": decision_curve(curve)}),
    }


def page_figures(cases: Cases, study: Study, uncalibrated: NDArray[np.floating] | None = None) -> dict[str, str]:
    """Return :func:`evaluation_figures` as SVG elements of a page; without a decision curve, ``benefit`` is empty."""
    drawn = evaluation_figures(cases, study, uncalibrated)
    return {"benefit": "", **{name: as_svg(figure) for name, figure in drawn.items()}}


def roc_curves(cases: Cases, study: Study) -> Figure:
    """Draw the ROC curve of the studied class of two with its interval, or of each class; absent ones are left out.

    The operating point is marked, if there is one.
    """
    from sklearn.metrics import roc_curve

    with new_axes() as axes:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
        for code, positive, scores, style in _drawn_curves(cases):
            name = cases.class_names[code]
            area = study["classes"][name]["auc"]
            if len(cases.class_names) == 2:
                curve = roc_with_interval(positive, scores, cases.patients)
                x, y = curve.false_rate, curve.true_rate
                label = "95 % interval of the sensitivity"
                axes.fill_between(x, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0, label=label)
                style["label"] = f"{_legend_label(name)}, AUC {with_interval(**area)}"
            else:
                x, y, _ = roc_curve(positive, scores)
                style["label"] = f"{_legend_label(name)}, AUC {percent(area['value'])}"
            axes.plot(x, y, **style)
        if cases.positive is not None:
            _mark_operating_point(axes, study["classes"][cases.class_names[cases.positive]])
        return labelled(axes, "ROC curves", "1 − specificity", "sensitivity")


def _mark_operating_point(axes: Axes, found: Mapping[str, Any]) -> None:
    sensitivity, specificity = found["sensitivity"]["value"], found["specificity"]["value"]
    if sensitivity is None or specificity is None:
        return
    label = f"threshold: sensitivity {percent(sensitivity)}, specificity {percent(specificity)}"
    marker: dict[str, Any] = {"marker": "D", "markersize": 5, "markerfacecolor": "white", "markeredgecolor": "black"}
    axes.plot([1 - specificity], [sensitivity], linestyle="", zorder=5, label=label, clip_on=False, **marker)


def _legend_label(name: str) -> str:
    text = name_label(name)
    return f" {text}" if text.startswith("_") else text  # matplotlib hides what begins so


def precision_recall_curves(cases: Cases) -> Figure:
    """Draw precision-recall curves of the same classes as :func:`roc_curves`."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    with new_axes() as axes:
        for code, positive, scores, style in _drawn_curves(cases):
            precision, recall, _ = precision_recall_curve(positive, scores)
            label = f"{_legend_label(cases.class_names[code])}, AP {average_precision_score(positive, scores):.3f}"
            axes.plot(recall, precision, **style, label=label)
        axes.set_ylim(0, 1.03)
        return labelled(axes, "precision-recall curves", "sensitivity (recall)", "PPV (precision)")


def _drawn_curves(cases: Cases) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.floating], dict[str, Any]]]:
    for number, code in enumerate(drawn_classes(cases)):
        positive = cases.labels == code
        if positive.any() and not positive.all():
            colour, kind = _LINE_COLOURS[number % len(_LINE_COLOURS)], _LINE_KINDS[number % len(_LINE_KINDS)]
            yield code, positive, cases.probabilities[:, code], {"color": colour, "linestyle": kind}


def drawn_classes(cases: Cases) -> list[int]:
    """Return the classes that have a curve: the studied one of two; of more all, or the ten of lowest sensitivity."""
    classes = len(cases.class_names)
    if classes == 2 and cases.studied is not None:
        return [cases.studied]
    if classes <= MAX_LISTED:
        return list(range(classes))
    labels = cases.labels
    images = np.bincount(labels, minlength=classes)
    found = np.bincount(labels[cases.probabilities.argmax(axis=1) == labels], minlength=classes)
    tested = np.flatnonzero(images)
    order = np.argsort(found[tested] / images[tested], kind="stable")
    return [int(code) for code in tested[order][:MAX_LISTED]]


def reliability_diagram(cases: Cases, uncalibrated: NDArray[np.floating] | None = None) -> Figure:
    """Draw the observed frequency against the predicted probability, in at most five bins with their counts.

    It is the probability of the studied class; without one, that of the predicted class, which came true if it is the
    class of the image. The probabilities before calibration, if given, are a thin line.
    """
    code = cases.studied

    def binned(probabilities: NDArray[np.floating]) -> list[CalibrationBin]:
        true = cases.labels == (probabilities.argmax(axis=1) if code is None else code)
        return calibration_bins(
            true, probabilities.max(axis=1) if code is None else probabilities[:, code], cases.patients
        )

    def draw(bins: list[CalibrationBin], **style: Any) -> None:
        axes.plot([each.predicted for each in bins], [each.observed for each in bins], clip_on=False, **style)

    with new_axes() as axes:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
        if uncalibrated is not None:
            draw(binned(uncalibrated), color=GREY, linewidth=0.8, linestyle="--", label="before calibration")
        bins = binned(cases.probabilities)
        for each in bins:
            axes.vlines(each.predicted, each.low, each.high, color=COLOURS[0], linewidth=0.8)
        draw(bins, color=COLOURS[0], marker="o", label="observed, with 95 % intervals")
        counts = ", ".join(str(each.images) for each in bins)
        axes.plot([], [], " ", label=f"images per bin, left to right: {counts}")
        subject = "the predicted class" if code is None else name_label(cases.class_names[code], TICK_COLUMNS)
        return labelled(axes, "reliability diagram", f"predicted probability of {subject}", "observed frequency")


def confusion_matrix_plot(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, shaded by the proportion of each true class; numbers where they fit."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [name_label(name, TICK_COLUMNS) for name in class_names]
    label_mm = columns_of(names) * COLUMN_MM
    cells_mm = min(_CELLS_MM, WIDTH_MM - label_mm - 12)
    cell = cells_mm / len(names)
    turned, numbers = label_mm > cell, max(2, len(str(counts.max()))) * _DIGIT_MM <= cell
    with new_axes(cells_mm + 12 + (label_mm if turned else 0)) as axes:
        axes.grid(visible=False)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*counts.shape) if numbers else ():
            share = f"\n{100 * shares[row, column]:.0f} %" if cell > 5 * _DIGIT_MM else ""
            colour = "white" if shares[row, column] > 0.5 else INK
            text = f"{counts[row, column]}{share}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        if not numbers:
            axes.figure.colorbar(image, ax=axes, shrink=0.7).set_label("share of the true class")
        every = -(-len(names) // _MOST_TICKS)
        axes.set_xticks(range(0, len(names), every), names[::every], rotation=90 if turned else 0)
        axes.set_yticks(range(0, len(names), every), names[::every])
        return labelled(axes, "confusion matrix", "predicted", "true")


def decision_curve(curve: Mapping[str, Any]) -> Figure:
    """Draw the net benefit of acting on a prediction, on everybody and on nobody, per threshold."""
    thresholds, benefit, everybody = (
        [100 * point[key] for point in curve["points"]] for key in ("threshold", "net_benefit", "treat_all")
    )
    with new_axes() as axes:
        axes.axhline(0, color=GREY, linestyle=":", label="act on nobody")
        axes.plot(thresholds, everybody, color=COLOURS[1], linestyle="--", label="act on everybody")
        axes.plot(thresholds, benefit, color=COLOURS[0], label="act on the prediction")
        axes.set_ylim(-0.3 * max(everybody[0], 1), 1.1 * max(*benefit, *everybody, 1))
        subject = f"threshold probability of {name_label(curve['class'], TICK_COLUMNS)}, %"
        return labelled(axes, "decision curve", subject, "net benefit per 100 images")


class ForestRow(NamedTuple):
    """A line of a forest plot; without ``images`` it is a heading.

    Attributes:
        text: at the left.
        images: their number.
        value: 0 to 1, or ``None``.
        interval: its ends.
        few: it is from few patients, and drawn hollow.
        beside: another value of the same images, a cross.
    """

    text: str
    images: int | None = None
    value: float | None = None
    interval: Sequence[float] | None = None
    few: bool = False
    beside: float | None = None


def forest_plot(rows: Sequence[ForestRow], overall: float | None, figure: str, beside: str = "") -> Figure:
    """Draw values with their intervals, one below the other, and a line at the value of all images.

    Args:
        rows: from top to bottom.
        overall: the value of all images.
        figure: what the values are, such as ``sensitivity``.
        beside: what :attr:`ForestRow.beside` is.
    """
    with new_axes(14 + 4.2 * len(rows)) as axes:
        if overall is not None:
            axes.axvline(100 * overall, color=GREY, linestyle="--", linewidth=0.8)
        for place, row in enumerate(rows):
            if row.value is not None:
                low, high = row.interval or (row.value, row.value)
                axes.plot([100 * low, 100 * high], [place, place], color=COLOURS[0], linewidth=1)
                fill = "white" if row.few else COLOURS[0]
                axes.plot(100 * row.value, place, "s", color=COLOURS[0], markerfacecolor=fill, clip_on=False, zorder=4)
            if row.beside is not None:
                axes.plot(100 * row.beside, place, "x", color="black", clip_on=False, zorder=5)
        if beside:
            axes.plot([], [], "s", color=COLOURS[0], label=figure)
            axes.plot([], [], "x", color="black", label=beside)
        names = [name_label(row.text, TICK_COLUMNS) + (f" (n = {row.images})" if row.images else "") for row in rows]
        axes.set_yticks(range(len(rows)), names)
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if row.images is None else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        right = axes.twinx()
        right.set_ylim(axes.get_ylim())
        right.grid(visible=False)
        right.set_yticks(range(len(rows)), ["" if row.images is None else _with_ends(row) for row in rows])
        for each in (axes, right):
            each.tick_params(axis="y", length=0)
        return labelled(axes, f"forest plot: {figure}", f"{figure}, % (95 % interval)", "")


def _with_ends(row: ForestRow) -> str:
    if row.value is None:
        return "–"
    ends = "" if row.interval is None else f" ({100 * row.interval[0]:.1f}–{100 * row.interval[1]:.1f})"
    return f"{100 * row.value:.1f}{ends}"

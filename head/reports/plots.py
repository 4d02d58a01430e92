"""The plots of a report, as SVG text: scikit-learn computes the curves, matplotlib draws them. Arrays in, text out."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import OutputError
from xfeat.featurize.text import MAX_LISTED, shortened
from xfeat.head.training.history import EpochRecord

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except OSError as error:
    raise OutputError(
        "matplotlib needs a folder that can be written",
        found=str(error),
        fix="set MPLCONFIGDIR or TMPDIR to a folder that can be written",
    ) from error

# The palette of Okabe and Ito, whose colours are distinguishable with any kind of colour vision.
# Source: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_SIZE = (4.2, 3.4)  # inches: two side by side on a desktop, one below the other on a phone
# Left, bottom, width and height of the axes. An automatic layout would draw every figure twice.
_AXES_BOX = (0.14, 0.14, 0.83, 0.83)
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xfeat",
    "text.parse_math": False,  # a class may be called a$b
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}

Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]


def training_curve(history: Sequence[EpochRecord], best_epoch: int, quantity: str) -> str:
    """Draw ``loss`` or ``accuracy`` per epoch, with the best epoch marked."""
    with _new_axes() as axes:
        for colour, part in zip(COLOURS, ("train", "valid"), strict=False):
            _draw_epochs(axes, history, f"{part}_{quantity}", colour, part)
        axes.axvline(best_epoch, color="#888", linestyle=":", label=f"best epoch: {best_epoch}")
        return _labelled(axes, f"{quantity} per epoch", "epoch", quantity)


def overlaid_curves(histories: Sequence[Sequence[EpochRecord]], part: str, quantity: str) -> str:
    """Draw ``loss`` or ``accuracy`` of one part per epoch for several runs, at most as many as :data:`COLOURS`."""
    with _new_axes() as axes:
        for colour, history in zip(COLOURS, histories, strict=False):
            _draw_epochs(axes, history, f"{part}_{quantity}", colour)
        return _labelled(axes, f"{part} {quantity} of each run", "epoch", f"{part} {quantity}")


def _draw_epochs(
    axes: Axes, history: Sequence[EpochRecord], column: str, colour: str, label: str | None = None
) -> None:
    values = [getattr(record, column) for record in history]
    axes.plot([record.epoch for record in history], values, marker="o", markersize=3, color=colour, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def confusion_matrix_plot(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Draw a confusion matrix, shaded by the proportion of each true class; numbers and names only for few classes."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    many = len(class_names) > MAX_LISTED
    side = 2.2 + 0.6 * min(len(class_names), MAX_LISTED)
    with _new_axes((side + 0.2, side), (0.18, 0.16, 0.8, 0.82)) as axes:
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if many:
            return _labelled(axes, "confusion matrix", "predicted", "true")
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{counts[row, column]}\n{100 * shares[row, column]:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color=colour)
        shown = [shortened(name) for name in class_names]
        axes.set_xticks(range(len(shown)), shown)
        axes.set_yticks(range(len(shown)), shown, rotation=90, va="center")
        return _labelled(axes, "confusion matrix", "predicted", "true")


def roc_curves(labels: Labels, probabilities: Probabilities, class_names: Sequence[str]) -> str:
    """Draw one-vs-rest ROC curves; absent classes are left out."""
    from sklearn.metrics import roc_auc_score, roc_curve

    with _new_axes() as axes:
        axes.plot([0, 1], [0, 1], color="#888", linestyle=":", label="chance")
        for name, colour, positive, scores in _present(labels, probabilities, class_names):
            false_rate, true_rate, _ = roc_curve(positive, scores)
            area = 100 * roc_auc_score(positive, scores)
            axes.plot(false_rate, true_rate, color=colour, label=f"{name}, AUC {area:.1f} %")
        return _labelled(axes, "ROC curves", "1 − specificity", "sensitivity")


def precision_recall_curves(labels: Labels, probabilities: Probabilities, class_names: Sequence[str]) -> str:
    """Draw one-vs-rest precision-recall curves; absent classes are left out."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    with _new_axes() as axes:
        for name, colour, positive, scores in _present(labels, probabilities, class_names):
            precision, recall, _ = precision_recall_curve(positive, scores)
            average = average_precision_score(positive, scores)
            axes.plot(recall, precision, color=colour, label=f"{name}, AP {average:.3f}")
        axes.set_ylim(0, 1.03)
        return _labelled(axes, "precision-recall curves", "sensitivity (recall)", "PPV (precision)")


def _present(
    labels: Labels, probabilities: Probabilities, class_names: Sequence[str]
) -> Iterator[tuple[str, str, NDArray[np.bool_], Probabilities]]:
    for number, code in enumerate(_drawn(labels, probabilities)):
        positive = labels == code
        if positive.any() and not positive.all():
            colour = COLOURS[number % len(COLOURS)]
            yield _legend_label(class_names[code]), colour, positive, probabilities[:, code]


def _drawn(labels: Labels, probabilities: Probabilities) -> list[int]:
    """Return the classes to draw: all, or of more than ten those of the lowest sensitivity."""
    classes = probabilities.shape[1]
    if classes <= MAX_LISTED:
        return list(range(classes))
    images = np.bincount(labels, minlength=classes)
    found = np.bincount(labels[probabilities.argmax(axis=1) == labels], minlength=classes)
    tested = np.flatnonzero(images)
    order = np.argsort(found[tested] / images[tested], kind="stable")
    return [int(code) for code in tested[order][:MAX_LISTED]]


def reliability_diagram(
    labels: Labels, probabilities: Probabilities, class_names: Sequence[str], uncalibrated: Probabilities | None = None
) -> str:
    """Draw the observed frequency of each class against its predicted probability, in up to ten bins of equal count.

    The probabilities before calibration, if given, are a thin line of the same colour.
    """
    from sklearn.calibration import calibration_curve

    bins = int(np.clip(len(labels) // 10, 2, 10))
    with _new_axes() as axes:
        axes.plot([0, 1], [0, 1], color="#888", linestyle=":", label="calibrated")
        for number, code in enumerate(_drawn(labels, probabilities)):
            colour = COLOURS[number % len(COLOURS)]
            if uncalibrated is not None:
                share, mean = calibration_curve(labels == code, uncalibrated[:, code], n_bins=bins, strategy="quantile")
                label = "before calibration" if number == 0 else None
                axes.plot(mean, share, color=colour, linewidth=0.8, linestyle="--", alpha=0.7, label=label)
            share, mean = calibration_curve(labels == code, probabilities[:, code], n_bins=bins, strategy="quantile")
            axes.plot(mean, share, marker="o", markersize=3, color=colour, label=_legend_label(class_names[code]))
        return _labelled(axes, "reliability diagram", "predicted probability", "observed frequency")


def decision_curve(curve: Mapping[str, Any]) -> str:
    """Draw the net benefit of acting on a prediction, on everybody and on nobody, per threshold."""
    thresholds, benefit, everybody = (
        [100 * point[key] for point in curve["points"]] for key in ("threshold", "net_benefit", "treat_all")
    )
    with _new_axes() as axes:
        axes.axhline(0, color="#888", linestyle=":", label="act on nobody")
        axes.plot(thresholds, everybody, color=COLOURS[1], linewidth=1, label="act on everybody")
        axes.plot(thresholds, benefit, color=COLOURS[0], label="act on the prediction")
        axes.set_ylim(-0.3 * max(everybody[0], 1), 1.1 * max(*benefit, *everybody, 1))
        subject = f"probability of {shortened(curve['class'])} from which one acts, %"
        return _labelled(axes, "decision curve", subject, "net benefit per 100 images")


def fold_accuracies(divisions: Mapping[str, Sequence[float]]) -> str:
    """Draw the accuracy of each fold as a point and their mean as a line, for patient- and image-level folds."""
    height = 0.9 + 0.7 * len(divisions)
    with _new_axes((_SIZE[0], height), (0.24, 0.4 / height + 0.1, 0.73, 0.75 - 0.3 / height)) as axes:
        for place, (colour, accuracies) in enumerate(zip(COLOURS, divisions.values(), strict=False)):
            # side by side, so that equal folds do not hide each other
            spread = place + np.linspace(-0.15, 0.15, len(accuracies))
            axes.plot(accuracies, spread, "o", color=colour, markersize=5, alpha=0.8)
            axes.vlines(float(np.mean(accuracies)), place - 0.32, place + 0.32, color=colour, linewidth=2)
        axes.set_yticks(range(len(divisions)), list(divisions))
        axes.set_ylim(len(divisions) - 0.4, -0.6)
        return _labelled(axes, "accuracy of each fold", "accuracy of each fold, and their mean", "")


def _legend_label(name: str) -> str:
    """Return a label that a legend shows: matplotlib hides labels that start with an underscore."""
    return f" {shortened(name)}" if name.startswith("_") else shortened(name)


@contextmanager
def _new_axes(size: tuple[float, float] = _SIZE, box: tuple[float, float, float, float] = _AXES_BOX) -> Iterator[Axes]:
    """Yield the axes of a new figure; what the body draws has the style of all figures."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=size).add_axes(box)


def _labelled(axes: Axes, title: str, x: str, y: str) -> str:
    """Label both axes, draw the legend if it is not empty, and return the figure as an SVG element for a page.

    ``title`` is for screen readers; the axes are from :func:`_new_axes`.
    """
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    buffer, figure = io.StringIO(), axes.get_figure(root=True)
    assert figure is not None
    with warnings.catch_warnings():
        # The browser renders the text, so glyphs missing from matplotlib's font do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        metadata = {"Date": None, "Title": title}
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    # Embedded in a page: no XML prologue, and a label for screen readers.
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)

"""``xhead eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.featurize.console import PATH, Printed, json_option, layout_option, progress_bars
from xfeat.head.reports.formatting import class_lines, number, threshold_line, with_interval

if TYPE_CHECKING:
    from xfeat.head.evaluate import Evaluation


@click.command(name="eval")
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.argument("data", type=PATH)
@click.option(
    "--features",
    type=PATH,
    help="Cache for the features of DATA, used again by the next call.  [default: NAME.features.h5, after DATA]",
)
@click.option("--groups", metavar="FILE|REGEX", help="Patient or series of each image, as for xfeat featurize.")
@layout_option
@click.option("--weights", type=PATH, help="The backbone's weights file, if it has moved.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N, for featurizing.")
@json_option
def evaluate(run_folder: Path, data: Path, **settings: Any) -> Printed:
    """Test a run on an external data set and show the drop from its own test images.

    RUN is a run folder, such as runs/latest. DATA is a cache (.h5) made with the settings of the run, or images in any
    layout of xfeat featurize, which are featurized with these settings. All labelled images are used; the split is
    ignored. Classes are matched by name.
    """
    with progress_bars() as progress:
        done = xfeat.evaluate(run_folder, data, progress=progress, **settings)
    return done.to_dict(), _as_text(done)


def _as_text(done: Evaluation) -> list[str]:
    figures, metrics = done.to_dict(), done.metrics
    lines = [f"{done.run.folder} on {figures['images']} images of {done.cache.data_root}"]
    parts = {"internal test": done.internal, "external": metrics}
    for title, part in parts.items():
        if part is not None:
            accuracy = with_interval(part["accuracy"], part["accuracy_interval"])
            lines.append(f"{title + ':':15}accuracy {accuracy}, AUC {number(part['auc'])}, {part['images']} images")
    if (drop := figures["drop"]) is not None:
        lines.append("drop:".ljust(15) + _drop_text(drop))
    lines += class_lines(metrics["confusion_matrix"], metrics["classes"], all_in="--json")
    if (point := done.operating_point) is not None:
        lines.append(f"operating point, {point['positive']} if probability ≥ {point['threshold']:.4f}:")
        for title, part in (("internal test", point["internal"]), ("external", point["external"])):
            if part is not None:
                lines.append(f"  {title}: {threshold_line(part)}")
    return lines


def _drop_text(drop: dict[str, Any]) -> str:
    low, high = drop["accuracy_interval"]
    certain = "more than chance" if low > 0 else "the external result is better" if high < 0 else "may be chance"
    auc = "" if drop["auc"] is None else f", AUC {number(drop['auc'])}"
    text = f"accuracy {100 * drop['accuracy']:.1f} points ({100 * low:.1f} to {100 * high:.1f}; {certain}){auc}"
    return text.replace("-", "−")

"""``xhead eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
import xfeat.head.cli.options as options
from xfeat.featurize.console import DATA, PATH, Printed, json_option, layout_option, progress_bars, table_options
from xfeat.head.reports.formatting import threshold_line, with_interval
from xfeat.head.reports.study_text import drop_rows, study_lines, subgroup_lines

if TYPE_CHECKING:
    from xfeat.head.evaluate import Evaluation


@click.command(name="eval")
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.argument("data", type=DATA)
@click.option(
    "--features",
    type=PATH,
    help="Cache for the features of DATA, used again by the next call.  [default: NAME.features.h5, after DATA]",
)
@click.option("--groups", metavar="FILE|REGEX", help="Patient or series of each image, as for xfeat featurize.")
@layout_option
@table_options
@click.option("--weights", type=PATH, help="The backbone's weights file, if it has moved.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N, for featurizing.")
@options.bins_option
@click.option("--name", help="Name of the result folder.  [default: eval- and the time]")
@click.option("--runs", type=PATH, help="Folder of the result folder.  [default: that of RUN]")
@json_option
def evaluate(run_folder: Path, data: Path, **settings: Any) -> Printed:
    """Test a run on an external data set and show the drop from its own test images.

    RUN is a run folder, such as runs/latest. DATA is a cache (.h5) made with the settings of the run, or images in any
    layout of xfeat featurize, which are featurized with these settings. All labelled images are used; the split is
    ignored. Classes are matched by name.

    The metrics, the predictions and a page with subgroups and the worst mistakes are written to a folder beside RUN.
    """
    with progress_bars() as progress:
        done = xfeat.evaluate(run_folder, data, progress=progress, **settings)
    return {"eval": str(done.folder), **done.to_dict()}, _as_text(done, data)


def _as_text(done: Evaluation, data: Path) -> list[str]:
    figures = done.to_dict()
    lines = [f"{done.run.folder} on {figures['images']} images of {done.cache.data_root}"]
    if home := done.run.statistics.get("test"):
        at = " at the threshold" if home["positive"] else ""
        accuracy = f"accuracy{at} {with_interval(**home['accuracy'])}, AUC {with_interval(**home['auc'])}"
        lines.append(f"internal test: {home['images']} images, {accuracy}")
    lines += study_lines("external", done.statistics, all_in="--json")
    lines += [f"drop: {name} {text} points, {verdict}" for name, text, verdict in drop_rows(figures["drop"])]
    if (point := done.operating_point) is not None:
        lines.append(f"operating point, {point['positive']} if probability ≥ {point['threshold']:.4f}:")
        for title, part in (("internal test", point["internal"]), ("external", point["external"])):
            if part is not None:
                lines.append(f"  {title}: {threshold_line(part)}")
    lines += subgroup_lines(done.subgroups)
    if done.cache.path != data:
        lines.append(f"features: {done.cache.path}, used again by the next call")
    assert done.folder is not None
    return [*lines, f"report: {done.folder / 'report.html'}"]

"""``xhead eval``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.featurize.console import PATH, Printed, json_option, layout_option, progress_bar
from xfeat.head.reports.formatting import class_lines, number, threshold_line, with_interval

if TYPE_CHECKING:
    from xfeat.head.evaluate import Evaluation

_CACHE_SUFFIXES = (".h5", ".hdf5")


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
def evaluate(
    run_folder: Path,
    data: Path,
    features: Path | None,
    groups: str | None,
    layout: str | None,
    weights: Path | None,
    device: str,
) -> Printed:
    """Test a run on an external data set and show the drop from its own test images.

    RUN is a run folder, such as runs/latest. DATA is a cache (.h5) made with the settings of the run, or images in any
    layout of xfeat featurize, which are featurized with these settings. All labelled images are used; the split is
    ignored. Classes are matched by name.
    """
    from xfeat.featurize.cache.reader import FeatureCache
    from xfeat.head.runs.inputs import weights_of
    from xfeat.head.runs.reader import open_run

    run = open_run(run_folder)
    if data.suffix.lower() not in _CACHE_SUFFIXES:
        from xfeat.featurize.datasets.layouts import open_dataset
        from xfeat.featurize.engines import open_engine
        from xfeat.featurize.pipeline.compute import RunOptions
        from xfeat.featurize.pipeline.extract import extract_features
        from xfeat.featurize.pipeline.grey_range import warn_of_other_range
        from xfeat.head.evaluate import check_classes_match

        dataset = open_dataset(data, groups=groups, layout=layout)
        check_classes_match(run, dataset, data)
        spec, found = run.feature_spec, weights_of(run, weights)
        warn_of_other_range(dataset, spec)
        data = features or Path(f"{data.resolve().stem}.features.h5")
        with progress_bar("featurizing", "images") as progress:
            engine = partial(open_engine, spec, found, device=device)
            extract_features(dataset, spec, found, data, RunOptions(open_engine=engine, progress=progress))
    cache = FeatureCache.open(data)
    from xfeat.head.evaluate import evaluate_run

    done = evaluate_run(run, cache)
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

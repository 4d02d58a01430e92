"""``xserve eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.featurize.cli.request_options import per_channel
from xfeat.featurize.console import COUNT, DATA, FILE, PATH, Printed, comma_list, json_option, progress_bars, warn
from xfeat.featurize.specs import INTERPOLATIONS, RESIZES
from xfeat.serve.cli.options import predictor_options

if TYPE_CHECKING:
    from xfeat.serve.evaluation.evaluate import ModelEvaluation

_FOLDERS, _AXES = ("splits", "classes", "flat"), ("NCHW", "NHWC")


@click.command(name="eval")
@click.argument("model", type=PATH)
@click.argument("data", type=DATA)
@click.option("-o", "--output", type=PATH, help="CSV file for the prediction of each image.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Instead of the model's own.")
@click.option("--positive", metavar="CLASS", help="The class that the threshold is for.  [default: the model's own]")
@click.option("--groups", metavar="FILE|REGEX", help="Patient or series of each image, as for xfeat featurize.")
@click.option(
    "--layout",
    "layouts",
    type=click.Choice([*_FOLDERS, *_AXES]),
    multiple=True,
    help="What the folders of DATA are, as for xfeat featurize. Of another model: the order of its input's axes.  "
    "[default: what the folders and the input allow]",
)
@click.option("--classes", metavar="A,B", help="Of another model: the names of its outputs, in order.")
@click.option("--mean", metavar="R,G,B", callback=per_channel, help="Subtracted from pixels of 0 to 1.")
@click.option("--std", metavar="R,G,B", callback=per_channel, help="Divided by afterwards.")
@click.option("--size", type=COUNT, help="Side of its input.  [default: that of the file]")
@click.option("--resize", type=click.Choice(RESIZES), help="As for xfeat featurize, like the next two.")
@click.option("--crop", type=float, help="Share of each side that is cut off.")
@click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="Of the resize.")
@click.option("--softmax", is_flag=True, default=None, help="Its output is logits.")
@click.option("--output-name", "output_name", metavar="NAME", help="Its output, if several could be meant.")
@click.option("--metadata", type=FILE, help="JSON file with these options of another model, by their names.")
@predictor_options
@json_option
def evaluate(
    model: Path,
    data: Path,
    output: Path | None,
    groups: str | None,
    layouts: tuple[str, ...],
    classes: str | None,
    output_name: str | None,
    **settings: Any,
) -> Printed:
    """Measure MODEL on the labelled images of DATA.

    MODEL is a file of xexport onnx, or any ONNX classifier that --classes, --mean and --std (or --metadata) describe.
    DATA is what xfeat featurize takes; splits are ignored, and classes are matched by name. Intervals are by patient
    where groups are known. torch and scikit-learn are not needed.
    """
    described = {"classes": comma_list(classes), "output": output_name}
    for name in ("mean", "std", "size", "resize", "crop", "interpolation", "softmax"):
        described[name] = settings.pop(name)
    described["layout"] = next((name for name in layouts if name in _AXES), None)
    with progress_bars() as progress:
        done = xfeat.evaluate_model(
            model,
            data,
            groups=groups,
            layout=next((name for name in layouts if name in _FOLDERS), None),
            described={name: value for name, value in described.items() if value is not None},
            progress=progress,
            **settings,
        )
    warn(f"skipped {image.path}: {image.reason}" for image in done.skipped)
    if output is not None:
        done.write_csv(output)
    return done.to_dict(), _as_text(done, output)


def _as_text(done: ModelEvaluation, output: Path | None) -> list[str]:
    from xfeat.featurize.text import printable
    from xfeat.head.reports.formatting import threshold_line
    from xfeat.head.reports.study_text import study_lines

    found = done.to_dict()
    studied, positive = found["study"], found["positive"]
    lines = []
    if done.left_out:
        named = ", ".join(f"{name} {count}" for name, count in done.left_out.items())
        lines.append(f"left out, of no class of the model: {named}")
    lines += study_lines(f"{done.model} on {done.data}", studied, all_in="--json")
    if studied["auc"]["value"] is None:
        lines.append("no AUC: not every class of the model has images")
    if positive is not None:
        lines.append(f"operating point, {printable(positive)} if probability ≥ {found['threshold']:.4f}:")
        lines.append(f"  {threshold_line(studied['classes'][positive])}")
    return lines if output is None else [*lines, f"{output} written"]

"""The command ``xexport``. Each command parses, calls one library function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xfeat.export.cli.bench import bench
from xfeat.export.cli.options import data_option, model_argument, require_cuda_option, weights_option
from xfeat.export.cli.quantize import quantize
from xfeat.export.cli.triton import triton
from xfeat.export.specs import DEFAULT_MODEL, DEFAULT_RUNS, OPSETS, ExportSpec, VerifySpec
from xfeat.featurize.console import Commands, default_of, json_option, progress_bar

if TYPE_CHECKING:
    from xfeat.export.explain import Explanation
    from xfeat.export.export import Export
    from xfeat.export.parity.agreement import Checks
    from xfeat.export.verify import Verification

_CHECKS = {
    "full": "full model",
    "resized_inside": "full model on files of their own size",
    "core": "core model",
}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat-onnx")
def main() -> None:
    """Turn a trained run into one ONNX file that is proven to answer as the run does."""


@main.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=DEFAULT_MODEL, show_default=True, help="Model to write."
)
@weights_option
@data_option
@click.option(
    "--check-images",
    "max_check_images",
    type=click.IntRange(min=1),
    default=default_of(ExportSpec, "max_check_images"),
    show_default=True,
    help="At most so many test images are compared.",
)
@click.option(
    "--allow-changed-cache",
    is_flag=True,
    help="Export although features.h5 has changed since the run; then without the distance (as with --no-ood).",
)
@click.option(
    "--ood/--no-ood",
    default=True,
    show_default=True,
    help="Measure how far an image is from the training images; needs features.h5.",
)
@click.option(
    "--opset",
    type=click.Choice([str(number) for number in OPSETS]),
    default=str(default_of(ExportSpec, "opset")),
    show_default=True,
    help="Of the core model; 13 for older runtimes.",
)
@click.option(
    "--tolerance",
    type=float,
    default=default_of(ExportSpec, "tolerance"),
    show_default=True,
    help="Largest difference of a probability from those that the training noted; for features of a --precision other "
    "than float32 or a --decoder other than Pillow.",
)
@json_option
def onnx(run: Path | None, output: Path, opset: str, **settings: Any) -> tuple[dict[str, Any], str]:
    """Export RUN (by default the newest in runs/) to an ONNX model.

    Beside it go the portable form (.core.onnx) and the certificate: the run's test images through Pillow and torch
    against the same files through the models. If an answer differs, nothing is written.
    """
    from xfeat.head.runs.reader import latest_run, open_run

    opened = open_run(run or latest_run(Path(DEFAULT_RUNS)))
    from xfeat.export.export import export_run

    spec = ExportSpec(opset=int(opset), **settings)
    with progress_bar("checking") as progress:
        done = export_run(opened, output, spec, progress)
    return _as_json(done, opened.name), _as_text(done, opened.name)


def _as_json(done: Export, run: str) -> dict[str, Any]:
    from xfeat.export.parity.agreement import checks_as_json

    return {
        "run": run,
        "model": str(done.files["full"]),
        "core_model": str(done.files["core"]),
        "certificate": str(done.certificate),
        "against_torch": checks_as_json(done.checks),
        "against_training": done.training.to_dict(),
        "ood_threshold": done.metadata.ood_threshold,
    }


def _as_text(done: Export, run: str) -> str:
    lines = [f"{done.files['full']} and {done.files['core']} written from run {run}"]
    lines += _agreements(done.checks, "torch")
    training = done.training
    within = (
        f", and {training.close_calls} within the tolerance of {training.tolerance:g}" if training.close_calls else ""
    )
    lines.append(
        f"full model against the training's own predictions: largest difference {training.max_difference:.1e}, "
        f"changed decisions {training.changed_decisions}{within}"
    )
    return "\n".join([*lines, f"certificate: {done.certificate}"])


def _agreements(checks: Checks, reference: str) -> list[str]:
    return [
        f"{_CHECKS[name]} against {reference} on {agreement.images} images, {provider}: largest difference "
        f"{agreement.max_difference:.1e}, changed decisions {agreement.changed_decisions}"
        for provider, agreements in checks.items()
        for name, agreement in agreements.items()
    ]


@main.command()
@model_argument
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the images, to compare answers as well.")
@click.option("--run", type=click.Path(path_type=Path), help="Run it should be of: torch then answers again.")
@weights_option
@click.option("--certificate", type=click.Path(path_type=Path), help="[default: the one beside MODEL]")
@click.option(
    "--gate",
    type=click.FloatRange(min=0),
    default=default_of(VerifySpec, "gate"),
    show_default=True,
    help="With --run, for models in fewer bits: largest loss of accuracy, sensitivity or AUC, in points.",
)
@require_cuda_option
@json_option
def verify(model: Path, run: Path | None, **settings: Any) -> tuple[dict[str, Any], str]:
    """Check that MODEL is the file that was proven, and that it still answers as it was proven to.

    Its bytes are held against the certificate. With --data, the images of the certificate are answered again and
    compared with what torch said then; with --run, torch runs again. A model in fewer bits differs from torch by more
    than rounding, so with --run its accuracy, sensitivity and AUC on the validation images are held against torch's.
    Exit code 1 if anything differs.
    """
    from xfeat.export.verify import verify_model
    from xfeat.head.runs.reader import open_run

    opened = open_run(run) if run is not None else None
    with progress_bar("verifying", "images") as progress:
        done = verify_model(model, VerifySpec(**settings), run=opened, progress=progress)
    return done.to_dict(), _verified(done)


def _verified(done: Verification) -> str:
    from xfeat.export.parity.accuracy_loss import worth_table

    lines = []
    if done.certificate is not None:
        lines.append(f"{done.model}: the bytes that {done.certificate} is for")
    if done.run is not None:
        lines.append(f"{done.model}: classes, settings, head, temperature and threshold of run {done.run}")
    if done.changed_images:
        lines.append(f"{done.changed_images} images have changed since the export and were left out")
    lines += _agreements(done.checks, "the certificate" if done.reference == "certificate" else "torch")
    for provider, (before, after) in done.worth.items():
        lines += [f"on the validation images, {provider}, against torch:", *worth_table(before, after)]
    if done.reference is None:
        lines.append("answers were not compared: name the folder of the images with --data DIR")
    return "\n".join(lines)


@main.command()
@model_argument
@json_option
def info(model: Path) -> tuple[dict[str, Any], str]:
    """Show what is inside MODEL: classes, settings, fingerprints, threshold, size, operators."""
    from xfeat.export.model.file import describe_model

    facts = describe_model(model)
    return facts, _described(facts)


def _described(facts: dict[str, Any]) -> str:
    from xfeat.featurize.specs import FeatureSpec

    decides = f"{facts['positive']} from {facts['threshold']:.4g}" if facts["positive"] else "the most probable class"
    head = f" (head from {facts['head_bits']} bits)" if facts["head_bits"] else ""
    stored = facts["parameters"] / 1e6
    operators = ", ".join(f"{count} {name}" for name, count in facts["operators"].items())
    rows = {
        "model": f"{facts['model']}, {facts['bytes'] / 1e6:.1f} MB, {stored:.2f} million stored numbers",
        "form": f"{facts['variant']}, {facts['precision']}{head}, opset {facts['opset']}",
        "classes": ", ".join(facts["class_names"]),
        "decides": decides,
        "temperature": f"{facts['temperature']:.4g}",
        "foreign from": "not measured" if facts["ood_threshold"] is None else f"{facts['ood_threshold']:.4g}",
        "features": FeatureSpec.from_dict(facts["feature_spec"]).describe(),
        "run": facts["run"],
        "fingerprints": f"features {facts['feature_fingerprint']}, cache {facts['cache_sha256'][:16]}, "
        f"head {facts['head_sha256'][:16]}, file {facts['sha256'][:16]}",
        "certificate": facts["certificate"],
        "inputs": _shapes(facts["inputs"]),
        "outputs": _shapes(facts["outputs"]),
        "operators": operators,
    }
    return "\n".join(f"{name + ':':14}{text}" for name, text in rows.items())


def _shapes(tensors: list[dict[str, Any]]) -> str:
    return ", ".join(f"{each['name']} {each['type']} {each['shape']}" for each in tensors).replace("'", "")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGES…")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="explained",
    show_default=True,
    help="Folder for the pictures.",
)
@click.option("--class", "shown", metavar="CLASS", help="Show what speaks for CLASS.  [default: the one decided on]")
@require_cuda_option
@json_option
def explain(
    model: Path, images: tuple[Path, ...], output: Path, shown: str | None, require_cuda: bool
) -> tuple[dict[str, Any], str]:
    """Show what MODEL looked at: each image with its heatmap (Grad-CAM) over it.

    IMAGES are files, and folders of them. Bright regions raised the score of the class shown; a heatmap says where the
    last layer of the network responded, not why, and is no evidence of a finding.
    """
    from dataclasses import asdict

    from xfeat.export.explain import explain_images
    from xfeat.export.model.file import open_model

    opened = open_model(model, device="cuda" if require_cuda else "cpu")
    with progress_bar("explaining", "images") as progress:
        done, skipped = explain_images(opened, images, output, shown=shown, progress=progress)
    for path, reason in skipped:
        click.echo(f"warning: skipped {path}: {reason}", err=True)
    lines = [f"{each.picture}  {each.shown} {each.probability:.4f}{_foreign(each)}" for each in done]
    facts = {
        "model": str(model),
        "explanations": [asdict(each) for each in done],
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
    }
    return facts, "\n".join(lines)


def _foreign(each: Explanation) -> str:
    return "  unlike the training images" if each.foreign else ""


main.add_command(bench)
main.add_command(quantize)
main.add_command(triton)

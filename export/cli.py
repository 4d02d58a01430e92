"""The command ``xexport``. Each command parses, calls one library function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurize.console import Commands, json_option

if TYPE_CHECKING:
    from export.export import Export

DEFAULT_MODEL = "model.onnx"
DEFAULT_RUNS = "runs"

_CHECKS = {
    "full": "full model",
    "resized_inside": "full model on files of their own size",
    "core": "core model",
}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xfeat")
def main() -> None:
    """Turn a trained run into one ONNX file that is proven to answer as the run does."""


@main.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=DEFAULT_MODEL, show_default=True, help="Model to write."
)
@click.option("--weights", type=click.Path(path_type=Path), help="The backbone's weights.  [default: those of the run]")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of the images.  [default: the one that was featurized]"
)
@click.option(
    "--check-images",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="At most so many test images are compared.",
)
@click.option(
    "--allow-changed-cache", is_flag=True, help="Export although features.h5 now holds features of another kind."
)
@click.option(
    "--ood/--no-ood",
    default=True,
    show_default=True,
    help="Measure how far an image is from the training images; needs features.h5.",
)
@json_option
def onnx(
    run: Path | None,
    output: Path,
    weights: Path | None,
    data: Path | None,
    check_images: int,
    allow_changed_cache: bool,
    ood: bool,
) -> tuple[dict[str, Any], str]:
    """Export RUN (by default the newest in runs/) to an ONNX model.

    Beside it go the portable form (.core.onnx) and the certificate: the run's test images through Pillow and torch
    against the same files through the models. If an answer differs, nothing is written.
    """
    from head.run import latest_run, open_run

    opened = open_run(run or latest_run(Path(DEFAULT_RUNS)))
    from export.export import ExportSpec, export_run

    spec = ExportSpec(
        weights_file=weights,
        data=data,
        max_check_images=check_images,
        allow_changed_cache=allow_changed_cache,
        ood=ood,
    )
    done = export_run(opened, output, spec)
    return _as_json(done, opened.name), _as_text(done, opened.name)


def _as_json(done: Export, run: str) -> dict[str, Any]:
    return {
        "run": run,
        "model": str(done.files["full"]),
        "core_model": str(done.files["core"]),
        "certificate": str(done.certificate),
        "against_torch": {
            provider: {variant: agreement.to_dict() for variant, agreement in variants.items()}
            for provider, variants in done.checks.items()
        },
        "against_training": done.training.to_dict(),
        "ood_threshold": done.metadata.ood_threshold,
    }


def _as_text(done: Export, run: str) -> str:
    lines = [f"{done.files['full']} and {done.files['core']} written from run {run}"]
    for provider, agreements in done.checks.items():
        for name, agreement in agreements.items():
            lines.append(
                f"{_CHECKS[name]} against torch on {agreement.images} images, {provider}: largest difference "
                f"{agreement.max_difference:.1e}, changed decisions {agreement.changed_decisions}"
            )
    training = done.training
    lines.append(
        f"full model against the training's own predictions: largest difference {training.max_difference:.1e}, "
        f"changed decisions {training.changed_decisions}"
    )
    return "\n".join([*lines, f"certificate: {done.certificate}"])

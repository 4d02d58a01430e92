"""``xexport verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import xfeat
from xfeat.export.cli.options import model_argument, require_signature_option, weights_option
from xfeat.export.specs import VerifySpec
from xfeat.featurize.console import DATA, NOT_NEGATIVE, PATH, Printed, json_option, progress_bars, spec_option

if TYPE_CHECKING:
    from xfeat.export.parity.checks import Checks
    from xfeat.export.verify import Verification

_CHECKS = {
    "full": "full model",
    "resized_inside": "full model on files of original size",
    "core": "core model",
}


def agreement_lines(checks: Checks, reference: str) -> list[str]:
    """Return a line per provider and check; ``reference`` names what the predictions were compared with."""
    return [
        f"{_CHECKS[name]} against {reference} on {agreement.images} images, {provider}: largest difference "
        f"{agreement.max_difference:.1e}, changed decisions {agreement.changed_decisions}"
        for provider, agreements in checks.items()
        for name, agreement in agreements.items()
    ]


@click.command()
@model_argument
@click.option("--data", type=DATA, help="Folder of the images, to compare predictions as well.")
@click.option("--run", type=PATH, help="Run of MODEL, to compare it with torch again.")
@weights_option
@click.option("--certificate", type=PATH, help="[default: the one beside MODEL]")
@require_signature_option
@spec_option(
    VerifySpec,
    "gate",
    NOT_NEGATIVE,
    "With --run, for float16 and int8 models: largest loss of accuracy, sensitivity or AUC, in percentage points.",
)
@click.option(
    "--require-cuda", is_flag=True, help="Run on the GPU, and fail if part of the network would run on the CPU."
)
@json_option
def verify(model: Path, run: Path | None, **settings: Any) -> Printed:
    """Check that MODEL is the file that was exported, and that it still gives the predictions in its certificate.

    The file is compared with the SHA-256 in the certificate. With --data, the model's predictions of the certificate's
    images are compared with the recorded ones; with --run, with those of torch, which runs again. A float16 or int8
    model differs from torch by more than rounding, so with --run its accuracy, sensitivity and AUC on the validation
    images are compared instead. Exit code 1 if anything differs.
    """
    with progress_bars() as progress:
        done = xfeat.verify(model, run=run, progress=progress, **settings)
    return done.to_dict(), _as_text(done)


def _as_text(done: Verification) -> list[str]:
    from xfeat.export.parity.accuracy_loss import scores_table

    lines = []
    if done.certificate is not None:
        signed = ", whose signature is valid" if done.signed else ""
        lines.append(f"{done.model} matches {done.certificate}{signed}")
    if done.run is not None:
        lines.append(f"{done.model} has the classes, settings, head, temperature and threshold of run {done.run}")
    if done.changed_images:
        lines.append(f"left out: {done.changed_images} images that have changed since the export")
    if done.missing_images:
        lines.append(f"left out: {done.missing_images} images that are missing or unreadable")
    lines += agreement_lines(done.checks, "the certificate" if done.reference == "certificate" else "torch")
    for provider, (before, after) in done.scores.items():
        lines += [f"on the validation images, {provider}, against torch:", *scores_table(before, after)]
    if done.reference is None:
        lines.append("predictions were not compared: name the folder of the images with --data DIR")
    return lines

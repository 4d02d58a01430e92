"""From a run folder to ``model.onnx``, ``model.core.onnx`` and their certificate, published only if the checks pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from onnx import ModelProto

from xfeat.export.build.assemble import trace, write_variants
from xfeat.export.build.compose import compose
from xfeat.export.build.encoder_network import EncoderNetwork
from xfeat.export.build.fused_model import FusedModel, ReferenceModel, Tail
from xfeat.export.build.ood_from_cache import ood_score_from_cache
from xfeat.export.build.ood_score import OodScore, fit_ood_threshold
from xfeat.export.build.reference_model import load_reference_model, metadata_of, torch_probabilities
from xfeat.export.model.metadata import VARIANTS, ModelMetadata
from xfeat.export.model.progress import Progress, ProgressCounter
from xfeat.export.parity.agreement import Agreement, Probabilities, compare
from xfeat.export.parity.certificate import write_certificate
from xfeat.export.parity.check_images import CheckImages
from xfeat.export.parity.checks import (
    Checks,
    check_variant,
    count_predictions,
    milliseconds_per_image,
    onnx_probabilities,
    open_on_providers,
    require_agreement,
)
from xfeat.export.parity.ood_kinds import OodKind, measure_kinds
from xfeat.export.parity.run_images import images_to_check
from xfeat.export.publish import output_paths, publish
from xfeat.export.specs import ExportSpec
from xfeat.featurize.errors import ParityError, SpecError
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.onnx_session import CPU, cuda_possible
from xfeat.head.runs.inputs import with_cache
from xfeat.head.runs.reader import Run

# With such a difference the two predictions may be opposite: nobody should accept that.
_OPPOSITE = 0.5


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an export wrote.

    Attributes:
        files: variant to path.
        certificate: path of the certificate.
        metadata: of the models.
        checks: provider to check to agreement with torch.
        training: agreement of the full model with the probabilities in predictions.csv.
        missing_heatmap: why the full model has no heatmap, or ``None`` if it has one.
    """

    files: dict[str, Path]
    certificate: Path
    metadata: ModelMetadata
    checks: Checks
    training: Agreement
    missing_heatmap: str | None


def export_run(run: Run, output: Path, spec: ExportSpec | None = None, progress: Progress | None = None) -> Export:
    """Export a run, and check on its own test images that the files give the predictions of the trained model.

    Args:
        run: the trained head.
        output: the full model; ``.core.onnx`` and ``.certificate.json`` are written beside it.
        spec: how to export.
        progress: called with the number of finished steps and their total; a step reads or predicts one image.

    Raises:
        SpecError: if a tolerance is given for features that were computed as the model computes them.
        MismatchError: if the backbone's weights or the cache differ from those of the run.
        DataError: if none of the images can be read for the check.
        ParityError: if a prediction differs; no file is left or replaced.
        OutputError: if the files cannot be written.
    """
    spec = spec or ExportSpec()
    _check_tolerance(run, spec.tolerance)
    if spec.features is not None:
        [run] = with_cache([run], spec.features)
    output_paths(output)  # refuses some names, before anything is computed
    ood_score, scores = ood_score_from_cache(run, spec)
    reference = load_reference_model(run, spec.weights_file)
    metadata = metadata_of(run, None if scores is None else fit_ood_threshold(scores), scores)
    counter = ProgressCounter(progress, partial(count_steps, metadata))
    images, recorded = images_to_check(run, spec.data, spec.max_check_images, counter)
    parts = Parts(reference, ood_score, metadata, images, recorded)
    return write_checked(output, parts, spec, counter, disagreement=_changed_since_training)


class Parts(NamedTuple):
    """What a model is made of, and what it is compared with.

    Attributes:
        reference: the model as it was trained.
        ood_score: of the training features; ``None`` for a model without one.
        metadata: of the model files.
        images: that the files are checked on.
        recorded: their probabilities (n, C) as they were predicted at training.
    """

    reference: ReferenceModel
    ood_score: OodScore | None
    metadata: ModelMetadata
    images: CheckImages
    recorded: Probabilities


def write_checked(
    output: Path,
    parts: Parts,
    spec: ExportSpec,
    counter: ProgressCounter,
    *,
    disagreement: Callable[[Export], ParityError],
) -> Export:
    """Write both variants and their certificate, if they give the predictions of the reference and those recorded.

    Args:
        output: the full model.
        parts: what it is made of.
        spec: opset and tolerance.
        counter: counts the images predicted.
        disagreement: returns the error if the recorded predictions differ.

    Raises:
        ParityError: if a prediction differs; no file is left or replaced.
        OutputError: if the files cannot be written.
    """
    reference, ood_score, metadata, images, recorded = parts
    targets, certificate = output_paths(output)
    expected = torch_probabilities(reference, images.pixels, counter)
    with publish([*targets.values(), certificate]) as folder:
        written = {variant: folder / path.name for variant, path in targets.items()}
        traced = _traced(reference, ood_score, metadata.feature_spec.preprocess)
        write_variants(traced, metadata, written, spec.opset)
        checks, milliseconds, found, ood_kinds = _check(written, images, expected, counter)
        milliseconds["torch"] = milliseconds_per_image(partial(torch_probabilities, reference), images.pixels)
        result = Export(
            files=targets,
            certificate=certificate,
            metadata=metadata,
            checks=checks,
            training=compare(recorded, found, metadata.decide, spec.tolerance),
            missing_heatmap=getattr(reference.backbone, "missing_heatmap", None),
        )
        message = "the exported model ({}) does not give torch's predictions; nothing was written"
        require_agreement(checks, message, targets["full"])
        if not result.training.holds:
            raise disagreement(result)
        evidence = {
            "against_torch": checks,
            "against_training": result.training,
            "milliseconds_an_image": milliseconds,
            "out_of_distribution": ood_kinds,
        }
        write_certificate(folder / certificate.name, metadata, written, images, expected, evidence)
    return result


def _traced(reference: ReferenceModel, ood_score: OodScore | None, preprocess: PreprocessSpec) -> ModelProto:
    network = reference.backbone
    if isinstance(network, EncoderNetwork):
        return compose(network, Tail(reference, ood_score, heatmap=network.missing_heatmap is None), preprocess)
    return trace(FusedModel(reference, ood_score), preprocess.size)


def _check_tolerance(run: Run, tolerance: float) -> None:
    if tolerance > ExportSpec.tolerance and not run.feature_spec.export_differences:
        raise SpecError(
            "--tolerance is for features that were not computed in float32; those of this run were",
            expected=f"at most {ExportSpec.tolerance}",
            found=str(tolerance),
            fix="leave out --tolerance",
        )


def count_steps(metadata: ModelMetadata, images: int) -> int:
    """Return how many images are read or predicted: read once, by torch once, by both variants on each provider."""
    providers = 2 if cuda_possible() else 1
    variants = sum(count_predictions(replace(metadata, variant=variant), images) for variant in VARIANTS)
    return 2 * images + providers * variants


def _check(
    files: dict[str, Path], images: CheckImages, expected: Probabilities, counter: ProgressCounter
) -> tuple[Checks, dict[str, float], Probabilities, dict[str, OodKind]]:
    """Return checks, milliseconds per image, and the full model's probabilities and kinds of images on the CPU."""
    checks: Checks = {}
    ood_kinds: dict[str, OodKind] = {}
    milliseconds = {}
    found = {}
    for variant, file in files.items():
        for provider, model in open_on_providers(file).items():
            agreements, found[variant, provider] = check_variant(model, images, expected, counter)
            checks.setdefault(provider, {}).update(agreements)
            run = partial(onnx_probabilities, model)
            milliseconds[f"{provider} {variant}"] = milliseconds_per_image(run, images.pixels)
            if (variant, provider) == ("full", CPU):
                ood_kinds = measure_kinds(model, images.pixels)
    return checks, milliseconds, found["full", CPU], ood_kinds


def _changed_since_training(result: Export) -> ParityError:
    training, export_differences = result.training, result.metadata.feature_spec.export_differences
    what, fix = "", "if the images have changed since training, run xfeat featurize and xhead train again"
    if export_differences:
        what = f", whose features were {' and '.join(export_differences.values())}"
        fix = f"{fix}; or run both again with {' '.join(export_differences)}"
        if training.max_difference < _OPPOSITE:
            fix += f", or accept the difference with --tolerance {math.ceil(training.max_difference * 100) / 100}"
    return ParityError(
        f"the exported model does not give the predictions of the training{what}; nothing was written",
        path=result.files["full"],
        expected=f"the probabilities in predictions.csv, within {training.tolerance}",
        found=training.found,
        fix=fix,
    )

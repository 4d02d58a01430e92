"""Repeats the check: is this the file that was checked at export, and does it still give torch's predictions?"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xfeat.export.model.file import INTACT_COPY, ModelFile
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Progress, ProgressCounter
from xfeat.export.parity.accuracy_loss import Scores, acceptable, gate_in_words, measure, scores_table
from xfeat.export.parity.agreement import Probabilities, compare
from xfeat.export.parity.certificate import Certificate, certificate_path, read_certificate, require_match
from xfeat.export.parity.check_images import CheckImages, load_images
from xfeat.export.parity.checks import (
    Checks,
    check_variant,
    count_predictions,
    onnx_probabilities,
    open_on_providers,
    require_agreement,
)
from xfeat.export.specs import ExportSpec, VerifySpec
from xfeat.featurize.errors import CacheError, DataError, MismatchError, ParityError
from xfeat.featurize.system.onnx_session import CPU
from xfeat.featurize.urls import Root
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)

# Of a threshold fitted on another machine, whose arithmetic rounds differently.
_OOD_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked, all of it without an error.

    Attributes:
        model: the file.
        certificate: the one it was compared with, or ``None``.
        signed: whether its signature was required, and is valid.
        run: name of the run it was compared with, or ``None``.
        reference: ``torch``, ``certificate``, or ``None`` if no predictions were compared.
        missing_images: images of the run or certificate that are missing or unreadable, and were left out.
        changed_images: images of the certificate whose files have changed, and were left out.
        checks: provider to check to agreement.
        scores: of a model of lower precision, if torch ran: provider to the scores of torch and of the model on the
            validation images.
    """

    model: str
    certificate: str | None
    signed: bool
    run: str | None
    reference: str | None
    missing_images: int
    changed_images: int
    checks: Checks
    scores: dict[str, tuple[Scores, Scores]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        content = asdict(self)
        content["worth"] = content.pop("scores")
        return content


def verify_model(
    path: Path, spec: VerifySpec | None = None, *, run: Run | None = None, progress: Progress | None = None
) -> Verification:
    """Compare a model file with its certificate and with a run, and its predictions with torch's.

    Args:
        path: the model.
        spec: what to compare it with.
        run: the run that it was exported from: then torch runs again, and the certificate may be missing.
        progress: called with the number of finished steps and their total; a step reads or predicts one image.

    Raises:
        ModelError: if the model or the certificate cannot be read, or a required signature is missing.
        MismatchError: if the signature is not valid, or the bytes, the classes, the weights or the settings differ.
        ParityError: if a prediction differs.
        DataError: if there is no image to compare predictions on.
        DeviceError: if a GPU is required and cannot be used.
    """
    spec = spec or VerifySpec()
    file, key = spec.certificate or certificate_path(path), spec.require_signature
    certificate = None if key is None else read_certificate(file, key)  # before onnxruntime reads the model
    digests = None if certificate is None else certificate.models.values()
    models = open_on_providers(path, require_cuda=spec.require_cuda, digests=digests)
    model = models[CPU]
    # With its run, a model needs no certificate, unless one is named.
    if certificate is None and (run is None or spec.certificate or os.path.lexists(file)):
        certificate = read_certificate(file)
    if certificate is not None:
        require_match(model, certificate)
    if run is not None:
        _check_run(model, run)
    predictions = partial(count_predictions, model.metadata)
    counter = ProgressCounter(progress, lambda images: images + len(models) * predictions(images))
    images: CheckImages | None = None
    checks: Checks = {}
    scores: dict[str, tuple[Scores, Scores]] = {}
    if run is not None:
        images, checks, scores = _compare_with_torch(models, run, spec, counter)
    elif spec.data is not None and certificate is not None:
        images, expected = _certified_predictions(model, certificate, spec.data, counter)
        checks = _compare(models, images, expected, counter)
    return Verification(
        model=str(path),
        certificate=str(certificate.path) if certificate else None,
        signed=spec.require_signature is not None,
        run=run.name if run else None,
        reference=None if images is None else "torch" if run else "certificate",
        missing_images=images.missing if images else 0,
        changed_images=images.changed if images else 0,
        checks=checks,
        scores=scores,
    )


def _check_run(model: ModelFile, run: Run) -> None:
    from xfeat.export.build.reference_model import metadata_of

    wanted = metadata_of(run, _ood_threshold(model.metadata, run)).identity
    for what, found in model.metadata.identity.items():
        if found != wanted[what]:
            raise MismatchError(
                f"the model was not exported from run {run.name}: different {what}",
                path=model.path,
                expected=wanted[what],
                found=found,
                fix="name the run of the model with --run, or use an intact copy of the model",
            )


def _ood_threshold(metadata: ModelMetadata, run: Run) -> float | None:
    """Return the threshold that the model must have: fitted again, if the features of the run are found."""
    stored = metadata.ood_threshold
    if stored is None or metadata.precision != "float32":  # xexport quantize sets it anew, on images
        return stored
    from xfeat.export.build.ood_from_cache import ood_score_from_cache
    from xfeat.export.build.ood_score import fit_ood_threshold

    try:
        _, scores = ood_score_from_cache(run, ExportSpec())
    except (CacheError, DataError, MismatchError) as error:
        logger.warning("the out-of-distribution threshold was not compared: %s", error.what)
        return stored
    fitted = None if scores is None else fit_ood_threshold(scores)
    return stored if fitted is not None and math.isclose(stored, fitted, rel_tol=_OOD_TOLERANCE) else fitted


def _compare_with_torch(
    models: dict[str, ModelFile], run: Run, spec: VerifySpec, counter: ProgressCounter
) -> tuple[CheckImages, Checks, dict[str, tuple[Scores, Scores]]]:
    """Compare predictions with torch's; of a model of lower precision, repeat the gate on the validation images."""
    from xfeat.export.build.reference_model import load_reference_model, torch_probabilities
    from xfeat.export.parity.run_images import images_to_check, labelled_images

    metadata = models[CPU].metadata
    reference = load_reference_model(run, spec.weights_file)
    if metadata.precision == "float32":
        images, _ = images_to_check(run, spec.data, counter=counter)
        return images, _compare(models, images, torch_probabilities(reference, images.pixels), counter), {}
    images, labels = labelled_images(run, "valid", spec.data, counter=counter)
    expected = torch_probabilities(reference, images.pixels)
    before = measure(expected, labels, metadata)
    scores = {}
    for provider, model in models.items():
        found = onnx_probabilities(model, images.pixels, counter)
        after = measure(found, labels, metadata)
        agreement = compare(expected, found, metadata.decide)
        accepted = acceptable(before, after, spec.gate, agreement.decided_differently)
        if not (np.isfinite(found).all() and accepted):
            raise ParityError(
                f"the model ({metadata.variant}, {provider}) loses more against its run than the gate allows",
                path=model.path,
                expected=gate_in_words(spec.gate),
                found="\n".join([f"on {len(images)} validation images", *scores_table(before, after)]),
                fix="if it was quantised with another --gate, pass that one; otherwise run xexport quantize again",
            )
        scores[provider] = before, after
    return images, {}, scores


def _certified_predictions(
    model: ModelFile, certificate: Certificate, data: Root, counter: ProgressCounter
) -> tuple[CheckImages, Probabilities]:
    """Return the unchanged images of the certificate, and their predictions in it."""
    if isinstance(data, Path) and not data.exists():
        raise DataError("folder not found", path=data, fix="name the folder that was featurized with --data DIR")
    recorded = {row.path: row for row in certificate.reference}
    digests = {path: row.sha256 for path, row in recorded.items()}
    what = f"the certificate's {len(recorded)} images"
    images = load_images(data, digests, what, model.metadata.feature_spec.preprocess, counter)
    return images, np.array([recorded[path].probabilities for path in images.sha256], np.float32)


def _compare(
    models: dict[str, ModelFile], images: CheckImages, expected: Probabilities, counter: ProgressCounter
) -> Checks:
    checks = {provider: check_variant(model, images, expected, counter)[0] for provider, model in models.items()}
    message = "the model ({}) no longer gives the reference predictions"
    require_agreement(checks, message, models[CPU].path, INTACT_COPY)
    return checks

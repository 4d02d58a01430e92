"""Repeats the check: is this the file that was checked at export, and does it still give torch's predictions?"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xfeat.export.model.cuda_graphs import Session
from xfeat.export.model.file import ModelFile, open_model
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Progress, ProgressCounter
from xfeat.export.parity.accuracy_loss import Scores, gate_in_words, measure, scores_table, within_gate
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.parity.certificate import Certificate, certificate_path, read_certificate
from xfeat.export.parity.check_images import CheckImages, load_images
from xfeat.export.parity.checks import Checks, check_variant, count_predictions, onnx_probabilities, open_sessions
from xfeat.export.specs import VerifySpec
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.errors import DataError, MismatchError, ParityError
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)

_CONTENTS = {
    "class_names": "classes",
    "feature_spec": "backbone settings",
    "head_sha256": "head",
    "temperature": "temperature",
    "positive": "positive class",
    "threshold": "threshold",
    "ood_threshold": "out-of-distribution threshold",
}
_FIX = "use an intact copy, or export the run again with xexport onnx"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked, all of it without an error.

    Attributes:
        model: the file.
        certificate: the one it was compared with, or ``None``.
        run: name of the run it was compared with, or ``None``.
        reference: ``torch``, ``certificate``, or ``None`` if no predictions were compared.
        missing_images: images of the certificate that are missing or unreadable, and were left out.
        changed_images: images of the certificate whose files have changed, and were left out.
        checks: provider to check to agreement.
        scores: of a model of lower precision, if torch ran: provider to the scores of torch and of the model on the
            validation images.
    """

    model: str
    certificate: str | None
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
        ModelError: if the model or the certificate cannot be read.
        MismatchError: if the bytes, the classes, the weights or the settings differ.
        ParityError: if a prediction differs.
        DataError: if there is no image to compare predictions on.
        DeviceError: if a GPU is required and cannot be used.
    """
    spec = spec or VerifySpec()
    model = open_model(path)
    certificate = _matching_certificate(model, spec.certificate, needed=run is None)
    if run is not None:
        _check_run(model, run)
    sessions = open_sessions(path, require_cuda=spec.require_cuda)
    predictions = partial(count_predictions, model.metadata)
    counter = ProgressCounter(progress, lambda images: images + len(sessions) * predictions(images))
    checks: Checks = {}
    scores: dict[str, tuple[Scores, Scores]] = {}
    reference, missing, changed = None, 0, 0
    if run is not None and model.metadata.precision != "float32":
        scores = _scores_within_gate(model, sessions, run, spec, counter)
        reference = "torch"
    elif run is not None:
        checks = _compare(model, sessions, _torch_predictions(run, spec, counter), counter)
        reference = "torch"
    elif spec.data is not None and certificate is not None:
        images, expected, missing, changed = _certified_predictions(model, certificate, spec.data, counter)
        checks = _compare(model, sessions, (images, expected), counter)
        reference = "certificate"
    return Verification(
        model=str(path),
        certificate=str(certificate.path) if certificate else None,
        run=run.name if run else None,
        reference=reference,
        missing_images=missing,
        changed_images=changed,
        checks=checks,
        scores=scores,
    )


def _matching_certificate(model: ModelFile, given: Path | None, *, needed: bool) -> Certificate | None:
    file = given or certificate_path(model.path)
    if not needed and given is None and not file.exists():
        return None
    certificate = read_certificate(file)
    digest = sha256_of(model.path)
    expected = certificate.models.get(model.metadata.variant)
    if digest != expected:
        raise MismatchError(
            "the model file does not match its certificate",
            path=model.path,
            expected=f"SHA-256 {str(expected)[:16]}… ({certificate.path.name})",
            found=f"{digest[:16]}…, {_differences(model.metadata, certificate)}",
            fix=_FIX,
        )
    return certificate


def _differences(metadata: ModelMetadata, certificate: Certificate) -> str:
    """Return which metadata differ from those in the certificate, for a message."""
    found, expected = metadata.to_dict(), certificate.metadata
    keys = {key for key in found.keys() & expected.keys() if found[key] != expected[key]} - {"variant"}
    if not keys:
        return "with the same metadata"
    return f"with different {', '.join(name for key, name in _CONTENTS.items() if key in keys) or 'metadata'}"


def _check_run(model: ModelFile, run: Run) -> None:
    from xfeat.export.build.reference_model import metadata_of

    wanted, found = _identity(metadata_of(run, model.metadata.ood_threshold)), _identity(model.metadata)
    for what, expected in wanted.items():
        if found[what] != expected:
            raise MismatchError(
                f"the model was not exported from run {run.name}: different {what}",
                path=model.path,
                expected=expected,
                found=found[what],
                fix="name the run of the model with --run, or use an intact copy of the model",
            )


def _identity(metadata: ModelMetadata) -> dict[str, str]:
    """Return what must equal the run's; comparing predictions would miss some of it, such as the threshold."""
    return {
        "classes": ", ".join(metadata.class_names),
        "backbone settings": metadata.feature_spec.describe(),
        "feature fingerprint": metadata.feature_spec.fingerprint,
        "head": metadata.head_sha256[:16],
        "temperature": str(metadata.temperature),
        "threshold": "none" if metadata.positive is None else f"{metadata.threshold} for {metadata.positive}",
    }


def _torch_predictions(run: Run, spec: VerifySpec, counter: ProgressCounter) -> tuple[CheckImages, Probabilities]:
    from xfeat.export.build.reference_model import load_reference_model, torch_probabilities
    from xfeat.export.parity.run_images import images_to_check

    images, _ = images_to_check(run, spec.data, counter=counter)
    return images, torch_probabilities(load_reference_model(run, spec.weights_file), images.pixels)


def _scores_within_gate(
    model: ModelFile, sessions: dict[str, Session], run: Run, spec: VerifySpec, counter: ProgressCounter
) -> dict[str, tuple[Scores, Scores]]:
    """Repeat the gate of a model of lower precision: its scores on the validation images against torch's."""
    from xfeat.export.build.reference_model import load_reference_model, torch_probabilities
    from xfeat.export.parity.run_images import labelled_images

    reference = load_reference_model(run, spec.weights_file)
    images, labels = labelled_images(run, "valid", spec.data, counter=counter)
    before = measure(torch_probabilities(reference, images.pixels), labels, model.metadata)
    scores = {}
    for provider, session in sessions.items():
        found = onnx_probabilities(session, images.pixels, model.metadata.variant, counter)
        after = measure(found, labels, model.metadata)
        if not (np.isfinite(found).all() and within_gate(before, after, spec.gate)):
            raise ParityError(
                f"the model ({model.metadata.variant}, {provider}) loses more against its run than the gate allows",
                path=model.path,
                expected=gate_in_words(spec.gate),
                found="\n".join([f"on {len(images)} validation images", *scores_table(before, after)]),
                fix="if it was quantised with another --gate, pass that one; otherwise run xexport quantize again",
            )
        scores[provider] = before, after
    return scores


def _certified_predictions(
    model: ModelFile, certificate: Certificate, data: Path, counter: ProgressCounter
) -> tuple[CheckImages, Probabilities, int, int]:
    """Return unchanged images, their predictions in the certificate, and how many are missing and have changed."""
    if not data.exists():
        raise DataError("folder not found", path=data, fix="name the folder that was featurized with --data DIR")
    recorded = {row.path: row for row in certificate.reference}
    counter.expect(len(recorded))
    found = load_images(data, list(recorded), model.metadata.feature_spec.preprocess, counter)
    same = [i for i, path in enumerate(found.paths) if found.sha256[i] == recorded[path].sha256]
    if not same:
        raise DataError(
            "all images have changed" if len(found) else "none of the certificate's images can be read",
            path=data,
            expected=f"{len(recorded)} files such as {next(iter(recorded), 'none')}",
            found=f"{len(found)} of them that can be read, {len(same)} unchanged",
            fix="name the folder that was featurized with --data DIR",
        )
    images = CheckImages(
        root=data,
        paths=[found.paths[i] for i in same],
        sha256=[found.sha256[i] for i in same],
        pixels=found.pixels[same],
    )
    expected = np.array([recorded[path].probabilities for path in images.paths], np.float32)
    if missing := len(recorded) - len(found):
        logger.warning(
            "%s: %d of the certificate's %d images are missing or unreadable; the model is checked on the other %d",
            *(data, missing, len(recorded), len(same)),
        )
    return images, expected, missing, len(found) - len(same)


def _compare(
    model: ModelFile,
    sessions: dict[str, Session],
    reference: tuple[CheckImages, Probabilities],
    counter: ProgressCounter,
) -> Checks:
    images, expected = reference
    checks = {
        provider: check_variant(session, model.metadata, images, expected, counter)
        for provider, session in sessions.items()
    }
    for provider, agreements in checks.items():
        for name, agreement in agreements.items():
            if not agreement.holds:
                raise ParityError(
                    f"the model ({name}, {provider}) no longer gives the reference predictions",
                    path=model.path,
                    expected=agreement.expected,
                    found=agreement.found,
                    fix=_FIX,
                )
    return checks

"""The check repeated: is this file the one that was proven, and does it still answer as torch did?"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
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
    "feature_spec": "settings of the backbone",
    "head_sha256": "head",
    "temperature": "temperature",
    "positive": "positive class",
    "threshold": "threshold",
    "ood_threshold": "limit of the distance",
}
_MEND = "take a copy that is whole, or export the run again with xexport onnx"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found to be in order.

    Attributes:
        model: the file.
        certificate: the one it was held against, or ``None``.
        run: name of the run it was held against, or ``None``.
        reference: ``torch``, ``certificate``, or ``None`` if no answers were compared.
        worth: of a model in fewer bits, if torch ran: provider to what torch and it are worth on validation images.
        missing_images: images of the certificate that are not there or cannot be read, and were left out.
        changed_images: images of the certificate that are no longer the same files, and were left out.
        checks: provider to check to agreement.
    """

    model: str
    certificate: str | None
    run: str | None
    reference: str | None
    missing_images: int
    changed_images: int
    checks: Checks
    worth: dict[str, tuple[Scores, Scores]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def verify_model(
    path: Path, spec: VerifySpec | None = None, *, run: Run | None = None, progress: Progress | None = None
) -> Verification:
    """Check a model file against its certificate, against a run, and its answers against torch's.

    Args:
        path: the model.
        spec: what to hold it against.
        run: the run it should be of: then torch runs again, and the certificate may be missing.
        progress: called with images read and answered, and how many these will be in all.

    Raises:
        ModelError: if the model or the certificate cannot be read.
        MismatchError: if the bytes, the classes, the weights or the settings are others.
        ParityError: if an answer differs.
        DataError: if there is no image to compare answers of.
        DeviceError: if a GPU is required and cannot be used.
    """
    spec = spec or VerifySpec()
    model = open_model(path)
    proof = _certificate(model, spec.certificate, needed=run is None)
    if run is not None:
        _check_run(model, run)
    sessions = open_sessions(path, require_cuda=spec.require_cuda)
    steps = ProgressCounter(progress, lambda images: images + len(sessions) * count_predictions(model.metadata, images))
    checks: Checks = {}
    worth: dict[str, tuple[Scores, Scores]] = {}
    reference, missing, changed = None, 0, 0
    if run is not None and model.metadata.precision != "float32":
        worth = _held_worth(model, sessions, run, spec, steps)
        reference = "torch"
    elif run is not None:
        checks = _compare(model, sessions, _torch_answers(run, spec, steps), steps)
        reference = "torch"
    elif spec.data is not None and proof is not None:
        images, expected, missing, changed = _recorded_answers(model, proof, spec.data, steps)
        checks = _compare(model, sessions, (images, expected), steps)
        reference = "certificate"
    return Verification(
        model=str(path),
        certificate=str(proof.path) if proof else None,
        run=run.name if run else None,
        reference=reference,
        missing_images=missing,
        changed_images=changed,
        checks=checks,
        worth=worth,
    )


def _certificate(model: ModelFile, given: Path | None, *, needed: bool) -> Certificate | None:
    file = given or certificate_path(model.path)
    if not needed and given is None and not file.exists():
        return None
    proof = read_certificate(file)
    digest = sha256_of(model.path)
    variant = model.metadata.variant
    if digest != proof.models.get(variant):
        raise MismatchError(
            "not the bytes that the certificate is for",
            path=model.path,
            expected=f"SHA-256 {str(proof.models.get(variant))[:16]}… ({proof.path.name})",
            found=f"{digest[:16]}…{_other_contents(model.metadata, proof)}",
            fix=_MEND,
        )
    return proof


def _other_contents(metadata: ModelMetadata, proof: Certificate) -> str:
    """Say which of the contents that a person can name differ from those of the certificate."""
    found, said = metadata.to_dict(), proof.metadata
    others = {key for key in found.keys() & said.keys() if found[key] != said[key]} - {"variant"}
    if not others:
        return ", though it says the same of itself"
    return f", with other {', '.join(name for key, name in _CONTENTS.items() if key in others) or 'metadata'}"


def _check_run(model: ModelFile, run: Run) -> None:
    from xfeat.export.build.reference_model import metadata_of

    wanted, found = _identity(metadata_of(run, model.metadata.ood_threshold)), _identity(model.metadata)
    for what, expected in wanted.items():
        if found[what] != expected:
            raise MismatchError(
                f"a model of other {what} than run {run.name}",
                path=model.path,
                expected=expected,
                found=found[what],
                fix="name the run of the model with --run, or take a copy of the model that is whole",
            )


def _identity(metadata: ModelMetadata) -> dict[str, str]:
    """Return what has to be the run's own; comparing answers would not show all of it, a threshold for one."""
    return {
        "classes": ", ".join(metadata.class_names),
        "settings of the backbone": metadata.feature_spec.describe(),
        "specification": metadata.feature_spec.fingerprint,
        "head": metadata.head_sha256[:16],
        "temperature": str(metadata.temperature),
        "threshold": "none" if metadata.positive is None else f"{metadata.threshold} for {metadata.positive}",
    }


def _torch_answers(run: Run, spec: VerifySpec, steps: ProgressCounter) -> tuple[CheckImages, Probabilities]:
    from xfeat.export.build.reference_model import load_reference_model, torch_probabilities
    from xfeat.export.parity.run_images import images_to_check

    images, _ = images_to_check(run, spec.data, steps=steps)
    return images, torch_probabilities(load_reference_model(run, spec.weights_file), images.pixels)


def _held_worth(
    model: ModelFile, sessions: dict[str, Session], run: Run, spec: VerifySpec, steps: ProgressCounter
) -> dict[str, tuple[Scores, Scores]]:
    """Repeat the gate of a model in fewer bits: its worth on the validation images against torch's, a provider each."""
    from xfeat.export.build.reference_model import load_reference_model, torch_probabilities
    from xfeat.export.parity.run_images import labelled_images

    plain = load_reference_model(run, spec.weights_file)
    images, labels = labelled_images(run, "valid", spec.data, steps=steps)
    before = measure(torch_probabilities(plain, images.pixels), labels, model.metadata)
    held = {}
    for provider, session in sessions.items():
        answers = onnx_probabilities(session, images.pixels, model.metadata.variant, steps)
        after = measure(answers, labels, model.metadata)
        if not (np.isfinite(answers).all() and within_gate(before, after, spec.gate)):
            raise ParityError(
                f"the model ({model.metadata.variant}, {provider}) is worse than its run by more than the gate allows",
                path=model.path,
                expected=gate_in_words(spec.gate),
                found="\n".join([f"on {len(images)} validation images", *scores_table(before, after)]),
                fix="if it was quantised with another gate, name that with --gate; else quantise it again",
            )
        held[provider] = before, after
    return held


def _recorded_answers(
    model: ModelFile, proof: Certificate, data: Path, steps: ProgressCounter
) -> tuple[CheckImages, Probabilities, int, int]:
    if not data.exists():
        raise DataError("no such folder", path=data, fix="name the folder that was featurized with --data DIR")
    recorded = {row.path: row for row in proof.reference}
    steps.expect(len(recorded))
    found = load_images(data, list(recorded), model.metadata.feature_spec.preprocess, steps)
    same = [i for i, path in enumerate(found.paths) if found.sha256[i] == recorded[path].sha256]
    if not same:
        raise DataError(
            "none of the certificate's images is there" if not len(found) else "all of the images have changed",
            path=data,
            expected=f"{len(recorded)} files such as {next(iter(recorded), 'none')}",
            found=f"{len(found)} of them, {len(same)} unchanged",
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
        logger.warning("%d images of the certificate cannot be read: left out", missing)
    return images, expected, missing, len(found) - len(same)


def _compare(
    model: ModelFile,
    sessions: dict[str, Session],
    asked: tuple[CheckImages, Probabilities],
    steps: ProgressCounter,
) -> Checks:
    images, expected = asked
    checks = {
        provider: check_variant(session, model.metadata, images, expected, steps)
        for provider, session in sessions.items()
    }
    for provider, agreements in checks.items():
        for name, agreement in agreements.items():
            if not agreement.holds:
                raise ParityError(
                    f"the model ({name}, {provider}) does not answer as it was proven to",
                    path=model.path,
                    expected=agreement.wanted,
                    found=agreement.found,
                    fix=_MEND,
                )
    return checks

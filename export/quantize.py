"""A model in fewer bits, kept only if validation images show that it is no worse."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.certificate import Certified, certificate_content
from export.ingredients import labelled_images
from export.lower_precision import to_float16, to_int8
from export.metadata import VARIANTS, ModelMetadata
from export.model_file import open_model
from export.onnx_file import detach_resize, finish
from export.parity import (
    LOWER_TOLERANCES,
    CheckImages,
    Checks,
    Probabilities,
    check_variant,
    checks_as_json,
    onnx_probabilities,
    open_sessions,
)
from export.specs import QuantizeSpec
from export.together import targets_of, together
from featurize.errors import MismatchError, ModelError, ParityError
from head.run import Run

MEASURES = ("accuracy", "sensitivity", "auc")


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a model is worth on the validation images; shares from 0 to 1, ``auc`` ``None`` if a class is absent."""

    accuracy: float
    sensitivity: float
    auc: float | None


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was written.

    Attributes:
        files: variant to path.
        certificate: beside them.
        images: of the validation that decided.
        before: worth of the float32 model.
        after: worth of the new one.
        bytes_before: size of the float32 file.
        bytes_after: size of the new one.
        max_difference: largest difference of a probability.
    """

    files: dict[str, Path]
    certificate: Path
    images: int
    before: Worth
    after: Worth
    bytes_before: int
    bytes_after: int
    max_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = asdict(self)
        return plain | {
            "files": {variant: str(path) for variant, path in self.files.items()},
            "certificate": str(self.certificate),
        }


def quantize_model(path: Path, run: Run, output: Path, spec: QuantizeSpec) -> Quantized:
    """Write a model in fewer bits, with its core form and certificate, if validation images show no loss over the gate.

    Args:
        path: the full float32 model of ``run``.
        run: its training images calibrate, its validation images decide.
        output: the model to write; ``.core.onnx`` and ``.certificate.json`` go beside it.
        spec: how.

    Raises:
        ModelError: if ``path`` is not a full float32 model.
        MismatchError: if it is not of ``run``.
        DataError: if the images are gone.
        ParityError: if the loss is over the gate; nothing is then written.
        OutputError: if the files cannot be written.
    """
    targets, certificate = targets_of(output)
    metadata = _checked(path, run)
    calibration, _ = labelled_images(run, "train", spec.data, spec.calibration_images)
    images, labels = labelled_images(run, "valid", spec.data)
    before_probabilities = onnx_probabilities(open_model(path).session, images.pixels, "full")
    before = measure(before_probabilities, labels, metadata)
    traced = detach_resize(onnx.load(path), metadata.feature_spec.preprocess.size)
    smaller = to_int8(traced, calibration.pixels, spec.float_layers) if spec.precision == "int8" else to_float16(traced)
    metadata = replace(metadata, precision=spec.precision)
    with together([*targets.values(), certificate]) as folder:
        written = {variant: folder / target.name for variant, target in targets.items()}
        for variant in VARIANTS:
            proto = finish(smaller, metadata, variant)
            written[variant].write_bytes(proto.SerializeToString(deterministic=True))
        found = onnx_probabilities(open_model(written["full"]).session, images.pixels, "full")
        after = measure(found, labels, metadata)
        _require(before, after, spec.gate, output)
        result = Quantized(
            files=targets,
            certificate=certificate,
            images=len(images),
            before=before,
            after=after,
            bytes_before=path.stat().st_size,
            bytes_after=written["full"].stat().st_size,
            max_difference=float(np.abs(found - before_probabilities).max()),
        )
        text = _certificate(metadata, written, images, found, result)
        (folder / certificate.name).write_text(text, encoding="utf-8", errors="surrogateescape")
    return result


def measure(probabilities: Probabilities, labels: list[str], metadata: ModelMetadata) -> Worth:
    """Return accuracy, sensitivity and AUC of probabilities (n, C) for n names of classes.

    Sensitivity is that of the positive class at the model's threshold; without a positive class, the mean over classes.
    """
    from head.metrics import classification_metrics

    names = list(metadata.class_names)
    decided = np.array([metadata.decide(row) for row in probabilities.tolist()])
    true = np.array(labels)
    found = {name: float((decided[true == name] == name).mean()) for name in names if (true == name).any()}
    auc = classification_metrics(np.array([names.index(label) for label in labels]), probabilities, names)["auc"]
    return Worth(
        accuracy=float((decided == true).mean()),
        sensitivity=found[metadata.positive] if metadata.positive in found else float(np.mean(list(found.values()))),
        auc=auc,
    )


def worth_table(before: Worth, after: Worth) -> list[str]:
    """Return lines with each measure before and after, in percent, and the loss in points."""
    lines = [f"{'':12} {'float32':>8} {'after':>8} {'loss':>7}"]
    for name in MEASURES:
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and new is not None:
            lines.append(f"{name:12} {old:8.2%} {new:8.2%} {(old - new) * 100:7.2f}")
    return lines


def losses(before: Worth, after: Worth) -> dict[str, float]:
    """Return the loss of each measure in points; negative if it rose."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in MEASURES}
    return {name: (old - new) * 100 for name, (old, new) in pairs.items() if old is not None and new is not None}


def _checked(path: Path, run: Run) -> ModelMetadata:
    metadata = open_model(path).metadata
    if metadata.variant != "full" or metadata.precision != "float32":
        raise ModelError(
            "not a full model in float32",
            path=path,
            found=f"{metadata.variant}, {metadata.precision}",
            mend="name the model.onnx that xexport onnx wrote",
        )
    if metadata.head_sha256 != run.head_sha256:
        raise MismatchError(
            f"not a model of run {run.name}",
            path=path,
            expected=f"head {run.head_sha256[:16]}",
            found=f"head {metadata.head_sha256[:16]}, run {metadata.run}",
            mend="name the run with --run",
        )
    return metadata


def _require(before: Worth, after: Worth, gate: float, output: Path) -> None:
    over = {name: loss for name, loss in losses(before, after).items() if loss > gate + 1e-9}
    if over:
        raise ParityError(
            "the quantised model is worse than the gate allows; nothing was written",
            path=output,
            expected=f"a loss of at most {gate:g} points in {', '.join(MEASURES)}",
            found="\n            ".join(["", *worth_table(before, after)]).lstrip(" "),
            mend="keep the first layers in float32 (--float-layers 3), calibrate on more images "
            "(--calibration-images 300), take --fp16, or train on efficientnet-lite0, which is made for it",
        )


def _certificate(
    metadata: ModelMetadata, written: dict[str, Path], images: CheckImages, answers: Probabilities, result: Quantized
) -> str:
    checks: Checks = {}
    tolerance = LOWER_TOLERANCES[metadata.precision]
    for file in written.values():
        embedded = open_model(file).metadata
        for provider, session in open_sessions(file).items():
            found = check_variant(session, embedded, images, answers, tolerance)
            checks.setdefault(provider, {}).update(found)
    gate = {"images": result.images, "before": asdict(result.before), "after": asdict(result.after)}
    return certificate_content(
        Certified(metadata=metadata, files=written, images=images, answers=answers),
        {"against_itself": checks_as_json(checks), "gate": gate},
    )

"""A smaller model in 8 bits or half precision, written only if it passes the accuracy gate."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from xfeat.export.build.assemble import detach_resize, write_variants
from xfeat.export.model.file import open_model
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Progress
from xfeat.export.model.score_bins import validation_bins
from xfeat.export.parity.accuracy_loss import Scores, acceptable, gate_in_words, losses, within_gate
from xfeat.export.parity.agreement import Probabilities, compare
from xfeat.export.parity.certificate import matching_certificate, write_certificate
from xfeat.export.parity.check_images import CheckImages
from xfeat.export.parity.checks import Checks, check_variant, open_on_providers
from xfeat.export.parity.ood_kinds import measure_kinds
from xfeat.export.parity.run_images import labelled_images
from xfeat.export.publish import output_paths, publish
from xfeat.export.quantization.acceptance import (
    Candidate,
    attempts_table,
    measure_model,
    ood_thresholds,
)
from xfeat.export.quantization.float16 import to_float16
from xfeat.export.quantization.int8 import prepare, quantize_backbone, write_int8
from xfeat.export.quantization.static_int8 import RANGES, quantize_encoder
from xfeat.export.quantization.subgraphs import is_composed
from xfeat.export.specs import QuantizeSpec
from xfeat.featurize.errors import MismatchError, ModelError, OutputError, ParityError
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)

# What the certificate says of the gate.
_GATE_FACTS = (
    *("images", "before", "after", "mean_difference", "max_difference", "decided_differently"),
    *("attempts", "familiar"),
)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was written.

    Attributes:
        files: variant to path.
        certificate: path of the certificate, next to them.
        images: validation images that the gate used.
        before: scores of the float32 model.
        after: scores of the new model.
        bytes_before: size of the float32 file.
        bytes_after: size of the new file.
        max_difference: largest difference of a probability.
        mean_difference: mean difference of a probability.
        decided_differently: number of these images that the new model decides differently.
        float_layers: convolutions that stayed in float32.
        attempts: number of float32 layers and loss of each attempt, in order; the last one was written.
        familiar: ood threshold before and after; ``None`` for a model without ood score.
    """

    files: dict[str, Path]
    certificate: Path
    images: int
    before: Scores
    after: Scores
    bytes_before: int
    bytes_after: int
    max_difference: float
    mean_difference: float
    decided_differently: int
    float_layers: tuple[str, ...]
    attempts: list[dict[str, Any]]
    familiar: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain


def quantize_model(
    path: Path, run: Run, output: Path, spec: QuantizeSpec, progress: Progress | None = None
) -> Quantized:
    """Write a smaller model with its core form and certificate, if its loss on validation images is within the gate.

    In INT8 all convolutions have 8 bits. If that loses more than the gate allows, stem and first block stay in float32.
    Encoders that are no EfficientNets are quantised by onnxruntime, with two choices of ranges, RANGES.
    The last attempt may change the decision of one image even if that is more than the gate.

    Args:
        path: the full float32 model of ``run``.
        run: its training images calibrate, its validation images decide.
        output: the model to write; ``.core.onnx`` and ``.certificate.json`` go next to it.
        spec: precision, gate and calibration.
        progress: called with the nodes of an EfficientNet that are quantised, and their number, in each attempt.

    Raises:
        ModelError: if ``path`` is not a full float32 model, or has an encoder that cannot be quantised.
        MismatchError: if it belongs to another run, or does not match the certificate beside it.
        DataError: if the images cannot be read.
        ParityError: if every attempt loses more than the gate allows; nothing is then written.
        OutputError: if the files cannot be written, or would overwrite ``path``.
    """
    targets, certificate = output_paths(output)
    if path.resolve() in {target.resolve() for target in targets.values()}:
        raise OutputError("output would overwrite the input model", path=output, fix="choose another name with -o")
    opened = open_model(path)
    metadata = opened.metadata
    matching_certificate(opened)
    _check_model(metadata, path, run)
    original = opened.read()
    traced = detach_resize(onnx.load_from_string(original), metadata.feature_spec.preprocess)
    images, labels = labelled_images(run, "valid", spec.data)
    measured = partial(measure_model, pixels=images.pixels, labels=labels, metadata=metadata)
    before = measured("float32", traced, ())
    attempts: list[Candidate] = []
    for model in _models(traced, run, spec, progress):
        attempts.append(measured(*model))
        for line in attempts_table(attempts[-1:], before.scores).splitlines():
            logger.info("%s", line)
        if within_gate(before.scores, attempts[-1].scores, spec.gate):
            break
    after = attempts[-1]
    agreement = compare(before.probabilities, after.probabilities, metadata.decide)
    if not acceptable(before.scores, after.scores, spec.gate, agreement.decided_differently):
        raise _refusal(before.scores, attempts, output, spec)
    ood = ood_thresholds(after, metadata.ood_threshold)
    metadata = replace(
        metadata,
        precision=spec.precision,
        float_layers=after.float_layers,
        ood_threshold=ood["threshold_after"] if ood else None,
        validation_bins=validation_bins(after.probabilities, metadata.class_names, metadata.positive, after.ood),
    )
    with publish([*targets.values(), certificate]) as folder:
        written = {variant: folder / target.name for variant, target in targets.items()}
        write_variants(after.model, metadata, written)
        result = Quantized(
            files=targets,
            certificate=certificate,
            images=len(images),
            before=before.scores,
            after=after.scores,
            bytes_before=len(original),
            bytes_after=written["full"].stat().st_size,
            max_difference=agreement.max_difference,
            mean_difference=agreement.mean_difference,
            decided_differently=agreement.decided_differently,
            float_layers=after.float_layers,
            attempts=[
                {"float_layers": len(each.float_layers), "losses": losses(before.scores, each.scores)}
                for each in attempts
            ],
            familiar=ood,
        )
        facts = result.to_dict()
        evidence = {
            "against_itself": _checks(written, images, after.probabilities),
            "gate": {name: facts[name] for name in _GATE_FACTS},
            "out_of_distribution": measure_kinds(open_model(written["full"]), images.pixels),
        }
        write_certificate(folder / certificate.name, metadata, written, images, after.probabilities, evidence)
    return result


def _check_model(metadata: ModelMetadata, path: Path, run: Run) -> None:
    if metadata.variant != "full" or metadata.precision != "float32":
        raise ModelError(
            "not a full model in float32",
            path=path,
            found=f"{metadata.variant}, {metadata.precision}",
            fix="name the model.onnx that xexport onnx wrote",
        )
    if metadata.head_sha256 != run.head_sha256:
        raise MismatchError(
            f"not a model of run {run.name}",
            path=path,
            expected=f"head {run.head_sha256[:16]}",
            found=f"head {metadata.head_sha256[:16]}, run {metadata.run}",
            fix="name the run with --run",
        )


def _models(
    traced: onnx.ModelProto, run: Run, spec: QuantizeSpec, progress: Progress | None
) -> Iterator[tuple[str, onnx.ModelProto, tuple[str, ...]]]:
    """Yield the models to try, in order: a name, the model, its convolutions in float32."""
    if spec.precision == "float16":
        yield "backbone in half precision", to_float16(traced), ()
        return
    calibration, _ = labelled_images(run, "train", spec.data, spec.calibration_images)
    if is_composed(traced):
        for name, ranges in RANGES.items():
            yield name, quantize_encoder(traced, calibration.pixels, ranges), ()
        return
    prepared = prepare(traced, calibration.pixels, run.feature_spec.preprocess)
    attempts = {"all layers in 8 bits": (), "stem and first block in float32": prepared.first_block}
    for name, float_layers in attempts.items():
        layers = quantize_backbone(prepared, float_layers, progress)
        yield name, write_int8(prepared, layers), float_layers


def _refusal(before: Scores, attempts: list[Candidate], output: Path, spec: QuantizeSpec) -> ParityError:
    fix = "keep the float32 model"
    if spec.precision == "int8":
        fix = "calibrate on more training images (--calibration-images N), use --fp16, or train on efficientnet-lite0"
    return ParityError(
        "the quantised model loses more than the gate allows; nothing was written",
        path=output,
        expected=gate_in_words(spec.gate),
        found=attempts_table(attempts, before),
        fix=fix,
    )


def _checks(written: dict[str, Path], images: CheckImages, expected: Probabilities) -> Checks:
    checks: Checks = {}
    for file in written.values():
        for provider, model in open_on_providers(file).items():
            checks.setdefault(provider, {}).update(check_variant(model, images, expected)[0])
    return checks

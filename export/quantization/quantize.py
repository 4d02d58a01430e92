"""A model in fewer bits, kept only if validation images show that it is no worse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from xfeat.export.build.assemble import detach_resize, finish
from xfeat.export.model.file import open_model
from xfeat.export.model.metadata import VARIANTS, ModelMetadata
from xfeat.export.model.progress import Progress
from xfeat.export.parity.accuracy_loss import Scores, gate_in_words, measure, scores_table
from xfeat.export.parity.agreement import Probabilities
from xfeat.export.parity.certificate import CertifiedModels, certificate_text
from xfeat.export.parity.check_images import CheckImages
from xfeat.export.parity.checks import Checks, check_variant, checks_as_json, onnx_probabilities, open_sessions
from xfeat.export.parity.run_images import labelled_images
from xfeat.export.publish import output_paths, publish
from xfeat.export.quantization.acceptance import Candidate, Gate, describe
from xfeat.export.quantization.float16 import to_float16
from xfeat.export.quantization.int8 import Ready, make_ready, round_ready, round_repeatedly, write_int8
from xfeat.export.quantization.mixed_precision import fewest, first_block, rank_layers
from xfeat.export.quantization.rounding import Rounded
from xfeat.export.specs import QuantizeSpec
from xfeat.featurize.errors import MismatchError, ModelError, OutputError, ParityError
from xfeat.featurize.specs import require
from xfeat.head.runs.reader import Run

logger = logging.getLogger(__name__)

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Opens the progress of a stage, by its name."""


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
        mean_difference: mean difference of a probability.
        float_layers: convolutions that stayed in float32.
        head_bits: of each number of the head's first matrix, 4 or 8; ``None`` if it is too small for 4.
        attempts: how many such layers and bits each attempt had, and what it lost, in order; the one written is among
            them.
        familiar: what became of the distance from the training images; ``None`` for a model that does not measure it.
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
    float_layers: tuple[str, ...]
    head_bits: int | None
    attempts: list[dict[str, Any]]
    familiar: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = asdict(self)
        return plain | {
            "files": {variant: str(path) for variant, path in self.files.items()},
            "certificate": str(self.certificate),
            "float_layers": list(self.float_layers),
        }


def quantize_model(
    path: Path, run: Run, output: Path, spec: QuantizeSpec, stage: Stage = lambda what: nullcontext(_silent)
) -> Quantized:
    """Write a model in fewer bits, with its core form and certificate, if validation images show no loss over the gate.

    In INT8 all convolutions have 8 bits and the head's first matrix 4. They are rounded three times, on other training
    images each time; the first tried is the one nearest to float32 on those that it was not rounded on. If that loses
    more than the gate, the matrix has 8, and then the second and the third are tried. If that is too little the first
    block, and then the fewest other layers that fix it, stay in float32; unless ``spec`` says how many. Where channels
    have means of their own, the first block does so from the start.

    Args:
        path: the full float32 model of ``run``.
        run: its training images calibrate, its validation images decide.
        output: the model to write; ``.core.onnx`` and ``.certificate.json`` go beside it.
        spec: how.
        stage: opens the progress of each stage.

    Raises:
        ModelError: if ``path`` is not a full float32 model.
        MismatchError: if it is not of ``run``.
        SpecError: if more layers are to stay in float32 than there are.
        DataError: if the images are gone.
        ParityError: if the loss is over the gate; nothing is then written.
        OutputError: if the files cannot be written, or would replace ``path``.
    """
    targets, certificate = output_paths(output)
    if path.resolve() in {target.resolve() for target in targets.values()}:
        raise OutputError(
            "the quantised model would take the place of its original", path=output, fix="choose another name with -o"
        )
    metadata = _checked(path, run)
    traced = _traced(path, metadata, spec)
    gate = _gate(path, run, metadata, spec)
    chosen = _half(traced, gate) if spec.precision == "float16" else _int8(traced, run, gate, spec, stage)
    if chosen is None:
        raise _refusal(gate, output, spec)
    familiar = gate.familiar(chosen)
    metadata = replace(
        metadata,
        precision=spec.precision,
        float_layers=chosen.float_layers,
        head_bits=chosen.head_bits,
        ood_threshold=familiar["threshold_after"] if familiar else None,
    )
    with publish([*targets.values(), certificate]) as folder:
        written = {variant: folder / target.name for variant, target in targets.items()}
        for variant in VARIANTS:
            proto = finish(chosen.model, metadata, variant)
            del proto.graph.value_info[:]
            written[variant].write_bytes(proto.SerializeToString(deterministic=True))
        result = Quantized(
            files=targets,
            certificate=certificate,
            images=len(gate.images),
            before=gate.worth,
            after=chosen.worth,
            bytes_before=path.stat().st_size,
            bytes_after=written["full"].stat().st_size,
            max_difference=float(np.abs(chosen.answers - gate.answers).max()),
            mean_difference=float(np.abs(chosen.answers - gate.answers).mean()),
            float_layers=chosen.float_layers,
            head_bits=chosen.head_bits,
            attempts=gate.attempts_as_json(),
            familiar=familiar,
        )
        text = _certificate(metadata, written, gate.images, chosen.answers, result)
        (folder / certificate.name).write_text(text, encoding="utf-8", errors="surrogateescape")
    return result


def _traced(path: Path, metadata: ModelMetadata, spec: QuantizeSpec) -> onnx.ModelProto:
    traced = detach_resize(onnx.load(path), metadata.feature_spec.preprocess.size)
    layers = sum(node.op_type == "Conv" for node in traced.graph.node)
    require(
        (spec.float_layers or 0) <= layers,
        "more layers in float32 than the model has",
        expected=f"0 to {layers}",
        found=spec.float_layers,
    )
    return traced


def _gate(path: Path, run: Run, metadata: ModelMetadata, spec: QuantizeSpec) -> Gate:
    images, labels = labelled_images(run, "valid", spec.data)
    answers = onnx_probabilities(open_model(path).session, images.pixels, "full")
    worth = measure(answers, labels, metadata)
    return Gate(metadata=metadata, images=images, labels=labels, answers=answers, worth=worth, most=spec.gate)


def _half(traced: onnx.ModelProto, gate: Gate) -> Candidate | None:
    candidate = gate.look_at(to_float16(traced))
    return candidate if gate.allows(candidate) else None


def _int8(traced: onnx.ModelProto, run: Run, gate: Gate, spec: QuantizeSpec, stage: Stage) -> Candidate | None:
    """Return the first model that the gate allows."""
    calibration, _ = labelled_images(run, "train", spec.data, spec.calibration_images)
    ready = make_ready(traced, calibration.pixels, run.feature_spec.preprocess)
    first = first_block(ready)
    start = () if ready.reads_grey_levels else first
    if spec.float_layers is not None:
        start = tuple(_ranked(ready, stage)[: spec.float_layers]) if spec.float_layers else ()
    with stage("rounding") as progress:
        roundings = round_repeatedly(ready, start, progress)
    for following, rounded in roundings:
        if found := _written(following, rounded, start, gate):
            return found
    if spec.float_layers is not None:
        return None
    nearest = roundings[0][0]

    def attempt(float_layers: tuple[str, ...]) -> Candidate | None:
        with stage("rounding") as progress:
            rounded = round_ready(nearest, float_layers, progress)
        return _written(nearest, rounded, float_layers, gate)

    if start != first and (found := attempt(first)):
        return found
    logger.info("that is over the gate: looking for the layers that must stay in float32")
    others = [layer for layer in _ranked(nearest, stage) if layer not in first]
    return fewest(others, lambda more: attempt(first + more))


def _written(ready: Ready, rounded: Rounded, float_layers: tuple[str, ...], gate: Gate) -> Candidate | None:
    """Return a rounded model with the fewest bits in the head that the gate allows."""
    for bits in ready.head_bits:
        candidate = gate.look_at(write_int8(ready, rounded, bits), float_layers, bits)
        if gate.allows(candidate):
            return candidate
    return None


def _ranked(ready: Ready, stage: Stage) -> list[str]:
    with stage("measuring layers") as progress:
        return rank_layers(ready, progress)


def _silent(done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def _checked(path: Path, run: Run) -> ModelMetadata:
    metadata = open_model(path).metadata
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
    return metadata


def _refusal(gate: Gate, output: Path, spec: QuantizeSpec) -> ParityError:
    half = spec.precision == "float16"
    advice = "calibrate on more training images (--calibration-images N), "
    advice += "" if spec.float_layers is None else "keep another number of layers in float32 (--float-layers N), "
    table = scores_table(gate.worth, gate.best.worth)
    best = "" if half else f"best of {len(gate.attempts)} attempts: {describe(gate.best)}"
    return ParityError(
        "the quantised model is worse than the gate allows; nothing was written",
        path=output,
        expected=gate_in_words(gate.most),
        found="\n".join([best, *table]),
        fix="keep the float32 model"
        if half
        else f"{advice}take --fp16, or train on efficientnet-lite0, made for 8 bits",
    )


def _certificate(
    metadata: ModelMetadata, written: dict[str, Path], images: CheckImages, answers: Probabilities, result: Quantized
) -> str:
    checks: Checks = {}
    for file in written.values():
        embedded = open_model(file).metadata
        for provider, session in open_sessions(file).items():
            found = check_variant(session, embedded, images, answers)
            checks.setdefault(provider, {}).update(found)
    gate = {
        "images": result.images,
        "before": asdict(result.before),
        "after": asdict(result.after),
        "mean_difference": result.mean_difference,
        "max_difference": result.max_difference,
        "attempts": result.attempts,
        "familiar": result.familiar,
    }
    return certificate_text(
        CertifiedModels(metadata=metadata, files=written, images=images, answers=answers),
        {"against_itself": checks_as_json(checks), "gate": gate},
    )

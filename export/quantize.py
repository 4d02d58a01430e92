"""A model in fewer bits, kept only if validation images show that it is no worse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.certificate import Certified, certificate_content
from export.distance import familiar_threshold
from export.float_layers import fewest, first_block, rank_layers
from export.graph import run_model
from export.half_precision import to_float16
from export.ingredients import labelled_images
from export.int8 import Ready, make_ready, round_ready, round_repeatedly, write_int8
from export.metadata import VARIANTS, ModelMetadata
from export.model_file import open_model
from export.onnx_file import detach_resize, finish
from export.outputs import OOD, PROBABILITIES
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
from export.rounding import Rounded
from export.specs import QuantizeSpec
from export.steps import Progress
from export.together import targets_of, together
from export.worth import MEASURES, Worth, losses, measure, worth_table
from featurize.errors import MismatchError, ModelError, ParityError
from featurize.specs import require
from head.run import Run

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
        head_bits: of each number of the head's first matrix, 4 or 8; ``None`` if it was left as it is.
        attempts: how many such layers and bits each attempt had, and what it lost, in order; the one written is among
            them.
        familiar: what became of the distance from the training images; ``None`` for a model that does not measure it.
    """

    files: dict[str, Path]
    certificate: Path
    images: int
    before: Worth
    after: Worth
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


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A model in fewer bits, not written yet."""

    model: onnx.ModelProto
    float_layers: tuple[str, ...]
    head_bits: int | None
    answers: Probabilities
    distances: NDArray[np.float32] | None
    worth: Worth


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """The gate: validation images and what float32 says of them."""

    metadata: ModelMetadata
    images: CheckImages
    labels: list[str]
    answers: Probabilities
    worth: Worth
    gate: float
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def look_at(
        self, model: onnx.ModelProto, float_layers: tuple[str, ...] = (), head_bits: int | None = None
    ) -> _Candidate:
        """Measure a model and note what it loses."""
        names = [PROBABILITIES, *([] if self.metadata.ood_threshold is None else [OOD])]
        answers, *distances = run_model(model, self.images.pixels, names)
        worth = measure(answers, self.labels, self.metadata)
        lost = losses(self.worth, worth)
        self.attempts.append({"float_layers": len(float_layers), "head_bits": head_bits, "losses": lost})
        head = f", the head's first matrix in {head_bits} bits" if head_bits else ""
        logger.info("%d layers in float32%s: loses %s", len(float_layers), head, _points(lost))
        return _Candidate(
            model=model,
            float_layers=float_layers,
            head_bits=head_bits,
            answers=answers,
            distances=distances[0] if distances else None,
            worth=worth,
        )

    def allows(self, candidate: _Candidate) -> bool:
        """Whether no measure loses more than the gate."""
        return max(losses(self.worth, candidate.worth).values()) <= self.gate + 1e-9

    def familiar(self, candidate: _Candidate) -> dict[str, float] | None:
        """Return the threshold of the distance before and after, and the share beyond the old one that calls for it.

        Rounding moves the distances, so the threshold is set again as the export set it: 1 image in 20 lies beyond.
        """
        old, distances = self.metadata.ood_threshold, candidate.distances
        if old is None or distances is None:
            return None
        return {
            "threshold_before": old,
            "threshold_after": familiar_threshold(distances),
            "beyond_old_threshold": float((distances > old).mean()),
        }


def quantize_model(
    path: Path, run: Run, output: Path, spec: QuantizeSpec, stage: Stage = lambda what: nullcontext(_silent)
) -> Quantized:
    """Write a model in fewer bits, with its core form and certificate, if validation images show no loss over the gate.

    In INT8 all convolutions have 8 bits and the head's first matrix 4. They are rounded three times, on other training
    images each time; the first tried is the one nearest to float32 on those that it was not rounded on. If that loses
    more than the gate, the matrix has 8, and then the second and the third are tried. If that is too little the first
    block, and then the fewest other layers that mend it, stay in float32; unless ``spec`` says how many. Where channels
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
        OutputError: if the files cannot be written.
    """
    targets, certificate = targets_of(output)
    metadata = _checked(path, run)
    traced = _traced(path, metadata, spec)
    judge = _judge(path, run, metadata, spec)
    chosen = _half(traced, judge) if spec.precision == "float16" else _int8(traced, run, judge, spec, stage)
    if not judge.allows(chosen):
        raise _refusal(judge, chosen, output, spec.precision)
    familiar = judge.familiar(chosen)
    metadata = replace(
        metadata,
        precision=spec.precision,
        float_layers=chosen.float_layers,
        head_bits=chosen.head_bits,
        ood_threshold=familiar["threshold_after"] if familiar else None,
    )
    with together([*targets.values(), certificate]) as folder:
        written = {variant: folder / target.name for variant, target in targets.items()}
        for variant in VARIANTS:
            proto = finish(chosen.model, metadata, variant)
            del proto.graph.value_info[:]
            written[variant].write_bytes(proto.SerializeToString(deterministic=True))
        result = Quantized(
            files=targets,
            certificate=certificate,
            images=len(judge.images),
            before=judge.worth,
            after=chosen.worth,
            bytes_before=path.stat().st_size,
            bytes_after=written["full"].stat().st_size,
            max_difference=float(np.abs(chosen.answers - judge.answers).max()),
            mean_difference=float(np.abs(chosen.answers - judge.answers).mean()),
            float_layers=chosen.float_layers,
            head_bits=chosen.head_bits,
            attempts=judge.attempts,
            familiar=familiar,
        )
        text = _certificate(metadata, written, judge.images, chosen.answers, result)
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


def _judge(path: Path, run: Run, metadata: ModelMetadata, spec: QuantizeSpec) -> _Judge:
    images, labels = labelled_images(run, "valid", spec.data)
    answers = onnx_probabilities(open_model(path).session, images.pixels, "full")
    worth = measure(answers, labels, metadata)
    return _Judge(metadata=metadata, images=images, labels=labels, answers=answers, worth=worth, gate=spec.gate)


def _half(traced: onnx.ModelProto, judge: _Judge) -> _Candidate:
    return judge.look_at(to_float16(traced))


def _int8(traced: onnx.ModelProto, run: Run, judge: _Judge, spec: QuantizeSpec, stage: Stage) -> _Candidate:
    """Return the first of the models that the gate allows, or else one that it refuses."""
    calibration, _ = labelled_images(run, "train", spec.data, spec.calibration_images)
    ready = make_ready(traced, calibration.pixels, run.feature_spec.preprocess)
    first = first_block(ready)
    start = () if ready.reads_grey_levels else first
    if spec.float_layers is not None:
        start = tuple(_ranked(ready, stage)[: spec.float_layers]) if spec.float_layers else ()

    def written(ready: Ready, rounded: Rounded, float_layers: tuple[str, ...]) -> _Candidate:
        for bits in ready.head_bits:
            candidate = judge.look_at(write_int8(ready, rounded, bits), float_layers, bits)
            if judge.allows(candidate):
                break
        return candidate

    with stage("rounding") as progress:
        roundings = round_repeatedly(ready, start, progress)
    for each in roundings:
        plain = written(*each, start)
        if judge.allows(plain):
            return plain
    if spec.float_layers is not None:
        return plain
    nearest = roundings[0][0]

    def attempt(float_layers: tuple[str, ...]) -> _Candidate | None:
        with stage("rounding") as progress:
            rounded = round_ready(nearest, float_layers, progress)
        candidate = written(nearest, rounded, float_layers)
        return candidate if judge.allows(candidate) else None

    if start != first and (found := attempt(first)):
        return found
    logger.info("that is over the gate: looking for the layers that must stay in float32")
    others = [layer for layer in _ranked(nearest, stage) if layer not in first]
    return fewest(others, lambda more: attempt(first + more)) or plain


def _ranked(ready: Ready, stage: Stage) -> list[str]:
    with stage("measuring layers") as progress:
        return rank_layers(ready, progress)


def _silent(done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def _points(lost: dict[str, float]) -> str:
    return ", ".join(f"{name} {points:.2f}" for name, points in lost.items()) + " points"


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


def _refusal(judge: _Judge, candidate: _Candidate, output: Path, precision: str) -> ParityError:
    most = max(each["float_layers"] for each in judge.attempts)
    return ParityError(
        "the quantised model is worse than the gate allows; nothing was written",
        path=output,
        expected=f"a loss of at most {judge.gate:g} points in {', '.join(MEASURES)}",
        found="\n            ".join(["", *worth_table(judge.worth, candidate.worth)]).lstrip(" ")
        + (f"\n            up to {most} layers in float32 did not help enough" if most else ""),
        mend="keep the float32 model"
        if precision == "float16"
        else "keep more layers in float32 (--float-layers N), take --fp16, or train on efficientnet-lite0, made "
        "for 8 bits",
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
    gate = {
        "images": result.images,
        "before": asdict(result.before),
        "after": asdict(result.after),
        "mean_difference": result.mean_difference,
        "max_difference": result.max_difference,
        "attempts": result.attempts,
        "familiar": result.familiar,
    }
    return certificate_content(
        Certified(metadata=metadata, files=written, images=images, answers=answers),
        {"against_itself": checks_as_json(checks), "gate": gate},
    )

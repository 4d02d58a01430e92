"""The trained model in torch, and the metadata of its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import nn

from xfeat.export.build.encoder_network import EncoderNetwork
from xfeat.export.build.fused_model import ReferenceModel
from xfeat.export.model.batches import in_batches
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.model.progress import Advance
from xfeat.export.model.score_bins import validation_bins
from xfeat.export.parity.agreement import Probabilities
from xfeat.featurize.backbones.network import load_backbone
from xfeat.featurize.backbones.registry import is_foreign
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.images.preprocess import Pixels
from xfeat.featurize.specs import FeatureSpec
from xfeat.head.evaluation.study import plain_accuracy
from xfeat.head.reports.study_text import expected_elsewhere
from xfeat.head.runs.inputs import weights_of
from xfeat.head.runs.reader import Run


def load_reference_model(run: Run, weights_file: Path | None = None) -> ReferenceModel:
    """Return the model exactly as it was trained.

    Args:
        run: the trained head.
        weights_file: the backbone's weights; by default the file that was used, or where ``xfeat`` finds them.

    Raises:
        MismatchError: if the weights are not those of the run.
        WeightsError: if they are missing.
        ModelError: if the file of an encoder cannot be used.
        RunError: if the head's weights are missing or damaged.
    """
    weights = weights_of(run, weights_file)
    return reference_model(run.feature_spec, weights, run.load_head(), run.temperature)


def reference_model(spec: FeatureSpec, weights: Weights, head: nn.Sequential, temperature: float) -> ReferenceModel:
    """Return the network of a spec with a head on it; arguments and errors as for :class:`ReferenceModel`."""
    if is_foreign(spec.backbone):
        return ReferenceModel(EncoderNetwork(spec, weights), head, None, temperature)
    return ReferenceModel(load_backbone(spec, weights), head, spec.preprocess, temperature)


def torch_probabilities(model: ReferenceModel, pixels: Pixels, advance: Advance = lambda done: None) -> Probabilities:
    """Run the torch model: uint8 (n, S, S, 3) to float32 (n, C)."""
    with torch.inference_mode():
        return in_batches(lambda batch: model(torch.from_numpy(batch)).numpy(), pixels, advance)


def metadata_of(run: Run, ood_threshold: float | None, ood: ArrayLike | None = None) -> ModelMetadata:
    """Return the metadata of the exported model; the variant is set when a file is written.

    Args:
        run: the trained head.
        ood_threshold: of the out-of-distribution score; ``None`` for a model without one.
        ood: scores of the validation images, (n,).
    """
    point, elsewhere = run.operating_point, run.crossval and run.crossval["elsewhere"]
    positive = point.positive if point else None
    return ModelMetadata(
        variant="full",
        class_names=run.class_names,
        feature_spec=run.feature_spec,
        temperature=run.temperature,
        positive=positive,
        threshold=point.threshold if point else None,
        cache_sha256=run.cache["content_sha256"],
        head_sha256=run.head_sha256,
        run=run.name,
        metrics={part: {**metrics, **_of_study(run, part)} for part, metrics in run.metrics.items()},
        ood_threshold=ood_threshold,
        audit=run.audit,
        elsewhere=expected_elsewhere(elsewhere) if elsewhere else None,
        validation_bins=validation_bins(_validation_probabilities(run), run.class_names, positive, ood),
    )


def _validation_probabilities(run: Run) -> list[list[float]]:
    rows = (row for row in run.predictions() if row["split"] == "valid")
    return [[float(row[f"p_{name}"]) for name in run.class_names] for row in rows]


def _of_study(run: Run, part: str) -> dict[str, Any]:
    """Return what the page of a model shows of a part: its interval by patient, and the figures at the threshold."""
    study = run.statistics.get(part)
    if study is None:
        return {}
    by_patient = {"accuracy_interval": plain_accuracy(study)["interval"]}
    if study["positive"] is None:
        return by_patient
    rates = study["classes"][study["positive"]]
    found = {"accuracy": study["accuracy"], **{name: rates[name] for name in ("sensitivity", "specificity")}}
    return {**by_patient, "at_threshold": found}

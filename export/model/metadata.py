"""The metadata of a model file, in ONNX ``metadata_props``. Read by the server, so no torch and no onnx here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from xfeat.export.model.score_bins import ScoreBins
from xfeat.featurize.errors import MismatchError, ModelError, SpecError
from xfeat.featurize.specs import FeatureSpec, Spec, check_decision, require
from xfeat.featurize.typed_json import parse_json

FORMAT = "xfeat.model"
FORMAT_KEY = "xfeat.format"
SCHEMA_VERSION = 1
VARIANTS = ("full", "core")
PRECISIONS = ("float32", "float16", "int8")


@dataclass(frozen=True, kw_only=True)
class ModelMetadata(Spec):
    """Everything that a server or an auditor needs to know about a model file.

    Attributes:
        variant: ``full`` takes uint8 (N, H, W, 3) pixels of any size, ``core`` float32 (N, 3, S, S) in 0..255.
        class_names: names of the outputs, in order.
        feature_spec: backbone, its weights and the preprocessing.
        temperature: logits are divided by it before the softmax; 1 changes nothing.
        positive: the class that is predicted from its threshold on, or ``None``: the most probable class is predicted.
        threshold: probability from which ``positive`` is predicted, 0..1, or ``None``.
        cache_sha256: digest of the features the head was trained on.
        head_sha256: digest of the head's weights file.
        run: name of the run folder.
        metrics: of the run, per split, for the model's page; ``at_threshold`` has those at the threshold.
        ood_threshold: ood score (output ``ood``) that 95 % of the validation images do not exceed, or ``None`` if the
            model has no such output.
        precision: of the backbone's weights: ``float32``, ``float16`` or ``int8``.
        float_layers: names of the convolutions in float32 in an ``int8`` model.
        audit: result of the audit of the training data, from the run; ``None`` if the run has none.
        elsewhere: what to expect of images from other sources, or ``None`` if that was not measured.
        validation_bins: of the validation images: ``probability`` of the positive class (without one, of the most
            probable class) and ``ood``; empty in models of earlier versions.
    """

    nested: ClassVar[dict[str, type[Spec]]] = {"feature_spec": FeatureSpec}

    variant: str
    class_names: tuple[str, ...]
    feature_spec: FeatureSpec
    temperature: float = 1.0
    positive: str | None = None
    threshold: float | None = None
    cache_sha256: str
    head_sha256: str
    run: str
    metrics: dict[str, Any] = field(default_factory=dict)
    ood_threshold: float | None = None
    precision: str = "float32"
    float_layers: tuple[str, ...] = ()
    audit: dict[str, Any] | None = None
    elsewhere: str | None = None
    validation_bins: dict[str, ScoreBins] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.variant in VARIANTS, "unknown variant", expected=" or ".join(VARIANTS), found=self.variant)
        require(self.precision in PRECISIONS, "unknown precision", expected=", ".join(PRECISIONS), found=self.precision)
        check_decision(self.class_names, self.temperature, self.positive, self.threshold)

    @property
    def identity(self) -> dict[str, str]:
        """What a model computes, by name; comparing predictions would miss some of it, such as the threshold."""
        return {
            "classes": ", ".join(self.class_names),
            # As certificates of version 0.1 have it: the fingerprint shows another mean or std.
            "backbone settings": self.feature_spec.describe(levels=False),
            "feature fingerprint": self.feature_spec.fingerprint,
            "head": self.head_sha256[:16],
            "temperature": str(self.temperature),
            "threshold": str(self.threshold),
            "positive class": str(self.positive),
            "out-of-distribution threshold": str(self.ood_threshold),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as in the first version without what was not measured."""
        settings = super().to_dict()
        later = ("elsewhere", "validation_bins")
        return {name: value for name, value in settings.items() if value or name not in later}

    def to_props(self) -> dict[str, str]:
        """Return the entries of ``metadata_props``."""
        return {
            FORMAT_KEY: FORMAT,
            "xfeat.schema_version": str(SCHEMA_VERSION),
            "xfeat.metadata": json.dumps(self.to_dict(), sort_keys=True),
        }

    @classmethod
    def _upgraded(cls, settings: dict[str, Any]) -> dict[str, Any]:
        # INT8 files of version 0.1 have head_bits.
        settings = {name: value for name, value in settings.items() if name != "head_bits"}
        bins = settings.get("validation_bins")
        if not isinstance(bins, dict):
            return settings  # missing, or not what it must be: its type is checked like all others
        return settings | {"validation_bins": {name: ScoreBins.from_dict(each) for name, each in bins.items()}}

    @classmethod
    def from_props(cls, props: Mapping[str, str], path: str | Path) -> ModelMetadata:
        """Read the entries of a model file.

        Args:
            props: ``metadata_props`` as a mapping (onnxruntime: ``session.get_modelmeta().custom_metadata_map``).
            path: the file, for messages.

        Raises:
            ModelError: if they are missing, have another version, or cannot be read.
            MismatchError: if the features are computed in a way that this version does not support.
        """
        fix = "export the run again with xexport onnx"
        if props.get(FORMAT_KEY) != FORMAT:
            raise ModelError(
                "the model has no xfeat metadata",
                path=path,
                expected="a file written by xexport onnx",
                fix=f"{fix}; xserve eval measures other classifiers too: --classes, --mean and --std describe them",
            )
        if props.get("xfeat.schema_version") != str(SCHEMA_VERSION):
            raise ModelError(
                "a model with another schema version",
                path=path,
                expected=str(SCHEMA_VERSION),
                found=props.get("xfeat.schema_version"),
                fix=fix,
            )
        try:
            return cls.from_dict(parse_json(props["xfeat.metadata"]))
        except MismatchError as error:
            again = f"{error.fix}, then xhead train and xexport onnx"
            raise MismatchError(error.what, path=path, expected=error.expected, found=error.found, fix=again) from error
        except (KeyError, ValueError, TypeError, AttributeError, SpecError) as error:
            raise ModelError("metadata cannot be read", path=path, found=str(error), fix=fix) from error

    def decide(self, probabilities: list[float], threshold: float | None = None) -> str:
        """Return the predicted class: by the threshold if there is one, otherwise the most probable.

        Of equally probable classes it is the first.

        Args:
            probabilities: one per class, in order, with a sum of 1.
            threshold: instead of the model's own, for models with a positive class.
        """
        ranked = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)
        threshold = self.threshold if threshold is None else threshold
        if self.positive is not None and threshold is not None:
            positive = self.class_names.index(self.positive)
            if probabilities[positive] >= threshold:
                return self.positive
            ranked.remove(positive)
        return self.class_names[ranked[0]]

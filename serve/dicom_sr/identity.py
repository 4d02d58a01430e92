"""How the reports of a model name it: the model file, its certificate, and this program."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from xfeat.export.parity.certificate import certificate_path
from xfeat.featurize.errors import ModelError
from xfeat.featurize.text import printable
from xfeat.serve.dicom_sr.source import MANUFACTURER, stable_uid
from xfeat.serve.inference.predictor import Predictor

RESEARCH_USE = "For research use only. Not for diagnosis."
# Source: DICOM PS3.6, LO and CodeMeaning: 64 characters, no backslash.
_MOST_CHARACTERS = 64


def long_string(text: str) -> str:
    """Return a text as DICOM's LO holds it: one line of at most 64 characters, without a backslash."""
    line = printable(text).replace("\\", "/").strip() or "-"
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"


def class_digest(name: str) -> str:
    """Return what stands for the whole name of a class in its codes, which have at most 16 characters."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:15]


def probability_of(name: str) -> str:
    """Return what the probability of a class is called."""
    return f"Probability of {name}"


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What reports say of the model. Nothing of it is of this machine or its user.

    Attributes:
        name: of the run that it was exported from.
        sha256: of the model file.
        threshold: probability from which the positive class is predicted, or ``None``.
        parameters: texts for people: versions, decision rule, certificate, names that had to be cut.
    """

    name: str
    sha256: str
    threshold: float | None
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, predictor: Predictor) -> ModelIdentity:
        """Describe an open model."""
        metadata = predictor.metadata
        decision = "the most probable class is predicted"
        if metadata.threshold is not None and metadata.positive is not None:
            decision = f"{printable(metadata.positive)} is predicted from a probability of {metadata.threshold:g} on"
        cut = [
            f"class {class_digest(name)}: {printable(name)}"
            for name in metadata.class_names
            if long_string(probability_of(name)) != probability_of(name)
        ]
        return cls(
            name=long_string(metadata.run),
            sha256=predictor.model.sha256,
            threshold=metadata.threshold,
            parameters=(
                f"xfeat {version('xfeat-onnx')}",
                f"features: {metadata.feature_spec.describe()}",
                f"weights: {metadata.precision}",
                f"decision: {decision}",
                f"certificate: {_certificate(predictor)}",
                *cut,
            ),
        )

    @property
    def uid(self) -> str:
        """Return the UID of the model as a device."""
        return stable_uid("model", self.sha256)

    @property
    def equipment(self) -> dict[str, Any]:
        """Return the attributes of DICOM's Enhanced General Equipment, as arguments of highdicom."""
        return {
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.name,
            "device_serial_number": self.sha256,
            "software_versions": version("xfeat-onnx"),
        }


def _certificate(predictor: Predictor) -> str:
    """Return whether the certificate belongs to the model, and its digest."""
    if predictor.certificate == "none":
        return "none"
    path = certificate_path(predictor.path)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError("certificate cannot be read", path=path, found=error.strerror) from error
    texts = {"signed": "belongs to the model, signature verified", "matches": "belongs to the model"}
    return f"{texts.get(predictor.certificate, 'does not belong to the model')}, SHA-256 {digest}"

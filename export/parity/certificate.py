"""``model.certificate.json``: what was compared when the model was written, so that anyone can repeat the check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.agreement import TOLERANCES, Probabilities
from xfeat.export.parity.check_images import CheckImages
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.errors import ModelError
from xfeat.featurize.system.versions import library_versions

FORMAT = "xfeat.certificate"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReferenceImage:
    """The reference prediction of one image.

    Attributes:
        path: relative to the folder of the images.
        sha256: of the file's content.
        probabilities: one per class.
    """

    path: str
    sha256: str
    probabilities: tuple[float, ...]

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], classes: int) -> Self:
        """Read an entry of the certificate.

        Raises:
            ValueError: if it does not have ``classes`` finite probabilities.
        """
        probabilities = tuple(map(float, entry["probabilities"]))
        if len(probabilities) != classes or not all(map(math.isfinite, probabilities)):
            raise ValueError(f"{entry['path']} does not have {classes} probabilities")
        return cls(path=str(entry["path"]), sha256=str(entry["sha256"]), probabilities=probabilities)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate, as far as it is used for checks.

    Attributes:
        path: the file.
        models: variant to SHA-256 of the model file.
        metadata: of the models when they were written.
        reference: predictions by torch (for models of lower precision, by the model itself) of the compared images.
    """

    path: Path
    models: dict[str, str]
    metadata: dict[str, Any]
    reference: list[ReferenceImage]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], path: Path) -> Self:
        """Read the content of the file ``path``.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if something is missing or has another form.
        """
        metadata = dict(content["metadata"])
        classes = len(metadata["class_names"])
        return cls(
            path=path,
            models={variant: str(entry["sha256"]) for variant, entry in content["models"].items()},
            metadata=metadata,
            reference=[ReferenceImage.from_dict(entry, classes) for entry in content["reference"]],
        )


def certificate_path(model: Path) -> Path:
    """Return the path of a model's certificate: ``model.onnx`` and ``model.core.onnx`` share one."""
    stem = model.name.removesuffix(".onnx").removesuffix(".core")
    return model.with_name(f"{stem}.certificate.json")


@dataclass(frozen=True, kw_only=True)
class CertifiedModels:
    """The models that a certificate is for.

    Attributes:
        metadata: of the models.
        files: variant to finished model file.
        images: on which they were compared.
        expected: probabilities (n, C) that a repeated check compares with.
    """

    metadata: ModelMetadata
    files: Mapping[str, Path]
    images: CheckImages
    expected: Probabilities


def certificate_text(certified: CertifiedModels, evidence: Mapping[str, Any]) -> str:
    """Return the text of a certificate.

    Args:
        certified: the models and their reference predictions.
        evidence: further entries by name, plain JSON types.
    """
    metadata, images = certified.metadata, certified.images
    reference = [
        asdict(ReferenceImage(path=path, sha256=digest, probabilities=tuple(row)))
        for path, digest, row in zip(images.paths, images.sha256, certified.expected.tolist(), strict=True)
    ]
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run": metadata.run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": {
            variant: {"file": file.name, "sha256": sha256_of(file)} for variant, file in certified.files.items()
        },
        # For people: checks take the tolerance of the precision, since a forged tolerance would forgive everything.
        "tolerance": TOLERANCES[metadata.precision],
        **evidence,
        "feature_fingerprint": metadata.feature_spec.fingerprint,
        "head_sha256": metadata.head_sha256,
        "metadata": metadata.to_dict(),
        "versions": library_versions(),
        "reference": reference,
    }
    return json.dumps(content, indent=1) + "\n"


def read_certificate(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        ModelError: if it is missing, cannot be read, or has another version.
    """
    fix = "name it with --certificate FILE, or export the run again with xexport onnx"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["schema_version"]) == (FORMAT, SCHEMA_VERSION):
            return Certificate.from_dict(content, path)
        found = f"{content['format']} version {content['schema_version']}"
    except FileNotFoundError as error:
        raise ModelError("certificate not found", path=path, fix=fix) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("certificate cannot be read", path=path, found=str(error), fix=fix) from error
    expected = f"{FORMAT} version {SCHEMA_VERSION}"
    raise ModelError("a certificate of another format or version", path=path, expected=expected, found=found, fix=fix)

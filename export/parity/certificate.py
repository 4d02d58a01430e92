"""``model.certificate.json``: what was compared when the model was written, so that anyone can repeat the check."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.export.model.file import INTACT_COPY, ModelFile, read_content
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.agreement import TOLERANCES, Probabilities
from xfeat.export.parity.check_images import CheckImages
from xfeat.export.parity.ood_kinds import OodKind
from xfeat.export.parity.signature import check_signature
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.errors import MismatchError, ModelError
from xfeat.featurize.system.versions import library_versions
from xfeat.featurize.typed_json import check_types, parse_json

if TYPE_CHECKING:
    from minisign import PublicKey

FORMAT = "xfeat.certificate"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReferenceImage:
    """The reference prediction of one image.

    Attributes:
        path: relative to the folder of the images.
        sha256: of the file's content.
        probabilities: one per class, finite.
    """

    path: str
    sha256: str
    probabilities: list[float]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate, as far as it is used for checks.

    Attributes:
        path: the file.
        content: of the file.
        models: variant to SHA-256 of the model file.
        metadata: of the models when they were written.
        reference: predictions by torch (for models of lower precision, by the model itself) of the compared images.
        ood_kinds: kinds of images, and what the model's out-of-distribution score says of them; empty without a score.
    """

    path: Path
    content: bytes = field(repr=False)
    models: dict[str, str]
    metadata: ModelMetadata
    reference: list[ReferenceImage]
    ood_kinds: dict[str, OodKind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(vars(self), Certificate)
        classes = len(self.metadata.class_names)
        for kind in self.ood_kinds.values():
            check_types(vars(kind), OodKind)
        for image in self.reference:
            check_types(vars(image), ReferenceImage)
            if len(image.probabilities) != classes:
                raise ValueError(f"{image.path} does not have {classes} probabilities")


def certificate_path(model: Path) -> Path:
    """Return the path of a model's certificate: ``model.onnx`` and ``model.core.onnx`` share one."""
    stem = model.name.removesuffix(".onnx").removesuffix(".core")
    return model.with_name(f"{stem}.certificate.json")


def write_certificate(
    path: Path,
    metadata: ModelMetadata,
    files: Mapping[str, Path],
    images: CheckImages,
    expected: Probabilities,
    evidence: Mapping[str, Any],
) -> None:
    """Write the certificate of finished model files, by variant.

    Args:
        path: of the certificate.
        metadata: of the models.
        files: variant to model file.
        images: on which they were compared.
        expected: probabilities (n, C) that a repeated check compares with.
        evidence: further entries by name: plain JSON types and dataclasses.
    """
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run": metadata.run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": {variant: {"file": file.name, "sha256": sha256_of(file)} for variant, file in files.items()},
        # For people: checks take the tolerance of the precision, since a forged tolerance would forgive everything.
        "tolerance": TOLERANCES[metadata.precision],
        **evidence,
        "feature_fingerprint": metadata.feature_spec.fingerprint,
        "head_sha256": metadata.head_sha256,
        "metadata": metadata.to_dict(),
        "versions": library_versions(),
        "reference": [
            ReferenceImage(path=image, sha256=digest, probabilities=row)
            for (image, digest), row in zip(images.sha256.items(), expected.tolist(), strict=True)
        ],
    }
    text = json.dumps(content, indent=1, default=asdict) + "\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def read_certificate(path: Path, public_key: PublicKey | None = None) -> Certificate:
    """Read a certificate; with a public key, only if that has signed the very bytes that are read.

    Raises:
        ModelError: if it is missing, cannot be read, has another version, or no signature where one is required.
        MismatchError: if the signature is not valid.
    """
    fix = INTACT_COPY
    data = read_content(path, "certificate", fix)
    if public_key is not None:
        check_signature(path, data, public_key)
    try:
        content = parse_json(data)
        if (content["format"], content["schema_version"]) == (FORMAT, SCHEMA_VERSION):
            return Certificate(
                path=path,
                content=data,
                models={variant: entry["sha256"] for variant, entry in content["models"].items()},
                metadata=ModelMetadata.from_dict(content["metadata"]),
                reference=[ReferenceImage(**entry) for entry in content["reference"]],
                # Certificates of earlier versions have none.
                ood_kinds={kind: OodKind(**entry) for kind, entry in content.get("out_of_distribution", {}).items()},
            )
        found = f"{content['format']} version {content['schema_version']}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("certificate cannot be read", path=path, found=str(error), fix=fix) from error
    expected = f"{FORMAT} version {SCHEMA_VERSION}"
    raise ModelError("a certificate of another format or version", path=path, expected=expected, found=found, fix=fix)


def matching_certificate(model: ModelFile) -> Certificate | None:
    """Compare a model with the certificate beside it; ``None`` if there is none.

    Raises:
        ModelError: if the certificate cannot be read.
        MismatchError: if it does not belong to the file.
    """
    path = certificate_path(model.path)
    if not os.path.lexists(path):  # a broken link is an error, and not a model without a certificate
        return None
    certificate = read_certificate(path)
    require_match(model, certificate)
    return certificate


def require_match(model: ModelFile, certificate: Certificate) -> None:
    """Compare digest and metadata of a model with a certificate.

    Raises:
        MismatchError: if it does not belong to the file.
    """
    expected = certificate.models.get(model.metadata.variant)
    differences = _differences(model.metadata, certificate.metadata)
    if model.sha256 != expected or differences:
        raise MismatchError(
            "the model file does not match its certificate",
            path=model.path,
            expected=f"SHA-256 {str(expected)[:16]}… ({certificate.path.name})",
            found=f"{model.sha256[:16]}…, {differences or 'with the same metadata'}",
            fix=INTACT_COPY,
        )


def _differences(found: ModelMetadata, expected: ModelMetadata) -> str:
    """Return which metadata differ between a model and its certificate; empty if none do."""
    if replace(found, variant=expected.variant) == expected:
        return ""
    names = [what for what, text in found.identity.items() if text != expected.identity[what]]
    return f"with different {', '.join(names) or 'metadata'}"

"""``model.certificate.json``: what was compared when the model was written, so that anyone can compare again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    """What torch said of one image.

    Attributes:
        path: relative to the folder of the images.
        sha256: of the file's content.
        probabilities: one a class.
    """

    path: str
    sha256: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate, read.

    Attributes:
        path: the file.
        models: variant to SHA-256 of the model file.
        metadata: of the models, as they were written.
        reference: what torch (for models of fewer bits, the model itself) said of the images that were compared.
        facts: everything in the file.
    """

    path: Path
    models: dict[str, str]
    metadata: dict[str, Any]
    reference: list[ReferenceImage]
    facts: dict[str, Any]


def certificate_path(model: Path) -> Path:
    """Return where the certificate of a model lies: ``model.onnx`` and ``model.core.onnx`` share one."""
    stem = model.name.removesuffix(".onnx").removesuffix(".core")
    return model.with_name(f"{stem}.certificate.json")


@dataclass(frozen=True, kw_only=True)
class CertifiedModels:
    """What a certificate is about.

    Attributes:
        metadata: of the models.
        files: variant to model file, finished.
        images: that were compared.
        answers: probabilities (n, C) that a repetition is to find again.
    """

    metadata: ModelMetadata
    files: Mapping[str, Path]
    images: CheckImages
    answers: Probabilities


def certificate_text(certified: CertifiedModels, evidence: Mapping[str, Any]) -> str:
    """Return the text of a certificate.

    Args:
        certified: the models, and the answers to find again.
        evidence: further facts by name, plain JSON types.
    """
    metadata, images = certified.metadata, certified.images
    reference = [
        asdict(ReferenceImage(path=path, sha256=digest, probabilities=tuple(row)))
        for path, digest, row in zip(images.paths, images.sha256, certified.answers.tolist(), strict=True)
    ]
    facts = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run": metadata.run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": {
            variant: {"file": file.name, "sha256": sha256_of(file)} for variant, file in certified.files.items()
        },
        # To be read by people: checks go by the precision, since a forged tolerance would forgive everything.
        "tolerance": TOLERANCES[metadata.precision],
        **evidence,
        "feature_fingerprint": metadata.feature_spec.fingerprint,
        "head_sha256": metadata.head_sha256,
        "metadata": metadata.to_dict(),
        "versions": library_versions(),
        "reference": reference,
    }
    return json.dumps(facts, indent=1) + "\n"


def read_certificate(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        ModelError: if it is missing, damaged, or of another version.
    """
    fix = "name it with --certificate FILE, or export the run again with xexport onnx"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT or facts["schema_version"] != SCHEMA_VERSION:
            raise ModelError(
                "a certificate of another format or version",
                path=path,
                expected=f"{FORMAT} version {SCHEMA_VERSION}",
                found=f"{facts['format']} version {facts['schema_version']}",
                fix=fix,
            )
        metadata = dict(facts["metadata"])
        return Certificate(
            path=path,
            models={variant: str(entry["sha256"]) for variant, entry in facts["models"].items()},
            metadata=metadata,
            reference=_reference(facts["reference"], len(metadata["class_names"])),
            facts=facts,
        )
    except FileNotFoundError as error:
        raise ModelError("no such certificate", path=path, fix=fix) from error
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("a damaged certificate", path=path, found=str(error), fix=fix) from error


def _reference(rows: Sequence[Mapping[str, Any]], classes: int) -> list[ReferenceImage]:
    images = [
        ReferenceImage(
            path=str(row["path"]), sha256=str(row["sha256"]), probabilities=tuple(map(float, row["probabilities"]))
        )
        for row in rows
    ]
    for image in images:
        if len(image.probabilities) != classes or not all(map(math.isfinite, image.probabilities)):
            raise ValueError(f"{image.path} has not {classes} probabilities")
    return images

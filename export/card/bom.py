"""The card as a bill of materials for machine learning: CycloneDX 1.6, from the certificate and the metadata."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from xfeat.export.card.card import Card
from xfeat.export.card.sources import Sources
from xfeat.head.runs.reader import HEAD_FILE

SPEC_VERSION = "1.6"
DISTRIBUTION = "xfeat-onnx"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL, _ENCODER, _HEAD, _DATA = "model", "encoder", "head", "training-data"
_USE = "research, on images like those of the training; not a medical device"


def bill_of_materials(card: Card) -> dict[str, Any]:
    """Return the bill, as plain JSON types. Its time is that of the certificate; its number follows from its content.

    Source: https://cyclonedx.org/docs/1.6/json/
    """
    parts = [*_parts(card.sources)]
    tool = {"type": "application", "name": DISTRIBUTION, "version": version(DISTRIBUTION)}
    content = {
        "metadata": {**_known(timestamp=card.created), "tools": {"components": [tool]}, "component": _model(card)},
        "components": parts,
        "dependencies": [{"ref": _MODEL, "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        **content,
    }


def _model(card: Card) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": card.name,
        "version": card.sources.sha256[:16],
        **_hashes(card.sources.sha256),
        **_known(licenses=card.license and [{"license": {"name": card.license}}]),
        "modelCard": {
            "modelParameters": _parameters(card),
            "quantitativeAnalysis": {"performanceMetrics": [*_metrics(card)]},
            "considerations": _considerations(card),
        },
    }


def _parameters(card: Card) -> dict[str, Any]:
    metadata, outputs = card.sources.metadata, card.sources.model.content["outputs"]
    is_efficientnet = metadata.feature_spec.backbone.startswith("efficientnet")
    inputs = {"full": "uint8 [N, H, W, 3], RGB", "core": "float32 [N, 3, S, S], RGB, 0 to 255"}
    return {
        "approach": {"type": "supervised"},
        "task": "image classification",
        **_known(architectureFamily=is_efficientnet and "EfficientNet"),
        "modelArchitecture": f"{metadata.feature_spec.describe()}, with a trained head",
        "datasets": [{"ref": _DATA}],
        "inputs": [{"format": inputs[metadata.variant]}],
        "outputs": [{"format": name} for name in outputs],
    }


def _metrics(card: Card) -> Iterator[dict[str, Any]]:
    for metric in card.metrics:
        bounds = zip(("lowerBound", "upperBound"), map(str, metric.interval or ()), strict=False)
        of = f", class {metric.of_class}" if metric.of_class else ""
        yield {
            "type": metric.name,
            "value": str(metric.value),
            "slice": f"{metric.images}{of}",
            **_known(confidenceInterval=dict(bounds)),
        }


def _considerations(card: Card) -> dict[str, Any]:
    rows = [row for section in card.sections for row in section.rows]
    risks = [row.text for row in rows if row.id in ("audit.failures", "audit.warnings")]
    groups = [{"groupAtRisk": row.label, "harms": row.text} for row in rows if row.id == "subgroups.gaps"]
    return {
        "useCases": [_USE],
        "technicalLimitations": [row.text for row in card.limitations],
        **_known(ethicalConsiderations=[{"name": text} for text in risks], fairnessAssessments=groups),
    }


def _parts(sources: Sources) -> Iterator[dict[str, Any]]:
    """Yield what the model is made of: encoder, head, data, its other files, and the software."""
    metadata = sources.metadata
    encoder = metadata.feature_spec
    yield {
        "type": "machine-learning-model",
        "bom-ref": _ENCODER,
        "name": encoder.backbone,
        "description": f"frozen encoder, {encoder.describe()}",
        **_hashes(encoder.weights_sha256),
    }
    yield {"type": "file", "bom-ref": _HEAD, "name": HEAD_FILE, **_hashes(metadata.head_sha256)}
    yield {
        "type": "data",
        "bom-ref": _DATA,
        "name": "features of the training images",
        **_hashes(metadata.cache_sha256),
        "data": [{"type": "dataset", "name": "training images", "contents": {"properties": [*_counts(sources)]}}],
    }
    certificate = sources.certificate
    for variant, entry in (certificate.content["models"] if certificate else {}).items():
        if entry["sha256"] != sources.sha256:
            yield {"type": "file", "bom-ref": f"file-{variant}", "name": entry["file"], **_hashes(entry["sha256"])}
    versions = (certificate and certificate.get("versions")) or {}
    for name, release in versions.items():
        yield _software(name, release)


def _counts(sources: Sources) -> Iterator[dict[str, str]]:
    splits = (sources.counted and sources.counted.get("splits")) or {}
    for split, images in ((sources.run and sources.run.get("split.images")) or {}).items():
        yield {"name": f"xfeat:{split}:images", "value": str(images)}
        if patients := splits.get(split, {}).get("patients"):
            yield {"name": f"xfeat:{split}:patients", "value": str(patients)}


def _software(name: str, release: str) -> dict[str, Any]:
    if name == "python":
        return {"type": "platform", "bom-ref": name, "name": name, "version": release}
    package = {"xfeat": DISTRIBUTION}.get(name, name)
    purl = f"pkg:pypi/{quote(package, safe='')}@{quote(release, safe='')}"
    return {"type": "library", "bom-ref": f"software-{name}", "name": package, "version": release, "purl": purl}


def _known(**entries: Any) -> dict[str, Any]:
    """Return the entries that are not empty: CycloneDX has no null."""
    return {name: value for name, value in entries.items() if value}


def _hashes(digest: str) -> dict[str, Any]:
    """Return the entry of a SHA-256, or nothing where there is none, such as for features that nobody stored."""
    return {"hashes": [{"alg": "SHA-256", "content": digest}]} if _SHA256.fullmatch(digest) else {}

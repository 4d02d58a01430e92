"""Describes the content of a model file. Needs onnxruntime, and neither onnx nor torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from xfeat.export.model.file import INTACT_COPY, ModelFile, open_model
from xfeat.export.model.graph_summary import summarize_graph
from xfeat.export.parity.certificate import matching_certificate
from xfeat.export.parity.ood_kinds import OodKind
from xfeat.featurize.errors import ModelError, XfeatError


def describe_model(path: Path) -> dict[str, Any]:
    """Return the content of a model file, as plain JSON types.

    Raises:
        ModelError: if it was not written by this project.
    """
    model = open_model(path)
    content = model.read()
    try:
        graph = summarize_graph(content)
    except ValueError as error:
        raise ModelError("the file's graph cannot be read", path=path, found=str(error), fix=INTACT_COPY) from error
    metadata = model.metadata
    state, ood_kinds = _certificate(model)
    return {
        "model": str(path),
        "bytes": len(content),
        "sha256": model.sha256,
        "certificate": state,
        "ood_kinds": {kind: asdict(found) for kind, found in ood_kinds.items()},
        **metadata.to_dict(),
        "feature_fingerprint": metadata.feature_spec.fingerprint,
        "inputs": _tensors(model.session.get_inputs()),
        "optional_inputs": _tensors(model.session.get_overridable_initializers()),
        "outputs": _tensors(model.session.get_outputs()),
        "opset": graph.opset,
        "parameters": graph.parameters,
        "operators": graph.operators,
    }


def _certificate(model: ModelFile) -> tuple[str, dict[str, OodKind]]:
    """Return what there is to say of the certificate, and what it says of the out-of-distribution score."""
    try:
        certificate = matching_certificate(model)
    except XfeatError as error:
        return error.what, {}
    return ("matches this file", certificate.ood_kinds) if certificate else ("none beside the model", {})


def _tensors(nodes: list[Any]) -> list[dict[str, Any]]:
    return [{"name": node.name, "type": node.type, "shape": list(node.shape)} for node in nodes]

"""A model file, opened: what it says of itself, what it takes and gives. Needs onnxruntime alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfeat.export.model.cuda_graphs import Session, open_network
from xfeat.export.model.metadata import ModelMetadata
from xfeat.export.parity.certificate import certificate_path, read_certificate
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.errors import ModelError, XfeatError


@dataclass(frozen=True)
class ModelFile:
    """An open model.

    Attributes:
        path: the file.
        session: on the device asked for.
        metadata: what it says of itself.
    """

    path: Path
    session: Session
    metadata: ModelMetadata

    @property
    def outputs(self) -> list[str]:
        """Return the names of its outputs."""
        return [output.name for output in self.session.get_outputs()]


def open_model(
    path: Path, threads: int | None = None, *, device: str = "cpu", cuda_graphs: str = "auto", spin: bool = False
) -> ModelFile:
    """Open a model.

    Args:
        path: a file of ``xexport onnx``.
        threads: for the network; by default all cores.
        device: ``cpu``, ``cuda`` or ``cuda:N``, which is never replaced, not even for some nodes.
        cuda_graphs: ``auto``, ``on`` or ``off``; see :func:`xfeat.export.model.cuda_graphs.open_network`.
        spin: let threads of the network spin while they wait for one another; see there.

    Raises:
        ModelError: if there is no such file, or it is none that this project wrote.
        DeviceError: if the device cannot be used, or no graphs where they were asked for.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else None
        raise ModelError("no such model", path=path, found=found, mend="run xexport onnx to write one, or name another")
    session = open_network(path, device=device, threads=threads, graphs=cuda_graphs, spin=spin)
    metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, path)
    return ModelFile(path, session, metadata)


def describe_model(path: Path) -> dict[str, Any]:
    """Return what is inside a model file, as plain JSON types.

    Raises:
        ModelError: if it is none that this project wrote.
    """
    import onnx

    model = open_model(path)
    proto = onnx.load(path)
    graph = proto.graph
    metadata = model.metadata
    return {
        "model": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "certificate": _certificate_state(model),
        "variant": metadata.variant,
        "precision": metadata.precision,
        "head_bits": metadata.head_bits,
        "class_names": list(metadata.class_names),
        "positive": metadata.positive,
        "threshold": metadata.threshold,
        "temperature": metadata.temperature,
        "ood_threshold": metadata.ood_threshold,
        "run": metadata.run,
        "feature_spec": metadata.feature_spec.to_dict(),
        "feature_fingerprint": metadata.feature_spec.fingerprint,
        "cache_sha256": metadata.cache_sha256,
        "head_sha256": metadata.head_sha256,
        "metrics": metadata.metrics,
        "inputs": _tensors(model.session.get_inputs()),
        "outputs": _tensors(model.session.get_outputs()),
        "opset": proto.opset_import[0].version,
        "parameters": sum(_count(tensor.dims) for tensor in graph.initializer),
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
    }


def _certificate_state(model: ModelFile) -> str:
    try:
        certificate = read_certificate(certificate_path(model.path))
    except XfeatError as error:
        return str(error.args[0]).splitlines()[0]
    if sha256_of(model.path) in certificate.models.values():
        return "these bytes"
    return "of other bytes: run xexport verify"


def _tensors(nodes: list[Any]) -> list[dict[str, Any]]:
    return [{"name": node.name, "type": node.type, "shape": list(node.shape)} for node in nodes]


def _count(dims: Any) -> int:
    total = 1
    for size in dims:
        total *= size
    return total

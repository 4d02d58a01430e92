"""An open model file: session and metadata. Needs onnxruntime only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xfeat.export.model.cuda_graphs import Session, open_network
from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.errors import ModelError


@dataclass(frozen=True)
class ModelFile:
    """An open model.

    Attributes:
        path: the file.
        session: on the requested device.
        metadata: stored in the file.
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
        path: a file written by ``xexport onnx``.
        threads: of the network; by default one per core that this process may use.
        device: ``cpu``, ``cuda`` or ``cuda:N``; every node has to run there.
        cuda_graphs: ``auto``, ``on`` or ``off``; see :func:`xfeat.export.model.cuda_graphs.open_network`.
        spin: let threads spin while they wait for one another; see there.

    Raises:
        ModelError: if there is no such file, or it was not written by this project.
        DeviceError: if the device cannot be used, or ``cuda_graphs`` is ``on`` and fails.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else None
        raise ModelError("model not found", path=path, found=found, fix="run xexport onnx, or name another file")
    session = open_network(path, device=device, threads=threads, graphs=cuda_graphs, spin=spin)
    metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, path)
    return ModelFile(path, session, metadata)

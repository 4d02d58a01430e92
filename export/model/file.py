"""A model file, opened: what it says of itself, what it takes and gives. Needs onnxruntime alone."""

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
        raise ModelError("no such model", path=path, found=found, fix="run xexport onnx to write one, or name another")
    session = open_network(path, device=device, threads=threads, graphs=cuda_graphs, spin=spin)
    metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, path)
    return ModelFile(path, session, metadata)

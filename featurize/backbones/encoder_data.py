"""The files of an encoder: an ONNX graph, and the files beside it that hold its data. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from xfeat.featurize.backbones.registry import is_foreign
from xfeat.featurize.backbones.weights import Weights, find_weights, sha256_of
from xfeat.featurize.errors import MissingExtraError, ModelError, WeightsError
from xfeat.featurize.progress import Steps
from xfeat.featurize.system.onnx_session import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


def find_any_weights(name: str, *, file: str | Path | None = None, progress: Steps | None = None) -> Weights:
    """Return the weights of an EfficientNet, as :func:`find_weights` does, or the file of another encoder.

    Raises:
        SpecError: if there is no such backbone.
        WeightsError: if the weights cannot be found, or the file of an encoder is not named.
        ModelError: if the file of an encoder cannot be read.
    """
    if not is_foreign(name):
        return find_weights(name, file=file, progress=progress)
    if file is None:
        again = "" if name.startswith("onnx:") else f", or make it again: xfeat featurize DATA --backbone {name}"
        fix = f"name it with --weights FILE.onnx{again}"
        raise WeightsError(f"the file of the encoder {name} was not found", fix=fix)
    return Weights(name, Path(file), encoder_sha256(Path(file)))


def weights_sha256(name: str, path: Path) -> str:
    """Return the SHA-256 by which the weights of a backbone are identified, 64 hexadecimal digits."""
    return encoder_sha256(path) if is_foreign(name) else sha256_of(path)


def encoder_sha256(path: Path) -> str:
    """Return the SHA-256 of an ONNX file, 64 hexadecimal digits.

    If it keeps data in other files, it is the SHA-256 of the lines ``DIGEST  NAME``, as ``sha256sum`` prints them.

    Raises:
        ModelError: if the file or its data cannot be read.
    """
    data = external_files(path)
    if not data:
        return sha256_of(path)
    lines = [f"{sha256_of(path)}  model", *(f"{sha256_of(file)}  {file.name}" for file in data)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the data of an ONNX file, sorted.

    Raises:
        ModelError: if the file cannot be read, or one of them is missing or outside its folder.
        MissingExtraError: if the package onnx is not installed.
    """
    names = {
        entry.value
        for tensor in _tensors(_read_proto(path))
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if not all(isinstance(name, str) for name in names):  # protobuf gives bytes for what is not UTF-8
        raise not_onnx(path, "the name of a data file is not UTF-8")
    for name in sorted(names):
        # onnxruntime would refuse it too; it must not be hashed or sent to another machine either.
        if PurePosixPath(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                "its data is outside its folder",
                path=path,
                expected="a file beside it",
                found=name,
                fix="export it again into one file",
            )
        if not (path.parent / name).is_file():
            fix = f"put {name} beside it, or export it again into one file"
            raise ModelError("a data file of the encoder is missing", path=path.parent / name, fix=fix)
    return tuple(path.parent / name for name in sorted(names))


def _read_proto(path: Path) -> onnx.ModelProto:
    """Read the graph, without data in other files."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx is not installed", fix="pip install onnx") from error
    if not path.is_file():
        raise ModelError("encoder file not found", path=path, fix="check the path given to --backbone or --weights")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise not_onnx(path, first_line(error)) from error
    if not model.graph.node:
        raise not_onnx(path, "no graph")
    return model


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield all tensors, in subgraphs, attributes and functions too."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                if isinstance(child, onnx.TensorProto):
                    yield child
                else:
                    yield from _tensors(child)


def not_onnx(path: Path, found: str) -> ModelError:
    """Return the error of a file that is no ONNX model."""
    return ModelError(
        "not an encoder that onnxruntime can read",
        path=path,
        expected="a complete ONNX file",
        found=found,
        fix="export it again, for example with torch.onnx.export(model.eval(), images, 'encoder.onnx')",
    )

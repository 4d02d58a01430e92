"""From the name of an encoder to its ONNX file: a file of the user's, or one that a torch module is converted to."""

from __future__ import annotations

from pathlib import Path

from xfeat.featurize.backbones.encoder_file import EncoderFile, inspect_encoder, split_output
from xfeat.featurize.backbones.registry import is_foreign
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.errors import SpecError, WeightsError, needs_extra


def names_encoder(backbone: str) -> bool:
    """Tell whether a user names an encoder other than an EfficientNet: by a file or as ``KIND:NAME``."""
    return is_foreign(backbone) or split_output(backbone) is not None


def find_encoder(backbone: str, *, file: Path | None = None, size: int | None = None) -> tuple[Weights, EncoderFile]:
    """Return the ONNX file of an encoder, converting a torch module if necessary.

    Args:
        backbone: ``FILE.onnx``, ``FILE.onnx#OUTPUT``, ``timm:NAME``, ``torch:MODULE:FUNCTION``, ``plugin:NAME``, or the
            name in a cache, such as ``onnx:STEM``.
        file: the ONNX file of the encoder, which is then not converted; for ``timm:NAME`` also a checkpoint.
        size: side of the images in pixels; by default the encoder's own.

    Returns:
        The file under the name that caches store, and what it is.

    Raises:
        SpecError: if there is no such encoder, or two files are named.
        WeightsError: if its file or its weights cannot be found or downloaded.
        ModelError: if its file cannot be used.
        MissingExtraError: if a package is not installed.
    """
    name, path, output = backbone, file, None
    if (named := split_output(backbone)) is not None and not is_foreign(backbone):
        if file is not None:
            raise SpecError("two files of an encoder", expected="either --backbone FILE.onnx or --weights FILE.onnx")
        path, output = Path(named[0]), named[1]
        name = f"onnx:{path.stem.replace('#', '_')}" + (f"#{output}" if output else "")
    elif backbone.startswith("onnx:"):
        output = backbone.partition("#")[2] or None
    if path is None or path.suffix.lower() != ".onnx":
        path = _converted(name, path, size)
    encoder = inspect_encoder(path, output=output, size=size)
    return Weights(name, path, encoder.sha256), encoder


def _converted(name: str, file: Path | None, size: int | None) -> Path:
    """Return the ONNX file that a torch module is converted to."""
    kind, _, rest = name.partition(":")
    if kind == "onnx":
        raise WeightsError(
            f"the file of the encoder {name} was not found", path=file, fix="name it with --weights FILE.onnx"
        )
    if kind == "timm":
        with needs_extra("train,timm"):
            from xfeat.featurize.encoders.timm_models import convert_timm_model
        return convert_timm_model(rest, checkpoint=file, size=size)
    if file is not None:
        raise SpecError(
            f"the weights of {name} are not read from a checkpoint",
            expected="--weights FILE.onnx, or none",
            found=f"--weights {file}",
        )
    from xfeat.featurize.encoders.plugins import convert_plugin, named_function, plugin_function

    return convert_plugin(name, named_function(rest) if kind == "torch" else plugin_function(rest), size=size)

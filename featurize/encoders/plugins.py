"""Encoders that other packages and a user's own modules provide: ``plugin:NAME`` and ``torch:MODULE:FUNCTION``."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfeat.featurize.backbones.encoder_file import DEFAULT_SIDE
from xfeat.featurize.encoders.foreign_code import errors_of
from xfeat.featurize.errors import SpecError, needs_extra
from xfeat.featurize.specs import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec, Triple, require

if TYPE_CHECKING:
    from torch import nn

ENTRY_POINTS = "xfeat.encoders"
_OF_IMAGES = ("mean", "std", "resize", "crop", "interpolation")


@dataclass(frozen=True, kw_only=True)
class EncoderPlugin:
    """An encoder: its network, and how images are prepared for it.

    Attributes:
        path: an ONNX file, which is copied with what is said here: normalised float32 (N, 3, S, S) in; out (N, D), a
            map (N, D, h, w) or tokens (N, T, D).
        module: makes a torch module that does the same, and is converted to ONNX; either this or ``path``.
        size: S, in pixels; by default that of the file, else 224.
        mean: per channel; subtracted from pixels that are scaled to 0..1.
        std: per channel; the pixels are divided by it afterwards.
        resize: ``squash`` or ``crop``, as in :class:`xfeat.featurize.specs.PreprocessSpec`.
        crop: share of each side that is cut off first.
        interpolation: ``bilinear`` or ``bicubic``.
        pooling: of tokens: ``cls`` or ``mean``; else empty.
    """

    path: str | Path | None = None
    module: Callable[[], nn.Module] | None = None
    size: int | None = None
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    resize: str = "squash"
    crop: float = 0.0
    interpolation: str = "bilinear"
    pooling: str = ""

    def __post_init__(self) -> None:
        one = (self.path is None) != (self.module is None)
        require(one, "an encoder has a file or a module", expected="path= or module=", found=self)
        require(self.pooling in ("", "cls", "mean"), "unknown pooling", expected="cls or mean", found=self.pooling)


def plugin_function(name: str) -> Callable[[], Any]:
    """Load the function that an installed package provides as an entry point.

    Raises:
        SpecError: if no package provides it, or it cannot be loaded.
    """
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in found:
        installed = ", ".join(f"plugin:{other}" for other in sorted(found))
        raise SpecError(
            "no installed package provides this encoder",
            expected=installed or "an installed package with encoders; there is none",
            found=f"plugin:{name}",
        )
    with errors_of(f"plugin:{name}"):
        function: Callable[[], Any] = found[name].load()
    return function


def named_function(name: str) -> Callable[[], Any]:
    """Import ``MODULE:FUNCTION`` from the environment or the current folder.

    The current folder comes last, so that no file in it stands in for a module of the environment.

    Raises:
        SpecError: if the name has another form, or the module or the function does not exist.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise SpecError("not the name of a function", expected="torch:MODULE:FUNCTION", found=f"torch:{name}")
    with errors_of(f"torch:{name}"), _current_folder_last():
        module = importlib.import_module(module_name)
        exists = hasattr(module, function_name)
    if not exists:
        raise SpecError(
            f"{module_name} has no {function_name}",
            expected=f"a function {function_name} in {getattr(module, '__file__', None) or module_name}",
            found=", ".join(name for name in vars(module) if not name.startswith("_")),
        )

    def function() -> Any:
        with _current_folder_last():
            made = getattr(module, function_name)
            return made() if isinstance(made, type) or not _is_module(made) else made

    return function


def convert_plugin(name: str, function: Callable[[], Any], *, size: int | None) -> Path:
    """Return the ONNX file of an encoder that a function describes or makes.

    A module is converted in every run, since only its code knows whether it has changed.

    Args:
        name: of the encoder.
        function: returns an :class:`EncoderPlugin` or a torch module.
        size: side of the images in pixels; by default the encoder's own.

    Raises:
        SpecError: if the function fails, or returns something else.
        ModelError: if the module cannot be converted.
        MissingExtraError: if torch is not installed.
    """
    with errors_of(name):
        made = function()
        plugin = EncoderPlugin(module=lambda: made) if _is_module(made) else made
        if isinstance(plugin, EncoderPlugin) and plugin.module is not None:
            module = plugin.module()
    if not isinstance(plugin, EncoderPlugin) or (plugin.module is not None and not _is_module(module)):
        returned = type(module if isinstance(plugin, EncoderPlugin) else made).__name__
        raise SpecError(f"{name} is no encoder", expected="an EncoderPlugin or a torch.nn.Module", found=returned)
    with needs_extra("train"):
        from xfeat.featurize.encoders.convert import convert_module, stating_file, write_converted
    asked = plugin.size if size is None else size
    preprocess = PreprocessSpec(size=asked or DEFAULT_SIDE, **{field: getattr(plugin, field) for field in _OF_IMAGES})
    if plugin.path is not None:
        return write_converted(name, stating_file(Path(plugin.path), asked, preprocess, plugin.pooling))
    stated = None if plugin is not made else preprocess  # a bare module does not say how its images are prepared
    return write_converted(name, convert_module(module, name, preprocess.size, stated, plugin.pooling))


def _is_module(made: Any) -> bool:
    torch = sys.modules.get("torch")  # without it there is none
    return torch is not None and isinstance(made, torch.nn.Module)


@contextmanager
def _current_folder_last() -> Iterator[None]:
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before

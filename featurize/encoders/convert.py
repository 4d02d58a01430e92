"""A torch module to the ONNX file of an encoder."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from torch import nn

from xfeat.featurize.backbones.encoder_file import inspect_encoder, to_metadata
from xfeat.featurize.encoders.foreign_code import summary
from xfeat.featurize.engines.conversion import to_onnx
from xfeat.featurize.errors import ModelError
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.system.onnx_session import ORT_ERRORS, first_line, open_session
from xfeat.featurize.system.user_cache import ANOTHER_CACHE, cache_file

# A file in protobuf's format has at most 2 GB.
_MOST_BYTES = 2_000_000_000
# Of the largest number in the output.
_TOLERANCE = 1e-3
# By name: importing torch.compile's class takes seconds.
_INNER = {
    "DataParallel": "return model.module",
    "DistributedDataParallel": "return model.module",
    "OptimizedModule": "return the module itself, without torch.compile",
}


def convert_module(
    module: nn.Module, name: str, size: int, preprocess: PreprocessSpec | None = None, pooling: str = ""
) -> bytes:
    """Convert an encoder to ONNX: ``image`` float32 (N, 3, S, S), normalised, to ``features``.

    Args:
        module: returns one tensor; it is set to evaluation mode.
        name: of the encoder, for messages.
        size: S, in pixels.
        preprocess: of its images, if it is known; stored in the file, like ``pooling``.
        pooling: of tokens: ``cls`` or ``mean``; else empty.

    Returns:
        The content of the file.

    Raises:
        ModelError: if it cannot be converted, or computes something else than the module.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise _not_converted(name, "torch exports no scripted or traced modules", type(module).__name__)
    if fix := _INNER.get(type(module).__name__):
        raise _not_converted(name, "it is a wrapper around a module", type(module).__name__, fix)
    module = module.eval().requires_grad_(False).float().cpu()
    count = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if count > _MOST_BYTES:
        raise _not_converted(name, "it is larger than 2 GB, the limit of a single file", f"{count / 1e9:.1f} GB")
    images = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            expected = module(images)
    except (Exception, SystemExit) as error:
        fix = "name the --size that it was made for"
        raise _not_converted(name, f"it fails on float32 {tuple(images.shape)}", summary(error), fix) from error
    if not isinstance(expected, torch.Tensor):
        raise _not_converted(name, "it does not return one tensor", type(expected).__name__)
    try:
        with _quiet():
            model = to_onnx(module, images, input_name="image", output_names=["features"], dynamic={0: "N"})
    except Exception as error:
        raise _not_converted(name, "torch cannot export it to ONNX", summary(error.__cause__ or error)) from error
    if preprocess is not None:
        key, value = to_metadata(preprocess, pooling)
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString(deterministic=True)
    _compare(name, content, images, expected)
    return content


def stating_file(path: Path, size: int | None, preprocess: PreprocessSpec, pooling: str) -> bytes:
    """Return an ONNX file that says how its images are prepared, with data of other files inside.

    Args:
        path: the file.
        size: side of the images in pixels; by default that of the file.
        preprocess: of the images, but for their size.
        pooling: of tokens: ``cls`` or ``mean``; else empty.

    Raises:
        ModelError: if the file cannot be used.
    """
    side = size or inspect_encoder(path).preprocess.size
    inspect_encoder(path, size=side)
    model = onnx.load(path)
    key, value = to_metadata(dataclasses.replace(preprocess, size=side), pooling)
    others = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=key, value=value)
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as error:
        raise _not_converted(str(path), "it is larger than 2 GB, the limit of a single file", summary(error)) from error
    return content


def write_converted(name: str, content: bytes) -> Path:
    """Write a converted encoder to the user's cache folder, under a name that has its digest."""
    path = cache_file(f"{file_stem(name)}-{hashlib.sha256(content).hexdigest()[:16]}.onnx")
    if not (path.is_file() and path.read_bytes() == content):
        with replacing(path, elsewhere=ANOTHER_CACHE) as partial:
            partial.write_bytes(content)
    return path


def file_stem(name: str) -> str:
    """Return the name of an encoder with those characters only that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what torch logs and prints of code that it cannot export; its exception says the same."""
    before = logging.root.manager.disable
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _compare(name: str, content: bytes, images: torch.Tensor, expected: torch.Tensor) -> None:
    try:
        (found,) = open_session(content).run(["features"], {"image": images.numpy()})
    except ORT_ERRORS as error:
        raise _not_converted(name, "onnxruntime cannot run it", first_line(error)) from error
    wanted = expected.numpy()
    largest = float(np.abs(wanted).max(initial=0))
    # A NaN is neither larger nor smaller: the file is refused where it is read.
    if found.shape != wanted.shape or float(np.abs(found - wanted).max(initial=0)) > _TOLERANCE * largest:
        raise _not_converted(name, "the ONNX file does not compute what the module does", f"shape {found.shape}")


def _not_converted(name: str, what: str, found: str, fix: str = "") -> ModelError:
    return ModelError(
        f"{name} cannot be converted: {what}",
        expected="a torch module: float32 (N, 3, S, S) to one tensor",
        found=found,
        fix=fix or "export it with torch.onnx.export, and name the file: --backbone FILE.onnx",
    )

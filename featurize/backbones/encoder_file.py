"""An encoder as an ONNX file: what it takes, what its output is, and whether it can be used. No torch here.

The kind of the output is decided here, from its rank. Whatever a file declares, it is run once: what it does counts.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.backbones.encoder_data import encoder_sha256, external_files, not_onnx
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.errors import ModelError, WeightsError
from xfeat.featurize.specs import IMAGENET_MEAN, IMAGENET_STD, SIDES, FeatureSpec, PreprocessSpec
from xfeat.featurize.system.onnx_session import ORT_ERRORS, first_line, open_session

if TYPE_CHECKING:
    import onnxruntime as ort

OutputKind = Literal["vector", "map", "tokens"]
Images = NDArray[np.float32]

DEFAULT_SIDE = 224
_METADATA = "xfeat.encoder"
MOST_FEATURES = 32_768
# Tokens before the grid: a class token, a distillation token, registers. Source: DINOv2 has 4 registers, DeiT 2 tokens.
_MOST_PREFIX_TOKENS = 8
# Of the largest feature. In batches of another size onnxruntime gives 1e-5; batch statistics change features by 1e-1.
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class EncoderFile:
    """An encoder in an ONNX file: normalised float32 (N, 3, S, S) in, features out.

    Attributes:
        path: the ONNX file.
        sha256: of the file, 64 hexadecimal digits; if it keeps data in other files, of their digests too.
        input_name: name of the graph's input.
        output_name: name of the output that is used.
        kind: ``vector`` (N, D), ``map`` (N, D, h, w) or ``tokens`` (N, T, D).
        dim: D, the number of features after pooling.
        grid: (h, w) of a map or of the tokens, else ``None``.
        tokens: T, 0 for other kinds.
        batch: N, if the graph fixes it.
        side: S, if the graph fixes it, in pixels.
        is_probabilities: whether the output is a probability of each class.
        preprocess: how images are prepared for it: as the file says in its metadata, else ImageNet's mean and std.
        pooling: as the file says, ``cls`` or ``mean``, else empty.
        states_preprocess: whether the file says it.
    """

    path: Path
    sha256: str
    input_name: str
    output_name: str
    kind: OutputKind
    dim: int
    grid: tuple[int, int] | None
    tokens: int
    batch: int | None
    side: int | None
    is_probabilities: bool
    preprocess: PreprocessSpec
    pooling: str
    states_preprocess: bool

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before those of the grid: the class token, and registers."""
        return self.tokens - math.prod(self.grid) if self.grid is not None and self.tokens else 0


def split_output(encoder: str) -> tuple[str, str | None] | None:
    """Return file and output of ``FILE.onnx`` or ``FILE.onnx#OUTPUT``; ``None`` for a name of another form."""
    found = re.fullmatch(r"(.*\.onnx)(?:#(.+))?", encoder, re.IGNORECASE | re.DOTALL)
    return (found[1], found[2]) if found else None


def encoder_of(spec: FeatureSpec, weights: Weights) -> EncoderFile:
    """Return the encoder that features of ``spec`` are computed with.

    Args:
        spec: with a backbone for which :func:`is_foreign` holds.
        weights: its ONNX file.

    Raises:
        ModelError: if the file cannot be used.
        WeightsError: if it has another digest.
    """
    output = spec.backbone.partition("#")[2] or None if spec.backbone.startswith("onnx:") else None
    encoder = inspect_encoder(weights.path, output=output, size=spec.preprocess.size)
    if encoder.sha256 != spec.weights_sha256:
        raise WeightsError(
            "this is not the encoder of the features",
            path=weights.path,
            expected=f"{spec.backbone} with SHA-256 {spec.weights_sha256[:16]}…",
            found=f"SHA-256 {encoder.sha256[:16]}…",
            fix="give the right file with --weights FILE.onnx",
        )
    return encoder


def inspect_encoder(path: Path, *, output: str | None = None, size: int | None = None) -> EncoderFile:
    """Read an encoder, run it once on random images, and return what it is.

    Args:
        path: an ONNX file.
        output: name of the output to use; needed if there are several.
        size: side of the images in pixels, where the graph does not fix it; by default :data:`DEFAULT_SIDE`.

    Raises:
        ModelError: if the file cannot be read, or is no encoder that can be used; the message says why.
        MissingExtraError: if the package onnx is not installed.
    """
    files = [path, *external_files(path)]
    # The state of the files: they are hashed and run again only if they have changed.
    states = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    try:
        return _inspect(path, output, size, states)
    except UnicodeDecodeError as error:  # onnxruntime does not look at texts
        raise not_onnx(path, "a text that is not UTF-8") from error


@functools.lru_cache(maxsize=8)
def _inspect(path: Path, output: str | None, size: int | None, states: tuple[object, ...]) -> EncoderFile:
    try:
        session = open_session(path)
    except ModelError as error:
        raise not_onnx(path, error.found or error.what) from error
    input_name, batch, side = _checked_input(path, session)
    output_name = _checked_output(path, session, output)
    if size is not None and side is not None and size != side:
        fix = f"leave out --size, or export the encoder for {size} × {size} pixels or any size"
        raise _unusable(path, "the encoder has a fixed input size", f"--size {side}", f"--size {size}", fix)
    run = functools.partial(_run, path, session, input_name, output_name, batch)
    rows = _probe(path, output_name, run, side or size or DEFAULT_SIDE, batch)
    kind, dim, grid, tokens = _kind_of(path, rows.shape)
    stated = _stated(path, session.get_modelmeta().custom_metadata_map)
    usual = PreprocessSpec(size=side or DEFAULT_SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return EncoderFile(
        path=path,
        sha256=encoder_sha256(path),
        input_name=input_name,
        output_name=output_name,
        kind=kind,
        dim=dim,
        grid=grid,
        tokens=tokens,
        batch=batch,
        side=side,
        is_probabilities=kind == "vector" and bool(rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-3)),
        preprocess=stated[0] if stated else usual,
        pooling=stated[1] if stated else "",
        states_preprocess=stated is not None,
    )


def to_metadata(preprocess: PreprocessSpec, pooling: str) -> tuple[str, str]:
    """Return key and value of the metadata in which an ONNX file says how its images are prepared.

    Args:
        preprocess: of the images.
        pooling: of tokens, ``cls`` or ``mean``; else empty.
    """
    return _METADATA, json.dumps({"preprocess": preprocess.to_dict(), "pooling": pooling})


def _stated(path: Path, metadata: dict[str, str]) -> tuple[PreprocessSpec, str] | None:
    """Return what the file says of preprocessing and pooling."""
    if _METADATA not in metadata:
        return None
    try:
        stated = json.loads(metadata[_METADATA])
        preprocess, pooling = PreprocessSpec.from_dict(stated["preprocess"]), stated.get("pooling", "")
    except (ValueError, TypeError, KeyError) as error:
        expected = '{"preprocess": {"size": …, "mean": …, …}, "pooling": "cls", "mean" or ""}'
        raise _unusable(path, f"its metadata {_METADATA} cannot be read", expected, first_line(error)) from error
    if pooling not in ("", "cls", "mean"):
        raise _unusable(path, f"its metadata {_METADATA} has an unknown pooling", "cls, mean or empty", repr(pooling))
    return preprocess, pooling


def _checked_input(path: Path, session: ort.InferenceSession) -> tuple[str, int | None, int | None]:
    """Return name, fixed batch and fixed side of the only input."""
    inputs = session.get_inputs()
    expected = "one input: float32 (N, 3, S, S)"
    found = "; ".join(f"{one.name}: {_describe(one)}" for one in inputs)
    if len(inputs) != 1:
        raise _unusable(path, "the encoder has more than one input" if inputs else "no input", expected, found)
    (image,) = inputs
    if image.type != "tensor(float)":
        fix = "export it in float32, without the preprocessing, which xfeat does itself"
        raise _unusable(path, "the encoder takes another type of number", expected, found, fix)
    shape = [size if isinstance(size, int) and size > 0 else None for size in image.shape]
    if len(shape) == 4 and shape[1] != 3 and shape[3] == 3:
        fix = "export it with the channels first; torch does by default, for TensorFlow: tf2onnx --inputs-as-nchw"
        raise _unusable(path, "the encoder takes the channels last", expected, found, fix)
    if len(shape) != 4 or shape[1] not in (3, None):
        raise _unusable(path, "the encoder does not take colour images", expected, found)
    batch, _, height, width = shape
    if height != width:
        raise _unusable(path, "the encoder does not take square images of one size", expected, found)
    if height is not None and height not in SIDES:
        expected = f"{SIDES[0]} to {SIDES[-1]} pixels"
        raise _unusable(path, "the encoder takes images of a size that is not supported", expected, found)
    return image.name, batch, height


def _checked_output(path: Path, session: ort.InferenceSession, name: str | None) -> str:
    """Return the name of the output that is used."""
    outputs = {one.name: one for one in session.get_outputs()}
    listed = "; ".join(f"{one.name}: {_describe(one)}" for one in outputs.values())
    fix = f"name one: --backbone '{path.name}#{next(iter(outputs))}'"
    if name is None and len(outputs) > 1:
        raise _unusable(path, "the encoder has several outputs", "one output, or its name after #", listed, fix)
    name = next(iter(outputs)) if name is None else name
    if name not in outputs:
        raise _unusable(path, f"the encoder has no output {name}", "the name of an output after #", listed, fix)
    if outputs[name].type != "tensor(float)":
        expected = "float32 (N, D), (N, D, h, w) or (N, T, D)"
        fix = "export it in float32"
        raise _unusable(path, "the output is of another type of number", expected, listed, fix)
    return name


def _probe(path: Path, output_name: str, run: Callable[[Images], Images], side: int, batch: int | None) -> Images:
    """Return the output of two random images, after checks on them."""
    images = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)
    first, second = images[:1], images[1:]
    # One image in two batches: alone or first, and last beside another one.
    alone = run(np.repeat(first, batch or 1, axis=0))[0]
    beside = run(np.concatenate([np.repeat(second, max(1, (batch or 2) - 1), axis=0), first]))
    if batch == 1:
        beside = np.stack([run(second)[0], run(first)[0]])
    if not np.isfinite(beside).all():
        raise _unusable(path, "the features are not finite", "finite numbers", "NaN or infinity")
    if np.array_equal(alone, beside[0]):
        what = "the output is the same for different images"
        raise _unusable(path, what, "an output that depends on the image", output_name)
    difference = float(np.abs(alone - beside[-1]).max())
    if difference > _TOLERANCE * float(np.abs(alone).max()):
        raise _unusable(
            path,
            "the features of an image are random, or depend on the other images of its batch",
            expected=f"the same features to {_TOLERANCE:g}, alone or beside another image",
            found=f"a difference of {difference:.2g}",
            fix="export it in evaluation mode (model.eval()), and not with dynamic quantization",
        )
    return np.stack([alone, beside[0]])


def _run(
    path: Path, session: ort.InferenceSession, input_name: str, output_name: str, batch: int | None, images: Images
) -> Images:
    images = images[:batch]
    shape = f"float32 {images.shape}"
    try:
        result = session.run([output_name], {input_name: images})[0]
    except ORT_ERRORS as error:
        what = f"the encoder fails on {shape}"
        fix = "name the --size that it was made for, or export it with a batch of any size"
        raise _unusable(path, what, "an output", first_line(error), fix) from error
    if result.ndim == 0 or len(result) != len(images):
        raise _unusable(
            path,
            "the output has another number of rows than the input",
            expected=f"({len(images)}, …) for {shape}",
            found=str(result.shape),
            fix="export it with a batch of any size, or with one that the input declares",
        )
    return np.asarray(result)


def _kind_of(path: Path, shape: tuple[int, ...]) -> tuple[OutputKind, int, tuple[int, int] | None, int]:
    """Return kind, number of features, grid and number of tokens of an output."""
    expected = f"(N, D), (N, D, h, w) or (N, T, D), D up to {MOST_FEATURES:,}"
    found = f"(N, {', '.join(map(str, shape[1:]))})"
    result: tuple[OutputKind, int, tuple[int, int] | None, int]
    if len(shape) == 2:
        result = "vector", shape[1], None, 0
    elif len(shape) == 3:
        result = "tokens", shape[2], token_grid(shape[1]), shape[1]
    elif len(shape) == 4 and shape[2] == shape[3]:
        result = "map", shape[1], (shape[2], shape[3]), 0
    elif len(shape) == 4:
        # A square image has a square map, unless the channels are last.
        fix = "export it with a Transpose to (N, D, h, w) at its end"
        raise _unusable(path, "the output is no square map with the channels first", expected, found, fix)
    else:
        raise _unusable(path, "the output is neither a vector, a map nor tokens", expected, found)
    if not 1 <= result[1] <= MOST_FEATURES or 0 in shape:
        fix = "export it with pooling, or name another output after #"
        raise _unusable(path, "the output has an unusable number of features", expected, found, fix)
    return result


def token_grid(tokens: int) -> tuple[int, int] | None:
    """Return the largest square grid of the last tokens, if few tokens are before it; else ``None``."""
    side = math.isqrt(tokens)
    before = tokens - side * side
    return (side, side) if before <= _MOST_PREFIX_TOKENS and before < side * side else None


def _describe(value: Any) -> str:
    kind = str(value.type).removeprefix("tensor(").removesuffix(")")
    return f"{kind} ({', '.join(str(size) for size in value.shape)})"


def _unusable(path: Path, what: str, expected: str, found: str, fix: str = "export it again") -> ModelError:
    return ModelError(what, path=path, expected=expected, found=found, fix=fix)

"""Another decoder than Pillow: files go to it in batches, and how far its pixels and features are off is measured."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Protocol

import numpy as np

from xfeat.featurize.datasets.sources import ImageSource
from xfeat.featurize.engines import Engine
from xfeat.featurize.errors import DeviceError, ImageError, SpecError
from xfeat.featurize.images.decoder_difference import DecoderDifference
from xfeat.featurize.images.jpeg_header import PlainJpeg, plain_jpeg
from xfeat.featurize.images.preprocess import Pixels, load_pixels
from xfeat.featurize.pipeline.reading import ReadImage
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.featurize.system.devices import resolve_devices

logger = logging.getLogger(__name__)

COMPARED_FILES = 16
# Looked at, to find so many that can be compared.
_LOOKED_AT = 8 * COMPARED_FILES
_SUFFIXES = (".jpg", ".jpeg")
_FILES_TOGETHER = 64
# Images that wait for their turn behind files that are not decoded yet.
_HELD_BACK = 256


class Decoder(Protocol):
    """Something other than Pillow that decodes and resizes plain JPEG files."""

    name: str

    def decode(self, files: Sequence[PlainJpeg], side: int) -> list[Pixels | None]:
        """Return uint8 (S, S, 3) of each file, ``None`` where it is refused."""
        ...


def decoder_for(spec: FeatureSpec, *, engine: str = "auto", device: str = "auto") -> Callable[[], Decoder] | None:
    """Return what opens the decoder of ``spec``; ``None`` if that is Pillow.

    Args:
        spec: what is to be computed.
        engine: that was asked for.
        device: that was asked for; the decoder runs on the same.

    Raises:
        SpecError: if there is no such decoder with this engine or device. What it returns raises DeviceError if there
            is no GPU, or none that decodes.
    """
    if spec.decoder == "pillow":
        return None
    if engine not in ("auto", "torch"):
        raise SpecError("nvjpeg belongs to torch", expected="--engine torch", found=f"--engine {engine}")
    if device == "cpu" or "," in device:
        raise SpecError("nvjpeg runs on one GPU", expected="--device cuda or cuda:N", found=f"--device {device}")

    def opened() -> Decoder:
        (name,) = resolve_devices(device)
        if name == "cpu":
            raise DeviceError(
                "nvjpeg runs on a GPU, and there is none",
                expected="an NVIDIA GPU that torch can use",
                fix="decode with --decoder pillow",
            )
        from xfeat.featurize.images.nvjpeg import JpegDecoder

        return JpegDecoder(name)

    return opened


def decoded(images: Iterable[ReadImage], decoder: Decoder, spec: PreprocessSpec) -> Generator[ReadImage, None, None]:
    """Decode the JPEG files among images that were read, many at a time, and yield all in the order given.

    What the decoder refuses is left to Pillow, which may find the reason.
    """
    held: list[ReadImage] = []
    files = refused = 0
    for image in images:
        held.append(image)
        files += image.jpeg is not None
        if files >= _FILES_TOGETHER or len(held) >= _HELD_BACK or not files:
            refused += yield from _decode_together(held, decoder, spec)
            held, files = [], 0
    refused += yield from _decode_together(held, decoder, spec)
    if refused:
        logger.info("%d JPEG files that were refused by %s are decoded by Pillow", refused, decoder.name)


def _decode_together(
    images: Sequence[ReadImage], decoder: Decoder, spec: PreprocessSpec
) -> Generator[ReadImage, None, int]:
    """Yield the images with their pixels; return how many files were refused."""
    found = decoder.decode([image.jpeg for image in images if image.jpeg is not None], spec.size)
    each = iter(found)
    for image in images:
        if image.jpeg is None:
            yield image
            continue
        try:
            pixels = next(each)
            small = load_pixels(image.jpeg.data, spec) if pixels is None else pixels
            yield image._replace(pixels=small[None], jpeg=None)
        except ImageError as error:
            yield ReadImage(image.path, None, None, error.what)
    return sum(pixels is None for pixels in found)


def compare_with_pillow(
    decoder: Decoder, source: ImageSource, paths: Sequence[str], spec: FeatureSpec, engine: Engine
) -> DecoderDifference:
    """Decode files spread over a data set both ways.

    Args:
        decoder: the other one.
        source: the data root.
        paths: relative to it; up to :data:`COMPARED_FILES` of them are compared.
        spec: what is computed.
        engine: computes the features.
    """
    own, theirs = [], []
    named = [path for path in paths if path.lower().endswith(_SUFFIXES)]
    for path in random.Random(0).sample(named, min(len(named), _LOOKED_AT)):
        try:
            jpeg = plain_jpeg(source.read(path)[0])
            pixels = decoder.decode([jpeg], spec.preprocess.size)[0] if jpeg is not None else None
            if jpeg is not None and pixels is not None:
                own.append(load_pixels(jpeg.data, spec.preprocess))
                theirs.append(pixels)
        except ImageError:
            continue
        if len(own) == COMPARED_FILES:
            break
    levels, features = np.zeros(1), np.zeros(1)
    if own:
        levels = np.abs(np.stack(own).astype(np.int16) - np.stack(theirs))
        expected, found = engine.features(np.stack(own)), engine.features(np.stack(theirs))
        features = np.linalg.norm(found - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
    return DecoderDifference(
        decoder=spec.decoder,
        device=decoder.name,
        files=len(own),
        largest_grey_levels=int(levels.max()),
        mean_grey_levels=float(levels.mean()),
        largest_feature=float(features.max()),
        mean_feature=float(features.mean()),
    )

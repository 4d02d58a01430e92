"""Images as Python programs have them: paths, contents of files, images of Pillow, arrays."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from xfeat.featurize.errors import ArgumentError, ImageError, XfeatError
from xfeat.featurize.images.decode import decode, upright
from xfeat.featurize.images.grey_range import GreyRange
from xfeat.featurize.images.levels import DeepLevels, grey_or_rgb, read_deep, scaled_to_8_bits
from xfeat.featurize.images.limits import check_size
from xfeat.featurize.sources.folder import read_file
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.text import printable, quote
from xfeat.featurize.urls import is_url

GivenImage = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

_CONTENT = bytes | bytearray | memoryview
# The same image may be in a list several times, and be loaded by several threads.
_LOADING = threading.Lock()
_KINDS = "paths, contents of image files (bytes), images of Pillow, or arrays"
_SHAPES = "(H, W), (H, W, 3), or (H, W, 2 or 4) with transparency"


def as_images(images: Any) -> list[Any]:
    """Return the images of a list, tuple, array, column of a table or generator, one by one.

    Args:
        images: among others arrays (N, H, W), (N, H, W, C), and pandas' Series and one-column DataFrame.

    Raises:
        ArgumentError: if it is a single image, or nothing that has images in an order.
    """
    if isinstance(images, str | os.PathLike | Image.Image | _CONTENT):
        folder = isinstance(images, str | os.PathLike) and os.path.isdir(images)
        fix = "name its files; xfeat.extract reads folders" if folder else "put it into a list: [image]"
        raise ArgumentError("a single image, where several are expected", expected=f"a list of {_KINDS}", fix=fix)
    if hasattr(images, "shape") and hasattr(images, "__array__"):
        return _of_array(images)
    if isinstance(images, Mapping | Set) or not isinstance(images, Iterable):
        raise ArgumentError("no list of images", expected=f"a list of {_KINDS}", found=_kind(images))
    return list(images)


def _of_array(images: Any) -> list[Any]:
    array = images if isinstance(images, np.ndarray) else np.asarray(images)  # masks are kept
    if array.dtype.kind in "OUST":  # objects and texts
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 1:
            return list(array)
        raise ArgumentError("a table, where one column of images is expected", found=f"an array {array.shape}")
    if array.ndim == 4 or (array.ndim == 3 and array.shape[2] > 4):
        return list(array)
    raise ArgumentError(
        "a single image or features, where several images are expected",
        expected="an array (N, H, W) or (N, H, W, C), or a list",
        found=f"an array {array.shape}",
        fix="put a single image into a list: [image]",
    )


def named(number: int, image: Any) -> str:
    """Return how an image is called in messages: its path, or its place in the list."""
    return printable(image) if isinstance(image, str | os.PathLike) else f"images[{number}]"


def read_given(image: GivenImage, name: str) -> Any:
    """Return the content of the file if it is a path, bytes if it is a content, and everything else as it is.

    Args:
        image: one of those that :func:`as_images` returned.
        name: of it, for messages.

    Raises:
        ImageError: if the file cannot be read.
        ArgumentError: if it is no image.
    """
    if isinstance(image, str) and is_url(image):
        raise ImageError("an address, where a file is expected: download it; xfeat.extract reads addresses")
    if isinstance(image, str | os.PathLike):
        return read_file(os.fspath(image))[0]
    if isinstance(image, _CONTENT):
        return bytes(image)
    if isinstance(image, Image.Image) or (hasattr(image, "shape") and hasattr(image, "__array__")):
        return image
    raise ArgumentError(f"{name}: not an image", expected=_KINDS, found=_kind(image))


def decode_given(content: Any, spec: PreprocessSpec) -> Image.Image:
    """Return what :func:`read_given` gave as an upright image of mode ``L`` or ``RGB``, as :func:`decode` does.

    Arrays and images of Pillow are pixels that are decoded already. Levels of 16 bits are those of the spec's range.

    Raises:
        ImageError: if it cannot be decoded, or black and white are not known.
    """
    if isinstance(content, bytes):
        return decode(content, spec)
    if not isinstance(content, Image.Image):
        return _plain(_array_levels(content), spec)
    with _reasons():
        return upright(content, _plain(_image_levels(content, spec), spec))


def range_of_given(content: Any, spec: PreprocessSpec) -> GreyRange | None:
    """Return the range of levels of 16 bits; ``None`` if it is known, or the image cannot be decoded."""
    if isinstance(content, bytes):
        return GreyRange.of(content, spec)
    try:
        with _reasons():
            levels = _image_levels(content, spec) if isinstance(content, Image.Image) else _array_levels(content)
    except ImageError:  # reported where the image itself is decoded
        return None
    return GreyRange.of_levels(levels, spec) if isinstance(levels, DeepLevels) else None


def _plain(levels: DeepLevels | Image.Image, spec: PreprocessSpec) -> Image.Image:
    return grey_or_rgb(scaled_to_8_bits(levels, spec.grey_bits) if isinstance(levels, DeepLevels) else levels)


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except XfeatError:
        raise
    except Exception as error:  # a closed file, or damage, for which Pillow has many exceptions
        raise ImageError(f"cannot be decoded: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _image_levels(image: Image.Image, spec: PreprocessSpec) -> DeepLevels | Image.Image:
    check_size(*image.size)
    if isinstance(image, ImageFile.ImageFile):
        _require_all_bits(image, spec)
    with _LOADING:
        image.load()
    if isinstance(image, ImageFile.ImageFile) and (deep := read_deep(image, b"", colours=False)) is not None:
        return deep
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "I" and values.size and values.min() >= 0 and values.max() < 1 << 16:
        values = values.astype(np.uint16)
    return _array_levels(values)


def _require_all_bits(image: ImageFile.ImageFile, spec: PreprocessSpec) -> None:
    """Refuse colours of 16 bits, of which Pillow keeps the high ones, where the range is in the low ones."""
    raw = "" if not image.tile else str(image.tile[0].args)
    if spec.grey_bits < 16 and image.mode in ("RGB", "RGBA") and ";16" in raw:
        raise ImageError("colours of 16 bits, of which Pillow keeps 8: give the path of the file")


def _array_levels(values: Any) -> DeepLevels | Image.Image:
    if np.ma.is_masked(values):
        raise ImageError("an array with masked pixels: fill them")
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (2, 3, 4)):
        channels_first = values.ndim == 3 and values.shape[0] in (1, 3, 4)
        hint = "; channels come last: image.transpose(1, 2, 0)" if channels_first else ""
        raise ImageError(f"an array {values.shape}, and not {_SHAPES}{hint}")
    if not values.size:
        raise ImageError(f"an array {values.shape} without pixels")
    check_size(values.shape[1], values.shape[0])
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # not, so that NaN is refused
            raise ImageError(
                f"floating-point levels from {values.min():g} to {values.max():g}; white is known for 0 to 1 only"
            )
        return DeepLevels(values.astype(np.float64), own_bits=16)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of any byte order
        return DeepLevels(np.ascontiguousarray(values, np.uint16))
    if values.dtype == np.bool_:
        return Image.fromarray(values.astype(np.uint8) * 255)
    if values.dtype != np.uint8:
        raise ImageError(
            f"an array of {values.dtype}, of which white is not known: image.astype(numpy.uint8) for levels of 0 to 255"
        )
    return Image.fromarray(np.ascontiguousarray(values))


def _kind(value: Any) -> str:
    return quote(f"{type(value).__name__}: {value!r}")

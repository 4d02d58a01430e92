"""Decodes DICOM files to 8-bit images, as a viewer shows them. Needs the extra ``dicom``."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.featurize.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

_GREY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(data: bytes) -> bool:
    """Tell whether bytes are a DICOM file: the preamble of 128 bytes is followed by ``DICM``."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode a DICOM image: modality LUT, then VOI LUT or window, then MONOCHROME1 inverted.

    Without a window the darkest and lightest values of the image become black and white.

    Args:
        data: content of a DICOM file.
        max_pixels: larger images are refused.

    Returns:
        An image of mode ``L`` or ``RGB``.

    Raises:
        ImageError: if it cannot be decoded, or has several frames; the message is the reason.

    Source: DICOM PS3.3 C.7.6.3.1.2 (photometric interpretation), C.11.1 (modality LUT), C.11.2 (VOI LUT).
    """
    pydicom = _import_pydicom()
    try:
        picture = pydicom.dcmread(io.BytesIO(data))
        photometric = _check_header(picture, max_pixels)
        if photometric in _GREY:
            return _decode_grey(picture, inverted=photometric == "MONOCHROME1")
        return Image.fromarray(np.ascontiguousarray(picture.pixel_array, np.uint8), "RGB")
    except ImageError:
        raise
    except pydicom.errors.InvalidDicomError as error:
        raise ImageError("not a DICOM file") from error
    except Exception as error:
        # On damaged files pydicom and its decoders raise many exceptions, some of their own and without a common base.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ImageError(f"DICOM file cannot be decoded: {reason}") from error


@cache
def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.errors
        import pydicom.pixels
    except ModuleNotFoundError as error:
        raise ImageError("DICOM files need pip install 'xfeat-onnx[dicom]'") from error
    return pydicom


def _check_header(picture: Dataset, max_pixels: int) -> str:
    if "PixelData" not in picture and "FloatPixelData" not in picture:
        raise ImageError("DICOM file without an image")
    if (frames := int(picture.get("NumberOfFrames") or 1)) > 1:
        raise ImageError(f"DICOM file with {frames} frames: save each frame as a separate file")
    rows, columns = int(picture.Rows), int(picture.Columns)
    if rows * columns > max_pixels:
        raise ImageError(f"{columns}×{rows} is more than {max_pixels // 1_000_000} megapixels")
    photometric = str(picture.PhotometricInterpretation)
    if photometric not in _GREY and (photometric.startswith("PALETTE") or int(picture.BitsAllocated) != 8):
        raise ImageError(
            f"DICOM in {photometric} with {picture.BitsAllocated} bits: only grey and 8-bit colour are supported"
        )
    return photometric


def _decode_grey(picture: Dataset, *, inverted: bool) -> Image.Image:
    pixels = _import_pydicom().pixels
    values = pixels.apply_modality_lut(picture.pixel_array, picture)
    shown = np.asarray(pixels.apply_voi_lut(values, picture), np.float64)
    black, white = _shown_range(picture, shown)
    scaled = (shown - black) / (white - black) if white > black else np.zeros_like(shown)
    levels = np.rint(np.clip(np.nan_to_num(scaled), 0.0, 1.0) * 255).astype(np.uint8)
    return Image.fromarray(255 - levels if inverted else levels)


def _shown_range(picture: Dataset, shown: NDArray[Any]) -> tuple[float, float]:
    """Return the values of black and white after :func:`pydicom.pixels.apply_voi_lut`."""
    if picture.get("VOILUTSequence"):
        return 0.0, float(2 ** int(picture.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    if "WindowCenter" in picture and "WindowWidth" in picture:
        # A window maps everything below it to black and everything above to white: ask it about both.
        far = 4.0 * 2.0 ** int(picture.BitsAllocated) * max(1.0, abs(float(picture.get("RescaleSlope") or 1.0)))
        ends = _import_pydicom().pixels.apply_windowing(np.array([-far, far]), picture)
        return float(ends[0]), float(ends[1])
    return float(shown.min()), float(shown.max())

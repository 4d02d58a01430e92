"""Decodes DICOM files to 8-bit images, as a viewer shows them. Needs the extra ``dicom``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom.frame import Frame, decode_frame
from xfeat.featurize.images.dicom.grey import as_index, every_value, extract, grey_levels, read_table
from xfeat.featurize.images.dicom.header import GREY, Layout, import_pydicom, read_dicom

if TYPE_CHECKING:
    from pydicom import Dataset


def decode_dicom(data: bytes, frames: str) -> Image.Image:
    """Decode a DICOM image: grey through its modality LUT, VOI LUT or window; palettes and YCbCr to RGB.

    Args:
        data: content of a DICOM file, with or without preamble and file header.
        frames: ``first`` or ``middle`` of several frames, or ``refuse``.

    Returns:
        An image of mode ``L`` or ``RGB``.

    Raises:
        ImageError: if it cannot be decoded or is no image; the message is the reason.
    """
    try:
        picture, layout = read_dicom(data, frames)
        frame = decode_frame(picture, layout)
        if layout.photometric in GREY:
            return Image.fromarray(grey_levels(frame, picture, layout))
        if layout.photometric == "PALETTE COLOR":
            return Image.fromarray(_palette(frame, picture, layout))
        return _colour(frame)
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many exceptions on damaged files, without a common base
        raise ImageError("DICOM file cannot be read: its tags are damaged or cut off") from error


def _colour(frame: Frame) -> Image.Image:
    values = frame.values
    if frame.stored != 8 or values.dtype != np.uint8:
        white = 2**frame.stored - 1
        values = ((extract(values, frame).astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(values), "YCbCr" if frame.ybr else "RGB")
    return image.convert("RGB")


def _palette(frame: Frame, picture: Dataset, layout: Layout) -> NDArray[np.uint8]:
    every = every_value(frame.values.dtype)
    if every is None:
        raise ImageError("DICOM in PALETTE COLOR with more than 16 bits")
    index = extract(every, frame)
    colours: NDArray[Any]  # 0 … 1
    if "SegmentedRedPaletteColorLookupTableData" in picture:
        colours = import_pydicom().pixels.apply_color_lut(index, picture)[..., :3]
        colours = colours / np.iinfo(colours.dtype).max
    else:
        names = [f"{channel}PaletteColorLookupTable" for channel in ("Red", "Green", "Blue")]
        tables = [read_table(picture, name, layout, negative=layout.signed) for name in names]
        colours = np.stack([table(index.astype(np.float64)) / table.white for table in tables], axis=-1)
    levels: NDArray[np.uint8] = np.rint(colours * 255).astype(np.uint8)[as_index(frame.values)]
    return levels

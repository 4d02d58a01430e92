"""Which picture of a file with several pages or frames is read."""

from __future__ import annotations

import re

from PIL import ImageFile, TiffImagePlugin

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.limits import MAX_DECODED_PIXELS
from xfeat.featurize.images.tiff_tags import is_reduced

# Cameras add previews and depth maps; the file names the picture that is meant.
_ONE_PICTURE = ("MPO", "HEIF")
# Every page takes as long as a small image: a file of a megabyte can have ten thousand.
_MOST_PAGES = 1000
_NEXT_PNM = re.compile(rb"\s*P[1-6]\s")


def frame_number(count: int, name: str, frames: str) -> int:
    """Return which of several pictures is read: the ``first``, the ``middle`` one, or none: ``refuse``.

    Args:
        count: of pictures.
        name: what they are called in the message.
        frames: as :class:`xfeat.featurize.specs.PreprocessSpec` has it.

    Raises:
        ImageError: if there are several and ``refuse``.
    """
    if count > 1 and frames == "refuse":
        raise ImageError(f"{count} {name}, not one picture: xfeat featurize --frames first (or middle) reads one")
    return count // 2 if frames == "middle" else 0


def choose_frame(image: ImageFile.ImageFile, data: bytes, frames: str) -> None:
    """Go to the picture to be read.

    Thumbnails, levels of a pyramid and masks, which TIFF files mark as such, do not count.

    Args:
        image: as Pillow opened it.
        data: content of its file.
        frames: as above.

    Raises:
        ImageError: if there are several and ``refuse``, or too many.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        pages = _pages(image, only_first=frames == "first")
        image.seek(pages[frame_number(len(pages), "pages", frames)])
    elif image.format == "PPM" and frames != "first" and _has_next_pnm(image, data):
        raise ImageError("several pictures, one after another: xfeat featurize --frames first reads one")
    elif image.format not in _ONE_PICTURE and getattr(image, "is_animated", False):
        count = int(getattr(image, "n_frames", 1))
        number = frame_number(count, "frames", frames)
        if number * image.width * image.height > MAX_DECODED_PIXELS:  # they build on one another
            raise ImageError(f"{count} frames of {image.width}×{image.height} pixels: the middle one takes too long")
        image.seek(number)


def _pages(image: TiffImagePlugin.TiffImageFile, *, only_first: bool) -> list[int]:
    """Return the pages that are pictures of their own; refuse a file with too many of them."""
    pages: list[int] = []
    for page in range(10 * _MOST_PAGES):
        try:
            image.seek(page)
        except EOFError:
            break
        if not is_reduced(image.tag_v2):
            pages.append(page)
        if only_first and pages:
            break
        if len(pages) > _MOST_PAGES:
            raise ImageError(f"more than {_MOST_PAGES} pages: save one of them as a file")
    return pages or [0]


def _has_next_pnm(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Tell whether another header follows the pixels of a PNM file in its binary forms."""
    tile = image.tile[0]
    if tile.codec_name == "ppm_plain":
        return False
    is_wide = ";16" in tile.args if isinstance(tile.args, str) else bool(tile.args and tile.args[1] > 255)
    row = (image.width + 7) // 8 if image.mode == "1" else image.width * len(image.getbands()) * (1 + is_wide)
    return _NEXT_PNM.match(data, tile.offset + row * image.height) is not None

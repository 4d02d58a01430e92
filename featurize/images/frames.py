"""Which picture of a file with several pages or frames is read."""

from __future__ import annotations

from PIL import Image, TiffImagePlugin

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.tiff_tags import is_reduced

# Cameras add previews and depth maps; the file names the picture that is meant.
_ONE_PICTURE = ("MPO", "HEIF")


def choose_frame(image: Image.Image, frames: str, *, most_pixels: float) -> None:
    """Go to the picture to be read.

    Thumbnails, levels of a pyramid and masks, which TIFF files mark as such, do not count.

    Args:
        image: as Pillow opened it.
        frames: ``first``, ``middle``, or ``refuse``: as :class:`xfeat.featurize.specs.PreprocessSpec` has it.
        most_pixels: that may be decoded on the way to the frame: those of an animation build on one another.

    Raises:
        ImageError: if there are several and ``refuse``.
    """
    if image.format in _ONE_PICTURE or not getattr(image, "is_animated", False):
        return
    pages = list(range(getattr(image, "n_frames", 1)))
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        pages = [page for page in pages if not _is_reduced(image, page)] or [0]
    if len(pages) > 1 and frames == "refuse":
        name = "pages" if image.format == "TIFF" else "frames"
        raise ImageError(f"{len(pages)} {name}, not one picture: xfeat featurize --frames first (or middle) reads one")
    page = pages[len(pages) // 2 if frames == "middle" else 0]
    if image.format != "TIFF" and page * image.width * image.height > most_pixels:
        raise ImageError(f"frame {page} of {len(pages)} with {image.width}×{image.height} pixels takes too long")
    image.seek(page)


def _is_reduced(image: TiffImagePlugin.TiffImageFile, page: int) -> bool:
    image.seek(page)
    return is_reduced(image.tag_v2)

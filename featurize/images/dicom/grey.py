"""From the stored values of a DICOM image to the grey levels that a viewer shows: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom.frame import Frame
from xfeat.featurize.images.dicom.header import Layout, numbers

if TYPE_CHECKING:
    from pydicom import Dataset

Floats = NDArray[np.float64]
# Rows of the image go through the floating point formulas in parts of this many pixels: memory stays small.
_PART = 1 << 20


@dataclass(frozen=True)
class LookupTable:
    """A lookup table of DICOM (modality, VOI or palette).

    Args:
        first: the value that maps to the first entry; smaller values map there too, larger ones to the last.
        entries: the results.
        white: largest result that the table's bits allow.
    """

    first: int
    entries: NDArray[np.uint16]
    white: int

    def __call__(self, values: Floats) -> Floats:
        """Map values, any shape, to results of the same shape."""
        index = np.clip(np.rint(np.nan_to_num(values)) - self.first, 0, len(self.entries) - 1)
        found: Floats = self.entries[index.astype(np.int64)].astype(np.float64)
        return found


def read_table(item: Dataset, name: str, layout: Layout, *, negative: bool) -> LookupTable:
    """Read a lookup table of any depth.

    Args:
        item: the data set that holds it.
        name: what the keywords of its descriptor and of its entries begin with.
        layout: gives the byte order of words that are stored as bytes.
        negative: values may be below zero; then a large first value is a negative one.

    Raises:
        ImageError: if it has no entries or no bits.

    Source: DICOM PS3.3 C.11.1.1.1, C.11.2.1.1 and C.7.6.3.1.5.
    """
    described = [int(value) for value in numbers(item, f"{name}Descriptor")]
    content = item.get(f"{name}Data")
    if len(described) != 3 or not content or not 1 <= described[2] <= 16:
        raise ImageError(f"DICOM lookup table {name}Data without entries or a usable {name}Descriptor")
    count, first, bits = described[0] % 65536 or 65536, described[1], described[2]
    if isinstance(content, bytes):
        words = np.frombuffer(content + bytes(len(content) % 2), ">u2" if layout.big_endian else "<u2")
    else:
        words = np.atleast_1d(np.asarray(content, np.int64)) & 0xFFFF
    entries = words.astype("<u2")
    if 2 * len(entries) <= count + 1:  # two entries of 8 bits in a word
        entries = entries.view(np.uint8).astype(np.uint16)
    entries = entries[:count]
    first = first - 65536 if negative and first > 32767 else first
    return LookupTable(first, entries, max(2**bits - 1, int(entries.max())))


def extract(values: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """Return only the bits that count, with their sign; other bits may hold anything, overlays too."""
    if values.dtype.kind == "f":
        return values
    bits = values.dtype.itemsize * 8
    return (values << (bits - 1 - frame.high)) >> (bits - frame.stored)


@np.errstate(over="ignore", invalid="ignore")  # a narrow window far from the values; infinite floats
def grey_levels(frame: Frame, picture: Dataset, layout: Layout) -> NDArray[np.uint8]:
    """Turn stored values into grey levels: modality LUT, VOI LUT or window, MONOCHROME1 inverted.

    Without a window, the darkest and lightest values that are no padding become black and white. Padding is black.

    Args:
        frame: values (rows, columns).
        picture: the tags.
        layout: how the pixels are stored.

    Returns:
        Array of the same shape.

    Raises:
        ImageError: if a tag is no number, or a table is unusable.

    Source: DICOM PS3.3 C.7.6.3.1.2 (photometric interpretation), C.7.5.1.1.2 (padding), C.11.1 (modality LUT),
    C.11.2 (VOI LUT).
    """
    modality, voi, is_padding = _modality(picture, layout), _voi(picture, layout), _padding(picture, layout)

    def rescaled(stored: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
        values = extract(stored, frame)
        background = is_padding(stored) | is_padding(values) | ~np.isfinite(values)
        return modality(values.astype(np.float64)), background

    flat = frame.values.reshape(-1)
    parts = [flat[start : start + _PART] for start in range(0, len(flat), _PART)]
    every = every_value(flat.dtype)
    if voi is None:
        voi = _full_range(map(rescaled, parts if every is None else [_present(every, parts)]))

    def levels(stored: NDArray[Any]) -> NDArray[np.uint8]:
        values, background = rescaled(stored)
        scaled = np.clip(np.nan_to_num(voi(values)), 0.0, 1.0)
        if layout.photometric == "MONOCHROME1":
            scaled = 1.0 - scaled
        return np.where(background, 0, np.rint(scaled * 255)).astype(np.uint8)

    if every is None:
        done = [levels(part) for part in parts]
    else:
        table = levels(every)
        done = [table[as_index(part)] for part in parts]
    return np.concatenate(done).reshape(frame.values.shape)


def every_value(kind: np.dtype[Any]) -> NDArray[Any] | None:
    """Return all values of an integer type of at most 16 bits, at their index; ``None`` for other types.

    Formulas then run once for each.
    """
    if kind.kind not in "iu" or kind.itemsize > 2:
        return None
    return np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)


def as_index(values: NDArray[Any]) -> NDArray[Any]:
    """Return the places of integers among those of :func:`every_value`."""
    return values.view(f"u{values.dtype.itemsize}")


def _present(every: NDArray[Any], parts: list[NDArray[Any]]) -> NDArray[Any]:
    found = np.zeros(len(every), np.bool_)
    for part in parts:
        found[as_index(part)] = True
    return every[found]


def _table_item(picture: Dataset, keyword: str) -> Dataset | None:
    """Return the first table of a sequence; one without entries is none."""
    item = next(iter(picture.get(keyword) or []), None)
    return item if item and item.get("LUTData") else None


def _modality(picture: Dataset, layout: Layout) -> Callable[[Floats], Floats]:
    if item := _table_item(picture, "ModalityLUTSequence"):
        return read_table(item, "LUT", layout, negative=layout.signed)
    slope, intercept = numbers(picture, "RescaleSlope")[:1], numbers(picture, "RescaleIntercept")[:1]
    # As in pydicom and dcmtk, one without the other is none, and a slope of 0 would make every image black.
    if not slope or not intercept or slope[0] == 0:
        return lambda values: values
    if not np.isfinite(slope[0] * 2.0**64):
        raise ImageError(f"DICOM tag RescaleSlope is out of range: {slope[0]:g}")
    return lambda values: values * slope[0] + intercept[0]


def _voi(picture: Dataset, layout: Layout) -> Callable[[Floats], Floats] | None:
    """Return the file's mapping to 0 (black) … 1 (white): its VOI LUT, else its first window that is one, else none."""
    if item := _table_item(picture, "VOILUTSequence"):
        negative = layout.signed or any(value < 0 for value in numbers(picture, "RescaleIntercept"))
        table = read_table(item, "LUT", layout, negative=negative)
        return lambda values: table(values) / table.white
    function = str(picture.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(f"DICOM window of the unknown form {function[:40]}: LINEAR, LINEAR_EXACT and SIGMOID are read")
    smallest = 1.0 if function == "LINEAR" else np.finfo(float).tiny
    centers, widths = (numbers(picture, keyword, empty=np.nan) for keyword in ("WindowCenter", "WindowWidth"))
    usable = [(c, w) for c, w in zip(centers, widths, strict=False) if w >= smallest and c == c]
    return _window(function, *usable[0]) if usable else None


def _window(function: str, center: float, width: float) -> Callable[[Floats], Floats]:
    """Source: DICOM PS3.3 C.11.2.1.2.1 and C.11.2.1.3."""
    if function == "SIGMOID":
        return lambda values: 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -500.0, 500.0)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return lambda values: (values > center).astype(np.float64)
    return lambda values: (values - center) / width + 0.5


def _full_range(parts: Iterable[tuple[Floats, NDArray[np.bool_]]]) -> Callable[[Floats], Floats]:
    """Return the mapping for images without a window: from the values of the picture that are no padding."""
    black, white = np.inf, -np.inf
    for values, background in parts:
        black = min(black, values.min(where=~background, initial=np.inf))
        white = max(white, values.max(where=~background, initial=-np.inf))
    span = white - black if white > black else np.inf
    return lambda values: (values - black) / span


def _padding(picture: Dataset, layout: Layout) -> Callable[[NDArray[Any]], NDArray[np.bool_]]:
    """Return what tells padding from pixels, among stored values with or without their unused bits.

    A negative padding value may be written as an unsigned number, and outside of the bits that are stored.
    """
    kinds = ("PixelPadding", "FloatPixelPadding", "DoubleFloatPixelPadding")
    found = [(numbers(picture, f"{kind}Value"), numbers(picture, f"{kind}RangeLimit")) for kind in kinds]
    ends = next(([*value[:1], *limit[:1]] for value, limit in found if value), None)
    if ends is None:
        return lambda values: np.zeros(values.shape, np.bool_)
    half = 2 ** (layout.allocated - 1)
    if layout.signed:
        ends = [(end + half) % (2 * half) - half for end in ends]
    elif layout.allocated <= 16:
        ends = [end + 2 * half if end < 0 else end for end in ends]
    low, high = min(ends), max(ends)
    return lambda values: (values >= low) & (values <= high)

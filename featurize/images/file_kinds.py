"""Tells from the first bytes of a file what it is: a kind of image that is read here, or something else."""

from __future__ import annotations

import codecs
import re
import struct
from contextlib import suppress
from typing import Literal

HEAD_BYTES = 512
"""So many bytes decide."""

# What xfeat can read. BMP's header has four zero bytes and one of few lengths; "BM" alone begins many a text.
_IMAGES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"II[*+]\0|MM\0\*", "TIFF"),
    (rb"RIFF.{4}WEBP", "WebP"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"P[1-6]\s+(#|\d)", "PNM"),
    (rb".{4}ftyp.{0,60}avi[fs]", "AVIF"),
    (rb".{4}ftyp(.{4}){0,15}(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC"),
)
# What people also have under the name of an image.
_OTHERS = (
    (rb"\0+$", "only zeros"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"II\xbc", "JPEG XR"),
    (rb"MM\0\+", "BigTIFF with big-endian numbers"),
    (rb"\xff\xd8", "damaged JPEG"),
    (rb"\x89PNG", "damaged PNG"),
    (rb"8BPS", "Photoshop file"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"\0\0[\x01\x02]\0.\0", "Windows icon"),
    (rb"P7\s", "PAM"),
    (rb"P[Ff]\s", "floating-point PNM"),
    (rb".{4}ftyp", "video, or a picture in another MP4 container"),
    (rb"RIFF.{4}(AVI |WAVE)", "AVI or WAV"),
    (rb"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (rb"PK\x03\x04", "zip archive"),
    (rb"\x1f\x8b", "gzip archive (NIfTI images often are)"),
    (rb"7z\xbc\xaf", "7z archive"),
    (rb"Rar!", "RAR archive"),
    (rb"\x5c\x01\0\0.{340}(ni1|n\+1)\0|\0\0\x01\x5c.{340}(ni1|n\+1)\0", "NIfTI"),
    (rb"NRRD", "NRRD"),
    (rb"ObjectType|NDims", "MetaImage header"),
    (rb"SIMPLE  =", "FITS"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?RADIANCE", "Radiance HDR"),
    (rb"qoif", "QOI"),
    (rb"FUJIFILMCCD-RAW|IIRO|IIRS|IIU\0", "camera raw"),
    (rb"\x93NUMPY", "NumPy array"),
    (rb"MATLAB", "MATLAB file"),
    (rb"\x89HDF", "HDF5"),
    (rb"version https://git-lfs", "Git LFS pointer: run git lfs pull"),
    (rb"(?i)\s*(<!doctype html|<html)", "HTML page"),
    (rb"(?i)\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", "SVG"),
    (rb"(?i)\s*<\?xml", "XML"),
    (rb'(?i)\s*[{\[]\s*["{\[\]}]', "JSON"),
    (rb"\x7fELF|MZ", "program"),
)
# Source: DICOM PS3.5 6.2, value representations.
_VRS = set(re.findall("..", "AEASATCSDADSDTFDFLISLOLTOBODOFOLOVOWPNSHSLSQSSSTSVTMUCUIULUNURUSUTUV"))
_LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
_FIRST_GROUPS = {0x0002, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028}


def image_kind(head: bytes) -> str:
    """Return the name of a kind of image that xfeat reads, from the beginning of a file; empty if it is none."""
    return "DICOM" if is_dicom(head) else _first_match(_IMAGES, head)


def may_be_deep(head: bytes) -> bool:
    """Tell whether a file can hold more than 8 bits per channel in a range that it does not state."""
    kind = image_kind(head)
    return head[24:25] == b"\x10" if kind == "PNG" else kind in ("TIFF", "JPEG 2000", "PNM")


def describe_kind(head: bytes) -> str:
    """Return what a file that is no readable image is, such as ``HTML page``, ``text`` or ``unknown kind of file``.

    Args:
        head: its first :data:`HEAD_BYTES` bytes.
    """
    head = head[:HEAD_BYTES]
    if name := _first_match(_OTHERS, head):
        return name
    with suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
        if all(letter.isprintable() or letter.isspace() for letter in text.removeprefix("\ufeff")):
            return "text"
    return "unknown kind of file"


def _first_match(table: tuple[tuple[bytes, str], ...], head: bytes) -> str:
    return next((name for pattern, name in table if re.match(pattern, head, re.DOTALL)), "")


def is_dicom(data: bytes) -> bool:
    """Tell whether bytes are a DICOM file.

    Args:
        data: at least the first 132 bytes of a file. Either ``DICM`` follows a preamble of 128 bytes, or the file
            starts with its tags, as data sets without a file header do.
    """
    return data[128:132] == b"DICM" or _starts_with_tags(data, "little") or _starts_with_tags(data, "big")


def _starts_with_tags(data: bytes, order: Literal["little", "big"]) -> bool:
    """Tell whether data begin with two tags of DICOM's first groups in ascending order, and plausible lengths."""
    position, previous = 0, (0, 0)
    while position + 8 <= len(data):
        tag = struct.unpack_from("<HH" if order == "little" else ">HH", data, position)
        vr = data[position + 4 : position + 6].decode("latin-1")
        explicit = vr in _VRS
        length_at, width = (position + 4, 4) if not explicit else (position + 6, 2)
        if vr in _LONG_VRS:
            length_at, width = position + 8, 4
        length = int.from_bytes(data[length_at : length_at + width], order)
        first_groups = {2, 8} if previous == (0, 0) else _FIRST_GROUPS
        if tag[0] not in first_groups or tag <= previous or (length % 2 and vr != "SQ") or length > 1 << 16:
            return False
        if previous != (0, 0):
            return True
        previous, position = tag, length_at + width + length
    return previous != (0, 0) and len(data) >= 132

"""What a report takes from the DICOM image it is about: identity, patient and study, and the picture."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from PIL import Image

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.images.dicom.header import read_dicom
from xfeat.featurize.images.file_kinds import is_dicom
from xfeat.featurize.specs import PreprocessSpec

# Dataset of pydicom, which is optional.
Dataset = Any

MANUFACTURER = "xfeat"
NOT_DICOM = "not a DICOM file"
OWN_HEATMAP = "made by xfeat itself"
# What refers to an image, and puts a report beside it.
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# Type 2 of the modules Patient and General Study: there in every object, empty if they are not known.
_EMPTY_IF_UNKNOWN = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
# highdicom copies the attributes of patient and study that a class has. They are the same for all images, but it does
# not know the classes of vendors and retired ones. Source: DICOM PS3.6, Secondary Capture Image Storage.
ANY_IMAGE = "1.2.840.10008.5.1.4.1.1.7"
_PIXELS = 0x7FE00000
_OWN = "xfeat/dicom-sr/1"


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """A DICOM image, as far as a report needs it.

    Attributes:
        header: its tags as text, without pixels and private tags; what puts it into its study is complete.
        reference: a data set with the UIDs of the image and nothing else known: what highdicom may read, and log.
        frame: number of the frame that was classified, from 1; ``None`` of an image with one frame.
        picture: what the model was shown, uncut: 8-bit grey or RGB.
        pixels_sha256: of the picture.
    """

    header: Dataset
    reference: Dataset
    frame: int | None
    picture: Image.Image
    pixels_sha256: str

    @property
    def instance_number(self) -> int:
        """Return the number of the image in its series, or 1: that of an object made from it."""
        number = str(self.header.get("InstanceNumber") or "")
        return int(number) if number.isdecimal() and 1 <= int(number) < 1 << 31 else 1

    def uid(self, *parts: str) -> str:
        """Return the UID of an object made from this image: the same for the same parts and pixels."""
        return stable_uid(self.header.SOPInstanceUID, self.pixels_sha256, *parts)


def stable_uid(*parts: str) -> str:
    """Return a DICOM UID that depends on these texts only.

    Source: DICOM PS3.5 B.2, UIDs derived from UUIDs.
    """
    return f"2.25.{uuid5(NAMESPACE_URL, chr(10).join((_OWN, *parts))).int}"


def read_source(content: bytes, spec: PreprocessSpec) -> SourceImage:
    """Read a DICOM image that a model has classified.

    Args:
        content: of the file.
        spec: how the model reads images.

    Raises:
        ImageError: if it is no DICOM image, or cannot be referred to; ``what`` is the reason.
    """
    if not is_dicom(content):
        raise ImageError(NOT_DICOM)
    picture = decode(content, spec)
    tags, layout = read_dicom(content, spec.frames)
    header = _readable(tags)
    if header.get("Manufacturer") == MANUFACTURER:  # the folder of reports may be in that of the images
        raise ImageError(OWN_HEATMAP)
    uids = {keyword: header.get(keyword) for keyword in _IDENTITY}  # of several values, pydicom makes a list
    if missing := [keyword for keyword, uid in uids.items() if not uid or not isinstance(uid, str)]:
        raise ImageError(f"DICOM file without one {', '.join(missing)}, which a report must refer to")
    reference = type(header)()
    for keyword, uid in uids.items():
        setattr(reference, keyword, uid)
    for keyword in _EMPTY_IF_UNKNOWN:
        setattr(reference, keyword, "")
        if keyword not in header:
            setattr(header, keyword, "")
    header.SOPClassUID = ANY_IMAGE
    return SourceImage(
        header=header,
        reference=reference,
        frame=layout.frame + 1 if layout.frames > 1 else None,
        picture=picture,
        pixels_sha256=hashlib.sha256(picture.tobytes() + repr((picture.mode, picture.size)).encode()).hexdigest(),
    )


def _readable(tags: Dataset) -> Dataset:
    """Return the tags whose values can be read, as text that can be written in UTF-8."""
    import pydicom

    header = pydicom.Dataset()
    implicit, little_endian = tags.original_encoding
    header.set_original_encoding(implicit, little_endian, tags.original_character_set)
    for tag in tags.keys():  # noqa: SIM118  # iterating reads the values
        if tag < _PIXELS:
            with suppress(Exception):  # whatever pydicom raises for a value that its type does not allow
                if tags[tag].VR != "SQ" or tags[tag].value:  # vendors write sequences without items
                    header[tag] = tags[tag]
    header.remove_private_tags()  # also those in sequences, which highdicom copies whole
    header.decode()
    return header

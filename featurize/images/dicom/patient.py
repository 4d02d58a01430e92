"""Reads what a DICOM file says of its patient, device and examination, from the tags before its pixels."""

from __future__ import annotations

import io
import warnings
import zlib
from typing import Any

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.dicom.header import import_pydicom

TAGS = (
    "PatientID",
    "PatientSex",
    "PatientAge",
    "ViewPosition",
    "Modality",
    "Manufacturer",
    "InstitutionName",
    "StudyDate",
)
HEAD_BYTES = 1 << 16  # the tags are among the first of a file; a large private one may come before them
_LAST_TAG = 0x00185101  # ViewPosition
_INFLATED_BYTES = 1 << 20


def read_patient_tags(data: bytes) -> dict[str, str]:
    """Return the values of :data:`TAGS` that are there and not empty, as they are written.

    Args:
        data: the content of a DICOM file, or the beginning of it.

    Raises:
        ImageError: if it cannot be read, or ends before the last of these tags, or pydicom is not installed.
    """
    pydicom = import_pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break the standard: they are taken as they are
            found = _read(pydicom, data)
            return {name: text for name in TAGS if (text := _text(found.get(name)))}
    except Exception as error:
        raise ImageError("the tags of this DICOM file cannot be read") from error


def _read(pydicom: Any, data: bytes) -> Any:
    reached: list[int] = []

    def is_behind(tag: int, _vr: str | None, _length: int) -> bool:
        reached.append(tag)
        return tag > _LAST_TAG

    wanted = [pydicom.tag.Tag(name) for name in TAGS]
    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[file.tell() :], _INFLATED_BYTES)
        found = pydicom.filereader.read_dataset(
            io.BytesIO(body), False, True, stop_when=is_behind, specific_tags=wanted
        )
    else:
        found = pydicom.filereader.read_partial(io.BytesIO(data), is_behind, force=True, specific_tags=wanted)
    if not reached or reached[-1] <= _LAST_TAG:
        raise EOFError
    return found


def _text(value: Any) -> str:
    if isinstance(value, list) or type(value).__name__ == "MultiValue":
        return "\\".join(map(str, value)).strip()
    return "" if value is None else str(value).strip(" \0")

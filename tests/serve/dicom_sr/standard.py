"""dicom-validator without the DICOM standard from the internet: its tables, made of those that highdicom ships.

Both come from PS3.3. highdicom's have modules, attributes and their types. Other conditions than those below, and
enumerated values, are not in them, and are left to dciodvfy.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from pydicom.datadict import DicomDictionary, tag_for_keyword

# Source: DICOM PS3.3 C.17.3.2 and C.18: what a content item of a value type must have, and no other may.
_OF_VALUE_TYPE = {
    "ConceptCodeSequence": ["CODE"],
    "ContinuityOfContent": ["CONTAINER"],
    "GraphicData": ["SCOORD", "SCOORD3D"],
    "GraphicType": ["SCOORD", "SCOORD3D"],
    "MeasuredValueSequence": ["NUM"],
    "ReferencedFrameOfReferenceUID": ["SCOORD3D"],
    "ReferencedSOPSequence": ["IMAGE", "COMPOSITE", "WAVEFORM"],
    "TabulatedValuesSequence": ["TABLE"],
    "TemporalRangeType": ["TCOORD"],
    "TextValue": ["TEXT"],
    "UID": ["UIDREF"],
}


def _table(name: str) -> Any:
    return json.loads(files("highdicom").joinpath(f"_standard/{name}.json").read_text())


def _tag(number: int) -> str:
    return f"({number >> 16:04X},{number & 0xFFFF:04X})"


def _module(name: str, attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """Nest the attributes of a module by the sequences that they are in."""
    module: dict[str, Any] = {}
    for attribute in attributes:
        level = module
        for keyword in attribute["path"]:
            level = level.setdefault(_tag(tag_for_keyword(keyword) or 0), {"type": "3"}).setdefault("items", {})
        if (number := tag_for_keyword(attribute["keyword"])) is not None:
            entry = level.setdefault(_tag(number), {})
            entry |= {"name": attribute["keyword"], "type": attribute["type"]}
    if name == "sr-document-content":  # a content item has content items
        for keyword, values in _OF_VALUE_TYPE.items():
            condition = {"type": "MN", "tag": _tag(0x0040A040), "op": "=", "values": values, "index": 0}
            module[_tag(tag_for_keyword(keyword) or 0)] |= {"type": "1C", "cond": condition}
        relationship = {"name": "RelationshipType", "type": "1"}
        module[_tag(0x0040A730)]["items"] = {_tag(0x0040A010): relationship, "include": [{"ref": name}]}
    return module


@cache
def standard() -> Any:
    """Return the tables that dicom-validator makes of the standard."""
    from dicom_validator.validator.dicom_info import DicomInfo

    modules = {name: _module(name, attributes) for name, attributes in _table("module_attribute_map").items()}
    iods = _table("iod_module_map")
    return DicomInfo(
        {_tag(number): {"name": entry[2], "vr": entry[0], "vm": entry[1]} for number, entry in DicomDictionary.items()},
        {
            uid: {
                "title": iod,
                "modules": {each["key"]: {"ref": each["key"], "use": each["usage"]} for each in iods[iod]},
                "group_macros": {},
            }
            for uid, iod in _table("sop_class_iod_map").items()
        },
        modules,
    )


def errors_of(path: str) -> list[str]:
    """Return what dicom-validator finds in a file."""
    from dicom_validator.validator.dicom_file_validator import DicomFileValidator
    from dicom_validator.validator.validation_result import Status

    result = DicomFileValidator(standard(), log_level=40).validate_file(path)[path]
    found = result.module_errors or {}
    texts = [f"{module} {tag}: {error.code}" for module, errors in found.items() for tag, error in errors.items()]
    return texts if result.status in (Status.Passed, Status.Failed) else [str(result.status), *texts]

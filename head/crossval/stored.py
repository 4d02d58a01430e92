"""Reads the result of a cross-validation, if it is as it was saved. Imports no torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypedDict

from xfeat.featurize.errors import RunError
from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import check_types, parse_json, require_unchanged
from xfeat.head.crossval.out_of_fold import FoldAccuracy
from xfeat.head.crossval.report import CROSSVAL_FILE, FORMAT, SCHEMA_VERSION
from xfeat.head.runs.digests import read_unchanged
from xfeat.head.runs.reader import PREDICTIONS_FILE, REPORT_FILE

logger = logging.getLogger(__name__)

_FIX = "cross-validate again with xhead crossval"


class StoredCrossval(TypedDict):
    """What is read back of a cross-validation; ``file_sha256`` is empty in those of version 0.1."""

    name: str
    accuracy: FoldAccuracy
    file_sha256: dict[str, str]


def find_crossvals(runs: Path) -> list[StoredCrossval]:
    """Read all cross-validations in a folder; those that are not as they were saved are left out with a warning."""
    found = []
    for file in sorted(runs.glob(f"*/{CROSSVAL_FILE}")):
        if file.parent.name.startswith("."):
            continue  # it is being written
        try:
            found.append(open_crossval(file.parent))
        except RunError as error:
            logger.warning("left out: %s", error)
    return found


def open_crossval(folder: Path) -> StoredCrossval:
    """Read crossval.json, and compare it and the files beside it with their digests.

    Raises:
        RunError: if it is missing, damaged or of another version, or a file has changed.
    """
    file = folder / CROSSVAL_FILE
    try:
        facts = parse_json(read_regular(file))
        if (found := (facts["format"], facts["schema_version"])) != (FORMAT, SCHEMA_VERSION):
            raise ValueError(f"{found[0]} version {found[1]}, and not {FORMAT} version {SCHEMA_VERSION}")
        require_unchanged(facts)
        stored = StoredCrossval(name=folder.name, accuracy=facts["accuracy"], file_sha256=facts.get("file_sha256", {}))
        check_types(stored, StoredCrossval)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError("damaged crossval.json", path=file, found=str(error), fix=_FIX) from error
    for name in stored["file_sha256"].keys() & {PREDICTIONS_FILE, REPORT_FILE}:
        digest = stored["file_sha256"][name]
        read_unchanged(folder / name, digest, subject="this file of the cross-validation is", fix=_FIX)
    return stored

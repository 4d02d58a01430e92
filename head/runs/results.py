"""Reads the JSON file of a finished result, such as a cross-validation, if it and the files beside it are as saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import RunError
from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import parse_json, require_unchanged
from xfeat.head.runs.digests import read_unchanged


def read_result(file: Path, format_name: str, version: int, *, beside: Sequence[str], fix: str) -> dict[str, Any]:
    """Return the content of a result's JSON file, of which it and the files ``beside`` it have their digests.

    Args:
        file: the JSON file.
        format_name: that it must have.
        version: of the schema.
        beside: names of files in the same folder, which are compared if the result has their digests.
        fix: for the message.

    Raises:
        RunError: if it is missing, damaged or of another version, or a file has changed.
    """
    try:
        facts: dict[str, Any] = parse_json(read_regular(file))
        if (found := (facts["format"], facts["schema_version"])) != (format_name, version):
            raise ValueError(f"{found[0]} version {found[1]}, and not {format_name} version {version}")
        require_unchanged(facts)
        digests = dict(facts.get("file_sha256", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, error, fix=fix) from error
    for name in digests.keys() & set(beside):
        read_unchanged(file.parent / name, digests[name], subject="this file of the result is", fix=fix)
    return facts


def damaged(file: Path, error: Exception, *, fix: str) -> RunError:
    """Return the error for a result that cannot be used."""
    return RunError(f"damaged {file.name}", path=file, found=str(error), fix=fix)

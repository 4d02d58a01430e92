"""The file beside a cache that holds the result of ``xfeat audit``: its path, its format, and how it is read."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypedDict

from xfeat.featurize.cache.extra import columns_digest
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import check_types, parse_json, require_unchanged

logger = logging.getLogger(__name__)

FORMAT = "xfeat.audit"
SCHEMA_VERSION = 1


FOUND, NONE_FOUND, NOT_CHECKED = "found", "none found", "not checked"
_SHORTCUT_KINDS = {"shortcut", "columns.class", "columns.shortcut"}
_CONTROL = "features"  # the probe that is given the whole image


class Verdicts(TypedDict):
    """What an audit says of the two things that it is for: each ``found``, ``none found`` or ``not checked``."""

    leakage: str
    shortcuts: str


class _Result(TypedDict):
    passed: bool
    failures: list[str]
    warnings: list[str]
    verdicts: Verdicts


def verdicts_of(kinds: Collection[str], probes: Collection[str], *, passed: bool) -> Verdicts:
    """Return the verdicts of an audit, also of one of an earlier version: they follow from what was found.

    Args:
        kinds: of its findings.
        probes: names of what the label was predicted from.
        passed: no image or group is in two splits.
    """
    leakage = FOUND if not passed else NOT_CHECKED if "splits.none" in kinds else NONE_FOUND
    if _SHORTCUT_KINDS & set(kinds):
        return Verdicts(leakage=leakage, shortcuts=FOUND)
    return Verdicts(leakage=leakage, shortcuts=NONE_FOUND if set(probes) - {_CONTROL} else NOT_CHECKED)


def audit_path(cache: Path) -> Path:
    """Return the path of the audit of a cache: features.audit.json for features.h5."""
    return cache.with_suffix(".audit.json")


def audit_of(cache: FeatureCache) -> dict[str, Any]:
    """Return ``audited``, ``passed``, ``failures``, ``warnings`` and ``verdicts``; warn unless nothing was found.

    An audit of another content of the cache, or of other columns, counts as missing.
    """
    file = audit_path(cache.path)
    try:
        report = parse_json(read_regular(file))
        if (report["format"], report["schema_version"]) != (FORMAT, SCHEMA_VERSION):
            raise ValueError(f"{report['format']} version {report['schema_version']}")
        require_unchanged(report)
        kinds = [finding["kind"] for finding in report.get("findings", [])]
        probes = [probe["name"] for probe in report.get("shortcuts", [])]
        found = _Result(
            passed=report["passed"],
            failures=report["failures"],
            warnings=report.get("warnings", []),
            verdicts=verdicts_of(kinds, probes, passed=report["passed"]),
        )
        check_types(found, _Result)
        same_columns = report.get("columns_sha256", "") == columns_digest(cache.extra)
        is_current = report["cache_sha256"] == cache.content_sha256 and same_columns
        problem = f"{file} is outdated: it was made for other features or columns than those in {cache.path}"
    except FileNotFoundError:
        is_current, problem = False, f"{cache.path} has not been audited for leakage and shortcuts"
    except (OSError, ValueError, KeyError, TypeError) as error:
        is_current, problem = False, f"{file} cannot be read ({error})"
    if not is_current:
        logger.warning("%s: xfeat audit %s", problem, cache.path)
        verdicts = Verdicts(leakage=NOT_CHECKED, shortcuts=NOT_CHECKED)
        return {"audited": False, "passed": None, "failures": [], "warnings": [], "verdicts": verdicts}
    if not found["passed"]:
        logger.warning("%s: the audit found leakage: %s", cache.path, "; ".join(found["failures"]))
    if found["verdicts"]["shortcuts"] == FOUND:
        logger.warning("%s: the audit found shortcuts: see %s", cache.path, file.with_suffix(".html"))
    return {"audited": True, **found}

"""The file beside a cache that holds the result of ``xfeat audit``: its path, its format, and how it is read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypedDict

from xfeat.featurize.cache.extra import columns_digest
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.system.regular_files import read_regular
from xfeat.featurize.typed_json import check_types, parse_json, require_unchanged

logger = logging.getLogger(__name__)

FORMAT = "xfeat.audit"
SCHEMA_VERSION = 1


class _Result(TypedDict):
    passed: bool
    failures: list[str]
    warnings: list[str]


def audit_path(cache: Path) -> Path:
    """Return the path of the audit of a cache: features.audit.json for features.h5."""
    return cache.with_suffix(".audit.json")


def audit_of(cache: FeatureCache) -> dict[str, Any]:
    """Return ``audited``, ``passed``, ``failures`` and ``warnings``; warn unless the audit exists and passed.

    An audit of another content of the cache, or of other columns, counts as missing.
    """
    file = audit_path(cache.path)
    try:
        report = parse_json(read_regular(file))
        if (report["format"], report["schema_version"]) != (FORMAT, SCHEMA_VERSION):
            raise ValueError(f"{report['format']} version {report['schema_version']}")
        require_unchanged(report)
        found = _Result(passed=report["passed"], failures=report["failures"], warnings=report.get("warnings", []))
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
        return {"audited": False, "passed": None, "failures": [], "warnings": []}
    if not found["passed"]:
        logger.warning("%s failed its audit: %s", cache.path, "; ".join(found["failures"]))
    return {"audited": True, **found}

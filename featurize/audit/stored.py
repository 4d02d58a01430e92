"""Reads the result of ``xfeat audit`` from the file beside a cache."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from xfeat.featurize.cache.reader import FeatureCache

logger = logging.getLogger(__name__)

FORMAT = "xfeat.audit"
SCHEMA_VERSION = 1
NOT_AUDITED: dict[str, Any] = {"audited": False, "passed": None, "failures": [], "warnings": []}


def audit_path(cache: Path) -> Path:
    """Return the path of the audit of a cache: features.audit.json for features.h5."""
    return cache.with_suffix(".audit.json")


def audit_of(cache: FeatureCache) -> dict[str, Any]:
    """Return ``audited``, ``passed``, ``failures`` and ``warnings``; warn unless the audit exists and passed.

    An audit of another content of the cache counts as missing.
    """
    file = audit_path(cache.path)
    fix = f"xfeat audit {cache.path}"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        if (report["format"], report["schema_version"]) != (FORMAT, SCHEMA_VERSION):
            raise ValueError(f"{report['format']} version {report['schema_version']}")
        found: dict[str, Any] = {
            "audited": True,
            "passed": bool(report["passed"]),
            "failures": [str(text) for text in report["failures"]],
            "warnings": [str(text) for text in report.get("warnings", [])],
        }
        is_current = report["cache_sha256"] == cache.content_sha256
    except FileNotFoundError:
        logger.warning("%s has not been audited for leakage and shortcuts: %s", cache.path, fix)
        return dict(NOT_AUDITED)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): %s", file, error, fix)
        return dict(NOT_AUDITED)
    if not is_current:
        logger.warning("%s is outdated: it was made for other features than those in %s: %s", file, cache.path, fix)
        return dict(NOT_AUDITED)
    if not found["passed"]:
        logger.warning("%s failed its audit: %s", cache.path, "; ".join(found["failures"]))
    return found

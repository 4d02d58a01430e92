"""Folder names that follow from settings, so that the same command finds its folder again."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def deterministic_name(identity: dict[str, Any], kind: str) -> str:
    """Return a name that depends on ``identity`` alone, such as ``sweep-0123abcd``."""
    return f"{kind}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"

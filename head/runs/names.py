"""Names of folders that the same settings lead to again."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def default_name(identity: dict[str, Any], kind: str = "sweep") -> str:
    """Return a name that the same cache and spec lead to again."""
    return f"{kind}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"

"""The folder for files that can be recreated: converted networks, and the runtime of the offline page."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$XFEAT_CACHE_DIR``, else ``xfeat`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    folder = os.environ.get("XFEAT_CACHE_DIR")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xfeat"

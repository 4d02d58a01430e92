"""Finds the images of a cache, also after a move: by place, then by content; others of the same name are refused."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from xfeat.featurize.cache.columns import Columns
from xfeat.featurize.errors import ImageError
from xfeat.featurize.sources.containers import is_container
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.system.stored_paths import Search, StoredPath, find_stored
from xfeat.featurize.urls import Root, Url, is_url

_SAMPLE = 16


def search_images(columns: Columns, places: Sequence[StoredPath]) -> Search:
    """Find the folder or archive that the paths of a cache are relative to.

    Where a stored path says, one unchanged image is enough: others may have been changed or deleted since. A folder
    that is found in any other way must have no changed image in a sample, and at least half of it.

    Args:
        columns: of the cache.
        places: paths of the folder, as stored in the cache and elsewhere.
    """
    address = next((stored.now for stored in places if is_url(stored.now)), None)
    if address is not None:  # no connection is opened before an image is needed
        return Search(None, url=Url(address))
    named = {place for stored in places for place in stored.named()}
    return find_stored(
        places, lambda root: other_images(columns, root, one_is_enough=root in named), similar=_is_cheap_to_compare
    )


def other_images(columns: Columns, root: Root, *, one_is_enough: bool = True) -> str:
    """Return why a folder or archive is not that of a cache; nothing if it is."""
    if not _may_hold_images(root):
        return "neither a folder nor an archive"
    unchanged = functools.partial(_is_unchanged, open_source(root, broken_ok=True), columns)
    count = len(columns.path)
    sample = range(0, count, -(-count // _SAMPLE) or 1)  # at most 16 rows, evenly spaced
    if one_is_enough:
        found = any(map(unchanged, (*sample, *range(count))))
        return "" if found else "none of the images, or all have another content"
    checked = [unchanged(row) for row in sample]
    if False in checked:
        return "images with another content"
    return "" if 2 * checked.count(True) >= len(checked) else "most of the images are not there"


def _may_hold_images(path: Root) -> bool:
    return isinstance(path, Url) or path.is_dir() or (path.is_file() and is_container(path.name))


def _is_cheap_to_compare(path: Path) -> bool:
    """Tell whether a place nearby is looked into: other archives would have to be read or inflated to list them."""
    return path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip")


def _is_unchanged(source: ImageSource, columns: Columns, row: int) -> bool | None:
    """Tell whether an image has the content that its features were computed from; ``None`` if it cannot be read."""
    state = source.state(columns.path[row])
    if state is None:
        return None
    if state.size != columns.size[row]:
        return False
    try:
        return hashlib.sha256(source.read(columns.path[row])[0]).hexdigest() == columns.sha256[row]
    except ImageError:
        return None

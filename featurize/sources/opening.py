"""Opens what a data root names: a folder, an archive or a table, here or elsewhere."""

from __future__ import annotations

from xfeat.featurize.errors import DataError
from xfeat.featurize.sources.connection import Connection
from xfeat.featurize.sources.containers import is_container, open_container
from xfeat.featurize.sources.folder import FolderSource, local_file
from xfeat.featurize.sources.image_source import ImageSource
from xfeat.featurize.sources.remote import RemoteFolder, remote_file
from xfeat.featurize.urls import Root, Url


def open_source(root: Root, *, broken_ok: bool = False) -> ImageSource:
    """Open a folder, or an archive or table if ``root`` is a file. Of a missing folder, no image can be read.

    Args:
        root: the folder, archive or table.
        broken_ok: open a file that is neither archive nor table like a missing folder.

    Raises:
        DataError: if it is a file of another kind, or neither a folder nor a regular file, or does not answer.
        MissingExtraError: if what opens it is not installed.
    """
    if isinstance(root, Url):
        return _open_remote(root)
    refuse_pipes(root)
    try:
        if root.is_file():
            return open_container(local_file(root.absolute()), FolderSource(root.parent))
    except DataError:
        if not broken_ok:
            raise
    return FolderSource(root)


def _open_remote(url: Url) -> ImageSource:
    if not url.is_web and not is_container(url.name):
        return RemoteFolder(url)
    connection = Connection(url)
    file = remote_file(connection, url)
    if file is None:
        if not url.is_web:  # a folder may be called so
            return RemoteFolder(url)
        raise DataError("nothing is there", path=url, expected="an archive or a table", fix="check the address")
    return open_container(file, None if url.is_web else RemoteFolder(url.parent))


def refuse_pipes(path: Root) -> None:
    """Refuse what is there, but is neither a folder nor a regular file.

    Raises:
        DataError: if it is a pipe, a socket or a device.
    """
    if not isinstance(path, Url) and path.exists() and not path.is_file() and not path.is_dir():
        fix = "save its content in a file, and give that"
        raise DataError("neither a folder nor a regular file", path=path, found="a pipe, socket or device", fix=fix)

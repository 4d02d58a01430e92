"""What a file system may lack: the one place that says which calls are optional, and what is lost without them.

Mounts over a network, in user space or of another operating system (NFS, SMB, FUSE, overlay, 9p, vfat, WSL) refuse some
calls that others offer, each with an error number of its own. A call that is refused so is replaced by something less,
with one warning per process.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

_NOT_OFFERED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY})


class Service(NamedTuple):
    """A service that a file system may lack.

    Attributes:
        name: of the service, for the warning.
        errors: the error numbers that mean that it is not offered; any other is a failure.
        lost: what is lost without it.
    """

    name: str
    errors: frozenset[int]
    lost: str


LOCKS = Service(
    "locks",
    _NOT_OFFERED | {errno.ENOLCK, errno.EPERM},
    "a file that is renewed every few seconds takes their place, so that a killed process can block others for a while",
)
FLUSH = Service("fsync", _NOT_OFFERED, "a power failure may lose files that were just written")
# A folder without permission to read cannot be opened, though files can be written into it.
FLUSH_FOLDER = Service(
    "fsync of folders",
    _NOT_OFFERED | {errno.EPERM, errno.EACCES, errno.EISDIR, errno.EBADF},
    "a power failure may lose files that were just written",
)
REPLACE = Service(
    "rename over a file",
    _NOT_OFFERED | {errno.EEXIST, errno.EPERM, errno.EACCES, errno.EBUSY, errno.ETXTBSY},
    "a file is replaced in two steps, so that a kill in between leaves the earlier one under the name .NAME.*.old",
)
TIMES = Service(
    "way to set the times of files", _NOT_OFFERED | {errno.EPERM, errno.EACCES}, "copies have the time of copying"
)
SYMBOLIC_LINKS = Service(
    "symbolic links",
    _NOT_OFFERED | {errno.EPERM, errno.EACCES},
    "there is no link to the latest run; commands take the one that was written last",
)
MAPPING = Service(
    "mapped files", _NOT_OFFERED | {errno.ENODEV, errno.EPERM, errno.EACCES}, "all features are read into memory"
)

_warned: set[str] = set()


def is_missing(service: Service, error: OSError, path: Path) -> bool:
    """Tell whether an error means that a file system lacks a service; if so, warn once per process.

    Args:
        service: what was tried.
        error: what the call raised.
        path: the file or folder, for the warning.
    """
    if error.errno not in service.errors:
        return False
    if service.name not in _warned:
        _warned.add(service.name)
        folder = path.absolute().parent
        logger.warning(
            "the file system of %s has no %s (%s): %s", folder, service.name, os.strerror(error.errno), service.lost
        )
    return True


@contextmanager
def optional(service: Service, path: Path) -> Iterator[None]:
    """Run a body that the file system may refuse; without the service, go on with a warning.

    Raises:
        OSError: if the body fails for another reason.
    """
    try:
        yield
    except OSError as error:
        if not is_missing(service, error, path):
            raise

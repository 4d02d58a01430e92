"""The socket of the server. Whatever prevents it is one kind of error, which says what to do."""

from __future__ import annotations

import errno
import os
import socket

from xfeat.featurize.errors import AddressError

_BACKLOG = 128
_FIRST_FREE_PORT, _LAST_PORT = 1024, 65535
_ADDRESSES = "--host 127.0.0.1 for this machine alone, --host 0.0.0.0 for all its addresses"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections.

    Args:
        host: name or address; IPv6 with or without brackets.
        port: 0 means a free one.

    Raises:
        AddressError: if that is not possible.
    """
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise _error(host, port, str(reason), _ADDRESSES) from error
    try:
        if os.name == "posix":  # on Windows SO_REUSEADDR would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _error(host, port, str(error.strerror), _fix(error.errno, port)) from error
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Return the address of a server; a zone of IPv6 (``fe80::1%eth0``) is escaped as in RFC 6874."""
    name = host.strip("[]").replace("%", "%25")
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


def _error(host: str, port: int, reason: str, fix: str) -> AddressError:
    return AddressError(f"cannot listen on port {port} of {host or 'an empty host'}: {reason}", fix=fix)


def _fix(number: int | None, port: int) -> str:
    if number == errno.EADDRINUSE:
        other = port + 1 if port < _LAST_PORT else port - 1
        return f"stop the program that uses it (ss -ltnp 'sport = :{port}' names it), or choose another: --port {other}"
    if number in (errno.EACCES, errno.EPERM) and port < _FIRST_FREE_PORT:
        return (
            "--port 8000: ports below 1024 need root or CAP_NET_BIND_SERVICE, or a proxy that forwards to this server"
        )
    return _ADDRESSES

"""The process that serves: a socket of our own, uvicorn on it, an orderly end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable

import prometheus_client  # noqa: F401 - so that a missing part of the extra shows here and at once
import uvicorn

from featurize.errors import BusyError, SpecError
from serve.app import build_app
from serve.predictor import Predictor
from serve.spec import ServeSpec

_BACKLOG = 128


def serve(predictor: Predictor, spec: ServeSpec, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish those that were accepted.

    Args:
        predictor: the model that answers.
        spec: the limits.
        host: name or address to listen on.
        port: 0 takes a free one.
        on_ready: called with the server's URL once connections are accepted.

    Raises:
        BusyError: if the port is taken.
        SpecError: if the address cannot be listened on.
        ModelError: if the model cannot be run.
    """
    listener = _listen(host, port)
    with contextlib.closing(listener):
        predictor.warm_up()
        # It warns of every damaged form, and anybody may send one; the client is told.
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        config = uvicorn.Config(
            build_app(predictor, spec),
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(spec.drain_timeout_s),
        )
        on_ready(_url(host, listener))
        # uvicorn passes the signal on when it has ended in order: for a server that is the way to stop.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SpecError(
            f"cannot listen on {host}: {error.strerror}", mend="name another address with --host"
        ) from error
    try:
        if os.name == "posix":  # on Windows SO_REUSEADDR would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BusyError(
                f"port {port} of {host} is in use",
                mend=f"stop the program that uses it, or take another: xserve start --port {port + 1}",
            ) from error
        raise SpecError(
            f"cannot listen on port {port} of {host}: {error.strerror}", mend="name another with --host and --port"
        ) from error
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"

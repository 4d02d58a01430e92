"""The process that serves: a socket of our own, uvicorn on it, reloads, an orderly end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import prometheus_client  # noqa: F401 - so that a missing part of the extra shows here and at once
import uvicorn

from xfeat.featurize.errors import BusyError, SpecError
from xfeat.featurize.system.cores import cores
from xfeat.serve.http.app import AccessOptions, build_app
from xfeat.serve.http.header_timeout import with_header_timeout
from xfeat.serve.http.request_log import writer
from xfeat.serve.http.service import Service
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.metrics import Metrics
from xfeat.serve.models.registry import Models
from xfeat.serve.specs import Process, ServeSpec

_BACKLOG = 128
# Measured on 2 cores: with two sessions one computes while the threads of the other wait for each other. Each may use
# all cores, so that a single image is not slower for it.
_SESSIONS_ON_CPU = 2

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Tells the service at once that the end has begun, so that ``/v2/health/ready`` is true to the last."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stopping = True
        super().handle_exit(sig, frame)


def serve(source: Path, spec: ServeSpec, process: Process, *, on_ready: Callable[[str, Models], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish those that were accepted.

    Args:
        source: a model file, or a folder of model files.
        spec: the limits.
        process: where it listens, and more.
        on_ready: called with the server's URL and its models once connections are accepted.

    Raises:
        BusyError: if the port is taken.
        SpecError: if the address cannot be listened on.
        ModelError: if a model cannot be used.
        DeviceError: if the device that was asked for is not there.
    """

    models = Models(source, partial(open_sessions, spec, process), spec, Metrics())
    with contextlib.closing(models), contextlib.closing(_listen(process.host, process.port)) as listener:
        service = Service(models, spec)
        # These warn of damaged forms and images, and anybody may send them; the client is told.
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        door = AccessOptions(api_key=process.api_key, log=writer(process.log_format, logger))
        config = uvicorn.Config(
            build_app(service, door),
            access_log=False,
            log_config=None,
            server_header=False,
            http=with_header_timeout(spec.header_timeout_s),
            ws="none",
            timeout_graceful_shutdown=int(spec.drain_timeout_s),
        )
        with _reload_on_hangup(models), _watch(models, process.watch_s):
            on_ready(_url(process.host, listener), models)
            # uvicorn passes the signal on when it has ended in order: for a server that is the way to stop.
            with contextlib.suppress(KeyboardInterrupt):
                _Server(config, service).run(sockets=[listener])


def open_sessions(spec: ServeSpec, process: Process, path: Path) -> list[Predictor]:
    """Open a model file once for each session, on each device.

    Raises:
        ModelError: if the model cannot be used.
        DeviceError: if a device that was asked for is not there.
    """
    devices = [device.strip() for device in process.device.split(",")]
    threads = process.threads or cores()
    number = process.sessions or (_SESSIONS_ON_CPU if threads >= _SESSIONS_ON_CPU * len(devices) else 1)
    sessions = []
    for device in devices:
        open_one = partial(
            Predictor.open, path, device, threads, batch_size=spec.max_batch, cuda_graphs=process.cuda_graphs
        )
        first = open_one()
        more = number - 1 if process.sessions or first.device == "cpu" else 0
        sessions += [first, *(open_one() for _ in range(more))]
    return sessions


@contextlib.contextmanager
def _reload_on_hangup(models: Models) -> Iterator[None]:
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def start_reload(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=models.reload, name="reload").start()

    before = signal.signal(hangup, start_reload)
    try:
        yield
    finally:
        signal.signal(hangup, before)


@contextlib.contextmanager
def _watch(models: Models, interval_s: float | None) -> Iterator[None]:
    """Reload when a file has changed and then stayed as it is for one interval: it may still be being written."""
    if interval_s is None:
        yield
        return
    stop = threading.Event()

    def look() -> None:
        last = models.signatures()
        while not stop.wait(interval_s):
            now = models.signatures()
            if now == last and models.changed():
                models.reload()
            last = now

    watcher = threading.Thread(target=look, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SpecError(f"cannot listen on {host}: {error.strerror}", fix="name another address with --host") from error
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
                fix=f"stop the program that uses it, or take another: xserve start --port {port + 1}",
            ) from error
        raise SpecError(
            f"cannot listen on port {port} of {host}: {error.strerror}", fix="name another with --host and --port"
        ) from error
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"

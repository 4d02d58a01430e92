"""The server process: its socket, uvicorn, reloads, an orderly stop."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import prometheus_client  # noqa: F401 - so that a missing package of the extra is noticed at the start
import uvicorn

from xfeat.featurize.system.cores import cores
from xfeat.featurize.system.onnx_session import silence_log
from xfeat.serve.http.app import build_app
from xfeat.serve.http.limits.connections import with_connection_limits
from xfeat.serve.http.listen import listen, url_of
from xfeat.serve.http.request_log import log_writer
from xfeat.serve.http.service import Service
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import ServerOptions, ServeSpec

# Answering takes the interpreter's lock some ten times. While threads compute in Python, each time waits for so long
# per thread: with Python's 5 ms, three large requests made others wait for 0.3 s.
_SWITCH_S = 0.001
# Measured on 2 cores: with two sessions one computes while the threads of the other synchronize. Each may use all
# cores, so that a single image is not slower.
_MIN_SESSIONS_ON_CPU = 2

# Source: malloc.h of glibc. Without a fixed threshold it keeps blocks of up to 32 MB, in a heap per thread: 545 MB were
# measured after large requests, and 240 with it.
_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES = -3, 4 << 20

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Marks the service as stopping on the signal, so that ``/v2/health/ready`` is 503 from then on."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stopping = True
        super().handle_exit(sig, frame)


def serve(
    source: Path, spec: ServeSpec, options: ServerOptions, *, on_ready: Callable[[str, ModelRegistry], None]
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish those that were accepted.

    Args:
        source: a model file, or a folder of model files.
        spec: the limits.
        options: address, devices, log.
        on_ready: called with the server's URL and its models once connections are accepted.

    Raises:
        AddressError: if it is not possible to listen on the address and port.
        ModelError: if a model cannot be loaded.
        DeviceError: if the requested device is not available.
    """
    sys.setswitchinterval(_SWITCH_S)
    if options.log_format == "json":
        silence_log()
    with contextlib.suppress(AttributeError, TypeError, OSError):  # only glibc has it
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
    opener = partial(open_sessions, spec, options)
    with (
        _hangups() as asked,
        contextlib.closing(ModelRegistry(source, opener, spec, default=options.default_model)) as models,
        contextlib.closing(listen(options.host, options.port)) as listener,
    ):
        service = Service(models)
        # These warn of damaged forms and images, which any client can send; the response tells the client.
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        log = log_writer(options.log_format, logger, with_client=options.log_client)
        proxies = options.access.trusted_proxy
        config = uvicorn.Config(
            build_app(service, options.access, log=log),
            access_log=False,
            log_config=None,
            server_header=False,
            http=with_connection_limits(service.body_limits, log),
            proxy_headers=bool(proxies),
            forwarded_allow_ips="*" if "*" in proxies else list(proxies),
            ws="none",
            timeout_graceful_shutdown=int(spec.drain_timeout_s),
        )
        with _reload_when_asked(models, asked), _watch(models, options.watch_s):
            on_ready(url_of(options.host, listener), models)
            # After an orderly stop uvicorn raises the signal again, but for a server this is the normal way to stop.
            with contextlib.suppress(KeyboardInterrupt):
                _Server(config, service).run(sockets=[listener])


def open_sessions(spec: ServeSpec, options: ServerOptions, path: Path) -> list[Predictor]:
    """Open a model file once for each session, on each device.

    Raises:
        ModelError: if the model cannot be loaded.
        DeviceError: if a requested device is not available.
    """
    devices = [device.strip() for device in options.device.split(",")]
    threads = options.threads or cores()
    # So many that those of all devices occupy all cores.
    on_cpu = max(1, min(_MIN_SESSIONS_ON_CPU, cores() // len(devices)), cores() // (threads * len(devices)))
    number = options.sessions or on_cpu
    sessions = []
    for device in devices:
        open_one = partial(
            Predictor.open,
            path,
            device,
            threads,
            batch_size=spec.max_batch,
            cuda_graphs=options.cuda_graphs,
            allow_unverified=options.allow_unverified,
            require_signature=options.require_signature,
        )
        first = open_one()
        more = number - 1 if options.sessions or first.device == "cpu" else 0
        sessions += [first, *(open_one() for _ in range(more))]
    return sessions


@contextlib.contextmanager
def _hangups() -> Iterator[queue.SimpleQueue[bool]]:
    """Collect SIGHUP from now on: while models are being opened, too, where it would end the process."""
    # Its put() may interrupt itself, as a signal does.
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(hangup, lambda number, frame: asked.put(True))
    try:
        yield asked
    finally:
        signal.signal(hangup, before)


@contextlib.contextmanager
def _reload_when_asked(models: ModelRegistry, asked: queue.SimpleQueue[bool]) -> Iterator[None]:
    def reload_when_asked() -> None:
        while asked.get():
            while not asked.empty():  # signals that came together are one reload
                if not asked.get():
                    return
            models.reload()

    with _thread("reload", reload_when_asked, stop=lambda: asked.put(False)):
        yield


@contextlib.contextmanager
def _watch(models: ModelRegistry, interval_s: float | None) -> Iterator[None]:
    """Reload when a file has changed and then not changed for one interval: before, it may be incomplete."""
    if interval_s is None:
        yield
        return
    stop = threading.Event()

    def check_files() -> None:
        last = models.file_states()
        while not stop.wait(interval_s):
            now = models.file_states()
            if now == last != models.seen:
                models.reload()
            last = now

    with _thread("watch", check_files, stop=stop.set):
        yield


@contextlib.contextmanager
def _thread(name: str, run: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Run a function in a thread of its own, which ``stop`` makes return."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()

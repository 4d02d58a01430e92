"""The limits of a server, which apply before an image is decoded, and its other options."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xfeat.featurize.errors import SpecError
from xfeat.featurize.specs import Spec, require

if TYPE_CHECKING:
    from minisign import PublicKey
else:
    PublicKey = Any  # py-minisign is optional

MEBIBYTE = 1 << 20
_LAST_PORT = 65535
# With fewer, the index of drift is mostly chance.
LEAST_DRIFT_IMAGES, MOST_DRIFT_IMAGES = 100, 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeSpec(Spec):
    """How much a server accepts and how it forms batches.

    Attributes:
        max_body_bytes: size of one request; a larger one gets 413.
        max_memory_bytes: total size of all requests that are being received or answered; above it 503 with Retry-After.
        max_files: images per request; more get 413.
        max_queue: images per model that are accepted and have no result yet; above it 503 with Retry-After.
        max_batch: images per call of the network; the default depends on the device.
        batch_wait_ms: how long the first image of a batch waits for others.
        header_timeout_s: time for a client to send the headers of a request; then the connection is closed.
        body_timeout_s: time for a client to send the body, then 408; and to read the response, then it is disconnected.
        answer_timeout_s: time for an accepted request to be answered; then 504.
        drain_timeout_s: time for running requests to finish after the server was told to stop.
        retry_after_s: value of Retry-After.
        drift_window: newest images of each model that are compared with the validation images, for ``/metrics``.
    """

    max_body_bytes: int = 32 * MEBIBYTE
    max_memory_bytes: int = 512 * MEBIBYTE
    max_files: int = 64
    max_queue: int = 256
    max_batch: int | None = None
    batch_wait_ms: float = 4.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    answer_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    retry_after_s: int = 1
    drift_window: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "batch_wait_ms":
                require(value >= 0, f"{name} out of range", expected="0 or more", found=value)
            elif value is not None:
                require(value > 0, f"{name} out of range", expected="more than 0", found=value)
        least, most = LEAST_DRIFT_IMAGES, MOST_DRIFT_IMAGES
        in_range = least <= self.drift_window <= most
        require(in_range, "drift_window out of range", expected=f"{least} to {most}", found=self.drift_window)
        self._require_room("queue", "--max-queue", self.max_queue, "--max-files", self.max_files)
        memory_mb, body_mb = self.max_memory_bytes / MEBIBYTE, self.max_body_bytes / MEBIBYTE
        self._require_room("memory", "--max-memory-mb", memory_mb, "--max-body-mb", body_mb)

    @staticmethod
    def _require_room(where: str, total: str, size: float, each: str, needed: float) -> None:
        if size < needed:
            has, least = f"{size:.10g}", f"{needed:.10g}"
            raise SpecError(
                f"{total} {has} is less than {each} {least}: the largest request would never fit into the {where}",
                fix=f"raise {total} to {least} or more, or lower {each} to {has} or less",
            )


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Who may ask, and under which address.

    Attributes:
        api_key: that clients must send; ``None`` gives every client access.
        root_path: path below which a reverse proxy publishes the server, such as ``/xray``.
        trust_forwarded_prefix: take that path from ``X-Forwarded-Prefix``, which clients can send as well.
        trusted_proxy: addresses and networks of proxies, such as ``10.0.0.0/8``, whose ``X-Forwarded-For`` names the
            client; ``*`` for all.
        cors_origin: origins whose pages may send requests, such as ``https://example.org``; ``*`` for all.
        allowed_host: names under which the server answers, besides addresses and private names; ``*`` for all.
    """

    api_key: str | None = None
    root_path: str = ""
    trust_forwarded_prefix: bool = False
    trusted_proxy: tuple[str, ...] = ()
    cors_origin: tuple[str, ...] = ()
    allowed_host: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._require_form("--root-path", r"(/[\w.~-]+)*/?", "a path such as /xray", self.root_path)
        for proxy in self.trusted_proxy:
            expected = "an address or a network, such as 10.0.0.0/8, or *"
            require(
                proxy == "*" or _is_network(proxy), "--trusted-proxy cannot be used", expected=expected, found=proxy
            )
        for origin in self.cors_origin:
            form = r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+"
            self._require_form("--cors-origin", form, "an origin such as https://example.org, or *", origin)
        for name in self.allowed_host:
            self._require_form("--allowed-host", r"\*|[\w.-]+|\[?[0-9a-fA-F:]+\]?", "a name without a port, or *", name)

    @staticmethod
    def _require_form(option: str, form: str, expected: str, found: str) -> None:
        require(bool(re.fullmatch(form, found, re.ASCII)), f"{option} cannot be used", expected=expected, found=found)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, which devices it uses, and what it logs.

    Attributes:
        host: name or address to listen on.
        port: 0 means a free one.
        default_model: name of the model for requests that name none; by default the first by name at the start.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``; several are separated by commas.
        cuda_graphs: for models on a GPU: ``auto`` (if possible), ``on`` or ``off``.
        sessions: per model and device; they compute in parallel. By default one on a GPU; on a CPU as many as occupy
            all cores, and at least two if there are two cores.
        threads: CPU threads per session; by default the number of cores.
        access: who may ask.
        log_format: of the log line per request: ``off``, ``text`` or ``json``.
        log_client: whether these lines have the address of the client.
        allow_unverified: serve a model that does not match its certificate.
        require_signature: the key that must have signed the certificate of a model; ``None`` if none has to.
        watch_s: interval for checking whether model files have changed; ``None`` disables the check.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    default_model: str | None = None
    device: str = "auto"
    cuda_graphs: str = "auto"
    sessions: int | None = None
    threads: int | None = None
    access: AccessOptions = AccessOptions()
    log_format: str = "off"
    log_client: bool = True
    allow_unverified: bool = False
    require_signature: PublicKey | None = None
    watch_s: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.port <= _LAST_PORT, "port out of range", expected=f"0 to {_LAST_PORT}", found=self.port)

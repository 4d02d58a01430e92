"""The limits of a server, which apply before an image is decoded, and its other options."""

from __future__ import annotations

from dataclasses import dataclass

from xfeat.featurize.errors import SpecError
from xfeat.featurize.specs import Spec, require

MEBIBYTE = 1 << 20

_POSITIVE = (
    "max_body_bytes",
    "max_memory_bytes",
    "max_files",
    "header_timeout_s",
    "body_timeout_s",
    "answer_timeout_s",
    "drain_timeout_s",
    "retry_after_s",
)


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
        body_timeout_s: time for a client to send the body; then 408.
        answer_timeout_s: time for an accepted request to be answered; then 504.
        drain_timeout_s: time for running requests to finish after the server was told to stop.
        retry_after_s: value of Retry-After.
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

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            require(value > 0, f"{name} out of range", expected="more than 0", found=value)
        require(self.batch_wait_ms >= 0, "batch_wait_ms out of range", expected="0 or more", found=self.batch_wait_ms)
        require(
            self.max_batch is None or self.max_batch > 0,
            "max_batch out of range",
            expected="1 or more",
            found=self.max_batch,
        )
        if self.max_queue < self.max_files:
            raise SpecError(
                f"--max-queue {self.max_queue} is less than --max-files {self.max_files}: the largest request would "
                "never fit into the queue",
                fix=f"raise --max-queue to {self.max_files} or more, or lower --max-files to {self.max_queue} or less",
            )
        if self.max_memory_bytes < self.max_body_bytes:
            memory_mb, body_mb = (f"{size / MEBIBYTE:g}" for size in (self.max_memory_bytes, self.max_body_bytes))
            raise SpecError(
                f"--max-memory-mb {memory_mb} is less than --max-body-mb {body_mb}: the largest request would "
                "never fit into the memory",
                fix=f"raise --max-memory-mb to {body_mb} or more, or lower --max-body-mb to {memory_mb} or less",
            )


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, which devices it uses, and what it logs.

    Attributes:
        host: name or address to listen on.
        port: 0 means a free one.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``; several are separated by commas.
        cuda_graphs: for models on a GPU: ``auto`` (if possible), ``on`` or ``off``.
        sessions: per model and device; they compute in parallel. By default one on a GPU; on a CPU as many as occupy
            all cores, and at least two if there are two cores.
        threads: CPU threads per session; by default the number of cores.
        api_key: that clients must send, or ``None``.
        log_format: of the log line per request: ``off``, ``text`` or ``json``.
        watch_s: interval for checking whether model files have changed; ``None`` disables the check.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    cuda_graphs: str = "auto"
    sessions: int | None = None
    threads: int | None = None
    api_key: str | None = None
    log_format: str = "off"
    watch_s: float | None = None

"""The limits of a server, which are enforced before anything is decoded; and where it runs."""

from __future__ import annotations

from dataclasses import dataclass

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
        max_body_bytes: of one request; larger ones are refused with 413.
        max_memory_bytes: of all requests that are arriving or being answered; beyond it 503 with Retry-After.
        max_files: images of one request; more are refused with 413.
        max_queue: images accepted and not yet answered, a model; beyond it 503 with Retry-After.
        max_batch: images per call of the network; ``None`` takes what suits the device.
        batch_wait_ms: how long the first image of a batch waits for others.
        header_timeout_s: how long a client may take to send the head of a request; then the connection is closed.
        body_timeout_s: how long a client may take to send its request; then 408.
        answer_timeout_s: how long an accepted request may wait for its answers; then 504.
        drain_timeout_s: how long requests may still run after the server was told to stop.
        retry_after_s: what a refused client is told to wait.
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
        require(
            self.max_queue >= self.max_files,
            "the queue is shorter than one request may be",
            expected=f"max_queue of {self.max_files} or more",
            found=self.max_queue,
        )
        require(
            self.max_memory_bytes >= self.max_body_bytes,
            "the memory for requests is less than one request may need",
            expected=f"max_memory_bytes of {self.max_body_bytes} or more",
            found=self.max_memory_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Process:
    """Where a server listens and what else it does.

    Attributes:
        host: name or address to listen on.
        port: 0 takes a free one.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``; several with commas between them.
        cuda_graphs: of models on a GPU: ``auto`` where they can be, ``on`` or ``off``.
        sessions: of a model on each device, which compute side by side; by default two on a CPU and one on a GPU.
        threads: CPU threads of each session; by default as many as there are cores.
        api_key: that clients must know, or ``None``.
        log_format: of the line a request: ``off``, ``text`` or ``json``.
        watch_s: look for changed model files so often, or ``None`` for never.
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

"""Limits on request bodies: the bytes are counted as they arrive, per request and of all requests together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from xfeat.serve.http.limits.content_encoding import inflater_for
from xfeat.serve.models.metrics import ServerMetrics
from xfeat.serve.specs import MEBIBYTE, ServeSpec

# For a client that is too slow. Elsewhere the rest of a rejected body is read and discarded, for a limited time: a
# client that is still sending would see a reset connection instead of the reason.
_CLOSE = {"Connection": "close"}
# For logs and metrics only, since the client has disconnected. The number is nginx's.
CLIENT_DISCONNECTED = 499


class BodyLimits:
    """The limits of one server, and the bytes of all requests that are being received or answered.

    Attributes:
        metrics: of the server.
        held_bytes: the current number of these bytes.
    """

    def __init__(self, spec: ServeSpec, metrics: ServerMetrics) -> None:
        self.spec = spec
        self.held_bytes = 0
        self.metrics = metrics

    @contextlib.contextmanager
    def admit(self, request: Request) -> Iterator[Body]:
        """Accept a request; its bytes, inflated if they are compressed, count until it has been answered.

        Raises:
            HTTPException: 413 if its Content-Length is over the limit, 415 if its Content-Encoding is not supported.
        """
        declared = request.headers.get("content-length", "")
        self.check_size(int(declared) if declared.isdecimal() else 0)
        body = Body(request, self)
        try:
            yield body
        finally:
            self.held_bytes -= body.received_bytes

    def check_size(self, number: int) -> None:
        """Check the size of one request.

        Raises:
            HTTPException: 413 if it is over the limit.
        """
        if number > self.spec.max_body_bytes:
            limit = f"{self.spec.max_body_bytes / MEBIBYTE:g} MiB"
            raise HTTPException(413, f"the request is larger than {limit}")

    def add(self, number: int) -> None:
        """Count bytes that have arrived.

        Raises:
            HTTPException: 503 if all requests together hold too many.
        """
        self.held_bytes += number
        if self.held_bytes > self.spec.max_memory_bytes:
            self.metrics.refused.labels("memory").inc()
            raise too_busy(self.spec, "too busy: too many large requests at once")


class Body:
    """The body of one request.

    Attributes:
        received_bytes: number of bytes that have been read, after inflating.
        request: the same request; reading its body inflates and counts it.
    """

    def __init__(self, request: Request, limits: BodyLimits) -> None:
        self.received_bytes = 0
        self.request = Request(request.scope, self._receive)
        self._source = request.receive
        self._limits = limits
        self._inflater = inflater_for(",".join(request.headers.getlist("content-encoding")))
        self._pieces: Iterator[bytes] = iter(())
        self._compressed_bytes = 0
        self._ended = False

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            HTTPException: as :meth:`time_limit`.
        """
        async with self.time_limit():
            chunks = [chunk async for chunk in self.request.stream()]
        # In a thread it lets others be answered: it releases the interpreter's lock, as Python does from 1 MiB on.
        return await run_in_threadpool(b"".join, chunks) if self.received_bytes > MEBIBYTE else b"".join(chunks)

    @contextlib.asynccontextmanager
    async def time_limit(self) -> AsyncIterator[None]:
        """Limit the time for reading the body.

        Raises:
            HTTPException: 408 if the client is too slow, 499 if it has disconnected.
        """
        limit_s = self._limits.spec.body_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except ClientDisconnect as error:
            raise HTTPException(CLIENT_DISCONNECTED, "the client disconnected") from error
        except TimeoutError as error:
            raise HTTPException(408, f"the request took longer than {limit_s:g} seconds", _CLOSE) from error

    async def _receive(self) -> Message:
        if self._inflater is None:
            message = await self._source()
            self._count(len(message.get("body", b"")))
            return message
        for piece in self._pieces:
            self._count(len(piece))
            await asyncio.sleep(0)  # other requests have their turn: the next message may need no waiting
            return {"type": "http.request", "body": piece, "more_body": True}
        if self._ended:
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self._source()
        if message["type"] != "http.request":
            return message
        self._compressed_bytes += len(message["body"])
        self._limits.check_size(self._compressed_bytes)
        self._ended = not message["more_body"]
        self._pieces = self._inflater.pieces(message["body"], last=self._ended)
        return {"type": "http.request", "body": b"", "more_body": True}

    def _count(self, number: int) -> None:
        self.received_bytes += number
        self._limits.add(number)
        self._limits.check_size(self.received_bytes)


def too_busy(spec: ServeSpec, why: str) -> HTTPException:
    """Return a 503 that says when to try again."""
    wait = str(spec.retry_after_s)
    return HTTPException(503, f"{why}; try again in {wait} s", {"Retry-After": wait})

"""How bodies come in: counted as they arrive, so that neither one request nor all together pass their limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from xfeat.serve.models.metrics import Metrics
from xfeat.serve.specs import MEBIBYTE, ServeSpec

# The rest of a refused body is not read, so the connection cannot carry another request.
CLOSE = {"Connection": "close"}


class Intake:
    """The bytes of all requests that are arriving or being answered.

    Attributes:
        held_bytes: their number now.
    """

    def __init__(self, spec: ServeSpec, metrics: Metrics) -> None:
        self.spec = spec
        self.held_bytes = 0
        self._metrics = metrics

    @contextlib.contextmanager
    def admit(self, request: Request) -> Iterator[Body]:
        """Let a request in, and forget its bytes when it has been answered.

        Raises:
            HTTPException: 413 if its Content-Length is over the limit.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.spec.max_body_bytes:
            _refuse_body(self.spec)
        body = Body(request, self)
        try:
            yield body
        finally:
            self.held_bytes -= body.received_bytes

    def take(self, number: int) -> None:
        """Count bytes that have arrived.

        Raises:
            HTTPException: 503 if all requests together hold too many.
        """
        self.held_bytes += number
        if self.held_bytes > self.spec.max_memory_bytes:
            self._metrics.refused.labels("memory").inc()
            wait = str(self.spec.retry_after_s)
            raise HTTPException(
                503, f"too busy: too many large requests at once; try again in {wait} s", {"Retry-After": wait, **CLOSE}
            )


class Body:
    """The body of one request.

    Attributes:
        received_bytes: what has arrived of it.
        request: passes the body on, counted.
    """

    def __init__(self, request: Request, intake: Intake) -> None:
        self.received_bytes = 0
        self.request = Request(request.scope, self._receive)
        self._source = request.receive
        self._intake = intake

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.request.stream()])

    @contextlib.asynccontextmanager
    async def arriving(self) -> AsyncIterator[None]:
        """Limit the time that reading the body may take.

        Raises:
            HTTPException: 408 for a client that is too slow, 400 for one that went away.
        """
        limit_s = self._intake.spec.body_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except ClientDisconnect as error:
            raise HTTPException(400, "the client went away") from error
        except TimeoutError as error:
            raise HTTPException(408, f"the request took longer than {limit_s:g} seconds", CLOSE) from error

    async def _receive(self) -> Message:
        message = await self._source()
        number = len(message.get("body", b""))
        self.received_bytes += number
        self._intake.take(number)
        if self.received_bytes > self._intake.spec.max_body_bytes:
            _refuse_body(self._intake.spec)
        return message


def _refuse_body(spec: ServeSpec) -> NoReturn:
    raise HTTPException(413, f"the request is larger than {spec.max_body_bytes / MEBIBYTE:g} MiB", CLOSE)

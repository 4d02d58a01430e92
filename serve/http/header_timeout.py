"""Closing connections whose client does not come to the point: uvicorn waits for a request's head for ever."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# As much as most servers take. Without a limit a head would be kept in memory as long as it comes.
MAX_HEAD_BYTES = 1 << 16


def with_header_timeout(header_timeout_s: float) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol with limits on the time and the bytes until a request's head has arrived.

    Args:
        header_timeout_s: from the connection, or from the first byte after the last answer.
    """

    class Impatient(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.response_complete:
                self._expect_request()
            before = self.cycle
            # An answer may be complete before the body is: the rest of that is no head.
            in_body = before is not None and before.more_body
            super().data_received(data)
            if self.cycle is not before:
                self._stop_waiting()
            elif self._deadline is not None and not in_body:
                self._count(len(data))

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _expect_request(self) -> None:
            if self._deadline is None:
                self._head_bytes = 0
                self._deadline = self.loop.call_later(header_timeout_s, self._give_up)

        def _count(self, number: int) -> None:
            self._head_bytes += number
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Impatient

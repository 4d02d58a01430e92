"""Limits on request headers: uvicorn has none on the time until they have arrived, and none on their size."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# As in most servers. Without a limit, headers of any size would be stored in memory.
MAX_HEADER_BYTES = 1 << 16
_TOO_LARGE = "The request headers are larger than 64 KiB."
_SEPARATORS = len(": \r\n")


def with_header_timeout(header_timeout_s: float) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol with limits on the time until a request's headers have arrived, and on their size.

    The size is counted twice: as the bytes arrive, because the parser buffers an unfinished line; and as they are
    parsed, because complete headers may arrive in one piece, together with the body.

    Args:
        header_timeout_s: from the start of the connection, or from the first byte after the last response.
    """

    class LimitedProtocol(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _arrived_bytes = 0
        _parsed_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.response_complete:
                self._expect_request()
            before = self.cycle
            # The response may be complete before the body has arrived: the rest of the body is not a header.
            in_body = before is not None and before.more_body
            super().data_received(data)
            if self.cycle is not before:
                self._stop_waiting()
            elif self._deadline is not None and not in_body:
                self._arrived_bytes += len(data)
                if self._arrived_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                    super().send_400_response(_TOO_LARGE)

        def on_message_begin(self) -> None:
            self._parsed_bytes = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count_parsed(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count_parsed(len(name) + len(value) + _SEPARATORS)
            super().on_header(name, value)

        def send_400_response(self, msg: str) -> None:
            super().send_400_response(_TOO_LARGE if self._parsed_bytes > MAX_HEADER_BYTES else msg)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _count_parsed(self, number: int) -> None:
            self._parsed_bytes += number
            if self._parsed_bytes > MAX_HEADER_BYTES:
                raise ValueError(_TOO_LARGE)  # stops the parser, which then asks for send_400_response

        def _expect_request(self) -> None:
            if self._deadline is None:
                self._arrived_bytes = 0
                self._deadline = self.loop.call_later(header_timeout_s, self._close_if_idle)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close_if_idle(self) -> None:
            self._deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return LimitedProtocol

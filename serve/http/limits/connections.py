"""What uvicorn leaves out of HTTP: limits on headers and on slow readers, reasons for a 400, half-closed clients."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from xfeat.serve.http.limits.bodies import BodyLimits
from xfeat.serve.http.middleware import NO_ROUTE, SECURITY_HEADERS
from xfeat.serve.http.request_log import LogWriter, client_address

# As in most servers. Without a limit, headers of any size would be stored in memory.
MAX_HEADER_BYTES = 1 << 16
MAX_PIPELINED = 100
# Each chunk costs a few microseconds, and no other client is answered meanwhile.
MAX_TINY_CHUNKS = 10_000
TINY_CHUNK_BYTES = 16
_TOO_LARGE = "the headers of the request are larger than 64 KiB"
_SEPARATORS = len(": \r\n")
# A client that has closed its side may still wait for the answer, or may have gone. Answers that take longer than this
# are preceded by an interim response, which the system of a client that has gone rejects.
_PROBE_AFTER_S = 0.25
_RESET_WITHIN_S = 0.1
# struct linger: on, for 0 seconds.
_DISCARD = struct.pack("ii", 1, 0)


def with_connection_limits(limits: BodyLimits, log: LogWriter | None = None) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol with limits on the headers of a request, and on the time for reading responses.

    The size is counted twice: as the bytes arrive, because the parser buffers an unfinished line; and as they are
    parsed, because complete headers may arrive in one piece, together with the body. Both counts include what a chunked
    body has beside its content: trailers, which are dropped, and chunk extensions.

    Args:
        limits: of the server. ``header_timeout_s`` runs from the start of the connection, or from the first byte after
            the last response; what is left of a body whose request has been answered is discarded for as long. A client
            has ``body_timeout_s`` for reading a response; what it has not read counts as held memory.
        log: receives the log fields of requests that do not reach the application.
    """

    class LimitedProtocol(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _arrived_bytes = 0  # since the last byte of a body, or the last complete headers
        _parsed_bytes = 0  # of the headers and trailers of one request
        _in_body = False
        _data = b""
        _chunks = 0
        _body_bytes = 0
        _unread_bytes = 0  # of responses
        _answering: RequestResponseCycle | None = None
        _read_deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if self.client is not None:  # as --trusted-proxy writes it
                self.client = client_address(self.client), self.client[1]
            transport.set_write_buffer_limits(0)  # so that writing pauses when a byte is unread, until all are read
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.response_complete:
                self._expect_request()
            before = self.cycle
            self._data = data
            self._arrived_bytes += len(data)
            super().data_received(data)
            self._data = b""
            if self.cycle is not before:
                self._stop_waiting()
            if self._arrived_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response(_TOO_LARGE)

        def on_message_begin(self) -> None:
            if len(self.pipeline) >= MAX_PIPELINED:
                raise ValueError(f"more than {MAX_PIPELINED} requests wait on one connection")
            self._parsed_bytes = 0
            self._in_body = False
            self._chunks = self._body_bytes = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count_parsed(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count_parsed(len(name) + len(value) + _SEPARATORS)
            if not self._in_body:  # a trailer is no header: a key in it must not count
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._arrived_bytes = 0
            if self.parser.should_upgrade():
                return  # see _unsupported_upgrade_warning
            self._in_body = True
            super().on_headers_complete()

        def on_chunk_header(self) -> None:
            self._chunks += 1
            if self._chunks > MAX_TINY_CHUNKS and self._body_bytes < TINY_CHUNK_BYTES * self._chunks:
                raise ValueError(f"chunks of a body must have at least {TINY_CHUNK_BYTES} bytes")

        def on_body(self, body: bytes) -> None:
            self._arrived_bytes = 0
            self._body_bytes += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._arrived_bytes = 0
            if not self.parser.should_upgrade():
                super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            """Say what is wrong in the form of all errors, unless another response is being sent."""
            if self._parsed_bytes > MAX_HEADER_BYTES:
                msg = _TOO_LARGE
            elif isinstance(error := sys.exception(), httptools.HttpParserError):  # in uvicorn's handler
                msg = f"not a valid HTTP/1.1 request: {error.__context__ or error}"
            answering = self.cycle is not None and not self.cycle.response_complete
            if not answering or not self.cycle.response_started:
                self.transport.write(_bad_request(msg))
            if not answering:  # or else the application notes the request
                limits.metrics.requests.labels(NO_ROUTE, "400").inc()
                if log is not None:
                    log({"client": client_address(self.client), "route": NO_ROUTE, "status": 400, "reason": msg})
            self.transport.close()

        def eof_received(self) -> bool:  # type: ignore[override]
            """Keep the connection open for the answer if the client has sent a whole request."""
            cycle = self.cycle
            if cycle is None or cycle.response_complete or cycle.more_body:
                return False
            cycle.keep_alive = False
            if cycle.scope["http_version"] == "1.1":
                self.loop.call_later(_PROBE_AFTER_S, self._probe)
            return True

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._stop_answering()
            super().connection_lost(exc)
            self._count_unread(0)

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
            self._answering = cycle
            super()._start_asgi_task(cycle, app)

        def _stop_answering(self) -> None:
            if self._answering is not None:  # not always self.cycle, which is that of the last request
                self._answering.disconnected = True
                self._answering.message_event.set()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._count_unread(self.transport.get_write_buffer_size())
            self._read_deadline = self.loop.call_later(limits.spec.body_timeout_s, self._reset)

        def resume_writing(self) -> None:
            self._count_unread(0)
            super().resume_writing()

        def _reset(self) -> None:
            self._stop_answering()
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)  # also what the system holds
            self.transport.abort()

        def _count_unread(self, number: int) -> None:
            limits.held_bytes += number - self._unread_bytes
            self._unread_bytes = number
            if self._read_deadline is not None:
                self._read_deadline.cancel()
                self._read_deadline = None

        def _unsupported_upgrade_warning(self) -> None:
            """Parse the request again without its offer of another protocol, to which the parser gives its body.

            Clients such as Java's HttpClient and curl --http2 offer HTTP/2 with every request.
            """
            stopped = sys.exception()  # in uvicorn's handler
            if self.parser.get_method() == b"CONNECT" or not isinstance(stopped, httptools.HttpParserUpgrade):
                self.send_400_response("this server is not a proxy")
                return
            head = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
            for name, value in self.headers:
                if name == b"connection":
                    value = b"close" if b"close" in value.lower() else b"keep-alive"
                if name != b"upgrade":
                    head.append(b"%s: %s" % (name, value))
            rest = self._data[stopped.args[0] :]
            self.parser = httptools.HttpRequestParser(self)
            self._data = b"\r\n".join([*head, b"", b""]) + rest
            super().data_received(self._data)

        def _count_parsed(self, number: int) -> None:
            self._parsed_bytes += number
            if self._parsed_bytes > MAX_HEADER_BYTES:
                raise ValueError(_TOO_LARGE)  # stops the parser, which then asks for send_400_response

        def _expect_request(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(limits.spec.header_timeout_s, self._close_if_idle)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close_if_idle(self) -> None:
            self._deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def _probe(self) -> None:
            if not self.transport.is_closing() and not self.cycle.response_started:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self.loop.call_later(_RESET_WITHIN_S, self._close_if_reset)

        def _close_if_reset(self) -> None:
            connection = self.transport.get_extra_info("socket")
            if not self.transport.is_closing() and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.transport.abort()

    return LimitedProtocol


def _bad_request(why: str) -> bytes:
    body = json.dumps({"error": why}).encode()
    headers = {
        **SECURITY_HEADERS,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body

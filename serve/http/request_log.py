"""One log line per request, with an id that the client gets too. No file name is logged: it may name a patient."""

from __future__ import annotations

import itertools
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FORMATS = ("off", "text", "json")
ID_HEADER = "X-Request-ID"
# A client's id is written to the log: it must not be able to forge a log line.
_SAFE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_FIELDS = "xfeat.log_fields"

LogWriter = Callable[[dict[str, Any]], None]


def add_log_fields(request: Request, **fields: Any) -> None:
    """Add fields to the log line of a request."""
    request.scope.setdefault(_FIELDS, {}).update(fields)


class LogRequests:
    """Middleware that gives each request an id and logs it when it has been answered.

    Args:
        app: the application.
        write: receives the log fields of each request; ``None`` disables the log.
    """

    def __init__(self, app: ASGIApp, write: LogWriter | None = None) -> None:
        self._app = app
        self._write = write
        self._prefix = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log its status."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(ID_HEADER, "")
        identifier = given if _SAFE_ID.fullmatch(given) else f"{self._prefix}-{next(self._numbers)}"
        scope[_FIELDS] = {}
        started = time.perf_counter()
        status = 500

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[ID_HEADER] = identifier
            await send(message)

        try:
            await self._app(scope, receive, with_id)
        finally:
            if self._write is not None:
                self._write(
                    {
                        "request_id": identifier,
                        "method": scope["method"],
                        "route": getattr(scope.get("route"), "path", "none"),
                        "status": status,
                        "seconds": round(time.perf_counter() - started, 4),
                        **scope[_FIELDS],
                    }
                )


class JsonLines(logging.Formatter):
    """Log records as JSON objects, one per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, message, and the traceback if there is one."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line.update(getattr(record, "request_fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_writer(kind: str, logger: logging.Logger) -> LogWriter | None:
    """Return the function that logs a request in one of :data:`FORMATS`; ``None`` for ``off``."""
    if kind == "off":
        return None

    def write(fields: dict[str, Any]) -> None:
        if kind == "json":
            logger.info("request", extra={"request_fields": fields})
        else:
            logger.info("%s", " ".join(f"{key}={value}" for key, value in fields.items()))

    return write

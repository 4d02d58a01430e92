"""One line a request, with an id that the client hears too. Neither images nor file names: those may name patients."""

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
# What a client sends as an id is written into logs: nothing there may look like a line of its own.
_SAFE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_NOTES = "xfeat.notes"

Write = Callable[[dict[str, Any]], None]


def note(request: Request, **facts: Any) -> None:
    """Add facts to the line of a request."""
    request.scope.setdefault(_NOTES, {}).update(facts)


class LogRequests:
    """Middleware that gives each request an id and writes a line when it has been answered.

    Args:
        app: the application.
        write: gets the facts of each request; ``None`` writes nothing.
    """

    def __init__(self, app: ASGIApp, write: Write | None = None) -> None:
        self._app = app
        self._write = write
        self._process = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(ID_HEADER, "")
        identifier = given if _SAFE_ID.fullmatch(given) else f"{self._process}-{next(self._numbers)}"
        scope[_NOTES] = {}
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
                        **scope[_NOTES],
                    }
                )


class JsonLines(logging.Formatter):
    """Log records as JSON objects, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level and message, and a traceback if there is one."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line.update(getattr(record, "facts", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def writer(kind: str, logger: logging.Logger) -> Write | None:
    """Return what writes the line of a request in one of :data:`FORMATS`; ``None`` for ``off``."""
    if kind == "off":
        return None

    def write(facts: dict[str, Any]) -> None:
        if kind == "json":
            logger.info("request", extra={"facts": facts})
        else:
            logger.info("%s", " ".join(f"{key}={value}" for key, value in facts.items()))

    return write

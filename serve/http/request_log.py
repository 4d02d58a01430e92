"""One log line per request. No file name is logged: it may name a patient."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

LogWriter = Callable[[dict[str, Any]], None]


def log_fields(scope: Scope) -> dict[str, Any]:
    """Return the fields that a route adds to the log line of its request; they can be changed in place."""
    fields: dict[str, Any] = scope.setdefault("xfeat.log_fields", {})
    return fields


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
    """Return the function that logs a request as ``text`` or ``json``; ``None`` for ``off``."""
    if kind == "off":
        return None

    def write(fields: dict[str, Any]) -> None:
        if kind == "json":
            logger.info("request", extra={"request_fields": fields})
        else:
            logger.info("%s", " ".join(f"{key}={value}" for key, value in fields.items()))

    return write

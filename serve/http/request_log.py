"""One log line per request. No file name is logged: it may name a patient."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from collections.abc import Callable
from typing import Any

from starlette.types import Scope

LogWriter = Callable[[dict[str, Any]], None]
_PLAIN = re.compile(r"[^\s\"=\\]+")


def log_fields(scope: Scope) -> dict[str, Any]:
    """Return the fields that a route adds to the log line of its request; they can be changed in place."""
    fields: dict[str, Any] = scope.setdefault("xfeat.log_fields", {})
    return fields


def client_address(client: tuple[str, int] | None) -> str:
    """Return the IP address of a client, that of IPv4 also if it came to a socket of IPv6 (``::ffff:10.0.0.5``).

    A proxy may pass on any text; what is no address is ``unknown``.
    """
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return "unknown"
    return str(getattr(address, "ipv4_mapped", None) or address)


def log_writer(kind: str, logger: logging.Logger, *, with_client: bool = True) -> LogWriter | None:
    """Return the function that logs a request; ``None`` for ``off``.

    Args:
        kind: ``off``, ``text`` or ``json``.
        logger: gets the fields as text, and as ``request_fields`` of the record.
        with_client: whether the address of the client is logged.
    """
    if kind == "off":
        return None

    def write(fields: dict[str, Any]) -> None:
        shown = {name: value for name, value in fields.items() if with_client or name != "client"}
        text = " ".join(f"{name}={_plain(str(value))}" for name, value in shown.items())
        logger.info("%s", text, extra={"request_fields": shown})

    return write


def _plain(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)

"""What web pages of other sites may do with a server that the browser can reach: nothing, unless they are listed."""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)\.?(?::[0-9]{1,5})?", re.ASCII)
# Nobody can register names below these, so no other site can point one to this server (DNS rebinding).
# Source: RFC 6761, RFC 6762, RFC 8375, and ICANN's reservation of .internal.
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa", ".test")


class CheckHost:
    """Middleware that answers only requests for this server's own name: 421 for others.

    IP addresses, names without a dot and names that cannot be registered always count as its own.

    Args:
        app: the application.
        allowed: further names; ``*`` allows all.
    """

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._app = app
        self._allowed = {name.lower() for name in (*allowed, socket.gethostname(), socket.getfqdn())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 400 or 421."""
        if scope["type"] == "http" and ANY not in self._allowed:
            given = Headers(scope=scope).getlist("host")
            if len(given) != 1 and (given or scope["http_version"] != "1.0"):
                await JSONResponse({"error": "a request must have one Host header"}, 400)(scope, receive, send)
                return
            if given and not self._is_own(given[0].lower()):
                what = f"this server does not answer for the host {given[0][:100]}: start it with --allowed-host NAME"
                await JSONResponse({"error": what}, 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").rstrip(".")
        return "." not in name or name in self._allowed or name.endswith(_PRIVATE_SUFFIXES) or _is_address(name)


class RefuseCrossSite:
    """Middleware that answers 403 to a POST that a browser sends for a page of another site.

    A form or an image needs no permission from the browser (CORS): without this, every page could send them.

    Args:
        app: the application.
        origins: whose pages may; ``*`` allows all.

    Source: the same rule as ``http.CrossOriginProtection`` of Go 1.25, after F. Valsorda, "Cross-Site Request Forgery",
    2025.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            if not self._may_send(headers):
                origin = headers.get("origin", "another site")[:200]
                what = f"pages of {origin} may not send requests here: start the server with --cors-origin ORIGIN"
                await JSONResponse({"error": what}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _may_send(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if ANY in self._origins or origin in self._origins:
            return True
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or origin.partition("://")[2] == headers.get("host")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

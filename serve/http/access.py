"""Who may ask, and under which address: the prefix of a proxy, host names, other web sites, the API key.

Each is a check: a function that returns the response by which a request is refused, or ``None``.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from xfeat.serve.http.page_routes import PAGES

Check = Callable[[Scope], Response | None]

# The page and the health routes never need the API key: they hold no data.
PUBLIC_PATHS = frozenset({*PAGES, "/openapi.json", "/health", "/v2/health/live", "/v2/health/ready"})
KEY_HEADER = "X-API-Key"
_SCHEME = "bearer "
_ANY = "*"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)\.?(?::[0-9]{0,5})?", re.ASCII)
# Nobody can register names below these, so no other site can point one to this server (DNS rebinding).
# Source: RFC 6761, RFC 6762, RFC 8375, and ICANN's reservation of .internal.
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa", ".test")
_PREFIX = re.compile(r"(?:/[\w.~-]+)*", re.ASCII)
_PREFIX_HEADER = "X-Forwarded-Prefix"


class CheckRequests:
    """Middleware that answers with what a check returns, or else passes the request on."""

    def __init__(self, app: ASGIApp, check: Check) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and answer it or pass it on."""
        refusal = self._check(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)


def mount_under(root_path: str, *, trust_forwarded: bool) -> Check:
    """Tell the routes the path below which a proxy publishes the server, whether it removes it from requests or not.

    A slash at the end of an address is removed; pages redirect instead.

    Args:
        root_path: such as ``/xray``, or nothing.
        trust_forwarded: take the path from ``X-Forwarded-Prefix`` if a request has it. Clients can send it as well.
    """

    def check(scope: Scope) -> Response | None:
        prefix = root_path.rstrip("/")
        if trust_forwarded and (forwarded := Headers(scope=scope).getlist(_PREFIX_HEADER)):
            # Each proxy adds its own part.
            parts = (part.strip().strip("/") for part in ",".join(forwarded).split(","))
            prefix = "".join(f"/{part}" for part in parts if part)
            if not _PREFIX.fullmatch(prefix):
                return _refuse(400, f"{_PREFIX_HEADER} must be a path such as /xray")
        path = scope["path"]
        inside = path[len(prefix) :] if path == prefix or path.startswith(f"{prefix}/") else path
        if inside != "/" and (inside.rstrip("/") or "/") in PAGES and inside not in PAGES:
            # The links of a page are relative to its address. So is this one: it is right behind any proxy.
            page = inside.strip("/")
            return RedirectResponse(f"../{page}" if page else prefix.rpartition("/")[2] + "/")
        scope["root_path"] = prefix
        scope["path"] = prefix + (inside if inside == "/" else inside.rstrip("/"))
        return None

    return check


def require_own_host(allowed: tuple[str, ...]) -> Check:
    """Refuse requests for a name that is not this server's own with 421.

    IP addresses, names without a dot and names that cannot be registered always count as its own.

    Args:
        allowed: further names; ``*`` allows all.
    """
    own = {name.lower() for name in (*allowed, socket.gethostname(), socket.getfqdn())}

    def check(scope: Scope) -> Response | None:
        given = Headers(scope=scope).getlist("host")
        if _ANY in own or (not given and scope["http_version"] == "1.0"):
            return None
        if len(given) != 1:
            return _refuse(400, "a request must have one Host header")
        found = _HOST.fullmatch(given[0].lower())
        name = found[1].strip("[]").rstrip(".") if found else ""
        if found and ("." not in name or name in own or name.endswith(_PRIVATE_SUFFIXES) or _is_address(name)):
            return None
        return _refuse(
            421, f"this server does not answer for the host {given[0][:100]}: start it with --allowed-host NAME"
        )

    return check


def refuse_other_sites(allowed: tuple[str, ...]) -> Check:
    """Refuse a POST that a browser sends for a page of another site with 403.

    A form or an image needs no permission from the browser (CORS): without this, every page could send them.

    Args:
        allowed: origins whose pages may; ``*`` allows all.

    Source: the same rule as ``http.CrossOriginProtection`` of Go 1.25, after F. Valsorda, "Cross-Site Request Forgery",
    2025.
    """

    def check(scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or _ANY in allowed or origin in allowed:
            return None
        if site in ("same-origin", "none"):
            return None
        if site is None and (origin is None or origin.partition("://")[2] == headers.get("host")):
            return None
        sender = (origin or "another site")[:200]
        return _refuse(403, f"pages of {sender} may not send requests here: start the server with --cors-origin ORIGIN")

    return check


def require_key(key: str) -> Check:
    """Require ``Authorization: Bearer KEY`` or ``X-API-Key: KEY`` outside :data:`PUBLIC_PATHS`; 401 without it."""

    def check(scope: Scope) -> Response | None:
        if scope["path"].removeprefix(scope["root_path"]) in PUBLIC_PATHS:
            return None
        headers = Headers(scope=scope)
        given = headers.get("authorization", "")
        given = given[len(_SCHEME) :] if given.lower().startswith(_SCHEME) else headers.get(KEY_HEADER, "")
        # Browsers send Latin-1, curl UTF-8; headers are read as the former. The time does not depend on the difference.
        as_utf_8 = given.encode("latin-1").decode("utf-8", "replace")
        if any(hmac.compare_digest(text.encode(), key.encode()) for text in (given, as_utf_8)):
            return None
        what = "this server requires an API key: send Authorization: Bearer KEY"
        return JSONResponse({"error": what}, 401, {"WWW-Authenticate": "Bearer"})

    return check


def _refuse(status: int, what: str) -> Response:
    return JSONResponse({"error": what}, status)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

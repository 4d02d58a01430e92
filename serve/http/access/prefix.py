"""The path below which a reverse proxy publishes the server, whether the proxy removes it from requests or not."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from xfeat.serve.http.page_routes import PAGES

_PREFIX = re.compile(r"(?:/[\w.~-]+)*", re.ASCII)
_HEADER = "X-Forwarded-Prefix"


class MountUnderPrefix:
    """Middleware that tells the routes the prefix, and takes addresses with a slash at the end.

    Args:
        app: the application.
        root_path: the prefix, such as ``/xray``, or nothing.
        trust_forwarded: take the prefix from ``X-Forwarded-Prefix`` if a request has it. Clients can send it as well.
    """

    def __init__(self, app: ASGIApp, root_path: str, trust_forwarded: bool) -> None:
        self._app = app
        self._root_path = root_path.rstrip("/")
        self._trust_forwarded = trust_forwarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its prefix, or answer a redirect to a page, or 400."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix = self._root_path
        if self._trust_forwarded and (forwarded := Headers(scope=scope).getlist(_HEADER)):
            # Each proxy adds its own part.
            parts = (part.strip().strip("/") for part in ",".join(forwarded).split(","))
            prefix = "".join(f"/{part}" for part in parts if part)
            if not _PREFIX.fullmatch(prefix):
                await JSONResponse({"error": f"{_HEADER} must be a path such as /xray"}, 400)(scope, receive, send)
                return
        path = scope["path"]
        inside = path[len(prefix) :] if path == prefix or path.startswith(f"{prefix}/") else path
        if inside != "/" and (inside.rstrip("/") or "/") in PAGES and inside not in PAGES:
            # The links of a page are relative to its address. So is this one: it is right behind any proxy.
            name = prefix.rpartition("/")[2] + "/" if not inside.strip("/") else f"../{inside.strip('/')}"
            await RedirectResponse(name)(scope, receive, send)
            return
        scope["root_path"] = prefix
        scope["path"] = prefix + (inside if inside == "/" else inside.rstrip("/"))
        await self._app(scope, receive, send)

"""Who may ask: everybody, or those who know the key. Pages and health are open, for they tell nothing of anybody."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from xfeat.serve.http.page_routes import PAGES

OPEN = frozenset({*PAGES, "/openapi.json", "/health", "/v2/health/live", "/v2/health/ready"})
KEY_HEADER = "X-API-Key"
_SCHEME = "bearer "


class RequireKey:
    """Middleware that asks for ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

    Args:
        app: the application.
        key: ``None`` lets everybody in.
    """

    def __init__(self, app: ASGIApp, key: str | None = None) -> None:
        self._app = app
        self._digest = None if key is None else _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or self._digest is None or scope["path"] in OPEN or self._knows(scope):
            await self._app(scope, receive, send)
            return
        refusal = JSONResponse(
            {"error": "this server wants an API key: send Authorization: Bearer KEY"},
            401,
            {"WWW-Authenticate": "Bearer", "Connection": "close"},
        )
        await refusal(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        given = headers.get("authorization", "")
        key = given[len(_SCHEME) :] if given.lower().startswith(_SCHEME) else headers.get(KEY_HEADER, "")
        # Digests have one length, and compare_digest takes as long for the last byte as for the first.
        return self._digest is not None and hmac.compare_digest(_digest(key), self._digest)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

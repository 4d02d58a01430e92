"""The API key. Without one every client has access. The page and the health routes never need it: they hold no data."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from xfeat.serve.http.page_routes import PAGES

PUBLIC_PATHS = frozenset({*PAGES, "/openapi.json", "/health", "/v2/health/live", "/v2/health/ready"})
KEY_HEADER = "X-API-Key"
_SCHEME = "bearer "


class RequireKey:
    """Middleware that requires ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

    Args:
        app: the application.
        key: that clients must send.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._digest = _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or self._is_public(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        rejection = JSONResponse(
            {"error": "this server requires an API key: send Authorization: Bearer KEY"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )
        await rejection(scope, receive, send)

    @staticmethod
    def _is_public(scope: Scope) -> bool:
        return scope["path"].removeprefix(scope.get("root_path", "")) in PUBLIC_PATHS

    def _has_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        given = headers.get("authorization", "")
        key = given[len(_SCHEME) :] if given.lower().startswith(_SCHEME) else headers.get(KEY_HEADER, "")
        # All digests have the same length, and the time of compare_digest does not depend on where they differ.
        return hmac.compare_digest(_digest(key), self._digest)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

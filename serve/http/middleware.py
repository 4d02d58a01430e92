"""What every response passes through: it gets an id and the security headers, is counted, timed and logged."""

from __future__ import annotations

import itertools
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xfeat.serve.http.request_log import LogWriter, client_address, log_fields
from xfeat.serve.models.registry import ModelRegistry

NO_ROUTE = "none"
# Routes on which a request that names no model is for the default one.
_FOR_DEFAULT = ("/predict", "/preview", "/model")

ID_HEADER = "X-Request-ID"
# A client's id is written to the log: it must not be able to forge a log line.
_SAFE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)

# Starlette looks for the word alone.
_REFUSES_GZIP = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)", re.IGNORECASE)

# They isolate the page: it loads nothing from other sites, and no other site can embed it. blob: is for the chosen
# images, which are in the browser's memory.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class CompressResponses(GZipMiddleware):
    """Middleware that compresses long responses for clients that accept gzip, in threads if they are very long."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, minimum_size=4096, compresslevel=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and compress its response."""
        if scope["type"] == "http" and _REFUSES_GZIP.search(Headers(scope=scope).get("accept-encoding", "")):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class ObserveRequests:
    """Middleware that adds :data:`SECURITY_HEADERS` and an id to each response, and counts, times and logs it.

    HEAD is answered as GET: the server leaves out the body.

    Args:
        app: the application.
        models: their metrics get status and time per route. All unknown paths count as one route.
        routes: of the application.
        log: receives the log fields of each request; ``None`` disables the log.
    """

    def __init__(
        self, app: ASGIApp, models: ModelRegistry, routes: Sequence[BaseRoute], log: LogWriter | None = None
    ) -> None:
        self._app = app
        self._models = models
        self._routes = routes
        self._log = log
        self._prefix = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, complete the headers of its response and note its status and time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy, because the server looks into its own
        given = Headers(scope=scope).get(ID_HEADER, "")
        identifier = given if _SAFE_ID.fullmatch(given) else f"{self._prefix}-{next(self._numbers)}"
        started = time.perf_counter()
        status = 500

        async def complete(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(SECURITY_HEADERS | {ID_HEADER: identifier})
            await send(message)

        try:
            await self._app(scope, receive, complete)
        finally:
            seconds = time.perf_counter() - started
            route, parameters = self._route_of(scope)
            self._models.metrics.requests.labels(route, str(status)).inc()
            self._models.metrics.latency.labels(route).observe(seconds)
            if self._log is not None:
                line = {"client": client_address(scope.get("client")), "request_id": identifier, "method": method}
                line |= {"route": route, "status": status, "seconds": round(seconds, 4), **log_fields(scope)}
                default = self._models.default_name if route in _FOR_DEFAULT else None
                name = parameters.get("name") or QueryParams(scope["query_string"]).get("model", default)
                # Any other name may be anything, such as that of a patient.
                self._log(line | ({"model": name} if name in self._models else {}))

    def _route_of(self, scope: Scope) -> tuple[str, dict[str, str]]:
        """Return the route of a request as it is written, and its parameters, also if the request did not get there."""
        if (found := scope.get("route")) is not None:
            return found.path, scope.get("path_params", {})
        for route in self._routes:
            match, inner = route.matches(scope)
            if match != Match.NONE:
                return str(getattr(route, "path", NO_ROUTE)), inner.get("path_params", {})
        return NO_ROUTE, {}

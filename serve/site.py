"""The page and the description of the interface: files of this package, read once."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

_FOLDER = Path(__file__).with_name("page")
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/cards.js": ("cards.js", "text/javascript; charset=utf-8"),
    "/table.js": ("table.js", "text/javascript; charset=utf-8"),
    "/server.js": ("server.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def site_routes() -> APIRouter:
    """Return the routes of the page. ``/docs`` renders ``/openapi.json`` here, for FastAPI's own loads from a CDN."""
    router = APIRouter(include_in_schema=False)
    for address, (name, media_type) in PAGES.items():
        _add_page(router, address, (_FOLDER / name).read_bytes(), media_type)
    return router


def _add_page(router: APIRouter, address: str, content: bytes, media_type: str) -> None:
    @router.api_route(address, methods=["GET", "HEAD"])
    async def page() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

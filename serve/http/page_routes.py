"""The page and the description of the interface: files of this package, read once."""

from __future__ import annotations

from pathlib import PurePath

from fastapi import APIRouter
from starlette.responses import Response

from xfeat.serve.page_files import FORMS, page_file

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_ADDRESSES = {"index.html": "/", "docs.html": "/docs"}
PAGES = {_ADDRESSES.get(name, f"/{name}"): name for name in FORMS["server"]}


def site_routes() -> APIRouter:
    """Return the routes of the page. ``/docs`` renders ``/openapi.json`` here, for FastAPI's own loads from a CDN."""
    router = APIRouter(include_in_schema=False)
    for address, name in PAGES.items():
        _add_page(router, address, page_file(name, "server"), _TYPES[PurePath(name).suffix])
    return router


def _add_page(router: APIRouter, address: str, content: bytes, media_type: str) -> None:
    @router.api_route(address, methods=["GET", "HEAD"])
    async def page() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

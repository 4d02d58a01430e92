"""The page and the description of the HTTP interface: files of this package, read once at the start."""

from __future__ import annotations

from pathlib import PurePath

from fastapi import APIRouter
from starlette.responses import Response

from xfeat.serve.page_files import PAGE_FILES, page_file

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PATHS = {"index.html": "/", "docs.html": "/docs"}
PAGES = {_PATHS.get(name, f"/{name}"): name for name in PAGE_FILES["server"]}


def site_routes() -> APIRouter:
    """Return the routes of the page. ``/docs`` is our own page, because FastAPI's loads its scripts from a CDN."""
    router = APIRouter(include_in_schema=False)
    for path, name in PAGES.items():
        _add_page(router, path, page_file(name, "server"), _MEDIA_TYPES[PurePath(name).suffix])
    return router


def _add_page(router: APIRouter, path: str, content: bytes, media_type: str) -> None:
    @router.api_route(path, methods=["GET", "HEAD"])
    async def page() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

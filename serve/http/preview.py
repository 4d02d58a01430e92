"""Pictures that a browser cannot show (DICOM, TIFF) as PNG, for the page."""

from __future__ import annotations

import asyncio
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.system.cores import cores
from xfeat.serve.http.openapi import ErrorBody
from xfeat.serve.http.service import Service

logger = logging.getLogger(__name__)

SIDE = 1024
# The page asks for one at a time; more than this come from many pages, or from no page.
_MOST_WAITING = 16  # beyond those that are being drawn

_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
    }
}
_MEANINGS = {
    408: "The request took too long to arrive",
    413: "Too many bytes",
    422: "Not a readable image",
    503: "Too busy; see Retry-After",
    504: "No picture in time",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture", "content": {"image/png": {}}},
    **{status: {"model": ErrorBody, "description": meaning} for status, meaning in _MEANINGS.items()},
}


def preview_routes(service: Service) -> APIRouter:
    """Return the route ``POST /preview``: an image file in, a PNG out."""
    router = APIRouter(tags=["Predict"])
    # As many at a time as there are cores, also of those that nobody waits for any more: each may hold a picture of 100
    # megapixels.
    drawers = ThreadPoolExecutor(cores(), thread_name_prefix="preview")
    inside = 0
    summary = f"An image file as a PNG to look at, no side longer than {SIDE} pixels"

    @router.post("/preview", summary=summary, response_class=Response, responses=_RESPONSES, openapi_extra=_FILE)
    async def preview(request: Request) -> Response:
        nonlocal inside
        with service.intake.admit(request) as body:
            async with body.arriving():
                content = await body.read()
            if inside >= cores() + _MOST_WAITING:
                wait = str(service.spec.retry_after_s)
                raise HTTPException(
                    503, f"too many pictures wait to be drawn; try again in {wait} s", {"Retry-After": wait}
                )
            inside += 1
            waiting = [content]
            drawn = drawers.submit(_draw_waiting, waiting)
            try:
                picture = await service.wait(request, asyncio.wrap_future(drawn))
            except ImageError as error:
                raise HTTPException(422, error.what) from error
            finally:
                drawn.cancel()  # at once: asyncio would do so a moment after the reply
                waiting.clear()  # what is cancelled stays in the queue until its turn comes, but not with its bytes
                inside -= 1
        return Response(picture, media_type="image/png")

    return router


def _draw_waiting(waiting: list[bytes]) -> bytes:
    return draw_preview(waiting.pop())


def draw_preview(content: bytes) -> bytes:
    """Decode an image file as the network's input is decoded, and make it no larger than a screen shows.

    Args:
        content: of an image file.

    Returns:
        The content of a PNG file, grey or RGB, no side longer than :data:`SIDE` pixels.

    Raises:
        ImageError: if it is no readable image.
    """
    try:
        picture = decode(content)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
    except ImageError:
        raise
    except Exception as error:
        # As in Predictor.decode: damaged files make decoders fail in more ways than can be listed.
        logger.debug("an image cannot be decoded", exc_info=True)
        raise ImageError(f"cannot be decoded: {error}") from error
    return file.getvalue()

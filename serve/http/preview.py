"""PNG previews of images that a browser cannot show (DICOM, TIFF), for the page."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from xfeat.featurize.errors import ImageError
from xfeat.featurize.images.decode import decode
from xfeat.featurize.specs import PreprocessSpec
from xfeat.featurize.system.cores import cores
from xfeat.serve.http.limits.bodies import too_busy
from xfeat.serve.http.openapi import Responses, errors, request_body
from xfeat.serve.http.service import Service
from xfeat.serve.inference.reading import decoding

SIDE = 1024
# The page asks for one preview at a time; a longer queue comes from many pages, or from other clients.
_MAX_WAITING = 16  # not counting those that are being drawn

_FILE = request_body("application/octet-stream", {"schema": {"type": "string", "format": "binary", "minLength": 1}})
_RESPONSES: Responses = {
    200: {"description": "The preview", "content": {"image/png": {}}},
    **errors(404, 408, 503, special={413: "Too many bytes", 422: "Not a readable image", 504: "No preview in time"}),
}


def preview_threads() -> ThreadPoolExecutor:
    """Return the threads that draw: one per core, because each may hold an image of 100 megapixels."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="preview")


def preview_routes(service: Service, threads: ThreadPoolExecutor) -> APIRouter:
    """Return the route ``POST /preview``: an image file in, a PNG out."""
    router = APIRouter(tags=["Predict"])
    unfinished = 0
    summary = f"Preview of an image file: a PNG of at most {SIDE} pixels per side"

    @router.post("/preview", summary=summary, response_class=Response, responses=_RESPONSES, openapi_extra=_FILE)
    async def preview(request: Request, model: str | None = None) -> Response:
        nonlocal unfinished
        spec = service.find(model).predictor.metadata.feature_spec.preprocess
        with service.body_limits.admit(request) as body:
            waiting = [await body.read()]
            if unfinished >= cores() + _MAX_WAITING:
                raise too_busy(service.spec, "too many previews are waiting")
            unfinished += 1
            future = threads.submit(_draw_waiting, waiting, spec)
            try:
                png = await service.wait(request, asyncio.wrap_future(future))
            except ImageError as error:
                raise HTTPException(422, error.what) from error
            finally:
                future.cancel()  # immediately: asyncio would do so only after the response
                waiting.clear()  # a cancelled task stays in the queue until its turn, but without the bytes
                unfinished -= 1
        return Response(png, media_type="image/png")

    return router


def _draw_waiting(waiting: list[bytes], spec: PreprocessSpec) -> bytes:
    return draw_preview(waiting.pop(), spec)


def draw_preview(content: bytes, spec: PreprocessSpec) -> bytes:
    """Decode an image file as for the network, and reduce it to the size of a screen.

    Args:
        content: of an image file.
        spec: how the model reads it.

    Returns:
        The content of a PNG file, grey or RGB, with at most :data:`SIDE` pixels per side.

    Raises:
        ImageError: if it is not a readable image.
    """
    file = io.BytesIO()
    with decoding():
        picture = decode(content, spec)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        picture.save(file, "PNG", compress_level=1)
    return file.getvalue()

"""What a request brings: image files in a multipart form, refused as soon as a limit is passed."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import python_multipart  # noqa: F401 - starlette needs it to read forms; its absence must show at the start
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from serve.spec import MEBIBYTE, ServeSpec

FIELD = "files"
_MULTIPART = "multipart/form-data"
# The rest of an oversized body is not read, so the connection cannot carry another request.
_CLOSE = {"Connection": "close"}


async def read_images(request: Request, spec: ServeSpec) -> list[tuple[str, bytes]]:
    """Return name and content of every file in the form field ``files``.

    Raises:
        HTTPException: 413 for too many bytes or files, 408 for a client that is too slow, 415 and 422 for another
            content than a form with files, 400 for a damaged form.
    """
    if not request.headers.get("content-type", "").lower().startswith(_MULTIPART):
        raise HTTPException(415, f"send {_MULTIPART} with image files in the field '{FIELD}'", _CLOSE)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > spec.max_body_bytes:
        _refuse_body(spec)
    counted = Request(request.scope, _Counted(request, spec).receive)
    try:
        async with asyncio.timeout(spec.body_timeout_s):
            return await _read_form(counted, spec)
    except ClientDisconnect as error:
        raise HTTPException(400, "the client went away") from error
    except TimeoutError as error:
        raise HTTPException(408, f"the request took longer than {spec.body_timeout_s:g} seconds", _CLOSE) from error


async def _read_form(request: Request, spec: ServeSpec) -> list[tuple[str, bytes]]:
    try:
        form = await request.form(max_files=spec.max_files)
    except HTTPException as error:
        # The parser has one exception for all it dislikes; only its text tells this one apart.
        if error.status_code == 400 and "Too many files" in str(error.detail):
            raise HTTPException(413, f"more than {spec.max_files} files in one request", _CLOSE) from error
        raise
    try:
        files = [item for item in form.getlist(FIELD) if isinstance(item, UploadFile)]
        if not files:
            raise HTTPException(422, f"no image files in the form field '{FIELD}'")
        return [(file.filename or f"image {number}", await file.read()) for number, file in enumerate(files, start=1)]
    finally:
        await form.close()


class _Counted:
    """Passes a request's body on and stops it at the limit, whatever its Content-Length says."""

    def __init__(self, request: Request, spec: ServeSpec) -> None:
        self._receive = request.receive
        self._spec = spec
        self._bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._spec.max_body_bytes:
            _refuse_body(self._spec)
        return message


def _refuse_body(spec: ServeSpec) -> NoReturn:
    raise HTTPException(413, f"the request is larger than {spec.max_body_bytes / MEBIBYTE:g} MiB", _CLOSE)

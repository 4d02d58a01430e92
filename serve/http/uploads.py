"""Image files in a multipart form. They stay in memory: a full disk stops no upload, and nothing is left behind."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from xfeat.serve.http.body_limits import CLOSE, Body
from xfeat.serve.specs import ServeSpec

FIELD = "files"
_MULTIPART = "multipart/form-data"


class _InMemory(MultiPartParser):
    """Starlette's parser without its temporary files; how much memory that takes, the intake limits."""

    spool_max_size = sys.maxsize

    def on_headers_finished(self) -> None:
        """Take every part of the field as a file: a client may leave the file name out."""
        _, options = parse_options_header(self._current_part.content_disposition)
        if options.get(b"name") == FIELD.encode() and b"filename" not in options:
            self._current_part.content_disposition = b'form-data; name="%s"; filename=""' % FIELD.encode()
        super().on_headers_finished()

    async def parse(self) -> FormData:
        """Return the fields; close what was begun if the form is damaged or ends too early."""
        form = await super().parse()
        # A last part without its end is in no field, and nobody else would close its file.
        kept = {id(item.file) for _, item in form.multi_items() if isinstance(item, UploadFile)}
        for file in self._files_to_close_on_error:
            if id(file) not in kept:
                file.close()
        return form


async def read_images(body: Body, spec: ServeSpec) -> list[tuple[str, bytes]]:
    """Return name and content of every file in the form field ``files``.

    Raises:
        HTTPException: 413 for too many bytes or files, 408 for a client that is too slow, 415 and 422 for another
            content than a form with files, 400 for a damaged form, 503 for lack of memory.
    """
    if not body.request.headers.get("content-type", "").lower().startswith(_MULTIPART):
        raise HTTPException(415, f"send {_MULTIPART} with image files in the field '{FIELD}'", CLOSE)
    async with body.arriving():
        form = await _read_form(body.request, spec)
    try:
        files = [item for item in form.getlist(FIELD) if isinstance(item, UploadFile)]
        if not files:
            raise HTTPException(422, f"no image files in the form field '{FIELD}'")
        return [(_name(file) or f"image {number}", await file.read()) for number, file in enumerate(files, start=1)]
    finally:
        await form.close()


async def _read_form(request: Request, spec: ServeSpec) -> FormData:
    stream: AsyncGenerator[bytes, None] = request.stream()
    try:
        return await _InMemory(request.headers, stream, max_files=spec.max_files).parse()
    except MultiPartException as error:
        # The parser has one exception for all it dislikes; only its text tells this one apart.
        if "Too many files" in error.message:
            raise HTTPException(413, f"more than {spec.max_files} files in one request", CLOSE) from error
        raise HTTPException(400, f"a damaged form: {error.message}", CLOSE) from error
    except (ValueError, LookupError) as error:
        # The form may name any codec of Python for its texts.
        raise HTTPException(400, "a damaged form: its character set does not fit", CLOSE) from error


def _name(file: UploadFile) -> str:
    # Some codecs give halves of characters, which no answer could carry.
    return (file.filename or "").encode("utf-8", "replace").decode("utf-8")

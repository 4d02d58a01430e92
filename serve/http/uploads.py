"""Image files in a multipart form. They stay in memory: uploads need no disk, and no file is left behind."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from xfeat.serve.http.body_limits import CLOSE, Body
from xfeat.serve.specs import ServeSpec

FIELD = "files"
_MULTIPART = "multipart/form-data"


class _TooManyFilesError(Exception):
    """The form holds more files than a request may have."""


class _InMemoryParser(MultiPartParser):
    """Starlette's parser without temporary files; :class:`BodyLimits` limits the memory."""

    spool_max_size = sys.maxsize

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], max_files: int) -> None:
        # The limit of the base class raises the same error as a damaged form.
        super().__init__(headers, stream, max_files=sys.maxsize)
        self._files_left = max_files

    def on_headers_finished(self) -> None:
        """Count the files. Each part of the field is one: a client may omit the file name."""
        _, options = parse_options_header(self._current_part.content_disposition)
        if options.get(b"name") == FIELD.encode() and b"filename" not in options:
            self._current_part.content_disposition = b'form-data; name="%s"; filename=""' % FIELD.encode()
        super().on_headers_finished()
        if self._current_part.file is not None:
            self._files_left -= 1
            if self._files_left < 0:
                raise _TooManyFilesError

    async def parse(self) -> FormData:
        """Return the fields; close all other files if the form is damaged or incomplete."""
        form = await super().parse()
        # A last part without its end is in no field, and nothing else would close its file.
        complete = {id(item.file) for _, item in form.multi_items() if isinstance(item, UploadFile)}
        for file in self._files_to_close_on_error:
            if id(file) not in complete:
                file.close()
        return form


async def read_images(body: Body, spec: ServeSpec) -> list[tuple[str, bytes]]:
    """Return name and content of every file in the form field ``files``.

    Raises:
        HTTPException: 413 for too many bytes or files, 408 if the client is too slow, 415 if the body is not a form,
            422 if the form holds no files, 400 if it is damaged, 503 if too much memory is in use.
    """
    if not body.request.headers.get("content-type", "").lower().startswith(_MULTIPART):
        raise HTTPException(415, f"send {_MULTIPART} with image files in the field '{FIELD}'", CLOSE)
    async with body.time_limit():
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
        return await _InMemoryParser(request.headers, stream, spec.max_files).parse()
    except _TooManyFilesError as error:
        raise HTTPException(413, f"more than {spec.max_files} files in one request", CLOSE) from error
    except MultiPartException as error:
        raise HTTPException(400, f"damaged form: {error.message}", CLOSE) from error
    except (ValueError, LookupError) as error:
        # A form may name any of Python's codecs for its texts.
        raise HTTPException(400, "damaged form: its texts do not match its character set", CLOSE) from error


def _name(file: UploadFile) -> str:
    # Some codecs produce lone surrogates, which no JSON response can hold.
    return (file.filename or "").encode("utf-8", "replace").decode("utf-8")

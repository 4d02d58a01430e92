"""Image files in a multipart form. They stay in memory: uploads need no disk, and no file is left behind."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from xfeat.serve.http.body_limits import CLOSE, Body
from xfeat.serve.http.openapi import request_body
from xfeat.serve.specs import ServeSpec

FIELD = "files"
_MULTIPART = "multipart/form-data"
_IMAGE_TYPES = "image/jpeg, image/png, image/bmp, image/tiff, image/webp"


def form_body(max_files: int) -> dict[str, Any]:
    """Describe a form of image files."""
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file, "minItems": 1, "maxItems": max_files}
    schema = {"type": "object", "required": [FIELD], "properties": {FIELD: files}}
    return request_body(_MULTIPART, {"schema": schema, "encoding": {FIELD: {"contentType": _IMAGE_TYPES}}})


class _InMemoryParser(MultiPartParser):
    """Starlette's parser without temporary files; :class:`BodyLimits` limits the memory."""

    spool_max_size = sys.maxsize

    def on_headers_finished(self) -> None:
        """Take each part of the field as a file: a client may omit the file name."""
        _, options = parse_options_header(self._current_part.content_disposition)
        if options.get(b"name") == FIELD.encode() and b"filename" not in options:
            self._current_part.content_disposition = b'form-data; name="%s"; filename=""' % FIELD.encode()
        super().on_headers_finished()

    async def parse(self) -> FormData:
        """Return the fields.

        Raises:
            HTTPException: 413 for too many files, 400 if the form is damaged.
        """
        try:
            return await super().parse()
        except MultiPartException as error:
            if self._current_files > self.max_files:
                raise HTTPException(413, f"more than {self.max_files} files in one request", CLOSE) from error
            raise HTTPException(400, f"damaged form: {error.message}", CLOSE) from error
        except (ValueError, LookupError) as error:
            # A form may name any of Python's codecs for its texts.
            raise HTTPException(400, "damaged form: its texts do not match its character set", CLOSE) from error

    def close(self) -> None:
        """Close all files, also that of a part without its end, which is in no field."""
        for file in self._files_to_close_on_error:
            file.close()


async def read_images(body: Body, spec: ServeSpec) -> list[tuple[str, bytes]]:
    """Return name and content of every file in the form field ``files``.

    Raises:
        HTTPException: 413 for too many bytes or files, 408 if the client is too slow, 415 if the body is not a form,
            422 if the form holds no files, 400 if it is damaged, 503 if too much memory is in use.
    """
    if not body.request.headers.get("content-type", "").lower().startswith(_MULTIPART):
        raise HTTPException(415, f"send {_MULTIPART} with image files in the field '{FIELD}'", CLOSE)
    stream: AsyncGenerator[bytes, None] = body.request.stream()
    parser = _InMemoryParser(body.request.headers, stream, max_files=spec.max_files)
    with contextlib.closing(parser):
        async with body.time_limit():
            form = await parser.parse()
        files = [item for item in form.getlist(FIELD) if isinstance(item, UploadFile)]
        if not files:
            raise HTTPException(422, f"no image files in the form field '{FIELD}'")
        return [(_name(file) or f"image {number}", await file.read()) for number, file in enumerate(files, start=1)]


def _name(file: UploadFile) -> str:
    # Some codecs produce lone surrogates, which no JSON response can hold.
    return (file.filename or "").encode("utf-8", "replace").decode("utf-8")

"""Image files in a request, as a form or as its whole body. They stay in memory: uploads need no disk."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from xfeat.serve.http.limits.bodies import Body
from xfeat.serve.http.openapi import request_body
from xfeat.serve.specs import ServeSpec

FIELD = "files"
# What other servers call it, and what libraries make of a list.
_FIELDS = {f"{name}{many}" for name in (FIELD, "file", "images", "image") for many in ("", "[]")}
_MULTIPART = "multipart/form-data"
_BINARY = "application/octet-stream"
_IMAGE_TYPES = "image/jpeg, image/png, image/bmp, image/tiff, image/webp"
# Source: RFC 8187, section 3.2.1, which requires UTF-8; the other one is of its predecessor RFC 5987.
_EXTENDED = re.compile(rb"""filename\*\s*=\s*"?(utf-8|iso-8859-1)'[^']*'([^\s;"]+)""", re.IGNORECASE)


def upload_body(max_files: int) -> dict[str, Any]:
    """Describe a form of image files, and a body that is one image file."""
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file, "minItems": 1, "maxItems": max_files}
    schema = {"type": "object", "required": [FIELD], "properties": {FIELD: files}, "additionalProperties": False}
    described = request_body(_MULTIPART, {"schema": schema, "encoding": {FIELD: {"contentType": _IMAGE_TYPES}}})
    described["requestBody"]["content"][_BINARY] = {"schema": file | {"minLength": 1}}
    return described


class _InMemoryParser(MultiPartParser):
    """Starlette's parser without temporary files; :class:`BodyLimits` limits the memory."""

    spool_max_size = sys.maxsize

    def on_headers_finished(self) -> None:
        """Take each part of the field as a file: a client may omit the file name, or write it as RFC 8187 says.

        Raises:
            HTTPException: 422 if the field is another, which would otherwise be ignored without a word.
        """
        disposition = self._current_part.content_disposition
        _, options = parse_options_header(disposition)
        name = options.get(b"name", FIELD.encode()).decode("utf-8", "replace")  # without a name, super() complains
        if name not in _FIELDS:
            raise HTTPException(
                422,
                f"form field {name[:100]!r} is not known: image files go into '{FIELD}'; "
                "options go into the address, such as /predict?heatmap=1",
            )
        if b"name" in options and b"filename" not in options:
            self._current_part.content_disposition = b'form-data; name="%s"; filename=""' % FIELD.encode()
        super().on_headers_finished()
        if self._current_part.file is not None and (extended := _extended_name(disposition or b"")):
            self._current_part.file.filename = extended

    async def parse(self) -> FormData:
        """Return the fields.

        Raises:
            HTTPException: 413 for too many files, 400 if the form is damaged.
        """
        try:
            return await super().parse()
        except MultiPartException as error:
            if self._current_files > self.max_files:
                raise HTTPException(413, f"more than {self.max_files} files in one request") from error
            raise HTTPException(400, f"damaged form: {error.message}") from error
        except (ValueError, LookupError) as error:
            # A form may name any of Python's codecs for its texts.
            raise HTTPException(400, "damaged form: its texts do not match its character set") from error

    def close(self) -> None:
        """Close all files, also that of a part without its end, which is in no field."""
        for file in self._files_to_close_on_error:
            file.close()


async def read_images(body: Body, spec: ServeSpec) -> list[tuple[str, bytes]]:
    """Return name and content of every image file: the parts of a form, or the whole body.

    Raises:
        HTTPException: 413 for too many bytes or files, 408 if the client is too slow, 415 if the type of the body is
            another, 422 if it holds no files, 400 if it is damaged, 503 if too much memory is in use.
    """
    kind = body.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        return await _read_form(body, spec)
    if kind.startswith("image/") or kind in (_BINARY, "application/dicom", ""):
        content = await body.read()
        if content:
            return [("image 1", content)]
        if kind:
            raise HTTPException(422, "the body is empty: it must be an image file")
    hint = "; JSON goes to /v2/models/NAME/infer" if kind == "application/json" else ""
    raise HTTPException(
        415,
        f"send {_MULTIPART} with image files in the field '{FIELD}', or one image file as the body with its type, "
        f"such as Content-Type: image/png{hint}",
    )


async def _read_form(body: Body, spec: ServeSpec) -> list[tuple[str, bytes]]:
    stream: AsyncGenerator[bytes, None] = body.request.stream()
    parser = _InMemoryParser(body.request.headers, stream, max_files=spec.max_files)
    with contextlib.closing(parser):
        async with body.time_limit():
            form = await parser.parse()
        files = [item for _, item in form.multi_items() if isinstance(item, UploadFile)]
        if not files:
            raise HTTPException(422, f"no image files in the form field '{FIELD}'")
        return [(_name(file) or f"image {number}", await file.read()) for number, file in enumerate(files, start=1)]


def _extended_name(disposition: bytes) -> str | None:
    """Return the file name of ``filename*=UTF-8''…``, which python-multipart leaves out."""
    found = _EXTENDED.search(disposition)
    return found and unquote_to_bytes(found[2]).decode(found[1].decode(), "replace")


def _name(file: UploadFile) -> str:
    # Some codecs produce lone surrogates, which no JSON response can hold.
    return (file.filename or "").encode("utf-8", "replace").decode("utf-8")

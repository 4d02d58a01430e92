"""The page as one HTML file that is opened without a server: the page, the model and onnxruntime-web inside."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from xfeat.featurize.errors import OutputError
from xfeat.featurize.progress import Steps
from xfeat.featurize.system.atomic import replacing
from xfeat.serve.page_files import page_file
from xfeat.serve.static_site.bundle import bundle
from xfeat.serve.static_site.write import DESCRIPTION, FORMAT, site_parts

# No address may be connected to. Script and style are allowed by their digests, so that nothing else is run.
POLICY = (
    "default-src 'none'; script-src {script} 'wasm-unsafe-eval'; style-src {style}; img-src blob: data:; "
    "connect-src 'none'; worker-src blob:; base-uri 'none'; form-action 'none'"
)
_MARK = f'<meta name="generator" content="{FORMAT}">'
_MARK_BYTES = 4096  # it is in the head, before the style
_SUFFIXES = (".html", ".htm")


def write_single(model: Path, file: Path, runtime: Path | None = None, progress: Steps | None = None) -> dict[str, int]:
    """Write a model as one HTML file. A file that this function wrote is replaced, any other is left.

    Args:
        model: a full model file of ``xexport onnx``.
        file: the file to write.
        runtime: source of onnxruntime-web; see :func:`xfeat.serve.static_site.onnxruntime_web.find_runtime`.
        progress: called with the bytes of its download.

    Returns:
        The name of the file, with its size in bytes.

    Raises:
        OutputError: if its name does not end in .html, if another file is there, or if it cannot be written.
        XfeatError: as :func:`xfeat.serve.static_site.write.write_site` says.
    """
    _require_own(file)
    description, parts = site_parts(model, runtime, progress)
    worker = bundle("worker.js", lambda name: _text(name, parts))
    script = bundle("browser.js", lambda name: _text(name, parts)).replace("</script", "<\\/script")
    style = _text("page.css", parts)
    icon = "data:image/svg+xml;base64," + base64.b64encode(page_file("icon.svg")).decode()
    policy = POLICY.format(script=_source(script), style=_source(style))
    page = page_file("index.html", "browser", "single").decode()
    data = [
        _data(DESCRIPTION, json.dumps(description).encode()),
        _data("worker.js", worker.encode()),
        *(_data(name, content) for name, content in parts.items() if not name.endswith(".js")),
    ]
    for old, new in {
        "$policy": policy,
        '<meta name="viewport"': f'{_MARK}\n  <meta name="viewport"',
        "icon.svg": icon,
        "</body>": "\n".join([*data, "</body>"]),
        '<link rel="stylesheet" href="page.css">': f"<style>{style}</style>",
        '<script type="module" src="browser.js"></script>': f'<script type="module">{script}</script>',
    }.items():
        if old not in page:
            raise ValueError(f"index.html has no {old}")
        page = page.replace(old, new)
    content = page.encode()
    with replacing(file) as partial:
        partial.write_bytes(content)
    return {file.name: len(content)}


def _text(name: str, parts: dict[str, bytes]) -> str:
    return (parts[name] if name in parts else page_file(name)).decode()


def _source(text: str) -> str:
    """Return how a policy names a script or style inside the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(name: str, content: bytes) -> str:
    """Return a part of the file that the page reads by its name: compressed to a quarter (WebAssembly), as text."""
    text = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _require_own(file: Path) -> None:
    """Reject an output that is another file, or that a double click would not open.

    Raises:
        OutputError: with what is there.
    """
    if file.suffix.lower() not in _SUFFIXES:
        raise OutputError("the name of a single page must end in .html", path=file, fix=f"use -o {file}.html")
    if not os.path.lexists(file):
        return
    is_own = False
    if file.is_file():
        with suppress(OSError), file.open("rb") as opened:
            is_own = _MARK.encode() in opened.read(_MARK_BYTES)
    if not is_own:
        raise OutputError(
            "not a page written by xserve page --single", path=file, fix="choose another file with -o, or move it away"
        )

"""The files of the page, which exists twice: with the model on a server, and with the model in the browser."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).with_name("page")

# Where the model runs: the files of the page.
PAGE_FILES = {
    "server": (
        *("index.html", "page.css", "icon.svg", "server.js", "page.js", "model.js", "cards.js", "table.js"),
        *("problem.js", "colours.js", "box.js", "docs.html", "docs.js"),
    ),
    "browser": (
        *("index.html", "page.css", "icon.svg", "browser.js", "page.js", "model.js", "cards.js", "table.js"),
        *("problem.js", "colours.js", "box.js", "worker.js", "decode.js", "answer.js", "heatmap.js", "resize.js"),
        *("dicom.js", "dicom_frame.js", "dicom_tags.js"),
    ),
}
_ONLY_FOR = re.compile(r"(\s*)<!-- (\w+) -->(.*?)<!-- /\2 -->", re.DOTALL)


def page_file(name: str, *parts: str) -> bytes:
    """Return the content of a file of the page.

    The HTML files are shared. What only some forms of the page have is between marks, such as ``<!-- server -->`` and
    ``<!-- /server -->``.

    Args:
        name: of the file, one of :data:`PAGE_FILES`.
        parts: the marked parts that stay: where the model runs, ``server`` or ``browser``; with the latter also how
            the page is opened, as a ``folder`` on a file server or as a ``single`` file.
    """
    content = (_FOLDER / name).read_bytes()
    if not name.endswith(".html"):
        return content
    text = _ONLY_FOR.sub(lambda part: part[1] + part[3] if part[2] in parts else "", content.decode())
    return text.encode()

"""The files of the page, in its two forms: with a server behind it, or with the model in the browser."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).with_name("page")

FORMS = {
    "server": (
        *("index.html", "page.css", "icon.svg", "server.js", "page.js", "model.js", "cards.js", "table.js"),
        *("problem.js", "docs.html", "docs.js"),
    ),
    "browser": (
        *("index.html", "page.css", "icon.svg", "browser.js", "page.js", "model.js", "cards.js", "table.js"),
        *("problem.js", "worker.js", "decode.js", "answer.js", "heatmap.js", "resize.js"),
    ),
}
_PARTS = re.compile(r"(\s*)<!-- (\w+) -->(.*?)<!-- /\2 -->", re.DOTALL)


def page_file(name: str, form: str) -> bytes:
    """Return the content of a file of the page.

    HTML holds both forms, each part of one form only between ``<!-- form -->`` and ``<!-- /form -->``.

    Args:
        name: of the file, one of ``FORMS[form]``.
        form: ``server`` or ``browser``.
    """
    content = (_FOLDER / name).read_bytes()
    if not name.endswith(".html"):
        return content
    text = _PARTS.sub(lambda part: part[1] + part[3] if part[2] == form else "", content.decode())
    return text.encode()

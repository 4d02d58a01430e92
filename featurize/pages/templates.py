"""The environment of all page templates: page.html is the skeleton, style.html the one stylesheet."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xfeat.featurize.text import printable_value

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
# Drawings, commands to copy and names from files (<bdi>) stay as they are, and so do tags.
_TOKENS = re.compile(r"(<(svg|bdi|code|script|style)\b.*?</\2>|<[^>]*>)|([^<]+)", re.DOTALL)
_INSIDE_NUMBERS = re.compile(
    r"(?<=\d)\s+(?=[^\W\d]|[%°×±≥≤=−+])|(?<=%)\s+(?=to\b|±)"  # 97.0 %, 3 classes, 20 MB, 1.0 % to 4.0 %
    r"|(?<=\bto)\s+(?=[−+]?\d)|(?<=\bof)\s+(?=\d)|(?<=\bp)\s+(?=\d)"  # 91.5 to 99.0, 13 of 20, p 0.03
    r"|(?<=[×±≥≤=−+])\s+(?=[−+]?\d)|(?<=&[lg]t;)\s+(?=\d)"  # ≥ 0.4597
)
_DATES = re.compile(r"(?<![\w.-])\d+(?:-\d+){1,2}(?![\w-])")  # 2026-11-29, 40-65: a browser breaks at the hyphen


def page_environment(*folders: tuple[str, str]) -> Environment:
    """Return an environment that loads templates of folders, each named by its package, and those of this room.

    Texts are escaped, and made printable; the filter ``unbroken`` is :func:`unbroken`.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(*each) for each in (*folders, ("xfeat.featurize.pages", "."))]),
        autoescape=True,
        finalize=printable_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment


def unbroken(html: str) -> Markup:
    """Let no line end between a number and its unit, or inside an interval or a date.

    Args:
        html: a part of a page. Names and paths in ``<bdi>`` and commands in ``<code>`` stay as they are, to be copied.
    """
    from markupsafe import Markup

    def changed(token: re.Match[str]) -> str:
        text = _INSIDE_NUMBERS.sub(_NO_BREAK_SPACE, token[3] or "")
        return token[1] or _DATES.sub(r'<span class="date">\g<0></span>', text)

    return Markup(_TOKENS.sub(changed, html))  # nosec B704

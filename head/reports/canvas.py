"""The paper that figures are drawn on: 85 mm wide, text of 7 points or more, as SVG for a page or as files."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xfeat.featurize.errors import OutputError
from xfeat.featurize.system.atomic import replacing
from xfeat.featurize.text import columns_of, printable

try:
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
except OSError as error:
    raise OutputError(
        "matplotlib needs a folder that can be written",
        found=str(error),
        fix="set MPLCONFIGDIR or TMPDIR to a folder that can be written",
    ) from error

# The palette of Okabe and Ito, whose colours are distinguishable with any kind of colour vision.
# Source: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
GREY = "#666666"
INK = "#1b1f24"  # of text on a ground of its own: a dark page lightens text that is black
FORMATS = ("svg", "pdf", "png")
WIDTH_MM = 85.0  # one column of most journals
COLUMN_MM = 1.45  # a column of text of 7 points, on average
_ROW_MM = 3.5  # a line of a legend
_MM = 1 / 25.4  # inches
_PAGE_SCALE = 1.25  # a figure on a page is read on a screen
_DPI = 300
TICK_COLUMNS = 18  # of text beside an axis: two of these leave half of the width
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xfeat",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a class may be called a$b
    "font.family": "sans-serif",
    "font.size": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


@contextmanager
def new_axes(height_mm: float = 68.0) -> Iterator[Axes]:
    """Yield the axes of a new figure; what the body draws has the style of all figures."""
    with matplotlib.rc_context(_STYLE):
        size = (WIDTH_MM * _MM, height_mm * _MM)
        yield Figure(figsize=size, layout="constrained").add_subplot()


def labelled(axes: Axes, title: str, x: str, y: str) -> Figure:
    """Label both axes, put the legend below them if it is not empty, and return the figure.

    ``title`` is for screen readers; the axes are from :func:`new_axes`.
    """
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_label(title)
    if rows := len(axes.get_legend_handles_labels()[1]):
        figure.set_figheight(figure.get_figheight() + rows * _ROW_MM * _MM)
        figure.legend(loc="outside lower left", frameon=False, borderpad=0, labelspacing=0.3)
    return figure


def name_label(name: str, widest: int = 32) -> str:
    """Return a name of at most ``widest`` columns of text: of a wider one, the beginning and the end."""
    text = printable(name)
    if columns_of([text]) <= widest:
        return text
    while columns_of([text]) >= widest:
        cut = len(text) * 2 // 3
        text = text[:cut] + text[cut + 1 :]
    cut = len(text) * 2 // 3
    return text[:cut] + "…" + text[cut:]


def as_svg(figure: Figure) -> str:
    """Return a figure as an SVG element for a page."""
    buffer, title = io.StringIO(), figure.get_label()
    # On a page an id stands once: those of markers depend on the salt, and the others name nothing.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        # The browser renders the text, so glyphs missing from matplotlib's font do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    text = re.sub(r' id="[a-z.A-Z0-9]+_[0-9]+"', "", buffer.getvalue())
    # Embedded in a page: no XML prologue, and a label for screen readers.
    tag, rest = text[text.index("<svg ") :].split(">", 1)
    tag = re.sub(r'(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) * _PAGE_SCALE:g}pt"', tag)
    return tag.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1) + ">" + rest


def save_figure(figure: Figure, folder: Path, stem: str) -> tuple[list[str], str]:
    """Write a figure as SVG, PDF and PNG, each whole or not at all.

    Returns:
        The names of the files, and the characters that no font of this machine has: boxes in the PDF and the PNG.

    Raises:
        OutputError: if a file cannot be written.
    """
    names, missing = [f"{stem}.{kind}" for kind in FORMATS], _use_fonts(figure)
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is the same for all formats
        for name, kind in zip(names, FORMATS, strict=True):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=_DPI, metadata=metadata.get(kind))
            with replacing(folder / name, elsewhere="choose another folder with --figures") as file:
                file.write_bytes(content.getvalue())
    return names, missing


def _use_fonts(figure: Figure) -> str:
    """Let texts use fonts of this machine for what matplotlib's own lacks; return the characters that none has."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    own = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    wanted = {ord(char) for text in texts for char in text.get_text() if not char.isspace()} - own.keys()
    families = ["sans-serif"]
    for path in sorted(font_manager.findSystemFonts()) if wanted else ():
        try:
            font = font_manager.get_font(path)
            found = wanted & font.get_charmap().keys()
            if found:
                font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError):  # not a font that matplotlib reads
            continue
        if found:
            families.append(font.family_name)
            wanted -= found
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    return "".join(map(chr, sorted(wanted)))

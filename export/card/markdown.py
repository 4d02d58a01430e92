"""The card and its checklists as Markdown, with the front matter that Hugging Face reads."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from xfeat.export.card.card import Card
from xfeat.export.card.checklist import Answer, Checklist
from xfeat.export.card.rows import FILL_IN, printable_json
from xfeat.featurize.text import printable

_TIMM = re.compile(r"timm:([\w.-]+)")
# Hugging Face's names of metrics, https://huggingface.co/metrics; those without a name there are written as they are.
_METRIC_TYPES = {"auc": "roc_auc", "sensitivity": "recall", "ppv": "precision"}
_ESCAPED = {char: f"&#{ord(char)};" for char in "&<>\\$|`"} | {char: f"\\{char}" for char in "*_[]~#!"}
_PLAIN = re.compile(r"[\w./:; -]+")


def escaped(text: object) -> str:
    """Return a text in one line, of which Markdown, its tables, HTML and mathematics in it change nothing."""
    return "".join(_ESCAPED.get(char, char) for char in printable(text))


def card_page(card: Card) -> str:
    """Return README.md: the card, with front matter."""
    lines = [*front_matter(card), "", f"# {escaped(card.title)}", ""]
    lines.append(
        f"Run {escaped(card.name)}: an image classifier as one ONNX file, a frozen encoder and a trained head. Every "
        f"figure was measured, and says where it is from. *{FILL_IN.capitalize()}*: what only the author knows."
    )
    for section in card.sections:
        lines += ["", f"## {section.title}", *(["", section.note] if section.note else [])]
        rows = [[escaped(row.label), escaped(row.text) or f"*{FILL_IN}*", _place(row.where)] for row in section.rows]
        lines += ["", *_table(["what", "found", "from"], rows)] if rows else ["", f"Not measured: *{FILL_IN}*."]
    lines += ["", "## Limitations", ""]
    lines += [f"- {escaped(row.text)}{row.where and f' ({_place(row.where)})'}" for row in card.limitations]
    lines += ["", "## How to use", "", *_use(card)]
    lines += ["", "## Checklists", ""]
    lines += [f"- [{escaped(each.name)}]({each.file}): {counts_of(found)}" for each, found in card.checklists]
    return "\n".join(lines) + "\n"


def front_matter(card: Card) -> list[str]:
    """Return the lines of the YAML front matter. JSON is YAML, so each value is written as JSON.

    Source: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    backbone = card.sources.metadata.feature_spec.backbone
    base = _TIMM.fullmatch(backbone)
    values = {
        "license": card.license,
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "onnx", "xfeat"],
        "base_model": f"timm/{base[1]}" if base else None,
        "model-index": _model_index(card),
    }
    lines = [f"{name}: {_indented(value)}" for name, value in values.items() if value]
    return ["---", *lines, "---"]


def _indented(value: Any) -> str:
    plain = json.dumps(printable_json(value), ensure_ascii=False, indent=2 if isinstance(value, list) else None)
    return textwrap.indent(plain, "  ").lstrip()


def _model_index(card: Card) -> list[dict[str, Any]]:
    shown = [metric for metric in card.metrics if 0 <= metric.value <= 1 and metric.name not in ("slope", "intercept")]
    results = [
        {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"type": "imagefolder", "name": images},
            "metrics": [
                {
                    "type": _METRIC_TYPES.get(metric.name, metric.name),
                    "value": round(metric.value, 4),
                    "name": f"{metric.label.partition(': ')[2]}: {metric.row.text}",
                }
                for metric in of_images
            ],
        }
        for images, of_images in groupby(shown, key=lambda metric: metric.images)
    ]
    return [{"name": card.name, "results": results}] if results else []


def _use(card: Card) -> Iterator[str]:
    model = printable(card.sources.model.name)
    yield from ["```python", "import xfeat  # pip install 'xfeat-onnx[serve]'", ""]
    yield f'for prediction in xfeat.Predictor({json.dumps(model, ensure_ascii=False)}).predict(["image.png"]):'
    yield from ["    print(prediction)", "```", ""]
    yield "Without xfeat: `xexport snippet` writes a program for onnxruntime in Python, JavaScript or C++."


def counts_of(found: Sequence[Answer]) -> str:
    """Say how many items have which status."""
    statuses = [answer.status for answer in found]
    return ", ".join(f"{statuses.count(each)} {each}" for each in dict.fromkeys(statuses))


def checklist_page(checklist: Checklist, found: Sequence[Answer], title: str) -> str:
    """Return a checklist as Markdown, a row per item.

    Args:
        checklist: the guideline.
        found: its answers.
        title: of the card.
    """
    lines = [
        f"# {escaped(checklist.name)}: {escaped(title)}",
        "",
        f"{escaped(checklist.source)}. Numbers are those of the guideline, words are ours: {counts_of(found)}.",
        "",
    ]
    head = ["item", "section", "asks for", "status", "what was measured", "from", FILL_IN]
    rows = [
        [
            *(answer.number, answer.section, escaped(answer.words)),
            f"*{FILL_IN}*" if answer.status == FILL_IN else answer.status,
            *(escaped(answer.text), _place("; ".join(answer.where)), escaped(answer.rest)),
        ]
        for answer in found
    ]
    return "\n".join([*lines, *_table(head, rows)]) + "\n"


def _place(where: str) -> str:
    return f"`{where}`" if _PLAIN.fullmatch(where) else escaped(where)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]

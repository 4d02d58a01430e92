"""The files of a card, read by the programs that others read them with: YAML, Markdown, HTML, CycloneDX."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.export.card.studies import SOURCES, STUDY, Study, card_of, sources_of
from xfeat.export.card.bom import bill_of_materials
from xfeat.export.card.card import make_card
from xfeat.export.card.markdown import card_page, front_matter
from xfeat.export.card.write import contents_of
from xfeat.featurize.text import printable
from xfeat.featurize.typed_json import require_unchanged

NAMES = [
    "a|b",
    "$x$ and $$y$$",
    r"\(z\) \[w\]",
    "<script>alert(1)</script>",
    "_under_ *star* ~~gone~~ `code`",
    "[link](http://a.b) ![i](x)",
    "肺炎",
    "two\u2028lines\x85",
    "&lt;&#36;",
    "---\nkey: value",
    "'single' \"double\" # no comment",
    "# heading",
    "\u202eright to left",
    "a\ud800surrogate",
    "100 % {{ braces }} {% raw %}",
]


class Text(HTMLParser):
    """The text and the elements of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


def plain(text: str) -> str:
    """Return a text without differences that browsers do not show."""
    return re.sub(r"\s+", " ", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_any_name_is_shown_as_it_is(name: str) -> None:
    study = Study(classes=(name, "well"))
    files = contents_of(make_card(study.sources(), None))
    shown = plain(printable(name))
    front, body = files["README.md"].removeprefix("---\n").split("\n---\n", 1)
    metrics = yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"]
    assert any(shown in plain(metric["name"]) for metric in metrics)
    for markdown in (body, files["claim-2024.md"], files["tripod-ai.md"]):
        page = Text(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
        assert shown in plain(page.text)
        assert not page.tags - {
            "h1",
            "h2",
            "p",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "em",
            "ul",
            "li",
            "a",
            "pre",
            "code",
        }
        assert "$" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
        assert "\\(" not in markdown
    page = Text(files["card.html"])
    assert shown in plain(page.text)
    assert "script" not in page.tags
    content = json.loads(files["card.json"].encode("utf-8", "backslashreplace"))
    require_unchanged(content)
    assert shown in {plain(metric["of_class"]) for metric in content["metrics"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_hugging_face_reads_the_front_matter(name: str) -> None:
    card = make_card(sources_of(name), "apache-2.0")
    read = ModelCard(card_page(card))
    assert (read.data.license, read.data.pipeline_tag) == ("apache-2.0", "image-classification")
    results = read.data.eval_results or []
    shown = [metric for metric in card.metrics if metric.name not in ("slope", "intercept")]
    assert [result.metric_value for result in results] == [round(metric.value, 4) for metric in shown]


VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_the_bill_of_materials_follows_its_schema_and_is_always_the_same(name: str) -> None:
    bom, again = (bill_of_materials(make_card(sources_of(name), "apache-2.0")) for _ in range(2))
    assert bom == again
    assert VALIDATOR.validate_str(json.dumps(bom)) is None
    refs = [bom["metadata"]["component"]["bom-ref"], *(part["bom-ref"] for part in bom["components"])]
    assert len(refs) == len(set(refs))
    assert ("timestamp" in bom["metadata"]) == (sources_of(name).certificate is not None)


def test_the_bill_names_model_encoder_data_and_software() -> None:
    bom = bill_of_materials(card_of("everything"))
    model, parts = bom["metadata"]["component"], {part["bom-ref"]: part for part in bom["components"]}
    assert bom["metadata"]["timestamp"] == "2026-11-29T18:17:18+00:00"
    assert model["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert parts["encoder"]["name"] == "efficientnet-lite0"
    assert parts["file-core"]["name"] == "model.core.onnx"
    assert parts["software-xfeat"]["purl"] == "pkg:pypi/xfeat-onnx@0.2.0"
    assert {"name": "xfeat:test:patients", "value": "60"} in parts["training-data"]["data"][0]["contents"]["properties"]
    slices = {metric["slice"] for metric in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert {"test", "test, class sick", "hospital-d"} <= slices
    assert model["modelCard"]["considerations"]["fairnessAssessments"][0]["groupAtRisk"].startswith("test: hospital")


@pytest.mark.parametrize(
    ("backbone", "base"), [("efficientnet-lite0", None), ("timm:resnet18.a1_in1k", "timm/resnet18.a1_in1k")]
)
def test_the_base_model_is_named_where_it_is_known(backbone: str, base: str | None) -> None:
    metadata = STUDY.metadata
    other = replace(metadata, feature_spec=replace(metadata.feature_spec, backbone=backbone))
    found = yaml.safe_load("\n".join(front_matter(make_card(STUDY.sources(metadata=other), None))[1:-1]))
    assert found.get("base_model") == base
    assert "license" not in found


def test_the_keys_of_card_json_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text().partition("## card.json")[2]
    content = json.loads(contents_of(card_of("everything"))["card.json"])
    inner = (
        content["sections"][0],
        content["sections"][0]["rows"][0],
        content["metrics"][0],
        content["limitations"][0],
    )
    item = content["checklists"]["CLAIM 2024"][0]
    assert [key for part in (content, *inner, item) for key in part if f"`{key}`" not in page] == []

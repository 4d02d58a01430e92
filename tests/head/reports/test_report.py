"""The page of a run: everything in it, nothing fetched, nothing executed."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.head.conftest import MakeCache, cloud
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.reports.formatting import collapsed_rows
from xfeat.head.reports.run_report import THRESHOLDS
from xfeat.head.runs.reader import Run
from xfeat.head.specs import HeadSpec, TargetSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run

Draw = Callable[[FeatureCache], FeatureCache]


class Page(HTMLParser):
    """What a browser would do with the page: tags, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.replace("\N{NO-BREAK SPACE}", " "))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def train(cache: FeatureCache, tmp_path: Path, name: str = "first", **options: Any) -> tuple[Run, str]:
    specs = HeadSpec(hidden=(8,)), TrainSpec(epochs=4, lr=0.02)
    run = train_run(cache, *specs, runs=tmp_path / "runs", name=name, options=TrainOptions(**options))
    return run, (run.folder / "report.html").read_text()


def test_the_page_fetches_nothing_and_runs_nothing(make_cache: MakeCache, tmp_path: Path, draw_images: Draw) -> None:
    cache = make_cache(separation=0.1)
    cache = draw_images(cache)
    page = Page(train(cache, tmp_path)[1])
    assert not page.of("script")
    assert not page.of("link")
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "poster", "action", "srcset"):
                assert value, (tag, name)
                assert value.startswith(("data:image/", "#")), (tag, name, value[:80])


def test_the_worst_mistakes_have_pictures(make_cache: MakeCache, tmp_path: Path, draw_images: Draw) -> None:
    cache = make_cache(separation=0.0)
    cache = draw_images(cache)
    run, text = train(cache, tmp_path)
    wrong = [row for row in run.predictions() if row["split"] == "test" and row["prediction"] != row["label"]]
    pictures = [image for image in Page(text).of("img") if str(image["src"]).startswith("data:image/jpeg;base64,")]
    assert len(wrong) > 0
    assert len(pictures) == min(12, len(wrong))
    worst = min(wrong, key=lambda row: float(row[f"p_{row['label']}"]))
    assert pictures[0]["alt"] == worst["path"]


def test_without_mistakes_the_page_says_so(make_cache: MakeCache, tmp_path: Path) -> None:
    run, text = train(make_cache(separation=6.0), tmp_path)
    assert run.metrics["test"]["accuracy"] == 1
    assert "None: every test image" in text


NASTY = ("<html>", "a&b", '"q"', "_x", "a$b$", "肺炎")


def test_class_names_are_escaped(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache(classes=NASTY, sizes=(120, 60, 60), separation=0.5)
    _, text = train(cache, tmp_path, target=TargetSpec(positive="<html>"))
    page = Page(text)
    assert len(page.of("html")) == 1
    words = " ".join(page.words)
    for name in NASTY:
        assert f"sensitivity, {name}" in words
        assert re.search(rf"{re.escape(name)}, AUC", words), f"{name} is missing in the legend"


def test_file_names_are_escaped(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache(separation=0.0)
    cache.columns.path[:] = [f"covid/<img src=x onerror=alert(1)>{row}.png" for row in range(len(cache))]  # type: ignore[index]
    _, text = train(cache, tmp_path)
    assert not Page(text).of("img")
    assert "The file is missing." in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sizes": (100, 40, 0)}, "There is no test split"),
        ({"sizes": (100, 40, 40)}, "Only 40 test images"),
        ({}, "The images have no groups"),
        ({"groups": ["p0"] * 180}, "1 groups (patients) have images in more than one split"),
    ],
)
def test_the_page_warns_of_known_biases(
    make_cache: MakeCache, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    _, text = train(make_cache(**settings), tmp_path)
    assert words in " ".join(Page(text).words)


def test_the_operating_point_is_on_the_page(make_cache: MakeCache, tmp_path: Path) -> None:
    target = TargetSpec(positive="covid", target_sensitivity=0.9)
    patients = [f"p{row // 4}" for row in range(180)]
    run, text = train(make_cache(separation=0.3, groups=patients), tmp_path, target=target)
    words = " ".join(Page(text).words)
    assert f"covid if probability ≥ {run.operating_point.threshold:.4f}" in words
    assert run.operating_point.note in words
    low, high = run.statistics["test"]["most_probable"]["accuracy"]["interval"]
    by_image = run.metrics["test"]["accuracy_interval"]
    assert (low, high) != pytest.approx(tuple(by_image), abs=1e-3)  # patients have several images
    assert f"({100 * low:.1f} to {100 * high:.1f} %)." in words
    assert "prevalence" in words


def test_an_absent_test_class_still_gives_a_page(make_cache: MakeCache, tmp_path: Path) -> None:
    labels = [0, 1] * 50 + [0, 1] * 20 + [0] * 20
    _, text = train(make_cache(split=[0] * 100 + [1] * 40 + [2] * 20, labels=labels), tmp_path)
    assert "–" in text


def test_views_are_averaged_beside_the_clean_view(make_cache: MakeCache, tmp_path: Path) -> None:
    """With views that are all alike, averaging changes nothing."""
    rows = cloud(np.arange(180) % 2, separation=0.4)
    cache = make_cache(features=np.repeat(rows[:, None], 3, axis=1))
    run, text = train(cache, tmp_path)
    assert run.dim == rows.shape[1]
    assert run.metrics_averaged_views["test"]["loss"] == pytest.approx(run.metrics["test"]["loss"], abs=1e-5)
    assert "averaged over all 3 views" in " ".join(Page(text).words)


def test_the_figures_and_the_threshold_table_are_those_of_the_run(make_cache: MakeCache, tmp_path: Path) -> None:
    """Reference: predictions.csv, counted in a plain loop."""
    run, text = train(make_cache(separation=0.2), tmp_path)
    metrics, words = run.metrics["test"], " ".join(Page(text).words)
    low, high = run.statistics["test"]["accuracy"]["interval"]
    for figure in (
        f"{100 * metrics['accuracy']:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
        f"{100 * metrics['auc']:.1f} %",
        f"{metrics['loss']:.4f}",
        run.feature_spec.fingerprint,
    ):
        assert figure in words
    assert len(Page(text).of("svg")) == 7
    rows = [row for row in run.predictions() if row["split"] == "test"]
    tables = dict(re.findall(r"<summary>(\w+)</summary>(.*?)</table>", text, re.DOTALL))
    assert set(tables) == set(run.class_names)
    for name, table in tables.items():
        lines = [re.findall(r"<td>(.*?)</td>", line.replace("\xa0", " ")) for line in table.split("<tr>")[2:]]
        scores = [float(row[f"p_{name}"]) for row in rows if row["label"] == name]
        others = [float(row[f"p_{name}"]) for row in rows if row["label"] != name]
        shown = []
        for text_of_range, sensitivity, *_, missed, false_alarms in lines:
            low, high = (float(end) for end in (text_of_range.split(" to ") * 2)[:2])
            for threshold in (each for each in THRESHOLDS if low <= each <= high):
                assert int(missed) == sum(score < threshold for score in scores)
                assert int(false_alarms) == sum(score >= threshold for score in others)
                shown.append(threshold)
            assert sensitivity == f"{100 * (1 - int(missed) / len(scores)):.1f} %"
        assert shown == list(THRESHOLDS)


@pytest.mark.parametrize(
    ("figures", "rows"),
    [
        ([(0.1, "a"), (0.2, "a"), (0.4, "a"), (0.5, "b")], [("0.10 to 0.40", "a"), ("0.50", "b")]),
        ([(0.1, "a"), (0.2, "b"), (0.3, "a")], [("0.10", "a"), ("0.20", "b"), ("0.30", "a")]),
        ([(0.01, None), (0.99, None)], [("0.01 to 0.99", None)]),
        ([(0.5, "a")], [("0.50", "a")]),
        ([], []),
    ],
)
def test_neighbouring_thresholds_with_the_same_figures_are_one_row(figures: Any, rows: Any) -> None:
    assert collapsed_rows(figures) == rows

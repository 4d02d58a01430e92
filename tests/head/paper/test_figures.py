"""Figures for a paper of each kind of result, as files; what cannot be drawn is said."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.text import Text
from PIL import Image

import xfeat
from tests.caches import extra_column, write_made_up
from tests.head.conftest import cloud
from tests.head.paper.test_methods import RUN_TOGETHER
from xfeat.featurize.errors import XfeatError
from xfeat.head.cli import main
from xfeat.head.paper.figures import paper_figures
from xfeat.head.paper.material import open_material
from xfeat.head.paper.methods import methods_text

pytestmark = pytest.mark.slow
TWO = ["roc", "precision-recall", "calibration", "confusion-matrix", "decision-curve"]
MORE = ["roc", "precision-recall", "calibration", "confusion-matrix"]


def subgroups(*figures: str) -> list[str]:
    return [f"subgroups-{figure}" for figure in figures]


def write_cache(
    folder: Path,
    classes: Sequence[str] = ("covid", "normal"),
    sizes: Sequence[int] = (80, 60, 60),
    label: Callable[[int, int], int] | None = None,
    columns: bool = True,
    separation: float = 0.5,
) -> Path:
    """Write a cache of patients with two images each; ``label`` gets number and part of an image."""
    parts = np.repeat([0, 1, 2], sizes)
    count = len(parts)
    labels = np.array(
        [label(row, part) if label else row // 2 % len(classes) for row, part in enumerate(parts.tolist())]
    )
    told: dict[str, Any] = {
        "label": labels,
        "split": parts,
        "path": [f"{row}.png" for row in range(count)],
        "group": [f"p{row // 2}" for row in range(count)],
    }
    homes = extra_column("category", [("A", "B", "a hospital with a long name")[row // 2 % 3] for row in range(count)])
    extra = {"hospital": homes} if columns else None
    write_made_up(folder / "features.h5", cloud(labels, separation=separation), told, classes, extra=extra)
    return folder / "features.h5"


def trained(folder: Path, *, positive: str | None = None, **cache: Any) -> Path:
    file = write_cache(folder, **cache)
    return xfeat.train(file, folder / "runs", hidden=(), epochs=2, name="run", positive=positive).folder


KINDS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "two classes": ({"positive": "covid"}, [*TWO, *subgroups("sensitivity", "specificity", "auc")], ""),
    "without a threshold": ({"columns": False}, TWO, "no operating point in roc"),
    "three classes": ({"classes": "abc"}, [*MORE, *subgroups("accuracy", "auc")], "no decision-curve"),
    "three with a positive": ({"classes": "abc", "positive": "b", "columns": False}, TWO, "no subgroups"),
    "a class without test images": (
        {"classes": "abc", "label": lambda row, part: row % (3 if part < 2 else 2), "columns": False},
        MORE,
        "no curve of c",
    ),
    "test images of one class": (
        {"label": lambda row, part: row % 2 if part < 2 else 0, "columns": False},
        ["calibration", "confusion-matrix", "decision-curve"],
        "no roc and no precision-recall: all test images are of one class",
    ),
    "one positive": (
        {"positive": "covid", "label": lambda row, part: int(row != 199 and (part == 2 or row % 2)), "columns": False},
        TWO,
        "no subgroups",
    ),
    "four test images": ({"positive": "covid", "sizes": (80, 60, 4), "columns": False}, TWO, ""),
    "no test images": ({"positive": "covid", "sizes": (80, 60, 0), "columns": False}, TWO, ""),
    "perfect": ({"positive": "covid", "separation": 9.0, "columns": False}, TWO, ""),
    "names": (
        {"classes": ("_a$b$<i>&amp;", "新型冠状病毒肺炎", "a name of a class that is longer than a line " * 2)},
        [*MORE, *subgroups("accuracy", "auc")],
        "no operating point",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_run_has_its_figures_of_one_column(kind: str, tmp_path: Path) -> None:
    """A layout that does not fit is a warning, and so an error here."""
    settings, expected, note = KINDS[kind]
    material = open_material(trained(tmp_path, **settings))
    figures, notes = paper_figures(material)
    assert [each.stem for each in figures] == expected
    assert note in "\n".join(notes)
    for each in figures:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            each.drawing.draw_without_rendering()
            drawn = each.drawing.get_tightbbox()  # inches
        width, height = each.drawing.get_size_inches() * 25.4
        assert width == pytest.approx(85)
        assert height < 240
        texts = [text for text in each.drawing.findobj(Text) if text.get_text().strip()]
        assert min(text.get_fontsize() for text in texts) >= 7
        assert drawn.x0 >= -0.01, each.stem
        assert drawn.x1 * 25.4 <= 85.3, each.stem
        assert drawn.y0 >= -0.01, each.stem
        assert drawn.y1 * 25.4 <= height + 0.3, each.stem
    methods = methods_text(material, {each.stem: each.caption for each in figures})
    assert [name for name in expected if f"**{name}.**" not in methods] == []


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a cross-validation with hospitals left out, and an external test, in ``runs``."""
    folder = tmp_path_factory.mktemp("results")
    run = trained(folder, positive="covid")
    plan = {"folds": 2, "seeds": 2, "epochs": 1, "hidden": (), "positive": "covid", "leave_out": "hospital"}
    xfeat.cross_validate(folder / "features.h5", folder / "runs", name="crossval", **plan)
    (folder / "other").mkdir()
    xfeat.evaluate(run, write_cache(folder / "other"), name="eval")
    return folder


@pytest.mark.parametrize(
    ("name", "images", "more"),
    [
        ("run", "60 test images of 30 patients", []),
        ("crossval", "200 out-of-fold images of 100 patients", ["sensitivity", "specificity", "auc", "accuracy"]),
        ("eval", "200 external images of 100 patients", []),
    ],
)
def test_figures_of_each_result_are_the_same_bytes_every_time(
    results: Path, tmp_path: Path, name: str, images: str, more: list[str]
) -> None:
    command = ["report", str(results / "runs" / name), "--figures"]
    done = CliRunner().invoke(main, [*command, str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert "roc: roc.svg, roc.pdf, roc.png" in done.stdout
    answer = json.loads(CliRunner().invoke(main, [*command, str(tmp_path / "b"), "--json"]).stdout)
    names = [*TWO, *subgroups("sensitivity", "specificity", "auc"), *(f"left-out-{figure}" for figure in more)]
    assert [each["name"] for each in answer["figures"]] == names
    assert all(images in each["caption"] for each in answer["figures"] if not each["name"].startswith("left-out"))
    for file in (tmp_path / "a").iterdir():
        if file.name != "figures.json":
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    with Image.open(tmp_path / "a" / "roc.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.width == pytest.approx(85 / 25.4 * 300, abs=1)
    assert json.loads((tmp_path / "b" / "figures.json").read_text()) == answer
    svg = (tmp_path / "a" / "roc.svg").read_text()
    assert "<dc:date>" not in svg
    assert ">sensitivity</text>" in svg
    pdf = (tmp_path / "a" / "roc.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/Type3" not in pdf  # publishers refuse these fonts
    methods = (tmp_path / "a" / "methods.md").read_text()
    kind = {
        "run": "The test part had",
        "crossval": "2-fold cross-validation, repeated for 2 seeds",
        "eval": "run run, was",
    }
    assert kind[name] in methods
    assert not re.search(RUN_TOGETHER, methods)
    assert "[for you to fill in:" in methods


def test_the_threshold_is_marked_where_run_json_says(results: Path, tmp_path: Path) -> None:
    done = xfeat.write_figures(results / "runs" / "run", tmp_path)
    point = json.loads((results / "runs" / "run" / "run.json").read_text())["operating_point"]["test"]
    words = [f"{name} {100 * point[name]['value']:.1f} %" for name in ("sensitivity", "specificity")]
    svg = (tmp_path / "roc.svg").read_text().replace(chr(160), " ")
    assert all(word in svg for word in words), words
    assert all(word.split(" ", 1)[1] in done.figures[0].caption.replace(chr(160), " ") for word in words)


def test_figures_of_an_earlier_result_go_and_other_files_stay(results: Path, tmp_path: Path) -> None:
    xfeat.write_figures(results / "runs" / "crossval", tmp_path)
    (tmp_path / "mine.svg").write_text("mine")
    xfeat.write_figures(results / "runs" / "run", tmp_path)
    assert not list(tmp_path.glob("left-out-*"))
    assert (tmp_path / "mine.svg").read_text() == "mine"


def damage(folder: Path, file: str, old: str, new: str) -> None:
    [path] = folder.glob(file)
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("run", ("predictions.csv", "test", "tset"), "not what was saved"),
        ("run", ("run.json", "covid", "divoc"), "damaged run.json"),
        ("crossval", ("predictions.csv", "covid", "divoc"), "not what was saved"),
        ("eval", ("eval.json", "0.", "1."), "damaged eval.json"),
        ("gone", None, "run not found"),
        (".", None, "a folder of runs"),
    ],
)
def test_what_is_damaged_or_missing_is_one_message(
    results: Path, tmp_path: Path, name: str, change: Any, words: str
) -> None:
    shutil.copytree(results / "runs", tmp_path / "runs", symlinks=True)
    if change:
        damage(tmp_path / "runs" / name, *change)
    with pytest.raises(XfeatError, match=words) as raised:
        xfeat.write_figures(tmp_path / "runs" / name, tmp_path / "paper")
    assert raised.value.fix
    assert not (tmp_path / "paper").exists()


def test_without_its_cache_a_run_of_patients_asks_for_it(results: Path, tmp_path: Path) -> None:
    run = shutil.copytree(results / "runs" / "run", tmp_path / "elsewhere" / "run")
    facts = json.loads((run / "run.json").read_text())
    facts["cache"]["path"] = "gone.h5"
    facts["cache"]["written_in"] = ""
    del facts["content_sha256"]
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(XfeatError, match="--features PATH"):
        xfeat.write_figures(run, tmp_path / "paper")
    done = xfeat.write_figures(run, tmp_path / "paper", features=results / "features.h5")
    assert "30 patients" in done.figures[0].caption


def test_a_folder_that_cannot_be_written_is_one_message(results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, ["report", str(results / "runs" / "run"), "--figures", str(tmp_path / "file")])
    assert done.exit_code == 1
    assert "--figures" in done.output
    assert "Traceback" not in done.output

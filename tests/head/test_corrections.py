"""Corrections of a training: applied to it alone, counted in its report, stored with it, and undone without them."""

from __future__ import annotations

from pathlib import Path

import pytest

import xfeat
from tests.head.conftest import MakeCache
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError
from xfeat.head.runs.inputs import open_cache_of

pytestmark = pytest.mark.slow

TABLE = "path,action,value,reason\ncovid/0000.png,exclude,,blank\nnormal/0001.png,relabel,covid,looks so\n"
COUNTED = "Corrections: 1 image excluded, 1 relabelled. The audit is of the data before them."


def page_of(folder: Path) -> str:
    """Return the page of a result, with plain spaces: numbers do not break in it."""
    return (folder / "report.html").read_text().replace("\xa0", " ")


SMALL = {"epochs": 1, "hidden": ()}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "corrections.csv"
    path.write_text(TABLE)
    return path


def test_a_training_is_corrected_and_the_cache_is_not(make_cache: MakeCache, tmp_path: Path, table: Path) -> None:
    cache, runs = make_cache(), tmp_path / "runs"
    before = cache.path.read_bytes()
    run = xfeat.train(cache.path, runs, name="corrected", corrections=table, **SMALL)
    assert run.split["images"]["train"] == 99
    assert COUNTED in page_of(run.folder)
    assert {row["path"]: row["label"] for row in run.predictions()}["normal/0001.png"] == "covid"
    assert cache.path.read_bytes() == before
    again = open_cache_of(xfeat.open_run(run.folder))
    assert again.columns.label[:2].tolist() == [-1, 0]
    undone = xfeat.train(cache.path, runs, name="undone", **SMALL)
    assert undone.split["images"]["train"] == 100
    assert "Corrections:" not in (undone.folder / "report.html").read_text()
    assert FeatureCache.open(cache.path).columns.label[:2].tolist() == [0, 1]


@pytest.mark.slow
def test_crossval_and_sweep_are_corrected_by_the_same_table(make_cache: MakeCache, tmp_path: Path, table: Path) -> None:
    cache, runs = make_cache(groups=[f"p{row}" for row in range(180)]), tmp_path / "runs"
    settings = {"folds": 2, "by_image": False, "positive": "covid", **SMALL}
    done = xfeat.cross_validate(cache.path, runs, name="cv", corrections=table, **settings)
    assert done.facts["images"] == 179
    assert COUNTED in page_of(done.folder)
    assert done.facts["cache"]["corrections"] == [
        ["covid/0000.png", "exclude", "", "blank"],
        ["normal/0001.png", "relabel", "covid", "looks so"],
    ]
    with pytest.raises(MismatchError, match="other corrections"):
        xfeat.train(cache.path, runs, threshold_from=done.folder, **SMALL)
    xfeat.train(cache.path, runs, threshold_from=done.folder, corrections=table, **SMALL)
    axes = {"epochs": [1], "lr": [1e-3], "dropout": [0.1], "hidden": [()]}
    corrected, plain = (xfeat.sweep(cache.path, runs, corrections=given, **axes) for given in (table, None))
    assert corrected.folder != plain.folder
    assert COUNTED in page_of(corrected.run.folder)

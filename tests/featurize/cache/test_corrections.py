"""Corrections: which tables are applied, which are refused, each in one message, and that they can be undone."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.caches import write_made_up
from xfeat.featurize.cache.corrections import correct_cache
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as cli
from xfeat.featurize.errors import DataError

PATHS = ["train/käse/1.png", "train/käse/2.png", "train/öl/3.png", "train/öl/4.png", "test/käse/5.png", "test/öl/6.png"]
LABELS = [0, 0, 1, 1, 0, 1]


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    split = [0, 0, 0, 0, 2, 2]
    columns = {"path": PATHS, "label": LABELS, "split": split, "group": ["a", "a", "b", "", "c", "d"]}
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    return write_made_up(tmp_path / "features.h5", features, columns, ["käse", "öl"])


def corrected(cache: FeatureCache, text: str | bytes) -> FeatureCache:
    file = cache.path.with_name("corrections.csv")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return correct_cache(cache, file)


HEAD = "path,action,value,reason\n"
NFD = unicodedata.normalize("NFD", PATHS[1])


@pytest.mark.parametrize(
    "table",
    [
        HEAD + "train/käse/2.png,relabel,öl,\n",
        HEAD + "train/käse/2.png, Relabel , ÖL ,reason\n",
        HEAD + NFD + ",relabel," + unicodedata.normalize("NFD", "öl") + ",\n",
        HEAD + "train\\käse\\2.png,relabel,öl,\n",
        HEAD + "2.png,relabel,öl,\n",
        HEAD + "/mnt/elsewhere/train/käse/2.png,relabel,öl,\n",
        (HEAD + "train/käse/2.png,relabel,öl,\n").encode("utf-8-sig"),
        (HEAD + "train/käse/2.png,relabel,öl,\n").encode("utf-16"),
        HEAD.replace(",", ";") + "train/käse/2.png;relabel;öl;\n",
        HEAD.replace(",", "\t") + "train/käse/2.png\trelabel\töl\t\n",
        "Action,Value,Path\nrelabel,öl,train/käse/2.png\n",
        HEAD + "train/käse/2.png,relabel,öl,\r\n./train/käse/2.png,relabel,öl,the same again\r\n",
    ],
)
def test_a_table_is_read_as_programs_write_it(cache: FeatureCache, table: str | bytes) -> None:
    found = corrected(cache, table)
    assert found.columns.label.tolist() == [0, 1, 1, 1, 0, 1]
    assert [(one.path, one.action, one.value) for one in found.corrections] == [(PATHS[1], "relabel", "öl")]


def test_excluded_images_have_no_label_and_split_and_are_not_counted(cache: FeatureCache) -> None:
    found = corrected(cache, HEAD + "train/käse/1.png,exclude,,blank\ntrain/öl/4.png,group,x,\n")
    assert found.columns.label.tolist() == [-1, 0, 1, 1, 0, 1]
    assert found.columns.split.tolist() == [255, 0, 0, 0, 2, 2]
    assert list(found.columns.group) == ["a", "a", "b", "x", "c", "d"]
    assert found.excluded.tolist() == [True] + 5 * [False]
    assert found.counts == {"train": {"käse": 1, "öl": 2}, "test": {"käse": 1, "öl": 1}}
    assert (found.content_sha256, found.corrected_sha256 == cache.corrected_sha256) == (cache.content_sha256, False)
    found.verify()  # the rows of the file are unchanged


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("train/käse/1.png,delete,,", ["line 2: unknown action delete"]),
        ("train/käse/1.png,,,", ["line 2: no action for train/käse/1.png"]),
        (",exclude,,", ["line 2: no path"]),
        ("train/käse/1.png,relabel,ol,", ["line 2: unknown class ol", "classes: käse, öl"]),
        ("train/käse/1.png,relabel,,", ["line 2: relabel needs a value"]),
        ("train/käse/1.png,group,,", ["line 2: group needs a value"]),
        ("train/käse/1.png,exclude,öl,", ["line 2: exclude takes no value, but there is öl"]),
        ("1.png,relabel,öl,\ntrain/käse/1.png,exclude,,", ["lines 2 and 3 both correct train/käse/1.png"]),
        ("1.png,group,x,\n1.png,group,y,", ["lines 2 and 3 both correct train/käse/1.png: group x and group y"]),
        ("1.png,relabel,öl,\n" + NFD.replace("2", "1") + ",relabel,käse,", ["lines 2 and 3", "relabel öl"]),
        ("a.png,nothing,,\n1.png,relabel,x,", ["2 corrections", "line 2: unknown action nothing; line 3: unknown"]),
        ("gone.png,exclude,,\nlost.png,group,7,", ["none of the corrections", "line 2: gone.png, line 3: lost.png"]),
        ("1.png,exclude,,\n2.png,exclude,,\n5.png,exclude,,", ["leave no image of class käse"]),
        ("5.png,exclude,,\n6.png,exclude,,", ["leave no image of split test"]),
        ("1.png,relabel,öl,\n2.png,relabel,öl,\n5.png,exclude,,\n6.png,exclude,,", ["class käse, split test"]),
    ],
)
def test_what_cannot_be_applied_is_said_in_one_message(cache: FeatureCache, rows: str, said: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        corrected(cache, HEAD + rows)
    assert refused.value.file == cache.path.with_name("corrections.csv")
    assert all(text in str(refused.value) for text in said), refused.value


def test_a_name_that_fits_two_images_is_refused(tmp_path: Path) -> None:
    columns = {"path": ["a/1.png", "b/1.png"], "label": [0, 1], "split": [0, 0]}
    cache = write_made_up(tmp_path / "f.h5", np.ones((2, 2), np.float32), columns, ["a", "b"])
    with pytest.raises(DataError, match=r"line 2: 1\.png can mean 2 images"):
        corrected(cache, HEAD + "1.png,exclude,,\n")


@pytest.mark.parametrize("header", ["path,label", "file,what"])
def test_a_table_without_actions_is_refused(cache: FeatureCache, header: str) -> None:
    with pytest.raises(DataError, match="no column is called action"):
        corrected(cache, f"{header}\n1.png,öl\n")


def test_what_changes_nothing_is_one_warning(cache: FeatureCache, caplog: pytest.LogCaptureFixture) -> None:
    rows = "gone.png,exclude,,\n1.png,relabel,käse,\n3.png,group,b,\n2.png,exclude,,\n"
    with caplog.at_level(logging.WARNING):
        corrected(cache, HEAD + rows)
    [warning] = caplog.messages
    assert "not among the images: 1 (line 2: gone.png)" in warning
    assert "already so in the data: 2 (train/käse/1.png, train/öl/3.png)" in warning


@pytest.mark.slow
def test_featurize_applies_corrections_and_gives_the_images_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("covid", "normal"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    table, output = tmp_path / "corrections.csv", tmp_path / "features.h5"
    table.write_text(HEAD + "covid/0.png,exclude,,\nnormal/1.png,relabel,covid,\nnormal/2.png,group,p7,\n")
    command = ["featurize", str(tmp_path / "data"), "-o", str(output), "--backbone", "efficientnet-lite0", "--json"]

    def run(*more: str) -> dict[str, object]:
        done = CliRunner().invoke(cli, [*command, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        facts: dict[str, object] = json.loads(done.stdout)
        return facts

    assert run()["computed"] == 6
    before = FeatureCache.open(output)
    facts = run("--corrections", str(table))
    assert (facts["computed"], facts["corrections"]) == (0, {"exclude": 1, "relabel": 1, "group": 1})
    cache = FeatureCache.open(output)
    assert cache.columns.label.tolist() == [-1, 0, 0, 1, 0, 1]
    assert list(cache.columns.group) == ["", "", "", "", "", "p7"]
    assert cache.excluded.tolist() == [True] + 5 * [False]
    assert run("--corrections", str(table))["up_to_date"] is True
    facts = run()
    assert (facts["computed"], facts["corrections"]) == (0, {})
    after = FeatureCache.open(output)
    assert after.content_sha256 == before.content_sha256
    assert not after.corrections

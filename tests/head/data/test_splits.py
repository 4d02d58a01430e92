"""Which rows train, validate and test."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tests.head.conftest import MakeCache
from xfeat.featurize.datasets.layouts import NO_SPLIT
from xfeat.featurize.errors import DataError
from xfeat.head.data.splits import split_rows


def test_the_data_sets_own_split_is_kept(make_cache: MakeCache) -> None:
    cache = make_cache(sizes=(30, 10, 20))
    split = split_rows(cache, seed=3)
    assert [rows.tolist() for rows in split.rows.values()] == [
        list(range(30)),
        list(range(30, 40)),
        list(range(40, 60)),
    ]
    assert "folders of the data set" in split.source


def test_a_drawn_split_keeps_patients_together_and_is_stratified(make_cache: MakeCache) -> None:
    groups = [f"p{row // 3}" for row in range(300)]
    labels = [(row // 3) % 2 for row in range(300)]
    cache = make_cache(split=[NO_SPLIT] * 300, groups=groups, labels=labels)
    split = split_rows(cache, seed=0)
    members = {part: {groups[row] for row in rows} for part, rows in split.rows.items()}
    assert not members["train"] & members["test"]
    assert not members["train"] & members["valid"]
    assert not members["valid"] & members["test"]
    assert sorted(np.concatenate(list(split.rows.values())).tolist()) == list(range(300))
    for part, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        rows = split.rows[part]
        assert len(rows) / 300 == pytest.approx(share, abs=0.03)
        assert np.array(labels)[rows].mean() == pytest.approx(0.5, abs=0.05)
    assert "made by xfeat" in split.source
    assert "seed 0" in split.source


def test_the_seed_decides_about_the_split(make_cache: MakeCache) -> None:
    cache = make_cache(split=[NO_SPLIT] * 100)
    first, again, other = (split_rows(cache, seed=seed).rows["test"].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_a_missing_validation_split_is_taken_from_the_training_rows(make_cache: MakeCache) -> None:
    cache = make_cache(sizes=(100, 0, 20))
    split = split_rows(cache, seed=0)
    assert len(split.rows["valid"]) == 20
    assert set(split.rows["valid"].tolist()) < set(range(100))
    assert split.rows["test"].tolist() == list(range(100, 120))
    assert "valid from train" in split.source


def test_exact_copies_stay_together(make_cache: MakeCache) -> None:
    contents = [f"image {row // 2}" for row in range(100)]
    labels = [(row // 2) % 2 for row in range(100)]
    cache = make_cache(split=[NO_SPLIT] * 100, contents=contents, labels=labels)
    rows, parts = split_rows(cache, seed=0).used
    assert rows.tolist() == list(range(100))
    assert parts[::2] == parts[1::2]


def test_copies_with_two_patients_names_join_the_patients(make_cache: MakeCache) -> None:
    cache = make_cache(
        sizes=(6,),
        groups=["anna", "anna", "ben", "ben", "", ""],
        contents=["a", "same", "same", "b", "c", "c"],
    )
    keys = cache.group_keys.tolist()
    assert len(set(keys[:4])) == 1
    assert keys[4] == keys[5] != keys[0]


def test_rows_without_a_split_are_left_out_if_others_have_one(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    split = [0] * 40 + [1] * 10 + [2] * 10 + [NO_SPLIT] * 5
    with caplog.at_level(logging.WARNING):
        rows = split_rows(make_cache(split=split), seed=0).rows
    assert sum(map(len, rows.values())) == 60
    assert "5 images" in caplog.text


def test_one_class_is_not_enough(make_cache: MakeCache) -> None:
    with pytest.raises(DataError, match="at least two classes"):
        split_rows(make_cache(classes=("covid",)), seed=0)


def test_too_few_patients_cannot_be_divided(make_cache: MakeCache) -> None:
    groups = [f"p{row % 4}" for row in range(40)]
    with pytest.raises(DataError, match="too few") as problem:
        split_rows(make_cache(split=[NO_SPLIT] * 40, groups=groups), seed=0)
    assert "2 of the smallest class" in str(problem.value)


def test_a_class_without_training_images_is_named(make_cache: MakeCache) -> None:
    labels = [0] * 40 + [0, 1] * 10
    with pytest.raises(DataError, match="no training image of class normal") as problem:
        split_rows(make_cache(split=[0] * 40 + [1] * 20, labels=labels), seed=0)
    assert problem.value.found == "train: covid 40; valid: covid 10, normal 10"


def test_a_class_that_is_absent_from_the_test_split_is_named(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    labels = [0, 1] * 30 + [0] * 10
    with caplog.at_level(logging.WARNING):
        split_rows(make_cache(split=[0] * 40 + [1] * 20 + [2] * 10, labels=labels), seed=0)
    assert "features.h5: no test image of class normal: its metrics cannot be computed" in caplog.text

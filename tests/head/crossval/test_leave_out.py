"""Each value of a column left out in turn: what is trained on, what is measured, and what cannot be answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.caches import extra_column, write_made_up
from tests.head.conftest import DIM, cloud
from tests.head.crossval.crossvalidated import HEAD, TRAIN
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_SPLIT
from xfeat.featurize.errors import DataError
from xfeat.head.cli import main
from xfeat.head.crossval.leave_out import elsewhere, left_out_folds, sources_of
from xfeat.head.crossval.runner import cross_validate
from xfeat.head.evaluation.study import Cases
from xfeat.head.reports.study_text import NOT_MEASURED, elsewhere_lines, expected_elsewhere
from xfeat.head.specs import CrossvalSpec, HeadSpec, TrainSpec

COUNT = 120


def made(
    folder: Path,
    hospital: Sequence[str | None],
    *,
    labels: np.ndarray | None = None,
    features: np.ndarray | None = None,
    kind: str = "category",
    classes: tuple[str, ...] = ("covid", "normal"),
) -> FeatureCache:
    """Write a cache of 60 patients with two images each."""
    patients = np.arange(COUNT) // 2
    truth = patients % len(classes) if labels is None else labels
    columns = {
        "label": truth,
        "split": [NO_SPLIT] * COUNT,
        "path": [f"{row}.png" for row in range(COUNT)],
        "group": [f"p{patient}" for patient in patients],
    }
    rows = cloud(truth, separation=0.6) if features is None else features
    extra = {"hospital": extra_column(kind, hospital)}
    return write_made_up(folder / "features.h5", rows, columns, classes, extra=extra)


def thirds() -> list[str]:
    return ["ABC"[row // 4 % 3] for row in range(COUNT)]


def folds_of(cache: FeatureCache, members: int = 1) -> tuple[Any, dict[int, Any]]:
    rows, labels = np.arange(COUNT), np.asarray(cache.columns.label).astype(np.int64)
    sources = sources_of(cache, rows, labels, cache.group_keys, "hospital", members=members)
    return sources, dict(left_out_folds(sources, labels, cache.group_keys, inner_folds=5, seed=0))


def test_a_source_and_its_patients_are_left_out_of_training(tmp_path: Path) -> None:
    hospital: list[str | None] = list(thirds())
    hospital[0], hospital[1] = "A", "B"  # a patient in two hospitals
    hospital[118] = hospital[119] = None
    cache = made(tmp_path, hospital)
    sources, folds = folds_of(cache)
    assert sources.names == ["A", "B", "C"]
    for code, fold in folds.items():
        trained = np.concatenate([fold.train, fold.valid])
        assert {hospital[row] for row in fold.test.tolist()} == {sources.names[code]}
        assert sources.names[code] not in {hospital[row] for row in trained.tolist()}
        assert None not in {hospital[row] for row in trained.tolist()}  # they may come from there
        groups = np.asarray(cache.group_keys)
        assert not set(groups[trained]) & set(groups[fold.test])
        assert not set(groups[fold.train]) & set(groups[fold.valid])
    assert (0 in folds[0].test, 1 in folds[1].test) == (True, True)
    assert not {0, 1} & {*folds[0].train, *folds[0].valid, *folds[1].train, *folds[1].valid}


TRUTH = np.arange(COUNT) // 2 % 2


@pytest.mark.parametrize(
    ("hospital", "words"),
    [
        ([("A", "B")[label] for label in TRUTH], "hospital is the class: covid is A, normal is B"),
        (
            ["A" if label == 0 else "ABC"[row // 4 % 3] for row, label in enumerate(TRUTH)],
            "every image of class covid has hospital A",
        ),
        (
            ["AB"[row // 4 % 2] if label == 0 else "C" for row, label in enumerate(TRUTH)],
            "every image of class normal has hospital C",
        ),
    ],
    ids=["the source is the class", "one class in one source", "the other class in one source"],
)
def test_a_class_from_one_source_only_is_called_unanswerable(tmp_path: Path, hospital: list[str], words: str) -> None:
    cache = made(tmp_path, hospital)
    sources, folds = folds_of(cache)
    assert words in sources.unanswerable
    assert "no split of these data can tell" in sources.unanswerable
    assert folds == {}
    result = cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3, by_image=False, leave_out="hospital"))
    found = measured(result)
    assert found["overall"] is None
    [line] = elsewhere_lines(found)
    assert words in line
    assert "expect" not in line
    assert "expect" not in expected_elsewhere(found)


def measured(result: Any, threshold: float | None = None) -> dict[str, Any]:
    cases = Cases(
        labels=result.main.labels,
        probabilities=result.main.combined,
        patients=result.main.patients,
        class_names=result.cache.class_names,
        positive=None if threshold is None else 0,
        threshold=threshold,
    )
    return elsewhere(result.sources, cases, result.left_out, result.main.temperature, folds=3)


@pytest.mark.slow
def test_a_shortcut_fails_elsewhere_and_the_drop_says_so(tmp_path: Path) -> None:
    """In hospital A a marker follows the class, in B it is turned round: only ordinary folds learn both."""
    hospital = ["AB"[row // 2 // 2 % 2] for row in range(COUNT)]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(COUNT, DIM)).astype(np.float32)
    at_a = np.array(hospital) == "A"
    features[:, 0] += np.where(at_a, 6, -6)
    features[:, 1] += np.where(at_a, 3, -3) * (2 * TRUTH - 1)
    cache = made(tmp_path, hospital, features=features)
    spec = TrainSpec(epochs=40, lr=0.01)
    plan = CrossvalSpec(folds=3, by_image=False, leave_out="hospital")
    result = cross_validate(cache, HeadSpec(hidden=(32,)), spec, plan)
    found = measured(result, 0.5)
    auc = found["overall"]["auc"]
    assert auc["ordinary"]["value"] > 0.9
    assert auc["elsewhere"]["value"] < 0.4
    assert auc["drop"]["interval"][0] > 0.3
    assert [row["remaining_images"] for row in found["sources"]] == [hospital.count("B"), hospital.count("A")]
    assert found["remaining_images"] == COUNT * 2 / 3
    assert "fewer images alone may cause a drop" in elsewhere_lines(found)[-2]
    assert "elsewhere: expect" in expected_elsewhere(found)
    assert "too optimistic" not in expected_elsewhere(found)
    assert "too optimistic if" in expected_elsewhere({**found, "same_as_class": ["collection"]})


def test_the_figures_are_those_of_the_left_out_images(tmp_path: Path) -> None:
    """Reference: the probabilities of the left-out heads, counted by hand."""
    cache = made(tmp_path, thirds())
    result = cross_validate(cache, HEAD, TRAIN, CrossvalSpec(folds=3, by_image=False, seeds=2, leave_out="hospital"))
    found = measured(result)
    probabilities = result.left_out.averaged(np.ones(COUNT, np.bool_), result.main.temperature)
    for row in found["sources"]:
        mine = np.array(thirds()) == row["source"]
        right = probabilities[mine].argmax(1) == result.main.labels[mine]
        assert row["images"] == mine.sum() == 40
        assert row["figures"]["accuracy"]["elsewhere"]["value"] == pytest.approx(right.mean())
        ordinary = result.main.combined[mine].argmax(1) == result.main.labels[mine]
        assert row["figures"]["accuracy"]["ordinary"]["value"] == pytest.approx(ordinary.mean())
        assert row["figures"]["accuracy"]["drop"]["value"] == pytest.approx(ordinary.mean() - right.mean())
    assert set(found["overall"]) == {"accuracy", "sensitivity", "specificity", "auc"}


def test_a_source_of_one_class_has_a_sensitivity_and_no_auc(tmp_path: Path) -> None:
    hospital = ["D" if row < 40 and TRUTH[row] == 0 else "ABC"[row // 4 % 3] for row in range(COUNT)]
    result = cross_validate(
        made(tmp_path, hospital), HEAD, TRAIN, CrossvalSpec(folds=3, by_image=False, leave_out="hospital")
    )
    found = measured(result, 0.5)
    one = next(row for row in found["sources"] if row["source"] == "D")
    assert one["classes"] == {"covid": 20, "normal": 0}
    assert one["figures"]["sensitivity"]["elsewhere"]["value"] is not None
    assert one["figures"]["auc"]["elsewhere"] == {"value": None, "interval": None}
    assert one["figures"]["auc"]["drop"] == {"value": None, "interval": None}


def test_a_source_that_cannot_be_left_out_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    """Outside of A there is one patient with covid."""
    labels = np.where(np.arange(COUNT) < 42, TRUTH, 1)
    hospital = ["A" if row < 40 else "BC"[row // 2 % 2] for row in range(COUNT)]
    cache = made(tmp_path, hospital, labels=labels)
    sources, folds = folds_of(cache)
    assert sources.unanswerable == ""
    assert sources.problems == {0: "without A, a class has images of 1 patients, too few to train on"}, sources
    assert sorted(folds) == [1, 2]


@pytest.mark.parametrize(
    ("kind", "hospital", "words"),
    [
        ("category", ["A"] * COUNT, "does not say where images come from"),
        ("category", [f"h{row}" for row in range(COUNT)], "does not say where images come from"),
        ("text", ["a note"] * 60 + ["another"] * 60, "does not say where images come from"),
        ("category", [None] * COUNT, "does not say where images come from"),
    ],
)
def test_a_column_that_is_no_source_is_refused(
    tmp_path: Path, kind: str, hospital: list[str | None], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        folds_of(made(tmp_path, hospital, kind=kind))


def test_a_hospital_may_be_a_number(tmp_path: Path) -> None:
    sources, folds = folds_of(made(tmp_path, [row // 4 % 3 for row in range(COUNT)], kind="number"))  # type: ignore[misc]
    assert sources.names == ["0", "1", "2"]
    assert len(folds) == 3


def test_a_missing_column_is_named_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, thirds())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["crossval", "--folds", "3", "--leave-out", "clinic"])
    assert done.exit_code == 1
    assert "there is no column clinic" in done.stderr
    assert "hospital" in done.stderr


def test_nothing_is_expected_where_nothing_was_measured() -> None:
    assert expected_elsewhere(None) == NOT_MEASURED
    assert "expect" not in NOT_MEASURED


@pytest.mark.slow
def test_the_run_says_what_to_expect_elsewhere_only_if_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, thirds())
    monkeypatch.chdir(tmp_path)
    invoke, short = CliRunner().invoke, ["--epochs", "2", "--hidden", "linear"]
    options = ["--folds", "3", "--positive", "covid", "--target-sensitivity", "0.9", "--no-by-image", "--json"]
    for name, more in (("with", ["--leave-out", "hospital"]), ("without", [])):
        done = invoke(main, ["crossval", *short, *options, *more, "--name", name])
        assert done.exit_code == 0, done.stderr
        answer = json.loads(done.stdout)
        page = (tmp_path / "runs" / name / "report.html").read_text()
        trained = invoke(main, ["train", *short, "--threshold-from", f"runs/{name}", "--name", f"run-{name}", "--json"])
        assert trained.exit_code == 0, trained.stderr
        stored = json.loads((tmp_path / "runs" / f"run-{name}" / "run.json").read_text())
        assert stored["operating_point"]["threshold"] == answer["operating_point"]["threshold"]
        assert stored["crossval"]["elsewhere"] == answer["elsewhere"]
        both = page, (tmp_path / "runs" / f"run-{name}" / "report.html").read_text()
        assert all(("Elsewhere: expect" in text) == (name == "with") for text in both)
        assert all(("was not measured" in text) == (name == "without") for text in both)

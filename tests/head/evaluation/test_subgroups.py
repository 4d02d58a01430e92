"""Subgroups: every kind of column is divided or said not to be, and gaps are found where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.caches import extra_column
from xfeat.featurize.errors import SpecError
from xfeat.head.evaluation.study import Cases, study
from xfeat.head.evaluation.subgroups import check_bins, divided, subgroup_figures

COUNT = 400
ROWS = np.arange(COUNT)


def cases(*, worse: np.ndarray | None = None, classes: int = 2, images: int = 2, seed: int = 0) -> Cases:
    """Make cases at a threshold; rows that are ``worse`` are mostly missed."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, COUNT // images).repeat(images)
    logits = rng.normal(size=(COUNT, classes)) + 2 * np.eye(classes)[labels]
    if worse is not None:
        logits[worse, 0] -= 3
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    positive = 0 if classes == 2 else None
    return Cases(
        labels=labels,
        probabilities=probabilities,
        patients=ROWS // images,
        class_names=("covid", "normal", "other")[:classes],
        positive=positive,
        threshold=None if positive is None else 0.5,
    )


@pytest.mark.parametrize(
    ("kind", "values", "names", "note"),
    [
        ("category", ["A", "B"] * 200, ["A", "B"], ""),
        ("category", ["A"] * 400, [], "not divided: the same for every image: A"),
        ("category", [None] * 400, [], "not divided: unknown for every image"),
        ("category", [f"id{row}" for row in ROWS], [], "not divided: another value for every image"),
        ("category", ["A", None] * 200, ["A", "unknown"], "unknown for 50 % of the images"),
        ("text", [f"note {row}" for row in ROWS], [], "not divided: free text"),
        ("number", [row % 2 for row in ROWS], ["0", "1"], ""),
        ("number", [7.0] * 400, [], "not divided: the same for every image: 7"),
        (
            "number",
            (ROWS / 4.0).tolist(),
            ["to 24.75", "over 24.75 to 49.75", "over 49.75 to 74.75", "over 74.75"],
            "",
        ),
        ("number", [0.0] * 350 + list(range(1, 51)), ["to 0", "over 0"], ""),  # three quartiles are the same
        ("date", [f"20{10 + row % 8}-01-01" for row in ROWS], None, ""),
    ],
)
def test_a_column_is_divided_by_its_values(
    kind: str, values: Sequence[Any], names: list[str] | None, note: str
) -> None:
    found = divided(extra_column(kind, values), ROWS)
    assert found.note == note
    if names is not None:
        assert found.names == names
    else:
        assert found.names[0] == "to 2011-01-01"
    if found.names:
        assert np.bincount(found.codes, minlength=len(found.names)).min() > 0
        assert (found.codes >= 0).all()


def test_numbers_are_divided_at_given_bins_with_their_upper_ends() -> None:
    found = divided(extra_column("number", [18, 18.5, 40, 65, 66, None]), np.arange(6), [18, 40, 65])
    assert found.names == ["to 18", "over 18 to 40", "over 40 to 65", "over 65", "unknown"]
    assert found.codes.tolist() == [0, 1, 1, 2, 3, 4]


def test_of_500_values_the_most_frequent_are_compared_and_the_others_shown_together() -> None:
    values = [f"v{row % 500}" if row % 3 else "frequent" for row in ROWS]
    found = divided(extra_column("category", values), ROWS)
    assert len(found.names) == 12
    assert found.names[-1].endswith("other values")
    assert "the 11 most frequent are compared" in found.note
    assert found.names[0] == "frequent"


def test_a_cell_has_the_figures_of_its_images_alone() -> None:
    """Reference: the study of the images of the cell."""
    everyone, hospital = cases(), np.where(ROWS % 4 < 2, "A", "B")
    found = subgroup_figures(everyone, {"hospital": extra_column("category", hospital.tolist())}, ROWS)
    for value in found["columns"]["hospital"]["values"]:
        rows = hospital == value["value"]
        alone = study(
            Cases(
                labels=everyone.labels[rows],
                probabilities=everyone.probabilities[rows],
                patients=np.unique(everyone.patients[rows], return_inverse=True)[1],
                class_names=everyone.class_names,
                positive=0,
                threshold=0.5,
            )
        )
        assert value["images"] == rows.sum()
        assert value["positives"] == (everyone.labels[rows] == 0).sum()
        for figure in ("sensitivity", "specificity", "auc", "slope", "intercept"):
            mine, own = value[figure], alone["classes"]["covid"][figure]
            assert mine["value"] == pytest.approx(own["value"])
            assert mine["interval"] == pytest.approx(own["interval"])


def test_a_hospital_where_the_model_fails_is_found_and_chance_is_not() -> None:
    worse = ROWS % 4 < 2
    columns = {
        "hospital": extra_column("category", np.where(worse, "A", "B").tolist()),
        "ward": extra_column("category", [f"w{row // 2 % 7}" for row in ROWS]),
    }
    found = subgroup_figures(cases(worse=worse), columns, ROWS)
    gap = found["columns"]["hospital"]["gaps"]["sensitivity"]
    assert (gap["high"], gap["low"], gap["more_than_chance"]) == ("B", "A", True)
    assert gap["interval"][0] > 0
    assert not any(each["more_than_chance"] for each in found["columns"]["ward"]["gaps"].values())
    assert found["comparisons"] == 3 * (1 + 21)


@pytest.mark.slow
def test_chance_is_called_more_than_chance_in_few_data_sets() -> None:
    """Reference: 150 data sets in which no column means anything, with 66 comparisons each."""
    wards = extra_column("category", [f"w{row // 2 % 7}" for row in ROWS])
    halves = extra_column("category", [f"h{row // 2 % 2}" for row in ROWS])
    false_alarms = 0
    for seed in range(150):
        found = subgroup_figures(cases(seed=seed), {"ward": wards, "half": halves}, ROWS)["columns"]
        gaps = [gap for column in found.values() for gap in column["gaps"].values()]
        false_alarms += any(gap["more_than_chance"] or gap["others_more_than_chance"] for gap in gaps)
    assert false_alarms / 150 <= 0.08


def test_few_patients_are_marked_and_not_compared() -> None:
    values = ["rare"] * 8 + ["A", "B"] * 196
    found = subgroup_figures(cases(), {"hospital": extra_column("category", values)}, ROWS)["columns"]["hospital"]
    rare = next(value for value in found["values"] if value["value"] == "rare")
    assert set(rare["few"]) >= {"sensitivity", "specificity", "auc"}
    assert all("rare" not in (gap["high"], gap["low"]) for gap in found["gaps"].values())


def test_a_column_that_is_the_class_is_called_that() -> None:
    everyone = cases()
    names = [everyone.class_names[code] for code in everyone.labels]
    found = subgroup_figures(everyone, {"source": extra_column("category", names)}, ROWS)["columns"]["source"]
    assert "it cannot be told apart from the class" in found["note"]
    assert found["gaps"] == {}
    assert found["values"][0]["auc"] == {"value": None, "interval": None}


def test_unknown_values_are_shown_and_not_compared() -> None:
    values = ["A", "A", None, None] * 100
    found = subgroup_figures(cases(), {"sex": extra_column("category", values)}, ROWS)["columns"]["sex"]
    assert [value["value"] for value in found["values"]] == ["A", "unknown"]
    assert found["gaps"] == {}


def test_a_patient_in_two_hospitals_counts_in_both() -> None:
    found = subgroup_figures(cases(images=2), {"hospital": extra_column("category", ["A", "B"] * 200)}, ROWS)
    assert [value["patients"] for value in found["columns"]["hospital"]["values"]] == [200, 200]
    # the patients are the same, so that the gap is more certain than that of different ones
    apart = subgroup_figures(cases(images=1), {"hospital": extra_column("category", ["A", "B"] * 200)}, ROWS)
    assert found["columns"]["hospital"]["gaps"]["sensitivity"]["interval"] is not None
    assert apart["columns"]["hospital"]["values"][0]["patients"] == 200


def test_more_classes_without_a_positive_one_have_accuracy_and_mean_auc() -> None:
    found = subgroup_figures(cases(classes=3), {"sex": extra_column("category", ["M", "M", "F", "F"] * 100)}, ROWS)
    assert found["class"] is None
    assert set(found["columns"]["sex"]["gaps"]) == {"accuracy", "auc"}


@pytest.mark.parametrize(
    ("bins", "words"),
    [
        ({"height": [1.0]}, "no column of numbers with this name"),
        ({"sex": [1.0]}, "no column of numbers with this name"),
        ({"age": [40.0, 18.0]}, "bad bins of age"),
        ({"age": [float("nan")]}, "bad bins of age"),
    ],
)
def test_bins_are_checked_before_anything_is_trained(bins: dict[str, list[float]], words: str) -> None:
    columns = {"age": extra_column("number", [1, 2]), "sex": extra_column("category", ["M", "F"])}
    with pytest.raises(SpecError, match=words):
        check_bins(bins, columns)

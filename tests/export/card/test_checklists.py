"""The table of the kind: which item of CLAIM and TRIPOD+AI is answered by which sources, and never by others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from tests.export.card.studies import AUDIT, SOURCES, STUDY, card_of, sources_of
from xfeat.export.card.card import make_card
from xfeat.export.card.checklist import CLAIM, FILLED, NOT_APPLICABLE, PARTLY, TRIPOD, Answer
from xfeat.export.card.rows import FILL_IN
from xfeat.featurize.errors import RunError

CASES = [
    ("everything", "claim", "20", FILLED),
    ("everything", "claim", "29", FILLED),
    ("everything", "claim", "33", FILLED),
    ("everything", "claim", "5", FILL_IN),
    ("everything", "claim", "36", PARTLY),
    ("everything", "claim", "40", PARTLY),
    ("everything", "tripod", "9c", NOT_APPLICABLE),
    ("everything", "tripod", "12a", FILLED),
    ("everything", "tripod", "23a", FILLED),
    ("everything", "tripod", "23b", FILLED),
    ("three classes", "claim", "38", FILLED),
    ("three classes", "tripod", "15", FILLED),
    ("no patients", "claim", "20", FILL_IN),
    ("no patients", "claim", "35", PARTLY),
    ("no patients", "tripod", "12a", PARTLY),
    ("no patients", "tripod", "21", PARTLY),
    ("a patient in two splits", "claim", "20", FILLED),
    ("no cache", "claim", "20", FILL_IN),
    ("no cache", "claim", "12", FILL_IN),
    ("no evaluation", "claim", "33", PARTLY),
    ("no evaluation", "tripod", "16", FILL_IN),
    ("no other source", "claim", "33", FILL_IN),
    ("no other source", "tripod", "23b", FILL_IN),
    ("trained on the evaluation", "claim", "33", PARTLY),
    ("tested on its test images", "claim", "33", PARTLY),
    ("perhaps trained on it", "claim", "33", PARTLY),
    ("one source only", "claim", "33", FILL_IN),
    ("one source only", "tripod", "23b", FILL_IN),
    ("an ensemble", "claim", "27", FILLED),
    ("no columns", "claim", "36", FILL_IN),
    ("no columns", "tripod", "14", FILL_IN),
    ("no columns", "tripod", "23a", PARTLY),
    ("a run of 0.1", "claim", "29", FILL_IN),
    ("a run of 0.1", "claim", "38", FILL_IN),
    ("a run of 0.1", "claim", "28", FILLED),
    ("no heatmap", "claim", "31", FILL_IN),
    ("no certificate", "claim", "30", FILL_IN),
    ("no certificate", "claim", "43", FILL_IN),
    ("no certificate", "tripod", "22", PARTLY),
    ("no run", "claim", "19", PARTLY),
    ("no run", "claim", "23", PARTLY),
    ("no run", "claim", "26", FILL_IN),
    ("no run", "claim", "27", FILL_IN),
    ("no run", "claim", "28", FILLED),
    ("no run", "claim", "32", PARTLY),
    ("a classifier of scikit-learn", "claim", "28", FILL_IN),
    ("a classifier of scikit-learn", "claim", "32", FILL_IN),
    ("a classifier of scikit-learn", "claim", "22", PARTLY),
]
PARTS_OF_TRIPOD = {
    3: "abc",
    5: "ab",
    6: "abc",
    8: "abc",
    9: "abc",
    12: "abcdefg",
    18: "abcdef",
    20: "abc",
    23: "ab",
    27: "abc",
}


@cache
def answers_of(name: str) -> dict[str, dict[str, Answer]]:
    names = {CLAIM.file: "claim", TRIPOD.file: "tripod"}
    return {names[each.file]: {answer.number: answer for answer in found} for each, found in card_of(name).checklists}


@pytest.mark.parametrize(("name", "checklist", "number", "status"), CASES)
def test_an_item_is_answered_by_what_was_measured_and_left_open_otherwise(
    name: str, checklist: str, number: str, status: str
) -> None:
    assert answers_of(name)[checklist][number].status == status


def test_the_items_are_those_of_the_guidelines() -> None:
    """The numbers of both papers: 44 items, and 27 with 52 parts."""
    assert [item.number for item in CLAIM.items] == [str(number) for number in range(1, 45)]
    parts = [f"{number}{part}" for number in range(1, 28) for part in PARTS_OF_TRIPOD.get(number, [""])]
    assert len(parts) == 52
    assert [item.number for item in TRIPOD.items] == parts


@pytest.mark.parametrize("name", SOURCES)
def test_every_answer_names_keys_that_exist_and_an_open_item_says_nothing(name: str) -> None:
    documents = {document.name: document for document in sources_of(name).documents}
    for answer in (each for found in answers_of(name).values() for each in found.values()):
        if answer.status in (FILL_IN, NOT_APPLICABLE):
            assert answer.where == []
            assert bool(answer.text) == (answer.status == NOT_APPLICABLE)
        else:
            assert answer.text
            assert answer.where or answer.words == "limitations"
        for where in answer.where:
            document, _, key = where.partition(": ")
            assert exists(documents[document].content, key), where


def exists(content: Mapping[str, Any], key: str) -> bool:
    value: Any = content
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def test_all_rows_that_items_ask_for_can_be_there() -> None:
    """An item that asks for a row of another name would be open for ever."""
    everything = STUDY.sources(
        counted=STUDY.counted(files_left_out={"a mask": 2}),
        run=STUDY.run(
            audit={**AUDIT, "verdicts": {"leakage": "found", "shortcuts": "found"}}, cache={"corrections": [["a"]]}
        ),
    )
    column = {"note": "", "gaps": {}, "values": [{"value": "to 40", "images": 3}]}
    few = STUDY.run(subgroups={"class": None, "comparisons": 0, "columns": {"age": column}})
    others = [everything, sources_of("trained on the evaluation"), STUDY.sources(run=few)]
    known = {
        row.id for each in others for section in make_card(each, None).sections for row in section.rows if row.text
    }
    asked = {id for item in (*CLAIM.items, *TRIPOD.items) for id in (*item.rows, *item.also)}
    assert asked - known == {"limitation"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no patients", "Not all images have patients"),
        ("a patient in two splits", "3 patients have images in two splits"),
        ("no cache", "not known which images are of one patient"),
        ("no other source", "how well the model does elsewhere is unknown"),
        ("trained on the evaluation", "1 of 120 images of hospital-d are training images"),
        ("tested on its test images", "1 of 120 images of hospital-d are test images of the run"),
        ("perhaps trained on it", "could not be checked whether images of hospital-d"),
        ("no columns", "No subgroups were compared"),
        ("no audit", "not audited"),
        ("no certificate", "There is no certificate"),
        ("no run", "No run of this model was found"),
        ("everything", "Few images (test): 60 of sick, 60 of well"),
        ("everything", "score finds 25.0 % of these images: inverted"),
    ],
)
def test_a_limitation_follows_from_what_was_or_was_not_measured(name: str, text: str) -> None:
    """And only from that: the complete study has none of the first ten."""
    found = [row.text for row in card_of(name).limitations]
    assert [line for line in found if text in line]
    complete = [row.text for row in card_of("everything").limitations]
    assert name == "everything" or not [line for line in complete if text in line]


@pytest.mark.parametrize(
    "changes", [{"seen_in_training": 5}, {"subgroups": {"columns": {"sex": {"a": 1}}}}, {"drop": 3}]
)
def test_a_document_without_a_digest_that_is_damaged_is_no_traceback(changes: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="damaged"):
        make_card(STUDY.sources(evaluations=[STUDY.evaluation(**changes)]), None)

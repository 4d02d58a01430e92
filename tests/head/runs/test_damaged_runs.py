"""Run folders that are damaged, of another version, or impossible: each is one error."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.edited_runs import edit_run
from xfeat.featurize.errors import RunError
from xfeat.head.runs.reader import Run, open_run


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "xfeat.run", "schema_version": 1}', "\udcff"])
def test_a_damaged_run_json_is_named(run: Run, content: str) -> None:
    (run.folder / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match="damaged"):
        open_run(run.folder)


def test_a_run_of_another_version_is_named(run: Run) -> None:
    file = run.folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    with pytest.raises(RunError, match="version 99"):
        open_run(run.folder)


def test_a_setting_of_a_later_version_is_named(run: Run) -> None:
    file = run.folder / "run.json"
    facts = json.loads(file.read_text())
    facts["head_spec"]["attention"] = 8
    facts.pop("content_sha256", None)
    file.write_text(json.dumps(facts))
    with pytest.raises(RunError, match="attention"):
        open_run(run.folder)


@pytest.mark.parametrize(
    "damaged",
    [
        {"temperature": "warm"},
        {"temperature": None},
        {"operating_point": {"positive": "covid"}},
        {"operating_point": {"positive": "covid", "threshold": None}},
        {"operating_point": {"positive": "covid", "threshold": 2}},
        {"operating_point": {"positive": "unknown", "threshold": 0.5}},
        {"operating_point": {"positive": "covid", "threshold": 0.5, "test": {"sensitivity": 1}}},
        {"temperature": 0},
        {"class_names": ["covid", "covid"]},
        {"dim": 0},
        {"metrics": {}},
        {"ensemble": {"members": 0, "best_epochs": []}},
        {"class_names": [1, 2]},
        {"dim": "12"},
        {"metrics": {"test": {}}},
        {"metrics": []},
        {"cache": None},
        {"versions": {"torch": 2}},
        {"split": "train"},
    ],
)
def test_a_damaged_temperature_or_operating_point_is_named(
    trained_once: Path, tmp_path: Path, damaged: dict[str, object]
) -> None:
    file = Path(shutil.copytree(trained_once / "runs" / "first", tmp_path / "first")) / "run.json"
    facts = {**json.loads(file.read_text()), **damaged}
    file.write_text(json.dumps(facts))
    with pytest.raises(RunError, match="it has changed since it was saved"):
        open_run(file.parent)
    del facts["content_sha256"]  # as a run of an earlier version
    file.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=r"damaged run\.json"):
        open_run(file.parent)


@pytest.mark.parametrize("hidden", [[10**9], [1] * 100_000, [10**30]])
def test_layers_larger_than_the_file_of_the_head_take_no_memory(run: Run, hidden: list[int]) -> None:
    edit_run(run.folder, head_spec={**run.head_spec.to_dict(), "hidden": hidden})
    with pytest.raises(RunError, match="the head's weights are damaged"):
        open_run(run.folder).load_head()


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("wrong", [{"images": 0}, {"accuracy": 1.5}, {"accuracy_interval": [0.5]}])
def test_impossible_metrics_of_a_run_are_named(run: Run, part: str, wrong: dict[str, object]) -> None:
    edit_run(run.folder, metrics={**run.metrics, part: {**run.metrics[part], **wrong}})
    with pytest.raises(RunError, match=r"damaged run\.json"):
        open_run(run.folder)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_tampered_head_is_not_loaded(run: Run, damage: str) -> None:
    file = run.folder / "head.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content if damage == "flip" else content[:-100])
    with pytest.raises(RunError, match=r"the head's weights are (missing|not what)"):
        run.load_head()


def test_an_error_for_a_folder_of_runs_suggests_its_runs(run: Run, tmp_path: Path) -> None:
    runs = run.folder.parent
    (runs / ".a.123-00.tmp").mkdir()
    (runs / ".a.123-00.tmp" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="a folder of runs") as refused:
        open_run(runs)
    assert refused.value.fix == f"choose one of {runs / 'first'}, {runs / 'latest'}"
    for wrong in (runs / "frist", tmp_path / "first"):
        with pytest.raises(RunError, match="run not found: no such folder") as refused:
            open_run(wrong)
        assert refused.value.fix == f"choose one of {runs / 'first'}, {runs / 'latest'}"


@pytest.mark.parametrize(
    "text", ["foo,bar\n1,2\n", "path,split,label,prediction,p_covid\na,test,covid,covid,1\n", "x" * 200_000]
)
def test_damaged_predictions_are_named(run: Run, text: str) -> None:
    run = replace(run, file_sha256={})  # as a run of an earlier version
    file = run.folder / "predictions.csv"
    whole = file.read_text()
    for damaged in (text + "\n1", whole[:-30], whole.replace("0.", "zero"), whole.replace(",covid,", ",flu,")):
        file.write_text(damaged)
        with pytest.raises(RunError, match=r"predictions\.csv: damaged"):
            run.predictions()


@pytest.mark.parametrize("column", ["path", "split", "label", "prediction", "p_covid"])
def test_predictions_without_a_column_are_named(run: Run, column: str) -> None:
    run = replace(run, file_sha256={})
    file = run.folder / "predictions.csv"
    header, rows = file.read_text().split("\n", 1)
    file.write_text(f"{header.replace(column, 'other')}\n{rows}")
    with pytest.raises(RunError, match=rf"predictions\.csv: damaged(.|\n)*no column {column}"):
        run.predictions()

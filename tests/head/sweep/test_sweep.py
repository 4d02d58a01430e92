"""A sweep as a library: what it finds, resuming, limits, faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from tests.head.sweep.sweeping import SPEC, MakeCache, lines, run_sweep
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import BusyError, CacheError, MismatchError, RunError
from xfeat.head.batched.scheduler import FittedBlock, Task, fit_tasks
from xfeat.head.cli import main
from xfeat.head.data.rows import as_rows
from xfeat.head.runs.reader import latest_run, open_run
from xfeat.head.specs import HeadSpec, MemorySpec, TrainSpec
from xfeat.head.sweep.results import RESULTS_FILE, SWEEP_FILE, SweepFolder
from xfeat.head.sweep.runner import Sweep
from xfeat.head.sweep.space import Range, SweepSpec
from xfeat.head.sweep.trials import Trial, TrialSpec
from xfeat.head.train import train_run
from xfeat.head.training.fit import fit_head


def test_each_line_holds_what_the_trial_alone_reaches_on_the_validation_images(
    make_cache: MakeCache, swept: Path
) -> None:
    """References: :func:`xfeat.head.training.fit.fit_head` and scikit-learn."""
    cache = make_cache()
    jobs, table = list(SPEC.trial_specs()), lines(swept / "s")
    assert sorted(int(row["trial"]) for row in table) == list(range(8))
    train, valid = (as_rows(cache.features[rows], cache.columns.label[rows]) for rows in (slice(54), slice(54, 72)))
    for row in table:
        head, spec, _ = jobs[int(row["trial"])]
        assert (row["lr"], row["hidden"]) == (str(spec.lr), ",".join(map(str, head.hidden)) or "linear")
        fitted = fit_head(head, spec, train, valid, classes=3)
        probabilities = fitted.logits(valid.features).double().softmax(1).numpy()
        truth = valid.labels.numpy()
        assert int(row["best_epoch"]) == fitted.best_epoch
        assert float(row["valid_accuracy"]) == accuracy_score(truth, probabilities.argmax(1))
        assert float(row["valid_loss"]) == pytest.approx(log_loss(truth, probabilities), rel=1e-3)
        auc = roc_auc_score(truth, probabilities, multi_class="ovr")
        assert float(row["valid_auc"]) == pytest.approx(auc, abs=0.01)
    best = min(table, key=lambda row: float(row["valid_loss"]))
    assert json.loads((swept / "s" / SWEEP_FILE).read_text())["best_trial"] == int(best["trial"])


def test_the_best_trial_is_a_run_to_the_bit_as_if_trained_alone(
    make_cache: MakeCache, swept: Path, tmp_path: Path
) -> None:
    cache = make_cache()
    result = run_sweep(cache, SPEC, runs=swept, name="s")
    assert result.run is not None
    assert latest_run(swept) == result.run.folder.resolve()
    best = result.combinations[0].best_trial
    alone = train_run(cache, best.spec.head, best.spec.train, runs=tmp_path / "alone", name="a")
    assert open_run(result.run.folder).head_sha256 == alone.head_sha256
    assert result.run.metrics == alone.metrics


@pytest.mark.slow
def test_the_same_sweep_again_trains_nothing_and_more_trials_train_only_the_rest(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    cache, runs = make_cache(), tmp_path / "runs"
    few = SweepSpec(axes=SPEC.axes, trials=3)
    run_sweep(cache, few, runs=runs, name="s")
    before = (runs / "s" / RESULTS_FILE).read_bytes()
    again = run_sweep(cache, few, runs=runs, name="s")
    assert (runs / "s" / RESULTS_FILE).read_bytes() == before
    assert again.run is not None
    run_sweep(cache, SweepSpec(axes=SPEC.axes, trials=5), runs=runs, name="s")
    after = (runs / "s" / RESULTS_FILE).read_bytes()
    assert after.startswith(before)
    assert sorted(int(row["trial"]) for row in lines(runs / "s")) == [0, 1, 2, 3, 4]


def test_a_line_cut_short_by_a_crash_is_trained_again(make_cache: MakeCache, swept: Path) -> None:
    file = swept / "s" / RESULTS_FILE
    content = file.read_bytes()
    cut = content[: content.rstrip().rfind(b"\n") + 20]
    lost = content.rstrip().rsplit(b"\n", 1)[1].split(b",")[0]
    file.write_bytes(cut)
    run_sweep(make_cache(), SPEC, runs=swept, name="s")
    table = lines(swept / "s")
    assert len(table) == 8
    assert table[-1]["trial"] == lost.decode()


CHANGES: dict[str, Callable[[list[str], list[str]], list[str]]] = {
    "a smaller loss": lambda table, other: [table[0], table[1].replace("0.", "0.0"), *table[2:]],
    "another status": lambda table, other: [table[0], table[1].replace("ok", "diverged"), *table[2:]],
    "a line twice": lambda table, other: [*table, table[-1]],
    "a line of another sweep": lambda table, other: [table[0], *other[1:]],
    "numbers exchanged": lambda table, other: [
        table[0],
        table[2].split(",")[0] + "," + table[1].partition(",")[2],
        table[1].split(",")[0] + "," + table[2].partition(",")[2],
        *table[3:],
    ],
    "a line without its digest": lambda table, other: [table[0], table[1].rpartition(",")[0], *table[2:]],
}


def saved(folder: Path, **identity: object) -> SweepFolder:
    """Save three trials of a sweep, whose losses are 0.5, 0.25 and 0.125."""
    folder.mkdir()
    sweep = SweepFolder(folder)
    assert sweep.begin(identity) == []
    specs = [TrialSpec.of({"lr": 10.0**-number}, seed=0) for number in range(1, 4)]
    sweep.append([Trial(place, "ok", spec, 1, {"loss": 0.5**place}, 0.1) for place, spec in enumerate(specs, 1)])
    return sweep


@pytest.mark.parametrize("what", CHANGES)
def test_results_that_were_changed_are_refused(tmp_path: Path, what: str) -> None:
    sweep = saved(tmp_path / "s", axes="lr")
    other = saved(tmp_path / "other", axes="lr", seeds=2)
    tables = [(each.folder / RESULTS_FILE).read_text().splitlines() for each in (sweep, other)]
    changed = CHANGES[what](*tables)
    assert changed != tables[0]
    (sweep.folder / RESULTS_FILE).write_text("\n".join(changed) + "\n")
    with pytest.raises(RunError, match="damaged results"):
        SweepFolder(sweep.folder).begin({"axes": "lr"})


def test_results_of_an_earlier_version_are_read_and_get_their_digests(tmp_path: Path) -> None:
    file = saved(tmp_path / "s", axes="lr").folder / RESULTS_FILE
    whole = file.read_text()
    file.write_text("".join(line.rpartition(",")[0] + "\n" for line in whole.splitlines()))
    trials = SweepFolder(file.parent).begin({"axes": "lr"})
    assert [trial.metrics["loss"] for trial in trials] == [0.5, 0.25, 0.125]
    assert file.read_text() == whole


def test_results_are_on_the_disk_block_by_block_when_the_sweep_stops(make_cache: MakeCache, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop_after_the_first_block(trials: list[Trial], planned: int) -> None:
        seen.append(len(trials))
        assert planned == 8
        if trials:
            raise KeyboardInterrupt

    cache, runs = make_cache(), tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt, match="of 8 trials") as stop:
        run_sweep(cache, SPEC, runs=runs, name="s", progress=stop_after_the_first_block)
    assert "same command again" in str(stop.value)
    kept = lines(runs / "s")
    assert 0 < len(kept) == seen[-1] < 8
    assert json.loads((runs / "s" / SWEEP_FILE).read_text())["state"] == "interrupted"
    assert len(run_sweep(cache, SPEC, runs=runs, name="s").trials) == 8
    assert lines(runs / "s")[: len(kept)] == kept


def test_a_diverging_trial_is_recorded_and_the_others_continue(make_cache: MakeCache, tmp_path: Path) -> None:
    spec = SweepSpec(axes={"lr": (1e-3, 1e38), "hidden": ((8,),), "epochs": (2,)}, seeds=2)
    result = run_sweep(make_cache(), spec, runs=tmp_path, name="s")
    ends = sorted((int(row["trial"]), row["status"]) for row in lines(tmp_path / "s"))
    assert [status for _, status in ends] == ["ok", "ok", "diverged", "diverged"]
    assert result.diverged == 2
    assert [setting.settings["lr"] for setting in result.combinations] == [1e-3]


def test_a_sweep_in_which_every_trial_diverges_is_an_error(make_cache: MakeCache, tmp_path: Path) -> None:
    make_cache()
    command = f"sweep --features {tmp_path}/features.h5 --runs {tmp_path}/runs --lr 1e38 --hidden 8 --epochs 1"
    outcome = CliRunner().invoke(main, command.split())
    assert outcome.exit_code == 1
    assert "the sweep has no result" in outcome.stderr
    assert "fix:      lower learning rates" in outcome.stderr
    assert [row["status"] for row in lines(next((tmp_path / "runs").iterdir()))] == ["diverged"] * 2
    assert not list((tmp_path / "runs").glob("*/run.json"))


@pytest.mark.slow
def test_each_call_makes_progress_even_with_no_time(make_cache: MakeCache, tmp_path: Path) -> None:
    cache, finished = make_cache(), [0]
    while finished[-1] < 8:
        result = run_sweep(cache, SPEC, runs=tmp_path, name="s", time_limit_s=0)
        assert result.run is not None
        assert result.state == ("complete" if len(result.trials) == 8 else "time is up")
        assert len(result.trials) > finished[-1]
        finished.append(len(result.trials))
    assert len(finished) > 2


def test_the_time_limit_lets_blocks_at_work_finish(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def watched(tasks: Iterator[Task], **options: Any) -> Generator[FittedBlock]:
        def one_by_one() -> Iterator[Task]:
            for place, task in enumerate(tasks):
                begun.extend(task.jobs)
                yield task
                if place == 1:
                    time.sleep(0.6)  # now the time is up, and two blocks are at work

        return fit_tasks(one_by_one(), **{**options, "threads": 2})

    monkeypatch.setattr("xfeat.head.sweep.runner.fit_tasks", watched)
    four_shapes = SweepSpec(axes={**SPEC.axes, "epochs": (1, 2)})
    result = run_sweep(make_cache(), four_shapes, runs=tmp_path, name="s", time_limit_s=0.5)
    assert result.state == "time is up"
    assert sorted(int(row["trial"]) for row in lines(tmp_path / "s")) == sorted(begun)


def test_a_sweep_without_a_finished_trial_leaves_nothing(make_cache: MakeCache, tmp_path: Path) -> None:
    def stop(trials: list[Trial], planned: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        run_sweep(make_cache(), SPEC, runs=tmp_path / "new" / "runs", progress=stop)
    assert "trials are in" not in str(stopped.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_cache_that_changes_during_a_sweep_discards_only_the_new_trials(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    cache, other = make_cache(), make_cache("other.h5", seed=1).path.read_bytes()
    run_sweep(cache, SPEC, runs=tmp_path, name="s", time_limit_s=0)
    kept = lines(tmp_path / "s")

    def write_into(trials: list[Trial], planned: int) -> None:
        if len(trials) == planned:
            cache.path.write_bytes(other)

    for name, left in (("s", kept), ("new", None)):
        original = cache.path.read_bytes()
        with pytest.raises(CacheError, match="overwritten with another cache"):
            run_sweep(FeatureCache.open(cache.path), SPEC, runs=tmp_path, name=name, progress=write_into)
        cache.path.write_bytes(original)
        assert (lines(tmp_path / name) if (tmp_path / name).exists() else None) == left


def test_fewer_trials_than_there_are_rank_all_that_are_there(make_cache: MakeCache, swept: Path) -> None:
    before = (swept / "s" / SWEEP_FILE).read_text()
    again = run_sweep(make_cache(), SweepSpec(axes=SPEC.axes, trials=2), runs=swept, name="s")
    assert len(again.combinations) == 8
    assert (again.state, again.planned) == ("complete", 8)
    texts = before, (swept / "s" / SWEEP_FILE).read_text()
    told = [{**json.loads(text), "updated": "", "cache": {}} for text in texts]
    assert told[0] == told[1]


@pytest.mark.parametrize("sampler", ["spread", "optuna"])
def test_fewer_combinations_than_trials_are_complete_with_a_warning(
    make_cache: MakeCache, tmp_path: Path, sampler: str, caplog: pytest.LogCaptureFixture
) -> None:
    axes = {"lr": Range(1e-3, 1.03e-3), "hidden": ((),), "epochs": (1,)}
    spec = SweepSpec(axes=axes, trials=50, sampler=sampler)
    result = run_sweep(make_cache(), spec, runs=tmp_path)
    assert (result.state, result.planned, len(result.trials)) == ("complete", 4, 4)
    assert "only 4 different combinations, not 50" in caplog.text


def test_another_cache_or_other_settings_under_the_same_name_are_refused(make_cache: MakeCache, swept: Path) -> None:
    kept = lines(swept / "s")
    with pytest.raises(MismatchError, match="cache_sha256"):
        run_sweep(make_cache("other.h5", seed=1), SPEC, runs=swept, name="s")
    with pytest.raises(MismatchError, match="axes"):
        run_sweep(make_cache(), SweepSpec(axes={"lr": (1e-3,)}), runs=swept, name="s")
    assert lines(swept / "s") == kept


@pytest.mark.slow
def test_rows_read_in_blocks_of_another_size_are_another_sweep(make_cache: MakeCache, tmp_path: Path) -> None:
    """Their order differs, so that heads of both could not be ranked together."""
    cache, small = make_cache(), MemorySpec(memory_mb=0.002)
    of_memory = run_sweep(cache, SPEC, runs=tmp_path).folder
    of_blocks = run_sweep(cache, SPEC, runs=tmp_path, memory=small).folder
    assert of_blocks != of_memory
    assert run_sweep(cache, SPEC, runs=tmp_path, memory=MemorySpec(memory_mb=500)).folder == of_memory
    with pytest.raises(MismatchError, match="reading"):
        run_sweep(cache, SPEC, runs=tmp_path, name=of_memory.name, memory=small)
    with pytest.raises(MismatchError, match="reading"):
        run_sweep(cache, SPEC, runs=tmp_path, name=of_blocks.name)


def test_a_folder_of_something_else_is_left_as_it_is(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    train_run(cache, HeadSpec(hidden=()), TrainSpec(epochs=1), runs=tmp_path / "runs", name="taken")
    before = sorted(file.name for file in (tmp_path / "runs" / "taken").iterdir())
    with pytest.raises(RunError, match="not a sweep"):
        run_sweep(cache, SPEC, runs=tmp_path / "runs", name="taken")
    after = sorted(file.name for file in (tmp_path / "runs" / "taken").iterdir() if file.name != ".lock")
    assert after == before


@pytest.mark.parametrize("name", ["../s", "latest", ".s", "", "s" * 151])
def test_an_invalid_name_is_refused(make_cache: MakeCache, tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match=r"valid name for a run|name of the run is too long"):
        Sweep(make_cache(), SPEC, runs=tmp_path / "runs", name=name)
    assert not (tmp_path / "runs").exists()


def test_two_processes_cannot_use_one_sweep(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    with SweepFolder(tmp_path / "s").locked(), pytest.raises(BusyError):
        run_sweep(cache, SPEC, runs=tmp_path, name="s")


def test_a_cache_without_a_split_is_divided_once_for_all_trials(make_cache: MakeCache, tmp_path: Path) -> None:
    spec = SweepSpec(axes={"lr": (1e-3,), "hidden": ((8,),), "epochs": (2,)}, seeds=3, first_seed=4)
    result = run_sweep(make_cache(divided=False), spec, runs=tmp_path, name="s")
    assert result.run is not None
    assert "seed 4" in result.run.split["source"]

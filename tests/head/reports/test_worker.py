"""The worker process gives the same results as this one, and ends when it should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.head.conftest import MakeCache
from xfeat.featurize.errors import RunError
from xfeat.head.cli import main
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.reports.formatting import percent
from xfeat.head.reports.worker import Worker
from xfeat.head.runs.reader import open_run
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run


def test_functions_run_in_another_process() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with Worker("json") as worker:
        assert worker(os.getpid) != os.getpid()
        assert np.array_equal(worker(softmax, logits, temperature=2.0), softmax(logits, temperature=2.0))


def test_an_exception_is_raised_here_and_the_worker_continues(tmp_path: Path) -> None:
    with Worker() as worker:
        with pytest.raises(RunError, match="not a run folder"):
            worker(open_run, tmp_path)
        assert worker(percent, 0.25) == "25.0 %"


def test_a_missing_module_does_not_stop_the_worker_from_starting() -> None:
    with Worker("no_such_module") as worker:
        assert worker(percent, 0.25) == "25.0 %"


def test_output_of_a_function_does_not_mix_with_results(capfd: pytest.CaptureFixture[str]) -> None:
    with Worker() as worker:
        assert worker(print, "hello") is None
        assert worker(percent, 0.25) == "25.0 %"
    assert capfd.readouterr().err == "hello\n"


def test_a_killed_worker_is_one_message_and_leaves_nothing(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does when memory is short: the worker is killed before its first call."""

    def start_and_kill(self: Worker, *modules: str) -> None:
        start(self)
        os.kill(self(os.getpid), signal.SIGKILL)

    start = Worker.__init__
    monkeypatch.setattr(Worker, "__init__", start_and_kill)
    command = ["train", "--features", str(make_cache().path), "--runs", str(tmp_path / "runs"), "--epochs", "1"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "error: the worker process for metrics and plots has ended unexpectedly" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_worker_ends_when_its_parent_is_killed() -> None:
    code = (
        "import os, time; from xfeat.head.reports.worker import Worker; "
        "w = Worker(); print(w(os.getpid), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not is_running(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


def is_running(pid: int) -> bool:
    try:
        # a zombie process has ended
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_run_made_with_a_worker_is_the_same_run(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    head, train = HeadSpec(hidden=(8,)), TrainSpec(epochs=2)
    with Worker() as worker:
        there = train_run(cache, head, train, runs=tmp_path / "there", name="run", options=TrainOptions(call=worker))
    here = train_run(cache, head, train, runs=tmp_path / "here", name="run")
    assert there.metrics == here.metrics
    for name in ("head.safetensors", "history.csv", "predictions.csv"):
        assert (there.folder / name).read_bytes() == (here.folder / name).read_bytes()


def test_metrics_and_plots_need_no_torch() -> None:
    """The worker must not import what the main process imports at the same time."""
    code = (
        "import sys, xfeat.head.evaluation.assess, xfeat.head.reports.plots, xfeat.head.reports.run_report, "
        "xfeat.head.reports.worker; "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_imports_neither_matplotlib_nor_torchs_compiler(make_cache: MakeCache, tmp_path: Path) -> None:
    """Importing each takes as long as the training itself; the worker imports the one, and the other is not needed."""
    cache = make_cache()
    code = (
        "import sys; from xfeat.head.cli import main\n"
        f"try: main(['train', '--features', {str(cache.path)!r}, '--runs', {str(tmp_path / 'runs')!r}, "
        "'--epochs', '2'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "loaded = {'matplotlib', 'sklearn', 'scipy', 'jinja2', 'torch._dynamo'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

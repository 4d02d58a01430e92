"""The second process answers as this one would, and goes when it should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.head.conftest import MakeCache
from xfeat.featurize.errors import RunError
from xfeat.head.evaluation.predictions import softmax
from xfeat.head.reports.formatting import percent
from xfeat.head.reports.worker import Worker
from xfeat.head.runs.reader import open_run
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run


def test_it_answers_in_another_process() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with Worker("json") as worker:
        assert worker(os.getpid) != os.getpid()
        assert np.array_equal(worker(softmax, logits, temperature=2.0), softmax(logits, temperature=2.0))


def test_an_error_there_is_an_error_here_and_it_goes_on(tmp_path: Path) -> None:
    with Worker() as worker:
        with pytest.raises(RunError, match="not a run folder"):
            worker(open_run, tmp_path)
        assert worker(percent, 0.25) == "25.0 %"


def test_a_module_that_is_not_installed_is_the_calls_problem_not_the_starts() -> None:
    with Worker("no_such_module") as worker:
        assert worker(percent, 0.25) == "25.0 %"


def test_what_a_function_prints_does_not_get_between_the_answers(capfd: pytest.CaptureFixture[str]) -> None:
    with Worker() as worker:
        assert worker(print, "hello") is None
        assert worker(percent, 0.25) == "25.0 %"
    assert capfd.readouterr().err == "hello\n"


def test_a_process_that_died_is_named() -> None:
    with Worker() as worker:
        pid = worker(os.getpid)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with code -9"):
            worker(percent, 0.5)


def test_it_ends_when_the_process_that_started_it_is_killed() -> None:
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
    pytest.fail("the second process outlived the first")


def is_running(pid: int) -> bool:
    try:
        # a zombie that nobody has collected runs no more
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_run_made_through_it_is_the_same_run(make_cache: MakeCache, tmp_path: Path) -> None:
    cache = make_cache()
    head, train = HeadSpec(hidden=(8,)), TrainSpec(epochs=2)
    with Worker() as worker:
        there = train_run(cache, head, train, runs=tmp_path / "there", name="run", options=TrainOptions(call=worker))
    here = train_run(cache, head, train, runs=tmp_path / "here", name="run")
    assert there.metrics == here.metrics
    for name in ("head.safetensors", "history.csv", "predictions.csv"):
        assert (there.folder / name).read_bytes() == (here.folder / name).read_bytes()


def test_neither_measuring_nor_drawing_needs_torch() -> None:
    """The second process must not import what the first is importing."""
    code = (
        "import sys, xfeat.head.evaluation.assess, xfeat.head.reports.plots, xfeat.head.reports.run_report, "
        "xfeat.head.reports.worker; "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_needs_neither_matplotlib_nor_torchs_compiler(make_cache: MakeCache, tmp_path: Path) -> None:
    """Each costs as much time as the training itself; the worker has the one, nobody needs the other."""
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

"""Fixed buffers give the same bits as ``InferenceSession.run``. The tests use a CPU for everything but the graphs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result
from onnx import TensorProto, helper

import xfeat.export.model.cuda_graphs
from xfeat.export.model.cuda_graphs import BoundSession, open_network
from xfeat.export.parity.checks import open_on_providers
from xfeat.featurize.errors import DeviceError, ModelError, SpecError
from xfeat.featurize.system.cuda import PROVIDER as CUDA
from xfeat.featurize.system.cuda import cuda_driver_present

CPU = "CPUExecutionProvider"
RealSession = ort.InferenceSession
OUTPUTS = ["probabilities", "logits", "heatmap", "ood"]

with_gpu = pytest.mark.skipif(not cuda_driver_present(), reason="needs a GPU")


class LoggedSession:
    """A real session that records the graph id and the thread of each run."""

    def __init__(self, path: Path) -> None:
        self.real = RealSession(path, providers=[CPU])
        self.plain: list[str] = []
        self.bound: list[str] = []
        self.threads: set[int] = set()
        self.before: Callable[[], object] = lambda: None

    def run(self, names: Any, feed: Any, options: Any = None) -> Any:
        self._note(self.plain, options)
        return self.real.run(names, feed, options)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self._note(self.bound, options)
        self.real.run_with_iobinding(binding, options)

    def _note(self, runs: list[str], options: Any) -> None:
        self.before()
        self.threads.add(threading.get_ident())
        with contextlib.suppress(RuntimeError, AttributeError):  # no such entry, no options
            runs.append(options.get_run_config_entry("gpu_graph_id"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def core(exported: Any) -> LoggedSession:
    return LoggedSession(exported.core)


def batch(number: int, seed: int = 0, side: int = 64) -> dict[str, np.ndarray]:
    """Return noise as the core model takes it."""
    return {"image": np.random.default_rng(seed).integers(0, 256, (number, 3, side, side)).astype(np.float32)}


def pixels(number: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return noise as the full model takes it."""
    return {"image": np.ascontiguousarray(batch(number, seed)["image"].transpose(0, 2, 3, 1).astype(np.uint8))}


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("names", [None, ["probabilities"], ["ood", "logits"], OUTPUTS])
def test_every_batch_gives_the_same_bits_as_a_plain_run(exported: Any, names: list[str] | None, graphs: bool) -> None:
    plain = RealSession(exported.model, providers=[CPU])
    bound = BoundSession(plain, "cpu", graphs=graphs)
    for number in (1, 4, 2):
        bound.bind(pixels(number))
    for seed, number in enumerate([4, 1, 3, 2, 4, 4, 1]):  # 3 is not bound
        assert same(bound.run(names, pixels(number, seed)), plain.run(names, pixels(number, seed)))


def test_buffers_are_allocated_once_per_shape_and_reused(core: LoggedSession, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    honest = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        ort.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda shape, *rest: made.append(tuple(shape)) or honest(shape, *rest),
    )
    bound = BoundSession(core, "cpu", graphs=True)
    for number in (2, 1, 2):
        bound.bind(batch(number))
    assert made == [(2, 3, 64, 64), (2, 2), (2, 2), (1, 3, 64, 64), (1, 2), (1, 2)]
    for number in (1, 2, 1):
        bound.run(None, batch(number))
    assert len(made) == 6
    assert (core.plain, core.bound) == (["-1", "-1"], ["1", "2", "2", "1", "2"])
    bound.run(None, batch(3))
    assert core.plain[2:] == ["-1"]


def test_without_graphs_no_run_has_a_graph_id(core: LoggedSession) -> None:
    bound = BoundSession(core, "cpu")
    bound.bind(batch(1))
    bound.run(None, batch(1))
    assert core.plain == core.bound == []


def test_returned_outputs_are_not_overwritten_by_the_next_run(core: LoggedSession) -> None:
    bound = BoundSession(core, "cpu")
    bound.bind(batch(2))
    first = bound.run(None, batch(2, seed=1))
    copies = [output.copy() for output in first]
    second = bound.run(None, batch(2, seed=2))
    assert same(first, copies)
    assert not same(first, second)


def test_an_array_of_another_type_or_memory_order_is_not_misread(core: LoggedSession) -> None:
    bound = BoundSession(core, "cpu")
    bound.bind(batch(2))
    turned = {"image": np.asfortranarray(batch(2, seed=3)["image"])}
    assert same(bound.run(None, turned), core.real.run(None, batch(2, seed=3)))
    with pytest.raises(Exception, match="Unexpected input data type"):
        bound.run(None, {"image": batch(2)["image"].astype(np.float64)})


def test_callers_in_many_threads_get_their_own_outputs_from_one_session_thread(core: LoggedSession) -> None:
    """A graph belongs to the thread that recorded it."""
    bound = BoundSession(core, "cpu", graphs=True)
    for number in (1, 2):
        bound.bind(batch(number))
    jobs = [(seed % 3 + 1, seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: bound.run(None, batch(*job)), jobs))
    assert all(same(answer, core.real.run(None, batch(*job))) for answer, job in zip(found, jobs, strict=True))
    assert len(core.threads) == 1
    assert threading.get_ident() not in core.threads


@pytest.fixture
def picky(tmp_path: Path) -> Path:
    """A model that fails on numbers over 3."""
    nodes = [helper.make_node("Gather", ["table", "image"], ["probabilities"])]
    table = helper.make_tensor("table", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    inside = helper.make_tensor_value_info("image", TensorProto.INT64, ["N"])
    outside = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "picky", [inside], [outside], [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "p.onnx")
    return tmp_path / "p.onnx"


def test_a_run_that_fails_leaves_the_session_usable(picky: Path) -> None:
    bound = BoundSession(RealSession(picky, providers=[CPU]), "cpu", graphs=True)
    bound.bind({"image": np.array([0, 1])})
    for bad in ([2, 9], [9]):
        with pytest.raises(Exception, match="out of data bounds"):
            bound.run(None, {"image": np.array(bad)})
        assert bound.run(None, {"image": np.array([3, 1])})[0].tolist() == [4, 2]


def test_buffers_that_a_run_does_not_write_are_detected(core: LoggedSession, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = BoundSession(core, "cpu", graphs=True)
    with monkeypatch.context() as broken:
        broken.setattr(core, "run_with_iobinding", lambda binding, options: None)
        with pytest.raises(ModelError, match="in fixed buffers on cpu differ"):
            bound.bind(batch(2, seed=4))
    assert same(bound.run(None, batch(2, seed=4)), core.real.run(None, batch(2, seed=4)))
    assert core.bound == []
    bound.bind(batch(2))
    assert core.bound == ["2"]  # what was recorded as 1 is never replayed


def test_nothing_else_runs_while_a_graph_is_recorded(exported: Any) -> None:
    """In every other session the current run ends first, and the next one starts afterwards."""
    one, other = LoggedSession(exported.core), LoggedSession(exported.core)
    recording, serving = BoundSession(one, "cpu", graphs=True), BoundSession(other, "cpu")
    entered, go_on, order = threading.Event(), threading.Event(), []

    def hold() -> None:
        entered.set()
        assert go_on.wait(30)
        order.append("the run that was on")

    other.before, one.before = hold, lambda: order.append("recording")
    with ThreadPoolExecutor() as pool:
        on = pool.submit(serving.run, None, batch(1))
        assert entered.wait(30)
        bound = pool.submit(recording.bind, batch(1))
        while not xfeat.export.model.cuda_graphs._recording.locked():
            time.sleep(0.01)
        other.before = lambda: order.append("the next")
        later = pool.submit(serving.run, None, batch(1))
        go_on.set()
        for each in (on, bound, later):
            each.result(30)
    assert order[0] == "the run that was on"
    assert [each for each in order if each != "the next"] == ["the run that was on", "recording", "recording"]
    assert order.index("the next") != 2


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Simulate a GPU on the CPU; return what onnxruntime was asked for, and what it shall refuse."""
    facts: dict[str, Any] = {"asked": [], "refuses": None}

    class SimulatedGpu(LoggedSession):
        def __init__(self, path: Path, options: Any = None, *, providers: list[Any], **_: Any) -> None:
            settings = [each[1] for each in providers if isinstance(each, tuple)]
            facts["asked"] += [each.get("enable_cuda_graph") for each in settings]
            self.records = any(each.get("enable_cuda_graph") for each in settings)
            if self.records and facts["refuses"] == "open":
                raise RuntimeError("This session cannot use the graph capture feature")
            super().__init__(path)
            self.names = [each if isinstance(each, str) else each[0] for each in providers]

        def get_providers(self) -> list[str]:
            return self.names

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return []

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            if self.records and facts["refuses"] == "record":
                raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
            super().run_with_iobinding(binding, options)

    honest = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        ort.OrtValue, "ortvalue_from_shape_and_type", lambda shape, kind, device, number: honest(shape, kind, "cpu", 0)
    )
    monkeypatch.setattr(ort, "InferenceSession", SimulatedGpu)
    monkeypatch.setattr("xfeat.featurize.system.onnx_session.check_gpu", lambda device: None)
    monkeypatch.setattr("xfeat.export.parity.checks.cuda_possible", lambda: True)
    return facts


def graphs_of(session: Any) -> bool:
    assert isinstance(session, BoundSession)
    return session.graphs


@pytest.mark.parametrize(
    ("form", "graphs", "asked", "recorded"),
    [
        ("core", "auto", [None, "1"], True),
        ("core", "on", [None, "1"], True),
        ("core", "off", [None], False),
        ("model", "auto", [None], False),  # it resizes
    ],
)
def test_graphs_are_recorded_for_a_model_that_does_not_resize(
    exported: Any, gpu: Any, caplog: pytest.LogCaptureFixture, form: str, graphs: str, asked: list[Any], recorded: bool
) -> None:
    session = open_network(getattr(exported, form), device="cuda:1", graphs=graphs)
    assert graphs_of(session) is recorded
    assert gpu["asked"] == asked
    assert caplog.text == ""
    feed = batch(2) if form == "core" else pixels(2)
    session.bind(feed)  # type: ignore[union-attr]
    assert same(session.run(None, feed), RealSession(getattr(exported, form), providers=[CPU]).run(None, feed))


@pytest.mark.parametrize(
    ("refuses", "reason"), [("open", "cannot use the graph capture feature"), ("record", "CUDA failure 900")]
)
def test_graphs_that_the_driver_refuses_are_a_warning_by_default_and_an_error_with_on(
    exported: Any, gpu: Any, caplog: pytest.LogCaptureFixture, refuses: str, reason: str
) -> None:
    gpu["refuses"] = refuses
    session = open_network(exported.core, device="cuda")
    assert not graphs_of(session)
    assert "without CUDA graphs" in caplog.text
    assert reason in caplog.text
    session.bind(batch(2))  # type: ignore[union-attr]
    assert same(session.run(None, batch(2)), RealSession(exported.core, providers=[CPU]).run(None, batch(2)))
    with pytest.raises(DeviceError, match=reason) as problem:
        open_network(exported.core, device="cuda", graphs="on")
    assert "--cuda-graphs" in str(problem.value)


def test_a_model_without_this_projects_metadata_is_opened_too(
    picky: Path, gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The metadata are checked elsewhere."""
    assert not graphs_of(open_network(picky, device="cuda"))
    assert caplog.text == ""


def test_requested_graphs_that_are_impossible_are_an_error(exported: Any, gpu: Any) -> None:
    with pytest.raises(DeviceError, match="it runs on the CPU"):
        open_network(exported.core, graphs="on")
    with pytest.raises(DeviceError, match="images of any size"):
        open_network(exported.model, device="cuda", graphs="on")
    with pytest.raises(SpecError, match="unknown setting"):
        open_network(exported.core, graphs="always")


@pytest.mark.usefixtures("gpu")
def test_the_parity_check_runs_full_batches_through_the_buffers_used_for_serving(
    xexport: Callable[..., Result], exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = {}

    def note(*args: Any, **settings: Any) -> Any:
        opened.update(open_on_providers(*args, **settings))
        return opened

    monkeypatch.setattr("xfeat.export.verify.open_on_providers", note)
    done = xexport("verify", exported.core, "--data", exported.data, "--require-cuda")
    assert done.exit_code == 0, done.output
    assert CUDA in done.stdout
    session = opened[CUDA].session._session
    # One image when the model was opened, then the first 8 of 12 images, twice; the last 4 are not a full batch.
    assert (session.plain, session.bound) == (["-1", "-1", "-1"], ["1", "2", "2"])


@pytest.mark.gpu
@with_gpu
def test_graphs_on_a_gpu_give_the_outputs_of_the_cpu(exported: Any) -> None:
    session = open_network(exported.core, device="cuda", graphs="on")
    assert graphs_of(session)
    for number in (8, 1, 4, 2):
        session.bind(batch(number))  # type: ignore[union-attr]
    reference = RealSession(exported.core, providers=[CPU])
    for seed, number in enumerate([2, 8, 1, 4, 3, 8, 2]):
        for one, other in zip(
            session.run(None, batch(number, seed)), reference.run(None, batch(number, seed)), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.gpu
@with_gpu
def test_a_benchmark_on_a_gpu_shows_whether_graphs_were_replayed(xexport: Callable[..., Result], exported: Any) -> None:
    done = xexport("bench", exported.core, "--provider", "cuda", "--cuda-graphs", "on", "--seconds", "0")
    assert done.exit_code == 0, done.output
    assert "cuda+graph" in done.stdout

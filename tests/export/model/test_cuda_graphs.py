"""Fixed buffers give the same bits as ``InferenceSession.run``. The tests use a CPU for everything but the graphs."""

from __future__ import annotations

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

pytestmark = pytest.mark.slow

CPU = "CPUExecutionProvider"
RealSession = ort.InferenceSession
OUTPUTS = ["probabilities", "logits", "heatmap", "ood"]

with_gpu = pytest.mark.skipif(not cuda_driver_present(), reason="needs a GPU")


class LoggedSession:
    """A real session that records the thread and the kind of each run."""

    def __init__(self, path: Path, options: Any = None) -> None:
        self.real = RealSession(path, options, providers=[CPU])
        self.plain = self.bound = 0
        self.threads: set[int] = set()
        self.before: Callable[[], object] = lambda: None

    def run(self, names: Any, feed: Any) -> Any:
        self._note()
        self.plain += 1
        return self.real.run(names, feed)

    def run_with_iobinding(self, binding: Any) -> None:
        self._note()
        self.bound += 1
        self.real.run_with_iobinding(binding)

    def _note(self) -> None:
        self.before()
        self.threads.add(threading.get_ident())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Opener:
    """Opens logged sessions of a model on the CPU, and keeps them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[LoggedSession] = []
        self.asked: list[tuple[dict[str, int], bool]] = []

    def __call__(self, *, sizes: dict[str, int], graphs: bool) -> Any:
        options = ort.SessionOptions()
        for axis, size in sizes.items():
            options.add_free_dimension_override_by_name(axis, size)
        self.asked.append((sizes, graphs))
        self.opened.append(LoggedSession(self.path, options))
        return self.opened[-1]


@pytest.fixture
def core(exported: Any) -> Opener:
    return Opener(exported.core)


def batch(number: int, seed: int = 0, side: int = 64) -> dict[str, np.ndarray]:
    """Return noise as the core model takes it."""
    return {"image": np.random.default_rng(seed).integers(0, 256, (number, 3, side, side)).astype(np.float32)}


def pixels(number: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return noise as the full model takes it."""
    return {"image": np.ascontiguousarray(batch(number, seed)["image"].transpose(0, 2, 3, 1).astype(np.uint8))}


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("names", [None, ["probabilities"], ["ood", "logits"], OUTPUTS])
def test_every_batch_gives_the_same_bits_as_a_plain_run(exported: Any, names: list[str] | None, graphs: str) -> None:
    plain = RealSession(exported.model, providers=[CPU])
    bound = BoundSession(Opener(exported.model), "cpu", graphs=graphs)
    bound.bind([pixels(number) for number in (1, 4, 2)])
    for seed, number in enumerate([4, 1, 3, 2, 4, 4, 1]):  # 3 is not bound
        assert same(bound.run(names, pixels(number, seed)), plain.run(names, pixels(number, seed)))


def test_each_shape_has_a_session_of_its_own_with_all_sizes_fixed(exported: Any, core: Opener) -> None:
    """In one session, each change of the batch size would have every convolution planned again."""
    bound = BoundSession(core, "cpu", graphs="on")
    bound.bind([batch(number) for number in (2, 1)])
    bound.bind([batch(number) for number in (2, 4)])
    assert core.asked == [({}, False), ({"N": 2}, True), ({"N": 1}, True), ({"N": 4}, True)]
    for number in (1, 2, 1, 4, 3):
        bound.run(None, batch(number))
    assert [session.plain for session in core.opened] == [3 + 1, 0, 0, 0]
    assert [session.bound for session in core.opened] == [0, 2 + 1, 2 + 2, 2 + 1]
    full = Opener(exported.model)
    BoundSession(full, "cpu").bind([pixels(2)])
    assert full.asked[1:] == [({"N": 2, "H": 64, "W": 64}, False)]


def test_a_full_model_of_fixed_sizes_computes_no_shapes(exported: Any, tmp_path: Path) -> None:
    """onnxruntime computes shapes on the CPU, and could not record them as a CUDA graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # what it optimizes for this processor, it warns of
    for axis, size in {"N": 4, "H": 64, "W": 64}.items():
        options.add_free_dimension_override_by_name(axis, size)
    RealSession(exported.model, options, providers=[CPU])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert kinds.isdisjoint({"Shape", "Range", "If", "Loop", "Equal", "And"})


def test_buffers_are_allocated_once_per_shape_and_reused(core: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    honest = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        ort.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda shape, *rest: made.append(tuple(shape)) or honest(shape, *rest),
    )
    bound = BoundSession(core, "cpu", graphs="on")
    for number in (2, 1, 2):
        bound.bind([batch(number)])
    assert made == [(2, 3, 64, 64), (2, 2), (2, 2), (1, 3, 64, 64), (1, 2), (1, 2)]
    for number in (1, 2, 1, 3):
        bound.run(None, batch(number))
    assert len(made) == 6


def test_returned_outputs_are_not_overwritten_by_the_next_run(core: Opener) -> None:
    bound = BoundSession(core, "cpu")
    bound.bind([batch(2)])
    first = bound.run(None, batch(2, seed=1))
    copies = [output.copy() for output in first]
    second = bound.run(None, batch(2, seed=2))
    assert same(first, copies)
    assert not same(first, second)


def test_an_array_of_another_type_or_memory_order_is_not_misread(core: Opener) -> None:
    bound = BoundSession(core, "cpu")
    bound.bind([batch(2)])
    turned = {"image": np.asfortranarray(batch(2, seed=3)["image"])}
    assert same(bound.run(None, turned), core.opened[0].real.run(None, batch(2, seed=3)))
    with pytest.raises(Exception, match="Unexpected input data type"):
        bound.run(None, {"image": batch(2)["image"].astype(np.float64)})


def test_callers_in_many_threads_get_their_own_outputs_from_one_session_thread(core: Opener) -> None:
    """A graph belongs to the thread that recorded it."""
    bound = BoundSession(core, "cpu", graphs="on")
    bound.bind([batch(number) for number in (1, 2)])
    jobs = [(seed % 3 + 1, seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: bound.run(None, batch(*job)), jobs))
    plain = core.opened[0].real
    assert all(same(answer, plain.run(None, batch(*job))) for answer, job in zip(found, jobs, strict=True))
    threads = set().union(*(session.threads for session in core.opened))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


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
    bound = BoundSession(Opener(picky), "cpu", graphs="on")
    bound.bind([{"image": np.array([0, 1])}])
    for bad in ([2, 9], [9]):
        with pytest.raises(Exception, match="out of data bounds"):
            bound.run(None, {"image": np.array(bad)})
        assert bound.run(None, {"image": np.array([3, 1])})[0].tolist() == [4, 2]


@pytest.mark.parametrize("stale", ["of all", "of the first, once the second is recorded"])
@pytest.mark.parametrize("graphs", ["off", "auto", "on"])
def test_buffers_that_a_run_does_not_write_are_detected(
    core: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, graphs: str, stale: str
) -> None:
    """A graph that is right when it is recorded may be wrong after the next recording."""
    bound = BoundSession(core, "cpu", graphs=graphs)
    honest = LoggedSession.run_with_iobinding

    def run(session: LoggedSession, binding: Any) -> None:
        first_is_stale = len(core.opened) == 3 and session is core.opened[1] and core.opened[2].bound
        if stale != "of all" and not first_is_stale:
            honest(session, binding)

    with monkeypatch.context() as broken:
        broken.setattr(LoggedSession, "run_with_iobinding", run)
        feeds = [batch(2, seed=4), batch(1, seed=5)]
        if stale != "of all" and graphs == "auto":
            bound.bind(feeds)  # in new sessions, without graphs
            assert "a difference of" in caplog.text
        else:
            with pytest.raises(DeviceError if graphs == "on" else ModelError) as problem:
                bound.bind(feeds)
            assert "a difference of" in str(problem.value)
    assert not bound.graphs
    for seed in range(3):
        assert same(bound.run(None, batch(2, seed)), core.opened[0].real.run(None, batch(2, seed)))


def test_nothing_else_runs_while_a_graph_is_recorded(exported: Any) -> None:
    """In every other session the current run ends first, and the next one starts afterwards."""
    one, other = Opener(exported.core), Opener(exported.core)
    recording, serving = BoundSession(one, "cpu", graphs="on"), BoundSession(other, "cpu")
    entered, go_on, order = threading.Event(), threading.Event(), []

    def hold() -> None:
        entered.set()
        assert go_on.wait(30)
        order.append("the run that was on")

    def note_recordings(**asked: Any) -> Any:
        session = Opener.__call__(one, **asked)
        session.before = lambda: order.append("recording")
        return session

    recording._opening = note_recordings
    other.opened[0].before = hold
    with ThreadPoolExecutor() as pool:
        on = pool.submit(serving.run, None, batch(1))
        assert entered.wait(30)
        bound = pool.submit(recording.bind, [batch(1)])
        while not xfeat.export.model.cuda_graphs._recording.locked():
            time.sleep(0.01)
        other.opened[0].before = lambda: order.append("the next")
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
    facts: dict[str, Any] = {"asked": [], "refuses": None, "opened": []}

    class SimulatedGpu(LoggedSession):
        def __init__(self, path: Path, options: Any = None, *, providers: list[Any], **_: Any) -> None:
            settings = [each[1] for each in providers if isinstance(each, tuple)]
            facts["asked"] += [each.get("enable_cuda_graph") for each in settings]
            self.records = any(each.get("enable_cuda_graph") for each in settings)
            if self.records and facts["refuses"] == "open":
                raise RuntimeError("This session cannot use the graph capture feature")
            super().__init__(path, options)
            facts["opened"].append(self)
            self.names = [each if isinstance(each, str) else each[0] for each in providers]

        def get_providers(self) -> list[str]:
            return self.names

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return []

        def run_with_iobinding(self, binding: Any) -> None:
            if self.records and facts["refuses"] == "record":
                raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
            super().run_with_iobinding(binding)

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


@pytest.mark.parametrize("form", ["core", "model"])
@pytest.mark.parametrize(("graphs", "asked"), [("auto", "1"), ("on", "1"), ("off", None)])
def test_graphs_are_recorded_for_bound_shapes(
    exported: Any, gpu: Any, caplog: pytest.LogCaptureFixture, form: str, graphs: str, asked: str | None
) -> None:
    session: Any = open_network(getattr(exported, form), device="cuda:1", graphs=graphs)
    assert gpu["asked"] == [None]
    feed = batch(2) if form == "core" else pixels(2)
    session.bind([feed])
    assert gpu["asked"] == [None, asked]
    assert graphs_of(session) is (asked is not None)
    assert caplog.text == ""
    assert same(session.run(None, feed), RealSession(getattr(exported, form), providers=[CPU]).run(None, feed))


@pytest.mark.parametrize(
    ("refuses", "reason"), [("open", "cannot use the graph capture feature"), ("record", "CUDA failure 900")]
)
def test_graphs_that_the_driver_refuses_are_a_warning_by_default_and_an_error_with_on(
    exported: Any, gpu: Any, caplog: pytest.LogCaptureFixture, refuses: str, reason: str
) -> None:
    gpu["refuses"] = refuses
    session: Any = open_network(exported.core, device="cuda")
    session.bind([batch(2)])
    assert not graphs_of(session)
    assert caplog.text.count("without CUDA graphs") == 1
    assert reason in caplog.text
    session.bind([batch(1)])
    assert gpu["asked"][-1] is None, "it is not tried again"
    assert same(session.run(None, batch(2)), RealSession(exported.core, providers=[CPU]).run(None, batch(2)))
    with pytest.raises(DeviceError, match=reason) as problem:
        open_network(exported.core, device="cuda", graphs="on").bind([batch(2)])  # type: ignore[union-attr]
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
    with pytest.raises(SpecError, match="unknown setting"):
        open_network(exported.core, graphs="always")


def test_the_parity_check_runs_full_batches_through_the_buffers_used_for_serving(
    xexport: Callable[..., Result], exported: Any, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = {}

    def note(*args: Any, **settings: Any) -> Any:
        opened.update(open_on_providers(*args, **settings))
        return opened

    monkeypatch.setattr("xfeat.export.verify.open_on_providers", note)
    done = xexport("verify", exported.core, "--data", exported.data, "--require-cuda")
    assert done.exit_code == 0, done.output
    assert CUDA in done.stdout
    base, bound = (session for session in gpu["opened"] if CUDA in session.names)
    # The first 8 of 12 images are compared, recorded, compared again and run twice; the last 4 are not a full batch.
    assert (base.plain, bound.plain) == (1 + 1, 0)
    assert bound.bound == 2 + 1 + 1


@pytest.mark.gpu
@with_gpu
def test_graphs_on_a_gpu_give_the_outputs_of_the_cpu(exported: Any) -> None:
    session = open_network(exported.core, device="cuda", graphs="on")
    session.bind([batch(number) for number in (8, 1, 4, 2)])  # type: ignore[union-attr]
    assert graphs_of(session)
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

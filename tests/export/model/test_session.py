"""Sessions on a GPU are whole or refused; without a GPU, what is refused and how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from click.testing import Result

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.system.cuda import PROVIDER as CUDA
from xfeat.featurize.system.cuda import cuda_driver_present
from xfeat.featurize.system.onnx_session import first_line, node_providers, nodes_on_cpu, open_session

Xexport = Callable[..., Result]
CPU = "CPUExecutionProvider"
RealSession = ort.InferenceSession

without_gpu = pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
with_gpu = pytest.mark.skipif(not cuda_driver_present(), reason="needs a GPU")


def placed_by_onnxruntime(file: Path) -> list[tuple[str, str, str]]:
    """Return what onnxruntime itself says of each node of a session on the CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return node_providers(RealSession(file, options, providers=[CPU]))


@pytest.mark.parametrize("form", ["model", "core"])
def test_a_network_on_the_cpu_is_found_out_node_by_node(exported: Any, form: str) -> None:
    file = getattr(exported, form)
    placed = placed_by_onnxruntime(file)
    found = " ".join(nodes_on_cpu(placed))
    for operator in ("Conv", "Gemm", "Softmax", "ReduceMean"):
        count = sum(node.op_type == operator for node in onnx.load(file).graph.node)
        assert found.count(f"({operator})") == count
    assert ("(MatMul)" in found) == (form == "model")


def test_what_counts_sizes_may_stay_on_the_cpu(exported: Any) -> None:
    """Everything else on the GPU, as onnxruntime does it: Shape and what follows from it alone stay on the CPU."""
    about_sizes = {"Shape", "Gather", "Range", "Greater", "Equal"}
    placed = [
        (CPU if operator in about_sizes else CUDA, name, operator)
        for _, name, operator in placed_by_onnxruntime(exported.model)
    ]
    assert {provider for provider, _, _ in placed} == {CPU, CUDA}
    assert nodes_on_cpu(placed) == []


@pytest.mark.parametrize(("spin", "entry"), [(True, "1"), (False, "0")])
def test_threads_spin_only_where_asked_and_never_after_a_run(exported: Any, spin: bool, entry: str) -> None:
    options = open_session(exported.core, threads=2, spin=spin).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == entry
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_an_operator_nobody_thought_of_is_not_waved_through() -> None:
    assert nodes_on_cpu([(CPU, "a", "GridSample"), (CUDA, "b", "Conv")]) == ["a (GridSample)"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[str, str]]], None]:
    """Let onnxruntime say that it has a GPU, and that it placed nodes (provider, operator) so."""

    def pretend(nodes: list[tuple[str, str]]) -> None:
        groups = [
            SimpleNamespace(ep_name=provider, get_nodes=lambda kind=kind: [SimpleNamespace(name="n", op_type=kind)])
            for provider, kind in nodes
        ]

        def session(path: Path, options: Any, *, providers: list[Any], **_: Any) -> Any:
            names = [each if isinstance(each, str) else each[0] for each in providers]
            real = RealSession(path, providers=[CPU])
            return SimpleNamespace(
                get_providers=lambda: names,
                get_provider_graph_assignment_info=lambda: groups,
                run=real.run,
                get_modelmeta=real.get_modelmeta,
            )

        monkeypatch.setattr(ort, "InferenceSession", session)
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)

    return pretend


def test_a_gpu_that_leaves_a_convolution_to_the_cpu_is_refused(exported: Any, gpu: Any) -> None:
    gpu([(CUDA, "MatMul"), (CPU, "Shape"), (CPU, "QLinearConv")])
    with pytest.raises(DeviceError, match="part of the network") as problem:
        open_session(exported.model, device="cuda")
    assert "QLinearConv" in str(problem.value)
    assert "Shape" not in str(problem.value)


def test_a_gpu_that_does_all_but_counting_is_taken(exported: Any, gpu: Any) -> None:
    gpu([(CUDA, "Conv"), (CPU, "Shape")])
    assert CUDA in open_session(exported.model, device="cuda:1").get_providers()


def test_what_is_not_asked_to_be_whole_is_not_refused(exported: Any, gpu: Any) -> None:
    gpu([(CPU, "Conv")])
    assert CUDA in open_session(exported.model, device="cuda", whole=False).get_providers()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[ONNXRuntimeError] : 3 : NO_SUCHFILE : no file\nstack", "no file"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 900: operation not permitted when stream is capturing "
            "; GPU=0 ; hostname=h ; file=cuda_call.cc ; line=12 ; expr=cudaStreamSynchronize(stream)",
            "CUDA failure 900: operation not permitted when stream is capturing",
        ),
        (
            "/src/cuda_call.cc:129 onnxruntime::CudaCall(ERRTYPE) CUDNN failure 5: CUDNN_STATUS_BAD ; GPU=0 ; expr=x",
            "CUDNN failure 5: CUDNN_STATUS_BAD",
        ),
    ],
)
def test_of_an_error_the_line_for_people_is_shown(said: str, shown: str) -> None:
    assert first_line(RuntimeError(said)) == shown


@without_gpu
@pytest.mark.parametrize("command", ["verify", "bench", "explain"])
def test_without_a_gpu_require_cuda_is_one_message(
    xexport: Xexport, exported: Any, command: str, tmp_path: Path
) -> None:
    more = [exported.data, "-o", tmp_path / "pictures"] if command == "explain" else []
    required = ["--provider", "cuda"] if command == "bench" else ["--require-cuda"]
    done = xexport(command, exported.model, *more, *required)
    assert done.exit_code == 1
    assert "cannot use cuda:0" in done.stderr
    assert "nvidia-smi" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@with_gpu
@pytest.mark.parametrize("form", ["model", "core"])
def test_on_a_gpu_the_whole_model_runs_there_and_answers_as_proven(xexport: Xexport, exported: Any, form: str) -> None:
    done = xexport("verify", getattr(exported, form), "--data", exported.data, "--require-cuda")
    assert done.exit_code == 0, done.output
    assert CUDA in done.stdout

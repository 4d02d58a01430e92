"""A GPU session runs the whole network or is refused; messages on a machine without a GPU."""

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
ROOT = Path(__file__).parents[3]
CPU = "CPUExecutionProvider"
RealSession = ort.InferenceSession

without_gpu = pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
with_gpu = pytest.mark.skipif(not cuda_driver_present(), reason="needs a GPU")


def placement(file: Path) -> list[tuple[str, str, str]]:
    """Return where onnxruntime places each node of a session on the CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return node_providers(RealSession(file, options, providers=[CPU]))


@pytest.mark.parametrize("form", ["model", "core"])
def test_every_node_that_runs_on_the_cpu_is_detected(exported: Any, form: str) -> None:
    file = getattr(exported, form)
    placed = placement(file)
    found = " ".join(nodes_on_cpu(placed))
    for operator in ("Conv", "Gemm", "Softmax", "ReduceMean"):
        count = sum(node.op_type == operator for node in onnx.load(file).graph.node)
        assert found.count(f"({operator})") == count
    assert ("(MatMul)" in found) == (form == "model")


def test_operators_on_tensor_shapes_may_stay_on_the_cpu(exported: Any) -> None:
    """As in onnxruntime: Shape, and what depends on it alone, stay on the CPU; everything else is on the GPU."""
    shape_operators = {"Shape", "Gather", "Range", "Greater", "Equal"}
    placed = [
        (CPU if operator in shape_operators else CUDA, name, operator)
        for _, name, operator in placement(exported.model)
    ]
    assert {provider for provider, _, _ in placed} == {CPU, CUDA}
    assert nodes_on_cpu(placed) == []


@pytest.mark.parametrize(("spin", "entry"), [(True, "1"), (False, "0")])
def test_threads_spin_only_if_asked_to_and_never_after_a_run(exported: Any, spin: bool, entry: str) -> None:
    options = open_session(exported.core, threads=2, spin=spin).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == entry
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_an_unknown_operator_on_the_cpu_is_reported() -> None:
    assert nodes_on_cpu([(CPU, "a", "GridSample"), (CUDA, "b", "Conv")]) == ["a (GridSample)"]


def test_every_session_is_opened_in_one_module() -> None:
    files = [file for name in ("featurize", "head", "export", "serve") for file in (ROOT / name).rglob("*.py")]
    opening = [str(file.relative_to(ROOT)) for file in files if "InferenceSession(" in file.read_text()]
    assert opening == ["featurize/system/onnx_session.py"]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_has_the_given_number_of_threads_and_takes_a_file_or_its_content(exported: Any, threads: int) -> None:
    for model in (exported.core, exported.core.read_bytes()):
        assert open_session(model, threads=threads).get_session_options().intra_op_num_threads == threads


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[str, str]]], None]:
    """Simulate an onnxruntime with a GPU that places nodes (provider, operator) as given."""

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
        monkeypatch.setattr("xfeat.featurize.system.onnx_session.check_gpu", lambda device: None)

    return pretend


def test_a_gpu_session_with_a_convolution_on_the_cpu_is_refused(exported: Any, gpu: Any) -> None:
    gpu([(CUDA, "MatMul"), (CPU, "Shape"), (CPU, "QLinearConv")])
    with pytest.raises(DeviceError, match="part of the network") as problem:
        open_session(exported.model, device="cuda")
    assert "QLinearConv" in str(problem.value)
    assert "Shape" not in str(problem.value)


def test_a_gpu_session_with_only_shape_operators_on_the_cpu_is_accepted(exported: Any, gpu: Any) -> None:
    gpu([(CUDA, "Conv"), (CPU, "Shape")])
    assert CUDA in open_session(exported.model, device="cuda:1").get_providers()


def test_nodes_on_the_cpu_are_accepted_if_not_all_have_to_be_on_the_gpu(exported: Any, gpu: Any) -> None:
    gpu([(CPU, "Conv")])
    assert CUDA in open_session(exported.model, device="cuda", all_on_gpu=False).get_providers()


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
def test_the_readable_line_of_an_error_is_shown(said: str, shown: str) -> None:
    assert first_line(RuntimeError(said)) == shown


@without_gpu
@pytest.mark.parametrize("command", ["verify", "bench", "explain"])
def test_without_a_gpu_a_required_one_is_one_message(
    xexport: Xexport, exported: Any, command: str, tmp_path: Path
) -> None:
    more = [exported.data, "-o", tmp_path / "pictures"] if command == "explain" else []
    required = {"verify": ["--require-cuda"], "bench": ["--provider", "cuda"], "explain": ["--device", "cuda"]}[command]
    done = xexport(command, exported.model, *more, *required)
    assert done.exit_code == 1
    assert "cannot use cuda:0" in done.stderr
    assert "nvidia-smi" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@with_gpu
@pytest.mark.parametrize("form", ["model", "core"])
def test_on_a_gpu_the_whole_model_runs_there_and_passes_its_check(xexport: Xexport, exported: Any, form: str) -> None:
    done = xexport("verify", getattr(exported, form), "--data", exported.data, "--require-cuda")
    assert done.exit_code == 0, done.output
    assert CUDA in done.stdout

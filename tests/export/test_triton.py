"""Triton repositories, read with Triton's own protobuf schema and compared with the ONNX graphs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from click.testing import Result

from xfeat.export.specs import TritonSpec
from xfeat.featurize.errors import SpecError

Xexport = Callable[..., Result]


def model_config() -> Any:
    """Return an empty ModelConfig of Triton's schema, as its Python client ships it; its gRPC half is not needed."""
    client = importlib.util.find_spec("tritonclient")
    if client is None or not client.submodule_search_locations:
        pytest.skip("needs tritonclient: pip install 'tritonclient[http]'")
    file = Path(next(iter(client.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig()


def parsed(file: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(file.read_text(), model_config())


def whole_shape(tensor: Any) -> list[int]:
    """Return the shape that the model gets according to Triton's documentation: the batch axis, then the others."""
    return [-1, *(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)]


def shapes(values: Any) -> dict[str, tuple[str, list[int]]]:
    kinds = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}
    kinds[onnx.TensorProto.INT64] = "TYPE_INT64"
    return {
        value.name: (
            kinds[value.type.tensor_type.elem_type],
            [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize("form", ["model.onnx", "model.core.onnx"])
def test_the_config_has_the_names_types_and_shapes_of_the_graph(
    xexport: Xexport, exported: Any, tmp_path: Path, form: str
) -> None:
    source = exported.folder / form
    done = xexport("triton", source, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    config = parsed(tmp_path / source.stem / "config.pbtxt")
    graph = onnx.load(source).graph
    for said, real in ((config.input, graph.input), (config.output, graph.output)):
        names = {tensor.name: (tensor.DESCRIPTOR.fields_by_name, tensor) for tensor in said}
        found = {
            name: (fields["data_type"].enum_type.values_by_number[tensor.data_type].name, whole_shape(tensor))
            for name, (fields, tensor) in names.items()
        }
        assert found == shapes(real)
        assert all(tensor.dims for tensor in said), "Triton wants at least one axis besides the batch"
    assert (config.name, config.backend) == (source.stem, "onnxruntime")


def test_the_repository_is_laid_out_as_triton_reads_it(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    done = xexport("triton", exported.model, "-o", tmp_path / "Chest X-rays", "--json")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "Chest X-rays"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "kserve.json",
        "model/config.pbtxt",
        "model/labels.txt",
        "model/1/model.onnx",
    }
    assert (folder / "model" / "1" / "model.onnx").read_bytes() == exported.model.read_bytes()
    config = parsed(folder / "model" / "config.pbtxt")
    labels = next(output.label_filename for output in config.output if output.name == "probabilities")
    assert (folder / "model" / labels).read_text().splitlines() == ["bar", "disc"]
    assert json.loads(done.stdout)["model"] == str(folder / "model" / "1" / "model.onnx")


def test_options_reach_the_config(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    done = xexport(
        *("triton", exported.model, "-o", tmp_path, "--name", "lungs", "--model-version", 3, "--max-batch", 16),
        *("--batch-wait-ms", 2.5, "--instances", 2, "--device", "gpu"),
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "lungs" / "3" / "model.onnx").is_file()
    config = parsed(tmp_path / "lungs" / "config.pbtxt")
    assert config.name == "lungs"
    assert config.max_batch_size == 16
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    [group] = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (2, "KIND_GPU")


def test_the_warm_up_and_the_cuda_options_are_those_of_the_export(
    xexport: Xexport, exported: Any, tmp_path: Path
) -> None:
    """The session accepts the shape of the warm-up; TF32 would change predictions that were checked without it."""
    assert xexport("triton", exported.core, "-o", tmp_path).exit_code == 0
    config = parsed(tmp_path / "model.core" / "config.pbtxt")
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters["use_tf32"]) == ("cuda", "0")
    assert "device_id" not in accelerator.parameters
    [warm_up] = config.model_warmup
    image = warm_up.inputs["image"]
    assert image.zero_data
    import numpy as np

    session = ort.InferenceSession(exported.core, providers=["CPUExecutionProvider"])
    session.run(None, {"image": np.zeros((warm_up.batch_size, *image.dims), np.float32)})


def test_clients_find_classes_and_threshold_in_the_config(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    assert xexport("triton", exported.model, "-o", tmp_path).exit_code == 0
    config = parsed(tmp_path / "model" / "config.pbtxt")
    said = json.loads(config.parameters["xfeat.metadata"].string_value)
    session = ort.InferenceSession(exported.model, providers=["CPUExecutionProvider"])
    assert said == json.loads(session.get_modelmeta().custom_metadata_map["xfeat.metadata"])


@pytest.mark.parametrize(
    ("folder", "name"), [("Chest X-rays_2", "chest-x-rays-2"), ("2026 läufe", "l-ufe"), ("123", "models")]
)
def test_the_manifest_is_an_inference_service_with_a_name_that_kubernetes_takes(
    xexport: Xexport, exported: Any, tmp_path: Path, folder: str, name: str
) -> None:
    assert xexport("triton", exported.model, "-o", tmp_path / folder).exit_code == 0
    said = json.loads((tmp_path / folder / "kserve.json").read_text())
    assert (said["apiVersion"], said["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert said["metadata"] == {"name": name}
    model = said["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert (model["protocolVersion"], model["storageUri"]) == ("v2", f"pvc://{name}")
    assert "resources" not in model


def test_the_manifest_asks_for_a_gpu_where_triton_needs_one(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    done = xexport("triton", exported.model, "-o", tmp_path, "--device", "gpu", "--storage-uri", "s3://bucket/a: #b")
    assert done.exit_code == 0, done.output
    model = json.loads((tmp_path / "kserve.json").read_text())["spec"]["predictor"]["model"]
    assert model["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert model["storageUri"] == "s3://bucket/a: #b"


def test_a_second_call_replaces_its_own_files_and_no_others(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "1" / "model.onnx").write_bytes(b"mine")
    for batch in (4, 8):
        assert xexport("triton", exported.model, "-o", tmp_path, "--max-batch", batch).exit_code == 0
    assert parsed(tmp_path / "model" / "config.pbtxt").max_batch_size == 8
    assert (tmp_path / "other" / "1" / "model.onnx").read_bytes() == b"mine"
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_output_path_that_is_a_file_is_one_error(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("here")
    done = xexport("triton", exported.model, "-o", tmp_path / "taken")
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    assert (tmp_path / "taken").read_text() == "here"


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "two words"])
def test_an_invalid_model_name_is_refused(xexport: Xexport, exported: Any, tmp_path: Path, name: str) -> None:
    done = xexport("triton", exported.model, "-o", tmp_path / "out", "--name", name)
    assert done.exit_code == 2
    assert "not a valid name for a model" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_metadata_is_refused(xexport: Xexport, exported: Any, tmp_path: Path) -> None:
    proto = onnx.load(exported.core)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "theirs.onnx")
    done = xexport("triton", tmp_path / "theirs.onnx", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "no xfeat metadata" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "setting",
    [{"batch_wait_ms": float("inf")}, {"batch_wait_ms": 1e300}, {"batch_wait_ms": float("nan")}, {"instances": 2**31}],
    ids=str,
)
def test_numbers_out_of_tritons_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="out of range"):
        TritonSpec(**setting)

"""One graph of normalisation, an encoder's file and the tail, against the encoder alone, then torch and autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.export.conftest import Project
from tests.export.encoders import DIM, GRID, OUTPUTS, SIDE, build_encoder, write_encoder
from xfeat.export.build.compose import ENCODED, compose
from xfeat.export.build.encoder_network import EncoderNetwork, EncoderTail
from xfeat.export.build.fused_model import ReferenceModel, Tail
from xfeat.export.build.ood_from_cache import ood_score_from_cache
from xfeat.export.build.ood_score import fit_ood_score
from xfeat.export.model.batches import to_nchw
from xfeat.export.model.file import open_model
from xfeat.export.specs import ExportSpec
from xfeat.featurize.backbones.encoder_data import encoder_sha256
from xfeat.featurize.backbones.encoder_file import EncoderFile, inspect_encoder
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.errors import ModelError
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.head.specs import HeadSpec
from xfeat.head.training.network import build_head

PREPROCESS = PreprocessSpec(size=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
CLASSES, TEMPERATURE = 3, 1.7
Pool = Callable[[Tensor], Tensor]

# Pooling, and what the features are by hand.
POOLINGS: dict[str, tuple[str, Pool]] = {
    "map": ("final", lambda encoded: encoded.flatten(2).mean(2)),
    "vector": ("final", lambda encoded: encoded),
    "tokens": ("mean", lambda encoded: encoded.mean(1)),
    "class token and tokens": ("mean", lambda encoded: encoded[:, 1:].mean(1)),
    "tokens without a grid": ("mean", lambda encoded: encoded.mean(1)),
}


def head_for(dim: int, hidden: tuple[int, ...] = (8,)) -> nn.Sequential:
    torch.manual_seed(1)
    head = build_head(HeadSpec(hidden=hidden), dim=dim, classes=CLASSES)
    head.train()
    with torch.no_grad():
        for _ in range(3):
            head(torch.randn(16, dim))
    return head.eval()


def reference_of(file: Path, pooling: str = "final", name: str = "onnx:encoder") -> ReferenceModel:
    encoder = inspect_encoder(file, output=name.partition("#")[2] or None, size=SIDE)
    spec = FeatureSpec(backbone=name, weights_sha256=encoder.sha256, preprocess=PREPROCESS, pooling=pooling)
    network = EncoderNetwork(spec, Weights(name, file, encoder.sha256))
    return ReferenceModel(network, head_for(encoder.dim), None, TEMPERATURE)


def composed(reference: ReferenceModel) -> onnx.ModelProto:
    network = reference.backbone
    assert isinstance(network, EncoderNetwork)
    ood_score = fit_ood_score(np.random.default_rng(2).standard_normal((40, network.encoder.dim)))
    tail = Tail(reference, ood_score, heatmap=network.missing_heatmap is None)
    return compose(network, tail, PREPROCESS)


def levels(count: int = 5) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 3, SIDE, SIDE)).astype(np.float32)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": pixels}), strict=True))


def encoded_alone(file: Path, pixels: np.ndarray, output: str | None = None) -> Tensor:
    """The encoder's own file, image by image, or in batches of its size."""
    session = ort.InferenceSession(file)
    image = session.get_inputs()[0]
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    mean, std = (np.array(each, np.float32).reshape(1, 3, 1, 1) for each in (PREPROCESS.mean, PREPROCESS.std))
    normalised = (pixels / np.float32(255) - mean) / std
    rows = [
        session.run([output or session.get_outputs()[0].name], {image.name: np.repeat(one[None], batch, axis=0)})[0][:1]
        for one in normalised
    ]
    return torch.from_numpy(np.concatenate(rows))


def grad_cam_by_autograd(head: nn.Module, pool: Pool, encoded: Tensor, maps_of: Pool) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, for every class: a weight per channel, its mean gradient."""
    encoded = encoded.detach().requires_grad_()
    logits = head(pool(encoded))
    cams = []
    for c in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, c].sum(), encoded, retain_graph=True)
        weights = maps_of(gradient).mean((2, 3), keepdim=True)
        cams.append(torch.relu((weights * maps_of(encoded)).sum(1)))
    return torch.stack(cams, dim=1).detach()


def check(file: Path, pooling: str, pool: Pool, *, name: str = "onnx:encoder") -> dict[str, np.ndarray]:
    """Compose a model with an encoder, and compare its probabilities with those of the parts."""
    reference, pixels = reference_of(file, pooling, name), levels()
    found = run(composed(reference), pixels)
    with torch.no_grad():
        logits = reference.head(pool(encoded_alone(file, pixels, name.partition("#")[2] or None)))
        by_reference = reference(torch.from_numpy(pixels.astype(np.uint8)).permute(0, 2, 3, 1))
    expected = torch.softmax(logits / TEMPERATURE, 1).numpy()
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(by_reference, expected, atol=1e-5)
    assert found["ood"].shape == (len(pixels),)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", POOLINGS)
def test_a_model_gives_what_its_encoder_and_head_give_one_after_the_other(tmp_path: Path, kind: str) -> None:
    pooling, pool = POOLINGS[kind]
    file = write_encoder(tmp_path / "encoder.onnx", build_encoder(kind))
    found = check(file, pooling, pool)
    if kind in ("vector", "tokens without a grid"):
        assert "heatmap" not in found
        return
    shape, skipped = (-1, DIM, GRID, GRID), int("class token" in kind)
    maps_of: Pool = (lambda e: e) if kind == "map" else (lambda e: e[:, skipped:].transpose(1, 2).reshape(shape))
    expected = grad_cam_by_autograd(head_for(DIM), pool, encoded_alone(file, levels()), maps_of)
    assert expected.max() > 0
    np.testing.assert_allclose(found["heatmap"], expected, atol=1e-5, rtol=1e-4)


def backbone_of(core: Path) -> onnx.ModelProto:
    """The backbone of an exported model as a file of its own: normalised images in, last map out."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(core))
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    last = next(node for node in proto.graph.node if node.op_type == "ReduceMean")
    return onnx.utils.Extractor(proto).extract_model([first.input[0]], [last.input[0]])


@pytest.mark.slow
def test_an_efficientnet_as_a_file_gives_what_the_built_in_one_gives(exported: Project, tmp_path: Path) -> None:
    run_, pixels = exported.run, np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    expected = open_model(exported.model).run(pixels, heatmap=True)
    file = write_encoder(tmp_path / "encoder.onnx", backbone_of(exported.core))
    preprocess, name = run_.feature_spec.preprocess, "onnx:encoder"
    spec = FeatureSpec(backbone=name, weights_sha256=encoder_sha256(file), preprocess=preprocess)
    network = EncoderNetwork(spec, Weights(name, file, spec.weights_sha256))
    reference = ReferenceModel(network, run_.load_head(), None, run_.temperature)
    ood_score, _ = ood_score_from_cache(run_, ExportSpec())
    model = compose(network, Tail(reference, ood_score), preprocess)
    found = run(model, to_nchw(pixels))
    for output in ("probabilities", "logits", "heatmap", "ood"):
        np.testing.assert_allclose(found[output], getattr(expected, output), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_class_token_alone_gives_no_heatmap(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "encoder.onnx", build_encoder("class token and tokens"))
    assert "heatmap" not in check(file, "cls", lambda encoded: encoded[:, 0])


def with_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move the ReLU into a function of the model, as torch's exporter writes them."""
    function = onnx.parser.parse_function(
        '<domain: "local", opset_import: ["": 18]> Rectify (x) => (y) { y = Relu (x) }'
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Rectify", "local"
    return model


def with_second_output(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output.append(onnx.helper.make_tensor_value_info("squares", onnx.TensorProto.FLOAT, None))
    return model


def in_other_words(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name the default domain by its other name, and tensors as this project names its own."""
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
        node.name = f"probabilities {node.op_type}"
        node.output[:] = ["image" if name == "squares" else name for name in node.output]
        node.input[:] = ["image" if name == "squares" else name for name in node.input]
    return model


def with_free_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    for value, axes in ((model.graph.input[0], (2, 3)), (model.graph.output[0], (2, 3))):
        for axis in axes:
            value.type.tensor_type.shape.dim[axis].dim_param = f"size_{axis}"
    return model


def with_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the ReLU into both branches of an If, which read the tensor around them."""
    graph = model.graph
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["squares"], ["rectified"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("rectified", onnx.TensorProto.FLOAT, None)],
    )
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "condition"))
    either = onnx.helper.make_node("If", ["condition"], ["map"], then_branch=branch, else_branch=branch)
    place = next(place for place, node in enumerate(graph.node) if node.op_type == "Relu")
    del graph.node[place]
    graph.node.insert(place, either)
    return model


def in_8_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Round the map to 8 bits, as a quantised encoder does."""
    graph = model.graph
    for name, value in (("step", np.float32(0.02)), ("zero", np.uint8(0))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    relu = next(node for node in graph.node if node.op_type == "Relu")
    relu.output[0] = "exact"
    graph.node.append(onnx.helper.make_node("QuantizeLinear", ["exact", "step", "zero"], ["levels"]))
    graph.node.append(onnx.helper.make_node("DequantizeLinear", ["levels", "step", "zero"], ["map"]))
    return model


FORMS: dict[str, onnx.ModelProto] = {
    **{f"opset {opset}": build_encoder(opset=opset) for opset in (7, 11, 17, 21, 23)},
    "free sizes": with_free_sizes(build_encoder()),
    "branches": with_branches(build_encoder()),
    "branches, opset 13, batch of 4": with_branches(build_encoder(opset=13, batch=4)),
    "8 bits": in_8_bits(build_encoder()),
    "weights among the inputs": build_encoder(opset=9, ir_version=3),
    "batch of 1": build_encoder(batch=1),
    "batch of 4": build_encoder(batch=4),
    "a function": with_function(build_encoder()),
    "other names": in_other_words(build_encoder()),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_encoder_becomes_part_of_a_model(tmp_path: Path, form: str) -> None:
    found = check(write_encoder(tmp_path / "encoder.onnx", FORMS[form]), *POOLINGS["map"])
    assert found["heatmap"].shape == (5, CLASSES, GRID, GRID)


@pytest.mark.slow
def test_one_of_several_outputs_is_used_and_the_others_are_left_out(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "encoder.onnx", with_second_output(build_encoder("vector")))
    check(file, "final", POOLINGS["map"][1], name="onnx:encoder#squares")
    nodes = composed(reference_of(file, name="onnx:encoder#squares")).graph.node
    assert "GlobalAveragePool" not in {node.op_type for node in nodes}


@pytest.mark.slow
def test_data_in_another_file_becomes_part_of_the_model(tmp_path: Path) -> None:
    file, moved = tmp_path / "encoder.onnx", tmp_path / "elsewhere"
    onnx.save(build_encoder(), file, save_as_external_data=True, location="encoder.data", size_threshold=0)
    check(file, *POOLINGS["map"])
    model = composed(reference_of(file))
    moved.mkdir()
    onnx.save(model, moved / "model.onnx")
    assert ort.InferenceSession(moved / "model.onnx").get_inputs()[0].name == "image"


@pytest.mark.slow
def test_nothing_of_where_an_encoder_was_made_is_left_in_the_model(tmp_path: Path) -> None:
    model = build_encoder()
    model.graph.doc_string = model.doc_string = "/home/somebody/secret.py"
    onnx.helper.set_model_props(model, {"path": "/home/somebody/secret.py"})
    for node in model.graph.node:
        node.doc_string = "/home/somebody/secret.py"
        node.metadata_props.append(onnx.StringStringEntryProto(key="stack", value="/home/somebody/secret.py"))
    file = write_encoder(tmp_path / "encoder.onnx", model)
    assert b"somebody" not in composed(reference_of(file)).SerializeToString()


def with_custom_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Gelu", "com.microsoft"
    return model


def of_early_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scale the image by an operator of early converters, which onnxruntime still runs."""
    scale = onnx.helper.make_node("ImageScaler", ["pixels"], ["scaled"], scale=1.0, bias=[0.0, 0.0, 0.0])
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, scale)
    return model


@pytest.mark.parametrize(
    ("model", "what", "found"),
    [
        (with_custom_operator(build_encoder()), "not ONNX's own", "com.microsoft.Gelu"),
        (of_early_opset(build_encoder(opset=7)), "opset 7 cannot be raised", "ImageScaler"),
    ],
    ids=["an operator of onnxruntime's own", "an opset that cannot be raised"],
)
def test_an_encoder_that_cannot_be_part_of_a_model_is_refused_with_the_reason(
    tmp_path: Path, model: onnx.ModelProto, what: str, found: str
) -> None:
    with pytest.raises(ModelError, match=what) as refusal:
        composed(reference_of(write_encoder(tmp_path / "encoder.onnx", model)))
    assert found in (refusal.value.found or "")
    assert "xfeat featurize" in (refusal.value.fix or "")


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> EncoderFile:
    return inspect_encoder(write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.onnx"), size=SIDE)


def test_an_encoder_above_the_limit_of_a_file_is_refused_before_it_is_read(
    inspected: EncoderFile, tmp_path: Path
) -> None:
    model = build_encoder()
    large = onnx.TensorProto(name="large", data_type=onnx.TensorProto.FLOAT, dims=[600, 1000, 1000])
    large.data_location = onnx.TensorProto.EXTERNAL
    large.external_data.add(key="location", value="not-read.bin")
    model.graph.initializer.append(large)
    network = SimpleNamespace(encoder=replace(inspected, path=write_encoder(tmp_path / "large.onnx", model)))
    with pytest.raises(ModelError, match="too large for one ONNX file") as refusal:
        compose(cast(EncoderNetwork, network), cast(Tail, None), PREPROCESS)
    assert refusal.value.found == "2.4 GB"


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 4),
    dim=st.integers(1, 9),
    grid=st.integers(1, 5),
    prefix=st.sampled_from([None, 0, 1, 5]),
    hidden=st.sampled_from([(), (5,), (7, 4)]),
)
def test_the_heatmap_of_maps_and_tokens_is_that_of_autograd(
    inspected: EncoderFile, seed: int, count: int, dim: int, grid: int, prefix: int | None, hidden: tuple[int, ...]
) -> None:
    """``prefix``: of tokens before the grid; ``None`` for a map."""
    torch.manual_seed(seed)
    shape = (count, dim, grid, grid) if prefix is None else (count, prefix + grid * grid, dim)
    encoded, head = torch.randn(shape), head_for(dim, hidden)
    encoder = replace(
        inspected,
        kind="map" if prefix is None else "tokens",
        grid=(grid, grid),
        tokens=0 if prefix is None else prefix + grid * grid,
    )
    reference = ReferenceModel(nn.Identity(), head, None, 1.0)
    _, logits, heatmap = EncoderTail(encoder, "mean", Tail(reference, None))(encoded)

    def maps_of(values: Tensor) -> Tensor:
        return values if prefix is None else values[:, prefix:].transpose(1, 2).reshape(count, dim, grid, grid)

    def pool(values: Tensor) -> Tensor:
        return maps_of(values).mean((2, 3))

    torch.testing.assert_close(logits, head(pool(encoded)), atol=1e-5, rtol=1e-4)
    expected = grad_cam_by_autograd(head, pool, encoded, maps_of)
    torch.testing.assert_close(heatmap.detach(), expected, atol=1e-5, rtol=1e-4)


def test_the_table_of_kinds_is_complete() -> None:
    assert set(POOLINGS) == set(OUTPUTS)
    assert ENCODED not in {name for node in build_encoder().graph.node for name in node.output}

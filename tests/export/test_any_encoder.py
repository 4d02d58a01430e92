"""From the file of an encoder to a checked model: every command, on encoders as people have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.conftest import MadeOnce
from tests.export.conftest import Project, draw_images, invoke
from tests.export.encoders import build_encoder, write_encoder
from xfeat.export.build.compose import ENCODED
from xfeat.export.cli import main as export_main
from xfeat.export.model.file import open_model
from xfeat.featurize.backbones.encoder_data import encoder_sha256
from xfeat.featurize.cli import main as featurize_main
from xfeat.featurize.engines.conversion import to_onnx
from xfeat.featurize.errors import MismatchError
from xfeat.head.cli import main as head_main
from xfeat.head.runs.inputs import weights_of

Build = Callable[[torch.Tensor], onnx.ModelProto]
COUNTS = {"train": 8, "valid": 6, "test": 4}


class Untrained(nn.Module):
    """A network with seeded random weights, which returns its last map or tokens."""

    def __init__(self, features: Callable[[torch.Tensor], torch.Tensor], network: nn.Module) -> None:
        super().__init__()
        self.network, self._features = network, features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._features(images)


def resnet18(images: torch.Tensor) -> onnx.ModelProto:
    """torchvision's, with BatchNorm statistics from images: otherwise its activations vanish."""
    from torchvision.models import resnet18 as build

    network = build(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(images)
    layers = nn.Sequential(*list(network.children())[:-2])
    return to_onnx(layers.eval(), images[:2], input_name="input", output_names=["map"], dynamic={0: "batch"})


def vision_transformer(images: torch.Tensor) -> onnx.ModelProto:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2, num_classes=0)
    tokens = Untrained(network.forward_features, network).eval()
    return to_onnx(tokens, images[:2], input_name="input", output_names=["tokens"], dynamic={0: "batch"})


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_project(
    folder: Path,
    model: Build,
    *options: str,
    external: dict[str, Any] | None = None,
) -> Project:
    """Draw images, and run the commands up to the exported model."""
    images = draw_images(folder / "data", COUNTS)
    with seeded():
        onnx.save(model(images), folder / "encoder.onnx", **(external or {}))
    features, runs = folder / "features.h5", folder / "runs"
    encoder = ("--backbone", folder / "encoder.onnx", "--normalize", "half", *options)
    for command in (
        (featurize_main, "featurize", folder / "data", "-o", features, *encoder),
        (head_main, "train", "--features", features, "--runs", runs, "--name", "first"),
        (export_main, "onnx", runs / "first", "-o", folder / "model.onnx"),
    ):
        done = invoke(*command)
        assert done.exit_code == 0, done.output
    return Project(folder)


KINDS: dict[str, tuple[Build, tuple[str, ...], bool]] = {
    "resnet18": (resnet18, (), True),
    "ViT, class token": (vision_transformer, ("--pooling", "cls"), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_on_any_encoder_becomes_one_checked_model(kind: str, tmp_path: Path) -> None:
    model, options, heatmap = KINDS[kind]
    project = make_project(tmp_path, model, *options)
    certificate = json.loads(project.certificate.read_text())
    checks = certificate["against_torch"]["CPUExecutionProvider"]
    assert {name: check["changed_decisions"] for name, check in checks.items()} == dict.fromkeys(checks, 0)
    assert max(checks[name]["max_difference"] for name in ("full", "core")) < 1e-5
    assert certificate["against_training"]["max_difference"] < 1e-5
    spec = certificate["metadata"]["feature_spec"]
    assert (spec["backbone"], spec["weights_sha256"]) == ("onnx:encoder", encoder_sha256(tmp_path / "encoder.onnx"))
    assert ("heatmap" in open_model(project.model).known_outputs) is heatmap
    for args in (("--run", project.run.folder), ("--data", project.data)):
        done = invoke(export_main, "verify", project.model, *args)
        assert done.exit_code == 0, done.output
    done = invoke(export_main, "explain", project.model, project.data / "test", "-o", tmp_path / "explained")
    assert (done.exit_code == 0) is heatmap
    if not heatmap:
        assert "--pooling mean" in done.stderr
    if kind == "resnet18":
        done = invoke(export_main, "quantize", project.model, "--run", project.run.folder, "--gate", "100", "--json")
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert said["bytes_after"] < 0.3 * said["bytes_before"]
        assert said["max_difference"] < 0.2
        done = invoke(export_main, "verify", tmp_path / "model.int8.onnx", "--data", project.data)
        assert done.exit_code == 0, done.output


@pytest.fixture(scope="session")
def small(made_once: MadeOnce) -> Project:
    """A project with an encoder of one convolution, whose weights are in another file."""

    def make(folder: Path) -> None:
        external = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        make_project(folder, lambda images: build_encoder(), external=external)

    return Project(made_once("small-encoder", make))


@pytest.mark.slow
def test_an_encoder_that_has_moved_is_named_and_one_that_has_changed_is_refused(small: Project, tmp_path: Path) -> None:
    run = replace(small.run, cache={**small.run.cache, "weights_path": str(tmp_path / "gone.onnx")})
    moved, changed = tmp_path / "elsewhere" / "renamed.onnx", tmp_path / "changed.onnx"
    moved.parent.mkdir()
    shutil.copy(small.folder / "encoder.onnx", moved)
    shutil.copy(small.folder / "weights.bin", moved.parent)
    assert weights_of(run, moved).path == moved
    write_encoder(changed, build_encoder(opset=17))
    done = invoke(export_main, "onnx", small.run.folder, "-o", tmp_path / "m.onnx", "--weights", changed)
    assert done.exit_code == 1
    assert "not the backbone weights of the run" in done.stderr
    assert "--weights FILE" in done.stderr
    assert not (tmp_path / "m.onnx").exists()
    done = invoke(export_main, "onnx", small.run.folder, "-o", tmp_path / "m.onnx", "--weights", moved)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_features_computed_elsewhere_cannot_be_exported_and_the_command_that_helps_is_said(small: Project) -> None:
    spec = replace(small.run.feature_spec, backbone="loaded:clip")
    with pytest.raises(MismatchError, match="computed elsewhere") as refusal:
        weights_of(replace(small.run, feature_spec=spec))
    assert "--backbone ENCODER.onnx" in str(refusal.value.fix)


@pytest.mark.slow
def test_the_core_model_of_opset_13_gives_the_same(small: Project, tmp_path: Path) -> None:
    done = invoke(export_main, "onnx", small.run.folder, "-o", tmp_path / "m.onnx", "--opset", "13", "--json")
    assert done.exit_code == 0, done.output
    assert onnx.load(tmp_path / "m.core.onnx").opset_import[0].version == 13


@pytest.mark.slow
def test_an_encoder_for_a_fixed_number_of_images_becomes_a_model_for_any_number(tmp_path: Path) -> None:
    project = make_project(tmp_path, lambda images: build_encoder(batch=4))
    model = open_model(project.model)
    assert model.inputs[0].shape[0] == -1
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    together = model.run(pixels).probabilities
    one_by_one = np.concatenate([model.run(pixel[None]).probabilities for pixel in pixels])
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    done = invoke(export_main, "quantize", project.model, "--run", project.run.folder)
    assert done.exit_code == 1
    assert "fixed number of images" in done.stderr


@pytest.mark.slow
def test_the_end_of_the_encoder_has_a_name_in_the_model(small: Project) -> None:
    assert ENCODED in {name for node in onnx.load(small.model).graph.node for name in node.output}

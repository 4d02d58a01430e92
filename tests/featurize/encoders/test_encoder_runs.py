"""Encoders through the commands: files, models of timm, a module of one's own, a plug-in; on a cluster and resumed."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.featurize.conftest import draw_folder
from tests.featurize.encoders.graphs import CLASS_TOKEN, DIM, IMAGE, MAP, SIDE, VECTOR, encoder, external
from xfeat.featurize.backbones.encoder_data import external_files
from xfeat.featurize.backbones.network import load_backbone
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main
from xfeat.featurize.encoders import plugins
from xfeat.featurize.encoders.convert import convert_module
from xfeat.featurize.encoders.find import find_encoder
from xfeat.featurize.encoders.plugins import EncoderPlugin
from xfeat.featurize.encoders.settings import encoder_spec
from xfeat.featurize.engines import open_engine
from xfeat.featurize.engines.conversion import to_onnx, write_model
from xfeat.featurize.errors import ModelError, SpecError, WeightsError
from xfeat.featurize.images.preprocess import load_pixels
from xfeat.featurize.pipeline.request import featurize_command, resolve_request
from xfeat.featurize.specs import FeatureRequest, FeatureSpec, PreprocessSpec

SCRIPTS = Path(sys.executable).parent
EXAMPLE = Path(__file__).with_name("example_plugin")


def run(folder: Path, *command: Any, **variables: str) -> str:
    """Run a command as a user does, in a folder; return what it says."""
    arguments = [SCRIPTS / command[0], *map(str, command[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def featurize(data: Path, output: Path, *options: Any) -> Any:
    arguments = ["featurize", str(data), "-o", str(output), *map(str, options)]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "data", 8)


def test_a_cache_names_its_encoder_and_is_brought_up_to_date_without_naming_it(data: Path, tmp_path: Path) -> None:
    path, output = encoder(tmp_path / "mine.onnx", CLASS_TOKEN, "all"), tmp_path / "features.h5"
    options = ("--pooling", "cls", "--mean", "0.1,0.2,0.3", "--std", "0.9")
    assert featurize(data, output, "--backbone", path, *options).exit_code == 0
    told = CliRunner().invoke(main, ["info", str(output)]).output
    assert f"weights {path}, SHA-256 {FeatureCache.open(output).spec.weights_sha256}" in told
    assert "16 images × 6 features, onnx:mine" in told
    again = featurize(data, output, *options)
    assert "is up to date" in again.output, again.output
    renamed = shutil.copy(path, tmp_path / "renamed.onnx")
    refused = featurize(data, output, "--backbone", renamed, *options)
    assert "leave out --backbone, and name its file with --weights" in refused.output, refused.output
    encoder(path, MAP, "map")
    changed = featurize(data, output, "--mean", "0.1,0.2,0.3", "--std", "0.9")
    assert "the cache was computed with other weights" in changed.output


def test_the_command_that_computes_a_cache_again_does(data: Path, tmp_path: Path) -> None:
    path, output = encoder(tmp_path / "mine.onnx", CLASS_TOKEN, "all"), tmp_path / "features.h5"
    request = FeatureRequest(backbone=str(path), pooling="mean", normalize="half", crop=0.1)
    spec, weights = resolve_request(output, request)
    line = featurize_command(spec, str(data), output, ["covid"], str(weights.path))
    given = main.commands["featurize"].make_context("featurize", shlex.split(line)[2:]).params
    asked = FeatureRequest(**{name: given[name] for name in vars(request)})
    assert resolve_request(output, asked) == (spec, weights)


@pytest.mark.parametrize(
    ("backbone", "options", "said"),
    [
        ("nope", {}, r"unknown backbone\n.*efficientnet-b0.*FILE\.onnx.*timm:NAME"),
        (__file__, {}, r"not the name of an encoder's file\n.*ends in \.onnx"),
        ("onnx:mine", {}, r"file of the encoder onnx:mine was not found\n.*--weights FILE\.onnx"),
        ("torch:json:loads", {}, r"raises an error\n.*TypeError"),
        ("torch:json:nothing", {}, r"json has no nothing\n.*json/__init__\.py"),
        ("torch:no_such_module:f", {}, r"No module named 'no_such_module'"),
        ("torch:json", {}, r"torch:MODULE:FUNCTION\n.*torch:json"),
        ("torch:os:getcwd", {}, r"no encoder\n.*EncoderPlugin or a torch\.nn\.Module\n.*str"),
        ("torch:os:getcwd", {"weights": Path("x.pth")}, r"not read from a checkpoint\n.*--weights FILE\.onnx"),
        ("plugin:none", {}, "no installed package provides this encoder"),
        ("{file}", {"weights": Path("x.onnx")}, "two files of an encoder"),
        ("efficientnet-lite0", {"weights": Path("x.onnx")}, r"no weights of efficientnet-lite0\n.*--backbone x\.onnx"),
        ("efficientnet-lite0", {"pooling": "cls"}, r"pooling cls is for encoders.*\n.*final or multilevel"),
    ],
    ids=str,
)
def test_a_backbone_that_does_not_exist_is_refused(
    backbone: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    backbone = backbone.format(file=encoder(tmp_path / "file.onnx", MAP, "map"))
    with pytest.raises((SpecError, WeightsError), match=said):
        resolve_request(tmp_path / "features.h5", FeatureRequest(backbone=backbone, **options))


@pytest.mark.slow
def test_an_efficientnet_as_a_file_gives_the_features_of_the_built_in_one(
    lite0_weights: Weights, lite0_spec: FeatureSpec, some_pixels: Any, tmp_path: Path
) -> None:
    backbone = load_backbone(lite0_spec, lite0_weights)

    class LastMap(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.backbone.maps(images)[0]

    side = lite0_spec.preprocess.size
    pixels = some_pixels(7, side)
    expected = open_engine(lite0_spec, lite0_weights, device="cpu").features(pixels)
    path = tmp_path / "lite0.onnx"
    names: dict[str, Any] = {"input_name": "x", "output_names": ["y"], "dynamic": {0: "N"}}
    write_model(to_onnx(LastMap().eval(), torch.zeros((2, 3, side, side)), **names), path)
    weights, found = find_encoder(str(path))
    spec = encoder_spec(FeatureRequest(normalize="half"), weights, found)
    features = open_engine(spec, weights, device="cpu").features(pixels)
    assert np.allclose(features, expected[:, : found.dim], atol=1e-5)


class _Several(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


class _Exit(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise SystemExit(3)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: torch.jit.script(torch.nn.Flatten()), "no scripted or traced modules"),
        (lambda: torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 3, 32, 32)), "no scripted or traced modules"),
        (_Several, "does not return one tensor"),
        (lambda: torch.nn.Linear(5, 5), "fails on float32"),
        (_Exit, r"fails on float32(.|\n)*SystemExit: 3"),
        (lambda: torch.nn.DataParallel(torch.nn.Flatten()), r"wrapper(.|\n)*fix: +return model\.module$"),
        (lambda: torch.compile(torch.nn.Flatten()), r"wrapper(.|\n)*fix: +return the module .* without torch\.compile"),
    ],
    ids=["scripted", "traced", "several tensors", "another input", "exit", "several GPUs", "compiled"],
)
def test_a_module_that_cannot_be_converted_is_one_error(module: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convert_module(module(), "torch:mine:encoder", size=32)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit()",
        "def encoder(): raise SystemExit('no weights')",
        "from xfeat import EncoderPlugin\ndef encoder(): return EncoderPlugin(module=exit)",
        "def __getattr__(name): raise SystemExit(2)",
        "def __getattr__(name): raise RuntimeError",
    ],
    ids=["at import", "in the function", "in the plug-in", "looked up", "looked up, an error"],
)
def test_code_of_the_user_that_exits_is_one_error(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"mine_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=rf"torch:{name}:encoder raises an error\n.*(SystemExit|RuntimeError)"):
        find_encoder(f"torch:{name}:encoder")


@pytest.mark.slow
def test_a_module_of_the_current_folder_gives_what_it_computes_in_torch(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch, torchvision\n"
        "def resnet():\n"
        "    torch.manual_seed(0)\n"
        "    model = torchvision.models.resnet18()\n"
        "    model.fc = torch.nn.Identity()\n"
        "    return model\n"
    )
    (tmp_path / "json.py").write_text("raise RuntimeError('a file of the current folder was taken for a module')\n")
    run(tmp_path, "xfeat", "featurize", "data", "--backbone", "torch:mine:resnet", "--size", "64")
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    cache = FeatureCache.open(tmp_path / "features.h5")
    assert cache.spec.backbone == "torch:mine:resnet"
    for path, row in list(zip(cache.columns.path, cache.features, strict=True))[:3]:
        pixels = load_pixels((data / path).read_bytes(), cache.spec.preprocess)
        images = torch.from_numpy((pixels / 255 - cache.spec.preprocess.mean) / cache.spec.preprocess.std).float()
        expected = model.eval()(images.permute(2, 0, 1)[None]).detach().numpy()[0]
        assert np.allclose(row, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "pooling"),
    [
        ("test_vit", "tokens", "cls"),
        ("test_resnet", "map", "final"),
        ("test_convnext", "vector", "final"),
    ],
)
def test_a_model_of_timm_gives_the_features_of_timm(name: str, kind: str, pooling: str, tmp_path: Path) -> None:
    """Its weights are random, from a file; the reference is timm's own transform and model."""
    timm = pytest.importorskip("timm")
    import safetensors.torch

    torch.manual_seed(0)
    model = timm.create_model(name)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    weights, found = find_encoder(f"timm:{name}", file=tmp_path / "model.safetensors")
    spec = encoder_spec(FeatureRequest(), weights, found)
    assert (found.kind, spec.pooling) == (kind, pooling)

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((400, 300))
    image.save(tmp_path / "image.png")
    pixels = load_pixels((tmp_path / "image.png").read_bytes(), spec.preprocess)[None]
    features = open_engine(spec, weights, device="cpu").features(pixels)
    model.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected = model.eval()(transform(image)[None]).detach().numpy()
    # timm crops after resizing, which moves the image by up to half a pixel.
    assert np.abs(features - expected).max() < 0.05 * np.abs(expected).max()
    mean, std = (np.array(values) for values in (spec.preprocess.mean, spec.preprocess.std))
    same = torch.from_numpy(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    assert np.allclose(features, model(same).detach().numpy(), atol=1e-4)

    converted = weights.path.stat().st_mtime_ns
    for file in (tmp_path / "model.safetensors", weights.path):
        assert find_encoder(f"timm:{name}", file=file)[0] == weights
    assert weights.path.stat().st_mtime_ns == converted


@pytest.mark.slow
def test_weights_of_timm_come_from_the_cache_of_its_hub_or_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts and never answers stands for a network that drops packets."""
    timm = pytest.importorskip("timm")
    import safetensors.torch

    from xfeat.featurize.encoders import timm_models

    monkeypatch.setattr("xfeat.featurize.backbones.weights.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(timm_models.hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(timm_models.hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(WeightsError, match=r"no answer|timed out") as caught:
            find_encoder("timm:test_vit")
        url = f"{endpoint}/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
        assert caught.value.expected == url
        assert f"download {url}" in str(caught.value.fix)
        for wrong in ("test_vitt", "test_vit.nope"):
            with pytest.raises(SpecError, match=r"no such model\n.*test_vit"):
                find_encoder(f"timm:{wrong}")

        repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
        (repository / "snapshots" / "abc").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        torch.manual_seed(0)
        stored = repository / "snapshots" / "abc" / "model.safetensors"
        safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), stored)
        assert find_encoder("timm:test_vit")[1].kind == "tokens"


@pytest.mark.parametrize("size", [None, 48])
def test_a_plug_in_says_how_images_are_prepared_for_its_file(
    size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = ("N", 3, "h", "w") if size else IMAGE
    path = external(tmp_path / "packaged.onnx", CLASS_TOKEN, "all", image=free)
    said = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop": 0.1, "interpolation": "bicubic", "resize": "crop"}
    monkeypatch.setattr(
        plugins, "plugin_function", lambda name: lambda: EncoderPlugin(path=path, pooling="mean", **said)
    )
    weights, found = find_encoder("plugin:mine", size=size)
    spec = encoder_spec(FeatureRequest(), weights, found)
    assert (spec.backbone, spec.pooling) == ("plugin:mine", "mean")
    assert spec.preprocess == PreprocessSpec(size=size or SIDE, **said)
    assert not external_files(found.path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size or SIDE, size or SIDE, 3), np.uint8)
    alone, _ = find_encoder(str(path), size=size)
    plain = dataclasses.replace(spec, backbone=alone.backbone, weights_sha256=alone.sha256)
    of_file = open_engine(plain, alone, device="cpu").features(pixels)
    assert np.array_equal(open_engine(spec, weights, device="cpu").features(pixels), of_file)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"path": "x.onnx", "module": list}, {"path": "x.onnx", "pooling": "max"}, {"module": list, "pooling": "avg"}],
    ids=str,
)
def test_a_plug_in_has_a_file_or_a_module(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        EncoderPlugin(**wrong)


@pytest.mark.slow
def test_the_example_of_a_plug_in_works_once_it_is_installed(tmp_path: Path) -> None:
    """The commands of docs/encoders.md, without a network."""
    shutil.copytree(EXAMPLE, tmp_path / "package")
    data = draw_folder(tmp_path / "data", 8)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", tmp_path / "installed", tmp_path / "package"], check=True)
    installed = str(tmp_path / "installed")
    run(tmp_path, "xfeat", "featurize", data, "--backbone", "plugin:edges", PYTHONPATH=installed)
    cache = FeatureCache.open(tmp_path / "features.h5")
    preprocess = cache.spec.preprocess
    assert (cache.spec.backbone, cache.features.shape) == ("plugin:edges", (16, 48))
    assert (preprocess.size, preprocess.crop, preprocess.std) == (96, 0.05, (0.25, 0.25, 0.25))


@pytest.mark.slow
def test_every_command_works_on_the_features_of_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xfeat.head.cli import main as head

    monkeypatch.chdir(tmp_path)
    encoder(tmp_path / "mine.onnx", VECTOR, "map", "vector")
    draw_folder(tmp_path / "data", 40)
    for program, command in (
        (main, "split data splits"),
        (main, "featurize splits --backbone mine.onnx#vector --normalize imagenet"),
        (main, "verify"),
        (main, "audit"),
        (main, "info"),
        (head, "train --epochs 2"),
        (head, "crossval --folds 2 --epochs 2"),
        (head, "sweep --trials 2 --epochs 2"),
    ):
        done = CliRunner().invoke(program, command.split(), catch_exceptions=False)
        assert done.exit_code == 0, f"{command}: {done.output}"
    assert FeatureCache.open("features.h5").spec.backbone == "onnx:mine#vector"


@pytest.mark.slow
def test_a_killed_run_of_an_encoder_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """In batches of four: which images share a batch differs between the two runs."""
    data = draw_folder(tmp_path / "data", 21)
    path = encoder(tmp_path / "mine.onnx", MAP, "map", image=(4, 3, 32, 32))
    options = ["--backbone", path, "--normalize", "half"]
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys, time\n"
        "from xfeat.featurize.pipeline import compute\n"
        "from xfeat.featurize.cli import main\n"
        "from xfeat.featurize.engines.onnx_engine import OnnxEngine\n"
        "compute.SHARD_ROWS = 5\n"
        "run = OnnxEngine.features\n"
        "OnnxEngine.features = lambda engine, pixels: (time.sleep(0.3), run(engine, pixels))[1]\n"
        "main(sys.argv[1:])\n"
    )
    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    command = [sys.executable, driver, "featurize", data, "-o", killed, *options, "--batch-size", "7"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("killed.h5.parts/*.npz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert "resuming with" in featurize(data, killed, *options).output
    assert featurize(data, whole, *options).exit_code == 0
    assert np.array_equal(FeatureCache.open(killed).features, FeatureCache.open(whole).features)


def test_the_files_of_an_encoder_travel_to_the_machines_of_a_cluster(data: Path, tmp_path: Path) -> None:
    """What a machine is sent is enough there; no Ray is needed for the files themselves."""
    from xfeat.featurize.cluster.engine import _cost, _files

    path = external(tmp_path / "mine.onnx", VECTOR, "vector")
    weights, found = find_encoder(str(path))
    spec = encoder_spec(FeatureRequest(normalize="half"), weights, found)
    pixels = np.zeros((3, 32, 32, 3), np.uint8)
    expected = open_engine(spec, weights, device="cpu").features(pixels)
    there = tmp_path / "there"
    for name, file in _files(weights).items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(file.read_bytes())
    moved = Weights(weights.backbone, there / path.name, weights.sha256)
    assert np.array_equal(open_engine(spec, moved, device="cpu").features(pixels), expected)
    assert expected.shape == (3, DIM)
    assert _cost(spec, weights) == 1.0

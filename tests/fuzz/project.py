"""A small project with every kind of file: made-up features, two runs, a cross-validation, a sweep and a tiny model."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import minisign
import numpy as np
import onnx
import openpyxl
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import xfeat
from tests.caches import as_schema1, extra_column, write_made_up
from tests.featurize.conftest import CountingEngine
from tests.serve.conftest import CLASSES, SIZE, build_model, draw, reference_probabilities
from xfeat.export.build.reference_model import metadata_of
from xfeat.export.parity.certificate import certificate_path, write_certificate
from xfeat.export.parity.check_images import load_images
from xfeat.export.parity.signature import sign_certificate
from xfeat.featurize.backbones.weights import Weights, sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as featurize_main
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.engines import conversion
from xfeat.featurize.engines.onnx_engine import OnnxEngine
from xfeat.featurize.errors import Interrupted
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import Extraction, extract_features
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
from xfeat.head.cli import main as head_main
from xfeat.head.crossval.runner import CrossValidation, cross_validate
from xfeat.head.runs.reader import open_run
from xfeat.head.specs import CrossvalSpec, HeadSpec, TrainSpec

PREPROCESS = PreprocessSpec(size=SIZE)
SWEEP = ("--name", "sweep", "--hidden", "linear", "--lr", "1e-3,1e-2", "--epochs", "1", "--dropout", "0")
OPTIONS = {
    "serve.toml": "port = 8080\nhost = '127.0.0.1'\ncors-origin = ['https://a.example']\nlog-format = 'json'\n",
    "other.toml": "max-queue = 512\nbatch-wait-ms = 2.5\nallow-unverified = true\n",
    "key": "0123456789abcdef\n",
    "some.lock": '{"host": "gauss", "pid": 1, "since": "now", "token": "a", "namespace": "b", "renewals": 0}',
}
_PER_CLASS = 16
_SPLITS = 8 * (0,) + 4 * (1,) + 4 * (2,)
_RUN = ("--epochs", "1", "--hidden", "4")


def make_project(folder: Path) -> None:
    """Fill a folder."""
    rows = [(label, number) for label in range(len(CLASSES)) for number in range(_PER_CLASS)]
    paths = [f"{CLASSES[label]}/{number:02d}.png" for label, number in rows]
    colours = [(40 * label + number, 5 * number, 200 - 60 * label) for label, number in rows]
    for path, colour in zip(paths, colours, strict=True):
        file = folder / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(draw(colour))
    labels = np.array([label for label, _ in rows])
    groups = [f"patient {label}-{number // 2}" for label, number in rows]
    columns: dict[str, Any] = {"label": labels, "split": 3 * _SPLITS, "path": paths, "group": groups}
    for seed, name in enumerate(("features.h5", "other.h5")):
        noise = np.random.default_rng(seed).normal(size=(len(rows), 6)).astype(np.float32)
        features = noise + 3 * np.eye(6, dtype=np.float32)[labels]
        extra = {
            "age": extra_column("number", [20.5 + row for row in range(len(rows))]),
            "sex": extra_column("category", ["F", "M", None, "F"] * (len(rows) // 4)),
            "visit": extra_column("date", ["2024-12-31", None] * (len(rows) // 2)),
            "note": extra_column("text", paths),
        }
        places = {"data_root": folder / "data", "extra": extra}
        write_made_up(folder / name, features, columns, CLASSES, preprocess=PREPROCESS, **places)
    _audit(folder)
    for name, more in (("first", ("--positive", CLASSES[0])), ("second", ("--seed", "1"))):
        _head(folder, "train", "--name", name, *_RUN, *more)
    _head(folder, "sweep", *SWEEP)
    _head(folder, "crossval", "--name", "cv", "--folds", "2", "--epochs", "1", "--hidden", "linear")
    xfeat.evaluate(folder / "runs/first", folder / "other.h5", name="external")
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    cross_validated(folder)
    _write_model(folder)
    _write_tables(folder, paths, labels, groups)
    _stop_featurizing(folder)
    shutil.copy(folder / "features.h5", folder / "schema1.h5")
    as_schema1(folder / "schema1.h5")
    for name, text in OPTIONS.items():
        (folder / name).write_text(text)
    _write_requests(folder / "requests")
    _sign(folder)
    converted(folder)


def _audit(folder: Path) -> None:
    done = CliRunner().invoke(featurize_main, ["audit", str(folder / "features.h5")], catch_exceptions=False)
    assert done.exit_code in (0, 1), done.output


def _head(folder: Path, command: str, *options: str) -> None:
    places = ("--features", str(folder / "features.h5"), "--runs", str(folder / "runs"))
    done = CliRunner().invoke(head_main, [command, *places, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def cross_validated(folder: Path) -> CrossValidation:
    """Cross-validate, with checkpoints that stay."""
    cache, train = FeatureCache.open(folder / "features.h5"), TrainSpec(epochs=1)
    plan = CrossvalSpec(folds=2, by_image=False)
    return cross_validate(cache, HeadSpec(hidden=()), train, plan, checkpoints=folder / "checkpoints")


def _write_model(folder: Path) -> None:
    metadata = metadata_of(open_run(folder / "runs" / "first"), ood_threshold=0.5)
    for name in ("model.onnx", "other.onnx"):
        onnx.save(build_model(metadata, ood=name == "model.onnx", free_sides=True), folder / name)
    images = load_images(folder / "data", dict.fromkeys(_some_images(folder)), "the images", PREPROCESS, None)
    means = images.pixels.mean(axis=(1, 2))
    expected = np.array([reference_probabilities(tuple(mean)) for mean in means], np.float32)
    for name in ("model.onnx", "other.onnx"):
        model = folder / name
        write_certificate(certificate_path(model), metadata, {"full": model}, images, expected, {})


def _sign(folder: Path) -> None:
    pair = minisign.KeyPair.generate()
    (folder / "minisign.pub").write_bytes(bytes(pair.public_key) + b"\n")
    (folder / "minisign.key").write_bytes(bytes(pair.secret_key) + b"\n")
    for name in ("model", "other"):
        certificate = folder / f"{name}.certificate.json"
        sign_certificate(certificate, certificate.read_bytes(), folder / "minisign.key")


def converted(folder: Path) -> np.ndarray:
    """Compute features with the converted network in ``graphs``: the mean of each colour, in place of a backbone."""
    (weights := folder / "weights.pth").touch()
    found = Weights("efficientnet-lite0", weights, sha256_of(weights))
    spec = FeatureSpec(backbone=found.backbone, weights_sha256=found.sha256, preprocess=PREPROCESS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XFEAT_CACHE_DIR", str(folder / "graphs"))
        patch.setattr(conversion, "convert_feature_network", _convert)
        return OnnxEngine(spec, found, device="cpu", threads=1).features(np.full((2, SIZE, SIZE, 3), 7, np.uint8))


def _convert(spec: FeatureSpec, weights: Weights, path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["features"], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])
    axes = numpy_helper.from_array(np.array([1, 2]), "axes")
    graph = helper.make_graph(nodes, "means", [image], [features], [axes])
    conversion.write_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def _write_requests(folder: Path) -> None:
    """Write bodies of requests, as clients of each protocol send them."""
    folder.mkdir()
    picture, jpeg = draw((10, 200, 30)), draw((200, 30, 10), kind="JPEG")
    head = '--b\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
    parts = [head.format(name).encode() + data + b"\r\n" for name, data in (("ä.png", picture), ("b.jpg", jpeg))]
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 1, 1, 3], "data": [1, 2, 3, 4, 5, 6]}
    text = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture).decode()]}
    outputs = [{"name": "logits", "parameters": {"classification": 2}}, {"name": "ood"}]
    binary = {**text, "parameters": {"binary_data_size": len(picture) + 4}}
    del binary["data"]
    header = json.dumps({"id": "7", "inputs": [binary], "outputs": outputs}).encode()
    numbers = json.dumps({"id": "7", "inputs": [tensor], "outputs": outputs}).encode()
    bodies = {
        "image.png": picture,
        "image.jpg": jpeg,
        "form": b"".join(parts) + b"--b--\r\n",
        "numbers.json": numbers,
        "base64.json": json.dumps({"inputs": [text], "parameters": {"x": 1}}).encode(),
        "numbers.json.gz": gzip.compress(numbers),
        # The length of the header, which goes into a header of HTTP, comes first.
        "binary": b"%08d" % len(header) + header + len(picture).to_bytes(4, "little") + picture,
    }
    for name, body in bodies.items():
        (folder / name).write_bytes(body)


def _some_images(folder: Path) -> list[str]:
    return [file.relative_to(folder / "data").as_posix() for file in sorted(folder.glob("data/*/0[0-2].png"))]


def _write_tables(folder: Path, paths: list[str], labels: np.ndarray, groups: list[str]) -> None:
    splits = 3 * (8 * ("train",) + 4 * ("valid",) + 4 * ("test",))
    names = [CLASSES[label] for label in labels]
    tables: dict[str, tuple[tuple[str, ...], Any]] = {
        "labels.csv": (("path", "label", "split", "group"), zip(paths, names, splits, groups, strict=True)),
        "groups.csv": (("path", "group"), zip(paths, groups, strict=True)),
        "metadata.csv": (("path", "age", "sex", "visit"), [(path, "20,5", "F", "31.12.2024") for path in paths]),
    }
    for name, (header, rows) in tables.items():
        with (folder / "data" / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    book = openpyxl.Workbook()
    for row in [("path", "age", "visit"), *((path, 20.5, date(2024, 12, 31)) for path in paths)]:
        book.active.append(row)
    book.save(folder / "data" / "metadata.xlsx")


def featurized(folder: Path, *, stop_after: int | None = None) -> Extraction:
    """Featurize three pictures of each class with the mean of each colour as features; another run may go on."""
    weights = folder / "weights.pth"
    weights.touch()
    engine = CountingEngine(batch_size=1)
    if stop_after is not None:
        engine = _Stopping(stop_after)
    digest = sha256_of(weights)
    spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256=digest, preprocess=PREPROCESS, dtype="float32")
    options = RunOptions(open_engine=lambda: engine, workers=1)
    dataset = open_dataset(folder / "few")
    return extract_features(dataset, spec, Weights("efficientnet-b0", weights, digest), folder / "few.h5", options)


class _Stopping(CountingEngine):
    def __init__(self, after: int) -> None:
        super().__init__(batch_size=1)
        self._after = after

    def features(self, pixels: np.ndarray) -> np.ndarray:
        if self.images >= self._after:
            raise KeyboardInterrupt
        return super().features(pixels)


def _stop_featurizing(folder: Path) -> None:
    for name in _some_images(folder):
        file = folder / "few" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((folder / "data" / name).read_bytes())
    for images in (3, 3):
        try:
            featurized(folder, stop_after=images)
        except Interrupted:
            continue
        raise AssertionError("featurizing was not stopped")

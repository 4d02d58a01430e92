"""The table of docs/trust.md: each row is a test, found by its first column. A row without a test fails."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.caches import edit_cache
from tests.conftest import MadeOnce
from tests.trust.changes import edit_json, exchange, flip
from tests.trust.conftest import Say, run_line
from xfeat.export.model.file import open_model
from xfeat.export.parity.certificate import read_certificate, require_match
from xfeat.featurize.backbones.weights import sha256_of
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import MismatchError, ModelError
from xfeat.head.runs.reader import open_run
from xfeat.serve.inference.predictor import Predictor
from xfeat.serve.models.registry import ModelRegistry
from xfeat.serve.specs import ServeSpec

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "trust.md"
TABLE = PAGE.read_text().partition("## From image to answer")[2].partition("\n\n**A change of")[0]
ROWS = [line.split(" | ")[0].removeprefix("| ") for line in TABLE.splitlines() if line.startswith("| ")][1:]

FEATURIZE = "xfeat featurize data -o features.h5 --backbone efficientnet-lite0 --weights weights.pth --size 64"
TRAIN = "xhead train --epochs 1 --hidden linear"
CROSSVAL = "xhead crossval --folds 2 --epochs 1 --hidden linear"
SWEEP = "xhead sweep --name s --epochs 1 --hidden linear --lr 1e-3,1e-2"
PREDICT = "xserve predict data/test/bar/0.png --device cpu"
EXPORT = "xexport onnx runs/first -o again.onnx"
OF_MODEL = (
    "xexport verify {}",
    "xexport explain {} data/test/bar",
    "xexport triton {} -o repository",
    f"{PREDICT} --model {{}}",
)

Row = Callable[[Path, Say], None]
TESTS: dict[str, Row] = {}


def row(first_column: str) -> Callable[[Row], Row]:
    def register(test: Row) -> Row:
        TESTS[first_column] = test
        return test

    return register


@pytest.fixture(scope="session")
def richer(original: Path, made_once: MadeOnce) -> Path:
    """The project with a second run of the same shape, a cross-validation and a sweep."""

    def make(folder: Path) -> None:
        made = shutil.copytree(original, folder / "made", symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(made)
            content = FeatureCache.open("features.h5").content_sha256
            Path("features.h5").unlink()
            Path("runs/first/run.json").write_text(json.dumps(open_run("runs/first").to_dict()))
            for line in (
                *(f"{FEATURIZE} --engine torch", "xhead train --name second --seed 1"),
                *(f"{CROSSVAL} --name cv", SWEEP, "xhead eval runs/first features.h5 --name external"),
            ):
                code, output = run_line(line)
                assert code == 0, output
            assert FeatureCache.open("features.h5").content_sha256 == content
        made.rename(folder / "project")  # what is looked for where it was is not there

    return made_once("trust", make) / "project"


@pytest.fixture
def project(richer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(richer, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def test_every_row_has_a_test_and_every_test_its_row() -> None:
    assert len(ROWS) == len(set(ROWS)) > 15
    assert set(ROWS) == set(TESTS)


@pytest.mark.parametrize("first_column", ROWS)
def test_who_notices(project: Path, say: Say, first_column: str) -> None:
    TESTS[first_column](project, say)


def refused(say: Say, line: str, *reasons: str) -> None:
    """Require an error that names one of the reasons."""
    code, output = say(line)
    assert code in (1, 2), f"{line}\n{output}"
    assert any(reason in output for reason in reasons), f"{line}\n{output}"


@row("an image after it was featurized")
def _image(project: Path, say: Say) -> None:
    Image.new("L", (90, 80), 77).save(project / "data/test/bar/0.png")
    code, output = say("xfeat audit")
    assert "changed" in output, output
    code, output = say("xexport verify model.onnx --data data --json")
    assert (code, '"changed_images": 1' in output) == (0, True), output
    code, output = say(f"{FEATURIZE} --engine torch")
    assert (code, "computed 1 at" in output) == (0, True), output


OF_FEATURES = (
    *("xfeat audit", TRAIN, CROSSVAL, f"{SWEEP}2", "xhead eval runs/first features.h5"),
    *("xhead compare --baselines", EXPORT, f"{FEATURIZE} --engine torch"),
)


@row("a feature, label, split, path or group in `features.h5`")
def _features(project: Path, say: Say) -> None:
    file, kept = project / "features.h5", project / "kept.h5"
    shutil.copy(file, kept)
    columns = FeatureCache.open(file).columns
    place = file.read_bytes().index(np.asarray(FeatureCache.open(file).features)[3].tobytes()[:64])
    flip(file, place + 5)
    for line in OF_FEATURES:
        refused(say, line, "features.h5")
    for name in ("label", "split"):  # with the digest of everything but the content
        shutil.copy(kept, file)
        edit_cache(file, {name: np.roll(np.asarray(getattr(columns, name)), 1)})
        for line in OF_FEATURES:
            refused(say, line, "have changed since it was written")


@row("a feature that is not a number, or so large that its square is not")
def _not_finite(project: Path, say: Say) -> None:
    features = np.array(FeatureCache.open("features.h5").features)
    for value in (np.nan, 3e38):
        features[3, 3] = value
        edit_cache(project / "features.h5", {"features": features})
        for line in OF_FEATURES:
            refused(say, line, "not finite")


@row("`features.h5`, for the features of other images")
def _other_features(project: Path, say: Say) -> None:
    (project / "data/train/bar/0.png").unlink()
    assert say(f"{FEATURIZE} --engine torch")[0] == 0
    refused(say, EXPORT, "recomputed since the run")
    refused(say, "xhead compare --baselines", "the cache has changed since the run")
    refused(say, SWEEP, "other settings: cache_sha256")


@row("`features.audit.json`")
def _audit(project: Path, say: Say) -> None:
    assert say("xfeat audit")[0] == 0
    edit_json(project / "features.audit.json", lambda audit: audit.update(passed=not audit["passed"]))
    code, output = say(f"{TRAIN} --name audited")
    assert (code, "it has changed since it was saved" in output) == (0, True), output


@row("the backbone's weights, or the file of an encoder and its data")
def _weights(project: Path, say: Say) -> None:
    flip(project / "weights.pth")
    refused(say, EXPORT, "weights of the run", "weights")
    refused(say, "xexport verify model.onnx --run runs/first", "weights")


@row("the network that was converted for featurizing")
def _converted(project: Path, say: Say) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XFEAT_CACHE_DIR", str(project / "converted"))
        code, output = say(FEATURIZE.replace("features.h5", "one.h5"))
        assert code == 0, output
        [graph] = (project / "converted").rglob("*.onnx")
        flip(graph)
        code, output = say(FEATURIZE.replace("features.h5", "two.h5"))
        assert (code, "has changed since it was converted" in output) == (0, True), output


@row("`run.json` (a threshold, a temperature, a metric)")
def _run(project: Path, say: Say) -> None:
    for change in (
        lambda facts: facts.update(temperature=facts["temperature"] + 0.1),
        lambda facts: facts.update(operating_point={"positive": "bar", "threshold": 0.1}),
        lambda facts: facts["metrics"]["test"].update(accuracy=1.0),
    ):
        shutil.copy(project / "runs/first/run.json", "kept.json")
        edit_json(project / "runs/first/run.json", change)
        for line in ("xhead eval runs/first features.h5", "xhead compare first", EXPORT):
            refused(say, line, "it has changed since it was saved")
        refused(say, "xexport verify model.onnx --run runs/first", "it has changed since it was saved")
        shutil.copy("kept.json", project / "runs/first/run.json")


@row("`run.json`, for that of another run")
def _other_run(project: Path, say: Say) -> None:
    exchange(project / "runs/first/run.json", project / "runs/second/run.json")
    refused(say, "xhead eval runs/first features.h5", "not what was saved")
    refused(say, EXPORT, "not what was saved")
    refused(say, "xexport verify model.onnx --run runs/first", "not what was saved")
    code, output = say("xhead compare first second")
    assert (code, output.count("not compared")) == (0, 2), output


@row("`head.safetensors`, `history.csv`, `predictions.csv`, also for those of another run")
def _files_of_a_run(project: Path, say: Say) -> None:
    first, second = project / "runs/first", project / "runs/second"
    for name, lines in {
        "head.safetensors": ("xhead eval runs/first features.h5", EXPORT),
        "predictions.csv": (EXPORT, "xhead compare --baselines first"),
        "history.csv": ("xhead compare first --html page.html",),
    }.items():
        exchange(first / name, second / name)
        for line in lines:
            code, output = say(line)
            assert "not what was saved" in output, f"{line}\n{output}"
            assert code == 1 or name == "history.csv", f"{line}\n{output}"
        exchange(first / name, second / name)


@row("`crossval.json` or `eval.json`, and the `predictions.csv` and `report.html` beside it")
def _results(project: Path, say: Say) -> None:
    for name, main, line in (
        ("cv", "crossval.json", "cross-validated"),
        ("external", "eval.json", "external accuracy"),
    ):
        folder = project / "runs" / name
        assert f"{name}: " in say("xhead compare")[1]
        assert f'"name": "{name}"' in say(f"xhead compare --json {name}")[1]
        for file, change in {
            main: lambda file: edit_json(file, lambda facts: facts["metrics"].update(accuracy=1.0)),
            "predictions.csv": lambda file: file.write_text(file.read_text().replace("bar", "disc", 1)),
            "report.html": lambda file: file.write_text(file.read_text() + " "),
        }.items():
            whole = (folder / file).read_bytes()
            change(folder / file)
            refused(say, f"xhead compare {name}", "changed since it was saved", "not what was saved")
            code, output = say("xhead compare")
            assert (code, "left out" in output, line in output) == (0, True, False), output
            (folder / file).write_bytes(whole)


@row("a finished fold of an interrupted cross-validation")
def _fold(project: Path, say: Say) -> None:
    """The same call with other checkpoints gives the same result; the whole kind is in test_resumed.py."""
    from xfeat.head.crossval.runner import checkpoint_folder, cross_validate
    from xfeat.head.specs import CrossvalSpec, HeadSpec, MemorySpec, TrainSpec

    cache = FeatureCache.open(project / "features.h5")
    specs = (HeadSpec(hidden=()), TrainSpec(epochs=1), CrossvalSpec(folds=2))
    folder = checkpoint_folder(project / "runs", cache, *specs, MemorySpec())
    folder.mkdir()
    whole = cross_validate(cache, *specs, checkpoints=folder).main.probabilities
    for file in folder.glob("*.float32"):
        flip(file, -1)
    np.testing.assert_array_equal(cross_validate(cache, *specs, checkpoints=folder).main.probabilities, whole)


@row("a line of `results.csv` of a sweep")
def _sweep(project: Path, say: Say) -> None:
    file = project / "runs/s/results.csv"
    assert say(SWEEP)[0] == 0
    file.write_text(re.sub(r",0\.", ",0.0", file.read_text(), count=1))
    refused(say, SWEEP, "has changed since it was saved")


@row("`model.onnx`, its core model, a model in fewer bits")
def _model(project: Path, say: Say) -> None:
    for name in ("model.onnx", "model.core.onnx"):
        whole = (project / name).read_bytes()
        flip(project / name)
        lines = [line.format(name) for line in OF_MODEL if not ("explain" in line and "core" in name)]
        if name == "model.onnx":
            lines += [
                "xexport quantize model.onnx --run runs/first -o q.onnx",
                "xserve page -o site --model model.onnx",
            ]
        for line in lines:
            refused(say, line, "does not match its certificate")
        assert say(f"{PREDICT} --model {name} --allow-unverified")[0] == 0
        (project / name).write_bytes(whole)
    assert not (project / "site").exists()


@row("a model file while it is opened or served")
def _swapped(project: Path, say: Say) -> None:
    """Deterministic: the file is exchanged between reading and comparing, as a race would do it."""
    good, bad, link = project / "model.onnx", project / "bad.onnx", project / "link.onnx"
    shutil.copy(good, bad)
    flip(bad)
    shutil.copy(project / "model.certificate.json", project / "link.certificate.json")
    for opened, replaced in ((good, bad), (bad, good)):
        link.unlink(missing_ok=True)
        link.symlink_to(opened)
        model = open_model(link)
        link.unlink()
        link.symlink_to(replaced)
        if opened is good:
            require_match(model, read_certificate(project / "model.certificate.json"))
            with pytest.raises(ModelError, match="has changed since it was opened"):
                model.read()
        else:
            with pytest.raises(MismatchError):
                require_match(model, read_certificate(project / "model.certificate.json"))

    def two_sessions(path: Path) -> list[Predictor]:
        first = Predictor.open(path, "cpu", allow_unverified=True)
        link.unlink()
        link.symlink_to(good)
        return [first, Predictor.open(path, "cpu", allow_unverified=True)]

    link.unlink()
    link.symlink_to(bad)
    with pytest.raises(ModelError, match="replaced while it was being opened"):
        ModelRegistry(link, two_sessions, ServeSpec())


@row("weights that a model keeps in another file, which its digest does not cover")
def _external(project: Path, say: Say) -> None:
    (project / "model.certificate.json").unlink()
    model = onnx.load(project / "model.onnx")
    onnx.save(model, project / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    assert (project / "model.data").exists()
    for line in (*OF_MODEL, "xexport info {}", "xexport bench {}", "xserve page -o site --model {}"):
        refused(say, line.format("model.onnx"), "External data", "external data")


@row("metadata in the certificate (classes, threshold, temperature, …)")
def _metadata(project: Path, say: Say) -> None:
    for change in ({"class_names": ["disc", "bar"]}, {"temperature": 9.0}, {"ood_threshold": 1e9}, {"run": "other"}):
        whole = (project / "model.certificate.json").read_text()
        edit_json(project / "model.certificate.json", lambda facts, new=change: facts["metadata"].update(new))
        for line in OF_MODEL:
            refused(say, line.format("model.onnx"), "does not match its certificate")
        (project / "model.certificate.json").write_text(whole)


@row("the certificate, for that of an older export")
def _older(project: Path, say: Say) -> None:
    """A second export of the same run has other bytes in its metadata, here those of the second run."""
    shutil.copy(project / "model.certificate.json", project / "kept.json")
    edit_json(
        project / "model.certificate.json",
        lambda facts: [each.update(sha256="0" * 64) for each in facts["models"].values()],
    )
    for name in ("model.onnx", "model.core.onnx"):
        refused(say, f"xexport verify {name}", "does not match its certificate")
        refused(say, f"{PREDICT} --model {name}", "does not match its certificate")


@row("probabilities in the certificate")
def _probabilities(project: Path, say: Say) -> None:
    edit_json(project / "model.certificate.json", lambda facts: facts["reference"][0].update(probabilities=[0.5, 0.5]))
    refused(say, "xexport verify model.onnx --data data", "no longer gives the reference predictions")


@row("the certificate, removed")
def _removed(project: Path, say: Say) -> None:
    (project / "model.certificate.json").unlink()
    refused(say, "xexport verify model.onnx", "certificate not found")
    assert Predictor.open("model.onnx", "cpu").certificate == "none"
    (project / "model.certificate.json").symlink_to("nowhere")
    refused(say, PREDICT, "certificate not found")


@row("model and certificate together, for those of another model")
def _both(project: Path, say: Say) -> None:
    """An attacker's model, whose certificate agrees with it in everything."""
    model = onnx.load(project / "model.onnx")
    gemm = next(node for node in reversed(model.graph.node) if "logits" in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in gemm.input[1:]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    (project / "model.onnx").write_bytes(model.SerializeToString())
    edit_json(
        project / "model.certificate.json",
        lambda facts: facts["models"]["full"].update(sha256=sha256_of(project / "model.onnx")),
    )
    assert say("xexport verify model.onnx")[0] == 0
    refused(say, "xexport verify model.onnx --run runs/first", "no longer gives the reference predictions")


@row("values of another type, NaN, deep nesting in any of these files")
def _types(project: Path, say: Say) -> None:
    """Of each JSON file; the whole kind is in tests/inputs/test_values_from_files.py and tests/fuzz."""
    for name, line in {
        "runs/first/run.json": "xhead compare first",
        "runs/cv/crossval.json": "xhead compare cv",
        "runs/external/eval.json": "xhead compare external",
        "runs/s/sweep.json": SWEEP,
        "model.certificate.json": "xexport verify model.onnx",
    }.items():
        whole = (project / name).read_bytes()
        for content in (b"[" * 100_000, b"[]", b"3", b'{"format": NaN}', b"\xff", b""):
            (project / name).write_bytes(content)
            refused(say, line, Path(name).name, "certificate")
        (project / name).write_bytes(whole)

"""``xexport card`` on real files: what it finds by itself, what it does without, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.conftest import MadeOnce
from tests.edited_runs import edit_run
from tests.export.conftest import Project, invoke
from xfeat.head.cli import main as head_main

pytestmark = pytest.mark.slow

FILES = {"README.md", "card.html", "card.json", "claim-2024.md", "tripod-ai.md", "bom.cdx.json"}
Xexport = Callable[..., Result]


@dataclass(frozen=True)
class Written:
    """A card that was written, and what the command said."""

    folder: Path
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "card.json").read_text()))

    @property
    def rows(self) -> dict[str, str]:
        return {row["id"]: row["text"] for section in self.json["sections"] for row in section["rows"]}

    @property
    def limitations(self) -> str:
        return "\n".join(each["text"] for each in self.json["limitations"])


@pytest.fixture
def card(xexport: Xexport, tmp_path: Path) -> Callable[..., Written]:
    """Write the card of a model into an empty folder."""

    def write(model: Path, *arguments: object) -> Written:
        done = xexport("card", model, "-o", tmp_path / "card", *arguments)
        assert done.exit_code == 0, done.output
        assert {file.name for file in (tmp_path / "card").iterdir()} == FILES
        return Written(tmp_path / "card", done.stderr)

    return write


@pytest.fixture
def refused(xexport: Xexport, tmp_path: Path) -> Callable[..., str]:
    """Ask for a card that cannot be written: one message, no traceback, no file."""

    def ask(model: Path, *arguments: object) -> str:
        done = xexport("card", model, "-o", tmp_path / "card", *arguments)
        assert done.exit_code in (1, 2), done.output
        assert done.stderr.count("error: ") == 1 or done.exit_code == 2
        assert not (tmp_path / "card").exists()
        return str(done.stderr)

    return ask


@pytest.fixture(scope="module")
def evaluated(exported: Project, made_once: MadeOnce) -> Path:
    """A test of the run on the training images, which is no external one, and says so."""

    def make(folder: Path) -> None:
        done = invoke(
            head_main, "eval", exported.run.folder, exported.folder / "features.h5", "--runs", folder, "--name", "seen"
        )
        assert done.exit_code == 0, done.output

    return made_once("evaluated", make) / "seen"


def test_the_run_is_found_beside_the_model_and_the_same_card_is_written_again(
    exported: Project, card: Callable[..., Written]
) -> None:
    written = card(exported.model)
    assert "data.disjoint" not in written.rows  # the drawings have no patients
    assert written.rows["data.images"] == "train 24, valid 12, test 12"
    assert written.rows["parity.training"].startswith("12 images")
    before = {name: (written.folder / name).read_bytes() for name in FILES}
    assert {name: (card(exported.model).folder / name).read_bytes() for name in FILES} == before
    assert str(exported.folder) not in "".join(text.decode() for text in before.values())


def test_images_that_were_trained_on_are_no_external_test(
    exported: Project, evaluated: Path, card: Callable[..., Written]
) -> None:
    written = card(exported.model, "--eval", evaluated)
    claim = {item["number"]: item for item in written.json["checklists"]["CLAIM 2024"]}
    assert claim["33"]["status"] == "partly"
    assert "images of seen are training images" in written.limitations


def test_without_the_run_the_card_has_what_model_and_certificate_know(
    exported: Project, tmp_path: Path, card: Callable[..., Written]
) -> None:
    for file in (exported.model, exported.certificate):
        shutil.copy(file, tmp_path)
    written = card(tmp_path / "model.onnx")
    assert "the run of the model was not found" in written.stderr
    assert "metrics.accuracy" in written.rows
    assert "model.training" not in written.rows


def test_without_a_certificate_agreement_is_left_open(
    exported: Project, tmp_path: Path, card: Callable[..., Written]
) -> None:
    shutil.copy(exported.model, tmp_path)
    written = card(tmp_path / "model.onnx")
    assert "no certificate beside" in written.stderr
    assert "There is no certificate" in written.limitations
    assert "parity.torch" not in written.rows


def test_a_model_in_8_bits_says_that_its_metrics_are_those_of_float32(
    exported: Project, quantized: tuple[Path, dict[str, Any]], card: Callable[..., Written]
) -> None:
    written = card(quantized[0], "--run", exported.run.folder)
    assert "this file is int8" in written.limitations
    assert "decided differently" in written.rows["parity.gate"]


def test_a_certificate_of_another_file_is_refused(
    quantized: tuple[Path, dict[str, Any]], exported: Project, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copy(exported.model, tmp_path)
    shutil.copy(quantized[0].with_name("m.int8.certificate.json"), tmp_path / "model.certificate.json")
    assert "does not match its certificate" in refused(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"created": "yesterday"},
        {"created": 5},
        {"versions": ["torch"]},
        {"versions": {"torch": 2}},
        {"milliseconds_an_image": {"torch": "fast"}},
        {"against_torch": {"cpu": {"full": {"images": 3}}}},
        {"against_torch": [1]},
        {"against_training": {"images": "many"}},
        {"gate": {"images": 3}},
        {"models": {"full": {"sha256": "ab"}}},
        {"out_of_distribution": {"noise": {"images": 8}}},
    ],
)
def test_a_damaged_certificate_is_named(copied: Project, refused: Callable[..., str], changes: dict[str, Any]) -> None:
    content = json.loads(copied.certificate.read_text())
    if "models" in changes:
        changes = {"models": {"full": {"sha256": content["models"]["full"]["sha256"]}}}
    copied.certificate.write_text(json.dumps({**content, **changes}))
    message = refused(copied.model)
    assert "certificate cannot be read" in message
    assert "model.certificate.json" in message


@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_run_is_named(
    copied: Project, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.chdir(copied.folder)
    shutil.rmtree(copied.folder / "runs" / "latest")
    edit_run(copied.run.folder, metrics={"valid": {}})
    folder = copied.folder / "runs" / "first"
    assert "damaged run.json" in refused(copied.model, *(["--run", folder] if named else []))


def test_a_run_of_another_model_is_refused_if_it_was_named(copied: Project, refused: Callable[..., str]) -> None:
    edit_run(copied.run.folder, head_sha256="cd" * 32)
    assert "of another model" in refused(copied.model, "--run", copied.folder / "runs" / "first")


def test_a_damaged_evaluation_is_named(
    exported: Project, evaluated: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(evaluated, tmp_path / "changed")
    file = tmp_path / "changed" / "eval.json"
    file.write_text(file.read_text().replace('"images"', '"image"'))
    assert "eval.json" in refused(exported.model, "--eval", tmp_path / "changed")
    assert "eval.json" in refused(exported.model, "--eval", tmp_path / "nothing")


@pytest.mark.parametrize("changed", ["head", "threshold"])
def test_an_evaluation_of_another_model_is_refused(
    copied: Project, evaluated: Path, refused: Callable[..., str], changed: str
) -> None:
    content = json.loads((evaluated / "eval.json").read_text())
    other = copied.folder / "other"
    shutil.copytree(evaluated, other)
    content.pop("content_sha256")
    decided = {"positive": content["classes"][0], "threshold": 0.123}
    changes = {"head": {"head_sha256": "cd" * 32}, "threshold": {"statistics": content["statistics"] | decided}}
    (other / "eval.json").write_text(json.dumps({**content, **changes[changed]}))
    assert "of another model" in refused(copied.model, "--eval", other)


@pytest.mark.parametrize("license", ["two words", "a\nb", "", "<b>"])
def test_a_license_is_an_identifier(exported: Project, refused: Callable[..., str], license: str) -> None:
    assert "not the identifier of a license" in refused(exported.model, "--license", license)


def test_what_an_author_wrote_is_not_replaced(exported: Project, tmp_path: Path, xexport: Xexport) -> None:
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "README.md").write_text("of another project")
    done = xexport("card", exported.model, "-o", folder)
    assert done.exit_code == 1
    assert [file.name for file in folder.iterdir()] == ["README.md"]
    (folder / "README.md").unlink()
    assert xexport("card", exported.model, "-o", folder).exit_code == 0
    (folder / "claim-2024.md").write_text("filled in")
    done = xexport("card", exported.model, "-o", folder)
    assert done.exit_code == 1
    assert "claim-2024.md" in done.stderr
    assert (folder / "claim-2024.md").read_text() == "filled in"


def test_a_file_in_the_way_is_named(exported: Project, tmp_path: Path, xexport: Xexport) -> None:
    (tmp_path / "card").write_text("mine")
    done = xexport("card", exported.model, "-o", tmp_path / "card")
    assert done.exit_code == 1
    assert (tmp_path / "card").read_text() == "mine"

"""Planted label errors, shortcuts and strangers are found; without them nothing of the kind is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.caches import edit_cache
from xfeat.featurize.audit.findings import NOTE, WARNING, Audit, Finding
from xfeat.featurize.audit.report.page import render_page
from xfeat.featurize.audit.report.pictures import Thumbnails
from xfeat.featurize.audit.run import audit_cache
from xfeat.featurize.audit.survey import FILE_FACTS, LEVEL_FACTS, survey_images
from xfeat.featurize.cache.columns import Skipped
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import CacheError

pytestmark = pytest.mark.slow

XRAY = Path(__file__).parents[4] / "shared" / "xray"


def finding(audit: Audit, kind: str) -> Finding:
    (found,) = [one for one in audit.findings if one.kind == kind]
    return found


def kinds(audit: Audit) -> set[str]:
    return {one.kind for one in audit.findings}


def auc_of(audit: Audit, name: str) -> float:
    (probe,) = [one for one in audit.probes if one.name == name]
    return probe.best


@pytest.fixture(scope="module")
def clean_audit(clean: FeatureCache) -> Audit:
    return audit_cache(clean)


@pytest.fixture(scope="module")
def marked_audit(tmp_path_factory: pytest.TempPathFactory, drawing: SimpleNamespace) -> Audit:
    folder = tmp_path_factory.mktemp("flagged")
    drawn = drawing.DrawnSet(folder / "data")
    drawing.fill(drawn, each=60, marker=True)
    return audit_cache(drawn.cache(folder / "features.h5"))


def test_flipped_labels_rank_first(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=60)
    flipped = {3, 47, 70, 111}
    drawn.rows = [
        (path, 1 - label if number in flipped else label, split, group)
        for number, (path, label, split, group) in enumerate(drawn.rows)
    ]
    names = {drawn.rows[number][0] for number in flipped}
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    found = finding(audit, "labels.suspect")
    assert {audit.cache.columns.path[flagged.row] for flagged in found.images[:4]} == names
    assert [flagged.score for flagged in found.images] == sorted(flagged.score for flagged in found.images)
    assert found.severity == WARNING


@pytest.mark.slow
def test_right_labels_are_not_suspected(clean_audit: Audit) -> None:
    assert "labels.suspect" not in kinds(clean_audit)
    assert auc_of(clean_audit, "features") > 0.99


def test_a_marker_in_the_corner_shows_in_the_border(marked_audit: Audit) -> None:
    assert auc_of(marked_audit, "border") > 0.97
    assert auc_of(marked_audit, "centre-blacked-out") > 0.97
    found = finding(marked_audit, "shortcut")
    assert found.severity == WARNING
    assert "border alone" in found.title
    for words in ("source of an image", "test on images of another hospital"):
        assert words in found.meaning + found.fix


def test_a_shortcut_is_no_failure(marked_audit: Audit) -> None:
    assert marked_audit.passed


def test_without_a_marker_the_border_is_near_chance(clean_audit: Audit) -> None:
    assert 0.3 < auc_of(clean_audit, "border") < 0.7
    assert 0.3 < auc_of(clean_audit, "centre-blacked-out") < 0.7
    shortcut = [one for one in clean_audit.findings if one.kind == "shortcut"]
    assert all("border" not in one.title and "centre" not in one.title for one in shortcut)


@pytest.mark.slow
def test_another_file_format_for_one_class_shows_in_the_file(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    for label, name in enumerate(("clear", "disc")):
        for number in range(30):
            image = drawing.draw(1000 * label + number)
            kind = "JPEG" if label and number % 10 else "PNG"
            content = drawing.encode(image, kind)
            drawn.add(f"train/{name}/{number}.{kind.lower()}", content, label=label, split=0, group=f"{name}{number}")
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert auc_of(audit, "file") > 0.9
    assert "file size and format" in finding(audit, "shortcut").title


@pytest.mark.slow
def test_folds_keep_groups_together(tmp_path: Path, drawing: SimpleNamespace) -> None:
    """Six patients, many images each, labels at random by patient: only leaking folds could tell the label."""
    drawn = drawing.DrawnSet(tmp_path / "data")
    rng = np.random.default_rng(0)
    for patient in range(24):
        image = drawing.draw(patient)
        for number in range(6):
            noisy = np.asarray(image, np.float32) + rng.normal(0, 6, (96, 96))
            picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            label = patient % 2
            name = ("clear", "disc")[label]
            drawn.add(f"train/{name}/{patient}-{number}.png", picture, label=label, split=0, group=f"p{patient}")
    grouped = audit_cache(drawn.cache(tmp_path / "f.h5"))
    drawn.rows = [(path, label, split, "") for path, label, split, _ in drawn.rows]
    by_image = audit_cache(drawn.cache(tmp_path / "g.h5"))
    assert auc_of(by_image, "features") > 0.95
    assert auc_of(grouped, "features") < 0.75


@pytest.mark.slow
def test_a_stranger_is_an_outlier(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=40)
    board = Image.fromarray((np.indices((96, 96)).sum(axis=0) // 12 % 2 * 255).astype(np.uint8))
    drawn.add("train/clear/board.png", board, label=0, split=0, group="board")
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    found = finding(audit, "outliers")
    assert found.severity == NOTE
    assert audit.cache.columns.path[found.images[0].row] == "train/clear/board.png"


@pytest.mark.slow
def test_counts_are_judged(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data", class_names=("clear", "disc", "rare"))
    for number in range(60):
        part = (0, 0, 0, 0, 2)[number % 5]
        folder = ("train", "valid", "test")[part]
        drawn.add(f"{folder}/clear/{number}.png", drawing.draw(number), label=0, split=part, group=f"c{number}")
    for number in range(6):
        drawn.add(f"train/disc/{number}.png", drawing.draw(100 + number, 1), label=1, split=0, group=f"d{number}")
    drawn.add("train/rare/0.png", drawing.draw(200), label=2, split=0, group="r0")
    drawn.skipped = [Skipped("test/clear/x.png", "the file is empty")]
    drawn.truncated = {"train/rare/0.png"}
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert "disc (6), rare (1)" in finding(audit, "balance.tiny-class").title
    assert "48 times as many" in finding(audit, "balance.lopsided").title
    assert "no disc in test, rare in test" in finding(audit, "splits.class-missing").title
    assert "12 test images" in finding(audit, "splits.small-test").title
    assert list(finding(audit, "files.skipped").lines) == ["test/clear/x.png: the file is empty"]
    assert len(finding(audit, "files.truncated").images) == 1
    # A class with one patient cannot be asked about out of fold; the others still are.
    assert set(audit.probes[0].auc) == {"disc"}
    # "clear" is also the name of a method of Python's dict, which a template can mistake for a missing count.
    assert "<td>48<div" in render_page(audit)


@pytest.mark.slow
def test_random_labels_give_no_suspects(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    for number in range(80):
        label = number % 2
        drawn.add(f"train/{label}/{number}.png", drawing.draw(number), label=label, split=0, group=f"g{number}")
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert "labels.suspect" not in kinds(audit)
    assert "do not separate the classes" in finding(audit, "labels.unmeasured").title


def test_a_page_can_be_made_of_rows_without_label_and_classes_missing_from_a_split(
    tmp_path: Path, drawing: SimpleNamespace
) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=6)
    for number in range(3):
        drawn.add(f"loose/{number}.png", drawing.draw(300 + number), label=-1, split=255)
    assert "<th>none</th>" in render_page(audit_cache(drawn.cache(tmp_path / "f.h5")))


@pytest.mark.parametrize(
    "change", [lambda old, new: new, lambda old, new: old + b"x", lambda old, new: old[:-1] + b"x"]
)
def test_a_file_that_changed_since_is_reported_and_left_out(
    tmp_path: Path, drawing: SimpleNamespace, change: Callable[[bytes, bytes], bytes]
) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10)
    cache = drawn.cache(tmp_path / "f.h5")
    image = tmp_path / "data" / "train" / "clear" / "000.png"
    image.write_bytes(change(image.read_bytes(), drawing.encode(drawing.draw(9999), "JPEG")))
    audit = audit_cache(cache)
    assert list(finding(audit, "files.changed").lines) == ["train/clear/000.png"]
    assert (audit.images_read, "files.gone" in kinds(audit)) == (len(cache) - 1, False)


def test_images_in_an_archive_are_looked_at_without_unpacking(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10)
    drawn.cache(tmp_path / "f.h5")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "data")
    edit_cache(tmp_path / "f.h5", data_root=str(tmp_path / "packed.zip"))
    shutil.rmtree(tmp_path / "data")
    assert audit_cache(FeatureCache.open(tmp_path / "f.h5")).images_read == 20


def test_a_border_that_is_black_everywhere_tells_nothing(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    for label, name in enumerate(drawn.class_names):
        for number in range(12):
            frame = Image.new("L", (96, 96))
            frame.paste(drawing.draw(1000 * label + number, label).resize((64, 64)), (16, 16))
            drawn.add(f"train/{name}/{number}.png", frame, label=label, split=0, group=f"{name}{number}")
    assert auc_of(audit_cache(drawn.cache(tmp_path / "f.h5")), "border") == 0.5


@pytest.mark.parametrize(
    ("cut", "border", "around"),
    [({}, 1.0, 1.0), ({"crop": 0.05}, 1.0, 1.0), ({"crop": 0.12}, 0.5, 1.0), ({"crop": 0.17}, 0.5, 0.5)],
    ids=str,
)
@pytest.mark.parametrize("low", [60, 119], ids=["noisy", "plain"])
def test_what_is_cut_off_tells_nothing(
    tmp_path: Path, drawing: SimpleNamespace, cut: dict[str, float], border: float, around: float, low: int
) -> None:
    """A bar over 14 % of one class's height; the drawings fill the rest of the picture with the class in its middle."""
    drawn = drawing.DrawnSet(tmp_path / "data")
    for label, name in enumerate(drawn.class_names):
        for number in range(12):
            noise = np.random.default_rng(number + 50 * label).integers(low, 120, (100, 100), dtype=np.uint8)
            picture = Image.fromarray(noise)
            picture.paste(drawing.draw(1000 * label + number, label).resize((40, 40)), (30, 30))
            if label:
                picture.paste(255, (0, 0, 100, 14))
            drawn.add(f"train/{name}/{number}.png", picture, label=label, split=0, group=f"{name}{number}")
    audit = audit_cache(drawn.cache(tmp_path / "f.h5", **cut))
    assert (auc_of(audit, "border"), auc_of(audit, "centre-blacked-out")) == (border, around)
    if "shortcut" in kinds(audit):
        assert ("xfeat featurize DATA --crop 0.12" in finding(audit, "shortcut").fix) == (not cut)
    for probe in ("border", "centre-blacked-out"):
        assert Thumbnails(audit.cache).seen_by(probe, 0).startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("images", [1, 3])
def test_a_handful_of_images_is_audited_without_probes(tmp_path: Path, drawing: SimpleNamespace, images: int) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=images)
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert audit.probes == []
    assert "shortcut.unmeasured" in kinds(audit)


def test_unlabelled_images_are_audited_for_copies(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data", class_names=())
    for number in range(8):
        drawn.add(f"{number}.png", drawing.draw(number), label=-1, split=255)
    drawn.add("again.jpg", drawing.encode(drawing.draw(3), "JPEG"), label=-1, split=255)
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert len(finding(audit, "duplicates.inside").pairs) == 1
    assert audit.passed


def test_values_that_are_not_finite_are_refused(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=5)
    drawn.cache(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["features"][3, 7] = np.nan
    with pytest.raises(CacheError, match="not finite"):
        audit_cache(FeatureCache.open(tmp_path / "f.h5"))


def test_the_survey_sees_sizes_and_grey_levels(tmp_path: Path, drawing: SimpleNamespace) -> None:
    """The references are Pillow's size and numpy's mean and percentiles of the image as drawn."""
    drawn = drawing.DrawnSet(tmp_path / "data")
    image = drawing.draw(5).resize((300, 200))
    drawn.add("train/clear/0.png", image, label=0, split=0)
    survey = survey_images(drawn.cache(tmp_path / "f.h5"))
    facts = dict(zip(FILE_FACTS, np.exp(survey.file_facts[0]), strict=True))
    levels = dict(zip(LEVEL_FACTS, survey.level_facts[0], strict=True))
    assert survey.kind == ["PNG L"]
    assert (facts["width"], facts["height"]) == pytest.approx((300, 200), rel=1e-4)
    assert facts["bytes"] == pytest.approx((tmp_path / "data" / "train/clear/0.png").stat().st_size, rel=1e-4)
    assert levels["mean"] == pytest.approx(np.asarray(image).mean(), abs=0.6)
    assert levels["p50"] == pytest.approx(np.median(np.asarray(image)), abs=1.5)
    assert levels["colour"] == 0
    assert survey.seen[0].tolist() == [0, 0, 32, 32]


def test_the_survey_measures_grey_levels_in_the_box(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn, image = drawing.DrawnSet(tmp_path / "data"), Image.new("RGB", (400, 200), (255, 0, 0))
    image.paste((80, 80, 80), (140, 40, 260, 160))
    drawn.add("train/clear/0.jpg", drawing.encode(image, "JPEG", quality=95), label=0, split=0)
    survey = survey_images(drawn.cache(tmp_path / "f.h5", resize="crop", crop=0.2))
    levels = dict(zip(LEVEL_FACTS, survey.level_facts[0], strict=True))
    assert (levels["mean"], levels["colour"]) == (pytest.approx(80, abs=2), pytest.approx(0, abs=3))
    assert survey.seen[0].tolist() == [11, 6, 21, 26]


@pytest.mark.xray
@pytest.mark.slow
@pytest.mark.skipif(not XRAY.is_dir(), reason="the real X-rays are not in ../shared/xray")
def test_the_real_xrays_show_their_label_without_the_lungs(tmp_path: Path, drawing: SimpleNamespace) -> None:
    from xfeat.featurize.datasets.layouts import open_dataset

    dataset = open_dataset(XRAY, classes=["covid", "normal"])
    drawn = drawing.DrawnSet(tmp_path / "data", class_names=dataset.class_names)
    for entry in dataset.entries:
        content = (dataset.root / entry.path).read_bytes()
        drawn.add(entry.path, content, label=entry.label, split=entry.split, group=entry.group)
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert auc_of(audit, "border") > 0.85
    assert auc_of(audit, "centre-blacked-out") > 0.88
    assert auc_of(audit, "file") > 0.95
    assert "shortcut" in kinds(audit)
    assert audit.passed

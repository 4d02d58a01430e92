"""Planted leaks are found, each by its kind, and unrelated images of one class are not taken for copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from xfeat.featurize.audit import neighbours as neighbours_module
from xfeat.featurize.audit.duplicates import detail_correlation, near_duplicates, same_files
from xfeat.featurize.audit.findings import FAILURE, NOTE, WARNING, Audit, Finding
from xfeat.featurize.audit.neighbours import nearest_neighbours
from xfeat.featurize.audit.run import audit_cache
from xfeat.featurize.audit.survey import Survey
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.datasets.layouts import NO_SPLIT


def finding(audit: Audit, kind: str) -> Finding:
    (found,) = [one for one in audit.findings if one.kind == kind]
    return found


def kinds(audit: Audit) -> set[str]:
    return {one.kind for one in audit.findings}


def paths_of(audit: Audit, one: Finding) -> set[frozenset[str]]:
    path = audit.cache.columns.path
    return {frozenset((path[pair.first], path[pair.second])) for pair in one.pairs}


@pytest.fixture(scope="module")
def leaky_audit(leaky: FeatureCache) -> Audit:
    return audit_cache(leaky)


def test_an_exact_copy_in_another_split_is_a_failure(leaky_audit: Audit) -> None:
    found = finding(leaky_audit, "leakage.same-file")
    assert found.severity == FAILURE
    assert paths_of(leaky_audit, found) == {frozenset(("train/clear/000.png", "test/clear/copy.png"))}


def test_copies_that_were_saved_again_mirrored_brightened_cropped_or_turned_are_failures_and_nothing_else_is(
    leaky_audit: Audit,
) -> None:
    found = finding(leaky_audit, "leakage.near-duplicate")
    assert found.severity == FAILURE
    assert paths_of(leaky_audit, found) == {
        frozenset(("train/clear/001.png", "test/clear/saved-again.jpg")),
        frozenset(("train/clear/002.png", "valid/clear/mirrored.png")),
        frozenset(("train/clear/005.png", "test/clear/brighter.jpg")),
        frozenset(("train/clear/010.png", "test/clear/cropped.jpg")),
        frozenset(("train/clear/011.png", "valid/clear/turned.png")),
    }
    how = {leaky_audit.cache.columns.path[pair.first]: pair.how for pair in found.pairs}
    how |= {leaky_audit.cache.columns.path[pair.second]: pair.how for pair in found.pairs}
    assert how["valid/clear/mirrored.png"] == "the same image, mirrored"
    assert how["test/clear/cropped.jpg"] == how["valid/clear/turned.png"]
    assert how["test/clear/cropped.jpg"] == "the same image, cropped, rotated or stretched"
    assert how["test/clear/saved-again.jpg"] == "the same image, saved again"


def test_a_group_in_two_splits_is_a_failure(leaky_audit: Audit) -> None:
    found = finding(leaky_audit, "leakage.group")
    assert found.severity == FAILURE
    assert paths_of(leaky_audit, found) == {frozenset(("train/clear/006.png", "test/clear/again.png"))}
    assert not leaky_audit.passed
    assert len(leaky_audit.failures) == 3


def test_failures_come_first(leaky_audit: Audit) -> None:
    order = [("failure", "warning", "note").index(one.severity) for one in leaky_audit.findings]
    assert order == sorted(order)


@pytest.mark.slow
def test_unrelated_images_that_share_their_coarse_shape_pass(clean: FeatureCache) -> None:
    audit = audit_cache(clean)
    assert audit.passed
    assert not any(kind.startswith(("leakage", "duplicates")) for kind in kinds(audit))


def test_copies_with_two_labels_are_a_warning_even_inside_a_split(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10)
    drawn.add("train/disc/same.png", drawing.encode(drawing.draw(0), "PNG"), label=1, split=0, group="x")
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    found = finding(audit, "duplicates.labels")
    assert found.severity == WARNING
    assert paths_of(audit, found) == {frozenset(("train/clear/000.png", "train/disc/same.png"))}
    assert "duplicates.inside" not in kinds(audit)
    assert audit.passed


def test_copies_inside_a_split_are_a_note(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10)
    jpeg = drawing.encode(drawing.draw(1), "JPEG", quality=60)
    drawn.add("train/clear/again.jpg", jpeg, label=0, split=0, group="clear1")
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert finding(audit, "duplicates.inside").severity == NOTE
    assert audit.passed


def test_before_a_split_near_duplicates_of_different_groups_are_a_warning(
    tmp_path: Path, drawing: SimpleNamespace
) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10, split=NO_SPLIT)
    jpeg = drawing.encode(drawing.draw(1), "JPEG", quality=60)
    drawn.add("clear/again.jpg", jpeg, label=0, split=NO_SPLIT, group="other")
    audit = audit_cache(drawn.cache(tmp_path / "f.h5"))
    assert finding(audit, "duplicates.inside").severity == WARNING
    assert finding(audit, "splits.none").severity == NOTE


def test_with_the_files_gone_close_features_are_a_warning_and_not_a_failure(
    tmp_path: Path, drawing: SimpleNamespace
) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10)
    png = drawing.encode(drawing.draw(0), "PNG", compress_level=1)
    drawn.add("test/clear/other.png", png, label=0, split=2, group="other")
    cache = drawn.cache(tmp_path / "f.h5")
    shutil.rmtree(tmp_path / "data")
    audit = audit_cache(cache)
    assert audit.images_read == 0
    assert audit.passed
    found = finding(audit, "leakage.unconfirmed")
    assert frozenset(("train/clear/000.png", "test/clear/other.png")) in paths_of(audit, found)
    assert len(finding(audit, "files.gone").lines) == 21


def test_views_are_audited_by_their_clean_view(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10)
    drawn.add("test/clear/m.jpg", drawing.encode(drawing.draw(0), "JPEG", quality=70), label=0, split=2, group="m")
    cache = drawn.cache(tmp_path / "f.h5", views=3)
    assert cache.features.ndim == 3
    assert "leakage.near-duplicate" in kinds(audit_cache(cache))


def test_rows_without_group_are_reported_as_unchecked(tmp_path: Path, drawing: SimpleNamespace) -> None:
    drawn = drawing.DrawnSet(tmp_path / "data")
    drawing.fill(drawn, each=10, grouped=False)
    found = finding(audit_cache(drawn.cache(tmp_path / "f.h5")), "groups.unknown")
    assert found.severity == WARNING
    assert found.title.startswith("No image has a group")
    assert "--groups" in found.fix


@pytest.mark.slow
def test_the_phantoms_of_the_project_leak_nothing(tmp_path: Path, drawing: SimpleNamespace) -> None:
    from xfeat.featurize.datasets.layouts import open_dataset

    dataset = open_dataset(Path(__file__).parents[3] / "data")
    drawn = drawing.DrawnSet(tmp_path / "data", class_names=dataset.class_names)
    for entry in dataset.entries:
        content = (dataset.root / entry.path).read_bytes()
        drawn.add(entry.path, content, label=entry.label, split=entry.split, group=entry.group)
    assert audit_cache(drawn.cache(tmp_path / "f.h5")).passed


# The parts


def test_copies_are_paired_with_the_first_of_their_content() -> None:
    first, pairs = same_files(["a", "b", "a", "c", "a", "b"])
    assert first.tolist() == [0, 1, 3]
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 2), (0, 4), (1, 5)]


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(2, 40), count=st.integers(1, 6))
def test_neighbours_are_those_of_the_whole_matrix(rows: int, count: int) -> None:
    """The reference is a sorted matrix of all cosines."""
    features = np.random.default_rng(rows).normal(size=(rows + 5, 12)).astype(np.float32)
    found, cosines = nearest_neighbours(features, np.arange(5, rows + 5), count)
    unit = features[5:] / np.linalg.norm(features[5:], axis=1, keepdims=True)
    matrix = unit @ unit.T
    np.fill_diagonal(matrix, -np.inf)
    expected = np.argsort(-matrix, axis=1)[:, : min(count, rows - 1)]
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(cosines, np.take_along_axis(matrix, expected, axis=1), atol=1e-5)


def test_among_many_rows_the_components_find_what_all_features_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the exact search; the cosines must be those of the features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 200)).astype(np.float32) * np.linspace(3, 0.1, 200, dtype=np.float32)
    features[150:] = features[:150] + rng.normal(0, 0.2, (150, 200))
    rows = np.arange(300)
    exact, exact_cosines = nearest_neighbours(features, rows, 5)
    monkeypatch.setattr(neighbours_module, "_BLOCK", 250)
    found, cosines = nearest_neighbours(features, rows, 5)
    assert np.array_equal(found[:, 0], exact[:, 0])
    assert found[:150, 0].tolist() == list(range(150, 300))
    np.testing.assert_allclose(cosines[:, 0], exact_cosines[:, 0], atol=1e-5)
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_one_row_has_no_neighbours() -> None:
    found, cosines = nearest_neighbours(np.ones((3, 4), np.float32), np.array([1]), 5)
    assert found.shape == cosines.shape == (1, 0)


def test_detail_correlation_is_the_correlation_of_what_a_blur_takes_away() -> None:
    """The reference is numpy's corrcoef on each pair, one by one."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (8, 32, 32), dtype=np.uint8)
    second = rng.integers(0, 256, (8, 32, 32), dtype=np.uint8)
    second[0], second[1] = first[0], first[1, :, ::-1]
    second[2] = first[2] // 2 + 40
    second[3], second[4] = 255 - first[3], 255 - first[4, :, ::-1]
    measured, mirrored, inverted = detail_correlation(first, second)
    for number in range(8):
        fine = [
            (image.astype(np.float32) - gaussian_filter(image.astype(np.float32), 1.5)).ravel()
            for image in (first[number], second[number], second[number, :, ::-1])
        ]
        straight, flipped = np.corrcoef(fine)[0, 1:]
        assert measured[number] == pytest.approx(max(abs(straight), abs(flipped)), abs=1e-4)
        assert mirrored[number] == (abs(flipped) > abs(straight))
        assert inverted[number] == ((flipped if mirrored[number] else straight) < 0)
    assert measured[:5] == pytest.approx(1, abs=1e-3)
    assert mirrored[:5].tolist() == [False, True, False, False, True]
    assert inverted[:5].tolist() == [False, False, False, True, True]


def test_an_inverted_neighbour_is_reported_as_an_inverted_duplicate() -> None:
    """As MONOCHROME1 taken for MONOCHROME2: three pictures, of which the second is the first in negative."""
    grey = np.random.default_rng(1).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    grey[1] = 255 - grey[0]
    fine = grey.repeat(2, axis=1).repeat(2, axis=2)
    whole, nothing = np.full((3, 4), (0, 0, 32, 32), np.uint8), np.zeros((3, 0), np.float32)
    survey = Survey(grey, fine, whole, nothing, nothing, [""] * 3, np.ones(3, np.bool_), np.zeros(3, np.bool_))
    neighbours, cosines = np.array([[1, 2], [0, 2], [0, 1]]), np.full((3, 2), 0.9, np.float32)
    confirmed, unconfirmed = near_duplicates(np.arange(3), neighbours, cosines, survey)
    assert [(pair.first, pair.second, pair.how) for pair in confirmed] == [
        (0, 1, "the same image, black and white exchanged")
    ]
    assert unconfirmed == []


@pytest.mark.slow
def test_a_long_registration_of_many_pairs_is_announced(
    leaky: FeatureCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfeat.featurize.audit.duplicates._MANY_PAIRS", 50)
    with caplog.at_level("INFO", "xfeat.featurize"):
        audit_cache(leaky)
    assert " pairs of images by registration (about " in caplog.text


def test_plain_images_agree_with_nothing() -> None:
    plain = np.full((2, 32, 32), 128, np.uint8)
    plain[1, 0, 0] = 129
    assert detail_correlation(plain, plain)[0].tolist() == [0, 0]

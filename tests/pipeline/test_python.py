"""From images in memory to predictions with scikit-learn: the extractor, exported classifiers, other processes."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xfeat
from xfeat.featurize.errors import MismatchError, SpecError

ROOT = Path(__file__).parents[2]
BACKBONE = "efficientnet-lite0"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the drawings, one of them with 12 bits and one turned."""
    folder = tmp_path_factory.mktemp("python") / "data"
    for split in ("train", "test"):
        for file in sorted((ROOT / "data" / split).glob("*/*.jpg"))[::4]:
            target = folder / split / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    first = next((folder / "test").glob("*/*.jpg"))
    grey = np.asarray(Image.open(first).convert("L"))
    Image.fromarray(grey.astype(np.uint16) << 4).save(first.with_suffix(".png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(first).save(first.with_name("turned.jpg"), exif=exif)
    return folder


@pytest.fixture(scope="module")
def cache(data: Path) -> Any:
    return xfeat.extract(data, data.parent / "features.h5", backbone=BACKBONE, crop=0.05)


@pytest.fixture(scope="module")
def extractor(cache: Any) -> Any:
    return cache.extractor()


def paths_of(cache: Any, data: Path) -> list[str]:
    return [str(data / path) for path in cache.columns.path]


def test_features_of_files_have_the_bits_of_the_cache(cache: Any, data: Path, extractor: Any) -> None:
    paths = paths_of(cache, data)
    assert cache.spec.preprocess.grey_bits == 12
    assert extractor.spec == cache.spec
    found = extractor.transform(paths)
    assert found.dtype == np.float32
    assert np.array_equal(found, cache.features)
    few = [0, 3, 5]
    kinds = [paths[few[0]], Path(paths[few[1]]).read_bytes(), Image.open(paths[few[2]])]
    assert np.array_equal(extractor.transform(kinds), cache.features[few])


def test_fit_finds_the_range_of_16_bit_images(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep = [str(next((data / "test").glob("*/*.png")))]
    extractor = xfeat.FeatureExtractor(BACKBONE)
    with caplog.at_level(logging.WARNING):
        unfitted = extractor.transform(deep)
    assert "read as 12-bit" in caplog.text
    caplog.clear()
    assert np.array_equal(extractor.fit(deep).transform(deep), unfitted)
    assert extractor.grey_bits_ == extractor.spec.preprocess.grey_bits == 12
    assert not caplog.records


def test_copies_pickles_threads_and_processes_compute_the_same(cache: Any, data: Path, extractor: Any) -> None:
    paths, expected = paths_of(cache, data)[:3], cache.features[:3]
    assert np.array_equal(clone(extractor).transform(paths), expected)
    for backend in ("threading", "loky"):
        with Parallel(2, backend=backend) as parallel:
            found = parallel(delayed(extractor.transform)([path]) for path in paths)
        assert np.array_equal(np.concatenate(found), expected), backend
    table = clone(extractor).set_output(transform="pandas").fit_transform(paths)
    assert list(table)[:2] == ["f0", "f1"]
    changed = clone(extractor).set_params(crop=0.2)
    assert not np.array_equal(changed.transform(paths), expected)
    assert np.array_equal(changed.set_params(crop=extractor.crop).transform(paths), expected)


def test_a_pipeline_from_images_to_one_checked_file(cache: Any, data: Path, tmp_path: Path, extractor: Any) -> None:
    paths = paths_of(cache, data)
    labels = [cache.class_names[code] for code in cache.columns.label]
    pipeline = make_pipeline(clone(extractor), StandardScaler(), LogisticRegression(max_iter=1000))
    pipeline.fit(paths[::2], labels[::2])
    check = [
        str(data / "test" / path) for path in ("clear", "opacity") for path in sorted((data / "test" / path).iterdir())
    ]
    model = tmp_path / "model.onnx"
    X, _, _ = cache.arrays("train")
    done = xfeat.export_onnx(pipeline, extractor, model, check=check, ood=X, positive="opacity", threshold=0.4)
    assert done.training.max_difference < 1e-4
    predictions = xfeat.Predictor(model).predict(check)
    found = np.array([list(each.probabilities.values()) for each in predictions])
    assert np.abs(found - pipeline.predict_proba(check)).max() < 1e-4
    assert [each.label == "opacity" for each in predictions] == (found[:, 1] >= 0.4).tolist()
    assert all(each.ood is not None for each in predictions)
    verified = xfeat.verify(model, data / "test")
    assert (verified.reference, verified.missing_images) == ("certificate", 0)
    said = subprocess.run(
        [Path(sys.executable).with_name("xserve"), "predict", *check, "--model", model, "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(said.stdout)["predictions"] == [each.to_dict() for each in predictions]


def test_arrays_can_be_checked_and_a_failed_check_writes_nothing(cache: Any, tmp_path: Path, extractor: Any) -> None:
    X, y, _ = cache.arrays("train")
    head = xfeat.HeadClassifier(epochs=2).fit(X, y)
    images = [np.full((40, 50), 90, np.uint8), np.full((30, 30, 3), 200, np.uint8)]
    table = cache.to_pandas().query("split == 'train'")
    for of_a_table in (LogisticRegression(max_iter=1000), make_pipeline(StandardScaler(), LogisticRegression())):
        of_a_table.fit(table.filter(regex=r"f\d"), table["label"])  # a warning of scikit-learn would be an error here
        xfeat.export_onnx(of_a_table, extractor, tmp_path / "table.onnx", check=images)
    done = xfeat.export_onnx(head, extractor, tmp_path / "model.onnx", check=images)
    assert sorted(each["path"] for each in json.loads(done.certificate.read_text())["reference"]) == [
        "images[0]",
        "images[1]",
    ]
    unknown = xfeat.FeatureExtractor(BACKBONE, crop=0.05)
    deep = [np.full((40, 40), 4000, np.uint16)]
    with pytest.raises(SpecError, match="the range of 16-bit images is unknown"):
        xfeat.export_onnx(head, unknown, tmp_path / "other.onnx", check=deep)
    images_to_classes = make_pipeline(xfeat.FeatureExtractor(BACKBONE, size=64), LogisticRegression())
    fitted = images_to_classes.fit(images, ["clear", "opacity"])
    for pipeline in (fitted, make_pipeline(fitted[:1], fitted[1:])):  # with another extractor, nested too
        with pytest.raises(MismatchError, match="64×64"):
            xfeat.export_onnx(pipeline, extractor, tmp_path / "other.onnx", check=images)
    for wrong in (head.head_, head, None):
        with pytest.raises(xfeat.XfeatError):
            xfeat.export_onnx(wrong, extractor, tmp_path / "other.onnx", check=[])
    assert not list(tmp_path.glob("other*"))

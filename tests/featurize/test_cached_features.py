"""Ways out of a cache: arrays for scikit-learn, a table for pandas, an extractor of other images."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from tests.caches import extra_column, write_made_up
from tests.featurize.conftest import draw_folder
from tests.featurize.encoders.graphs import MAP, VECTOR, encoder
from xfeat import FeatureExtractor, extract
from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cached_features import CachedFeatures
from xfeat.featurize.datasets.column_choice import ColumnChoice
from xfeat.featurize.datasets.dataframe import manifest_of
from xfeat.featurize.errors import MismatchError, WeightsError, XfeatError

COUNT, DIM = 8, 3
FEATURES = np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float32)
COLUMNS = {
    "label": [0, 1, 0, 1, 0, 1, -1, 0],
    "split": [0, 0, 0, 1, 1, 2, 0, 255],
    "path": [f"{number}.png" for number in range(COUNT)],
    "group": ["a", "a", "b", "b", "", "", "c", "c"],
}


def made(path: Path, features: np.ndarray = FEATURES, **more: object) -> CachedFeatures:
    return CachedFeatures.of(write_made_up(path / "features.h5", features, COLUMNS, ["healthy", "ill"], **more))


@pytest.mark.parametrize(
    ("split", "rows"), [("train", [0, 1, 2]), ("valid", [3, 4]), ("test", [5]), (None, [0, 1, 2, 3, 4, 5, 7])]
)
@pytest.mark.parametrize("kind", ["float32", "float16", "views"])
def test_arrays_are_the_labelled_images_of_a_split(
    tmp_path: Path, split: str | None, rows: list[int], kind: str
) -> None:
    stored = FEATURES.astype(np.float16 if kind == "float16" else np.float32)
    features = np.stack([stored, stored + 1], axis=1) if kind == "views" else stored
    more = {"views": 2} if kind == "views" else {"dtype": kind}
    X, y, groups = made(tmp_path, features, **more).arrays(split)
    assert X.dtype == np.float32
    assert np.array_equal(X, stored[rows])
    assert y.tolist() == [["healthy", "ill"][COLUMNS["label"][row]] for row in rows]
    named = [COLUMNS["group"][row] or row for row in rows]
    assert len(set(groups.tolist())) == len(set(named))


@pytest.mark.parametrize("split", ["training", "", 0, "Train"])
def test_an_unknown_split_is_refused(tmp_path: Path, split: object) -> None:
    with pytest.raises(ValueError, match="unknown split"):
        made(tmp_path).arrays(split)  # type: ignore[arg-type]


def test_a_table_has_all_columns_of_their_kinds(tmp_path: Path) -> None:
    extra = {
        "age": extra_column("number", [30, None, *range(COUNT - 2)]),
        "sex": extra_column("category", ["f", None, *["m"] * (COUNT - 2)]),
        "note": extra_column("text", ["x", None, *["y"] * (COUNT - 2)]),
        "taken": extra_column("date", ["2024-12-31", None, *["2024-01-01"] * (COUNT - 2)]),
    }
    table = made(tmp_path, extra=extra).to_pandas()
    assert list(table) == ["path", "label", "split", "group", *extra, "f0", "f1", "f2"]
    assert np.array_equal(table[["f0", "f1", "f2"]].to_numpy(), FEATURES)
    assert table["age"].dtype == float
    assert table["sex"].dtype == "category"
    assert table["taken"].dtype.kind == "M"
    assert table[list(extra)].iloc[1].isna().all()
    assert table[["label", "split", "group"]].isna().sum().tolist() == [1, 1, 2]
    assert list(made(tmp_path).to_pandas(features=False)) == ["path", "label", "split", "group"]


def test_an_extractor_of_other_weights_or_settings_than_the_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="would compute other features"):
        made(tmp_path).extractor(workers=2)  # no file has the weights of this cache


COPIES: dict[str, Callable[[FeatureExtractor], FeatureExtractor]] = {
    "the extractor itself": lambda extractor: extractor,
    "a clone": clone,
    "a clone of a clone": lambda extractor: clone(clone(extractor)),
    "in a pipeline": lambda extractor: clone(make_pipeline(extractor))[0],
    "a deep copy": copy.deepcopy,
    "a pickle": lambda extractor: pickle.loads(pickle.dumps(extractor)),
    "with another setting": lambda extractor: clone(extractor).set_params(batch_size=2),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("before", ["changed", "copied"])
def test_an_extractor_of_a_cache_opens_the_file_of_the_cache_only(kind: str, before: str, tmp_path: Path) -> None:
    images = list(map(str, draw_folder(tmp_path / "data", 2).rglob("*.png")))
    path = encoder(tmp_path / "encoder.onnx", VECTOR, "vector")
    right, other = path.read_bytes(), encoder(tmp_path / "other.onnx", MAP, "map").read_bytes()
    options = {"backbone": str(path), "normalize": "half", "workers": 1}
    cache = extract(tmp_path / "data", tmp_path / "features.h5", **options)
    extractor = cache.extractor(workers=1)
    if before == "changed":
        path.write_bytes(other)
    taken = COPIES[kind](extractor)
    path.write_bytes(other)
    with pytest.raises((MismatchError, WeightsError), match="SHA-256"):
        taken.transform(images)
    path.write_bytes(right)
    expected = [
        cache.features[cache.columns.path.index(str(Path(image).relative_to(tmp_path / "data")))] for image in images
    ]
    assert np.array_equal(COPIES[kind](cache.extractor(workers=1)).transform(images), expected)


@pytest.mark.parametrize("kind", ["a deep copy", "a pickle", "with another setting"])
def test_a_fitted_extractor_opens_the_file_that_it_was_fitted_with(kind: str, tmp_path: Path) -> None:
    """A clone is not fitted, and takes what it finds."""
    images = [np.zeros((40, 40), np.uint8)]
    path = encoder(tmp_path / "encoder.onnx", VECTOR, "vector")
    extractor = FeatureExtractor(str(path), normalize="half", workers=1).fit(images)
    found = extractor.transform(images)
    taken = COPIES["a pickle"](extractor) if kind == "with another setting" else COPIES[kind](extractor)
    right = path.read_bytes()
    path.write_bytes(encoder(tmp_path / "other.onnx", MAP, "map").read_bytes())
    if kind == "with another setting":
        taken.set_params(batch_size=2)
    with pytest.raises((MismatchError, WeightsError), match="SHA-256"):
        taken.transform(images)
    assert clone(extractor).fit(images).weights_sha256_ != extractor.weights_sha256_
    path.write_bytes(right)
    assert np.array_equal(taken.transform(images), found)


def test_weights_of_an_efficientnet_that_change_before_they_are_opened_are_refused(
    lite0_weights: Weights, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    shutil.copy(lite0_weights.path, file)
    extractor = FeatureExtractor("efficientnet-lite0", weights=file, engine="torch", device="cpu")
    digest = extractor.spec.weights_sha256
    state = torch.load(file, weights_only=True)
    state["_conv_stem.weight"] += 1
    torch.save(state, file)
    with pytest.raises(WeightsError, match="it has changed"):
        extractor.transform([np.zeros((40, 40), np.uint8)])
    with pytest.raises(MismatchError, match=digest):
        clone(extractor).set_params(weights_sha256=digest).transform([np.zeros((40, 40), np.uint8)])


def test_what_is_unclear_of_an_encoder_is_said_once_per_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extractor = FeatureExtractor(str(encoder(tmp_path / "encoder.onnx", VECTOR, "vector")), workers=1)
    images = [np.arange(1600, dtype=np.uint8).reshape(40, 40)]
    for _ in range(2):
        found = extractor.fit(images).transform(images)
        assert extractor.spec.weights_sha256 == extractor.weights_found.sha256
    assert caplog.text.count("does not say how its images were normalised") == 1
    extractor.set_params(mean=np.array([0.5, 0.5, 0.5]))
    assert not np.array_equal(extractor.transform(images), found)
    assert caplog.text.count("ImageNet's std is used") == 1
    assert np.array_equal(extractor.set_params(mean=None).transform(images), found)


def test_a_table_of_pandas_is_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = pandas.DataFrame({"path": ["a.png", "b.png"], "label": ["x", "y"], "group": [1.0, None]})
    where, content = manifest_of(table, ColumnChoice())
    assert where.parent == tmp_path
    assert content.decode() == "path,label,group\na.png,x,1\nb.png,y,\n"
    there = table.assign(path=["/data/one/a.png", "/data/two/b.png"]).set_index("path")
    assert manifest_of(there, ColumnChoice())[0].parent == Path("/data")


WRONG = {
    "a list": ["a.png"],
    "an array": np.zeros(3),
    "no path": pandas.DataFrame({"label": ["x"]}),
    "columns of two levels": pandas.DataFrame({("a", "path"): ["a.png"]}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_table_of_images_is_refused(kind: str) -> None:
    with pytest.raises(XfeatError) as refused:
        manifest_of(WRONG[kind], ColumnChoice())  # type: ignore[arg-type]
    assert isinstance(refused.value, ValueError | TypeError)

"""docs/formats.md says what the code writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np

from xfeat.export.model.metadata import ModelMetadata
from xfeat.featurize.cache.columns import CacheDescription, Columns, Correction
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.specs import FeatureSpec

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
SPEC = FeatureSpec(backbone="efficientnet-lite0", weights_sha256="0" * 64)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}")[1].split("\n## ")[0]


def first_column(text: str) -> set[str]:
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_features_h5_has_the_documented_datasets_and_header(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    columns = Columns(
        label=np.zeros(1, np.int32),
        split=np.zeros(1, np.uint8),
        path=["a.png"],
        group=[""],
        sha256=["0" * 64],
        size=np.ones(1, np.int64),
        mtime_ns=np.ones(1, np.int64),
        change_mark=np.ones(1, np.int64),
        truncated=np.zeros(1, np.bool_),
    )
    write_cache(
        path,
        CacheDescription(
            spec=SPEC,
            class_names=["a", "b"],
            data_root="/data",
            weights_path="/w.pth",
            columns=columns,
            skipped=[],
            corrections=(Correction("a.png", "relabel", "b", ""),),
        ),
        blocks=[(0, np.zeros((1, 4), np.float32))],
        dim=4,
    )
    with h5py.File(path) as file:
        written = set(file) | set(json.loads(file["header"][()]))
        also = set(file.attrs) | set(json.loads(path.read_bytes()[: file.userblock_size]))
    assert first_column(section("features.h5")) == written
    assert all(f"`{name}`" in section("features.h5") for name in also)


def test_the_model_metadata_keys_are_documented() -> None:
    import dataclasses

    text = section("model.onnx")
    for field in dataclasses.fields(ModelMetadata):
        assert f"`{field.name}`" in text, field.name

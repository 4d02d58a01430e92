"""A project whose cache is of version 0.1: every command that uses features works, and featurize makes it version 2."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.caches import as_schema1
from xfeat.export.cli import main as xexport
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cli import main as xfeat
from xfeat.head.cli import main as xhead

if TYPE_CHECKING:
    from conftest import Project

from tests.export.conftest import SIDE, invoke


def answer(command: object, *args: object) -> Any:
    done = invoke(command, *args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_command_uses_a_cache_of_version_1(copied: Project) -> None:
    folder = copied.folder
    expected, file = FeatureCache.open(folder / "features.h5"), as_schema1(folder / "features.h5")
    assert answer(xfeat, "info", file)["schema_version"] == 1
    assert answer(xfeat, "verify", file)["ok"] is True
    assert answer(xfeat, "audit", file)["images"] == len(expected)
    before = answer(xhead, "eval", folder / "runs" / "first", file)
    trained = answer(xhead, "train", "--features", file, "--runs", folder / "runs", "--name", "again", "--epochs", 2)
    assert trained["run"].endswith("again")
    file = file.rename(folder / "renamed.h5")  # found by its content
    done = invoke(xexport, "onnx", folder / "runs" / "first", "-o", folder / "again.onnx")
    assert done.exit_code == 0, done.output
    options = ("--backbone", "efficientnet-lite0", "--weights", folder / "weights.pth", "--size", SIDE)
    found = answer(xfeat, "featurize", folder / "data", "-o", file, *options, "--engine", "torch")
    assert (found["computed"], found["reused"]) == (0, len(expected))
    cache = FeatureCache.open(file)
    assert (cache.schema_version, cache.content_sha256) == (2, expected.content_sha256)
    assert np.array_equal(cache.features, expected.features)
    names = {"data": "", "eval": ""}
    assert answer(xhead, "eval", folder / "runs" / "first", file) | names == before | names

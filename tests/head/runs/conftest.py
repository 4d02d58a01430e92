"""A small run, trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.head.conftest import cache_maker, copied_run
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.head.runs.reader import Run
from xfeat.head.specs import HeadSpec, TrainSpec
from xfeat.head.train import TrainOptions, train_run

SMALL, QUICK = HeadSpec(hidden=(8,)), TrainSpec(epochs=3)


def trained(cache: FeatureCache, tmp_path: Path, name: str | None = "first", **options: Any) -> Run:
    return train_run(cache, SMALL, QUICK, runs=tmp_path / "runs", name=name, options=TrainOptions(**options))


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trained(cache_maker(folder)(), folder)
    return folder


@pytest.fixture
def run(trained_once: Path, tmp_path: Path) -> Run:
    return copied_run(trained_once, tmp_path)

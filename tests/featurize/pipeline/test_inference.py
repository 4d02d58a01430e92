"""The hint for runs that a GPU limits."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator

import numpy as np
import pytest

from xfeat.featurize.cache.shards import FileIdentity
from xfeat.featurize.pipeline import inference
from xfeat.featurize.pipeline.inference import infer
from xfeat.featurize.pipeline.reading import ReadImage
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

SPEC = FeatureSpec(backbone="b", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=32))
COLUMNS = ("engine", "precision", "network_s", "reading_s", "long_run_s", "is_hinted")


class SlowEngine:
    """Takes a time for each batch of two images."""

    batch_size = 2

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self._seconds = seconds

    def features(self, pixels: np.ndarray) -> np.ndarray:
        time.sleep(self._seconds)
        return np.ones((len(pixels), 3), np.float32)


def images(seconds: float) -> Iterator[ReadImage]:
    for number in range(12):
        time.sleep(seconds)
        yield ReadImage("a.png", FileIdentity(1, 1, 1, f"{number:064}", False), np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    COLUMNS,
    [
        ("torch on cuda:0", "float32", 0.03, 0.0, 0.0, True),
        ("torch on cuda:0, torch on cuda:1", "float32", 0.03, 0.0, 0.0, True),
        ("torch on cuda:0", "float16", 0.03, 0.0, 0.0, False),
        ("torch on cuda:0", "float32", 0.0, 0.02, 0.0, False),  # decoding is the limit
        ("torch on cuda:0", "float32", 0.03, 0.0, 30.0, False),  # a short run
        ("onnxruntime on cpu", "float32", 0.03, 0.0, 0.0, False),
    ],
)
def test_a_faster_precision_is_named_only_where_a_gpu_in_float32_is_the_limit(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    precision: str,
    network_s: float,
    reading_s: float,
    long_run_s: float,
    is_hinted: bool,
) -> None:
    monkeypatch.setattr(inference, "_LONG_RUN_S", long_run_s)
    spec = dataclasses.replace(SPEC, precision=precision)
    with caplog.at_level(logging.INFO, "xfeat.featurize.pipeline.inference"):
        outcomes = infer(
            images(reading_s), spec, open_engine=lambda: SlowEngine(engine, network_s), is_known=lambda _: False
        )
        assert sum(len(batch) for batch in outcomes) == 12
    assert caplog.text.count("--precision float16") == is_hinted

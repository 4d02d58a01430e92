"""How work is divided among the machines of a cluster, worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

pytest.importorskip("ray", reason="ray is not installed: pip install 'xfeat-onnx[ray]'")


@pytest.mark.parametrize(
    ("machines", "device", "cores", "expected"),
    [
        ([{"CPU": 64.0}, {"CPU": 8.0}], "auto", None, (18, 4, 0)),
        ([{"CPU": 2.0}, {"CPU": 8.0}], "cpu", None, (5, 2, 0)),
        ([{"CPU": 0.0}, {"CPU": 8.0}, {}], "auto", None, (2, 4, 0)),
        ([{"CPU": 16.0}, {"CPU": 64.0, "GPU": 8.0}], "auto", None, (8, 8, 1)),
        ([{"CPU": 4.0, "GPU": 8.0}], "cuda", None, (4, 1, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], "cpu", None, (16, 4, 0)),
        ([{"CPU": 64.0}, {"CPU": 8.0}], "auto", 32, (8, 4, 0)),
        ([{"CPU": 64.0}, {"CPU": 8.0}], "auto", 6, (1, 4, 0)),
        ([{"CPU": 64.0}], "auto", 3, (1, 3, 0)),
        ([{"CPU": 8.0}], "auto", 1000, (2, 4, 0)),
        ([{"CPU": 64.0, "GPU": 8.0}], "cuda", 16, (2, 8, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], "cuda", 2, (1, 2, 1)),
    ],
)
def test_actors_fill_the_machines_but_take_no_more_cores_than_they_may(
    monkeypatch: pytest.MonkeyPatch,
    machines: list[dict[str, float]],
    device: str,
    cores: int | None,
    expected: tuple[int, int, int],
) -> None:
    """Worked out by hand: four cores an actor, or a GPU and its share of the cores."""
    import ray

    from xfeat.featurize.cluster.connection import plan_actors

    nodes = [{"NodeID": str(index), "Alive": True, "Resources": have} for index, have in enumerate(machines)]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"NodeID": "x", "Alive": False, "Resources": {"CPU": 99.0}}])
    monkeypatch.setattr("xfeat.featurize.cluster.connection._THREADS", 4)
    assert plan_actors(device, cores)[:3] == expected


@pytest.mark.parametrize(
    ("images", "actors", "change", "expected"),
    [
        (1_000_000, 4, {}, 256),
        (100_000, 4, {"views": 64}, 4),
        (1_000_000, 4, {"preprocess": PreprocessSpec(size=448)}, 64),
        (100_000, 4, {"backbone": "efficientnet-b7", "preprocess": PreprocessSpec(size=600)}, 2),
        (1_000_000, 4, {"backbone": "efficientnet-b7", "preprocess": PreprocessSpec(size=600), "views": 64}, 10),
        (100_000_000, 4, {}, 1000),
        (10, 4, {}, 8),
        (160, 4, {}, 10),
    ],
)
def test_a_chunk_takes_about_as_long_whatever_is_computed(
    images: int, actors: int, change: dict[str, Any], expected: int
) -> None:
    """Worked out by hand: 256 images of B0; B7 costs 37 / 0.39 = 95 times as much; never more than 100,000 chunks."""
    from xfeat.featurize.cluster.engine import _chunk_rows, _cost

    spec = dataclasses.replace(FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64), **change)
    weights = Weights(spec.backbone, Path("unused.pth"), spec.weights_sha256)
    assert _chunk_rows(images, actors, _cost(spec, weights)) == expected

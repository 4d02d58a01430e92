"""What takes long tells how far it is, and ends at what it said it would be in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xfeat.export.bench import bench_models
from xfeat.export.export import export_run
from xfeat.export.specs import BenchSpec, VerifySpec
from xfeat.export.verify import verify_model

Said = list[tuple[int, int]]


def check(said: Said) -> int:
    """Return the last number, which must be the total, after numbers that only grow."""
    numbers = [number for number, _ in said]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == said[-1][1]
    return numbers[-1]


def test_a_verification_reads_each_image_and_asks_for_two_answers(exported: Any) -> None:
    said: Said = []
    done = verify_model(exported.model, VerifySpec(data=exported.data), progress=lambda *now: said.append(now))
    images = done.checks["CPUExecutionProvider"]["full"].images
    assert check(said) == images * (1 + 2 * len(done.checks))


def test_a_verification_against_its_run_ends_at_its_total_too(exported: Any) -> None:
    said: Said = []
    verify_model(exported.core, run=exported.run, progress=lambda *now: said.append(now))
    check(said)


@pytest.mark.usefixtures("quick_trace")
def test_an_export_ends_at_its_total(exported: Any, tmp_path: Path) -> None:
    said: Said = []
    export_run(exported.run, tmp_path / "model.onnx", progress=lambda *now: said.append(now))
    check(said)


def test_a_measurement_ends_at_its_total(exported: Any) -> None:
    said: Said = []
    spec = BenchSpec(batches=(1, 2), threads=(1,), seconds=0, providers=("cpu",))
    lines = bench_models([exported.core, exported.model], spec, progress=lambda *now: said.append(now))
    assert check(said) == len(lines) == 4

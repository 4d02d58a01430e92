"""Long operations report progress, and end at the total they announced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xfeat.export.bench import bench_models
from xfeat.export.export import export_run
from xfeat.export.specs import BenchSpec, VerifySpec
from xfeat.export.verify import verify_model

Reports = list[tuple[int, int]]


def check(reports: Reports) -> int:
    """Return the last number, which must be the total; numbers must increase."""
    numbers = [number for number, _ in reports]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == reports[-1][1]
    return numbers[-1]


def test_a_verification_reads_each_image_and_predicts_it_twice(exported: Any) -> None:
    reports: Reports = []
    done = verify_model(exported.model, VerifySpec(data=exported.data), progress=lambda *now: reports.append(now))
    images = done.checks["CPUExecutionProvider"]["full"].images
    assert check(reports) == images * (1 + 2 * len(done.checks))


def test_a_verification_against_a_run_ends_at_its_total(exported: Any) -> None:
    reports: Reports = []
    verify_model(exported.core, run=exported.run, progress=lambda *now: reports.append(now))
    check(reports)


@pytest.mark.usefixtures("quick_trace")
def test_an_export_ends_at_its_total(exported: Any, tmp_path: Path) -> None:
    reports: Reports = []
    export_run(exported.run, tmp_path / "model.onnx", progress=lambda *now: reports.append(now))
    check(reports)


def test_a_benchmark_ends_at_its_total(exported: Any) -> None:
    reports: Reports = []
    spec = BenchSpec(batches=(1, 2), threads=(1,), seconds=0, providers=("cpu",))
    lines = bench_models([exported.core, exported.model], spec, progress=lambda *now: reports.append(now))
    assert check(reports) == len(lines) == 4

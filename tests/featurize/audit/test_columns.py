"""What the audit says of columns: those that are the class, those that predict it, and those that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.caches import extra_column, write_made_up
from xfeat.featurize.audit.columns import column_findings, probe_columns
from xfeat.featurize.audit.findings import ColumnProbe
from xfeat.featurize.cache.extra import ExtraColumn
from xfeat.featurize.cache.reader import FeatureCache

COUNT = 120
LABEL = np.arange(COUNT) % 2
RNG = np.random.default_rng(7)
NOISE = RNG.normal(size=COUNT)
SITES = [f"site {number}" for number in range(6)]

COLUMNS = {
    "hospital": extra_column("category", ["A" if label else "B" for label in LABEL]),
    "one of six": extra_column("category", [SITES[2 * (number % 3) + LABEL[number]] for number in range(COUNT)]),
    "code": extra_column("number", (LABEL * 10).tolist()),
    "nearly": extra_column("category", ["A" if label and n % 30 != 1 else "B" for n, label in enumerate(LABEL)]),
    "in the middle": extra_column("number", np.where(LABEL, 50 + NOISE, 50 + 30 * np.sign(NOISE)).tolist()),
    "late": extra_column("date", [f"2024-0{1 + 6 * int(label)}-{1 + n % 28:02}" for n, label in enumerate(LABEL)]),
    "noise": extra_column("number", NOISE.tolist()),
    "coin": extra_column("category", ["heads" if value > 0 else "tails" for value in RNG.normal(size=COUNT)]),
    "ward": extra_column("category", [f"ward {number // 2}" for number in range(COUNT)]),
    "rare": extra_column("number", [1.0 if n < 4 else None for n in range(COUNT)]),
    "note": extra_column("text", [f"note {n}" for n in range(COUNT)]),
}
CLASS = {"hospital", "one of six", "code"}
STRONG = {"nearly", "in the middle", "late"}


def cached(folder: Path, columns: dict[str, ExtraColumn], *, classes: int = 2) -> FeatureCache:
    label = np.arange(COUNT) % classes
    rows = {
        "label": label,
        "split": np.full(COUNT, 255),
        "path": [f"{n:03}.png" for n in range(COUNT)],
        "group": [f"p{n // 2}" if n % 4 else "" for n in range(COUNT)],
    }
    names = [f"class {number}" for number in range(classes)]
    return write_made_up(folder / "features.h5", np.zeros((COUNT, 2), np.float32), rows, names, extra=columns)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ColumnProbe]:
    cache = cached(tmp_path_factory.mktemp("columns"), COLUMNS)
    return {found.name: found for found in probe_columns(cache)}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_the_class_predicts_it_or_does_not(probes: dict[str, ColumnProbe], name: str) -> None:
    if name == "note":
        assert name not in probes
    elif name == "rare":
        assert probes[name].probe is None
    else:
        found = probes[name]
        assert found.probe is not None
        assert found.is_class == (name in CLASS)
        assert (found.probe.best > 0.9) == (name in CLASS | STRONG)
        assert found.interval[0] <= found.probe.best <= found.interval[1]
        assert (found.interval[0] > 0.5) == (name in CLASS | STRONG)


def test_the_findings_name_the_columns(probes: dict[str, ColumnProbe], tmp_path: Path) -> None:
    of = {finding.kind: finding for finding in column_findings(cached(tmp_path, COLUMNS), list(probes.values()))}
    assert set(of) == {"columns.class", "columns.shortcut", "columns.known"}
    assert of["columns.class"].title.startswith("hospital, one of six, code: each value")
    assert all(name in of["columns.shortcut"].title for name in STRONG)
    assert "noise" not in of["columns.shortcut"].title
    said = "\n".join(of["columns.known"].lines)
    assert "label from rare: not measured" in said
    assert "no more than chance" in said
    assert "11 further columns" in of["columns.known"].title


def test_a_cache_without_columns_has_no_findings(tmp_path: Path) -> None:
    assert list(column_findings(cached(tmp_path, {}), [])) == []


def test_one_of_three_classes_is_named(tmp_path: Path) -> None:
    third = extra_column("category", ["yes" if n % 3 == 2 else "no" for n in range(COUNT)])
    cache = cached(tmp_path, {"third": third}, classes=3)
    probes = probe_columns(cache)
    assert not probes[0].is_class
    assert any("third: 1.000 for class 2" in finding.title for finding in column_findings(cache, probes))

"""How many cores there are in a container: the control groups of Linux, of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from xfeat.featurize.system.cores import cores, cpu_quota

V1 = "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/docker/1\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {}, None, id="no limit is set"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="no limit by name"),
        pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="two cores"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 2, id="a part counts as one more"),
        pytest.param("0::/\n", {"cpu.max": "5000 100000\n"}, 1, id="less than one core"),
        pytest.param(
            "0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3, id="of the one above"
        ),
        pytest.param(
            "0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1, id="the smaller of two"
        ),
        pytest.param("0::/system.slice/x\n", {"cpu.max": "100000 100000"}, 1, id="a path from outside the container"),
        pytest.param(
            V1,
            {"cpu,cpuacct/docker/1/cpu.cfs_quota_us": "200000", "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000"},
            2,
            id="version 1",
        ),
        pytest.param(
            V1,
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
            id="version 1 without a limit",
        ),
        pytest.param("0::/\n", {"cpu.max": "garbage"}, None, id="cannot be read"),
        pytest.param("garbage", {}, None, id="no list of groups"),
        pytest.param(None, {}, None, id="no control groups: another system"),
    ],
)
def test_the_quota_of_a_container_is_a_number_of_cores(
    groups: str | None, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    if groups is not None:
        (tmp_path / "self").write_text(groups)
    assert cpu_quota(tmp_path / "self", tmp_path) == expected


def test_there_is_a_core() -> None:
    assert cores() >= 1

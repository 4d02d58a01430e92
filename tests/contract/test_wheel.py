"""The wheel: one package lands in site-packages, with all its files, and it serves where nothing else is installed."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import onnx
import pytest
from PIL import Image

from tests.serve.conftest import build_model, describe

ROOT = Path(__file__).parents[2]
# What a page or a report is made of; Python files are found by the imports of the second test.
DATA_FILES = {
    "xfeat/py.typed",
    "xfeat/featurize/audit/report/template.html",
    "xfeat/featurize/pages/page.html",
    "xfeat/featurize/pages/style.css",
    "xfeat/head/compare/template.html",
    "xfeat/head/crossval/template.html",
    "xfeat/head/reports/templates/report.html",
    "xfeat/serve/page/index.html",
}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: setuptools leaves folders behind where it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = run("git", "-C", ROOT, "ls-files")
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, folder / "source" / name
        if name.startswith(("xfeat/", "featurize/", "head/", "export/", "serve/")) or "/" not in name:
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(source.readlink())
            elif source.is_file():
                target.write_bytes(source.read_bytes())
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
    done = run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, folder / "source")
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_one_package_and_its_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith("xfeat_onnx-")
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"xfeat", "xfeat_onnx"}
    assert names >= DATA_FILES
    modules = {name for name in names if name.endswith(".py")}
    packages = ("featurize", "head", "export", "serve")
    there = {f"xfeat/{file.relative_to(ROOT).as_posix()}" for name in packages for file in (ROOT / name).rglob("*.py")}
    assert modules == there | {"xfeat/__init__.py", "xfeat/__main__.py"}


@pytest.mark.slow
def test_the_wheel_serves_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With the extra ``serve`` alone, which has no torch; other distributions bring packages of their own."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[serve]")
    if installed.returncode:
        pytest.skip(f"no package index can be reached: {installed.stderr.strip().splitlines()[-1]}")
    files = run(python, "-m", "pip", "show", "-f", "xfeat-onnx").stdout.partition("Files:\n")[2].split()
    tops = {name.partition("/")[0] for name in files if not name.startswith("../")}
    assert {top.partition("-")[0] for top in tops} == {"xfeat", "xfeat_onnx"}
    [site_packages] = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    assert not {"featurize", "head", "export", "serve", "torch"} & {path.name for path in site_packages.iterdir()}
    onnx.save(build_model(describe()), tmp_path / "model.onnx")
    Image.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / "red.png")
    xserve = python.with_name("xserve")
    answered = run(xserve, "predict", tmp_path / "red.png", "--model", tmp_path / "model.onnx", "--json")
    assert answered.returncode == 0, answered.stderr
    assert '"label"' in answered.stdout

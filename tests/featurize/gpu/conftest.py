"""A driver of NVIDIA with cards as a test wants them: tests/featurize/gpu/driver.c, compiled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xfeat.featurize.gpu import driver

SOURCE = Path(__file__).with_name("driver.c")
NAMES = ("FAKE_CUDA", "FAKE_DRIVER", "FAKE_GPUS", "FAKE_INIT", "FAKE_CONTEXT", "FAKE_CRASH")

UseDriver = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both libraries of the driver, for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the driver of these tests is a C library")
    folder = tmp_path_factory.mktemp("driver")
    for name in (driver.CUDA_LIBRARY, driver.MANAGEMENT_LIBRARY):
        subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-o", folder / name, SOURCE], check=True)
    return folder


@pytest.fixture
def use_driver(driver_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UseDriver]:
    """Return a function that lets this process see a driver; see driver.c for the settings, without ``FAKE_``."""

    def use(**settings: object) -> dict[str, str]:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        chosen = {f"FAKE_{name}": str(value) for name, value in settings.items()}
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(driver, "CUDA_LIBRARY", str(driver_folder / "libcuda.so.1"))
        monkeypatch.setattr(driver, "MANAGEMENT_LIBRARY", str(driver_folder / "libnvidia-ml.so.1"))
        driver.read_driver.cache_clear()
        return chosen

    yield use
    monkeypatch.undo()
    driver.read_driver.cache_clear()

"""For all tests: Ctrl-C means what it means on a terminal, and what is expensive is made once a test run.

Converted networks, one exported model and its INT8 form lie in a folder that all processes of a run share. Nothing in
it is changed by a test: those that change files copy them first.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import xfeat  # noqa: F401  # before onnxruntime, which tests import first: it would report them
from tests.readme import run_shown

# A shell that starts the tests in the background makes them, and every program that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape captured text that is not UTF-8, such as file names in logs: the processes of a run cannot exchange it."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of this test run, the same one in all its processes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made_once(shared_folder: Path) -> MadeOnce:
    """Return a function that gives a folder, filled by the first process that asks for it; the others wait.

    Source: "Making session-scoped fixtures execute only once" in the documentation of pytest-xdist.
    """

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared_folder / name, shared_folder / f"{name}.done"
        with FileLock(shared_folder / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()  # fails where an earlier attempt did: half of a folder is none
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def graphs(shared_folder: Path) -> Iterator[Path]:
    """Keep converted networks of this test run to itself, and give them to the programs that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XFEAT_CACHE_DIR", str(shared_folder / "graphs"))
        yield shared_folder / "graphs"


@pytest.fixture(scope="session")
def lite0_at_32(made_once: MadeOnce, graphs: Path) -> None:
    """See to it that Lite0 for pictures of 32 pixels is converted, so that no two processes do it at a time."""

    def convert(folder: Path) -> None:
        from xfeat.featurize.backbones.weights import find_weights
        from xfeat.featurize.engines.feature_graph import graph_file
        from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

        weights = find_weights("efficientnet-lite0")
        preprocess = PreprocessSpec(size=32)
        spec = FeatureSpec(backbone=weights.backbone, weights_sha256=weights.sha256, preprocess=preprocess)
        assert graph_file(spec, weights).parent == graphs

    made_once("lite0_at_32", convert)


@pytest.fixture(scope="session", autouse=True)
def torch_threads() -> int:
    """Return how many threads torch has before any test."""
    import torch

    return int(torch.get_num_threads())


@pytest.fixture(autouse=True)
def _torch_keeps_its_threads(torch_threads: int) -> Iterator[None]:
    """An engine sets them for the whole process, and with another number the last bits of features are others."""
    yield
    import torch

    torch.set_num_threads(torch_threads)


@pytest.fixture(scope="session")
def readme_run(made_once: MadeOnce, graphs: Path) -> Path:
    """Return the folder in which the commands of the README have run, once a test run."""
    return made_once("readme", run_shown)

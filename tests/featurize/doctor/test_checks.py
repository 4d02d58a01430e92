"""The checks that need no GPU: each says what is there, what is missing, and never raises."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import packaging.requirements  # noqa: F401  before a test hides where packages are
import pytest
from PIL import Image

from xfeat.featurize.doctor import installed, machine
from xfeat.featurize.doctor.report import FAIL, NOTE, OK, Line, as_json, as_text, run
from xfeat.featurize.errors import WeightsError
from xfeat.featurize.system import cores, filesystem


def states(lines: Iterable[Line]) -> dict[str, str]:
    return {line.name: line.state for line in lines}


# What a check raises is a line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("libtorch.so: file too short"), "ImportError: libtorch.so: file too short"),
        (WeightsError("no weights", found="nothing", fix="get them"), "no weights: nothing"),
        (WeightsError("no weights"), "no weights"),
        (KeyError("x"), "KeyError: 'x'"),
        (SystemExit(3), "SystemExit: 3"),
        (RecursionError(), "RecursionError: "),
        (OSError(5, "Input/output error", "f"), "OSError: [Errno 5] Input/output error: 'f'"),
    ],
)
def test_what_a_check_raises_is_a_line_and_the_others_go_on(error: BaseException, said: str) -> None:
    def broken() -> Iterator[Line]:
        yield Line("begun", OK, "x")
        raise error

    first, second, third = run({"broken": broken, "whole": lambda: [Line("whole", OK, "x")]})
    assert (first.name, third.name) == ("begun", "whole")
    assert (second.name, second.state, second.found) == ("broken", FAIL, said)


def test_an_interruption_ends_the_report() -> None:
    def stopped() -> Iterator[Line]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        run({"stopped": stopped})


TOPICS = {
    "GPU": [
        Line("driver", OK, "NVIDIA driver 580"),
        Line("torch", FAIL, "cannot use cuda:0\nfound a card that is much too old", "pip install 'something-else'"),
        Line("胸部X線", NOTE, "word " * 30),
    ]
}


@pytest.mark.parametrize("width", [1, 5, 30, 40, 80, 200, 1000])
def test_the_report_fits_any_terminal(width: int) -> None:
    lines = as_text(TOPICS, width)
    assert max(map(len, lines)) <= max(40, min(width, 110))
    assert "'something-else'" in "\n".join(lines), "what is copied stays whole"
    assert lines[-1] == "does not work: torch"


def test_the_report_says_whether_all_works() -> None:
    assert not as_json(TOPICS)["ok"]
    whole = {"GPU": [Line("driver", NOTE, "none")]}
    assert as_json(whole) == {
        "ok": True,
        "topics": {"GPU": [{"name": "driver", "state": "note", "found": "none", "fix": ""}]},
    }
    assert as_text(whole)[-1] == "everything that was installed works"


# Cores and memory


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, []),
        ({"memory.max": "1000000000"}, ["of which the container may use 1.0"]),
        ({"memory/memory.limit_in_bytes": "2000000000"}, ["of which the container may use 2.0"]),
        ({"memory.max": "max"}, []),
        ({"memory.max": str(1 << 62)}, []),
    ],
)
def test_the_limits_of_a_container_are_told(tmp_path: Path, files: dict[str, str], words: list[str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    lines = list(machine.cores_and_memory(tmp_path))
    said = " ".join(f"{line.found} {line.fix}" for line in lines)
    assert [line.name for line in lines] == ["cores", "memory"]
    assert [word for word in words if word not in said] == []
    assert words or "container" not in said


@pytest.mark.parametrize(("quota", "told"), [(None, False), (1, True), (1000, False)])
def test_a_quota_that_binds_is_told(monkeypatch: pytest.MonkeyPatch, quota: int | None, told: bool) -> None:
    for module in (machine, cores):
        monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    line = next(machine.cores_and_memory())
    assert (line.state, "quota" in line.found) == (OK, told)


# Folders


def test_the_current_folder_is_tried_and_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert states(machine.file_system()) == {"current folder": OK, "file system": OK}
    assert list(tmp_path.iterdir()) == []


def test_a_current_folder_that_cannot_be_written_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    assert states(machine.file_system()) == {"current folder": NOTE}


@pytest.mark.parametrize("service", machine._SERVICES, ids=lambda service: service.name)
def test_each_service_that_is_missing_is_named_with_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: filesystem.Service
) -> None:
    def refuse(file: Path) -> None:
        raise OSError(next(iter(service.errors)), "not offered")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(machine._SERVICES, service, refuse)
    [line] = [line for line in machine.file_system() if line.name == "file system"]
    assert line == Line("file system", NOTE, f"has no {service.name} (not offered): {service.lost}")


@pytest.mark.parametrize(("variable", "folder"), [("XFEAT_CACHE_DIR", "/proc/x"), ("NUMBA_CACHE_DIR", "/proc/x")])
def test_a_folder_that_cannot_be_written_is_a_note_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, folder: str
) -> None:
    monkeypatch.setenv(variable, folder)
    notes = [line for line in machine.folders() if line.state == NOTE]
    assert [line.fix for line in notes] == [f"set {variable} to a folder that can be written"]


def test_without_a_home_folder_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XFEAT_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)  # nobody in the list of users
    assert states(machine.folders())["cache folder"] == NOTE


def test_without_a_folder_for_temporary_files_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    [line] = [line for line in machine.folders() if line.state == FAIL]
    assert (line.name, "TMPDIR" in line.fix) == ("temporary files", True)


# Packages


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs the metadata of packages in front of those that are there."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if "site-packages" not in entry)])

    def install(name: str, version: str, *lines: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        text = "\n".join(("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines))
        (folder / "METADATA").write_text(f"{text}\n")

    return install


def test_extras_are_installed_lacking_or_wrong(distributions: Callable[..., None]) -> None:
    asked = ["base>=2", "whole>=1; extra == 'all-there'", "some>=1; extra == 'half'", "gone; extra == 'half'"]
    asked += ["nothing; extra == 'none'", "whole[cuda]>=1; extra == 'gpu'", "xfeat-onnx[all-there]; extra == 'gpu'"]
    extras = ["all-there", "half", "none", "gpu"]
    distributions(
        "xfeat-onnx",
        "9",
        *(f"Provides-Extra: {extra}" for extra in extras),
        *(f"Requires-Dist: {need}" for need in asked),
    )
    distributions("base", "1.5")
    distributions("some", "1.0")
    distributions("whole", "1.0", "Provides-Extra: cuda", "Requires-Dist: nvidia-x; extra == 'cuda'")
    found = {line.name: line for line in installed.extras()}
    assert (found["base"].state, found["base"].found) == (FAIL, "1.5, where >=2 is needed")
    assert (found["half"].state, found["half"].found) == (NOTE, "lacks gone")
    assert (found["gpu"].state, found["gpu"].found) == (NOTE, "lacks nvidia-x")
    assert found["extras"].found == "all-there"
    assert found["other extras"].found == "not installed: none"


def test_a_package_that_everything_needs_is_missed(distributions: Callable[..., None]) -> None:
    distributions("xfeat-onnx", "9", "Requires-Dist: h5py>=3", "Requires-Dist: click")
    distributions("click", "8")
    assert states(installed.extras()) == {"xfeat-onnx": FAIL, "extras": OK}


def test_a_package_without_its_files_is_told(distributions: Callable[..., None], tmp_path: Path) -> None:
    needs = ("click", "rich", "click; extra == 'one'", "click; extra == 'two'")
    extras = ("Provides-Extra: one", "Provides-Extra: two")
    distributions("xfeat-onnx", "9", *extras, *(f"Requires-Dist: {need}" for need in needs))
    for name in ("click", "rich"):
        distributions(name, "8")
        record = f"{name}/__init__.py,,\n{name}/tests/__init__.py,,\n"  # a slim image has no tests
        (tmp_path / f"{name}-8.dist-info/RECORD").write_text(record)
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich/__init__.py").touch()
    broken = [line for line in installed.extras() if line.state == FAIL]
    assert broken == [Line("click", FAIL, "its files are missing", "pip install --force-reinstall click")]


def test_two_packages_of_onnxruntime_are_in_each_others_way(distributions: Callable[..., None]) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        distributions(name, "1.31")
    assert states(installed.versions())["onnxruntime"] == FAIL


def test_formats_are_decoded_and_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(installed.decoders())["images"] == OK
    Image.init()
    monkeypatch.delitem(Image.OPEN, "WEBP")
    monkeypatch.setattr(Image, "_initialized", 2)
    [line] = [line for line in installed.decoders() if line.state == FAIL]
    assert "WEBP" in line.found


@pytest.mark.parametrize("connect", [False, True])
def test_nothing_is_connected_to_unless_asked_for(
    connect: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("XFEAT_WEIGHTS_MIRROR", f"http://127.0.0.1:{server.server_port}")
        first, *_ = installed.weights(connect=connect)
        server.shutdown()
    assert len(asked) == connect
    assert first.state == (OK if connect else NOTE)
    assert f"http://127.0.0.1:{server.server_port}/efficientnet-b0" in first.found


def test_a_server_that_does_not_answer_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XFEAT_WEIGHTS_MIRROR", "http://127.0.0.1:9")
    first, *_ = installed.weights(connect=True)
    assert (first.state, "--weights FILE" in first.fix) == (NOTE, True)


def test_weights_that_are_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hub/checkpoints/efficientnet-b0-355c32eb.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert next(iter(installed.weights(connect=False))).found == str(file)

"""deploy/orthanc/bridge.py with a real Orthanc: images stored, reports found in their studies."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.inputs.dicom.files import compressed, to_bytes
from tests.serve.dicom_sr.conftest import PIXELS, STUDY, radiograph
from tests.serve.dicom_sr.standard import errors_of
from xfeat.serve.dicom_sr.write import ReportBuilder

ROOT = Path(__file__).parents[3]
BRIDGE = ROOT / "deploy" / "orthanc" / "bridge.py"
ORTHANC = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
PASSWORD = "a pass:word"
THREE = ["DX", "OT", "SR"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ORTHANC is None, reason="Orthanc (Debian: orthanc) is not installed"),
]


class Server:
    """An Orthanc on free ports of this machine, started as the example configuration says."""

    def __init__(self, folder: Path) -> None:
        self.ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.ports.append(free.getsockname()[1])
        example = json.loads((BRIDGE.parent / "orthanc.json").read_text())
        places = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db")}
        ports = dict(zip(("HttpPort", "DicomPort"), self.ports, strict=True))
        self.config = folder / "orthanc.json"
        lua = folder / "filter.lua"
        refuses = "tags.AccessionNumber == 'NO' and tags.Modality == 'SR'"
        lua.write_text(f"function ReceivedInstanceFilter(tags) return not ({refuses}) end")
        changes = {"RegisteredUsers": {"xfeat": PASSWORD}, "LuaScripts": [str(lua)]}
        self.config.write_text(json.dumps(example | places | ports | changes))
        self.url = f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        assert ORTHANC is not None
        self.process = subprocess.Popen([ORTHANC, self.config], stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                self.call("/system")
                return
            except OSError:
                time.sleep(0.05)
        pytest.fail("Orthanc does not start")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def call(self, path: str, body: bytes | None = None, method: str | None = None) -> Any:
        key = base64.b64encode(f"xfeat:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(self.url + path, body, {"Authorization": f"Basic {key}"}, method=method)
        with urllib.request.urlopen(request) as answer:
            content = answer.read()
        return content if path.endswith("/file") else json.loads(content)

    def store(self, study: str, **tags: Any) -> str:
        """Store an image in a study of its own, and return the study's identifier in Orthanc."""
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1", "SOPInstanceUID": f"{study}.1.1"}
        return str(self.call("/instances", to_bytes(radiograph(**uids, **tags)))["ParentStudy"])

    def series(self) -> dict[str, list[str]]:
        """Return the modalities of all series, by study."""
        found: dict[str, list[str]] = {}
        for series in self.call("/series?expand"):
            tags = series["MainDicomTags"]
            study = self.call(f"/studies/{series['ParentStudy']}")["MainDicomTags"]["StudyInstanceUID"]
            found.setdefault(study, []).extend([tags["Modality"]] * len(series["Instances"]))
        return {study: sorted(modalities) for study, modalities in found.items()}


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def command(orthanc: Server, heatmap_model: Path, tmp_path: Path) -> list[str]:
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    return [
        *(sys.executable, str(BRIDGE), "--orthanc", orthanc.url, "--model", str(heatmap_model), "--interval", "0.2"),
        *("--state", str(tmp_path / "state" / "bridge.json"), "--user", "xfeat", "--password-file", str(password)),
        *("--threads", "1", "--device", "cpu"),
    ]


@pytest.fixture
def once(command: list[str]) -> Callable[..., Result]:
    """Return a function that runs the bridge once, in this process; options by name replace those of the command."""
    spec = importlib.util.spec_from_file_location("orthanc_bridge", BRIDGE)
    assert spec is not None
    assert spec.loader is not None
    bridge = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bridge)

    def run(**changes: str) -> Result:
        options = command[2:]
        for name, value in changes.items():
            options[options.index(f"--{name.replace('_', '-')}") + 1] = value
        return CliRunner().invoke(bridge.main, [*options, "--once"])

    return run


def test_each_image_has_one_report_and_one_heatmap_in_its_study(orthanc: Server, once, tmp_path: Path, caplog):
    image = to_bytes(radiograph())
    orthanc.call("/instances", image)
    assert once().exit_code == 0
    assert orthanc.series() == {STUDY: THREE}
    assert "report stored" in caplog.text
    for private in ("Doe", "P-1", "1950", STUDY):
        assert private not in caplog.text
    for instance in orthanc.call("/instances"):
        path = tmp_path / f"{instance}.dcm"
        path.write_bytes(orthanc.call(f"/instances/{instance}/file"))
        if orthanc.call(f"/instances/{instance}/simplified-tags")["Modality"] != "DX":
            assert errors_of(str(path)) == []

    orthanc.call("/instances", image)
    assert once().exit_code == 0
    (tmp_path / "state" / "bridge.json").unlink()
    assert once().exit_code == 0
    assert orthanc.series() == {STUDY: THREE}, "the same image again, and a lost state, make no second report"

    path.write_bytes(
        to_bytes(radiograph(StudyInstanceUID="1.2.5", SOPInstanceUID="1.2.5.1", SeriesInstanceUID="1.2.5.2"))
    )
    subprocess.run(["storescu", "-xe", "127.0.0.1", str(orthanc.ports[1]), path], check=True)
    uids = {"StudyInstanceUID": "1.2.6", "SeriesInstanceUID": "1.2.6.2", "PatientID": "P-2"}
    orthanc.call("/instances", compressed("jpeg2000", [PIXELS], Modality="CR", **uids))
    assert once().exit_code == 0
    assert orthanc.series() == {STUDY: THREE, "1.2.5": THREE, "1.2.6": ["CR", "OT", "SR"]}


def test_the_bridge_outlives_orthanc_and_a_kill(orthanc: Server, command: list[str], tmp_path: Path):
    errors = (tmp_path / "log").open("w+")
    running = subprocess.Popen([*command, "--modality", "dx"], stderr=errors)
    try:
        orthanc.call("/instances", to_bytes(radiograph()))
        wait_for(orthanc, {STUDY: THREE})
        orthanc.stop()
        time.sleep(0.5)
        orthanc.start()
        orthanc.call("/instances", to_bytes(radiograph(SOPInstanceUID="1.2.7")))
        orthanc.call(
            "/instances", to_bytes(radiograph(SOPInstanceUID="1.2.8", Modality="PX", SeriesInstanceUID="1.2.9"))
        )
        wait_for(orthanc, {STUDY: ["DX", "DX", "OT", "OT", "PX", "SR", "SR"]})
        time.sleep(0.5)
    finally:
        running.kill()
        running.wait()
    errors.seek(0)
    log = errors.read()
    errors.close()
    assert log.count("does not answer") == 1
    assert "answers again" in log
    assert "Traceback" not in log


def test_a_deleted_study_stays_deleted(orthanc: Server, once, caplog, monkeypatch):
    orthanc.store("1.2.1")
    newest = orthanc.store("1.2.2")
    assert once().exit_code == 0
    orthanc.call(f"/studies/{newest}", method="DELETE")
    caplog.clear()
    assert once().exit_code == 0
    assert caplog.text == "", "Orthanc's newest change is older than the last one that was dealt with"

    build = ReportBuilder.build

    def delete_and_build(*arguments: Any) -> Any:
        orthanc.call(f"/studies/{newest}", method="DELETE")
        return build(*arguments)

    monkeypatch.setattr(ReportBuilder, "build", delete_and_build)
    assert orthanc.store("1.2.2") == newest
    assert once().exit_code == 0
    assert "no report: it was deleted" in caplog.text
    assert orthanc.series() == {"1.2.1": THREE}


def test_a_new_database_is_noticed_also_if_it_has_more_changes_than_the_old_one(orthanc: Server, once, tmp_path: Path):
    orthanc.store("1.2.1")
    assert once().exit_code == 0
    orthanc.process.kill()
    orthanc.process.wait()
    shutil.rmtree(tmp_path / "db")
    time.sleep(1.1)  # Orthanc's dates have seconds
    orthanc.start()
    studies = ["1.2.2", "1.2.3", "1.2.4", "1.2.5"]
    for study in studies:
        orthanc.store(study)
    assert once().exit_code == 0
    assert orthanc.series() == dict.fromkeys(studies, THREE)


def test_what_orthanc_does_not_take_and_an_image_that_fails_at_each_start_are_logged(
    orthanc: Server, once, tmp_path: Path, caplog
):
    orthanc.store("1.2.1", AccessionNumber="NO")
    assert once().exit_code == 0
    assert "no report: Orthanc refuses it (FilteredOut)" in caplog.text
    state = tmp_path / "state" / "bridge.json"
    orthanc.store("1.2.2")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"attempts": 5}))
    assert once().exit_code == 0
    assert "no report: given up after 5 attempts" in caplog.text
    orthanc.store("1.2.3")
    assert once().exit_code == 0
    assert orthanc.series() == {"1.2.1": ["DX"], "1.2.2": ["DX"], "1.2.3": THREE}


def wait_for(orthanc: Server, expected: dict[str, list[str]]) -> None:
    for _ in range(150):
        if orthanc.series() == expected:
            return
        time.sleep(0.1)
    assert orthanc.series() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "nobody"}, "Orthanc refuses the user"),
        ({"orthanc": "http://127.0.0.1:9"}, "Orthanc does not answer"),
        ({"orthanc": "127.0.0.1:8042"}, "no address of Orthanc"),
        ({"orthanc": "http://xfeat:secret@127.0.0.1:8042"}, "without user, password"),
        ({"password_file": "/nowhere"}, "the password cannot be read"),
        ({"model": "/nowhere.onnx"}, "nowhere.onnx"),
        ({"state": "/dev/null/state"}, "the state of the bridge cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(changes, message, once):
    done = once(**changes)
    assert (done.exit_code, message in done.stderr) == (1, True), done.output


@pytest.mark.parametrize(
    ("code", "body", "message"), [(301, b"", "leads to another"), (200, b"[]", "no Orthanc"), (404, b"", "no Orthanc")]
)
def test_a_server_that_is_no_orthanc_is_named(code: int, body: bytes, message: str, once):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Location", "https://orthanc.invalid")
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        done = once(orthanc=f"http://127.0.0.1:{server.server_port}")
    assert (done.exit_code, message in done.stderr) == (1, True), done.output


def test_the_unit_gives_options_that_there_are(once, tmp_path: Path):
    unit = (BRIDGE.parent / "xfeat-orthanc.service").read_text()
    command = shlex.split(next(line for line in unit.splitlines() if line.startswith("ExecStart=")))
    options = {option for parameter in sys.modules["orthanc_bridge"].main.params for option in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= options
    assert command[1] == "/opt/xfeat/deploy/orthanc/bridge.py"
    if shutil.which("systemd-analyze"):
        file = tmp_path / "xfeat-orthanc.service"
        file.write_text(unit.replace("/opt/xfeat/bin/python", sys.executable))
        done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.strip()) == (0, "")

"""The systemd unit as its comment says to install it, without systemd: the same files, command, key and signals."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[3]
UNIT = (ROOT / "deploy/xserve.service").read_text()
XSERVE = shlex.join([sys.executable, "-c", "from xfeat.serve.cli import main; main()"])

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "xserve"
    program.touch(mode=0o755)
    unit = tmp_path / "xserve.service"
    unit.write_text(UNIT.replace("/opt/xfeat/bin/xserve", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.slow
def test_the_commands_of_its_comment_install_a_server_with_a_key(tmp_path: Path, write_model) -> None:
    write_model()
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    for command in re.findall(r"^#   ((?:install|openssl) .*)$", UNIT, re.MULTILINE):
        (tmp_path / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
        subprocess.run(re.sub(r" /(etc|var)/", rf" {tmp_path}/\1/", command), shell=True, check=True, cwd=tmp_path)
    # What systemd does with LoadCredential.
    name, _, source = settings["LoadCredential"].partition(":")
    credential = tmp_path / "run/credentials/xserve.service" / name
    credential.parent.mkdir(parents=True)
    shutil.copy(f"{tmp_path}{source}", credential)
    file = tmp_path / "etc/xserve/xserve.toml"
    text = file.read_text().replace('"/run/', f'"{tmp_path}/run/')
    file.write_text(re.sub(r"^port = \d+", "port = 0", text, flags=re.MULTILINE))
    assert str(credential) in text

    command = settings["ExecStart"].replace("/opt/xfeat/bin/xserve", XSERVE)
    command = re.sub(r" /(etc|var)/", rf" {tmp_path}/\1/", command)
    process = subprocess.Popen(
        shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env=dict(os.environ)
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert address, process.communicate()[1]
        with httpx.Client(base_url=address[0], timeout=60, trust_env=False) as client:
            assert client.get("/v2/health/ready").status_code == 200
            assert client.get("/model").status_code == 401
            key = {"X-API-Key": credential.read_text().strip()}
            assert client.get("/model", headers=key).json()["name"] == "model"
            write_model("second.onnx")
            (tmp_path / "second.onnx").rename(tmp_path / "var/lib/xserve/models/second.onnx")
            assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
            process.send_signal(signal.SIGHUP)
            for _ in range(200):
                if "second" in client.get("/model", headers=key).json()["names"]:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("the second model is not there after a reload")
        process.send_signal(getattr(signal, settings["KillSignal"]))
        process.communicate(timeout=int(settings["TimeoutStopSec"]))
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()

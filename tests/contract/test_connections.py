"""Every command, run as a user does, opens no connection beyond this machine: the system calls are watched by strace.

Reports of libraries may come late or never (onnxruntime's come after ten seconds), but each leaves an identifier in the
home folder at once; so that is looked at too. tests/contract/test_privacy.py asks the libraries one by one.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import click
import minisign
import pytest

from tests.contract.test_privacy import environment
from xfeat.export.cli import main as xexport
from xfeat.featurize.cli import main as xfeat
from xfeat.head.cli import main as xhead
from xfeat.serve.cli import main as xserve

ROOT = Path(__file__).parents[2]
PROGRAMS: dict[str, click.Group] = {"xfeat": xfeat, "xhead": xhead, "xexport": xexport, "xserve": xserve}
FEATURIZE = "xfeat featurize data --backbone efficientnet-lite0 --size 32"
COMMANDS = (
    "xfeat split data/train split",
    FEATURIZE,
    f"{FEATURIZE} -o torch.h5 --engine torch",
    f"{FEATURIZE} -o openvino.h5 --engine openvino",
    "xfeat doctor",
    "xfeat info",
    "xfeat dump features.h5 dumped.parquet",
    "xfeat load dumped.parquet -o loaded.h5",
    "xfeat verify",
    "xfeat audit",
    "xhead train --name a --epochs 2 --mlflow sqlite:///mlflow.db --tensorboard",
    "xhead sweep --epochs 1 --hidden linear --dropout 0 --lr 1e-4..1e-2 --trials 2 --sampler optuna",
    "xhead crossval --epochs 1",
    "xhead compare a",
    "xhead eval runs/a data/test",
    "xhead report runs/a",
    "xexport onnx runs/a -o model.onnx",
    "xexport verify model.onnx",
    "xexport info model.onnx",
    "xexport bench model.onnx --batch 1 --seconds 0.1",
    "xexport explain model.onnx data/test",
    "xexport snippet model.onnx -o predict.py",
    "xexport triton model.onnx",
    "xexport quantize model.onnx",
    "xexport card model.onnx",
    "xexport sign model.onnx --key minisign.key",
    "xserve eval model.onnx data/test -o predictions.csv",
    "xserve predict data/test --require-signature minisign.pub",
)
# These are asked to: one listens, the other downloads onnxruntime-web, once per machine.
CONNECTING = ("xserve start", "xserve page")
GATE = "xexport quantize"  # on so few images, it may refuse with exit code 1
# Of this project; the list of fonts; and the token that protects a cluster of Ray.
IN_HOME = {".cache/xfeat", ".cache/matplotlib", ".ray/auth_token"}
# Ray, also without usage reports, asks for its own address by a socket that sends nothing (8.8.8.8), and whether it is
# in a cloud (an address that only the cloud itself answers, and its name). docs/trust.md says so.
OF_RAY = {"8.8.8.8", "169.254.169.254"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with six drawings per class and split, and with a home folder."""
    if not shutil.which("strace") or subprocess.run(["strace", "-qq", "true"], check=False, stderr=-3).returncode:
        pytest.skip("needs strace, and the permission to watch a process")
    folder = tmp_path_factory.mktemp("watched")
    for of_class in ROOT.glob("data/t*/*/"), ROOT.glob("data/valid/*/"):
        for source in of_class:
            target = folder / source.relative_to(ROOT)
            target.mkdir(parents=True)
            for file in sorted(source.iterdir())[:6]:
                shutil.copy(file, target)
    (folder / "home").mkdir()
    pair = minisign.KeyPair.generate()
    (folder / "minisign.key").write_bytes(bytes(pair.secret_key))
    (folder / "minisign.pub").write_bytes(bytes(pair.public_key))
    return folder


def watched(command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command of this project, or a line of Python, under strace, whose notes go to a file of the folder."""
    program, *arguments = command.split()
    executable = Path(sys.executable).with_name(program)
    calls = "connect,sendto,sendmsg,sendmmsg"
    # As a grandchild (-D), so that signals reach the command. It holds stdout open until its notes are complete.
    watch = [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-e",
        f"trace={calls}",
        "-e",
        "signal=none",
        "-o",
        "calls.txt",
    ]
    return subprocess.Popen(
        [*watch, *([executable, *arguments] if executable.exists() else [sys.executable, "-c", command])],
        cwd=folder,
        env=environment(folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(command: str, folder: Path) -> set[str]:
    """Run a command to its end; return what it addressed."""
    process = watched(command, folder)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0 or (command.startswith(GATE) and process.returncode == 1), stdout + stderr
    return addressed(folder)


def addressed(folder: Path) -> set[str]:
    """Return the addresses beyond this machine that the last command connected or sent to."""
    calls = (folder / "calls.txt").read_text()
    found = re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', calls)
    addresses = {ipaddress.ip_address(four or six.removeprefix("::ffff:")) for four, six in found}
    return {str(address) for address in addresses if not address.is_loopback}


def left_in_home(folder: Path) -> set[str]:
    home = folder / "home"
    return {
        str(file.relative_to(home))
        for file in home.rglob("*")
        if file.is_file() and not any(file.is_relative_to(home / known) for known in IN_HOME)
    }


def test_every_command_is_watched() -> None:
    every = {f"{name} {command}" for name, program in PROGRAMS.items() for command in program.commands}
    assert {" ".join(command.split()[:2]) for command in COMMANDS} | set(CONNECTING) == every


@pytest.mark.slow
def test_no_command_opens_a_connection(folder: Path) -> None:
    addresses = {command: finished(command, folder) for command in COMMANDS}
    assert {command: found for command, found in addresses.items() if found} == {}
    assert left_in_home(folder) == set()


def test_the_watch_sees_an_address_in_a_child_process(folder: Path) -> None:
    # A datagram socket sends nothing when it is connected.
    connect = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('198.51.100.1', 9))"
    watched(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {connect!r}])", folder).communicate()
    assert addressed(folder) == {"198.51.100.1"}


@pytest.mark.slow
def test_a_server_opens_no_connection(folder: Path) -> None:
    if not (folder / "model.onnx").exists():
        for command in (FEATURIZE, "xhead train --name a", "xexport onnx runs/a -o model.onnx"):
            finished(command, folder)
    process = watched("xserve start model.onnx --port 0 --json", folder)
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    with urllib.request.urlopen(f"{url}/v2/health/ready") as answer:
        assert answer.status == 200
    process.terminate()
    assert "stopped" in process.communicate(timeout=60)[1]
    assert addressed(folder) == set()
    assert left_in_home(folder) == set()


@pytest.mark.slow
def test_a_cluster_of_this_machine_reports_nothing(folder: Path) -> None:
    own = set(subprocess.run(["hostname", "-I"], check=True, capture_output=True, text=True).stdout.split())
    resolvers = set(re.findall(r"nameserver (\S+)", Path("/etc/resolv.conf").read_text()))
    assert finished(f"{FEATURIZE} -o ray.h5 --engine ray", folder) <= own | resolvers | OF_RAY
    assert left_in_home(folder) == set()

"""The deployment files use options, variables and folders that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from xfeat.serve.cli import main
from xfeat.serve.cli.start import start

ROOT = Path(__file__).parents[3]
UNIT = (ROOT / "deploy/xserve.service").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_settings_file_is_accepted_unchanged(monkeypatch):
    monkeypatch.setattr(start, "callback", lambda **settings: seen.update(settings))
    seen: dict[str, object] = {}
    done = CliRunner().invoke(main, ["start", "--config", str(ROOT / "deploy/xserve.toml")])
    assert done.exit_code == 0, done.output
    assert seen["log_format"] == "json"
    assert str(seen["api_key_file"]) == "/run/credentials/xserve.service/key"


def test_the_settings_that_are_commented_out_are_settings_too():
    text = (ROOT / "deploy/xserve.toml").read_text()
    commented = tomllib.loads("\n".join(re.findall(r"^# ([\w-]+ = .*)$", text, re.MULTILINE)))
    names = {parameter.name for parameter in start.params}
    assert commented
    assert {name.replace("-", "_") for name in commented} <= names


def test_every_variable_of_the_image_is_read_by_the_command():
    named = set(re.findall(r"XSERVE_\w+", DOCKERFILE))
    assert named
    assert named <= {parameter.envvar for parameter in start.params}


def test_the_image_copies_every_package_of_the_project():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    links = {path.name for path in (ROOT / "xfeat").iterdir() if path.is_symlink()}
    assert copied == {name.removesuffix("*") for name in packages} | links
    for source in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())


@pytest.mark.parametrize("setting", ["ExecStart", "ExecReload", "KillSignal", "Restart", "TimeoutStopSec"])
def test_the_unit_starts_reloads_and_stops_as_the_server_expects(setting):
    values = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    expected = {
        "ExecStart": "/opt/xfeat/bin/xserve start /var/lib/xserve/models --config /etc/xserve/xserve.toml",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillSignal": "SIGTERM",
        "Restart": "always",  # with on-failure, a SIGHUP before Python handles signals would count as a stop
    }
    if setting == "TimeoutStopSec":
        from xfeat.serve.specs import ServeSpec

        assert int(values[setting]) > ServeSpec().drain_timeout_s
    else:
        assert values[setting] == expected[setting]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_takes_its_file_which_names_what_there_is():
    file = ROOT / "deploy/compose.yaml"
    done = subprocess.run(["docker-compose", "-f", file, "config", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(file.read_text())["services"]
    assert f" AS {services['xserve']['build']['target']}\n" in DOCKERFILE
    assert set(services["xserve"]["environment"]) <= {parameter.envvar for parameter in start.params}
    mounted = [volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    missing = {name for name in mounted if name.startswith("./") and not (ROOT / "deploy" / name).exists()}
    assert missing == {"./models"}

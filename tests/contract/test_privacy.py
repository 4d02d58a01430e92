"""No library reports to its maker: each is asked, or watched, in a process of its own and in a home folder of its own.

The same questions without xfeat show that there is something to switch off; they are asked without a network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xfeat.featurize.system.privacy import TELEMETRY_OFF

NAMESPACE = ("unshare", "--net")
# Where any of these is set, libraries take the machine for a build server and report nothing.
BUILD_SERVER = ("BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CI", "CIRCLECI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL")
BUILD_SERVER += ("PYTEST_CURRENT_TEST", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS", "DO_NOT_TRACK")

# What a program does with a library, and an expression that is true if the library reports.
LIBRARIES = {
    "onnxruntime": ("import onnxruntime", "any(Path.home().rglob('deviceid'))"),
    "huggingface_hub": ("from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY as off", "not off"),
    "mlflow": ("from mlflow.telemetry.utils import is_telemetry_disabled", "not is_telemetry_disabled()"),
    "ray": ("from ray._common.usage.usage_lib import usage_stats_enabled", "usage_stats_enabled()"),
    "openvino": ("import openvino", "(Path.home() / 'intel').exists()"),
}
# Where a program of a user, or one of this project, begins.
BEGINNINGS = ("xfeat", "xfeat.serve.inference.predictor", "xfeat.export.cli", "xfeat.head.reports.worker")


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return the variables of a user on a machine of their own, who has switched off nothing."""
    without = {*TELEMETRY_OFF, *BUILD_SERVER, "XDG_CACHE_HOME"}
    return {name: value for name, value in os.environ.items() if name not in without} | {"HOME": str(home), **variables}


def run(code: str, home: Path, *around: str, **variables: str) -> str:
    command = [*around, sys.executable, "-c", f"from pathlib import Path; {code}"]
    done = subprocess.run(
        command, env=environment(home, **variables), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def no_network() -> tuple[str, ...]:
    """Return the start of a command that has no network."""
    if shutil.which(NAMESPACE[0]) and subprocess.run([*NAMESPACE, "true"], check=False, stderr=-3).returncode == 0:
        return NAMESPACE
    pytest.skip("no network namespace can be made here (unshare --net): what would be sent, would be sent")


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_does_not_report_once_xfeat_is_imported(library: str, tmp_path: Path) -> None:
    use, reports = LIBRARIES[library]
    assert run(f"import xfeat; {use}; print({reports})", tmp_path) == "False"


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_without_xfeat_it_would_report(library: str, tmp_path: Path, no_network: tuple[str, ...]) -> None:
    use, reports = LIBRARIES[library]
    assert run(f"{use}; print({reports})", tmp_path, *no_network) == "True"


@pytest.mark.parametrize("module", BEGINNINGS)
def test_it_is_switched_off_wherever_a_program_begins(module: str, tmp_path: Path) -> None:
    use, reports = LIBRARIES["onnxruntime"]
    assert run(f"import {module}; {use}; print({reports})", tmp_path) == "False"


def test_programs_that_are_started_later_inherit_it(tmp_path: Path) -> None:
    child = f"import os; print(sorted(name for name in os.environ if name in {set(TELEMETRY_OFF)}))"
    code = f"import subprocess, sys, xfeat; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    assert run(code, tmp_path) == str(sorted(TELEMETRY_OFF))


@pytest.mark.parametrize("variable", TELEMETRY_OFF)
@pytest.mark.parametrize("value", ["0", "1", "false", ""])
def test_a_variable_that_the_user_has_set_stays(variable: str, value: str, tmp_path: Path) -> None:
    code = f"import os, xfeat; print(repr(os.environ[{variable!r}]))"
    assert run(code, tmp_path, **{variable: value}) == repr(value)

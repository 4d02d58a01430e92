"""What all commands promise: quick help, described options, one message a problem."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "xfeat": "xfeat.featurize.cli",
    "xhead": "xfeat.head.cli",
    "xexport": "xfeat.export.cli",
    "xserve": "xfeat.serve.cli",
}
HEAVY = ("numpy", "h5py", "torch", "onnx", "onnxruntime", "sklearn", "matplotlib", "PIL", "fastapi", "rich")


def commands() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for program, module in PROGRAMS.items():
        group = importlib.import_module(module).main
        found += [(f"{program} {name}", command) for name, command in group.commands.items()]
    return found


COMMANDS = commands()


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_nothing_heavy(program: str) -> None:
    """Help answers within half a second because no large library is imported; that is what is checked, not a clock."""
    code = (
        f"import sys; from {PROGRAMS[program]} import main\n"
        "try: main(['--help'])\n"
        f"finally: loaded = set({HEAVY!r}) & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_current_folder_that_was_deleted_is_one_message(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back at the end
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    group = importlib.import_module(PROGRAMS[program]).main
    result = CliRunner().invoke(group, [next(iter(group.commands))])
    assert (result.exit_code, "error: the current folder was deleted\n" in result.output) == (1, True), result.output


@pytest.mark.parametrize("command", ["xfeat featurize", "xfeat audit", "xfeat info"])
def test_a_path_that_the_system_refuses_is_one_message(command: str) -> None:
    """As a folder that may not be entered, which root may: a name that is too long."""
    program, name = command.split()
    result = CliRunner().invoke(importlib.import_module(PROGRAMS[program]).main, [name, "x" * 300])
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.match("error: x{300}(/.*)?: cannot be used: File name too long\n  fix: ", result.stderr), result.stderr


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_says_what_it_does(name: str, command: click.Command) -> None:
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_list_of_commands_cuts_no_sentence_off(program: str) -> None:
    result = CliRunner().invoke(importlib.import_module(PROGRAMS[program]).main, ["--help"])
    listed = " ".join(result.stdout.partition("Commands:")[2].split())
    for name, command in COMMANDS:
        if name.startswith(f"{program} "):
            first = re.split(r"(?<=\.)\s", command.help or "")[0]
            assert f"{name.split()[1]} {' '.join(first.split())}" in listed


@pytest.mark.parametrize("stopped", [True, False])
def test_ctrl_c_while_a_library_is_loaded_is_no_broken_library(stopped: bool) -> None:
    """Extension modules turn the interrupt into an ImportError: onnxruntime's says "import numpy failed"."""
    code = (
        "import click, contextlib, os, signal\n"
        "from xfeat.featurize.console import Commands\n"
        "@click.group(cls=Commands)\n"
        "def main(): pass\n"
        "@main.command()\n"
        "def load():\n"
        "    with contextlib.suppress(KeyboardInterrupt):\n"
        f"        {'os.kill(os.getpid(), signal.SIGINT)' if stopped else 'pass'}\n"
        "    raise ImportError('import numpy failed')\n"
        "main(['load'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == ((130, False) if stopped else (1, True)), done.stderr


def test_the_page_of_all_commands_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("commands", ROOT / "docs" / "commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.render(), "run make docs"


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_wrong_usage_exits_with_2(name: str, command: click.Command) -> None:
    program, word = name.split()
    main = importlib.import_module(PROGRAMS[program]).main
    result = CliRunner().invoke(main, [word, "--no-such-option"])
    assert result.exit_code == 2
    assert "No such option" in result.stderr


def test_the_programs_are_installed() -> None:
    for program in PROGRAMS:
        installed = Path(sys.executable).with_name(program)
        done = subprocess.run([installed, "--version"], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "version" in done.stdout

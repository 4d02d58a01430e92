"""What is printed, on streams and terminals of every kind, with names that would move the cursor."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from tests.caches import write_made_up
from tests.conftest import MadeOnce
from xfeat.export.cli import main as xexport
from xfeat.featurize import console
from xfeat.featurize.cli import main as xfeat
from xfeat.featurize.errors import DataError
from xfeat.featurize.system.streams import NEAREST
from xfeat.featurize.text import aligned, columns_of, first_ten, listed, printable, shortened
from xfeat.head.cli import main as xhead
from xfeat.head.reports.formatting import class_lines
from xfeat.serve.cli import main as xserve

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# What a terminal obeys, or what it does not show, and how it is printed.
NAMES = {
    "cursor": ("a\x1b[2Jb", "a\\x1b[2Jb"),
    "title of the window": ("a\x1b]0;gone\x07b", "a\\x1b]0;gone\\x07b"),
    "line break": ("a\nforged: b", "a\\nforged: b"),
    "return": ("good\rbad", "good\\rbad"),
    "backspace": ("bad\b\b\bgood", "bad\\x08\\x08\\x08good"),
    "tab": ("a\tb", "a\\tb"),
    "C1 control": ("a\x9b2Jb", "a\\x9b2Jb"),
    "delete": ("a\x7fb", "a\\x7fb"),
    "right to left": ("gnp.\u202efdp.exe", "gnp.\\u202efdp.exe"),
    "isolate": ("a\u2067b\u2069", "a\\u2067b\\u2069"),
    "zero width": ("a\u200bb", "a\\u200bb"),
    "byte order mark": ("\ufeffa", "\\ufeffa"),
    "line separator": ("a\u2028b", "a\\u2028b"),
    "tag": ("a\U000e0041b", "a\\U000e0041b"),
    "byte that is not UTF-8": ("a\udcffb", "a\\udcffb"),
    "umlaut": ("Käse", "Käse"),
    "umlaut in two characters": (unicodedata.normalize("NFD", "Käse"), unicodedata.normalize("NFD", "Käse")),
    "Chinese, wide blank": ("肺\u3000炎", "肺\u3000炎"),
    "Arabic": ("رئة", "رئة"),
    "emoji": ("🫁", "🫁"),
    "markup": ("[red]a[/red]", "[red]a[/red]"),
    "percent and braces": ("%s{0}%", "%s{0}%"),
}
CLASSES = ("Käse \x1b[31mred", "肺\u202eab\u200bc")
MANY = tuple(f"class_{number:03}" for number in range(200))

# Streams as operating systems make them: PYTHONIOENCODING, and the codec in which the output must be readable.
ENCODINGS = {"utf-8": "utf-8", "cp1252": "cp1252", "ascii": "ascii", "cp437": "cp437", "latin-1": "latin-1"}
ENCODINGS |= {"gbk": "gbk", "utf-16": "utf-16", "ascii:strict": "ascii"}


@pytest.fixture(scope="session")
def folder(made_once: MadeOnce) -> Path:
    """Return a folder with two caches of made-up features and a run of each: two classes with bad names, and 200."""

    def make(folder: Path) -> None:
        for name, classes in (("bad", CLASSES), ("many", MANY)):
            count = 12 * len(classes)
            rows = np.arange(count)
            features = np.random.default_rng(0).normal(size=(count, 32)).astype(np.float32)
            write_made_up(
                folder / f"{name}.h5",
                features,
                {
                    "label": rows % len(classes),
                    "split": rows // len(classes) % 3,
                    "path": [f"\x1b[2J\n{row}\udcff.png" for row in rows],
                    "contents": [str(row) for row in rows],
                },
                classes,
            )
            done = run(folder, f"xhead train --features {name}.h5 --epochs 2 --name {name}")
            assert done.returncode == 0, done.stderr

    return made_once("terminals", make)


def run(folder: Path, command: str, *redirections: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line in a shell, with what a redirection does to its streams."""
    return subprocess.run(
        ["bash", "-c", " ".join([command, *redirections])],
        cwd=folder,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "", **environment},
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def unprintable(text: str) -> set[str]:
    return {char for char in text.replace("\n", "") if not char.isprintable()}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_printed_in_one_line_without_moving_the_cursor(kind: str) -> None:
    name, expected = NAMES[kind]
    assert printable(name) == expected
    assert listed([name, name]) == f"{expected}, {expected}"


@pytest.mark.parametrize("kind", NAMES)
def test_every_way_out_escapes_names(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, expected = NAMES[kind]
    console._start_logging()
    ways: dict[str, Callable[[], None]] = {
        "result": lambda: console.print_result({}, [f"{name}: 1 image"], as_json=False),
        "warning": lambda: console.warn([f"skipped {name}: no image"]),
        "log": lambda: console.logging.getLogger("xfeat.test").warning("%s: %d, %s", Path(name), 3, name),
        "error": lambda: console.say(f"error: {DataError('no image', path=name, found=listed([name]))}"),
        "expected": lambda: console.say(str(DataError("no image", expected=f"the image {name}"))),
        "fix": lambda: console.say(str(DataError("no image", fix=f"xfeat featurize {name}"))),
        "list": lambda: console.say("\n".join(first_ten([name]))),
    }
    for way, leave in ways.items():
        leave()
        out, err = capsys.readouterr()
        text = (out + err).replace("\u3000", " ")
        assert expected.replace("\u3000", " ") in text, way
        assert unprintable(text) == set(), way
        assert not any(line.startswith("forged") for line in text.splitlines()), way


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["xfeat info bad.h5", "xfeat info missing\x1b[2J.h5"])
def test_a_command_prints_in_any_encoding(folder: Path, command: str, encoding: str) -> None:
    done = run(folder, command, PYTHONIOENCODING=encoding)
    assert done.returncode == ("missing" in command)
    text = (done.stdout or done.stderr).decode(ENCODINGS[encoding])
    assert text
    assert unprintable(text) == set()
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["xhead train --features bad.h5 --epochs 1 --runs {tmp}", "xhead compare --runs runs"],
)
def test_what_heads_print_is_in_any_encoding(folder: Path, tmp_path: Path, command: str) -> None:
    done = run(folder, command.format(tmp=tmp_path), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert unprintable(done.stdout.decode("ascii")) == set()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_json_in_any_encoding(folder: Path, encoding: str) -> None:
    done = run(folder, "xfeat info bad.h5 --json", PYTHONIOENCODING=encoding)
    assert json.loads(done.stdout.decode("ascii"))["class_names"] == list(CLASSES)


STREAMS = {
    "stdout closed": (">&-", 0),
    "stderr closed": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "stdout full": (">/dev/full", 1),
    "stderr full": ("2>/dev/full", 0),
    "a pipe nobody reads": ("| true; exit ${PIPESTATUS[0]}", 1),
    "only the first line is read": ("2>&1 | head -1; exit ${PIPESTATUS[0]}", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "command", ["xfeat info bad.h5", "PYTHONUNBUFFERED=1 xfeat info bad.h5", "python -m xfeat info -h"]
)
def test_a_stream_that_cannot_be_written_is_no_traceback(folder: Path, command: str, stream: str) -> None:
    redirection, code = STREAMS[stream]
    done = run(folder, command, redirection)
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception ignored" not in done.stderr
    assert code is None or done.returncode == code, done.stderr
    if stream == "stdout full":
        assert b"cannot write the output: No space left on device" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["all closed", "stderr full", "a pipe nobody reads"])
def test_the_work_is_done_whether_or_not_anybody_listens(folder: Path, tmp_path: Path, stream: str) -> None:
    before = (folder / "bad.h5").read_bytes()
    run(folder, f"xhead train --features bad.h5 --epochs 1 --runs {tmp_path}", STREAMS[stream][0])
    assert len(list(tmp_path.glob("*/run.json"))) == 2  # the run, and the link to the latest
    # A file that is opened while stdout is closed could get its number, and what is printed.
    assert (folder / "bad.h5").read_bytes() == before


@pytest.mark.slow
def test_arguments_are_escaped_in_messages_about_usage(folder: Path) -> None:
    done = run(folder, f"xfeat info {shlex.quote(chr(27) + '[2J')} {shlex.quote('b' + chr(10) + 'Error: c')} ü 2>&1")
    assert b"arguments (b\\nError: c" in done.stdout
    assert done.returncode == 2
    assert run(folder, "xfeat info a ü", PYTHONIOENCODING="ascii").stderr.isascii()


def on_terminal(folder: Path, command: str, columns: int, **environment: str) -> str:
    """Run a command on a terminal of so many columns, and return all that it wrote there."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    own = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TERM": "xterm", **environment}
    own.pop("COLUMNS", None)  # as pytest's processes may set it; the terminal has a size of its own
    process = subprocess.Popen(
        shlex.split(command), cwd=folder, env=own, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    written = b""
    try:
        while block := os.read(main, 65536):
            written += block
    except OSError:  # so Linux says that the last process has closed the terminal
        pass
    os.close(main)
    assert process.wait() == 0, written
    return written.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "command"),
    [
        (40, "xfeat info many.h5"),
        (200, "xfeat info bad.h5"),
        (60, "xhead train --features many.h5 --epochs 1 --runs {tmp}"),
        (40, "xhead train --features bad.h5 --epochs 1 --runs {tmp}"),
    ],
)
def test_tables_fit_the_terminal(folder: Path, tmp_path: Path, command: str, columns: int) -> None:
    text = on_terminal(folder, command.format(tmp=tmp_path), columns, NO_COLOR="1")
    # The bar is redrawn in its line; sentences and pairs of classes may be wrapped.
    lines = [line for line in re.split(r"[\r\n]+", text) if "━" not in line]
    assert len("".join(lines)) < 2500
    tables = [line for line in lines if re.search(r"\w   +\w", line) and " -> " not in line]
    assert all(columns_of([line]) <= columns for line in tables), tables


@pytest.mark.slow
def test_no_color_and_a_terminal_without_a_cursor_get_plain_lines(folder: Path, tmp_path: Path) -> None:
    train = f"xhead train --features many.h5 --epochs 3 --runs {tmp_path}"
    with_bar = on_terminal(folder, f"{train} --name a", 80, NO_COLOR="1")
    assert "\x1b[2K" in with_bar
    assert not re.search(r"\x1b\[[0-9;]*m", with_bar.replace("\x1b[0m", ""))
    assert "\x1b" not in on_terminal(folder, f"{train} --name b", 80, TERM="dumb")
    assert "\x1b" not in on_terminal(folder, "xhead compare --runs runs", 80, FORCE_COLOR="1")


@pytest.mark.slow
def test_of_200_classes_the_important_ones_are_printed_and_all_are_in_the_files(folder: Path, tmp_path: Path) -> None:
    done = run(folder, f"xhead train --features many.h5 --epochs 1 --runs {tmp_path} --name run")
    text = done.stdout.decode()
    assert len(text) < 3000
    assert f"confusion matrix and all classes: {tmp_path}/run/run.json" in text
    stored = json.loads((tmp_path / "run/run.json").read_text())["metrics"]["test"]
    shown = re.findall(r"^(class_\d+): sensitivity ([\d.]+) %", text, re.M)
    assert len(shown) == 10
    lowest = sorted(row["sensitivity"] for row in stored["classes"].values())[:10]
    assert [round(float(value), 1) for _, value in shown] == [round(100 * value, 1) for value in lowest]
    matrix = np.array(stored["confusion_matrix"])
    np.fill_diagonal(matrix, 0)
    name, predicted, count = re.findall(r"^  (class_\d+) +-> +(class_\d+) +(\d+)$", text, re.M)[0]
    assert matrix[MANY.index(name), MANY.index(predicted)] == int(count) == matrix.max()
    info = run(folder, "xfeat info many.h5").stdout.decode()
    assert "800 images of 200 classes, from 4 (class_000) to 4 (class_199)" in info
    assert len(info) < 1000


def test_few_classes_are_a_matrix_and_many_or_wide_ones_a_list() -> None:
    def lines_of(names: list[str], matrix: list[list[int]]) -> list[str]:
        rows = {name: {"sensitivity": 0.5, "specificity": 0.25} for name in names}
        return class_lines(matrix, rows, all_in="run.json")

    assert lines_of(["a", "b"], [[3, 1], [0, 4]])[:3] == [
        "true \\ predicted  a  b",
        "a                 3  1",
        "b                 0  4",
    ]
    wide = lines_of([letter * 200 for letter in "abcde"], np.full((5, 5), 2).tolist())
    assert wide[0].startswith("most frequent confusions of 40")
    assert wide[-1] == "confusion matrix and all classes: run.json"
    eleven = lines_of([f"c{number}" for number in range(11)], (7 * np.eye(11, dtype=int)).tolist())
    assert eleven[0] == "every image was classified correctly"


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    rows = [["class", "n"], ["肺炎", "10"], ["Käse", "5"], [unicodedata.normalize("NFD", "Käse"), "5"], ["a\x1b", "1"]]
    assert {columns_of([line]) for line in aligned(rows)} == {9}
    assert shortened("x" * 400) == "x" * 21 + "…" + "x" * 10


@pytest.mark.parametrize("per_second", [0, 7])
def test_a_rate_is_shown_once_something_was_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], per_second: int
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress_bar("featurizing", "images") as advance:
        for second in range(20):
            now = 100.0 + second
            advance(30 + per_second * second, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(("(7.0 images/s)" in line) == bool(per_second) for line in lines)
    assert "0.0" not in "".join(lines)


def test_every_sign_of_the_own_messages_has_a_nearest_one() -> None:
    signs = set()
    for package in ("featurize", "head", "export", "serve"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    signs |= {char for char in node.value if not char.isascii() and not char.isalpha()}
    read_only = {"\ufeff", "\u200b", "∀", "◿", "§"}  # of files that are read, or templates: never printed
    assert signs - set(NEAREST) - read_only == set()
    assert all(text.isascii() for text in NEAREST.values())


@pytest.mark.parametrize("program", [xfeat, xhead, xexport, xserve], ids=["xfeat", "xhead", "xexport", "xserve"])
def test_help_is_ascii(program: click.Group) -> None:
    context = click.Context(program, info_name="program")
    for name, command in program.commands.items():
        assert command.get_help(click.Context(command, parent=context, info_name=name)).isascii(), name


@pytest.mark.slow
def test_a_real_folder_with_names_that_move_the_cursor(lite0_at_32: None, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for number, name in enumerate(("a\x1b[2Jb", "Käse")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for row in range(2):
                Image.new("L", (32, 32), 40 * number + row).save(folder / f"{row}\x1b[1A\n\u202e.png")
    (folder / "broken\rpng\x07.png").write_bytes(b"nothing")
    settings = "--backbone efficientnet-lite0 --size 32"
    for command in (
        f"xfeat featurize data {settings}",
        "xfeat info",
        "xfeat split data/train out --ratios 50,50,0",
        "xhead train --epochs 1",
        "xfeat featurize data/train/K*/0*",
    ):
        done = run(tmp_path, command, PYTHONIOENCODING="cp1252")
        text = (done.stdout + done.stderr).decode("cp1252")
        assert unprintable(text) == set(), command
        assert "Traceback" not in text
    page = next((tmp_path / "runs").glob("*/report.html")).read_text(encoding="utf-8")
    assert unprintable(page.replace("\t", "")) <= {"\xa0"}
    assert "a\\x1b[2Jb" in page

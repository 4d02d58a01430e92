"""``xserve predict``: what it reads, where its rows go, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from xfeat.serve.cli import main
from xfeat.serve.inference.results import SkippedImage
from xfeat.serve.inference.tables import open_rows

XSERVE = [sys.executable, "-c", "from xfeat.serve.cli import main; main()", "predict"]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
LABELS = {"red": "covid", "green": "normal", "blue": "pneumonia"}


@pytest.fixture
def folder(tiny: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with the model, and with pictures that are called by their colours."""
    for name, colour in {"red.png": RED, "deep/green.png": GREEN, "deep/er/blue.png": BLUE}.items():
        file = tmp_path / "pics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny.draw(colour))
    (tmp_path / "pics" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], input=stdin)


def rows_of(file: str) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


def packed_zip() -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name in ("red.png", "deep/green.png", "deep/er/blue.png", "notes.txt"):
            archive.write(f"pics/{name}", name)


def packed_tar(name: str, mode: Any = "w", *members: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    with tarfile.open(name, mode) as archive:
        for member in members or ("deep/er/blue.png", "red.png"):
            archive.add(f"pics/{member}", member)


def shards() -> None:
    packed_tar("parts/a-0.tar", "w", "red.png")
    packed_tar("parts/a-1.tar", "w", "deep/green.png")


def table_of_images() -> None:
    images = [{"bytes": Path(f"pics/{name}").read_bytes(), "path": name} for name in ("red.png", "deep/green.png")]
    parquet.write_table(pa.table({"image": images, "label": [1, 1]}), "a.parquet")


def table(text: str) -> Callable[[], object]:
    return lambda: Path("pics/list.csv").write_text(text.format(here=Path.cwd()))


def copied(name: str) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(Path("pics/red.png").read_bytes())


def table_elsewhere() -> None:
    copied("red.png")()
    table("path\n{here}/red.png\n")()


ALL = ["pics/deep/er/blue.png", "pics/deep/green.png", "pics/red.png"]
READ: dict[str, tuple[Callable[[], object], list[str], bytes, list[str]]] = {
    "a file": (list, ["pics/red.png"], b"", ["pics/red.png"]),
    "a file twice": (list, ["pics/red.png", "pics/red.png"], b"", ["pics/red.png"] * 2),
    "a folder": (list, ["pics"], b"", ALL),
    "a folder, by name": (list, ["pics", "--recursive"], b"", ALL),
    "a folder alone": (list, ["pics", "--no-recursive"], b"", ["pics/red.png"]),
    "the current folder": (list, ["."], b"", ALL),
    "zip": (packed_zip, ["a.zip"], b"", ["a.zip/red.png", "a.zip/deep/green.png", "a.zip/deep/er/blue.png"]),
    "zip alone": (packed_zip, ["a.zip", "--no-recursive"], b"", ["a.zip/red.png"]),
    "tar": (lambda: packed_tar("a.tar"), ["a.tar"], b"", ["a.tar/deep/er/blue.png", "a.tar/red.png"]),
    "tgz": (lambda: packed_tar("a.tgz", "w:gz"), ["a.tgz"], b"", ["a.tgz/deep/er/blue.png", "a.tgz/red.png"]),
    "archives": (shards, ["parts"], b"", ["parts/a-0.tar/red.png", "parts/a-1.tar/deep/green.png"]),
    "a pattern": (shards, ["parts/a-{1..1}.tar"], b"", ["parts/a-1.tar/deep/green.png"]),
    "parquet": (table_of_images, ["a.parquet"], b"", ["a.parquet/red.png", "a.parquet/deep/green.png"]),
    "a table": (table("path,label\nred.png,x\ndeep/green.png,y\n"), ["pics/list.csv"], b"", [ALL[2], ALL[1]]),
    "a table that says two things": (table("path;label\nred.png;x\nred.png;y"), ["pics/list.csv"], b"", [ALL[2]] * 2),
    "a table of bare names": (table("filename\nblue.png\n"), ["pics/list.csv"], b"", [ALL[0]]),
    "a table of another column": (table("a,b\nred.png,1\n"), ["pics/list.csv", "--columns", "path=a"], b"", [ALL[2]]),
    "a table of files elsewhere": (table_elsewhere, ["pics/list.csv"], b"", ["{here}/red.png"]),
    "a list": (list, ["-"], b"pics/red.png\npics/deep/green.png\n", [ALL[2], ALL[1]]),
    "a list of Windows": (list, ["-"], b"\xef\xbb\xbfpics/red.png\r\n\r\npics/deep/green.png", [ALL[2], ALL[1]]),
    "a list with NUL": (
        copied("pics/red\n.png"),
        ["-", "-0"],
        b"pics/red.png\0pics/red\n.png\0",
        [ALL[2], "pics/red\n.png"],
    ),
    "a list of what is read": (list, ["pics/red.png", "-"], b"pics/red.png\n", [ALL[2]] * 2),
}


@pytest.mark.parametrize(("make", "arguments", "stdin", "expected"), READ.values(), ids=READ)
def test_what_is_read_has_a_row_each(
    folder: Path, make: Callable[[], object], arguments: list[str], stdin: bytes, expected: list[str]
) -> None:
    make()
    done = run(*arguments, "-o", "out.csv", stdin=stdin)
    assert done.exit_code == 0, done.output
    rows = rows_of("out.csv")
    assert [row["path"] for row in rows] == [name.format(here=folder) for name in expected]
    colours = [next(colour for colour in LABELS if colour in path.rpartition("/")[2]) for path in expected]
    assert [row["label"] for row in rows] == [LABELS[colour] for colour in colours]
    assert {row["error"] for row in rows} == {""}
    assert (".txt, such as notes.txt" in done.stderr) == (arguments[0] in ("pics", "a.zip"))


REFUSED: dict[str, tuple[Callable[[], object], list[str], bytes, int, str]] = {
    "nothing there": (list, ["pics", "gone.png"], b"", 1, "gone.png: file or folder not found"),
    "a link to nowhere": (lambda: os.symlink("no", "l.png"), ["l.png"], b"", 1, "a symbolic link that leads nowhere"),
    "a link to itself": (lambda: os.symlink("l.png", "l.png"), ["l.png"], b"", 1, "l.png: cannot be opened"),
    "a name that is too long": (list, ["a" * 300], b"", 1, "cannot be opened: File name too long"),
    "a pipe": (lambda: os.mkfifo("p.png"), ["p.png"], b"", 1, "neither a folder nor a regular file"),
    "an empty folder": (lambda: os.mkdir("empty"), ["pics", "empty"], b"", 1, "empty: no images found"),
    "no archive": (copied("a.zip"), ["a.zip"], b"", 1, "a.zip: not a zip archive"),
    "a table of nothing": (table("path,label\n"), ["pics/list.csv"], b"", 1, "no images found"),
    "a table of missing files": (
        table("path\na.png\nb.png\n"),
        ["pics/list.csv"],
        b"",
        1,
        "none of its images is there",
    ),
    "a table of no paths": (table("a,b\n1,2\n"), ["pics/list.csv"], b"", 1, "with --columns path=NAME"),
    "columns of no table": (list, ["pics", "--columns", "path=a"], b"", 2, "no column called a"),
    "an empty list": (list, ["-"], b"", 1, "the list on stdin is empty"),
    "a list of empty lines": (list, ["-"], b"\n\r\n", 1, "the list on stdin is empty"),
    "a list that is no text": (list, ["-"], "pics/red.png".encode("utf-16"), 1, "add --null"),
    "stdin twice": (list, ["-", "-"], b"pics/red.png", 2, "- is given twice"),
    "an unknown suffix": (list, ["pics", "-o", "out.txt"], b"", 2, ".csv, .jsonl, .parquet"),
    "no suffix": (list, ["pics", "-o", "/dev/stdout"], b"", 2, "- for CSV on stdout"),
    "a file of that name": (copied("out.csv"), ["pics"], b"", 1, "add --overwrite"),
    "a folder of that name": (lambda: os.mkdir("out.csv"), ["pics", "--overwrite"], b"", 1, "a folder of that name"),
    "the input": (copied("out.csv"), ["pics", "out.csv", "--overwrite"], b"", 2, "the output is one of the inputs"),
    "a full disk": (lambda: os.symlink("/dev/full", "out.csv"), ["pics"], b"", 1, "the disk is full"),
    "a file as the folder": (copied("f"), ["pics", "-o", "f/out.csv"], b"", 1, "its parent folder is a file"),
    "two things on stdout": (list, ["pics", "--json", "-o", "-"], b"", 2, "--json and -o - cannot be combined"),
}


@pytest.mark.parametrize(("make", "arguments", "stdin", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_or_written_is_one_message_and_leaves_no_file(
    folder: Path, make: Callable[[], object], arguments: list[str], stdin: bytes, code: int, words: str
) -> None:
    make()
    before = sorted(folder.rglob("*"))
    done = run(*arguments, *([] if "-o" in arguments else ["-o", "out.csv"]), stdin=stdin)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before


ENDS: dict[str, tuple[list[str], int, int]] = {
    "all": (["pics"], 0, 3),
    "some": (["pics", "bad.png"], 3, 4),
    "none": (["bad.png"], 1, 1),
    "fail": (["pics/red.png", "bad.png", "pics", "--on-error", "fail"], 1, 1),
    "fail, and nothing does": (["pics", "--on-error", "fail"], 0, 3),
    "a line of a list": (["-"], 3, 3),
}


@pytest.mark.parametrize("output", ["", "--json", "a.csv", "a.parquet"])
@pytest.mark.parametrize(("arguments", "code", "rows"), ENDS.values(), ids=ENDS)
def test_the_exit_code_says_whether_all_some_or_none_were_classified(
    folder: Path, arguments: list[str], code: int, rows: int, output: str
) -> None:
    (folder / "bad.png").write_bytes(b"text")
    given = [output] if output.startswith("--") else ["-o", output] * bool(output)
    done = run(*arguments, *given, stdin=b"pics/gone.png\npics/red.png\npics\n")
    assert done.exit_code == code, done.output
    assert ("error: " in done.stderr) == (code == 1)
    assert ("warning: skipped " in done.stderr) == (code == 3 or arguments == ["bad.png"])
    stopped = "fail" in arguments and code == 1
    assert ("error: bad.png: text" in done.stderr) == stopped
    if output == "a.csv":
        assert len(rows_of(output)) == rows
        assert (code == 1) == (done.stdout == "")
    elif output == "a.parquet" and not stopped:
        assert parquet.read_metadata(output).num_rows == rows
    else:
        assert not Path("a.parquet").exists()


@pytest.mark.parametrize(("name", "kind"), [("cut.jpg", "JPEG"), ("cut.png", "PNG")])
def test_an_image_that_is_cut_short_is_classified_and_named(tiny: Any, folder: Path, name: str, kind: str) -> None:
    (folder / name).write_bytes(tiny.draw(RED, (400, 300), kind)[:-20])
    done = run("pics", name)
    assert done.exit_code == 0
    assert f"{name} is truncated; the part that is there was used" in done.stderr
    assert "red.png is truncated" not in done.stderr


def test_every_kind_of_table_has_what_json_has(write_model: Any, tiny: Any, folder: Path) -> None:
    classes = ("error", "a,b", 'c"d')
    model = write_model("odd.onnx", class_names=classes, positive="a,b", threshold=0.5, ood=True, ood_threshold=0.4)
    names = ["=1+1,x.png", 'quo"te\n.png', "bytes\udcff.png", "Käse 肺.png", "c\rr.png"]
    for name in names:
        (folder / name).write_bytes(tiny.draw(GREEN))
    (folder / "bad.png").write_bytes(b"text")
    arguments = [*names, "pics", "bad.png", "--model", model]
    told = json.loads(run(*arguments, "--json").stdout)
    for output in ("a.csv", "a.jsonl", "a.parquet", "-"):
        done = run(*arguments, "-o", output)
        assert done.exit_code == 3
    lines = [json.loads(line) for line in Path("a.jsonl").read_text("ascii").splitlines()]
    assert [{**each, "error": None} for each in told["predictions"]] == lines[:-1]
    assert lines[-1] == dict.fromkeys(lines[0]) | {"path": "bad.png", "error": told["skipped"][0]["reason"]}
    stored = parquet.read_table("a.parquet").to_pylist()
    columns = ["path", "label", *(f"p_{name}" for name in classes), "ood", "in_distribution", "error"]
    assert [list(row) for row in (*stored, *rows_of("a.csv"))] == [columns] * (2 * len(lines))
    assert done.stdout_bytes == Path("a.csv").read_bytes()
    for line, row, text in zip(lines, stored, rows_of("a.csv"), strict=True):
        shares = line["probabilities"] or dict.fromkeys(classes)
        values = [line["label"], *shares.values(), line["ood"], line["in_distribution"], line["error"]]
        assert list(row.values()) == [line["path"].replace("\udcff", "ÿ"), *values]
        assert [text["path"], *(text[name] or None for name in columns[1:])] == [
            line["path"],
            *(str(value).lower() if value is True or value is False else value and str(value) for value in values),
        ]


@pytest.mark.parametrize("output", ["a.csv", "a.jsonl"])
def test_a_table_that_another_process_writes_is_left(folder: Path, output: str) -> None:
    with open_rows(Path(output), list(LABELS.values())) as write:
        write(SkippedImage(path="first", reason="text"))
        done = run("pics", "-o", output, "--overwrite")
        write(SkippedImage(path="second", reason="text"))
    assert done.exit_code == 1
    assert "another process is writing this file" in done.stderr
    assert Path(output).read_text().count("text") == 2
    assert "red" not in Path(output).read_text()
    assert run("pics", "-o", output, "--overwrite").exit_code == 0


def test_an_existing_table_is_replaced_on_request(folder: Path) -> None:
    (folder / "a.csv").write_text("old\n" * 100)
    assert run("pics", "-o", "a.csv", "--overwrite").exit_code == 0
    assert len(rows_of("a.csv")) == 3
    summary = json.loads(run("pics", "-o", "b.csv", "--json").stdout)
    assert summary == {"model": "model.onnx", "output": "b.csv", "classified": 3, "skipped": 0}


# Processes


def start(*arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([*XSERVE, *arguments], **pipes, **settings)


def wait_for(file: str, lines: int) -> None:
    end = time.monotonic() + 60
    while not Path(file).exists() or Path(file).read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["a.csv", "a.jsonl"])
def test_a_row_is_there_while_the_list_is_not_at_its_end(folder: Path, output: str) -> None:
    process = start("-", "-o", output)
    assert process.stdin is not None
    for number in (1, 2):
        process.stdin.write(b"pics/red.png\n")
        process.stdin.flush()
        wait_for(output, number + (output == "a.csv"))
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("output", ["a.csv", "a.jsonl"])
def test_what_was_finished_when_it_is_stopped_is_complete(folder: Path, stop: signal.Signals, output: str) -> None:
    (folder / "list").write_bytes(b"pics/red.png\n" * 50_000)
    with open("list", "rb") as stdin:
        process = subprocess.Popen([*XSERVE, "-", "-o", output], stdin=stdin, stderr=subprocess.PIPE)
        wait_for(output, 50)
        process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    content = Path(output).read_bytes()
    lines = content.splitlines()[: None if content.endswith(b"\n") else -1]
    assert all(b"covid" in line and b"pics/red.png" in line for line in lines[output == "a.csv" :])
    if stop == signal.SIGKILL:
        assert process.returncode == -stop
    else:
        assert process.returncode == 130
        assert content.endswith(b"\n")
        assert f"{output} has the first {len(lines) - (output == 'a.csv')} images" in said.decode()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_disk_that_is_full_leaves_complete_rows_or_nothing(folder: Path, output: str) -> None:
    (folder / "list").write_bytes(b"pics/red.png\n" * 300)
    most = 2000
    process = start("-", "-o", output, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    _, said = process.communicate((folder / "list").read_bytes(), timeout=60)
    assert process.returncode == 1
    assert f"{output}: cannot be written: the file would be larger than the limit" in said.decode()
    if output == "a.parquet":
        assert list(folder.glob("*.parquet")) == list(folder.glob(".*.tmp")) == []
    else:
        assert most / 2 < (folder / output).stat().st_size < most
        assert (folder / output).read_bytes().endswith(b"\n")


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_without_a_message(folder: Path) -> None:
    (folder / "list").write_bytes(b"pics/red.png\n" * 20_000)
    command = f"{sys.executable} -c '{XSERVE[2]}' predict - -o - < list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.count(b"\n"), done.stderr) == (1, 1, b"")


@pytest.mark.slow
def test_stdin_that_is_closed_is_an_empty_list(folder: Path) -> None:
    process = start("-", preexec_fn=lambda: os.close(0))
    assert b"the list on stdin is empty" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("output", ["a.csv", "a.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_the_number_of_images(folder: Path, output: str) -> None:
    peaks = []
    for images in (500, 5_500):
        code = f"import resource; {XSERVE[2].replace('main()', 'main(standalone_mode=False)')}; "
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        command = [sys.executable, "-c", code, "predict", "-", "-o", output, "--overwrite"]
        done = subprocess.run(command, input=b"pics/red.png\n" * images, capture_output=True, timeout=100, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.05 * peaks[0]

"""What would be read or walked for ever is skipped or refused, with the reason."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xfeat.export.parity.certificate import read_certificate
from xfeat.featurize.errors import DataError, ImageError, XfeatError
from xfeat.featurize.images.given import read_given
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.sources.opening import open_source
from xfeat.featurize.system.time_limit import TimeLimitError, limited
from xfeat.head.sweep.results import RESULTS_FILE, SweepFolder

# Files that are no regular files


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def open_pipe(path: Path) -> None:
    reading, _ = os.pipe()  # left open, as a shell does for <(…)
    path.symlink_to(f"/proc/self/fd/{reading}")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bound_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "not a regular file"),
        (link_to_fifo, "not a regular file"),
        (open_pipe, "not a regular file"),
        (device, "not a regular file"),
        (bound_socket, "cannot be read: No such device or address"),
        (dangling, "cannot be read: No such file"),
        (itself, "cannot be read: Too many levels of symbolic links"),
        (Path.mkdir, "cannot be read: Is a directory"),
    ],
)
@pytest.mark.parametrize(
    "read", [lambda path: FolderSource(path.parent).read(path.name), lambda path: read_given(path, path.name)]
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_only_regular_files_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    reason: str,
    read: Callable[[Path], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.png")
    with pytest.raises(ImageError, match=reason):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("make", [fifo, link_to_fifo, open_pipe, device])
def test_a_data_set_is_a_folder_or_a_regular_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=r"neither a folder nor a regular file(.|\n)*a pipe, socket or device"):
        open_source(tmp_path / "data")


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (fifo, read_certificate),
        (fifo, lambda path: SweepFolder(path.parent).read_trials()),
        (device, read_certificate),
    ],
    ids=["certificate", "trials", "device"],
)
def test_files_of_a_project_are_regular_files(
    tmp_path: Path, make: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    file = tmp_path / RESULTS_FILE
    make(file)
    with pytest.raises(XfeatError, match="not a regular file"):
        read(file)


# Time limits


def test_a_call_that_never_ends_is_given_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    started = time.monotonic()
    with pytest.raises(TimeLimitError, match="not read within 1 s"):
        limited(1, "read")(os.read)(reading, 1)
    assert time.monotonic() - started < 5
    os.write(writing, b"x")  # the thread ends, and its late result reaches nobody
    os.close(writing)


def test_within_the_limit_a_call_is_what_it_was() -> None:
    assert limited(60, "read")(int)("12") == 12
    with pytest.raises(ValueError, match="invalid literal"):
        limited(60, "read")(int)("twelve")


def test_nobody_waits_for_a_call_that_was_given_up() -> None:
    reading, _ = os.pipe()
    with pytest.raises(TimeLimitError):
        limited(0.1, "decoded")(os.read)(reading, 1)
    waiting = [thread for thread in threading.enumerate() if thread.name == "time-limited"]
    assert waiting
    assert all(thread.daemon for thread in waiting)


def test_a_disk_that_does_not_answer_is_said_once_and_not_waited_for_by_file() -> None:
    reading, writing = os.pipe()
    read = limited(0.05, "read", most_in_a_row=3)(lambda blocks: os.read(reading, 1) if blocks else b"")
    for blocks in (True, True, False, True, True):  # one that is read in between shows that the disk answers
        with contextlib.suppress(TimeLimitError):
            assert read(blocks) == b""
    with pytest.raises(DataError, match=r"3 files in a row were not read within 0 s(.|\n)*does not answer"):
        read(True)
    os.write(writing, b"xxxxx")
    os.close(writing)


# Symbolic links between folders


def write_image(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image.png").write_bytes(b"")


def link_to_parent(root: Path) -> None:
    write_image(root / "a")
    (root / "a" / "up").symlink_to("..")


def link_to_grandparent_outside(root: Path) -> None:
    write_image(root / "a")
    (root / "a" / "out").symlink_to(root.parent)


def links_to_each_other(root: Path) -> None:
    for one, other in ("ab", "ba"):
        write_image(root / one)
        (root / one / "other").symlink_to(root / other)


def fan(root: Path) -> None:
    """Twelve folders with links to all others: 12! ways through them."""
    names = [chr(ord("a") + number) for number in range(12)]
    for one in names:
        write_image(root / one)
        for other in names:
            (root / one / f"to-{other}").symlink_to(root / other)


def doubling(root: Path) -> None:
    """Forty folders, each with ten links to the next: 10⁴⁰ ways to the last."""
    for number in range(40):
        write_image(root.parent / "levels" / str(number))
        for link in range(10):
            (root.parent / "levels" / str(number) / f"link{link}").symlink_to(f"../{number + 1}")
    root.mkdir()
    (root / "first").symlink_to("../levels/0")


def link_to_itself(root: Path) -> None:
    write_image(root / "a")
    (root / "a" / "self").symlink_to("self")


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [
        (link_to_parent, 1, 1),
        (link_to_grandparent_outside, 1, 1),
        (links_to_each_other, 2, 4),
        (fan, 12, 12 * 13),
        pytest.param(doubling, 40, 400, marks=pytest.mark.slow),
        (link_to_itself, 1, 1),
    ],
)
def test_folders_linked_in_any_way_are_walked_to_an_end(
    tmp_path: Path, make: Callable[[Path], None], least: int, most: int
) -> None:
    make(tmp_path / "root")
    images = [name for name in FolderSource(tmp_path / "root").names() if name.endswith("image.png")]
    assert least <= len(images) <= most
    real = {os.path.realpath(tmp_path / "root" / name) for name in images}
    assert len(real) == least, "every image is found"


@pytest.mark.slow
def test_links_that_were_not_followed_again_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fan(tmp_path / "root")
    list(FolderSource(tmp_path / "root").names())
    assert "followed only the first time, such as" in caplog.text


def test_different_links_to_one_folder_are_all_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "shared")
    for split in ("train", "test"):
        (tmp_path / "root" / split).mkdir(parents=True)
        (tmp_path / "root" / split / "a").symlink_to(tmp_path / "shared")
    assert sorted(FolderSource(tmp_path / "root").names()) == ["test/a/image.png", "train/a/image.png"]
    assert not caplog.text

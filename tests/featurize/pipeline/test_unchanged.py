"""Which images are taken for unchanged: states that coincide never stand for another content."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from xfeat.featurize.pipeline.extract import Changes

if TYPE_CHECKING:
    from conftest import Bench

OLD = (1_600_000_000, 1_600_000_000)


def twins(art: SimpleNamespace, *folders: Path) -> None:
    """Draw other images of the same names, size and time into each folder, and let all be touched in one tick."""
    for seed, folder in enumerate(folders):
        for number in range(3):
            art.draw(folder / f"{number}.bmp", seed=100 * seed + number)
    for number in range(3):
        files = [folder / f"{number}.bmp" for folder in folders]
        while len({(file.stat().st_ctime_ns, file.stat().st_mtime_ns, file.stat().st_size) for file in files}) > 1:
            for file in files:
                os.utime(file, OLD)


def exchange(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def exchange_classes(data: Path) -> None:
    exchange(data / "covid", data / "normal")


def exchange_deep_folders(data: Path) -> None:
    exchange(data / "covid" / "x" / "y", data / "normal" / "x" / "y")


def retarget_links(data: Path) -> None:
    exchange(data / "covid" / "linked", data / "normal" / "linked")


def exchange_files(data: Path) -> None:
    for number in range(3):
        exchange(data / f"covid/{number}.bmp", data / f"normal/{number}.bmp")


def link_over(data: Path) -> None:
    (data / "covid/0.bmp").unlink()
    os.link(data / "normal/0.bmp", data / "covid/0.bmp")


def write_through_a_hard_link(data: Path) -> None:
    other = (data / "normal/0.bmp").read_bytes()
    os.link(data / "covid/0.bmp", data / "covid/again.bmp")
    (data / "covid/again.bmp").write_bytes(other)
    (data / "covid/again.bmp").unlink()
    os.utime(data / "covid/0.bmp", OLD)


def replace_with_the_times(data: Path) -> None:
    new = data.parent / "new.bmp"
    shutil.copy2(data / "normal/0.bmp", new)
    new.replace(data / "covid/0.bmp")


EXCHANGES: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "folders": ("", exchange_classes, 6),
    "folders further below": ("x/y", exchange_deep_folders, 6),
    "links to folders": ("linked", retarget_links, 6),
    "files": ("", exchange_files, 6),
    "a file by a hard link": ("", link_over, 1),
    "content through a hard link": ("", write_through_a_hard_link, 1),
    "a file by one with its times": ("", replace_with_the_times, 1),
}


@pytest.mark.parametrize(("below", "change", "changed"), EXCHANGES.values(), ids=EXCHANGES)
def test_what_was_exchanged_is_noticed(
    bench: Bench, art: SimpleNamespace, below: str, change: Callable[[Path], None], changed: int
) -> None:
    shutil.rmtree(bench.data)
    folders = [bench.data / name / below for name in ("covid", "normal")]
    if below == "linked":
        targets = [bench.data.with_name(name) for name in ("first", "second")]
        twins(art, *targets)
        for folder, target in zip(folders, targets, strict=True):
            folder.parent.mkdir(parents=True)
            folder.symlink_to(target)
    else:
        twins(art, *folders)
    bench.run()
    change(bench.data)
    done = bench.run()
    assert (done.computed, done.changes) == (0, Changes(0, changed, 0)), "found by content"
    bench.check()
    assert bench.run().up_to_date


def test_a_data_set_exchanged_for_another_is_computed(bench: Bench, art: SimpleNamespace) -> None:
    shutil.rmtree(bench.data)
    other = bench.data.with_name("other")
    twins(art, bench.data / "covid", other / "covid")
    bench.run()
    exchange(bench.data, other)
    assert (bench.run().computed, bench.run().up_to_date) == (3, True)
    bench.check()


def copied_with_times(data: Path) -> Path:
    return Path(shutil.copytree(data, data.with_name("copy")))


def put_back_from_a_copy(data: Path) -> Path:
    copied_with_times(data)
    shutil.rmtree(data)
    return data.with_name("copy").rename(data)


def moved(data: Path) -> Path:
    return data.rename(data.with_name("moved"))


def unpacked(data: Path) -> Path:
    shutil.make_archive(str(data), "tar", data)
    shutil.rmtree(data)
    shutil.unpack_archive(f"{data}.tar", data)
    return data


def hard_linked(data: Path) -> Path:
    return Path(shutil.copytree(data, data.with_name("linked"), copy_function=os.link))


@pytest.mark.parametrize("move", [copied_with_times, put_back_from_a_copy, moved, unpacked, hard_linked])
def test_the_same_images_elsewhere_are_hashed_and_not_computed(bench: Bench, move: Callable[[Path], Path]) -> None:
    bench.run()
    bench.data = move(bench.data)
    done = bench.run()
    assert (done.computed, done.rehashed, done.changes) == (0, 12, Changes(0, 0, 0))
    bench.check()
    assert (bench.run().up_to_date, bench.opened) == (True, 1)


def test_an_archive_that_was_damaged_is_read_again(bench: Bench, tmp_path: Path) -> None:
    """Names, sizes, times and CRCs in its directory are those of before."""
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(bench.data.rglob("*.png")):
            file.write(path, path.relative_to(bench.data).as_posix())
        member = file.infolist()[0]
    bench.run(data=archive)
    content = bytearray(archive.read_bytes())
    content[member.header_offset + 30 + len(member.filename) + 60] ^= 1
    archive.write_bytes(content)
    done = bench.run(data=archive)
    assert [path for path, _ in done.skipped] == [member.filename]
    assert (done.images, done.computed, done.rehashed) == (11, 0, 11)

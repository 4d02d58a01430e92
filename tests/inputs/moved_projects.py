"""Projects that were moved: one is made by the commands, then everything of it lies elsewhere than its files say."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.caches import edit_cache, header_of, write_made_up
from tests.edited_runs import edit_run
from tests.export.conftest import invoke, make_project
from xfeat.head.cli import main as xhead

SWEEP = ("sweep", "--lr", "1e-3,1e-2", "--epochs", "2", "--hidden", "linear", "--json")
Move = Callable[[Path, Path], Path]
"""Takes a project and an empty folder, moves something, and returns where the run is now."""


def make_moved(folder: Path) -> None:
    """Run the commands in ``written/project``, and rename ``written``: no stored absolute path exists any more."""
    written = folder / "written" / "project"
    written.mkdir(parents=True)
    make_project(written)
    for command in (SWEEP, ("crossval", "--name", "cv", "--folds", "3", "--epochs", "2", "--hidden", "linear")):
        done = invoke(xhead, *command, "--features", written / "features.h5", "--runs", written / "runs")
        assert done.exit_code == 0, done.output
    (folder / "written").rename(folder / "elsewhere")


def store(project: Path, *, written_in: Path | None = None, absolute: str = "") -> None:
    """Rewrite what the files of a project store: that they were written there, or paths as of an earlier version.

    Args:
        project: the project, with ``runs/first``.
        written_in: the folder of the project that they say they were written in.
        absolute: the folder that absolute paths start with, as of another system with its own separators.
    """
    separator = "\\" if "\\" in absolute else "/"
    run_file = project / "runs" / "first" / "run.json"
    facts = json.loads(run_file.read_text())
    if absolute:
        facts["cache"] |= {
            name: separator.join((absolute, file))
            for name, file in (("path", "features.h5"), ("data_root", "data"), ("weights_path", "weights.pth"))
        }
        del facts["cache"]["written_in"]
        paths = {name: facts["cache"][name] for name in ("data_root", "weights_path")}
        edit_cache(project / "features.h5", written_in="", **paths)
    else:
        facts["cache"]["written_in"] = str(written_in / "runs" / "first")
        edit_cache(project / "features.h5", written_in=str(written_in))
    edit_run(run_file.parent, cache=facts["cache"])


def stored_paths(project: Path) -> dict[str, Any]:
    """Return every path that the files of a project store."""
    found: dict[str, Any] = {}
    for name in (
        "runs/first/run.json",
        "runs/cv/crossval.json",
        *sorted(map(str, project.glob("runs/sweep-*/sweep.json"))),
    ):
        found[name] = json.loads((project / name).read_text())["cache"]
    found["features.h5"] = header_of(project / "features.h5")
    return {
        f"{name}: {key}": facts[key]
        for name, facts in found.items()
        for key in ("path", "data_root", "weights_path")
        if key in facts
    }


def renamed(project: Path, free: Path) -> Path:
    return project.rename(free / "new name")


def deeper(project: Path, free: Path) -> Path:
    (free / "a" / "b" / "c").mkdir(parents=True)
    return project.rename(free / "a" / "b" / "c" / "p")


def copied_without_times(project: Path, free: Path) -> Path:
    """As ``cp -r`` does, and file systems without links."""
    shutil.copytree(project, free / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(project)
    return free / "copy"


def with_data_packed(project: Path, free: Path) -> Path:
    with zipfile.ZipFile(project / "data.zip", "w") as archive:
        for file in sorted((project / "data").rglob("*.png")):
            archive.write(file, file.relative_to(project / "data"))
    shutil.rmtree(project / "data")
    return project


def with_data_unpacked_beside_the_cache(project: Path, free: Path) -> Path:
    for folder in (project / "data").iterdir():
        folder.rename(project / folder.name)
    (project / "data").rmdir()
    return project


def seen_through_a_link(project: Path, free: Path) -> Path:
    (free / "link").symlink_to(project)
    return free / "link"


def run_alone_elsewhere(project: Path, free: Path) -> Path:
    """The project stays where it was written; only its runs leave it."""
    store(project, written_in=project)
    (project / "runs").rename(free / "runs")
    return free


def beside_the_original(project: Path, free: Path) -> Path:
    store(project, written_in=project)
    return Path(shutil.copytree(project, free / "copy", symlinks=True))


def of_an_earlier_version(project: Path, free: Path) -> Path:
    store(project, absolute="/home/somebody/study")
    return project


def of_an_earlier_version_in_place(project: Path, free: Path) -> Path:
    store(project, absolute=str(project))
    return project


def of_windows(project: Path, free: Path) -> Path:
    store(project, absolute=r"C:\Users\somebody\study")
    return project


def of_a_windows_share(project: Path, free: Path) -> Path:
    store(project, absolute=r"\\server\share\study")
    return project


def relative_of_windows(project: Path, free: Path) -> Path:
    run_file = project / "runs" / "first" / "run.json"
    facts = json.loads(run_file.read_text())
    for name in ("path", "data_root", "weights_path"):
        facts["cache"][name] = facts["cache"][name].replace("/", "\\")
    facts["cache"]["written_in"] = r"D:\study\runs\first"
    edit_run(run_file.parent, cache=facts["cache"])
    return project


def with_another_cache_in_its_place(project: Path, free: Path) -> Path:
    """The cache has been renamed, and another one has its name now."""
    (project / "features.h5").rename(project / "old.h5")
    columns = {"label": [0, 1], "split": [0, 0], "path": ["a.png", "b.png"]}
    write_made_up(project / "features.h5", np.eye(2, 4, dtype=np.float32), columns, ["bar", "disc"])
    return project


def with_other_images_in_their_place(project: Path, free: Path) -> Path:
    """The images have been renamed, and others with their names, in their folder, lie there now."""
    (project / "data").rename(project / "old")
    for file in sorted((project / "old").rglob("*.png")):
        target = project / "data" / file.relative_to(project / "old")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes() + b"another content")
    return project


# What is renamed within a project, or above it.
RENAMED = {
    "with_cache_elsewhere": ("features.h5", "caches/b0.h5"),
    "with_cache_in_a_folder": ("features.h5", "caches/features.h5"),
    "with_data_renamed": ("data", "pictures"),
    "with_data_in_a_folder": ("data", "sets/xray"),
    "with_data_above": ("data", "../data"),
    "with_runs_in_a_folder": ("runs", "results/2026/runs"),
}


def rename(project: Path, free: Path, *, before: str, after: str) -> Path:
    (project / after).parent.mkdir(parents=True, exist_ok=True)
    (project / before).rename(project / after)
    return project


def put_behind_a_link(project: Path, free: Path, *, name: str) -> Path:
    (project / name).rename(free / "on another disk")
    (project / name).symlink_to(free / "on another disk")
    return project


MOVES: dict[str, Move] = {name: partial(rename, before=one, after=other) for name, (one, other) in RENAMED.items()}
MOVES |= {f"with_{name}_behind_a_link": partial(put_behind_a_link, name=name) for name in ("data", "runs")}
MOVES |= {
    move.__name__: move
    for move in (
        renamed,
        deeper,
        copied_without_times,
        with_data_packed,
        with_data_unpacked_beside_the_cache,
        seen_through_a_link,
        run_alone_elsewhere,
        beside_the_original,
        of_an_earlier_version,
        of_an_earlier_version_in_place,
        of_windows,
        of_a_windows_share,
        relative_of_windows,
        with_another_cache_in_its_place,
        with_other_images_in_their_place,
    )
}

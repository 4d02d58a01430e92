"""Images read in processes: the same rows as in threads, and what becomes of the processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.errors import DeviceError
from xfeat.featurize.pipeline.reading import ReadImage, read_images
from xfeat.featurize.pipeline.reading_processes import read_in_processes, suits_processes
from xfeat.featurize.sources.folder import FolderSource

if TYPE_CHECKING:
    from conftest import Bench

NOTHING = np.zeros(0, "S64")


def paths_of(bench: Bench) -> list[str]:
    return sorted(path.relative_to(bench.data).as_posix() for path in bench.data.rglob("*.*"))


def told(image: ReadImage) -> tuple[object, ...]:
    return image.path, image.identity, image.reason, None if image.pixels is None else image.pixels.tobytes()


def test_many_cores_start_no_more_processes_than_windows_allows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    def start(workers: int, *_: object, **__: object) -> None:
        raise Started(workers)

    monkeypatch.setattr("xfeat.featurize.pipeline.reading_processes.ProcessPoolExecutor", start)
    for workers, started in {2: 2, 61: 61, 62: 61, 256: 61}.items():
        source = FolderSource(bench.data)
        with pytest.raises(Started, match=rf"^{started}$"):
            next(read_in_processes(source, paths_of(bench), bench.spec, known=NOTHING, workers=workers))


def test_processes_give_what_threads_give_in_their_order(bench: Bench) -> None:
    (bench.data / "covid/broken.png").write_bytes(b"no image")
    spec, paths = dataclasses.replace(bench.spec, views=2), [*paths_of(bench), "covid/absent.png"]
    threads = list(read_images(FolderSource(bench.data), paths, spec, is_known=lambda _: False, workers=2))
    found = list(read_in_processes(FolderSource(bench.data), paths, spec, known=NOTHING, workers=2))
    assert [told(image) for image in found] == [told(image) for image in threads]
    identity = threads[3].identity
    assert identity is not None
    known = np.array([identity.sha256], "S64")
    again = list(read_in_processes(FolderSource(bench.data), paths, spec, known=known, workers=1))
    assert [image.path for image in again if image.identity is not None and image.pixels is None] == [paths[3]]


def test_a_run_in_processes_writes_the_same_cache(bench: Bench) -> None:
    bench.run(decode_in="threads")
    expected = FeatureCache.open(bench.output)
    bench.output = bench.output.with_name("processes.h5")
    assert bench.run(decode_in="processes").computed == 12
    assert bench.check().content_sha256 == expected.content_sha256
    assert not multiprocessing.active_children()


def test_processes_are_for_many_workers_and_many_images() -> None:
    assert suits_processes(16, 2_000)
    assert not suits_processes(8, 1_000_000)
    assert not suits_processes(16, 1_999)


def test_a_process_that_dies_is_one_message_and_what_was_read_stays_read(bench: Bench) -> None:
    more_than_are_read_ahead = paths_of(bench) * 20
    images = read_in_processes(FolderSource(bench.data), more_than_are_read_ahead, bench.spec, known=NOTHING, workers=1)
    assert next(images).pixels is not None
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match=r"a process that decodes images died(.|\n)*--decode-in threads"):
        list(images)


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from xfeat.featurize.pipeline.reading_processes import read_in_processes
from xfeat.featurize.sources.folder import FolderSource
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec
if __name__ == "__main__":
    import multiprocessing
    spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=32))
    folder = FolderSource(Path(sys.argv[1]))
    images = read_in_processes(folder, ["covid/000.png"] * 99, spec, known=np.zeros(0, "S64"), workers=1)
    next(images)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


def test_processes_end_with_a_parent_that_is_killed(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, script, bench.data], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(200):
        if not is_alive(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it outlived its parent")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

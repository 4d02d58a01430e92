"""Does ``xhead train`` stay small on a cache larger than memory, and how much slower is reading it in blocks?

    python benchmarks/head_large.py [--rows 100000] [--dim 1280] [--memory-mb 400] [--rounds 2] [--folder DIR]

- peak memory of a whole ``xhead train`` process with --memory-mb;
- rows per second of the training loop over one buffer: from memory, from blocks of a file in the operating system's
  cache, and from blocks of a file on the disk. The three alternate; the fastest round of each counts, since other
  programs can only make a round slower.

A million rows (--rows 1000000 --memory-mb 1000) need 2.7 GB on the disk of ``--folder``, and 5 GB of memory for the
loop in memory. The files are deleted afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from xfeat.featurize.cache.columns import CacheDescription
from xfeat.featurize.cache.reader import Columns, FeatureCache
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.specs import FeatureSpec
from xfeat.head.data.rows import AnyRows, EqualBatches, labelled_rows, plan_reading
from xfeat.head.data.splits import split_rows
from xfeat.head.specs import HeadSpec, MemorySpec, TrainSpec
from xfeat.head.training.fit import fit_head

LIMIT_MB = 1500
HEADS = {
    "512,128": (HeadSpec(), TrainSpec(epochs=1)),
    "linear, batches of 256": (HeadSpec(hidden=()), TrainSpec(epochs=1, batch_size=256)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 100_000), ("dim", 1280), ("memory-mb", 400), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "features.h5"
        write(path, options.rows, options.dim)
        print(f"{options.rows:,} rows of {options.dim} float16 features, {path.stat().st_size / 1e6:,.0f} MB")
        peak = peak_of_training(path, options.memory_mb)
        print(f"xhead train, all of it: peak memory {peak:,.0f} MB, {peak / LIMIT_MB:.2f} of the limit", flush=True)
        cache = FeatureCache.open(path)
        rows = split_rows(cache, seed=0).rows["train"]
        reading = plan_reading(cache, len(rows), MemorySpec(memory_mb=options.memory_mb))
        if reading.buffer_rows is None:
            parser.error(f"{len(rows):,} rows fit into --memory-mb {options.memory_mb:g}, so none is read in blocks")
        print(f"a buffer holds {reading.buffer_rows} rows, a block {reading.block_rows}")
        print(f"{'head':>24} {'memory, rows/s':>16} {'blocks, of it':>14} {'from the disk':>14}")
        in_memory, stored = labelled_rows(cache, rows), reading.load(cache, rows)
        for head in HEADS:
            memory, cached, disk = race(head, in_memory, stored, path, reading.buffer_rows, options.rounds)
            print(f"{head:>24} {memory:16,.0f} {cached / memory:14.2f} {disk / memory:14.2f}", flush=True)


def peak_of_training(path: Path, memory_mb: int) -> float:
    """Return the peak memory, in MB, of ``xhead train`` over one epoch, without its worker process."""
    command = [str(Path(sys.executable).with_name("xhead")), "train", "--epochs", "1", "--batch-size", "256"]
    command += ["--features", str(path), "--runs", str(path.parent / "runs"), "--memory-mb", str(memory_mb)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    return usage.ru_maxrss * 1024 / 1e6  # kB on Linux


@dataclass(frozen=True)
class FirstBatches:
    """The first batches of an epoch."""

    rows: AnyRows
    count: int

    @property
    def labels(self) -> Tensor:
        return self.rows.labels

    @property
    def dim(self) -> int:
        return self.rows.dim

    def epoch(self, batch_size: int, seed: int, epoch: int) -> Iterator[EqualBatches]:
        first = next(self.rows.epoch(batch_size, seed, epoch))
        yield first._replace(places=first.places[: self.count], labels=first.labels[: self.count])


def race(
    name: str, in_memory: AnyRows, stored: AnyRows, path: Path, buffer_rows: int, rounds: int
) -> tuple[float, float, float]:
    """Return rows per second from memory, from a cached file and from the disk."""
    head, train = HEADS[name]
    count = buffer_rows // train.batch_size
    best = [float("inf")] * 3
    for _ in range(rounds):
        for place, (rows, evict) in enumerate(((in_memory, False), (stored, False), (stored, True))):
            if evict:
                forget(path)
            started = time.perf_counter()
            fit_head(head, train, FirstBatches(rows, count), None, classes=2)  # type: ignore[arg-type]
            best[place] = min(best[place], time.perf_counter() - started)
    memory, cached, disk = (count * train.batch_size / seconds for seconds in best)
    return memory, cached, disk


def forget(path: Path) -> None:
    """Drop a file from the operating system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(path: Path, count: int, dim: int) -> None:
    """Write a cache sorted by class, as from class folders; of ten rows, one is for validation and one for test."""
    random = np.random.default_rng(0)
    label = np.sort(np.arange(count) % 2).astype(np.int32)
    means = random.normal(size=(2, dim)) * 0.05
    noise = random.standard_normal((8192, dim), dtype=np.float32)

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, count, 4096):
            rows = label[first : first + 4096]
            start = int(random.integers(4096))
            yield first, (noise[start : start + len(rows)] + means[rows]).astype(np.float16)

    write_cache(
        path,
        CacheDescription(
            spec=FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64, dtype="float16"),
            class_names=["covid", "normal"],
            data_root=str(path.parent),
            weights_path="",
            columns=Columns(
                label=label,
                split=np.array([0, 0, 0, 0, 1, 2, 0, 0, 0, 0], np.uint8)[np.arange(count) % 10],
                path=[f"{row:09d}.png" for row in range(count)],
                group=[f"patient-{row // 10:06d}" for row in range(count)],
                sha256=[hashlib.sha256(b"%d" % row).hexdigest() for row in range(count)],
                size=np.ones(count, np.int64),
                mtime_ns=np.ones(count, np.int64),
                change_mark=np.ones(count, np.int64),
                truncated=np.zeros(count, np.bool_),
            ),
            skipped=[],
        ),
        blocks=blocks(),
        dim=dim,
    )


if __name__ == "__main__":
    main()

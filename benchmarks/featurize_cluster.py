"""What is the overhead of a cluster, and how long would a large data set take?

    python benchmarks/featurize_cluster.py [--images 100000000] [--rows 200000] [--folder DIR]

- the same drawn images with the local engine and with ``--engine ray`` on the cores of this machine: the ratio is the
  overhead of Ray;
- the speed of the writing process with generated rows, and its memory per row;
- from these, the time, disk space and memory for ``--images``. GPUs are not measured.

Rates are images per second of processor time of this process and all its child processes, Ray included, measured after
the first images; other programs on the machine do not count. Linux only. 200,000 rows of 1280 features need 2 GB
on the disk of ``--folder`` for a while.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from xfeat.featurize.backbones.weights import find_preferred_weights
from xfeat.featurize.cache.shards import FileIdentity
from xfeat.featurize.cluster.engine import RayCluster
from xfeat.featurize.datasets.layouts import NO_LABEL, NO_SPLIT, Dataset, ImageEntry, open_dataset
from xfeat.featurize.engines import open_engine
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import extract_features
from xfeat.featurize.pipeline.inference import Outcome
from xfeat.featurize.specs import FeatureSpec

DIM = 1280
SIDE = 1000
DRAWN = 320
STEPS = ("local", "ray", "writer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(*run_step(options.step, options.folder, options.count))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        draw(Path(folder, "data"), DRAWN)
        run("local", folder, DRAWN)  # converts the network, once
        # A busy machine affects processor times too: take the best of three, in turns.
        rates = [[run(step, folder, DRAWN)[0] for step in ("local", "ray")] for _ in range(3)]
        local, ray = (max(rate) for rate in zip(*rates, strict=True))
        few, many = (run("writer", folder, rows) for rows in (options.rows // 4, options.rows))
    writer, memory = many[0], (many[1] - few[1]) / (options.rows - options.rows // 4)
    print(f"{'':34}{'measured':>14}{'ratio':>8}")
    print(f"{'local engine, images/s per core':34}{local:>14.1f}{1:>8}")
    print(f"{'ray, images/s per core':34}{ray:>14.1f}{ray / local:>8.2f}")
    print(f"{'the writing process, rows/s':34}{writer:>14.0f}{writer / local:>8.0f}")
    print(f"{'its memory, bytes per row':34}{memory:>14.0f}")
    forecast(options.images, ray, writer, memory)


def run(step: str, folder: str, count: int) -> tuple[float, float]:
    """Run one step in a process of its own; return its rate (see the top) and its peak memory in bytes."""
    command = [sys.executable, __file__, "--step", step, "--folder", folder, "--count", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rate, peak = done.stdout.split()[-2:]
    return float(rate), float(peak)


def run_step(step: str, folder: Path, count: int) -> tuple[float, int]:
    """Featurize drawn images, or write generated rows."""
    weights = find_preferred_weights()
    spec = FeatureSpec(backbone=weights.backbone, weights_sha256=weights.sha256)
    dataset = open_dataset(folder / "data") if step != "writer" else Dataset(folder / "nowhere", (), no_files(count))
    cluster = {"local": None, "writer": InstantCluster(), "ray": RayCluster(spec=spec, weights=weights, device="cpu")}[
        step
    ]
    output = folder / f"{step}.h5"
    seen: list[tuple[float, int]] = []
    clock = time.monotonic if step == "writer" else processor_seconds
    extract_features(
        replace(dataset, entries=dataset.entries[:count]),
        spec,
        weights,
        output,
        RunOptions(
            open_engine=lambda: open_engine(spec, weights, device="cpu"),
            cluster=cluster,
            force=True,
            progress=lambda done, _: seen.append((clock(), done)),
        ),
    )
    output.unlink()
    (since, before), (now, after) = seen[0], seen[-1]
    return (after - before) / (now - since), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kB on Linux


def processor_seconds() -> float:
    """Return the processor time of this process and of all below it."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    waiting, total = [os.getpid()], 0
    while waiting:
        process = waiting.pop()
        total += ticks.get(process, 0)
        waiting += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")


def no_files(count: int) -> list[ImageEntry]:
    """Return entries of a data set of ``count`` images."""
    return [ImageEntry(f"train/covid/image-{index:09d}.png", NO_LABEL, NO_SPLIT) for index in range(count)]


class InstantCluster:
    """A cluster that returns generated features at once."""

    name = "instant"

    def outcomes(
        self, source: object, root: Path, paths: list[str], known: object
    ) -> Iterator[list[tuple[int, Outcome]]]:
        features = np.random.default_rng(0).random((256, DIM), np.float32)
        for first in range(0, len(paths), 256):
            numbers = range(first, min(first + 256, len(paths)))
            digests = (hashlib.sha256(b"%d" % number).hexdigest() for number in numbers)
            yield [
                (
                    number,
                    Outcome(
                        FileIdentity(number, number + 1, number + 1, sha256, truncated=False), features[number % 256]
                    ),
                )
                for number, sha256 in zip(numbers, digests, strict=True)
            ]


def draw(folder: Path, count: int) -> None:
    """Draw PNG files of a megapixel with some grain, which take about as long to decode as X-rays."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        grain = Image.fromarray(random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
        grain.filter(ImageFilter.BoxBlur(2)).save(folder / f"{number:04d}.png")


def forecast(images: int, per_core: float, writes: float, memory: float) -> None:
    """Print the estimate for ``images``."""
    row = 4 * DIM
    print(f"\n{images:,} images")
    print(f"{'processor time, core hours':34}{images / per_core / 3600:>14,.0f}")
    print(f"{'on 64 machines of 64 cores, hours':34}{images / per_core / 3600 / 4096:>14,.1f}")
    print(f"{'the writing process, hours':34}{images / writes / 3600:>14,.1f}")
    print(f"{'its memory, GB':34}{images * memory / 1e9:>14,.0f}")
    print(f"{'features.h5, GB':34}{images * row / 1e9:>14,.0f}")
    print(f"{'with shards, before the end, GB':34}{images * row * 2 / 1e9:>14,.0f}")


if __name__ == "__main__":
    main()

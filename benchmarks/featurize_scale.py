"""Time and memory of ``xfeat featurize`` on large data sets. Rows are generated; nothing is decoded.

    python benchmarks/featurize_scale.py [--rows 1000000] [--dim 1280] [--files 10000] [--folder DIR]

- write, open, verify and index a cache of many rows, each step in a process of its own, with its peak memory;
- a second run over many unchanged files, compared with a run that computes them (with an engine that takes no time).

A million rows of 1280 features need 5.2 GB in ``--folder``; they are removed afterwards.
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
from pathlib import Path

import numpy as np
from PIL import Image

from xfeat.featurize.backbones.weights import Weights
from xfeat.featurize.cache.columns import CacheDescription, Columns
from xfeat.featurize.cache.index import FeatureIndex
from xfeat.featurize.cache.reader import FeatureCache
from xfeat.featurize.cache.shards import IDENTITY
from xfeat.featurize.cache.writer import write_cache
from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.pipeline.compute import RunOptions
from xfeat.featurize.pipeline.extract import extract_features
from xfeat.featurize.specs import FeatureSpec, PreprocessSpec

LIMIT_MB = 1024
STEPS = ("write", "open", "verify", "index")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.folder / "big.h5", options.rows, options.dim)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(f"{options.rows:,} rows of {options.dim} features")
        print(f"{'':12}{'seconds':>10}{'peak MB':>10}{'of the limit':>14}")
        for step in STEPS:
            sizes = ["--rows", str(options.rows), "--dim", str(options.dim), "--folder", folder]
            subprocess.run([sys.executable, __file__, "--step", step, *sizes], check=True)
        Path(folder, "big.h5").unlink()
        compare_runs(Path(folder), options.files)


def run_step(step: str, path: Path, rows: int, dim: int) -> None:
    """Run one step and print its time and the peak memory of this process."""
    columns = generated_columns(rows) if step == "write" else None
    started = time.perf_counter()
    if columns is not None:
        write_cache(
            path,
            CacheDescription(
                spec=FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64),
                class_names=["covid", "normal"],
                data_root="/data",
                weights_path="/weights.pth",
                columns=columns,
                skipped=[],
            ),
            blocks=generated_blocks(rows, dim),
            dim=dim,
        )
    else:
        cache = FeatureCache.open(path)
        if step == "verify":
            cache.verify()
        elif step == "index":
            known = FeatureIndex()
            known.add_cache(cache, cache.data_root)
            known.find_paths(list(cache.columns.path), np.zeros(rows, IDENTITY))
            known.find_content(cache.columns.sha256[0])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # kB on Linux
    print(f"{step:12}{seconds:>10.2f}{peak:>10}{peak / LIMIT_MB:>14.2f}", flush=True)


def generated_columns(rows: int) -> Columns:
    """Return the columns of a data set of ``rows`` images."""
    return Columns(
        label=np.zeros(rows, np.int32),
        split=np.zeros(rows, np.uint8),
        path=[f"train/covid/image-{index:09d}.png" for index in range(rows)],
        group=[f"patient-{index // 3:07d}" for index in range(rows)],
        sha256=[hashlib.sha256(b"%d" % index).hexdigest() for index in range(rows)],
        size=np.arange(rows, dtype=np.int64),
        mtime_ns=np.arange(rows, dtype=np.int64),
        change_mark=np.arange(rows, dtype=np.int64),
        truncated=np.zeros(rows, np.bool_),
    )


def generated_blocks(rows: int, dim: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield features block by block, as a run does."""
    block = np.random.default_rng(0).random((2048, dim), np.float32)
    for first in range(0, rows, len(block)):
        yield first, block[: rows - first]


class FreeEngine:
    """An engine that takes no time, so that only the rest of the run is measured."""

    name, batch_size = "free", 32

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return np.zeros((len(pixels), 1280), np.float32)


def compare_runs(folder: Path, count: int) -> None:
    """Time a first and a second run over many small files."""
    data = folder / "data"
    data.mkdir()
    for index in range(count):
        path = data / f"{index:07d}.bmp"
        Image.fromarray(np.full((8, 8), index % 256, np.uint8)).save(path)
        with path.open("ab") as file:
            file.write(index.to_bytes(4, "big"))
        os.utime(path, (1_600_000_000, 1_600_000_000))
    spec = FeatureSpec(backbone="efficientnet-b0", weights_sha256="0" * 64, preprocess=PreprocessSpec(size=32))
    weights = Weights("efficientnet-b0", folder / "weights.pth", "0" * 64)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        done = extract_features(
            open_dataset(data), spec, weights, folder / "features.h5", RunOptions(open_engine=FreeEngine, workers=2)
        )
        seconds.append(time.perf_counter() - started)
    assert done.up_to_date, "the second run must find nothing changed"
    print(
        f"{count:,} files: first run {seconds[0]:.2f} s, second run {seconds[1]:.2f} s: {seconds[0] / seconds[1]:.0f}x"
    )


if __name__ == "__main__":
    main()

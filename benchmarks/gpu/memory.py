"""GPU memory that is too small: batches are halved with the same features, or one message says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from gpu.inputs import B0, pixels, spec_of, weights_of
from gpu.report import Report, difference

from xfeat.featurize.engines.batch_size import find_batch_size
from xfeat.featurize.engines.torch_engine import TorchEngine
from xfeat.featurize.errors import DeviceError

_LARGE = 512
# Run by a process of its own while this one holds nearly all of the card.
_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from gpu.memory import fill
fill(*sys.argv[2:])
"""


def memory(report: Report) -> None:
    """Allow this process less and less memory; then leave another process less and less."""
    if report.small:
        report.add("needs a GPU", "left out")
        return
    images = pixels(_LARGE, 224)
    weights = weights_of(B0, report.work)
    engine = TorchEngine(spec_of(B0, weights, 224), weights, device=report.device, batch_size=32)
    expected = engine.features(images[:128])
    total = torch.cuda.mem_get_info(report.device)[1]
    for megabytes in (6000, 1500, 500):
        with report.part(f"{megabytes} MB allowed"):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(megabytes * 1e6 / total)
            engine.batch_size = _LARGE
            found = engine.features(images)[:128]
            report.add(f"{megabytes} MB allowed, from batches of {_LARGE}", f"batches of {engine.batch_size}")
            report.at_most(f"{megabytes} MB allowed: features", difference(found, expected), 1e-4)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    with report.part("--batch-size auto"):
        find_batch_size(engine, 224)
        report.add("--batch-size auto", f"batches of {engine.batch_size}")
    del engine
    for megabytes in (4000, 1200, 700, 300):
        with report.part(f"{megabytes} MB left by others"):
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info(report.device)[0]
            held = torch.empty(max(0, free - megabytes * 1_000_000), dtype=torch.uint8, device=report.device)
            words = [str(Path(__file__).parents[1]), report.device, str(report.work)]
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, *words], capture_output=True, text=True, timeout=60, check=False
            )
            del held
            said = (done.stdout or done.stderr).strip().splitlines()
            what = f"{megabytes} MB left by others"
            report.add(what, said[-1][:200], "halved, or a message", done.returncode == 0)


def fill(device: str, work: str) -> None:
    """Compute features, and print how that went."""
    weights = weights_of(B0, Path(work))
    try:
        engine = TorchEngine(spec_of(B0, weights, 224), weights, device=device, batch_size=128)
        engine.features(pixels(128, 224))
        print(f"batches of {engine.batch_size}")
    except DeviceError as error:
        print(f"message: {' '.join(str(error).split())}")

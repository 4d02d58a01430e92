"""One run on a machine with a GPU: is everything right there that no CPU can tell, and how fast is it?

    python benchmarks/gpu_check.py                  # on cuda:0, under 10 minutes
    python benchmarks/gpu_check.py --device cpu     # a rehearsal without a GPU, with small numbers
    python benchmarks/gpu_check.py parity ort       # some stages only

Each stage is a process with a time limit and writes its lines at once, so one that crashes or hangs costs only itself.
All images are drawn, and nothing is downloaded. It ends in one table: figures beside what they must keep to, or beside
what decoding (``decode``), the network (``network``) and copying to the GPU (``copy``) do alone on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from gpu.report import Report, read_lines, table  # noqa: E402 - found by the line above

# Below this a stage is not started.
_LEAST_S = 5
_NO_DEVICE = 3


@dataclass(frozen=True)
class Stage:
    """A function, as ``module:name``, that takes a report; and its time limit in seconds."""

    function: str
    limit_s: float


# The most important first.
STAGES = {
    "machine": Stage("gpu.machine:machine", 60),
    "parity": Stage("gpu.features:parity", 120),
    "featurize": Stage("gpu.features:featurize", 150),
    "ort": Stage("gpu.serving:ort", 120),
    "serve": Stage("gpu.serving:serve", 70),
    "sweep": Stage("gpu.training:sweep", 80),
    "memory": Stage("gpu.memory:memory", 90),
    "tests": Stage("gpu.machine:tests", 150),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu for a rehearsal")
    parser.add_argument("--budget", type=float, default=570, metavar="SECONDS", help="for all stages")
    parser.add_argument("--work", type=Path, help="folder for data and results; by default a temporary one")
    parser.add_argument("--run", nargs=2, metavar=("STAGE", "FUNCTION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        run_here(*options.run, Report(options.run[0], options.device, options.work))
        return 0
    chosen = {name: STAGES[name] for name in options.stages or STAGES}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        (work / "results.jsonl").unlink(missing_ok=True)
        run_stages(chosen, options.device, work, options.budget)
        lines = read_lines(work)
    print(f"\n{table(lines)}")
    return int(any(line.ok is False for line in lines))


def run_stages(stages: Mapping[str, Stage], device: str, work: Path, budget_s: float) -> None:
    """Run each stage in a process of its own; how it ended is a line of the report."""
    until = time.monotonic() + budget_s
    for name, stage in stages.items():
        report = Report(name, device, work)
        left = until - time.monotonic()
        if left < _LEAST_S:
            report.add("stage", "left out: no time", ok=False)
            continue
        started = time.monotonic()
        limit_s = min(stage.limit_s * (2 if report.small else 1), left)  # cores of a rehearsal may be busy
        code = run_process(name, stage.function, device, work, limit_s)
        ended = {None: "STOPPED at its limit", 0: "ended", _NO_DEVICE: "STOPPED: no CUDA, so no other stage is run"}
        report.add(
            "stage",
            ended.get(code) or (f"FAILED: exit code {code}" if code > 0 else f"CRASHED: {signal.Signals(-code).name}"),
            f"{time.monotonic() - started:.0f} of {limit_s:.0f} s",
            code == 0,
        )
        if code == _NO_DEVICE:
            return


def run_process(name: str, function: str, device: str, work: Path, limit_s: float) -> int | None:
    """Run a stage; return its exit code, or ``None`` if it was stopped. Its own processes end with it."""
    command = [sys.executable, __file__, "--run", name, function, "--device", device, "--work", str(work)]
    # The cache folder keeps converted networks: one of this run, not the user's.
    environment = {**os.environ, "XFEAT_CACHE_DIR": str(work / "cache"), "PYTHONFAULTHANDLER": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"  # torch's threads spin, and would wait for one another on busy cores
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if os.name == "posix":  # the group outlives its first process if a stage left something running
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def run_here(name: str, function: str, report: Report) -> None:
    """Run a stage in this process, unless the device is not usable."""
    from xfeat.featurize.errors import XfeatError
    from xfeat.featurize.system.devices import check_gpu_in_torch

    if report.device != "cpu":
        try:
            check_gpu_in_torch(report.device)
        except XfeatError as error:
            report.add("device", f"no CUDA: {' '.join(str(error).split())}", ok=False)
            sys.exit(_NO_DEVICE)
    module, _, function = function.partition(":")
    with report.part(name):
        getattr(importlib.import_module(module), function)(report)


if __name__ == "__main__":
    sys.exit(main())

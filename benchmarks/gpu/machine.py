"""Which machine this is, and the tests that need a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

from gpu.inputs import ROOT, command, pixels
from gpu.report import Report, seconds_per_call

from xfeat.featurize.doctor.report import FAIL
from xfeat.featurize.system.cores import cores


def machine(report: Report) -> None:
    """Report what ``xfeat doctor`` finds, and how fast images are copied to the device."""
    import numpy
    import onnxruntime
    import torch

    report.add("cores", cores())
    report.add("python, numpy", f"{sys.version.split()[0]}, {numpy.__version__}")
    report.add("torch, onnxruntime", f"{torch.__version__}, {onnxruntime.__version__}")
    with report.part("xfeat doctor"):
        done = command("featurize", "doctor", "--json", cwd=report.work)
        for line in json.loads(done.stdout)["topics"]["GPU"]:
            report.add(f"xfeat doctor: {line['name']}", line["found"][:120], ok=line["state"] != FAIL)
    if report.small:
        return
    with report.part("GPU"):
        free, total = torch.cuda.mem_get_info(report.device)
        report.add("GPU", f"{torch.cuda.get_device_name(report.device)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    with report.part("copy"):
        batch = torch.from_numpy(pixels(128, 224))
        for what, source in (("pageable", batch), ("pinned", batch.pin_memory())):
            taken = seconds_per_call(
                lambda source=source: source.to(report.device, non_blocking=True), device=report.device
            )
            report.rate(f"128 images to the GPU, from {what} memory", len(batch) / taken)


def tests(report: Report) -> None:
    """Run the tests marked ``gpu``."""
    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in file.read_text()]
    words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, marked)]
    if report.small:
        words += ["--collect-only"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout.strip().splitlines()
    if report.small:
        report.true("pytest -m gpu: tests can be collected", done.returncode == 0)
        return
    report.add("pytest -m gpu", said[-1] if said else done.stderr[-300:], "no failures", done.returncode == 0)
    for line in said:
        if line.startswith(("FAILED", "ERROR")):
            report.add("pytest -m gpu", line[:200], ok=False)

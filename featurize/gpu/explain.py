"""Says why a library cannot use a GPU, and what to do: the one place that compares libraries, driver and card."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from xfeat.featurize.errors import DeviceError
from xfeat.featurize.gpu.driver import CUDA_LIBRARY, Driver, read_driver
from xfeat.featurize.gpu.memory import is_out_of_memory

Capability = tuple[int, int]

RESTART = "restart the machine after an update of the driver; nvidia-smi must work"
# The oldest driver for each major version of CUDA, on Linux and Windows. Source: NVIDIA's release notes of the CUDA
# Toolkit, "Minimum Required Driver Version for CUDA Minor Version Compatibility".
_OLDEST_DRIVER = {12: 525, 13: 580}
_MISSING_LIBRARY = re.compile(r"cannot open shared object file|Failed to load|LoadLibrary failed|Could not (find|load)")


class Build(NamedTuple):
    """A library as it was built.

    Attributes:
        name: with its version.
        cuda: the version of CUDA that it was built for, such as ``(13, 0)``, or ``None``: for none.
        code_for: compute capabilities that it has machine code for; empty if that is not known.
        also_newer: whether the driver can also compile its code for newer cards.
        install: how to install the build for the newest CUDA.
        install_cuda12: how to install the newest build for CUDA 12.
    """

    name: str
    cuda: tuple[int, int] | None
    code_for: tuple[Capability, ...]
    install: str
    install_cuda12: str
    also_newer: bool = False

    def runs_on(self, capability: Capability) -> bool:
        """Whether it has code for a card: code for 8.6 runs on 8.6 to 8.9, and not on 9.0."""
        if not self.code_for or (self.also_newer and capability > max(self.code_for)):
            return True
        return any(major == capability[0] and minor <= capability[1] for major, minor in self.code_for)


def device_error(build: Build, device: str, failure: str) -> DeviceError:
    """Return the message for a GPU that a library cannot use.

    Args:
        build: the library.
        device: ``cuda`` or ``cuda:N``.
        failure: what the library said; shown if nothing else explains it.
    """
    expected, found, fix = _cause(build, read_driver(), int(device.partition(":")[2] or 0), failure)
    return DeviceError(
        f"{build.name} cannot use {device}", expected=expected, found=found, fix=f"{fix}, or run on the CPU"
    )


def _cause(build: Build, driver: Driver | None, number: int, failure: str) -> tuple[str, str, str]:
    """Return what was expected, what was found, and how to fix it."""
    if driver is None:
        expected, found = "an NVIDIA GPU and its driver", f"no driver ({CUDA_LIBRARY} cannot be loaded)"
        return expected, found, "install NVIDIA's driver until nvidia-smi shows the card (a container needs --gpus all)"
    if driver.failure is not None:
        return "a driver that works", f"{driver}, and does not start: {driver.failure}", RESTART
    if build.cuda is None:
        return "a build for CUDA", f"a build for the CPU only, and {driver}", build.install
    if driver.cuda[0] < build.cuda[0]:
        oldest = _OLDEST_DRIVER.get(build.cuda[0], "a newer one")
        expected = f"a driver for CUDA {build.cuda[0]}: {oldest} or newer"
        return expected, str(driver), f"update the driver, or take a build for CUDA 12: {build.install_cuda12}"
    if number >= len(driver.gpus):
        found = ", ".join(f"cuda:{index} {gpu.name}" for index, gpu in enumerate(driver.gpus)) or "no GPU"
        if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
            found += f", with CUDA_VISIBLE_DEVICES={visible!r}"
        return f"a GPU with the number {number}", found, "name a device that is there"
    gpu = driver.gpus[number]
    if not build.runs_on(gpu.capability):
        expected = f"a card of compute capability {', '.join(map(version, build.code_for))}"
        fix = build.install_cuda12 if gpu.capability < min(build.code_for) else build.install
        return expected, f"{gpu.name}, which has {version(gpu.capability)}", fix
    if is_out_of_memory(RuntimeError(failure)):
        return "free memory", f"{failure} ({gpu.name})", "stop other processes on the GPU (nvidia-smi shows them)"
    if _MISSING_LIBRARY.search(failure):
        return f"the libraries of CUDA {build.cuda[0]} and cuDNN 9", failure, build.install
    return "a GPU that computes", f"{failure} ({gpu.name})", "see whether another process holds the card (nvidia-smi)"


def version(numbers: tuple[int, int]) -> str:
    """Return ``13.0`` for (13, 0)."""
    return f"{numbers[0]}.{numbers[1]}"

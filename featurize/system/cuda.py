"""NVIDIA GPUs in onnxruntime, without torch: serving runs where it is not installed."""

from __future__ import annotations

import re

from xfeat.featurize.errors import SpecError
from xfeat.featurize.gpu.driver import read_driver

PROVIDER = "CUDAExecutionProvider"


def cuda_driver_present() -> bool:
    """Tell whether NVIDIA's driver has a GPU for this process, or should have one and fails."""
    driver = read_driver()
    return driver is not None and bool(driver.gpus or driver.failure)


def check_device_name(device: str) -> None:
    """Reject invalid device names.

    Raises:
        SpecError: unless it is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise SpecError("unknown device", expected="auto, cpu, cuda or cuda:N", found=device)


def gpu_number(device: str) -> int:
    """Return the number in ``cuda:N``; 0 for ``cuda``."""
    return int(device.partition(":")[2] or 0)


def cuda_provider(number: int) -> tuple[str, dict[str, str]]:
    """Return onnxruntime's provider and options for a GPU.

    Features, parity checks and serving use the same options: a check is valid only for the options it ran with.

    Args:
        number: of the GPU, from 0.
    """
    return PROVIDER, {
        "device_id": str(number),
        # TF32 keeps 10 bits of a number's fraction: too few for float32 results.
        "use_tf32": "0",
        # Mode A of cuDNN's heuristics. EXHAUSTIVE, the default, is mode B, and no longer times anything. Source:
        # onnxruntime/core/providers/cuda/nn/conv.cc.
        "cudnn_conv_algo_search": "HEURISTIC",
    }

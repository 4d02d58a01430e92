"""NVIDIA GPUs in onnxruntime, without torch: serving runs where it is not installed."""

from __future__ import annotations

import ctypes
import re
import sys

from xfeat.featurize.errors import SpecError

PROVIDER = "CUDAExecutionProvider"


def cuda_driver_present() -> bool:
    """Tell whether NVIDIA's driver library can be loaded, without importing torch."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def check_device_name(device: str) -> None:
    """Reject invalid device names.

    Raises:
        SpecError: unless it is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise SpecError("unknown device", expected="auto, cpu, cuda or cuda:N", found=device)


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
        # The exhaustive search takes half a second for each new batch size, and its choice depends on timings.
        "cudnn_conv_algo_search": "HEURISTIC",
    }

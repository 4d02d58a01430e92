"""Whether there is an NVIDIA GPU to talk to, found out without torch: serving runs where it is not installed."""

from __future__ import annotations

import ctypes
import sys


def cuda_driver_present() -> bool:
    """Tell whether NVIDIA's driver library can be loaded, without importing torch."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True

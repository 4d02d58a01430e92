"""Asks NVIDIA's driver which cards there are. Its own library is called: neither torch nor onnxruntime is needed.

Source: the CUDA Driver API and the NVML API of NVIDIA, for the functions and the numbers of attributes.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

_WINDOWS = sys.platform == "win32"
CUDA_LIBRARY = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"
MANAGEMENT_LIBRARY = "nvml.dll" if _WINDOWS else "libnvidia-ml.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NO_DEVICE = 100
_TEXT_BYTES = 256


class Gpu(NamedTuple):
    """A card that programs may use.

    Attributes:
        name: such as ``NVIDIA H200``.
        capability: compute capability, such as ``(9, 0)``.
        memory: bytes in all.
    """

    name: str
    capability: tuple[int, int]
    memory: int


class Driver(NamedTuple):
    """What NVIDIA's driver says.

    Attributes:
        version: such as ``580.65.06``, or ``None`` if it cannot be found out.
        cuda: the newest version of CUDA that it runs, such as ``(13, 0)``.
        gpus: the cards in the order of their numbers, without those that ``CUDA_VISIBLE_DEVICES`` hides.
        failure: why it does not work, or ``None``.
    """

    version: str | None
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]
    failure: str | None

    def __str__(self) -> str:
        return f"NVIDIA driver {self.version or 'of unknown version'} (for CUDA {self.cuda[0]}.{self.cuda[1]})"


@functools.cache
def read_driver() -> Driver | None:
    """Ask the driver, once per process; ``None`` if there is none."""
    try:
        library = ctypes.CDLL(CUDA_LIBRARY)
        version = _integer(library.cuDriverGetVersion)
    except (OSError, AttributeError, _DriverError):  # missing, a stub, or another library of that name
        return None
    gpus: tuple[Gpu, ...] = ()
    failure = None
    try:
        _call(library.cuInit, 0)
        gpus = tuple(_gpu(library, number) for number in range(_integer(library.cuDeviceGetCount)))
    except AttributeError as error:
        failure = str(error)
    except _DriverError as error:
        failure = None if error.number == _NO_DEVICE else str(error)
    return Driver(_driver_version(), (version // 1000, version % 1000 // 10), gpus, failure)


def free_memory(number: int) -> int:
    """Return the free bytes of a GPU. It starts CUDA there, which takes a part of a second and some memory.

    Raises:
        RuntimeError: if the driver refuses.
    """
    library = ctypes.CDLL(CUDA_LIBRARY)
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    _call(library.cuInit, 0)
    device = _integer(library.cuDeviceGet, number)
    _call(library.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    try:
        _call(library.cuCtxPushCurrent_v2, context)
        _call(library.cuMemGetInfo_v2, ctypes.byref(free), ctypes.byref(total))
        _call(library.cuCtxPopCurrent_v2, ctypes.byref(context))
    finally:
        _call(library.cuDevicePrimaryCtxRelease_v2, device)
    return free.value


class _DriverError(RuntimeError):
    def __init__(self, number: int) -> None:
        self.number = number
        library, text = ctypes.CDLL(CUDA_LIBRARY), ctypes.c_char_p()
        known = library.cuGetErrorString(number, ctypes.byref(text)) == 0 and text.value is not None
        super().__init__(f"CUDA error {number}: {(text.value or b'').decode() if known else 'unknown'}")


def _call(function: Callable[..., int], *arguments: object) -> None:
    if number := function(*arguments):
        raise _DriverError(number)


def _integer(function: Callable[..., int], *arguments: int) -> int:
    found = ctypes.c_int()
    _call(function, ctypes.byref(found), *arguments)
    return found.value


def _gpu(library: ctypes.CDLL, number: int) -> Gpu:
    device = _integer(library.cuDeviceGet, number)
    name, memory = ctypes.create_string_buffer(_TEXT_BYTES), ctypes.c_size_t()
    _call(library.cuDeviceGetName, name, _TEXT_BYTES, device)
    _call(library.cuDeviceTotalMem_v2, ctypes.byref(memory), device)
    major, minor = (
        _integer(library.cuDeviceGetAttribute, which, device) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(name.value.decode(errors="replace"), (major, minor), memory.value)


def _driver_version() -> str | None:
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    try:
        library = ctypes.CDLL(MANAGEMENT_LIBRARY)
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, _TEXT_BYTES):
            return None
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return text.value.decode(errors="replace")

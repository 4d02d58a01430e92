"""What the installed onnxruntime was built for, and the libraries of CUDA that its GPU build does not bring."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import sys
from pathlib import Path

import onnxruntime as ort

from xfeat.featurize.gpu.explain import Build

_CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"

# Compute capabilities with machine code in libonnxruntime_providers_cuda.so, by the version of CUDA. Source: headers of
# its fat binaries, in the wheels 1.31.1 (CUDA 13) and 1.26.0 (CUDA 12, which also has PTX code for newer cards).
_CODE_FOR = {
    12: ((6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)),
    13: ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)),
}


@functools.cache
def load_cuda_libraries() -> tuple[str, ...]:
    """Load the libraries of CUDA and cuDNN that onnxruntime needs; return why, for each that cannot be loaded.

    onnxruntime finds them beside itself and in the folders of the system. They may also be in another folder of Python
    packages, or in that of torch.
    """
    if missing := _preload():
        folders = [Path(folder) for name in ("nvidia", "torch") for folder in _package_folders(name)]
        for reason in missing:
            name = Path(reason.partition(":")[0].removeprefix("Failed to load ")).name
            for file in (file for folder in folders for file in folder.rglob(name)):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(file))
        missing = _preload()
    return tuple(missing)


def _preload() -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    missing = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load ")]
    try:
        if onnxruntime_build().cuda is not None:
            ctypes.CDLL(_CUDNN)
    except OSError as error:  # which preload_dlls takes for optional; convolutions need it
        missing.append(f"Failed to load {_CUDNN}: {error}")
    return missing


def _package_folders(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)  # imports nothing
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def why_not_loaded() -> str | None:
    """Return why the system cannot load onnxruntime's library for CUDA, which onnxruntime writes into its log only."""
    pattern = "onnxruntime_providers_{}.dll" if sys.platform == "win32" else "libonnxruntime_providers_{}.so"
    try:
        for name in ("shared", "cuda"):
            ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / pattern.format(name)), ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return None


def onnxruntime_build() -> Build:
    """Return for which CUDA and which cards the installed onnxruntime was built."""
    major, _, minor = getattr(ort, "cuda_version", "").partition(".")
    cuda = (int(major), int(minor or 0)) if major.isdigit() else None
    remove = "" if cuda else "pip uninstall -y onnxruntime && "
    return Build(
        name=f"{getattr(ort, 'package_name', 'onnxruntime')} {ort.__version__}",
        cuda=cuda,
        code_for=_CODE_FOR.get(cuda[0], ()) if cuda else (),
        also_newer=cuda is not None and cuda[0] == 12,
        install=f"{remove}pip install 'onnxruntime-gpu[cuda,cudnn]'",
        install_cuda12=f"{remove}pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'",
    )

"""What a library does on this machine, asked in a process of its own: there it may crash or hang.

``python -m xfeat.featurize.doctor.probe NAME`` prints one JSON object.
"""

from __future__ import annotations

import json
import logging
import subprocess  # nosec B404  # it starts this module
import sys
from collections.abc import Callable
from typing import Any

from xfeat.featurize.errors import DeviceError, XfeatError
from xfeat.featurize.gpu.driver import free_memory, read_driver
from xfeat.featurize.processes import module_command
from xfeat.featurize.system.versions import library_versions

_LIMIT_S = 30.0
_RESULT = "result of the probe: "  # libraries print, too


def ask(name: str) -> Callable[[], dict[str, Any]]:
    """Start a probe; return a function that waits for its answer.

    Args:
        name: ``driver``, ``torch``, ``onnxruntime`` or ``numba``.

    The function raises:
        XfeatError: if the probe crashed, hung, or raised.
    """
    command = module_command("xfeat.featurize.doctor.probe", name)
    process = subprocess.Popen(  # nosec B603
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )

    def answer() -> dict[str, Any]:
        try:
            stdout, stderr = process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise _broken(name, f"no answer within {_LIMIT_S:.0f} s") from None
        if _RESULT not in stdout:
            last = (stderr.strip().splitlines() or ["no message"])[-1]
            signal = f"ended by signal {-process.returncode}, " if process.returncode < 0 else ""
            raise _broken(name, signal + last)
        found: dict[str, Any] = json.loads(stdout.rpartition(_RESULT)[2])
        return found

    return answer


def _broken(name: str, found: str) -> XfeatError:
    package = next((package for package in library_versions() if package.startswith(name)), name)
    fix = "nvidia-smi must work" if name == "driver" else f"pip install --force-reinstall {package}"
    return XfeatError(f"{name} does not work", found=found, fix=fix)


def main() -> None:
    """Print what the probe named on the command line finds."""
    logging.disable(logging.CRITICAL)  # resolve_device warns; the report says the same
    print(_RESULT + json.dumps(_PROBES[sys.argv[1]]()))  # noqa: T201


def _driver() -> dict[str, Any]:
    driver = read_driver()
    if driver is None:
        return {"present": False}
    return {
        "present": True,
        "found": str(driver),
        "failure": driver.failure,
        "gpus": [{**gpu._asdict(), "free": _free(number)} for number, gpu in enumerate(driver.gpus)],
    }


def _free(number: int) -> int | str:
    try:
        return free_memory(number)
    except RuntimeError as error:
        return str(error)


# The libraries are imported here and not above: one that is broken is a line of the report.


def _torch() -> dict[str, Any]:
    from xfeat.featurize.system.devices import check_gpu_in_torch, torch_build

    build = torch_build()
    return {"name": build.name, "cuda": build.cuda, **_gpus("torch", check_gpu_in_torch)}


def _onnxruntime() -> dict[str, Any]:
    from xfeat.featurize.gpu.libraries import onnxruntime_build
    from xfeat.featurize.system.onnx_session import CONVOLUTION, check_gpu, open_session

    build = onnxruntime_build()
    open_session(CONVOLUTION)
    return {"name": build.name, "cuda": build.cuda, **_gpus("onnxruntime", check_gpu)}


def _gpus(engine: str, check: Callable[[str], None]) -> dict[str, Any]:
    """Return what ``auto`` chooses, and for each GPU why it cannot be used, or ``None``."""
    from xfeat.featurize.system.devices import resolve_device

    driver = read_driver()
    problems: dict[str, Any] = {}
    for device in [f"cuda:{number}" for number in range(len(driver.gpus) if driver is not None else 0)]:
        try:
            check(device)
            problems[device] = None
        except DeviceError as error:
            problems[device] = {"expected": error.expected, "found": error.found, "fix": error.fix}
    return {"auto": resolve_device("auto", engine), "gpus": problems}


def _numba() -> dict[str, Any]:
    import numba

    return {"version": numba.__version__}


_PROBES = {"driver": _driver, "torch": _torch, "onnxruntime": _onnxruntime, "numba": _numba}

if __name__ == "__main__":
    main()

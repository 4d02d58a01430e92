"""The lines on NVIDIA's driver, its cards, the libraries that use them, and what ``auto`` chooses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from xfeat.featurize.doctor.probe import ask
from xfeat.featurize.doctor.report import FAIL, NOTE, OK, Check, Line
from xfeat.featurize.gpu.explain import RESTART, version

_GB = 1e9


def gpu_checks() -> tuple[dict[str, Check], dict[str, Check]]:
    """Start all probes side by side; return the checks on GPUs, and those on what ``auto`` chooses."""
    answers = {name: ask(name) for name in ("driver", "onnxruntime", "torch", "numba") if _installed(name)}

    @cache
    def answer(name: str) -> dict[str, Any]:
        return answers[name]()

    engines: list[str] = [name for name in ("torch", "onnxruntime") if name in answers]
    lines: dict[str, Check] = {"driver": lambda: _driver(answer("driver"))}
    lines |= {name: partial(_library, answer, name, has_torch="torch" in answers) for name in engines}
    if len(engines) > 1:
        lines["versions of CUDA"] = lambda: _same_cuda(answer("torch"), answer("onnxruntime"))
    return lines, {
        "xfeat featurize": lambda: _featurize(answer, engines),
        "xhead sweep": lambda: _sweep(answer, set(answers)),
        "xserve start": lambda: _serve(answer),
    }


def _installed(name: str) -> bool:
    return name in ("driver", "onnxruntime") or find_spec(name) is not None  # xfeat needs onnxruntime everywhere


def _driver(found: dict[str, Any]) -> Iterator[Line]:
    if not found["present"]:
        yield Line("driver", NOTE, "no NVIDIA driver: everything runs on the CPU")
        return
    if found["failure"]:
        yield Line("driver", FAIL, f"{found['found']} does not start: {found['failure']}", RESTART)
        return
    yield Line("driver", OK, found["found"])
    if not found["gpus"]:
        fix = "see CUDA_VISIBLE_DEVICES; a container needs --gpus"
        yield Line("cards", NOTE, "none that this process may use", fix)
    for number, gpu in enumerate(found["gpus"]):
        about = f"{gpu['name']}, compute capability {version(tuple(gpu['capability']))}, {gpu['memory'] / _GB:.0f} GB"
        if isinstance(gpu["free"], str):
            yield Line(f"cuda:{number}", FAIL, f"{about}; {gpu['free']}", "stop other processes on it (nvidia-smi)")
        else:
            yield Line(f"cuda:{number}", OK, f"{about}, {gpu['free'] / _GB:.1f} GB free")


def _library(answer: Callable[[str], dict[str, Any]], name: str, *, has_torch: bool) -> Iterator[Line]:
    """Say on which GPUs a library computes; that is promised where CUDA's libraries were installed with it."""
    found = answer(name)
    built = f"built for CUDA {version(tuple(found['cuda']))}" if found["cuda"] else "built for the CPU only"
    promised = found["cuda"] is not None and (has_torch or find_spec("nvidia") is not None)
    works, devices_of = ["cpu"], defaultdict[tuple[str, ...], list[str]](list)
    for device, problem in found["gpus"].items():
        if problem is None:
            works.append(device)
        else:
            devices_of[tuple(problem.values())].append(device)
    if len(works) > 1 or not found["gpus"]:
        yield Line(name, OK, f"{found['name']}, {built}: computes on {', '.join(works)}")
    for (expected, reason, fix), devices in devices_of.items():
        text = f"{found['name']}, {built}: cannot use {', '.join(devices)}\nexpected {expected}\nfound {reason}"
        yield Line(name, FAIL if promised else NOTE, text, fix)


def _same_cuda(torch: dict[str, Any], onnxruntime: dict[str, Any]) -> Iterator[Line]:
    ours, other = onnxruntime["cuda"], torch["cuda"]
    if ours and other and ours[0] != other[0]:
        built = f"onnxruntime is built for CUDA {version(tuple(ours))}, torch for {version(tuple(other))}"
        found = f"{built}: one process loads cuDNN for one of them only"
        yield Line("versions of CUDA", NOTE, found, "docs/gpu.md says which belong together")


def _featurize(answer: Callable[[str], dict[str, Any]], engines: list[str]) -> Iterator[Line]:
    if "torch" not in engines:
        yield Line("xfeat featurize", NOTE, "needs torch", "pip install 'xfeat-onnx[train]'")
        return
    found = answer("torch")
    yield _choice("xfeat featurize", "onnxruntime" if found["auto"] == "cpu" else "torch", "torch", found)


def _sweep(answer: Callable[[str], dict[str, Any]], installed: set[str]) -> Iterator[Line]:
    if "torch" not in installed:
        yield Line("xhead", NOTE, "needs torch", "pip install 'xfeat-onnx[train]'")
    elif "numba" not in installed:
        yield Line("xhead", NOTE, "torch on cpu; sweeps are about twice as fast with numba", "pip install numba")
    else:
        answer("numba")  # it refuses a numpy that is newer than itself
        yield Line("xhead", OK, "torch on cpu, and numba for sweeps; a GPU only with xhead sweep --device cuda")


def _serve(answer: Callable[[str], dict[str, Any]]) -> Iterator[Line]:
    yield _choice("xserve, xexport", "onnxruntime", "onnxruntime", answer("onnxruntime"))


def _choice(command: str, engine: str, asked: str, found: dict[str, Any]) -> Line:
    """Say what ``auto`` chooses; that a GPU is not used is a note."""
    if found["auto"] != "cpu":
        return Line(command, OK, f"{engine} on {found['auto']}, which {asked} can use")
    idle = f"the GPU is not used, since {asked} cannot" if found["gpus"] else "there is no GPU"
    return Line(command, NOTE if found["gpus"] else OK, f"{engine} on cpu: {idle}")

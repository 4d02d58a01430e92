"""The available devices. A device that was requested by name is never replaced by another."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings

from xfeat.featurize.errors import DeviceError, SpecError
from xfeat.featurize.gpu.explain import Build, device_error
from xfeat.featurize.system.cuda import check_device_name, cuda_driver_present, gpu_number

logger = logging.getLogger(__name__)


def resolve_devices(devices: str, engine: str = "torch") -> list[str]:
    """Return the devices in a list such as ``cuda:0,cuda:1``, each as ``cpu`` or ``cuda:N``.

    Args:
        devices: names with commas.
        engine: what is to compute there: ``onnxruntime``, or anything else for torch.

    Raises:
        SpecError: if a name is invalid, if CPU and GPU are mixed, or if a GPU is named twice.
        DeviceError: if a requested GPU cannot be used.
    """
    names = [name.strip() for name in devices.split(",")]
    for name in names:
        check_device_name(name)
    if len(names) > 1 and "auto" in names:
        raise SpecError(
            "auto cannot be combined with other devices",
            expected="devices by name, such as cuda:0,cuda:1",
            found=devices,
        )
    found = [resolve_device(name, engine) for name in names]
    if len({name.partition(":")[0] for name in found}) > 1:
        # Their results differ in the last digits, and which image runs where would be random.
        raise SpecError("cannot mix CPU and GPU", expected="GPUs only, or the CPU", found=devices)
    if found[0] != "cpu" and len(set(found)) < len(found):
        raise SpecError("a GPU is named twice", expected="each once, such as cuda:0,cuda:1", found=devices)
    return found


def resolve_device(device: str, engine: str = "torch") -> str:
    """Return ``cpu`` or ``cuda:N`` for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Arguments as for :func:`resolve_devices`. ``auto`` takes the CPU where there is no GPU, and where the GPU cannot be
    used, with a warning that says why.

    Raises:
        SpecError: if ``device`` is none of these.
        DeviceError: if the requested GPU cannot be used.
    """
    check_device_name(device)
    if device == "cpu" or (device == "auto" and not cuda_driver_present()):
        return "cpu"
    name = f"cuda:{gpu_number(device)}"
    try:
        if engine == "onnxruntime":
            from xfeat.featurize.system.onnx_session import check_gpu  # not above: torch works without onnxruntime

            check_gpu(name)
        else:
            check_gpu_in_torch(name)
    except DeviceError as error:
        if device != "auto":
            raise
        logger.warning("the GPU is not used, running on the CPU: %s", error)
        return "cpu"
    return name


def check_gpu_in_torch(device: str) -> None:
    """Compute a convolution on a GPU with torch: only that shows whether driver, libraries and card fit.

    Raises:
        DeviceError: if it cannot, with the cause.
    """
    if importlib.util.find_spec("torch") is None:
        raise DeviceError("torch is not installed", fix="pip install 'xfeat-onnx[train]'")
    import torch

    # torch says in warnings why it sees no GPU, and that it has no code for one.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if torch.cuda.is_available() and gpu_number(device) < torch.cuda.device_count():
                one = torch.ones((1, 1, 1, 1), device=device)
                torch.nn.functional.conv2d(one, one).item()
                return
            failure = str(said[0].message) if said else "torch sees no such GPU"
        except RuntimeError as error:
            failure = str(error)
    raise device_error(torch_build(), device, failure.partition("\n")[0])


def torch_build() -> Build:
    """Return for which CUDA and which cards the installed torch was built."""
    import torch

    codes = torch.cuda.get_arch_list()  # such as sm_75, sm_90a, compute_120
    machine = (re.match(r"sm_(\d+)(\d)", code) for code in codes)
    major, _, minor = (torch.version.cuda or "").partition(".")
    return Build(
        name=f"torch {torch.__version__}",
        cuda=(int(major), int(minor or 0)) if major else None,
        code_for=tuple((int(found[1]), int(found[2])) for found in machine if found),
        also_newer=any(code.startswith("compute_") for code in codes),
        install="install torch and torchvision for CUDA as pytorch.org shows",
        install_cuda12="install torch and torchvision for CUDA 12.6 as pytorch.org shows",
    )

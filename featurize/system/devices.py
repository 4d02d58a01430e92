"""The available devices. A device that was requested by name is never replaced by another."""

from __future__ import annotations

import importlib.util

from xfeat.featurize.errors import DeviceError, SpecError
from xfeat.featurize.system.cuda import check_device_name, cuda_driver_present


def resolve_devices(devices: str) -> list[str]:
    """Return the devices in a list such as ``cuda:0,cuda:1``, each as ``cpu`` or ``cuda:N``.

    Raises:
        SpecError: if a name is invalid, if CPU and GPU are mixed, or if a GPU is named twice.
        DeviceError: if a requested GPU does not exist.
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
    found = [resolve_device(name) for name in names]
    if len({name.partition(":")[0] for name in found}) > 1:
        # Their results differ in the last digits, and which image runs where would be random.
        raise SpecError("cannot mix CPU and GPU", expected="GPUs only, or the CPU", found=devices)
    if found[0] != "cpu" and len(set(found)) < len(found):
        raise SpecError("a GPU is named twice", expected="each once, such as cuda:0,cuda:1", found=devices)
    return found


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda:N`` for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        SpecError: if ``device`` is none of these.
        DeviceError: if the requested GPU does not exist.
    """
    check_device_name(device)
    # Looking for a GPU needs the import of torch. Whether NVIDIA's driver exists is known without it.
    if device == "cpu" or (
        device == "auto" and (not cuda_driver_present() or importlib.util.find_spec("torch") is None)
    ):
        return "cpu"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    number = int(device.partition(":")[2] or 0)
    if number >= count:
        raise DeviceError(
            f"there is no device {device}",
            expected="an NVIDIA GPU that torch can use",
            found=f"{count} such GPUs (torch {torch.__version__})",
            fix="check nvidia-smi, or run with --device cpu",
        )
    return f"cuda:{number}"

"""Which devices are there. A device that was asked for by name is never replaced by another."""

from __future__ import annotations

from featurize.cuda import check_device_name
from featurize.errors import DeviceError


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda:N`` for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        SpecError: if ``device`` is none of these.
        DeviceError: if a GPU was asked for and there is none of that number.
    """
    check_device_name(device)
    if device == "cpu":
        return device
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
            mend="check nvidia-smi, or run with --device cpu",
        )
    return f"cuda:{number}"

"""The devices on which networks run, checked against those of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avel.errors import AvelError

if TYPE_CHECKING:  # importing torch would delay the command line
    import torch


def device(name: str = "auto") -> torch.device:
    """The device of that name.

    Args:
        name: ``cpu``, ``cuda`` (or one of several, ``cuda:1``) or ``mps``; ``auto`` takes a GPU if there is one.

    Raises:
        AvelError: this machine has no such device.
    """
    import torch

    there = _there()
    if name == "auto":
        return torch.device(there[-1])
    if name not in there:
        raise AvelError(
            f"no device {name!r} on this machine",
            f"auto, or one of its devices: {', '.join(there)}",
            "choose one of these; an NVIDIA GPU is listed if `torch.cuda.is_available()` returns True",
        )
    return torch.device(name)


def free_bytes(place: torch.device) -> int:
    """Free bytes of memory on a device; 2**63 if unknown."""
    import torch

    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    if place.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: assume that there is enough
        return 2**63


def _there() -> list[str]:
    """Names of this machine's devices, the preferred one last."""
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *mps, *gpus, *(["cuda"] if gpus else [])]

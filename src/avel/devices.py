"""Where networks run: a device's name, checked against the devices of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avel.errors import AvelError

if TYPE_CHECKING:  # the command line checks nothing else with torch, and must answer at once
    import torch


def device(name: str = "auto") -> torch.device:
    """The device of that name.

    Args:
        name: ``cpu``, ``cuda`` (or one of several, ``cuda:1``) or ``mps``; ``auto`` takes a GPU where there is one.

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
            f"auto or one of those there are: {', '.join(there)}",
            "choose one of these; an NVIDIA GPU is there once `torch.cuda.is_available()` says True",
        )
    return torch.device(name)


def free_bytes(place: torch.device) -> int:
    """Bytes of memory that are free on a device; more than there can be where nobody says."""
    import torch

    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    if place.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: the page cache is taken to suffice
        return 2**63


def _there() -> list[str]:
    """Names of the devices of this machine, the one to prefer last."""
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *mps, *gpus, *(["cuda"] if gpus else [])]

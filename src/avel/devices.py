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


def _there() -> list[str]:
    """Names of the devices of this machine, the one to prefer last."""
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *mps, *gpus, *(["cuda"] if gpus else [])]

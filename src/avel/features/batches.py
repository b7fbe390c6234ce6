"""Running items through a network in batches, sized for the CPU's caches or the memory of another device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from avel.devices import free_bytes
from avel.errors import AvelError


class Batches:
    """Runs items through a network, and halves the batches when the device's memory is full.

    Args:
        on_cpu: items per batch on a CPU.
        elsewhere: most items per batch on any other device.
        item_bytes: rough peak memory of one item there.

    Attributes:
        device: the network's device.
        size: items per batch.
    """

    def __init__(self, *, on_cpu: int, elsewhere: int, item_bytes: int) -> None:
        self._on_cpu, self._elsewhere, self._item_bytes = on_cpu, elsewhere, item_bytes
        self.device = torch.device("cpu")
        self.size = on_cpu

    def to(self, device: torch.device) -> None:
        """Size the batches for a device: at most half of its free memory."""
        self.device = device
        if device.type == "cpu":
            self.size = self._on_cpu
        else:
            self.size = max(1, min(self._elsewhere, free_bytes(device) // 2 // self._item_bytes))

    def __call__(self, network: Callable[[np.ndarray], np.ndarray], items: np.ndarray) -> np.ndarray:
        """The network's output for the items, (N, ...) -> (N, ...).

        Raises:
            AvelError: not even one item fits into the device's memory.
        """
        done: list[np.ndarray] = []
        at = 0
        with torch.inference_mode(), _whole_floats(self.device):
            while at < len(items):
                made = self._try(network, items[at : at + self.size])
                if made is None:  # out of memory: try the same items in smaller batches
                    continue
                done.append(made)
                at += len(made)
        return np.concatenate(done)

    def _try(self, network: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> np.ndarray | None:
        """The output of one batch; None if memory is full. What the failed attempt held has been freed by then."""
        try:
            return network(batch)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; MPS raises it plainly
            if self.device.type == "cpu" or "out of memory" not in str(error).lower():
                raise
            if len(batch) == 1:
                raise AvelError(
                    f"the memory of {self.device} is full: {str(error).partition(chr(10))[0]}",
                    "room for a batch of one item",
                    "stop other programs that use it, use fewer --workers, or use --device cpu",
                ) from error
        self.size = len(batch) // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


@contextmanager
def _whole_floats(device: torch.device) -> Iterator[None]:
    """Turn off TF32, with which convolutions on NVIDIA's GPUs round float32 to 10 bits by default.

    Features must not depend on the device. For speed there is bfloat16, which is part of their tag.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before

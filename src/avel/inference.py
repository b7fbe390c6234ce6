"""Networks on features: the forward pass, and the one loop that runs networks without training them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

from avel.data.loader import Features
from avel.types import Output

F = TypeVar("F", bound=Features)


def outputs(network: nn.Module, batches: Iterable[F], streams: str = "both") -> Iterator[tuple[F, Output]]:
    """Each batch with the network's output, in evaluation mode and without gradients.

    Validation, evaluation, localization and the study all use this loop.

    Args:
        network: on any device.
        batches: windows or clips, each batch small enough for one forward pass.
        streams: the streams it may use, as in `forward`.
    """
    network.eval()
    for batch in batches:
        with torch.no_grad():
            output = forward(network, batch, streams)
        yield batch, output


def forward(network: nn.Module, features: Features, streams: str = "both") -> Output:
    """The network's output, on the device and in the precision of its weights.

    Args:
        network: a network of ``MODELS``.
        features: features of B windows.
        streams: ``both``; or ``audio`` or ``visual``, the only stream it may use: the other one is zeroed.
    """
    weight = next(network.parameters(), torch.empty(0))
    audio = features.audio.to(weight.device, weight.dtype)
    visual = features.visual.to(weight.device, weight.dtype)
    if streams == "audio":
        visual = torch.zeros_like(visual)
    if streams == "visual":
        audio = torch.zeros_like(audio)
    output: Output = network(audio, visual)
    return output


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's parameters; the CPU if it has none."""
    return next(network.parameters(), torch.empty(0)).device

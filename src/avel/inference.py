"""Networks on features: the forward pass, and the one loop in which a network runs and does not learn."""

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

    Validation, evaluation, localization and the study all run their networks here.

    Args:
        network: on any device.
        batches: of windows or clips, as long as a network takes at once.
        streams: that it may use, as in `forward`.
    """
    network.eval()
    for batch in batches:
        with torch.no_grad():
            output = forward(network, batch, streams)
        yield batch, output


def forward(network: nn.Module, features: Features, streams: str = "both") -> Output:
    """The network's output, on the device and in the precision of its weights.

    Args:
        network: of ``MODELS``.
        features: of B windows.
        streams: ``both``, or ``audio`` or ``visual`` for the only stream that it may use: the other one is zeroed.
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
    """Where a network's parameters are; the processor, if it has none."""
    return next(network.parameters(), torch.empty(0)).device

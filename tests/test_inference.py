"""The one loop in which networks run: in evaluation mode, without gradients, on the streams that they may use."""

import pytest
import torch

from avel.data.loader import Features
from avel.inference import device_of, forward, outputs
from avel.types import SegmentOutput

AUDIO, VISUAL = torch.rand(3, 4, 5), torch.rand(3, 4, 2, 2, 6).half()


class Noting(torch.nn.Module):
    """Keeps what it is given, and how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, audio: torch.Tensor, visual: torch.Tensor) -> SegmentOutput:
        assert not self.training and not torch.is_grad_enabled()
        self.given.append((audio, visual))
        return SegmentOutput(self.weight * audio)


def test_each_batch_comes_with_its_output_and_gradients_are_on_again_in_between() -> None:
    network, batches = Noting().train(), [Features(AUDIO, VISUAL), Features(AUDIO + 1, VISUAL)]
    for batch, output in outputs(network, iter(batches)):
        assert batch is batches[len(network.given) - 1] and torch.is_grad_enabled()
        assert isinstance(output, SegmentOutput)
        assert torch.equal(output.logits, batch.audio) and not output.logits.requires_grad
    assert len(network.given) == 2


@pytest.mark.parametrize("streams", ["both", "audio", "visual"])
def test_the_stream_that_a_network_may_not_use_is_zero(streams: str) -> None:
    network = Noting()
    next(outputs(network, [Features(AUDIO, VISUAL)], streams))
    audio, visual = network.given[0]
    assert torch.equal(audio, AUDIO if streams != "visual" else torch.zeros_like(AUDIO))
    assert torch.equal(visual, VISUAL.float() if streams != "audio" else torch.zeros_like(VISUAL.float()))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_features_have_the_type_of_the_weights(kind: torch.dtype) -> None:
    network = Noting().to(kind).eval()
    with torch.no_grad():
        forward(network, Features(AUDIO, VISUAL))
    assert [stream.dtype for stream in network.given[0]] == [kind, kind]
    assert device_of(network) == device_of(torch.nn.Identity()) == torch.device("cpu")

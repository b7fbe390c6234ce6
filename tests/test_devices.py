"""A device by its name: those of this machine, and a plain refusal of all others."""

import pytest
import torch

from avel.devices import device
from avel.errors import AvelError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, as far as PyTorch's answers go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "banana", "", "cpu:7", "CUDA", "meta"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str, no_gpu: None) -> None:
    with pytest.raises(AvelError) as caught:
        device(name)
    assert repr(name) in caught.value.found
    assert caught.value.expected == "auto, or one of its devices: cpu"


def test_auto_takes_a_gpu_where_there_is_one(gpus: None) -> None:
    assert device("auto") == torch.device("cuda")
    assert device("cuda:1") == torch.device("cuda", 1)
    assert device("cpu") == torch.device("cpu")
    with pytest.raises(AvelError, match="cuda:2") as caught:
        device("cuda:2")
    assert caught.value.expected.endswith(": cpu, cuda:0, cuda:1, cuda")


def test_auto_is_the_cpu_elsewhere(no_gpu: None) -> None:
    assert device() == device("auto") == device("cpu")

"""AGVA as `released-code` has it, against NumPy and against the numbers that are known of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_layers import Array, agva_oracle, each, exact, linear, lstm_oracle, randn, same, softmax
from torch.nn import functional

from avel.models import build_model
from avel.models.agva import AGVA
from avel.types import Target


def build(task: str, **options: Any) -> AGVA:
    sizes: dict[str, Any] = {"audio_dim": 5, "visual_dim": 6, "grid": (2, 3), "num_classes": 3}
    return build_model("agva", **sizes, task=task, **options)  # type: ignore[return-value]


@pytest.mark.parametrize("task", ["full", "weak"])
def test_it_has_the_published_number_of_parameters(task: str) -> None:
    with torch.device("meta"):
        model = build_model("agva", audio_dim=128, visual_dim=512, grid=(7, 7), num_classes=28, task=task)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_335_246


@pytest.mark.parametrize("audio_axis", ["position", "hidden"])
@pytest.mark.parametrize("task", ["full", "weak"])
def test_it_is_attention_two_lstms_and_two_linear_maps(task: str, audio_axis: str) -> None:
    model = exact(build(task, audio_axis=audio_axis))
    audio, visual = randn(1, 2, 4, 5), randn(2, 2, 4, 2, 3, 6)

    def oracle(v: Array, a: Array) -> tuple[Array, ...]:
        attended, attention = agva_oracle(v, a, model.attention, audio_axis)
        both = np.concatenate([lstm_oracle(a, model.audio), lstm_oracle(attended, model.visual)], -1)
        logits = linear(np.maximum(linear(np.maximum(both, 0), model.hidden), 0), model.classifier)
        return logits, attention, logits if task == "full" else logits.max(0)

    output = model(audio, visual)
    for got, want in zip(
        (output.logits, output.attention, output.parts["logits"]), each(oracle, visual, audio), strict=True
    ):
        same(got, want)


@pytest.mark.parametrize("loss", ["mlsm_softmax", "cross_entropy"])
@pytest.mark.parametrize("task", ["full", "weak"])
def test_its_loss_is_the_soft_margin_of_the_softmax_or_cross_entropy(task: str, loss: str) -> None:
    model = exact(build(task, loss=loss))
    labels, video = torch.tensor([[0, 0, 3, 3], [3, 2, 2, 2]]), torch.tensor([0, 2])
    target = Target(labels, video, functional.one_hot(video, 4).float())
    parts = model(randn(1, 2, 4, 5), randn(2, 2, 4, 2, 3, 6)).parts
    rows, classes = parts["logits"].detach().numpy().reshape(-1, 4), (labels if task == "full" else video).flatten()
    costs = []
    for row, label in zip(rows, classes.tolist(), strict=True):
        p = softmax(row)
        if loss == "cross_entropy":
            costs.append(-math.log(p[label]))
        else:
            costs += [-math.log(s if k == label else 1 - s) for k, s in enumerate(1 / (1 + np.exp(-p)))]
    terms = model.loss(parts, target)
    assert list(terms) == ["classification", "total"]
    assert terms["classification"].item() == terms["total"].item() == pytest.approx(sum(costs) / len(costs))


def test_the_released_loss_lies_between_0_68_and_0_71() -> None:
    """Over 29 classes: certain and right 0.6800, uniform 0.7093, certain and wrong 0.7145."""
    sizes: dict[str, Any] = {"audio_dim": 5, "visual_dim": 6, "grid": (1, 1), "num_classes": 28, "task": "full"}
    model, cross_entropy = build_model("agva", **sizes), build_model("agva", **sizes, loss="cross_entropy")
    target = Target(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1), torch.zeros(1, 29))
    certain = 1000 * torch.eye(29)[None]
    found = [
        model.loss({"logits": z}, target)["total"].item() for z in (certain[:, :1], 0 * certain[:, :1], certain[:, 1:2])
    ]
    assert found == pytest.approx([0.6800, 0.7093, 0.7145], abs=5e-5)
    assert found[0] == pytest.approx(model.least_loss) and cross_entropy.least_loss == 0

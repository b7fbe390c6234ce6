"""Losses against oracles in plain Python, their gradients against finite differences, and their edges."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional

from avel import losses


def seeded(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def contrastive_oracle(
    anchors: Sequence[Sequence[float]], labels: Sequence[int], temperature: float, normalize: bool
) -> list[float]:
    """Eq. 27 anchor by anchor, as printed: -log of the mean over positives of the softmax over all others."""
    if normalize:
        norms = [max(math.sqrt(sum(x * x for x in anchor)), 1e-6) for anchor in anchors]
        anchors = [[x / norm for x in anchor] for anchor, norm in zip(anchors, norms, strict=True)]
    found = []
    for i, anchor in enumerate(anchors):
        others = [a for a in range(len(anchors)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        power = {a: math.exp(sum(x * y for x, y in zip(anchor, anchors[a], strict=True)) / temperature) for a in others}
        denominator = sum(power.values())
        found.append(-math.log(sum(power[p] / denominator for p in positives) / len(positives)))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 3), st.booleans())
def test_wccl_is_equation_27(seed: int, labels: list[int], width: int, normalize: bool) -> None:
    fusion, branch = seeded(seed, 2, len(labels), width)
    want = contrastive_oracle([*fusion.tolist(), *branch.tolist()], labels * 2, 0.3, normalize)
    for reduction, value in (("mean", sum(want) / len(want)), ("sum", sum(want))):
        got = losses.wccl(
            fusion, branch, torch.tensor(labels), temperature=0.3, normalize=normalize, reduction=reduction
        )
        assert got.item() == pytest.approx(value, abs=1e-9)


def test_wccl_by_hand() -> None:
    """Two videos of two classes in one dimension, z = 1, 1 and branch 1, -1, temperature 1."""
    fusion, branch = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])
    got = losses.wccl(fusion, branch, torch.tensor([0, 1]), temperature=1.0, normalize=True)
    e, f = math.e, 1 / math.e
    # Fusion 0 and branch 0 find e of (e + e + 1/e); fusion 1 and branch 1 find 1/e of their own sums.
    want = [-math.log(e / (2 * e + f))] * 2 + [-math.log(f / (2 * e + f)), -math.log(f / (3 * f))]
    assert got.item() == pytest.approx(sum(want) / 4, abs=1e-6)


def test_wccl_with_all_labels_different_is_the_self_supervised_loss() -> None:
    """Fig. 3a: NT-Xent (Chen et al. 2020), the cross-entropy of finding one's own other view."""
    fusion, branch = seeded(0, 2, 5, 4)
    anchors = functional.normalize(torch.cat([fusion, branch]), dim=1)
    similarity = (anchors @ anchors.T / 0.1).fill_diagonal_(-torch.inf)
    want = functional.cross_entropy(similarity, torch.arange(10).roll(5))
    got = losses.wccl(fusion, branch, torch.arange(5), temperature=0.1, normalize=True)
    assert torch.allclose(got, want)


def test_wccl_does_not_depend_on_the_order_of_videos_or_of_the_two_branches() -> None:
    fusion, branch = seeded(1, 2, 6, 3)
    labels, order = torch.tensor([0, 1, 1, 2, 0, 3]), torch.tensor([4, 2, 0, 5, 1, 3])

    def loss(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> float:
        return losses.wccl(a, b, y, temperature=0.1, normalize=True).item()

    assert loss(fusion[order], branch[order], labels[order]) == pytest.approx(loss(fusion, branch, labels))
    assert loss(branch, fusion, labels) == pytest.approx(loss(fusion, branch, labels))


def test_wccl_of_one_class_and_of_constant_embeddings() -> None:
    fusion, branch = seeded(2, 2, 4, 3)
    one_class = losses.wccl(fusion, branch, torch.zeros(4, dtype=torch.long), temperature=0.1, normalize=True)
    assert one_class.item() == pytest.approx(math.log(7))  # every other anchor is a positive: only log |B| stays
    for value in (0.0, 1e-30, 2.5):
        constant = torch.full((4, 3), value, requires_grad=True)
        loss = losses.wccl(constant, constant, torch.tensor([0, 1, 1, 2]), temperature=0.1, normalize=True)
        loss.backward()
        assert loss.item() == pytest.approx(math.log(7), abs=1e-5)
        assert constant.grad is not None and constant.grad.isfinite().all()


def test_an_anchor_without_positive_is_left_out() -> None:
    anchors, labels = seeded(3, 5, 2), [0, 1, 0, 2, 0]
    want = contrastive_oracle(anchors.tolist(), labels, 0.5, False)
    assert len(want) == 3
    got = losses.contrastive(anchors, torch.tensor(labels), temperature=0.5, normalize=False)
    assert got.item() == pytest.approx(sum(want) / 3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num_anchors", [1, 3])
def test_without_any_positive_the_loss_is_zero_and_so_is_its_gradient(reduction: str, num_anchors: int) -> None:
    anchors = seeded(4, num_anchors, 2).requires_grad_()
    loss = losses.contrastive(anchors, torch.arange(num_anchors), temperature=0.1, normalize=True, reduction=reduction)
    loss.backward()
    assert loss.item() == 0 and anchors.grad is not None and (anchors.grad == 0).all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2], [5, 5, 5, 5], [0, 1, 2, 3]])
def test_contrastive_gradients(labels: list[int], normalize: bool) -> None:
    y = torch.tensor(labels)
    fusion, branch = (part.clone().requires_grad_() for part in seeded(5, 2, 4, 3))
    assert gradcheck(lambda a, b: losses.wccl(a, b, y, temperature=0.4, normalize=normalize), (fusion, branch))
    assert gradcheck(lambda a: losses.contrastive(a, y, temperature=0.4, normalize=normalize), (fusion,))


def test_wccl_is_taken_in_float32_under_autocast_and_on_half_inputs() -> None:
    fusion, branch = seeded(6, 2, 6, 4).float()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    want = losses.wccl(fusion, branch, labels, temperature=0.1, normalize=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = losses.wccl(fusion, branch, labels, temperature=0.1, normalize=True)
    assert got.dtype == torch.float32 and got == want
    halves = fusion.half(), branch.half()
    got = losses.wccl(*halves, labels, temperature=0.1, normalize=True)
    assert got == losses.wccl(halves[0].float(), halves[1].float(), labels, temperature=0.1, normalize=True)


def test_wccl_stays_finite_at_large_similarities() -> None:
    fusion = torch.tensor([[1e4, 0.0], [-1e4, 1.0]], requires_grad=True)
    loss = losses.wccl(fusion, -fusion, torch.tensor([0, 1]), temperature=0.01, normalize=False)
    loss.backward()
    assert loss.isfinite() and fusion.grad is not None and fusion.grad.isfinite().all()


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="neither 'mean' nor 'sum'"):
        losses.wccl(torch.ones(2, 1), torch.ones(2, 1), torch.arange(2), temperature=1, normalize=True, reduction="no")


def focal_oracle(logit: float, target: float, alpha: float, gamma: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    cross_entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
    return (alpha * target + (1 - alpha) * (1 - target)) * abs(target - p) ** gamma * cross_entropy


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-8, 8), st.sampled_from([0.0, 1.0, 0.3, 0.6])), min_size=6, max_size=6),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]),
)
def test_sigmoid_focal_sums_over_classes_and_averages_over_the_rest(
    entries: list[tuple[float, float]], alpha: float, gamma: float
) -> None:
    logits, targets = torch.tensor(entries, dtype=torch.float64).T.unflatten(-1, (2, 1, 3))
    want = sum(focal_oracle(*entry, alpha, gamma) for entry in entries) / 2
    got = losses.sigmoid_focal(logits, targets, alpha=alpha, gamma=gamma)
    assert got.item() == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_sigmoid_focal_at_initialization_is_the_figure_the_start_weights_rest_on() -> None:
    """29 classes at logit 0: 128 videos summed give 471, the first of 471 : 500 : 164."""
    targets = functional.one_hot(torch.zeros(128, 10, dtype=torch.long), 29).float()
    loss = losses.sigmoid_focal(torch.zeros(128, 10, 29), targets, alpha=0.25, gamma=2)
    assert round(128 * loss.item()) == 471


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_sigmoid_focal_gradients(gamma: float) -> None:
    logits, targets = seeded(7, 2, 3, 4).requires_grad_(), torch.rand(2, 3, 4, dtype=torch.float64)
    assert gradcheck(lambda x: losses.sigmoid_focal(x, targets, alpha=0.25, gamma=gamma), (logits,))
    saturated = torch.tensor([[200.0, -200.0, 200.0]], requires_grad=True)
    loss = losses.sigmoid_focal(saturated, torch.tensor([[1.0, 0.0, 0.0]]), alpha=0.25, gamma=gamma)
    loss.backward()
    assert loss.isfinite() and saturated.grad is not None and saturated.grad.isfinite().all()


def test_sigmoid_focal_without_focus_is_half_the_cross_entropy() -> None:
    logits, targets = seeded(8, 5, 4), torch.rand(5, 4, dtype=torch.float64)
    want = functional.binary_cross_entropy_with_logits(logits, targets) * 4 / 2
    assert torch.allclose(losses.sigmoid_focal(logits, targets, alpha=0.5, gamma=0), want)


def log_softmax_oracle(logits: Sequence[float], index: int) -> float:
    return logits[index] - math.log(sum(math.exp(logit) for logit in logits))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_foreground_enhancement_is_the_mean_over_event_videos(seed: int, video: list[int]) -> None:
    logits = seeded(seed, len(video), 3)  # 3 is background
    costs = [-log_softmax_oracle(row, c) for row, c in zip(logits.tolist(), video, strict=True) if c != 3]
    got = losses.foreground_enhancement(logits, torch.tensor(video))
    assert got.item() == pytest.approx(sum(costs) / max(len(costs), 1))


def test_foreground_enhancement_without_events_is_zero_with_a_gradient() -> None:
    logits = seeded(9, 2, 3).requires_grad_()
    loss = losses.foreground_enhancement(logits, torch.tensor([3, 3]))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_foreground_enhancement_gradients_and_large_logits() -> None:
    video = torch.tensor([0, 3, 2])
    assert gradcheck(lambda z: losses.foreground_enhancement(z, video), (seeded(10, 3, 3).requires_grad_(),))
    large = (1e30 * seeded(11, 3, 3).float()).requires_grad_()
    losses.foreground_enhancement(large, video).backward()
    assert large.grad is not None and large.grad.isfinite().all()


def test_segment_cross_entropy() -> None:
    logits, labels = seeded(12, 2, 3, 4), torch.tensor([[0, 3, 1], [2, 2, 3]])
    rows = [
        (row, c)
        for video, ids in zip(logits.tolist(), labels.tolist(), strict=True)
        for row, c in zip(video, ids, strict=True)
    ]
    want = -sum(log_softmax_oracle(row, c) for row, c in rows) / 6
    assert losses.segment_cross_entropy(logits, labels).item() == pytest.approx(want)
    assert losses.segment_cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
    assert gradcheck(lambda x: losses.segment_cross_entropy(x, labels), (logits.requires_grad_(),))

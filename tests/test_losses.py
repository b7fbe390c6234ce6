"""Losses against oracles in plain Python, their gradients against finite differences, and their edges.

The oracles serve tests/test_ccln.py too.
"""

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


def contrastive_oracle(anchors: Sequence[Sequence[float]], labels: Sequence[int], temperature: float) -> list[float]:
    """Eq. 27 anchor by anchor, as printed: -log of the mean over positives of the softmax over all others."""
    norms = [max(math.sqrt(sum(x * x for x in anchor)), 1e-6) for anchor in anchors]
    anchors = [[x / norm for x in anchor] for anchor, norm in zip(anchors, norms, strict=True)]
    found = []
    for i, anchor in enumerate(anchors):
        others = [a for a in range(len(anchors)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        power = {a: math.exp(sum(x * y for x, y in zip(anchor, anchors[a], strict=True)) / temperature) for a in others}
        denominator = sum(power.values())
        found.append(-math.log(sum(power[p] / denominator for p in positives) / len(positives)))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 3))
def test_wccl_is_equation_27(seed: int, labels: list[int], width: int) -> None:
    fusion, branch = seeded(seed, 2, len(labels), width)
    want = contrastive_oracle([*fusion.tolist(), *branch.tolist()], labels * 2, 0.3)
    for reduction, value in (("mean", sum(want) / len(want)), ("sum", sum(want))):
        got = losses.wccl(fusion, branch, torch.tensor(labels), temperature=0.3, reduction=reduction)
        assert got.item() == pytest.approx(value, abs=1e-9)


def test_wccl_by_hand() -> None:
    """Two videos of two classes in one dimension, z = 1, 1 and branch 1, -1, temperature 1."""
    fusion, branch = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])
    got = losses.wccl(fusion, branch, torch.tensor([0, 1]), temperature=1.0)
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
    got = losses.wccl(fusion, branch, torch.arange(5), temperature=0.1)
    assert torch.allclose(got, want)


def test_wccl_does_not_depend_on_the_order_of_videos_or_of_the_two_branches() -> None:
    fusion, branch = seeded(1, 2, 6, 3)
    labels, order = torch.tensor([0, 1, 1, 2, 0, 3]), torch.tensor([4, 2, 0, 5, 1, 3])

    def loss(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> float:
        return losses.wccl(a, b, y, temperature=0.1).item()

    assert loss(fusion[order], branch[order], labels[order]) == pytest.approx(loss(fusion, branch, labels))
    assert loss(branch, fusion, labels) == pytest.approx(loss(fusion, branch, labels))


def test_wccl_of_one_class_and_of_constant_embeddings() -> None:
    fusion, branch = seeded(2, 2, 4, 3)
    one_class = losses.wccl(fusion, branch, torch.zeros(4, dtype=torch.long), temperature=0.1)
    assert one_class.item() == pytest.approx(math.log(7))  # every other anchor is a positive: only log |B| stays
    for value in (0.0, 1e-30, 2.5):
        constant = torch.full((4, 3), value, requires_grad=True)
        loss = losses.wccl(constant, constant, torch.tensor([0, 1, 1, 2]), temperature=0.1)
        loss.backward()
        assert loss.item() == pytest.approx(math.log(7), abs=1e-5)
        assert constant.grad is not None and constant.grad.isfinite().all()


def test_an_embedding_of_hardly_any_norm_is_not_blown_up_to_a_direction() -> None:
    """Norms are clamped at 1e-6: one of 1e-7 becomes 0.1."""
    fusion, branch = seeded(17, 2, 2, 3)
    fusion[0] *= 1e-7 / fusion[0].norm()
    want = sum(contrastive_oracle([*fusion.tolist(), *branch.tolist()], [0, 1, 0, 1], 0.3)) / 4
    got = losses.wccl(fusion, branch, torch.tensor([0, 1]), temperature=0.3)
    assert got.item() == pytest.approx(want, rel=1e-9)
    fusion[0] *= 1e7
    assert abs(losses.wccl(fusion, branch, torch.tensor([0, 1]), temperature=0.3).item() - want) > 0.1


@pytest.mark.parametrize("labels", [[0, 1, 0, 2], [5, 5, 5, 5], [0, 1, 2, 3]])
def test_wccl_gradients(labels: list[int]) -> None:
    y = torch.tensor(labels)
    fusion, branch = (part.clone().requires_grad_() for part in seeded(5, 2, 4, 3))
    assert gradcheck(lambda a, b: losses.wccl(a, b, y, temperature=0.4), (fusion, branch))


def test_wccl_is_taken_in_float32_under_autocast_and_on_half_inputs() -> None:
    fusion, branch = seeded(6, 2, 6, 4).float()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    want = losses.wccl(fusion, branch, labels, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = losses.wccl(fusion, branch, labels, temperature=0.1)
    assert got.dtype == torch.float32 and got == want
    halves = fusion.half(), branch.half()
    got = losses.wccl(*halves, labels, temperature=0.1)
    assert got == losses.wccl(halves[0].float(), halves[1].float(), labels, temperature=0.1)


def test_wccl_stays_finite_at_large_similarities() -> None:
    fusion = torch.tensor([[1e4, 0.0], [-1e4, 1.0]], requires_grad=True)
    loss = losses.wccl(fusion, -fusion, torch.tensor([0, 1]), temperature=1e-4)
    loss.backward()
    assert loss.isfinite() and fusion.grad is not None and fusion.grad.isfinite().all()


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="neither 'mean' nor 'sum'"):
        losses.wccl(torch.ones(2, 1), torch.ones(2, 1), torch.arange(2), temperature=1, reduction="no")


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_impossible_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="is not above 0"):
        losses.wccl(torch.ones(2, 1), torch.ones(2, 1), torch.arange(2), temperature=temperature)


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


def test_sigmoid_focal_is_as_precise_as_its_logits() -> None:
    logits, one_hot = seeded(16, 5, 4), torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])]
    want = losses.sigmoid_focal(logits, one_hot.double(), alpha=0.6, gamma=2)
    for targets in (one_hot, one_hot.long(), one_hot.bool()):
        got = losses.sigmoid_focal(logits, targets, alpha=0.6, gamma=2)
        assert got.dtype == torch.float64 and torch.allclose(got, want, rtol=1e-12)


def log_softmax_oracle(logits: Sequence[float], index: int) -> float:
    return logits[index] - math.log(sum(math.exp(logit) for logit in logits))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_foreground_enhancement_is_the_mean_over_event_videos(seed: int, video: list[int]) -> None:
    """Eq. 29 and 33."""
    logits = seeded(seed, len(video), 3)  # 3 is background
    costs = [-log_softmax_oracle(row, c) for row, c in zip(logits.tolist(), video, strict=True) if c != 3]
    got = losses.foreground_enhancement(logits, torch.tensor(video))
    assert got.item() == pytest.approx(sum(costs) / max(len(costs), 1))


def test_foreground_enhancement_of_segments_is_the_mean_over_event_segments() -> None:
    """Eq. 29 with its T x C: five segments of six are counted, whichever video they are of."""
    logits, labels = seeded(15, 2, 3, 3), torch.tensor([[0, 3, 1], [2, 2, 0]])
    rows = zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True)
    want = sum(-log_softmax_oracle(row, c) for row, c in rows if c != 3) / 5
    assert losses.foreground_enhancement(logits, labels).item() == pytest.approx(want)
    assert gradcheck(lambda z: losses.foreground_enhancement(z, labels), (logits.requires_grad_(),))


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


def softmax_focal_oracle(logits: Sequence[float], targets: Sequence[float], gamma: float) -> float:
    logs = [log_softmax_oracle(logits, k) for k in range(len(logits))]
    return -sum(y * (1 - math.exp(log)) ** gamma * log for y, log in zip(targets, logs, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), st.booleans())
def test_softmax_focal_sums_over_classes_and_averages_over_the_rest(seed: int, gamma: float, soft: bool) -> None:
    logits = 3 * seeded(seed, 2, 3, 4)
    targets = seeded(seed + 1, 2, 3, 4).softmax(-1) if soft else torch.eye(4)[seeded(seed, 2, 3, 4).argmin(-1)].double()
    rows = list(zip(logits.flatten(0, 1).tolist(), targets.flatten(0, 1).tolist(), strict=True))
    want = sum(softmax_focal_oracle(*row, gamma) for row in rows) / 6
    assert losses.softmax_focal(logits, targets, gamma=gamma).item() == pytest.approx(want, rel=1e-9)
    if gamma == 0:
        assert losses.cross_entropy(logits, targets).item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_softmax_focal_gradients(gamma: float) -> None:
    logits, targets = seeded(7, 2, 3, 4).requires_grad_(), seeded(8, 2, 3, 4).softmax(-1)
    assert gradcheck(lambda x: losses.softmax_focal(x, targets, gamma=gamma), (logits,))
    certain = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    loss = losses.softmax_focal(certain, torch.eye(2), gamma=gamma)
    loss.backward()
    assert loss.isfinite() and certain.grad is not None and certain.grad.isfinite().all()


def test_cross_entropy() -> None:
    """That of PyTorch for classes, and -sum y log p, as printed, for soft targets."""
    logits, labels = seeded(12, 2, 3, 4), torch.tensor([[0, 3, 1], [2, 2, 3]])
    one_hot = functional.one_hot(labels, 4)
    want = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert losses.cross_entropy(logits, one_hot).item() == pytest.approx(want.item(), rel=1e-12)
    soft = torch.tensor([[0.5, 0.0, 0.5, 0.0]])
    by_hand = -(log_softmax_oracle([1.0, 2.0, 3.0, 4.0], 0) + log_softmax_oracle([1.0, 2.0, 3.0, 4.0], 2)) / 2
    assert losses.cross_entropy(torch.arange(1.0, 5.0)[None], soft).item() == pytest.approx(by_hand)
    assert losses.cross_entropy(logits.bfloat16(), one_hot).dtype == torch.float32
    assert gradcheck(lambda x: losses.cross_entropy(x, one_hot), (logits.requires_grad_(),))


# Distances

DISTANCE_LOSSES = {
    "logistic": losses.distance_logistic,
    "exponential": losses.distance_exponential,
    "contrastive": losses.distance_contrastive,
}
every_distance_loss = pytest.mark.parametrize("kind", DISTANCE_LOSSES)


def distance_oracle(kind: str, distance: float, same: bool) -> float:
    """Eq. 36 for one pair, with y = 1 asking for a small distance and the term for y = 0 that is not printed."""
    if kind == "contrastive":
        return distance**2 if same else max(1 - distance, 0) ** 2
    near = 1 / (1 + math.exp(-5 * (1 - distance))) if kind == "logistic" else math.exp(-distance)
    return -math.log(near if same else 1 - near)


@every_distance_loss
@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(0.01, 4), st.booleans()), min_size=6, max_size=6))
def test_distance_losses_are_equation_36(kind: str, pairs: list[tuple[float, bool]]) -> None:
    distance = torch.tensor([d for d, _ in pairs], dtype=torch.float64).view(2, 3)
    same = torch.tensor([y for _, y in pairs]).view(2, 3)
    want = sum(distance_oracle(kind, *pair) for pair in pairs) / 6
    assert DISTANCE_LOSSES[kind](distance, same).item() == pytest.approx(want, rel=1e-9, abs=1e-15)


@every_distance_loss
def test_distance_losses_pull_what_belongs_together_and_push_the_rest(kind: str) -> None:
    for far in (0.0, 0.5, 0.9, 3.0):
        distance = torch.tensor([far, far], dtype=torch.float64, requires_grad=True)
        DISTANCE_LOSSES[kind](distance, torch.tensor([True, False])).backward()
        assert distance.grad is not None
        pull, push = distance.grad.tolist()
        assert pull > 0 or (kind == "contrastive" and far == 0)
        assert push < 0 or (kind == "contrastive" and far > 1) or (kind == "exponential" and far == 0)


@every_distance_loss
def test_distance_loss_gradients(kind: str) -> None:
    distance = seeded(13, 2, 3, 3).abs().add(0.01).requires_grad_()
    same = seeded(14, 2, 3, 3) > 0
    assert ((distance > 1) & ~same).any() and ((distance < 1) & ~same).any()  # both sides of the margin
    assert gradcheck(lambda d: DISTANCE_LOSSES[kind](d, same), (distance,))


@every_distance_loss
@pytest.mark.parametrize("value", [0.0, 1e-12, 1e-7, 1e-3, 30.0, 1e4])
def test_distance_losses_are_finite_at_the_edges_in_float32(kind: str, value: float) -> None:
    distance = torch.full((2,), value, requires_grad=True)
    loss = DISTANCE_LOSSES[kind](distance, torch.tensor([True, False]))
    loss.backward()
    assert loss.isfinite() and distance.grad is not None and distance.grad.isfinite().all()
    assert DISTANCE_LOSSES[kind](distance.half(), torch.tensor([True, False])).dtype == torch.float32


def test_the_exponential_loss_of_a_pair_that_should_be_apart_is_flat_below_a_millionth() -> None:
    """-log(1 - exp(-D)) is -log D there, which would grow for ever; what should be together costs D at any D."""
    distance = torch.tensor([1e-8, 1e-6], dtype=torch.float64, requires_grad=True)
    apart = losses.distance_exponential(distance[:1], torch.tensor([False]))
    assert apart.item() == pytest.approx(-math.log(1e-6), abs=1e-5)
    assert losses.distance_exponential(distance[1:], torch.tensor([False])).item() == apart.item()
    apart.backward()
    assert distance.grad is not None and distance.grad[0] == 0
    assert losses.distance_exponential(distance[:1], torch.tensor([True])).item() == 1e-8


def test_the_contrastive_margin() -> None:
    distance, apart = torch.tensor([0.5, 1.5]), torch.tensor([False, False])
    assert losses.distance_contrastive(distance, apart, margin=2.0).item() == pytest.approx((1.5**2 + 0.5**2) / 2)

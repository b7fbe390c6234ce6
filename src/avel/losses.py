"""Losses: pure, differentiable functions of tensors. They do not depend on models or processes.

All compute in float32 at least, even under autocast, and return a scalar of that type.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy ``-sum_k y_k log softmax(z)_k``, averaged over the other dimensions.

    Args:
        logits: (..., K).
        targets: (..., K) in [0, 1]; soft targets are allowed.
    """
    return softmax_focal(logits, targets, gamma=0)


def softmax_soft_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Multi-label soft margin loss of the softmax, as in several papers' released code.

    With p = softmax(z), the mean over all entries of ``-y log sigmoid(p) - (1 - y) log(1 - sigmoid(p))``. The sigmoid
    of a probability lies between 0.5 and 0.73, so the loss stays near 0.7.

    Args:
        logits: (..., K).
        targets: (..., K) in [0, 1]; soft targets are allowed.
    """
    probabilities = _precise(logits).softmax(-1)
    return functional.binary_cross_entropy_with_logits(probabilities, targets.to(probabilities.dtype))


def softmax_focal(logits: Tensor, targets: Tensor, *, gamma: float) -> Tensor:
    """Multi-class focal loss ``-sum_k y_k (1 - p_k)^gamma log p_k``, averaged over the other dimensions.

    p is softmax(z).

    Args:
        logits: (..., K).
        targets: (..., K) in [0, 1]; soft targets are allowed.
        gamma: how much less a well-classified example counts, not negative; 0 gives the cross-entropy.
    """
    log_probabilities = _precise(logits).log_softmax(-1)
    # Clamped because a power below 1 has no gradient at 0, which a saturated softmax reaches.
    focus = (-torch.expm1(log_probabilities)).clamp_min(torch.finfo(log_probabilities.dtype).tiny).pow(gamma)
    return -(targets * focus * log_probabilities).sum(-1).mean()


def sigmoid_focal(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Binary focal loss (Lin et al. 2017; CCLN eq. 28 and 32), summed over classes, averaged over the other dimensions.

    For a target y and p = sigmoid(logit) a class costs ``alpha_t |y - p|^gamma BCE(p, y)`` with
    ``alpha_t = alpha y + (1 - alpha) (1 - y)``. For y in {0, 1} this is the focal loss as published.

    Args:
        logits: (..., K).
        targets: (..., K) in [0, 1]; soft targets are allowed.
        alpha: weight of y = 1; that of y = 0 is 1 - alpha.
        gamma: how much less a well-classified class counts, not negative; 0 gives the weighted BCE.
    """
    logits = _precise(logits)
    targets = targets.to(logits.dtype)
    cost = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # Clamped because a power below 1 has no gradient at 0, which a saturated sigmoid reaches.
    distance = (targets - logits.sigmoid()).abs().clamp_min(torch.finfo(logits.dtype).tiny)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * distance.pow(gamma) * cost).sum(-1).mean()


def foreground_enhancement(logits: Tensor, classes: Tensor) -> Tensor:
    """Foreground event enhancement, ``-log_softmax(z)[class]`` (CCLN eq. 29 and 33), mean over those with an event.

    Args:
        logits: (B, C), z of each video over the event classes only; or (B, T, C), z of each segment.
        classes: (B,) or (B, T) int64; C marks a video or segment without an event, which is left out.

    Returns:
        The mean; 0, with a zero gradient, if there is no event.
    """
    num_classes = logits.shape[-1]
    total = functional.cross_entropy(
        _precise(logits).flatten(0, -2), classes.flatten(), ignore_index=num_classes, reduction="sum"
    )
    return total / (classes != num_classes).sum().clamp_min(1)


def distance_logistic(distance: Tensor, same: Tensor) -> Tensor:
    """Binary cross-entropy of ``sigmoid(5 (1 - D))``, mean (CCLN eq. 36 with the sign that pulls pairs together).

    Args:
        distance: (...) D, not negative, of the order of 1.
        same: (...) bool, whether both segments of a pair hold the event.
    """
    distance = _precise(distance)
    return functional.binary_cross_entropy_with_logits(5 * (1 - distance), same.to(distance.dtype))


def distance_exponential(distance: Tensor, same: Tensor) -> Tensor:
    """Binary cross-entropy of ``exp(-D)``: D for a pair that belongs together, otherwise ``-log(1 - exp(-D))``; mean.

    Args: as in `distance_logistic`. Below D = 1e-6 the second kind has no gradient.
    """
    distance = _precise(distance)
    apart = -torch.log(-torch.expm1(-distance.clamp_min(1e-6)))
    return torch.where(same, distance, apart).mean()


def distance_contrastive(distance: Tensor, same: Tensor, *, margin: float = 1.0) -> Tensor:
    """Contrastive loss ``y D^2 + (1 - y) max(margin - D, 0)^2``, mean (Hadsell et al. 2006; Tian et al. 2018 for AVE).

    Args: as in `distance_logistic`; ``margin`` is the distance at which a pair is far enough apart.
    """
    distance = _precise(distance)
    return torch.where(same, distance, (margin - distance).clamp_min(0)).square().mean()


def wccl(fusion: Tensor, branch: Tensor, labels: Tensor, *, temperature: float, reduction: str = "mean") -> Tensor:
    """Weakly-supervised cross-modal contrastive loss (CCLN eq. 27) over 2B anchors: fusion and branch of each video.

    It pulls the anchors of one class together and pushes the others away. With ``s_ia = z_i . z_a / temperature``, z
    the anchors divided by their norms (clamped at 1e-6), and B(i) the other anchors of i's class, anchor i costs
    ``logsumexp_{a != i} s_ia - logsumexp_{p in B(i)} s_ip + log |B(i)|``.

    Args:
        fusion: (B, N) embeddings of the backbone.
        branch: (B, N) embeddings of the contrastive branch.
        labels: (B,) class ids; videos without an event are a class of their own.
        temperature: delta, which similarities are divided by; positive.
        reduction: ``mean`` over the anchors, or ``sum`` as printed.

    Returns:
        The loss. If all labels differ, it is the self-supervised InfoNCE loss (Fig. 3a).

    Raises:
        ValueError: an unknown reduction, or a temperature that is not above 0.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} is neither 'mean' nor 'sum'")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0")
    with torch.autocast(fusion.device.type, enabled=False):  # else the product would be in half precision
        anchors = functional.normalize(_precise(torch.cat([fusion, branch])), dim=1, eps=1e-6)
        similarity = anchors @ anchors.T / temperature
        itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        positive = labels.repeat(2)[:, None] == labels.repeat(2)
        others = similarity.masked_fill(itself, -torch.inf)
        positives = similarity.masked_fill(~positive | itself, -torch.inf)
        num_positives = positive.sum(1) - 1
        losses = others.logsumexp(1) - positives.logsumexp(1) + num_positives.to(others.dtype).log()
        return losses.mean() if reduction == "mean" else losses.sum()


def _precise(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

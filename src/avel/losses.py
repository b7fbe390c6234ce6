"""Losses: pure, differentiable functions of tensors. They know no models and no processes.

All of them compute in float32 at least, even under autocast, and return a scalar of that type.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def segment_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every segment's class, mean over the segments.

    Args:
        logits: (B, T, C+1).
        labels: (B, T) int64 class ids, background = C.
    """
    return functional.cross_entropy(_precise(logits).flatten(0, 1), labels.flatten())


def sigmoid_focal(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Binary focal loss of every class (Lin et al. 2017; CCLN eq. 28 and 32), summed over classes, mean over the rest.

    For a target y and p = sigmoid(logit) a class costs ``alpha_t |y - p|^gamma BCE(p, y)`` with
    ``alpha_t = alpha y + (1 - alpha) (1 - y)``, which for y in {0, 1} is the focal loss as published.

    Args:
        logits: (..., K).
        targets: (..., K) in [0, 1]; soft targets are allowed.
        alpha: weight of y = 1; y = 0 weighs 1 - alpha.
        gamma: how much less a well-classified class counts, not negative; 0 leaves the weighted BCE.
    """
    logits, targets = _precise(logits), _precise(targets)
    cost = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # Clamped because a power below 1 has no gradient at 0, which a saturated sigmoid reaches.
    distance = (targets - logits.sigmoid()).abs().clamp_min(torch.finfo(logits.dtype).tiny)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * distance.pow(gamma) * cost).sum(-1).mean()


def foreground_enhancement(logits: Tensor, video: Tensor) -> Tensor:
    """Foreground event enhancement, ``-log_softmax(z)[class]`` (CCLN eq. 29), mean over the videos that have an event.

    Args:
        logits: (B, C), z, over the event classes only.
        video: (B,) int64 class of each video; C marks a video without event, which is left out.

    Returns:
        The mean; 0, with a zero gradient, where no video has an event.
    """
    num_classes = logits.shape[1]
    total = functional.cross_entropy(_precise(logits), video, ignore_index=num_classes, reduction="sum")
    return total / (video != num_classes).sum().clamp_min(1)


def wccl(
    fusion: Tensor, branch: Tensor, labels: Tensor, *, temperature: float, normalize: bool, reduction: str = "mean"
) -> Tensor:
    """Weakly-supervised cross-modal contrastive loss (CCLN eq. 27) over 2B anchors: fusion and branch of each video.

    Args:
        fusion: (B, N) embeddings of the backbone.
        branch: (B, N) embeddings of the contrastive branch.
        labels: (B,) class ids; videos without event are a class of their own.
        temperature: delta, what similarities are divided by; positive.
        normalize: compare directions only (L2-normalise, norms clamped at 1e-6).
        reduction: ``mean`` over the anchors, or ``sum`` as printed.

    Returns:
        The loss; with labels all different it is the self-supervised InfoNCE loss (Fig. 3a).
    """
    return contrastive(
        torch.cat([fusion, branch]),
        torch.cat([labels, labels]),
        temperature=temperature,
        normalize=normalize,
        reduction=reduction,
    )


def contrastive(
    anchors: Tensor, labels: Tensor, *, temperature: float, normalize: bool, reduction: str = "mean"
) -> Tensor:
    """Pull anchors of one class together and push the others away; the sum inside the logarithm, as in CCLN eq. 27.

    With ``s_ia = z_i . z_a / temperature`` and B(i) the other anchors of i's class, anchor i costs
    ``logsumexp_{a != i} s_ia - logsumexp_{p in B(i)} s_ip + log |B(i)|``. An anchor with no positive is left out.

    Args:
        anchors: (M, N) embeddings z.
        labels: (M,) class ids.
        temperature, normalize, reduction: as in ``wccl``.

    Returns:
        The loss; 0, with a zero gradient, where no anchor has a positive.

    Raises:
        ValueError: an unknown reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} is neither 'mean' nor 'sum'")
    with torch.autocast(anchors.device.type, enabled=False):  # else the product would be taken in half precision
        anchors = _precise(anchors)
        if normalize:
            anchors = functional.normalize(anchors, dim=1, eps=1e-6)
        similarity = anchors @ anchors.T / temperature
        itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        positive = (labels[:, None] == labels) & ~itself
        num_positives = positive.sum(1)
        kept = num_positives > 0  # a logsumexp over nothing would be -inf, with a NaN gradient
        others = similarity.masked_fill(itself, -torch.inf)[kept]
        positives = others.masked_fill(~positive[kept], -torch.inf)
        losses = others.logsumexp(1) - positives.logsumexp(1) + num_positives[kept].to(others.dtype).log()
        total = losses.sum()
        return total / max(len(losses), 1) if reduction == "mean" else total


def _precise(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

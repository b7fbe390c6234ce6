"""AGVA, audio-guided visual attention with early fusion by concatenation ("A+V-att"), as in its authors' code.

Two things in that code differ from the paper or surprise: it projects the audio onto the cells of the grid, where the
paper has hidden units (``audio_axis``); and its loss takes the softmax for logits (``loss``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from avel import losses
from avel.models.layers import AudioGuidedAttention, BiLSTM, Inputs
from avel.types import Fidelity, Paper, SegmentOutput, Target


@dataclass(frozen=True)
class AGVAOptions:
    """AGVA's options."""

    audio_axis: Literal["position", "hidden"] = "position"
    """What the attention projects the audio onto: the positions (released code) or the hidden units (the paper)."""
    loss: Literal["mlsm_softmax", "cross_entropy"] = "mlsm_softmax"
    """Multi-label soft margin of the softmax, as released, or cross-entropy."""


class AGVA(nn.Module):
    """AGVA for one task, ``full`` or ``weak``."""

    tasks: ClassVar[tuple[str, ...]] = ("full", "weak")
    fidelity: ClassVar[Fidelity] = "released-code"
    paper: ClassVar[Paper] = Paper(
        'Tian, Shi, Li, Duan, Xu: "Audio-Visual Event Localization in Unconstrained Videos", ECCV', 2018
    )
    stochastic: ClassVar[bool] = False

    def __init__(
        self,
        *,
        audio_dim: int,
        visual_dim: int,
        grid: tuple[int, int],
        num_classes: int,
        task: str,
        options: AGVAOptions,
    ) -> None:
        super().__init__()
        self.task, self.num_classes, self.options = task, num_classes, options
        self.inputs = Inputs(audio_dim, visual_dim, grid)
        self.attention = AudioGuidedAttention(visual_dim, audio_dim, math.prod(grid), audio_axis=options.audio_axis)
        self.audio, self.visual = BiLSTM(audio_dim, 256), BiLSTM(visual_dim, 256)
        self.hidden, self.classifier = nn.Linear(512, 64), nn.Linear(64, num_classes + 1)
        for linear in (self.hidden, self.classifier):
            nn.init.xavier_uniform_(linear.weight)

    @property
    def least_loss(self) -> float:
        """0 for cross-entropy; for the soft margin, its value where the softmax is 1 for the one true class."""
        if self.options.loss == "cross_entropy":
            return 0.0
        return (self.num_classes * math.log(2) + math.log1p(math.exp(-1))) / (self.num_classes + 1)

    def forward(self, audio: Tensor, visual: Tensor) -> SegmentOutput:
        """audio (B, T, Da) and visual (B, T, H, W, Dv) -> logits (B, T, C+1) and the attention's map.

        The loss reads the part logits: those of the segments, or in task weak their maximum over time, (B, C+1).
        """
        audio, visual = self.inputs.checked(audio, visual, next(self.parameters()).dtype)
        attended, attention = self.attention(visual, audio)
        fused = torch.cat([self.audio(audio), self.visual(attended)], -1).relu()
        logits = self.classifier(self.hidden(fused).relu())
        return SegmentOutput(logits, attention, {"logits": logits if self.task == "full" else logits.amax(1)})

    def loss(self, parts: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        """The term classification, and total, which equals it."""
        one_hot = functional.one_hot(target.labels, self.num_classes + 1)
        targets = one_hot if self.task == "full" else target.video_labels
        kind = losses.cross_entropy if self.options.loss == "cross_entropy" else losses.softmax_soft_margin
        term = kind(parts["logits"], targets)
        return {"classification": term, "total": term}

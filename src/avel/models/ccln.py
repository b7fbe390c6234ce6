"""CCLN, the Cross-modal Contrastive Learning Network, in the order of its paper.

Sun, Chen, Zhu, Zhang, Lu, Chen: "Listen With Seeing: Cross-Modal Contrastive Learning for Audio-Visual Event
Localization", IEEE Transactions on Multimedia 27, 2025.

Built: full supervision, branch mode AV+V. What differs from the print, or had to be chosen because the paper leaves
it open, is listed row by row in ``docs/fidelity.md``; the weightiest:

- eq. 7-8 do not conform as printed: G_v weighs the audio that is added to vision, G_a the vision added to audio;
- the gates of eq. 20 multiply as printed a number of either sign under a logarithm: here they add as log-sigmoids;
- eq. 25 normalises over a width of 1, a constant: here LayerNorm comes before the map to E;
- classification is cross-entropy, and all losses are means.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from avel import losses
from avel.errors import AvelError
from avel.models.layers import AudioGuidedAttention, BiLSTM, SelfAttention
from avel.types import SegmentOutput, Target

__all__ = [
    "CCLN",
    "AudioGuidedAttention",
    "ContrastiveBranch",
    "ForegroundEnhancement",
    "Fusion",
    "Integration",
    "Interaction",
]


class Fusion(nn.Module):
    """Fusion stage, eq. 1-3: audio-guided visual attention, then Bi-LSTM and self-attention in each stream.

    Args:
        visual_dim, audio_dim, num_cells: Dv, Da, H * W.
        width, heads, dropout: D, attention heads, dropout rate.
    """

    def __init__(self, visual_dim: int, audio_dim: int, num_cells: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = AudioGuidedAttention(visual_dim, audio_dim, num_cells, dropout)
        self.visual = nn.Sequential(BiLSTM(visual_dim, width), SelfAttention(width, heads, dropout))
        self.audio = nn.Sequential(BiLSTM(audio_dim, width), SelfAttention(width, heads, dropout))

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, T, H, W, Dv), (B, T, Da) -> v_F (B, T, D), a_F (B, T, D) and AGVA's map (B, T, H, W) | None."""
        attended, attention = self.attention(visual, audio)  # eq. 1
        return self.visual(attended), self.audio(audio), attention  # eq. 2, 3


class Interaction(nn.Module):
    """Interaction stage, eq. 4-10: self-constrained bi-modal interaction, SBI. Usable on its own in any model.

    Args:
        width: D.
        threshold: tau of the gate. A row of Ta equal correlations is 1/Ta each and is cut whole from Ta = 1/tau on.
        dropout: rate after the four linear maps.
    """

    def __init__(self, width: int, threshold: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold
        self.visual_value = nn.Linear(width, width, bias=False)  # W1
        self.visual_query = nn.Linear(width, width, bias=False)  # W2
        self.audio_key = nn.Linear(width, width, bias=False)  # W3
        self.audio_value = nn.Linear(width, width, bias=False)  # W4
        self.dropout = nn.Dropout(dropout)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """v_F (B, Tv, D), a_F (B, Ta, D) -> v_I (B, Tv, D), a_I (B, Ta, D)."""
        if audio.shape[1] * self.threshold >= 1:
            warnings.warn(
                f"{audio.shape[1]} audio segments: the gate cuts correlations up to {self.threshold}, and so whole rows"
                f" of equal ones; a threshold below {1 / audio.shape[1]:.3g} would not",
                stacklevel=2,
            )
        visual_value = self.dropout(self.visual_value(visual))  # V1, eq. 4
        visual_query = self.dropout(self.visual_query(visual))  # V2
        audio_key = self.dropout(self.audio_key(audio))  # A1
        audio_value = self.dropout(self.audio_value(audio))  # A2
        scores = visual_query @ audio_key.transpose(-2, -1) / visual.shape[-1] ** 0.5
        precise = torch.promote_types(scores.dtype, torch.float32)  # the gate is a matter of small differences
        correlation = scores.softmax(-1, dtype=precise)  # H (B, Tv, Ta), eq. 5
        to_visual, to_audio = (weights.to(visual_value.dtype) for weights in gate(correlation, self.threshold))
        return visual + to_visual @ audio_value, audio + to_audio @ visual_value  # eq. 7-10


def gate(correlation: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Cut weak correlations and share the rest out, row by row and, transposed, column by column.

    Args:
        correlation: (B, Tv, Ta), H, not negative.
        threshold: tau; what is not strictly above it is cut.

    Returns:
        G_v (B, Tv, Ta) and G_a (B, Ta, Tv); their rows sum to 1, or are 0 where nothing was left.
    """
    kept = correlation * (correlation > threshold)
    # The least that a sum of surviving entries can be. It only keeps 0 / 0 away; were it tiny where tau is not,
    # a large gradient divided by it would overflow, and times 0 give NaN.
    least = max(threshold, torch.finfo(kept.dtype).tiny)
    to_visual = kept / kept.sum(-1, keepdim=True).clamp_min(least)
    to_audio = kept / kept.sum(-2, keepdim=True).clamp_min(least)
    return to_visual, to_audio.transpose(-2, -1)


class Integration(nn.Module):
    """Integration stage, eq. 11-12: self-attention, a linear map and LayerNorm in each stream.

    Args:
        width, heads, dropout: D, attention heads, dropout rate.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.visual, self.audio = (
            nn.Sequential(
                SelfAttention(width, heads, dropout), nn.Linear(width, width), nn.Dropout(dropout), nn.LayerNorm(width)
            )
            for _ in range(2)
        )

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """v_I (B, Tv, D), a_I (B, Ta, D) -> v_Z (B, Tv, D), a_Z (B, Ta, D)."""
        return self.visual(visual), self.audio(audio)


class ForegroundEnhancement(nn.Module):
    """Foreground event enhancement, FEE, eq. 16 and 18-20: which event the video as a whole shows.

    Args:
        width: D.
        num_classes: C.
        top_segments: K; the gates are means over a class's K best segments (all of them where T < K).
    """

    def __init__(self, width: int, num_classes: int, top_segments: int) -> None:
        super().__init__()
        self.top_segments = top_segments
        self.event = nn.Linear(width, num_classes)  # W7
        self.visual = nn.Linear(width, num_classes)
        self.audio = nn.Linear(width, num_classes)

    def forward(self, fused: Tensor, visual: Tensor, audio: Tensor) -> Tensor:
        """P_out (B, T, D), v_I (B, T, D), a_I (B, T, D) -> z (B, C), logits over the event classes."""
        event = self.event(fused).amax(1)  # P_fe, eq. 16
        visual_gate, audio_gate = self._best(self.visual(visual)), self._best(self.audio(audio))  # s_v, s_a
        # Eq. 20 with the product of gates taken in the log domain, where it is the loss that takes the logarithm.
        z: Tensor = event + functional.logsigmoid(visual_gate) + functional.logsigmoid(audio_gate)
        return z

    def _best(self, scores: Tensor) -> Tensor:
        """(B, T, C) -> (B, C), the mean of the K largest over time; eq. 18-19 without the sigmoid."""
        return scores.topk(min(self.top_segments, scores.shape[1]), dim=1).values.mean(1)


class ContrastiveBranch(nn.Module):
    """Contrastive branch, eq. 25: an embedding of one stream, taken right after the Fusion stage.

    Args:
        width, heads, dropout: D, attention heads, dropout rate.
        embedding_width: E.
    """

    def __init__(self, width: int, heads: int, dropout: float, embedding_width: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.embedding = nn.Linear(width, embedding_width)

    def forward(self, stream: Tensor) -> Tensor:
        """v_F (B, T, D) -> P_v (B, T, E)."""
        embedding: Tensor = self.embedding(self.norm(self.dropout(self.linear(self.attention(stream)))))
        return embedding


class CCLN(nn.Module):
    """CCLN, fully supervised, with contrastive branch AV+V. The keyword arguments with a default are its options.

    Args:
        audio_dim, visual_dim, grid, num_classes: Da, Dv, (H, W), C.
        task: ``full``; weak supervision and cross-modality localization are not built yet.

    Raises:
        AvelError: an option has an impossible value, or the task is not built.
    """

    def __init__(
        self,
        *,
        audio_dim: int,
        visual_dim: int,
        grid: tuple[int, int],
        num_classes: int,
        task: str,
        width: Annotated[int, "D, the width of the model: even, and divisible by heads"] = 256,
        heads: Annotated[int, "heads of every self-attention"] = 4,
        dropout: Annotated[float, "rate after every linear map but the final ones"] = 0.2,
        threshold: Annotated[float, "tau of the SBI gate: weaker correlations are cut"] = 0.05,
        top_segments: Annotated[int, "K: FEE's gates are means over a class's K best segments"] = 4,
        embedding_width: Annotated[int, "E: width of a segment's contrastive embedding"] = 1,
        temperature: Annotated[float, "delta: what similarities are divided by in the contrastive loss"] = 0.1,
        fee_weight: Annotated[float, "lambda: weight of the foreground event enhancement loss"] = 150 / 128,
        wccl_weight: Annotated[float, "eta: weight of the contrastive loss"] = 25 / 128,
    ) -> None:
        super().__init__()
        if task != "full":
            raise AvelError(f"task {task!r} for ccln", "full, the one task built so far", "train with --task full")
        _check(width > 0 and heads > 0 and width % 2 == 0 and width % heads == 0,
               f"width {width} with {heads} heads", "an even width, divisible by heads")  # fmt: skip
        _check(0 <= dropout < 1, f"dropout {dropout}", "0 <= dropout < 1")
        _check(0 <= threshold < 1, f"threshold {threshold}", "0 <= threshold < 1")
        _check(top_segments > 0, f"top_segments {top_segments}", "at least 1")
        _check(embedding_width > 0, f"embedding_width {embedding_width}", "at least 1")
        _check(temperature > 0, f"temperature {temperature}", "above 0")
        _check(min(fee_weight, wccl_weight) >= 0, f"loss weights {fee_weight} and {wccl_weight}", "none below 0")
        self.audio_dim, self.visual_dim, self.grid = audio_dim, visual_dim, tuple(grid)
        self.temperature, self.fee_weight, self.wccl_weight = temperature, fee_weight, wccl_weight
        self.fusion = Fusion(visual_dim, audio_dim, grid[0] * grid[1], width, heads, dropout)
        self.interaction = Interaction(width, threshold, dropout)
        self.integration = Integration(width, heads, dropout)
        self.classifier = nn.Linear(width, num_classes + 1)  # W5
        self.fusion_embedding = nn.Linear(width, embedding_width)  # W6
        self.foreground = ForegroundEnhancement(width, num_classes, top_segments)
        self.branch = ContrastiveBranch(width, heads, dropout, embedding_width)

    def forward(self, audio: Tensor, visual: Tensor) -> SegmentOutput:
        """Localize the events of a batch of windows.

        Args:
            audio: (B, T, Da).
            visual: (B, T, H, W, Dv), float16 or float32; pooled features are H = W = 1.

        Returns:
            Logits (B, T, C+1), AGVA's map, and the parts that ``loss`` reads: logits, the event logits z (B, C),
            and the embeddings fusion and branch (B, T*E).

        Raises:
            AvelError: a shape is not the one above.
        """
        self._check_shapes(audio, visual)
        dtype = self.classifier.weight.dtype
        audio, visual = audio.to(dtype), visual.to(dtype)
        visual_fused, audio_fused, attention = self.fusion(visual, audio)  # v_F, a_F
        visual_mixed, audio_mixed = self.interaction(visual_fused, audio_fused)  # v_I, a_I
        visual_final, audio_final = self.integration(visual_mixed, audio_mixed)  # v_Z, a_Z
        fused = (visual_final + audio_final) / 2  # P_out, eq. 13
        logits = self.classifier(fused)  # P_o, eq. 14
        parts = {
            "logits": logits,
            "event": self.foreground(fused, visual_mixed, audio_mixed),
            "fusion": self.fusion_embedding(fused).flatten(1),  # P_f, eq. 15
            "branch": self.branch(visual_fused).flatten(1),
        }
        return SegmentOutput(logits, attention, parts)

    def loss(self, parts: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Eq. 31: the terms classification, fee and wccl, already weighted, and their total."""
        contrast = losses.wccl(
            parts["fusion"], parts["branch"], target.video, temperature=self.temperature, normalize=True
        )
        terms = {
            "classification": losses.segment_cross_entropy(parts["logits"], target.labels),
            "fee": self.fee_weight * losses.foreground_enhancement(parts["event"], target.video),
            "wccl": self.wccl_weight * contrast,
        }
        return {**terms, "total": torch.stack(list(terms.values())).sum()}

    def _check_shapes(self, audio: Tensor, visual: Tensor) -> None:
        height, width = self.grid
        good = (
            audio.ndim == 3
            and visual.ndim == 5
            and audio.shape[:2] == visual.shape[:2]
            and 0 not in audio.shape
            and audio.shape[2] == self.audio_dim
            and tuple(visual.shape[2:]) == (height, width, self.visual_dim)
        )
        _check(
            good,
            f"audio of shape {tuple(audio.shape)} and visual of shape {tuple(visual.shape)}",
            f"audio (B, T, {self.audio_dim}) and visual (B, T, {height}, {width}, {self.visual_dim}), B and T alike",
            "give features of the extractors the model was built for, pooled ones as (B, T, 1, 1, Dv)",
        )


def _check(good: bool, found: str, expected: str, do: str = "change that option") -> None:
    if not good:
        raise AvelError(found, expected, do)

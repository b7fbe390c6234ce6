"""Layers that more than one model uses. Shape letters as in ``avel.types``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from avel.errors import AvelError


@dataclass(frozen=True)
class Inputs:
    """The features that a model was built for.

    Attributes:
        audio_dim, visual_dim, grid: Da, Dv, (H, W).
        two_lengths: whether audio and visual may differ in their number of segments, as with a query in task ``cml``.
    """

    audio_dim: int
    visual_dim: int
    grid: tuple[int, int]
    two_lengths: bool = False

    def checked(self, audio: Tensor, visual: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """audio (B, Ta, Da) and visual (B, Tv, H, W, Dv), converted to ``dtype``.

        Raises:
            AvelError: a shape is not as above.
        """
        good = (
            audio.ndim == 3
            and visual.ndim == 5
            and len(audio) == len(visual)
            and (audio.shape[1] == visual.shape[1] or self.two_lengths)
            and 0 not in audio.shape
            and 0 not in visual.shape
            and audio.shape[2] == self.audio_dim
            and tuple(visual.shape[2:]) == (*self.grid, self.visual_dim)
        )
        if not good:
            height, width = self.grid
            raise AvelError(
                f"audio of shape {tuple(audio.shape)} and visual of shape {tuple(visual.shape)}",
                f"audio (B, T, {self.audio_dim}) and visual (B, T, {height}, {width}, {self.visual_dim}), with"
                f" the same B{'' if self.two_lengths else ' and T'}",
                "give features from the extractors that the model was built for, pooled ones as (B, T, 1, 1, Dv)",
            )
        return audio.to(dtype), visual.to(dtype)


class Dropout(nn.Module):
    """Dropout, with a faster random mask on a CPU.

    Args:
        rate: share of the features set to 0 in training; on a CPU rounded to 1 / 256, and the scale with it.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, features: Tensor) -> Tensor:
        """(...) -> (...)."""
        if not self.training or self.rate == 0:
            return features
        if features.device.type != "cpu":
            return functional.dropout(features, self.rate)
        dropped, scale = _cheap_mask(features.shape, self.rate)
        return features * torch.where(dropped, 0, torch.tensor(scale, dtype=features.dtype))

    def extra_repr(self) -> str:
        """The rate, for ``print(model)``."""
        return f"rate={self.rate}"


def _cheap_mask(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """Which features of a CPU tensor to drop, (shape) bool, and the factor that scales the others.

    PyTorch draws one number per feature. Here one draw of 64 random bits serves eight features. That saves 14% of the
    processor time of CCLN's training step at AVE's size (batch 64, one thread).
    """
    count = shape.numel()
    draws = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(256 * rate), 255)  # of the 256 values of 8 bits
    return draws.view(torch.uint8)[:count].view(shape) < dropped, 256 / (256 - dropped)


class LinearReLU(nn.Linear):
    """A linear map, ReLU and dropout.

    Args:
        input_dim, output_dim: widths of the map.
        rate: dropout rate.
    """

    def __init__(self, input_dim: int, output_dim: int, rate: float) -> None:
        super().__init__(input_dim, output_dim)
        self.dropout = Dropout(rate)

    def forward(self, features: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        dropped: Tensor = self.dropout(super().forward(features).relu())
        return dropped


class AudioGuidedAttention(nn.Module):
    """Audio-guided visual attention, AGVA (Tian et al., ECCV 2018).

    The attention-weighted mean of each segment's raw cell features; the audio decides the weights.
    At H = W = 1 it is the identity and has no parameters.

    Args:
        visual_dim: Dv, also the width at which the two streams are compared (512 as published).
        audio_dim: Da.
        num_cells: H * W, also the number of hidden units (49 as published).
        dropout: rate after every linear map but the last, which gives the scores.
        audio_axis: what the audio is projected onto: ``position``, the H*W positions (released code), or ``hidden``,
            the hidden units (the paper's text).
    """

    def __init__(
        self,
        visual_dim: int,
        audio_dim: int,
        num_cells: int,
        dropout: float = 0.0,
        audio_axis: Literal["position", "hidden"] = "position",
    ) -> None:
        super().__init__()
        self.num_cells = num_cells
        self.audio_axis = -1 if audio_axis == "position" else -2
        if num_cells == 1:
            return
        self.visual = LinearReLU(visual_dim, visual_dim, dropout)
        self.audio = LinearReLU(audio_dim, visual_dim, dropout)
        self.visual_hidden = nn.Linear(visual_dim, num_cells, bias=False)
        self.audio_hidden = nn.Linear(visual_dim, num_cells, bias=False)
        self.score = nn.Linear(num_cells, 1, bias=False)
        self.dropout = Dropout(dropout)
        for linear in (self.visual, self.audio, self.visual_hidden, self.audio_hidden, self.score):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor | None]:
        """Attend to each segment's cells.

        Args:
            visual: (B, T, H, W, Dv).
            audio: (B, T, Da), or (B, 1, Da) to guide all segments.

        Returns:
            (B, T, Dv) and the map (B, T, H, W), which sums to 1 over the cells; None at H = W = 1.
        """
        cells = visual.flatten(2, 3)  # (B, T, H*W, Dv)
        if self.num_cells == 1:
            return cells.squeeze(2), None
        visual_features, audio_features = self.visual(cells), self.audio(audio)
        guide = self.dropout(self.audio_hidden(audio_features)).unsqueeze(self.audio_axis)
        hidden = self.dropout(self.visual_hidden(visual_features)) + guide  # (B, T, H*W, hidden)
        attention = self.score(hidden.tanh()).squeeze(-1).softmax(-1)  # (B, T, H*W)
        attended = (attention.unsqueeze(-2).to(cells.dtype) @ cells).squeeze(-2)
        return attended, attention.view(visual.shape[:4])


class BiLSTM(nn.Module):
    """One bidirectional LSTM layer over time, D/2 units in each direction.

    Args:
        input_dim: width of the input features.
        width: D, even.
    """

    def __init__(self, input_dim: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_dim, width // 2, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, input_dim) -> (B, T, D)."""
        # Never in half precision: oneDNN's LSTM refuses it on CPUs without bfloat16 instructions.
        with torch.autocast(features.device.type, enabled=False):
            encoded: Tensor = self.lstm(features.to(next(self.parameters()).dtype))[0]
        return encoded


class SelfAttention(nn.Module):
    """Multi-head self-attention over time, with a residual connection, post-norm LayerNorm and no positional encoding.

    Args:
        width: D, divisible by ``heads``.
        heads: attention heads.
        dropout: rate after the two linear maps.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        projected = self.dropout(self.query_key_value(features))
        projected = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, D/heads)
        query, key, value = projected.unbind()
        attended = functional.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).flatten(2)  # (B, T, D)
        added: Tensor = self.norm(features + self.dropout(self.output(attended)))
        return added


def distances(visual: Tensor, audio: Tensor) -> Tensor:
    """``||v_i - a_j|| / sqrt(D)`` of every visual and every audio segment.

    In float32 at least. The gradient at distance 0 is 0; that of a plain square root would be NaN there.

    Args:
        visual: (B, Tv, D).
        audio: (B, Ta, D).

    Returns:
        (B, Tv, Ta).
    """
    with torch.autocast(visual.device.type, enabled=False):
        precise = torch.promote_types(visual.dtype, torch.float32)
        visual, audio = visual.to(precise), audio.to(precise)
        # Not the expansion |v|^2 - 2 v a + |a|^2, which loses small distances to rounding.
        apart = torch.cdist(visual, audio, compute_mode="donot_use_mm_for_euclid_dist")
        return apart / visual.shape[-1] ** 0.5

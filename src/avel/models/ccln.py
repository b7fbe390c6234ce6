"""CCLN, the Cross-modal Contrastive Learning Network, in the order of its paper.

Sun, Chen, Zhu, Zhang, Lu, Chen: "Listen With Seeing: Cross-Modal Contrastive Learning for Audio-Visual Event
Localization", IEEE Transactions on Multimedia 27, 2025.

Three tasks, four branch modes, and every ablation of the paper's Tables I-III, each an option. What differs from the
print, or had to be chosen because the paper leaves it open, is listed in ``docs/fidelity.md``; the weightiest:

- eq. 7-8 do not conform as printed: G_v weighs the audio that is added to vision, G_a the vision added to audio;
- eq. 20 multiplies gates with a number of either sign and eq. 29 takes the logarithm: here z is a logit;
- eq. 25 normalises over a width of 1, a constant: here LayerNorm comes before the map to E;
- eq. 36 as printed pushes what belongs together apart: here y = 1 asks for a small distance;
- all losses are means.
"""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from avel import losses
from avel.errors import AvelError
from avel.models.layers import AudioGuidedAttention, BiLSTM, Dropout, SelfAttention
from avel.types import DistanceOutput, Fidelity, Paper, SegmentOutput, Target

__all__ = [
    "CCLN",
    "AudioGuidedAttention",
    "ContrastiveBranch",
    "ForegroundEnhancement",
    "Fusion",
    "Integration",
    "Interaction",
    "WeakHead",
]

#: What an ablation leaves out: rows of Tables I-III, and ``integration``, the other reading of "w/o FEE".
Without = Literal["nothing", "fusion", "agva", "bilstm", "self_attention", "sbi", "fee", "integration"]
Branch = Literal["AV", "AV+V", "AV+A", "AV+V+A"]


class Fusion(nn.Module):
    """Fusion stage, eq. 1-3: audio-guided visual attention, then Bi-LSTM and self-attention in each stream.

    Args:
        visual_dim, audio_dim, num_cells: Dv, Da, H * W.
        width, heads, dropout: D, attention heads, dropout rate.
        audio_axis: as in `AudioGuidedAttention`.
        input_map: a linear map to D before each Bi-LSTM.
        without: ``agva`` is the mean over the cells, ``bilstm`` a linear map to D, ``self_attention`` nothing,
            ``fusion`` all three; everything else leaves the stage whole.
    """

    def __init__(
        self,
        visual_dim: int,
        audio_dim: int,
        num_cells: int,
        width: int,
        heads: int,
        dropout: float,
        *,
        audio_axis: Literal["position", "hidden"] = "position",
        input_map: bool = False,
        without: Without = "nothing",
    ) -> None:
        super().__init__()

        def stream(dim: int) -> nn.Sequential:
            linear = nn.Sequential(nn.Linear(dim, width), Dropout(dropout))
            if without in ("bilstm", "fusion"):
                encoder: nn.Module = linear
            else:
                encoder = nn.Sequential(linear, BiLSTM(width, width)) if input_map else BiLSTM(dim, width)
            leave_out = without in ("self_attention", "fusion")
            return nn.Sequential(encoder, nn.Identity() if leave_out else SelfAttention(width, heads, dropout))

        self.attention = (
            None
            if without in ("agva", "fusion")
            else AudioGuidedAttention(visual_dim, audio_dim, num_cells, dropout, audio_axis)
        )
        self.visual, self.audio = stream(visual_dim), stream(audio_dim)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode both streams.

        Args:
            visual: (B, Tv, H, W, Dv).
            audio: (B, Ta, Da). Where Ta is not Tv no sound belongs to a picture, and the mean of all guides AGVA.

        Returns:
            v_F (B, Tv, D), a_F (B, Ta, D) and AGVA's map (B, Tv, H, W) | None.
        """
        if self.attention is None:
            attended, attention = visual.mean((2, 3)), None
        else:
            guide = audio if audio.shape[1] == visual.shape[1] else audio.mean(1, keepdim=True)
            attended, attention = self.attention(visual, guide)  # eq. 1
        return self.visual(attended), self.audio(audio), attention  # eq. 2, 3


class Interaction(nn.Module):
    """Interaction stage, eq. 4-10: self-constrained bi-modal interaction, SBI. Usable on its own in any model.

    Args:
        width: D.
        threshold: tau of the gate. A row of Ta equal correlations is 1/Ta each and is cut whole from Ta = 1/tau on.
        dropout: rate after the four linear maps.
        pairing: ``crossed``, each row of G_v weighs the audio that is added to one visual segment, as in PSP; or
            ``column``, the literal reading of eq. 7-8: v_I = v_F + G_a^T A2, whose weights do not sum to 1.
        tau_scale: ``relative`` takes the threshold as a multiple of 1/Ta, what a row of equal correlations holds.
        relu: a ReLU after each of the four maps.

    Raises:
        AvelError: the threshold is not in [0, 1).
    """

    def __init__(
        self,
        width: int,
        threshold: float,
        dropout: float = 0.0,
        *,
        pairing: Literal["crossed", "column"] = "crossed",
        tau_scale: Literal["absolute", "relative"] = "absolute",
        relu: bool = False,
    ) -> None:
        super().__init__()
        _check(0 <= threshold < 1, f"threshold {threshold}", "0 <= threshold < 1")
        self.threshold, self.pairing, self.tau_scale = threshold, pairing, tau_scale
        self.visual_value = nn.Linear(width, width, bias=False)  # W1
        self.visual_query = nn.Linear(width, width, bias=False)  # W2
        self.audio_key = nn.Linear(width, width, bias=False)  # W3
        self.audio_value = nn.Linear(width, width, bias=False)  # W4
        self.after = nn.Sequential(nn.ReLU(), Dropout(dropout)) if relu else Dropout(dropout)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """v_F (B, Tv, D), a_F (B, Ta, D) -> v_I (B, Tv, D), a_I (B, Ta, D)."""
        threshold = self.threshold / audio.shape[1] if self.tau_scale == "relative" else self.threshold
        if audio.shape[1] * threshold >= 1:  # never where tau is relative: it is below 1
            warnings.warn(
                f"{audio.shape[1]} audio segments: the gate cuts correlations up to {threshold:.3g}, and so whole rows"
                f" of equal ones; a threshold below {1 / audio.shape[1]:.3g}, or tau_scale relative, would not",
                stacklevel=1,  # one level up is torch's own call of this method
            )
        visual_value = self.after(self.visual_value(visual))  # V1, eq. 4
        visual_query = self.after(self.visual_query(visual))  # V2
        audio_key = self.after(self.audio_key(audio))  # A1
        audio_value = self.after(self.audio_value(audio))  # A2
        scores = visual_query @ audio_key.transpose(-2, -1) / visual.shape[-1] ** 0.5
        precise = torch.promote_types(scores.dtype, torch.float32)  # the gate is a matter of small differences
        correlation = scores.softmax(-1, dtype=precise)  # H (B, Tv, Ta), eq. 5
        to_visual, to_audio = (weights.to(visual_value.dtype) for weights in gate(correlation, threshold))
        if self.pairing == "column":
            to_visual, to_audio = to_audio.transpose(-2, -1), to_visual.transpose(-2, -1)
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
        integration_map: Fl of the equations: ``linear``, ``linear_relu`` or ``linear_relu_linear``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        integration_map: Literal["linear", "linear_relu", "linear_relu_linear"] = "linear",
    ) -> None:
        super().__init__()

        def stream() -> nn.Sequential:
            layers: list[nn.Module] = [SelfAttention(width, heads, dropout), nn.Linear(width, width)]
            if integration_map != "linear":
                layers.append(nn.ReLU())
            layers.append(Dropout(dropout))
            if integration_map == "linear_relu_linear":
                layers += [nn.Linear(width, width), Dropout(dropout)]
            return nn.Sequential(*layers, nn.LayerNorm(width))

        self.visual, self.audio = stream(), stream()

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """v_I (B, Tv, D), a_I (B, Ta, D) -> v_Z (B, Tv, D), a_Z (B, Ta, D)."""
        return self.visual(visual), self.audio(audio)


class ForegroundEnhancement(nn.Module):
    """Foreground event enhancement, FEE, eq. 16 and 18-20: which event the video as a whole shows.

    Usable on its own in any model: its logits go with `avel.losses.foreground_enhancement`.

    Args:
        width: D.
        num_classes: C.
        top_segments: K; the gates are means over a class's K best segments (all of them where T < K).
        fee_gate: ``log``, eq. 20 with its product taken in the log domain, where it is the loss that takes the
            logarithm; or ``product``, as printed.
        fee_level: ``video``, one z for the video, as eq. 16-20 have it; or ``segment``, one a segment, as eq. 29.

    Raises:
        AvelError: K is below 1.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        top_segments: int,
        *,
        fee_gate: Literal["log", "product"] = "log",
        fee_level: Literal["video", "segment"] = "video",
    ) -> None:
        super().__init__()
        _check(top_segments > 0, f"top_segments {top_segments}", "at least 1")
        self.top_segments, self.fee_gate, self.fee_level = top_segments, fee_gate, fee_level
        self.event = nn.Linear(width, num_classes)  # W7
        self.visual = nn.Linear(width, num_classes)
        self.audio = nn.Linear(width, num_classes)

    def forward(self, fused: Tensor, visual: Tensor, audio: Tensor) -> Tensor:
        """P_out (B, T, D), v_I (B, T, D), a_I (B, T, D) -> z (B, C), or (B, T, C): logits over the event classes."""
        event = self.event(fused)
        visual_gate, audio_gate = self._best(self.visual(visual)), self._best(self.audio(audio))  # s_v, s_a
        if self.fee_level == "video":
            event = event.amax(1)  # P_fe, eq. 16
        else:
            visual_gate, audio_gate = visual_gate.unsqueeze(1), audio_gate.unsqueeze(1)
        if self.fee_gate == "product":
            return event * (visual_gate.sigmoid() * audio_gate.sigmoid())  # eq. 20
        z: Tensor = event + functional.logsigmoid(visual_gate) + functional.logsigmoid(audio_gate)
        return z

    def _best(self, scores: Tensor) -> Tensor:
        """(B, T, C) -> (B, C), the mean of the K largest over time; eq. 18-19 without the sigmoid."""
        return scores.topk(min(self.top_segments, scores.shape[1]), dim=1).values.mean(1)


class WeakHead(nn.Module):
    """Weak head, eq. 22-24: what the segments say, weighed and pooled into one answer for the video.

    Args:
        width, num_classes: D, C.
        weak_pool: how the weighed segments become the video's: ``mean``, ``sum`` (eq. 24 to the letter), ``max`` or
            ``topk``, the mean of each class's K best.
        top_segments: K.
    """

    def __init__(
        self, width: int, num_classes: int, weak_pool: Literal["mean", "sum", "max", "topk"], top_segments: int
    ) -> None:
        super().__init__()
        self.weak_pool, self.top_segments = weak_pool, top_segments
        self.classifier = nn.Linear(width, num_classes + 1)  # W_w5
        self.weight = nn.Linear(num_classes + 1, 1)  # W_b

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """P_out (B, T, D) -> P_w (B, T, C+1), logits of the segments; (B, C+1), logits of the video."""
        segments = self.classifier(fused)  # P_w, eq. 22
        weighed = functional.relu(self.weight(segments)).sigmoid() * segments  # Theta in [0.5, 1), eq. 23
        if self.weak_pool == "topk":
            return segments, weighed.topk(min(self.top_segments, weighed.shape[1]), dim=1).values.mean(1)
        pools = {"mean": weighed.mean, "sum": weighed.sum, "max": weighed.amax}
        return segments, pools[self.weak_pool](1)  # eq. 24


class ContrastiveBranch(nn.Module):
    """Contrastive branch, eq. 25: an embedding of one stream, taken right after the Fusion stage.

    Args:
        width, heads, dropout: D, attention heads, dropout rate.
        embedding_width: E.
        branch_norm: ``feature``, LayerNorm over D before the map to E; or ``time``, the map to E first and LayerNorm,
            without weights of its own, over T.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        embedding_width: int,
        branch_norm: Literal["feature", "time"] = "feature",
    ) -> None:
        super().__init__()
        self.branch_norm = branch_norm
        self.attention = SelfAttention(width, heads, dropout)
        if branch_norm == "feature":
            self.transform = nn.Sequential(nn.Linear(width, width), Dropout(dropout), nn.LayerNorm(width))
        self.embedding = nn.Linear(width, embedding_width, bias=branch_norm == "feature")  # LN over T would undo it

    def forward(self, stream: Tensor) -> Tensor:
        """v_F (B, T, D) -> P_v (B, T, E)."""
        attended = self.attention(stream)
        if self.branch_norm == "feature":
            embedding: Tensor = self.embedding(self.transform(attended))
            return embedding
        embedding = self.embedding(attended).transpose(1, 2)
        return functional.layer_norm(embedding, embedding.shape[-1:]).transpose(1, 2)


class CCLN(nn.Module):
    """CCLN for one task. The keyword arguments with a default are its options.

    Args:
        audio_dim, visual_dim, grid, num_classes: Da, Dv, (H, W), C.
        task: ``full`` (eq. 28-31), ``weak`` (eq. 22-24, 32-35) or ``cml`` (eq. 17, 36-38).

    Raises:
        AvelError: an option has an impossible value or none in this task.
    """

    tasks: ClassVar[tuple[str, ...]] = ("full", "weak", "cml")
    fidelity: ClassVar[Fidelity] = "paper-notes"
    paper: ClassVar[Paper] = Paper(
        'Sun, Chen, Zhu, Zhang, Lu, Chen: "Listen With Seeing: Cross-Modal Contrastive Learning for Audio-Visual Event'
        ' Localization", IEEE Transactions on Multimedia 27',
        2025,
    )
    stochastic: ClassVar[bool] = True
    least_loss = 0.0

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
        without: Annotated[Without, "what an ablation leaves out"] = "nothing",
        input_map: Annotated[bool, "a linear map to D before each Bi-LSTM"] = False,
        audio_axis: Annotated[Literal["position", "hidden"], "what AGVA projects the sound onto"] = "position",
        cml_visual: Annotated[Literal["grid", "pooled"], "cells of the picture, or their mean", ("cml",)] = "grid",
        threshold: Annotated[float, "tau of the SBI gate: weaker correlations are cut"] = 0.05,
        tau_scale: Annotated[Literal["absolute", "relative"], "tau as it is, or in units of 1/T"] = "absolute",
        pairing: Annotated[Literal["crossed", "column"], "which weights SBI adds the other stream with"] = "crossed",
        interaction_relu: Annotated[bool, "a ReLU after W1 to W4 of SBI"] = False,
        integration_map: Annotated[
            Literal["linear", "linear_relu", "linear_relu_linear"], "the position-wise map of eq. 11-12"
        ] = "linear",
        top_segments: Annotated[int, "K: FEE's gates are means over a class's K best segments", ("full", "weak")] = 4,
        fee_gate: Annotated[
            Literal["log", "product"], "eq. 20 in the log domain, or as printed", ("full", "weak")
        ] = "log",
        fee_level: Annotated[
            Literal["video", "segment"], "what has one z: a video, or a segment", ("full", "weak")
        ] = "video",
        classification: Annotated[
            Literal["cross_entropy", "softmax_focal", "sigmoid_focal"],
            "the loss of the classes, eq. 28 and 32",
            ("full", "weak"),
        ] = "cross_entropy",
        focal_alpha: Annotated[float, "alpha of sigmoid_focal", ("full", "weak")] = 0.25,
        focal_gamma: Annotated[float, "gamma of both focal losses", ("full", "weak")] = 2.0,
        weak_pool: Annotated[
            Literal["mean", "sum", "max", "topk"], "how segments become the video's", ("weak",)
        ] = "mean",
        branch: Annotated[Branch, "streams that are contrasted with the fusion of both"] = "AV+V",
        branch_norm: Annotated[Literal["feature", "time"], "what the branch's LayerNorm runs over"] = "feature",
        branch_anchors: Annotated[
            Literal["pairs", "joint"], "AV+V+A: the mean of two losses over 2B anchors, or one over 3B"
        ] = "pairs",
        embedding_width: Annotated[int, "E: width of a segment's contrastive embedding"] = 1,
        temperature: Annotated[float, "delta: what similarities are divided by in the contrastive loss"] = 0.1,
        normalize: Annotated[bool, "contrast directions only: L2-normalise the embeddings"] = True,
        wccl_labels: Annotated[
            Literal["video", "segment", "relevance"],
            "anchors are videos by class, segments by class, or segments by whether they hold the event",
        ] = "video",
        wccl_reduction: Annotated[Literal["mean", "sum"], "over the anchors: mean, or sum as printed"] = "mean",
        cml_loss: Annotated[
            Literal["logistic", "exponential", "contrastive"], "the loss of the distance, eq. 36", ("cml",)
        ] = "logistic",
        cml_pairs: Annotated[
            Literal["synchronous", "all"], "pairs whose distance is trained: of one second, or all T x T", ("cml",)
        ] = "synchronous",
        fee_weight: Annotated[float, "lambda: weight of the loss of FEE", ("full", "weak")] = 150 / 128,
        wccl_weight: Annotated[float, "eta: weight of the contrastive loss; lambda of eq. 38"] = 25 / 128,
    ) -> None:
        super().__init__()
        _check(width > 0 and heads > 0 and width % 2 == 0 and width % heads == 0,
               f"width {width} with {heads} heads", "an even width, divisible by heads")  # fmt: skip
        _check(0 <= dropout < 1, f"dropout {dropout}", "0 <= dropout < 1")
        _check(top_segments > 0, f"top_segments {top_segments}", "at least 1")
        _check(embedding_width > 0, f"embedding_width {embedding_width}", "at least 1")
        _check(0 < temperature < math.inf, f"temperature {temperature}", "a finite number above 0")
        _check(0 <= focal_alpha <= 1 and 0 <= focal_gamma < math.inf,
               f"focal alpha {focal_alpha} and gamma {focal_gamma}",
               "0 <= alpha <= 1 and a finite gamma, not below 0")  # fmt: skip
        _check(0 <= fee_weight < math.inf and 0 <= wccl_weight < math.inf,
               f"loss weights {fee_weight} and {wccl_weight}", "finite ones, none below 0")  # fmt: skip
        _check(not (task == "cml" and without in ("fee", "integration")), f"without {without} in task cml",
               "another ablation: cml has no FEE, and its distance is that of the integration stage")  # fmt: skip
        for name, level in (("fee_level", fee_level), ("wccl_labels", wccl_labels)):
            _check(task != "weak" or level == "video", f"{name} {level} in task weak",
                   f"{name} video: the weak task has no labels of segments")  # fmt: skip
        _check(wccl_labels == "video" or not normalize or embedding_width > 1,
               f"wccl_labels {wccl_labels} with embedding_width 1, normalised",
               "wider embeddings, or normalize false: one number, normalised, is but its sign")  # fmt: skip
        self.audio_dim, self.visual_dim, self.grid, self.num_classes = audio_dim, visual_dim, tuple(grid), num_classes
        self.task, self.branch, self.branch_anchors = task, branch, branch_anchors
        self.classification, self.focal_alpha, self.focal_gamma = classification, focal_alpha, focal_gamma
        self.temperature, self.normalize = temperature, normalize
        self.wccl_labels, self.wccl_reduction = wccl_labels, wccl_reduction
        self.cml_loss, self.cml_pairs = cml_loss, cml_pairs
        self.fee_weight, self.wccl_weight = fee_weight, wccl_weight

        self.pooled = task == "cml" and cml_visual == "pooled"
        self.fusion = Fusion(
            visual_dim,
            audio_dim,
            1 if self.pooled else grid[0] * grid[1],
            width,
            heads,
            dropout,
            audio_axis=audio_axis,
            input_map=input_map,
            without=without,
        )
        self.interaction = (
            None
            if without == "sbi"
            else Interaction(width, threshold, dropout, pairing=pairing, tau_scale=tau_scale, relu=interaction_relu)
        )
        self.integration = None if without == "integration" else Integration(width, heads, dropout, integration_map)
        # A head exists only where the task's loss reads it.
        if task == "full":
            self.classifier = nn.Linear(width, num_classes + 1)  # W5
        if task == "weak":
            self.weak_head = WeakHead(width, num_classes, weak_pool, top_segments)
        self.foreground = (
            None
            if task == "cml" or without in ("fee", "integration")
            else ForegroundEnhancement(width, num_classes, top_segments, fee_gate=fee_gate, fee_level=fee_level)
        )
        self.branches = nn.ModuleDict(
            {
                name: ContrastiveBranch(width, heads, dropout, embedding_width, branch_norm)
                for name, letter in (("visual", "V"), ("audio", "A"))
                if letter in branch.split("+")
            }
        )
        if self.branches:
            self.fusion_embedding = nn.Linear(width, embedding_width)  # W6

    def forward(self, audio: Tensor, visual: Tensor) -> SegmentOutput | DistanceOutput:
        """Localize the events of a batch of windows, or tell how far apart sound and picture are.

        Args:
            audio: (B, Ta, Da).
            visual: (B, Tv, H, W, Dv), float16 or float32; pooled features are H = W = 1. Ta = Tv, but in task cml,
                where one stream may be the l segments of a query: ``strict`` cross-modality localization.

        Returns:
            Tasks full and weak: logits (B, T, C+1), AGVA's map, and the parts that ``loss`` reads: logits, of the
            segments (B, T, C+1) or the video (B, C+1); event, the logits z (B, C) or (B, T, C); and the embeddings
            fusion, visual, audio (B, T, E). Task cml: distance (B, Tv, Ta), AGVA's map, and the parts distance,
            fused_visual (B, Tv, E), fused_audio (B, Ta, E), visual (B, Tv, E), audio (B, Ta, E).

        Raises:
            AvelError: a shape is not the one above.
        """
        self._check_shapes(audio, visual)
        dtype = next(self.fusion.parameters()).dtype
        audio, visual = audio.to(dtype), visual.to(dtype)
        if self.pooled:
            visual = visual.mean((2, 3), keepdim=True)
        visual_fused, audio_fused, attention = self.fusion(visual, audio)  # v_F, a_F
        visual_mixed, audio_mixed = visual_fused, audio_fused
        if self.interaction is not None:
            visual_mixed, audio_mixed = self.interaction(visual_fused, audio_fused)  # v_I, a_I
        visual_final, audio_final = visual_mixed, audio_mixed
        if self.integration is not None:
            visual_final, audio_final = self.integration(visual_mixed, audio_mixed)  # v_Z, a_Z
        streams = {"visual": visual_fused, "audio": audio_fused}
        parts = {name: branch(streams[name]) for name, branch in self.branches.items()}  # P_v and P_a, eq. 25
        if self.task == "cml":
            parts["distance"] = distances(visual_final, audio_final)  # eq. 17
            if self.branches:  # W6 is linear: the mean of the two at the same second is that of P_out there
                parts["fused_visual"] = self.fusion_embedding(visual_final)
                parts["fused_audio"] = self.fusion_embedding(audio_final)
            return DistanceOutput(parts["distance"], attention, parts)
        fused = (visual_final + audio_final) / 2  # P_out, eq. 13
        if self.task == "full":
            logits = parts["logits"] = self.classifier(fused)  # P_o, eq. 14
        else:
            logits, parts["logits"] = self.weak_head(fused)  # P_w and the video's, eq. 22-24
        if self.branches:
            parts["fusion"] = self.fusion_embedding(fused)  # P_f, eq. 15
        if self.foreground is not None:
            parts["event"] = self.foreground(fused, visual_mixed, audio_mixed)
        return SegmentOutput(logits, attention, parts, multilabel=self.classification == "sigmoid_focal")

    def loss(self, parts: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Eq. 31, 35 or 38: the terms classification, fee and wccl, or distance and wccl, weighted, and their total."""
        terms = {}
        if self.task == "cml":
            terms["distance"] = self._distance_loss(parts["distance"], target.labels < self.num_classes)
        elif self.task == "full":
            one_hot = functional.one_hot(target.labels, self.num_classes + 1)
            terms["classification"] = self._classification_loss(parts["logits"], one_hot)
        else:
            terms["classification"] = self._classification_loss(parts["logits"], target.video_labels)
        if "event" in parts:
            classes = target.video if parts["event"].ndim == 2 else target.labels
            terms["fee"] = self.fee_weight * losses.foreground_enhancement(parts["event"], classes)
        if self.branches:
            terms["wccl"] = self.wccl_weight * self._contrastive_loss(parts, target)
        return {**terms, "total": torch.stack(list(terms.values())).sum()}

    def _classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Eq. 28 or 32, over segments (B, T, C+1) or videos (B, C+1)."""
        if self.classification == "sigmoid_focal":
            return losses.sigmoid_focal(logits, targets, alpha=self.focal_alpha, gamma=self.focal_gamma)
        if self.classification == "softmax_focal":
            return losses.softmax_focal(logits, targets, gamma=self.focal_gamma)
        return losses.cross_entropy(logits, targets)

    def _distance_loss(self, distance: Tensor, relevant: Tensor) -> Tensor:
        """Eq. 36 over the pairs that are trained; ``relevant`` (B, T) says which segments hold the event."""
        _, num_visual, num_audio = distance.shape
        if num_visual == num_audio and self.cml_pairs == "synchronous":
            distance, same = distance.diagonal(dim1=1, dim2=2), relevant
        else:  # a query of l segments is all event
            all_event = relevant.new_ones(len(relevant), min(num_visual, num_audio))
            rows = relevant if num_visual == relevant.shape[1] else all_event
            columns = relevant if num_audio == relevant.shape[1] else all_event
            same = rows[:, :, None] & columns[:, None, :]
        loss = {
            "logistic": losses.distance_logistic,
            "exponential": losses.distance_exponential,
            "contrastive": losses.distance_contrastive,
        }[self.cml_loss]
        return loss(distance, same)

    def _contrastive_loss(self, parts: dict[str, Tensor], target: Target) -> Tensor:
        """Eq. 30, 34 or 37: fusion against each branch there is."""
        event = target.labels < self.num_classes
        names = [name for name in ("fusion", "fused_visual", "fused_audio", *self.branches) if name in parts]
        length = min(parts[name].shape[1] for name in names)

        def shared(stream: Tensor) -> Tensor:
            """(B, length, ...): of a stream that a query of l segments is looked for in, the event's l."""
            return stream if stream.shape[1] == length else stream[event].unflatten(0, (len(stream), length))

        each = {name: shared(parts[name]) for name in names}
        fusion = each["fusion"] if "fusion" in each else (each["fused_visual"] + each["fused_audio"]) / 2
        views = [fusion, *(each[name] for name in self.branches)]
        if self.wccl_labels == "video":
            views, classes = [view.flatten(1) for view in views], target.video
        else:
            views, classes = [view.flatten(0, 1) for view in views], shared(target.labels).flatten()
            if self.wccl_labels == "relevance":
                classes = (classes < self.num_classes).long()
        settings: dict[str, Any] = {
            "temperature": self.temperature,
            "normalize": self.normalize,
            "reduction": self.wccl_reduction,
        }
        if self.branch_anchors == "joint":
            return losses.contrastive(torch.cat(views), classes.repeat(len(views)), **settings)
        return torch.stack([losses.wccl(views[0], view, classes, **settings) for view in views[1:]]).mean()

    def _check_shapes(self, audio: Tensor, visual: Tensor) -> None:
        height, width = self.grid
        good = (
            audio.ndim == 3
            and visual.ndim == 5
            and len(audio) == len(visual)
            and (audio.shape[1] == visual.shape[1] or self.task == "cml")
            and 0 not in audio.shape
            and 0 not in visual.shape
            and audio.shape[2] == self.audio_dim
            and tuple(visual.shape[2:]) == (height, width, self.visual_dim)
        )
        _check(
            good,
            f"audio of shape {tuple(audio.shape)} and visual of shape {tuple(visual.shape)}",
            f"audio (B, T, {self.audio_dim}) and visual (B, T, {height}, {width}, {self.visual_dim}), B"
            f"{'' if self.task == 'cml' else ' and T'} alike",
            "give features of the extractors the model was built for, pooled ones as (B, T, 1, 1, Dv)",
        )


def distances(visual: Tensor, audio: Tensor) -> Tensor:
    """``||v_i - a_j|| / sqrt(D)`` of every visual and every audio segment, eq. 17 off its diagonal too.

    In float32 at least. The gradient at distance 0 is 0, where the root of a sum of squares would give NaN.

    Args:
        visual: (B, Tv, D).
        audio: (B, Ta, D).

    Returns:
        (B, Tv, Ta).
    """
    with torch.autocast(visual.device.type, enabled=False):
        precise = torch.promote_types(visual.dtype, torch.float32)
        visual, audio = visual.to(precise), audio.to(precise)
        # Not the expansion |v|^2 - 2 v a + |a|^2, which loses what small distances are made of.
        apart = torch.cdist(visual, audio, compute_mode="donot_use_mm_for_euclid_dist")
        return apart / visual.shape[-1] ** 0.5


def _check(good: bool, found: str, expected: str, do: str = "change that option") -> None:
    if not good:
        raise AvelError(found, expected, do)

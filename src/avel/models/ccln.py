"""CCLN, the Cross-modal Contrastive Learning Network, in the order of its paper.

Three tasks, four branch modes, and every ablation of the paper's Tables I-III. ``docs/fidelity.md`` lists what differs
from the printed paper and what the paper leaves open. The main differences:

- the shapes in eq. 7-8 do not match as printed: here G_v weighs the audio added to the visual stream, G_a the reverse;
- eq. 20 multiplies gates by a number of either sign and eq. 29 takes the logarithm: here z is a logit;
- eq. 25 normalizes over a width of 1, which gives a constant: here LayerNorm comes before the map to a width of 1;
- eq. 36 as printed pushes apart what belongs together: here y = 1 asks for a small distance;
- all losses are means.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from avel import losses
from avel.errors import AvelError
from avel.models.layers import AudioGuidedAttention, BiLSTM, Dropout, Inputs, SelfAttention, distances
from avel.types import DistanceOutput, Fidelity, Paper, SegmentOutput, Target


@dataclass(frozen=True)
class CCLNOptions:
    """CCLN's options. An annotation names the tasks that read an option, if not all do.

    Raises:
        AvelError: a value is impossible.
    """

    width: int = 256
    """D, the width of the model: even, and divisible by heads."""
    heads: int = 4
    """Heads of every self-attention."""
    dropout: float = 0.2
    """Dropout rate after every linear map but the final ones."""
    without: Literal["nothing", "fusion", "agva", "bilstm", "self_attention", "sbi", "fee", "integration"] = "nothing"
    """What an ablation leaves out; integration is the other reading of the paper's "w/o FEE"."""
    input_map: bool = False
    """A linear map to D before each Bi-LSTM."""
    audio_axis: Literal["position", "hidden"] = "position"
    """What AGVA projects the audio onto: the positions (released code) or the hidden units (the text)."""
    cml_visual: Annotated[Literal["grid", "pooled"], "cml"] = "grid"
    """Visual features: the cells of the grid, or their mean."""
    threshold: float = 0.05
    """tau of the SBI gate: weaker correlations are set to 0."""
    tau_scale: Literal["absolute", "relative"] = "absolute"
    """tau as it is, or in units of 1/T."""
    fee_gate: Annotated[Literal["log", "product"], "full", "weak"] = "log"
    """FEE's eq. 20 in the log domain, or as printed."""
    fee_level: Annotated[Literal["video", "segment"], "full", "weak"] = "video"
    """FEE gives one z for each video (eq. 16-20), or for each segment (eq. 29; not in task weak)."""
    classification: Annotated[Literal["cross_entropy", "softmax_focal", "sigmoid_focal"], "full", "weak"] = (
        "cross_entropy"
    )
    """The classification loss, eq. 28 and 32."""
    focal_alpha: Annotated[float, "full", "weak"] = 0.25
    """alpha of sigmoid_focal."""
    focal_gamma: Annotated[float, "full", "weak"] = 2.0
    """gamma of both focal losses."""
    weak_pool: Annotated[Literal["mean", "sum"], "weak"] = "mean"
    """How the segments' logits become the video's: their mean, or their sum (eq. 24 as printed)."""
    branch: Literal["AV", "AV+V", "AV+A", "AV+V+A"] = "AV+V"
    """Streams that the contrastive loss compares with the fusion of both."""
    temperature: float = 0.1
    """delta: the contrastive loss divides similarities by it."""
    wccl_reduction: Literal["mean", "sum"] = "mean"
    """The contrastive loss over its anchors: the mean, or the sum as printed."""
    cml_loss: Annotated[Literal["logistic", "exponential", "contrastive"], "cml"] = "logistic"
    """The distance loss, eq. 36."""
    cml_pairs: Annotated[Literal["synchronous", "all"], "cml"] = "synchronous"
    """Pairs of segments whose distance is trained: those at the same time, or all T x T."""
    fee_weight: Annotated[float, "full", "weak"] = 150 / 128
    """lambda: weight of FEE's loss."""
    wccl_weight: float = 25 / 128
    """eta: weight of the contrastive loss; lambda of eq. 38."""

    #: Options of earlier versions, with the one value that remains. In docs/study.md no other made a difference.
    removed: ClassVar[dict[str, Any]] = {
        "interaction_relu": False,
        "pairing": "crossed",
        "integration_map": "linear",
        "top_segments": 4,
        "branch_norm": "feature",
        "branch_anchors": "pairs",
        "embedding_width": 1,
        "normalize": True,
        "wccl_labels": "video",
    }

    def __post_init__(self) -> None:
        _check(self.width > 0 and self.heads > 0 and self.width % 2 == 0 and self.width % self.heads == 0,
               f"width {self.width} with {self.heads} heads", "an even width, divisible by heads")  # fmt: skip
        _check(0 <= self.dropout < 1, f"dropout {self.dropout}", "0 <= dropout < 1")
        _check(0 < self.temperature < math.inf, f"temperature {self.temperature}", "a finite number above 0")
        _check(0 <= self.focal_alpha <= 1 and 0 <= self.focal_gamma < math.inf,
               f"focal alpha {self.focal_alpha} and gamma {self.focal_gamma}",
               "0 <= alpha <= 1 and a finite gamma, not below 0")  # fmt: skip
        _check(0 <= self.fee_weight < math.inf and 0 <= self.wccl_weight < math.inf,
               f"loss weights {self.fee_weight} and {self.wccl_weight}", "finite weights, none below 0")  # fmt: skip


class Fusion(nn.Module):
    """Fusion stage, eq. 1-3: audio-guided visual attention, then Bi-LSTM and self-attention in each stream.

    ``without`` says what an ablation replaces: agva by the mean over the cells, bilstm by a linear map to D,
    self_attention by nothing, fusion all three. ``num_cells`` is H * W.
    """

    def __init__(self, visual_dim: int, audio_dim: int, num_cells: int, options: CCLNOptions) -> None:
        super().__init__()
        width, dropout, without = options.width, options.dropout, options.without

        def stream(dim: int) -> nn.Sequential:
            linear = nn.Sequential(nn.Linear(dim, width), Dropout(dropout))
            if without in ("bilstm", "fusion"):
                encoder: nn.Module = linear
            else:
                encoder = nn.Sequential(linear, BiLSTM(width, width)) if options.input_map else BiLSTM(dim, width)
            left_out = without in ("self_attention", "fusion")
            return nn.Sequential(encoder, nn.Identity() if left_out else SelfAttention(width, options.heads, dropout))

        self.attention = None
        if without not in ("agva", "fusion"):
            self.attention = AudioGuidedAttention(visual_dim, audio_dim, num_cells, dropout, options.audio_axis)
        self.visual, self.audio = stream(visual_dim), stream(audio_dim)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """visual (B, Tv, H, W, Dv), audio (B, Ta, Da) -> v_F (B, Tv, D), a_F (B, Ta, D), map (B, Tv, H, W) | None.

        Where Ta is not Tv, audio and visual segments do not pair up, and the mean audio guides AGVA.
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
        threshold: tau of the gate. Equal correlations are 1/Ta each, so from Ta = 1/tau on the gate cuts them all.
        dropout: rate after the four linear maps.
        tau_scale: ``relative`` takes the threshold as a multiple of 1/Ta.

    Raises:
        AvelError: the threshold is not in [0, 1).
    """

    def __init__(
        self,
        width: int,
        threshold: float,
        dropout: float = 0.0,
        tau_scale: Literal["absolute", "relative"] = "absolute",
    ) -> None:
        super().__init__()
        _check(0 <= threshold < 1, f"threshold {threshold}", "0 <= threshold < 1")
        self.threshold, self.tau_scale = threshold, tau_scale
        self.visual_value = nn.Linear(width, width, bias=False)  # W1
        self.visual_query = nn.Linear(width, width, bias=False)  # W2
        self.audio_key = nn.Linear(width, width, bias=False)  # W3
        self.audio_value = nn.Linear(width, width, bias=False)  # W4
        self.dropout = Dropout(dropout)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """v_F (B, Tv, D), a_F (B, Ta, D) -> v_I (B, Tv, D), a_I (B, Ta, D)."""
        threshold = self.threshold / audio.shape[1] if self.tau_scale == "relative" else self.threshold
        if audio.shape[1] * threshold >= 1:  # never with tau_scale relative, as the threshold is below 1
            warnings.warn(
                f"{audio.shape[1]} audio segments: the gate cuts correlations up to {threshold:.3g}, and so whole rows"
                f" of equal ones; a threshold below {1 / audio.shape[1]:.3g}, or tau_scale relative, would not",
                stacklevel=1,  # one level up is torch's own call of this method
            )
        visual_value = self.dropout(self.visual_value(visual))  # V1, eq. 4
        visual_query = self.dropout(self.visual_query(visual))  # V2
        audio_key = self.dropout(self.audio_key(audio))  # A1
        audio_value = self.dropout(self.audio_value(audio))  # A2
        scores = visual_query @ audio_key.transpose(-2, -1) / visual.shape[-1] ** 0.5
        precise = torch.promote_types(scores.dtype, torch.float32)  # the gate depends on small differences
        correlation = scores.softmax(-1, dtype=precise)  # H (B, Tv, Ta), eq. 5
        to_visual, to_audio = (weights.to(visual_value.dtype) for weights in gate(correlation, threshold))
        return visual + to_visual @ audio_value, audio + to_audio @ visual_value  # eq. 7-10


def gate(correlation: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Set weak correlations to 0 and normalize the rest, by rows and, transposed, by columns.

    Args:
        correlation: (B, Tv, Ta), H, not negative.
        threshold: tau; only correlations strictly above it are kept.

    Returns:
        G_v (B, Tv, Ta) and G_a (B, Ta, Tv); their rows sum to 1, or to 0 where nothing was kept.
    """
    kept = correlation * (correlation > threshold)
    # The smallest possible sum of kept entries, so that it only avoids 0 / 0. With a tiny bound and a larger tau,
    # a large gradient divided by it would overflow, and times 0 give NaN.
    least = max(threshold, torch.finfo(kept.dtype).tiny)
    to_visual = kept / kept.sum(-1, keepdim=True).clamp_min(least)
    to_audio = kept / kept.sum(-2, keepdim=True).clamp_min(least)
    return to_visual, to_audio.transpose(-2, -1)


class ForegroundEnhancement(nn.Module):
    """Foreground event enhancement, FEE, eq. 16 and 18-20: which event the whole video shows.

    Usable on its own in any model: its logits go with `avel.losses.foreground_enhancement`.

    Args:
        width, num_classes: D, C.
        fee_gate, fee_level: as in `CCLNOptions`. At level ``segment`` all segments share the same gates.
        top_segments: K; the gates are means over a class's K best segments (all of them where T < K).
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        fee_gate: Literal["log", "product"] = "log",
        fee_level: Literal["video", "segment"] = "video",
        top_segments: int = 4,
    ) -> None:
        super().__init__()
        self.fee_gate, self.fee_level, self.top_segments = fee_gate, fee_level, top_segments
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
    """Weak head, eq. 22-24: the logits of the segments, weighted and pooled into those of the video."""

    def __init__(self, width: int, num_classes: int, weak_pool: Literal["mean", "sum"]) -> None:
        super().__init__()
        self.weak_pool = weak_pool
        self.classifier = nn.Linear(width, num_classes + 1)  # W_w5
        self.weight = nn.Linear(num_classes + 1, 1)  # W_b

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """P_out (B, T, D) -> P_w (B, T, C+1), logits of the segments; (B, C+1), logits of the video."""
        segments = self.classifier(fused)  # P_w, eq. 22
        weighed = functional.relu(self.weight(segments)).sigmoid() * segments  # Theta in [0.5, 1), eq. 23
        return segments, weighed.mean(1) if self.weak_pool == "mean" else weighed.sum(1)  # eq. 24


class ContrastiveBranch(nn.Module):
    """Contrastive branch, eq. 25-26: an embedding of one stream, taken right after the Fusion stage."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.transform = nn.Sequential(nn.Linear(width, width), Dropout(dropout), nn.LayerNorm(width))
        self.embedding = nn.Linear(width, 1)

    def forward(self, stream: Tensor) -> Tensor:
        """v_F (B, T, D) -> P_v (B, T, 1)."""
        embedding: Tensor = self.embedding(self.transform(self.attention(stream)))
        return embedding


class CCLN(nn.Module):
    """CCLN for one task: ``full`` (eq. 28-31), ``weak`` (eq. 22-24, 32-35) or ``cml`` (eq. 17, 36-38).

    Raises:
        AvelError: an option has a value that this task does not allow.
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
        options: CCLNOptions,
    ) -> None:
        super().__init__()
        width, heads, dropout, without = options.width, options.heads, options.dropout, options.without
        _check(not (task == "cml" and without in ("fee", "integration")), f"without {without} in task cml",
               "another ablation: cml has no FEE, and takes its distance after the integration stage")  # fmt: skip
        _check(not (task == "weak" and options.fee_level == "segment"), "fee_level segment in task weak",
               "fee_level video: the weak task has no labels for segments")  # fmt: skip
        self.num_classes, self.task, self.options = num_classes, task, options
        self.inputs = Inputs(audio_dim, visual_dim, grid, two_lengths=task == "cml")
        self.pooled = task == "cml" and options.cml_visual == "pooled"

        def final() -> nn.Sequential:  # Ln(Fl(Sa(.))), eq. 11 and 12
            return nn.Sequential(
                SelfAttention(width, heads, dropout), nn.Linear(width, width), Dropout(dropout), nn.LayerNorm(width)
            )

        self.fusion = Fusion(visual_dim, audio_dim, 1 if self.pooled else grid[0] * grid[1], options)
        self.interaction = None
        if without != "sbi":
            self.interaction = Interaction(width, options.threshold, dropout, options.tau_scale)
        self.integration = None
        if without != "integration":
            self.integration = nn.ModuleDict({"visual": final(), "audio": final()})
        # A head exists only where the task's loss reads it.
        if task == "full":
            self.classifier = nn.Linear(width, num_classes + 1)  # W5
        if task == "weak":
            self.weak_head = WeakHead(width, num_classes, options.weak_pool)
        self.foreground = None
        if task != "cml" and without not in ("fee", "integration"):
            self.foreground = ForegroundEnhancement(width, num_classes, options.fee_gate, options.fee_level)
        streams = {"visual": "V", "audio": "A"}
        chosen = [name for name, letter in streams.items() if letter in options.branch.split("+")]
        self.branches = nn.ModuleDict({name: ContrastiveBranch(width, heads, dropout) for name in chosen})
        if self.branches:
            self.fusion_embedding = nn.Linear(width, 1)  # W6

    def forward(self, audio: Tensor, visual: Tensor) -> SegmentOutput | DistanceOutput:
        """Localize the events of a batch of windows, or compute how far apart audio and visual segments are.

        Args:
            audio: (B, Ta, Da).
            visual: (B, Tv, H, W, Dv), float16 or float32; H = W = 1 for pooled features. Ta = Tv, except in task
                cml, mode ``strict``, where one stream holds only the l segments of a query.

        Returns:
            Tasks full and weak: logits (B, T, C+1), AGVA's map, and the parts logits, of the segments (B, T, C+1) or
            the video (B, C+1); event, the logits z (B, C) or (B, T, C); fusion, visual, audio (B, T, 1). Task cml:
            distance (B, Tv, Ta), AGVA's map, and the parts distance, fused_visual, visual (B, Tv, 1), fused_audio,
            audio (B, Ta, 1).

        Raises:
            AvelError: a shape is not the one above.
        """
        audio, visual = self.inputs.checked(audio, visual, next(self.parameters()).dtype)
        if self.pooled:
            visual = visual.mean((2, 3), keepdim=True)
        visual_fused, audio_fused, attention = self.fusion(visual, audio)  # v_F, a_F
        visual_mixed, audio_mixed = visual_fused, audio_fused
        if self.interaction is not None:
            visual_mixed, audio_mixed = self.interaction(visual_fused, audio_fused)  # v_I, a_I
        visual_final, audio_final = visual_mixed, audio_mixed
        if self.integration is not None:  # v_Z, a_Z
            visual_final = self.integration["visual"](visual_mixed)
            audio_final = self.integration["audio"](audio_mixed)
        streams = {"visual": visual_fused, "audio": audio_fused}
        parts = {name: branch(streams[name]) for name, branch in self.branches.items()}  # P_v and P_a, eq. 25-26
        if self.task == "cml":
            parts["distance"] = distances(visual_final, audio_final)  # eq. 17
            if self.branches:  # W6 is linear: the mean of the two at one second is its map of P_out there
                parts["fused_visual"] = self.fusion_embedding(visual_final)
                parts["fused_audio"] = self.fusion_embedding(audio_final)
            return DistanceOutput(parts["distance"], attention, parts)
        fused = (visual_final + audio_final) / 2  # P_out, eq. 13
        if self.task == "full":
            logits = parts["logits"] = self.classifier(fused)  # P_o, eq. 14
        else:
            logits, parts["logits"] = self.weak_head(fused)  # P_w and the video's logits, eq. 22-24
        if self.branches:
            parts["fusion"] = self.fusion_embedding(fused)  # P_f, eq. 15
        if self.foreground is not None:
            parts["event"] = self.foreground(fused, visual_mixed, audio_mixed)
        return SegmentOutput(logits, attention, parts, multilabel=self.options.classification == "sigmoid_focal")

    def loss(self, parts: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Eq. 31, 35 or 38: the weighted terms classification, fee and wccl, or distance and wccl, and their total."""
        terms = {}
        if self.task == "cml":
            terms["distance"] = self._distance_loss(parts["distance"], target.labels < self.num_classes)
        else:
            one_hot = functional.one_hot(target.labels, self.num_classes + 1)
            targets = one_hot if self.task == "full" else target.video_labels
            terms["classification"] = self._classification_loss(parts["logits"], targets)
        if "event" in parts:
            classes = target.video if parts["event"].ndim == 2 else target.labels
            terms["fee"] = self.options.fee_weight * losses.foreground_enhancement(parts["event"], classes)
        if self.branches:
            terms["wccl"] = self.options.wccl_weight * self._contrastive_loss(parts, target)
        return {**terms, "total": torch.stack(list(terms.values())).sum()}

    def _classification_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Eq. 28 or 32, over segments (B, T, C+1) or videos (B, C+1)."""
        alpha, gamma = self.options.focal_alpha, self.options.focal_gamma
        if self.options.classification == "sigmoid_focal":
            return losses.sigmoid_focal(logits, targets, alpha=alpha, gamma=gamma)
        if self.options.classification == "softmax_focal":
            return losses.softmax_focal(logits, targets, gamma=gamma)
        return losses.cross_entropy(logits, targets)

    def _distance_loss(self, distance: Tensor, relevant: Tensor) -> Tensor:
        """Eq. 36 over the pairs that are trained; ``relevant`` (B, T) marks the segments that hold the event."""
        _, num_visual, num_audio = distance.shape
        if num_visual == num_audio and self.options.cml_pairs == "synchronous":
            distance, same = distance.diagonal(dim1=1, dim2=2), relevant
        else:  # every segment of a query of l segments holds the event
            all_event = relevant.new_ones(len(relevant), min(num_visual, num_audio))
            rows = relevant if num_visual == relevant.shape[1] else all_event
            columns = relevant if num_audio == relevant.shape[1] else all_event
            same = rows[:, :, None] & columns[:, None, :]
        kinds = {
            "logistic": losses.distance_logistic,
            "exponential": losses.distance_exponential,
            "contrastive": losses.distance_contrastive,
        }
        return kinds[self.options.cml_loss](distance, same)

    def _contrastive_loss(self, parts: dict[str, Tensor], target: Target) -> Tensor:
        """Eq. 30, 34 or 37: the fusion of each video against each of its branches, averaged over the branches."""
        names = [name for name in ("fusion", "fused_visual", "fused_audio", *self.branches) if name in parts]
        length = min(parts[name].shape[1] for name in names)
        event = target.labels < self.num_classes
        anchors = {}  # (B, length); of a stream that is searched for a query of l segments, only the event's l
        for name in names:
            whole = parts[name].squeeze(-1)
            anchors[name] = whole if whole.shape[1] == length else whole[event].unflatten(0, (len(whole), length))
        fusion = anchors["fusion"] if "fusion" in anchors else (anchors["fused_visual"] + anchors["fused_audio"]) / 2
        temperature, reduction = self.options.temperature, self.options.wccl_reduction
        terms = [
            losses.wccl(fusion, anchors[name], target.video, temperature=temperature, reduction=reduction)
            for name in self.branches
        ]
        return torch.stack(terms).mean()


def _check(good: bool, found: str, expected: str, do: str = "change that option") -> None:
    if not good:
        raise AvelError(found, expected, do)

"""The words and shapes that every part of avel shares.

Shape letters, each with this one meaning everywhere:

====  ==========================================================
B     windows in a batch
T     segments in a window or a clip (Ta audio, Tv visual)
H W   cells of the visual grid
Da    width of an audio feature
Dv    width of a visual feature
D     width of a model
C     event classes; class index C, the last, is background
====  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:  # `import avel` and the workers that only decode must not load torch
    from torch import Tensor

BACKGROUND = "background"
ZERO_SHOT = "zero-shot"  # the task of a timeline whose classes are the user's own words, never trained on

#: ``progress(stage, done, total)``: long functions call it, the command line draws it.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainStatus:
    """How far a training run has come.

    Attributes:
        seed: the run's seed.
        epoch: the current epoch, or the one that just ended, from 1.
        epochs: the number of epochs in all.
        done: share of this epoch's updates that are done; 1 once the epoch has ended and been validated.
        loss: mean total loss of this epoch so far.
        accuracy: at the latest validation, from 0 to 1; None before the first.
        best_accuracy: the best so far, from 0 to 1; None before the first validation.
        best_epoch: the epoch that reached it; 0 before the first validation.
    """

    seed: int
    epoch: int
    epochs: int
    done: float
    loss: float
    accuracy: float | None
    best_accuracy: float | None
    best_epoch: int


#: How training reports its progress: at the end of each epoch, and at most once a second within it.
Report = Callable[[TrainStatus], None]


@dataclass(frozen=True)
class Span:
    """A labelled stretch ``[start, end)`` of a clip, in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Event(Span):
    """A predicted stretch; ``score`` is the mean probability of its label over its segments."""

    score: float = 1.0


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about the data.

    Attributes:
        level: ``ok`` where a check passed, ``note``, or ``error`` where the data must not be used as they are.
        place: the file, a key in it, or the store.
        text: what was found.
    """

    level: Literal["ok", "note", "error"]
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.place}: {self.text}"


@dataclass(frozen=True)
class Target:
    """The training targets of a batch of windows.

    Attributes:
        labels: (B, T) int64 class ids per segment, background = C.
        video: (B,) int64, the class with the most event segments (ties: the lower id); C where there is no event.
        video_labels: (B, C+1) float32, rows summing to 1; all that the weak task may know about ``labels``.
    """

    labels: Tensor
    video: Tensor
    video_labels: Tensor


@dataclass  # not frozen: Fabric rebuilds what a network returns, field by field
class SegmentOutput:
    """A model's prediction for every segment: an event class or background.

    Attributes:
        logits: (B, T, C+1).
        attention: (B, T, H, W), each map summing to 1, or None where a model has none.
        parts: tensors of B rows that only the model's own ``loss(parts, target)`` reads.
        multilabel: True where the logits were trained as C+1 sigmoids, not as one softmax.
    """

    logits: Tensor
    attention: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
    multilabel: bool = False

    def labels(self) -> Tensor:
        """(B, T) int64 class ids, background = C: the class of the largest logit."""
        return self.logits.argmax(-1)

    def probabilities(self) -> Tensor:
        """(B, T, C+1), summing to 1: the softmax, or the sigmoids divided by their sum. `labels` are their argmax."""
        logits = _precise(self.logits)
        if self.multilabel:  # in the log domain, where the sigmoids cannot all be 0
            logits = _log_sigmoid(logits)
        return _decided(logits.softmax(-1), self.labels())


@dataclass  # not frozen: as `SegmentOutput`
class RelevanceOutput:
    """A model's prediction in two parts: which segments hold an event, and which event the whole window shows.

    Attributes:
        relevance: (B, T), the logit that a segment holds an event.
        category: (B, C), logits of the event classes; or (B, C+1), if the model may also call the window background.
        num_classes: C.
        attention: (B, T, H, W), each map summing to 1, or None where a model has none.
        parts: tensors of B rows that only the model's own ``loss(parts, target)`` reads.
    """

    relevance: Tensor
    category: Tensor
    num_classes: int
    attention: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)

    def labels(self) -> Tensor:
        """(B, T) int64 class ids, background = C: the window's best category where sigmoid(relevance) > 0.5."""
        best = self.category.argmax(-1, keepdim=True)
        return best.where(self.relevance > 0, self.num_classes)

    def probabilities(self) -> Tensor:
        """(B, T, C+1), summing to 1. `labels` are their argmax.

        With r the sigmoid of the relevance and q the softmax of the categories, an event class gets the weight
        r q / max(q). Background gets 1 - r, or its own r q / max(q) if that is more. All are divided by their sum.
        The plain product r q would call a segment background wherever the category is uncertain.
        """
        import torch  # loaded already, as its tensors are here

        relevance, category = _precise(self.relevance).unsqueeze(-1), _precise(self.category).unsqueeze(1)
        weights = _log_sigmoid(relevance) + (category - category.amax(-1, keepdim=True))  # logs, (B, T, C or C+1)
        events, background = weights[..., : self.num_classes], weights[..., self.num_classes :]
        nothing = _log_sigmoid(-relevance)
        if background.shape[-1]:
            nothing = nothing.maximum(background)
        return _decided(torch.cat([events, nothing], -1).softmax(-1), self.labels())


@dataclass  # not frozen: as `SegmentOutput`
class DistanceOutput:
    """The output for cross-modality localization: how far apart the visual and the audio segments are.

    Attributes:
        distance: (B, Tv, Ta), not negative; small where both segments show the same event.
        attention: (B, Tv, H, W), each map summing to 1, or None where a model has none.
        parts: tensors of B rows that only the model's own ``loss(parts, target)`` reads.
    """

    distance: Tensor
    attention: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


#: Outputs that predict events segment by segment: both have ``labels()`` and ``probabilities()``.
EventOutput = SegmentOutput | RelevanceOutput
Output = SegmentOutput | RelevanceOutput | DistanceOutput


#: What a network was built from: the authors' code, others' code, the paper or notes on it, or only its abstract and
#: what others wrote about it, so that most of the network is our own design.
Fidelity = Literal["released-code", "third-party-code", "paper-notes", "reconstruction"]


@dataclass(frozen=True)
class Paper:
    """Where a model was published."""

    citation: str
    """Authors, title and venue."""
    year: int


class Model(Protocol):
    """What every model declares and does. Each is also an ``nn.Module``; `avel.models.build_model` builds it.

    A model whose network changes with the epoch may have a method ``begin_epoch(epoch, epochs)``. Training calls it
    before each epoch, counted from 1. It may set only buffers, so that a checkpoint keeps what it set.

    Attributes:
        tasks: the tasks it can be trained for, of ``full``, ``weak`` and ``cml``.
        fidelity: what its network was built from.
        paper: the paper it implements.
        stochastic: whether training draws random numbers, as dropout does.
    """

    tasks: ClassVar[tuple[str, ...]]
    fidelity: ClassVar[Fidelity]
    paper: ClassVar[Paper]
    stochastic: ClassVar[bool]

    @property
    def least_loss(self) -> float:
        """A lower bound of the total loss."""
        ...

    def __init__(
        self, *, audio_dim: int, visual_dim: int, grid: tuple[int, int], num_classes: int, task: str, **options: Any
    ) -> None:
        """Build it for one task. A model with options takes them as ``options``, a frozen dataclass of its own."""
        ...

    def forward(self, audio: Tensor, visual: Tensor) -> Output:
        """audio (B, T, Da) and visual (B, T, H, W, Dv) -> the output for its task.

        In task ``cml`` one of the two may be shorter: a query, the l segments of the event alone.
        """
        ...

    def loss(self, parts: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        """The terms of the loss over all windows of a batch, as scalars by name, and ``total``, their sum.

        With a query the target still has the labels of all T segments; the query's segments are those of the event.
        """
        ...


def _precise(logits: Tensor) -> Tensor:
    """The logits in float32 at least."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_sigmoid(logits: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.logsigmoid(logits)


def _decided(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The probabilities (..., C+1) with ``labels`` (...) as their argmax.

    Where a tie or rounding puts another class first, the label's probability becomes the next float above it.
    """
    place = labels.unsqueeze(-1)
    largest = probabilities.amax(-1, keepdim=True)
    above = largest.nextafter(largest.new_tensor(math.inf))
    wrong = probabilities.argmax(-1, keepdim=True) != place
    return probabilities.scatter(-1, place, above.where(wrong, probabilities.gather(-1, place)))

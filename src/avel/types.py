"""The words and shapes that every part of avel shares.

Shape letters, which mean nothing else anywhere:

====  ==========================================================
B     windows in a batch
T     segments in a window or a clip (Ta audio, Tv visual)
H W   cells of the visual grid
Da    width of an audio feature
Dv    width of a visual feature
D     width of a model
C     event classes; class index C is background, always the last
====  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:  # `import avel` and the workers that only decode must not pay for torch
    from torch import Tensor

BACKGROUND = "background"
ZERO_SHOT = "zero-shot"  # the task of a timeline whose classes are a user's own words, on which nothing was trained

#: ``progress(stage, done, total)``: called by long functions, drawn by the command line.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainStatus:
    """Where a training stands.

    Attributes:
        seed: of the run.
        epoch: that is under way, or that just ended, from 1.
        epochs: in all.
        done: share of this epoch's updates that are done; 1 once it has ended and was validated.
        loss: mean total loss of this epoch so far.
        accuracy: at the newest validation, from 0 to 1; None before the first.
        best_accuracy: the best so far, likewise.
        best_epoch: the epoch that reached it, 0 before the first validation.
    """

    seed: int
    epoch: int
    epochs: int
    done: float
    loss: float
    accuracy: float | None
    best_accuracy: float | None
    best_epoch: int


#: How training tells where it stands: at the end of each epoch, and at most once a second within it.
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
    """Something worth knowing about data.

    Attributes:
        level: ``ok`` for what was checked and is right, ``note``, or ``error`` where the data must not be used so.
        place: the file, the key in it, or the store.
        text: what was found.
    """

    level: Literal["ok", "note", "error"]
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.place}: {self.text}"


@dataclass(frozen=True)
class Target:
    """What a batch of windows is trained against.

    Attributes:
        labels: (B, T) int64 class ids per segment, background = C.
        video: (B,) int64, the class with most event segments (ties: the earlier), C where there is no event.
        video_labels: (B, C+1) float32, rows summing to 1: all that the weak task may know of ``labels``.
    """

    labels: Tensor
    video: Tensor
    video_labels: Tensor


@dataclass  # not frozen: Fabric rebuilds what a network returns, field by field
class SegmentOutput:
    """A model's answer for every segment: one of the event classes or background.

    Attributes:
        logits: (B, T, C+1).
        attention: (B, T, H, W), each map summing to 1, or None where a model has none.
        parts: what the model's own ``loss(parts, target)`` reads, and nobody else: tensors of B rows.
        multilabel: True where the logits were trained as C+1 sigmoids rather than one softmax.
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
        if self.multilabel:  # in the log domain, where not all sigmoids can be 0
            logits = _log_sigmoid(logits)
        return _decided(logits.softmax(-1), self.labels())


@dataclass  # not frozen: as `SegmentOutput`
class RelevanceOutput:
    """A model's answer in two parts: which segments hold an event, and which event the whole window shows.

    Attributes:
        relevance: (B, T), the logit that a segment holds an event.
        category: (B, C), logits of the event classes; or (B, C+1), where the window's answer may be background itself.
        num_classes: C.
        attention: (B, T, H, W), each map summing to 1, or None where a model has none.
        parts: what the model's own ``loss(parts, target)`` reads, and nobody else: tensors of B rows.
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

        With r the sigmoid of the relevance and q the softmax of the categories, an event class weighs r q / max(q) and
        background 1 - r, or r q / max(q) of its own category where that is more; all are divided by their sum.
        The plain product r q would call a segment background wherever the category is uncertain.
        """
        import torch  # its tensors are here already, so it costs nothing

        relevance, category = _precise(self.relevance).unsqueeze(-1), _precise(self.category).unsqueeze(1)
        weights = _log_sigmoid(relevance) + (category - category.amax(-1, keepdim=True))  # logs, (B, T, C or C+1)
        events, background = weights[..., : self.num_classes], weights[..., self.num_classes :]
        nothing = _log_sigmoid(-relevance)
        if background.shape[-1]:
            nothing = nothing.maximum(background)
        return _decided(torch.cat([events, nothing], -1).softmax(-1), self.labels())


@dataclass  # not frozen: as `SegmentOutput`
class DistanceOutput:
    """How far apart the visual and the audio segments are: the output for cross-modality localization.

    Attributes:
        distance: (B, Tv, Ta), not negative; small where both show one event.
        attention: (B, Tv, H, W), each map summing to 1, or None where a model has none.
        parts: what the model's own ``loss(parts, target)`` reads, and nobody else: tensors of B rows.
    """

    distance: Tensor
    attention: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


#: What a model says about events, segment by segment: both have ``labels()`` and ``probabilities()``.
EventOutput = SegmentOutput | RelevanceOutput
Output = SegmentOutput | RelevanceOutput | DistanceOutput


#: What a network was built from: the authors' code, code of others, the paper or notes on it, or no more than its
#: abstract and what others say of it, so that most of the network is our own.
Fidelity = Literal["released-code", "third-party-code", "paper-notes", "reconstruction"]


@dataclass(frozen=True)
class Paper:
    """Where a model was published."""

    citation: str
    """Authors, title and venue."""
    year: int


class Model(Protocol):
    """What every model declares and does. Each is an ``nn.Module`` too, and `avel.models.build_model` makes them.

    One whose network changes with the epoch may have a method ``begin_epoch(epoch, epochs)``, which training calls
    before each epoch, counted from 1. What it sets must be a buffer, so that a checkpoint remembers it.

    Attributes:
        tasks: that it can be trained for: ``full``, ``weak``, ``cml``.
        fidelity: what its network was built from.
        paper: that it implements.
        stochastic: whether training draws at random, as dropout does.
    """

    tasks: ClassVar[tuple[str, ...]]
    fidelity: ClassVar[Fidelity]
    paper: ClassVar[Paper]
    stochastic: ClassVar[bool]

    @property
    def least_loss(self) -> float:
        """A number that the total loss cannot go below."""
        ...

    def __init__(
        self, *, audio_dim: int, visual_dim: int, grid: tuple[int, int], num_classes: int, task: str, **options: Any
    ) -> None:
        """For one task. A model that has options takes them as ``options``, a frozen dataclass of its own."""
        ...

    def forward(self, audio: Tensor, visual: Tensor) -> Output:
        """audio (B, T, Da) and visual (B, T, H, W, Dv) -> the output of its task."""
        ...

    def loss(self, parts: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        """The terms of the loss by name, as scalars, and ``total``, their sum; of all windows of a batch together."""
        ...


def _precise(logits: Tensor) -> Tensor:
    """In float32 at least."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_sigmoid(logits: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.logsigmoid(logits)


def _decided(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The probabilities (..., C+1) with ``labels`` (...) as their argmax.

    Where a tie or rounding has another class come first, the label's is raised by the least step above the largest.
    """
    place = labels.unsqueeze(-1)
    largest = probabilities.amax(-1, keepdim=True)
    above = largest.nextafter(largest.new_tensor(math.inf))
    wrong = probabilities.argmax(-1, keepdim=True) != place
    return probabilities.scatter(-1, place, above.where(wrong, probabilities.gather(-1, place)))

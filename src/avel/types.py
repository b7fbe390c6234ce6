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

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # `import avel` and the workers that only decode must not pay for torch
    import torch

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

    labels: torch.Tensor
    video: torch.Tensor
    video_labels: torch.Tensor


@dataclass  # not frozen: Fabric rebuilds what a network returns, field by field
class SegmentOutput:
    """What a model says about every segment.

    Attributes:
        logits: (B, T, C+1).
        attention: (B, T, H, W), each map summing to 1, or None where a model has none.
        parts: what the model's own ``loss(parts, target)`` reads, and nobody else.
        multilabel: True where the logits were trained as C+1 sigmoids rather than one softmax.
    """

    logits: torch.Tensor
    attention: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    multilabel: bool = False

    def probabilities(self) -> torch.Tensor:
        """(B, T, C+1), summing to 1: the softmax, or the sigmoids divided by their sum."""
        if self.multilabel:
            scores = self.logits.float().sigmoid()
            return scores / scores.sum(-1, keepdim=True)
        return self.logits.float().softmax(-1)

    def labels(self) -> torch.Tensor:
        """(B, T) int64 class ids, background = C."""
        return self.logits.argmax(-1)


@dataclass  # not frozen: as `SegmentOutput`
class DistanceOutput:
    """How far apart what is seen and what is heard are: the output for cross-modality localization.

    Attributes:
        distance: (B, Tv, Ta), not negative; small where both show one event.
        attention: (B, Tv, H, W), each map summing to 1, or None where a model has none.
        parts: what the model's own ``loss(parts, target)`` reads, and nobody else.
    """

    distance: torch.Tensor
    attention: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict)

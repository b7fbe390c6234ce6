"""Metrics: pure functions of arrays and spans. They return counts, and counts add: over batches, clips, processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from avel.errors import AvelError
from avel.types import Span


def confusion(
    labels: npt.NDArray[np.integer], predictions: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Count segments by true and predicted class.

    Args:
        labels: class ids of any shape, background = C.
        predictions: class ids of the same shape.
        num_classes: C.

    Returns:
        (C+1, C+1) counts; rows are the truth, columns the prediction.

    Raises:
        AvelError: the shapes differ, or an id is not in 0 .. C.
    """
    size = num_classes + 1
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise AvelError(
            f"labels of shape {labels.shape} and predictions of shape {predictions.shape}",
            "one prediction for every segment",
            "compare predictions with the labels of the same clips",
        )
    for name, ids in (("labels", labels), ("predictions", predictions)):
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            raise AvelError(
                f"{name} from {ids.min()} to {ids.max()}",
                f"class ids from 0 to {num_classes}, the last being background",
                "check that labels and predictions are of the same classes",
            )
    pairs = labels.astype(np.int64).ravel() * size + predictions.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def segment_accuracy(confusion: npt.NDArray[np.int64]) -> float:
    """Share of segments, background included, whose prediction is right; nan without segments.

    Args:
        confusion: (C+1, C+1) counts, rows truth.
    """
    total = int(confusion.sum())
    return int(np.trace(confusion)) / total if total else float("nan")


def class_recall(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(C+1,) share of each class's own segments that were found (CCLN Fig. 8); nan where it has none.

    Args:
        confusion: (C+1, C+1) counts, rows truth.
    """
    segments = confusion.sum(1)
    return np.divide(np.diag(confusion), segments, out=np.full(len(segments), np.nan), where=segments > 0)


@dataclass(frozen=True)
class EventCounts:
    """Events that were matched, predicted and there in truth. Counts add: ``sum(counts, EventCounts())``."""

    matched: int = 0
    predicted: int = 0
    truth: int = 0

    def __add__(self, other: EventCounts) -> EventCounts:
        return EventCounts(self.matched + other.matched, self.predicted + other.predicted, self.truth + other.truth)


def event_counts(truth: Sequence[Span], predicted: Sequence[Span], iou: float) -> EventCounts:
    """Match the events of one clip one to one, the pair that overlaps best first.

    Two events can match if their labels are equal and the intersection of their spans is at least ``iou`` of the
    union (to nine decimals, so that seconds which binary fractions miss do not decide). Ties go to the earlier
    events, so the order of the input does not matter.

    Args:
        truth: the events there are.
        predicted: the events that were found.
        iou: threshold, above 0 and at most 1.

    Raises:
        AvelError: the threshold is out of range.
    """
    if not 0 < iou <= 1:
        raise AvelError(f"IoU threshold {iou}", "above 0 and at most 1", "0.5 is usual")
    pairs = []
    for i, true in enumerate(truth):
        for j, found in enumerate(predicted):
            overlap = round(_iou(true, found), 9)
            if true.label == found.label and overlap >= iou:
                pairs.append((-overlap, true.start, true.end, found.start, found.end, i, j))
    matched_truth: set[int] = set()
    matched_predicted: set[int] = set()
    for *_, i, j in sorted(pairs):
        if i not in matched_truth and j not in matched_predicted:
            matched_truth.add(i)
            matched_predicted.add(j)
    return EventCounts(len(matched_truth), len(predicted), len(truth))


def event_f1(counts: EventCounts) -> float:
    """F1 of the matched events, ``2 matched / (predicted + truth)``; nan where there are none of either."""
    total = counts.predicted + counts.truth
    return 2 * counts.matched / total if total else float("nan")


def labels_to_spans(labels: npt.NDArray[np.integer], classes: Sequence[str], segment_seconds: float) -> list[Span]:
    """The events in a sequence of segment labels: maximal runs of one class that is not background.

    Args:
        labels: (T,) class ids, background = C.
        classes: the C names.
        segment_seconds: length of a segment in seconds.
    """
    labels = np.asarray(labels)
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [
        Span(classes[labels[first]], first * segment_seconds, last * segment_seconds)
        for first, last in pairwise(edges)
        if first < last and labels[first] != len(classes)
    ]


def _iou(one: Span, other: Span) -> float:
    """Intersection over union of two spans, 0 where they are apart."""
    intersection = min(one.end, other.end) - max(one.start, other.start)
    union = max(one.end, other.end) - min(one.start, other.start)
    return intersection / union if intersection > 0 else 0.0

"""Metrics: pure functions of arrays and spans. They return counts, which add up over batches, clips and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from avel.errors import AvelError
from avel.types import Span


def labels_of(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The labels of segments: the most probable class, on a tie the first.

    The ``labels()`` of a network's output agree with it. Where several windows show a segment, it is applied to the
    mean of their probabilities.

    Args:
        probabilities: (..., C+1), background last.

    Returns:
        (...) class ids, background = C.
    """
    labels: npt.NDArray[np.int64] = probabilities.argmax(-1)
    return labels


def confusion(
    labels: npt.NDArray[np.integer], predictions: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Count segments by true and predicted class.

    Args:
        labels: class ids of any shape, background = C.
        predictions: class ids of the same shape.
        num_classes: C.

    Returns:
        (C+1, C+1) counts; rows are the true class, columns the predicted.

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
                "check that labels and predictions use the same classes",
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
    """(C+1,) share of each class's segments that were found (CCLN Fig. 8); nan for a class without segments.

    Args:
        confusion: (C+1, C+1) counts, rows truth.
    """
    segments = confusion.sum(1)
    return np.divide(np.diag(confusion), segments, out=np.full(len(segments), np.nan), where=segments > 0)


@dataclass(frozen=True)
class EventCounts:
    """Numbers of matched, predicted and true events. Counts add: ``sum(counts, EventCounts())``."""

    matched: int = 0
    predicted: int = 0
    truth: int = 0

    def __add__(self, other: EventCounts) -> EventCounts:
        return EventCounts(self.matched + other.matched, self.predicted + other.predicted, self.truth + other.truth)


def event_counts(truth: Sequence[Span], predicted: Sequence[Span], iou: float) -> EventCounts:
    """Match the events of one clip one to one, the pair that overlaps best first.

    Two events can match if their labels are equal and the intersection of their spans is at least ``iou`` of the
    union (rounded to nine decimals, so that floating-point error in the seconds does not decide). Ties go to the
    earlier events, so the order of the input does not matter. This is not the matching with the most pairs, which
    sed_eval computes by default. The two can differ where an event overlaps several with its label; from IoU 0.5 on
    they agree unless events with the same label overlap one another.

    Args:
        truth: the true events. Events of zero length are not counted (AVE annotates one as 0-0).
        predicted: the predicted events.
        iou: threshold, above 0 and at most 1.

    Raises:
        AvelError: the threshold is out of range.
    """
    if not 0 < iou <= 1:
        raise AvelError(f"IoU threshold {iou}", "above 0 and at most 1", "0.5 is usual")
    truth = [event for event in truth if event.end > event.start]
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


def event_curve(truth: Sequence[Span], predicted: Sequence[Span], ious: Sequence[float]) -> list[EventCounts]:
    """The `event_counts` of one clip at each of several IoU thresholds; for several clips, add them point by point."""
    return [event_counts(truth, predicted, iou) for iou in ious]


def event_f1(counts: EventCounts) -> float:
    """F1 of the matched events, ``2 matched / (predicted + truth)``; nan if there are neither."""
    total = counts.predicted + counts.truth
    return 2 * counts.matched / total if total else float("nan")


def labels_to_spans(labels: npt.NDArray[np.integer], classes: Sequence[str], segment_seconds: float) -> list[Span]:
    """The events in a sequence of segment labels: maximal runs of one event class.

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


def partial_event(mask: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
    """Start and length, in segments, of the one event that cross-modality localization can look for.

    Args:
        mask: (T,) True where a segment holds the event.

    Returns:
        None where there is nothing to look for: no event, an event as long as the video, or several runs.

    Raises:
        AvelError: the mask is not (T,) of booleans.
    """
    mask = np.asarray(mask)
    if mask.ndim != 1 or mask.dtype != np.bool_:
        raise AvelError(
            f"an event mask of shape {mask.shape} and type {mask.dtype}",
            "(T,) booleans, True where a segment holds the event",
            "compare class ids with background: labels != num_classes",
        )
    inside = np.flatnonzero(mask)
    length = len(inside)
    if not 0 < length < len(mask) or inside[-1] - inside[0] != length - 1:
        return None
    return int(inside[0]), length


def locate(distance: npt.NDArray[np.floating]) -> int:
    """Where a query is nearest in the other stream: the first n with the smallest ``sum_i distance[n + i, i]``.

    Args:
        distance: (Ts, l), between the Ts segments of the searched stream and the l segments of the query.

    Raises:
        AvelError: the query is empty or longer than the stream, or a distance is not a number.
    """
    distance = np.asarray(distance, dtype=np.float64)
    if distance.ndim != 2 or not 0 < distance.shape[1] <= distance.shape[0]:
        found = f"distances of shape {distance.shape}"
        raise AvelError(found, "(Ts, l), 1 <= l <= Ts", "give a row per searched segment, a column per query segment")
    length = distance.shape[1]
    starts = len(distance) - length + 1
    total = np.zeros(starts)
    for i in range(length):  # the same order of sums for every start, so that equal distances tie exactly
        total += distance[i : i + starts, i]
    if np.isnan(total).any():
        raise AvelError("a distance that is not a number", "numbers", "check whether training diverged")
    return int(total.argmin())


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap percentile interval; nan where nothing was counted."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    correct: npt.ArrayLike, counted: npt.ArrayLike, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """How far an accuracy, ``sum(correct) / sum(counted)``, would move with other videos and other training seeds.

    Videos are drawn with replacement, and so are the S seeds if there are several. All seeds are scored on the same
    drawn videos. A resample in which nothing is counted is left out.

    Args:
        correct: (S, N) or (N,), the number of correct answers in each video, for each of the S trained models.
        counted: of the same shape, the number of answers counted.
        level: share of the resamples inside the interval, between 0 and 1.
        samples: number of resamples.
        seed: of the random draws.

    Raises:
        AvelError: no videos, shapes that differ, more correct than counted, or an option out of range.
    """
    return _bootstrap([(correct, counted)], level, samples, seed)


def paired_interval(
    correct_a: npt.ArrayLike,
    counted_a: npt.ArrayLike,
    correct_b: npt.ArrayLike,
    counted_b: npt.ArrayLike,
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """How far the difference of two accuracies, a - b, would move: both are scored on the same drawn videos.

    Seeds are drawn separately for a and b: their training runs are unrelated, even where seed numbers agree.

    Args:
        correct_a, counted_a: (S, N) or (N,), as in `bootstrap_interval`; so are the options.
        correct_b, counted_b: (S', N) or (N,), the same videos in the same order.

    Raises:
        AvelError: a and b have different numbers of videos, or as in `bootstrap_interval`.
    """
    return _bootstrap([(correct_a, counted_a), (correct_b, counted_b)], level, samples, seed)


def _bootstrap(runs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], level: float, samples: int, seed: int) -> Interval:
    """The interval of one run's accuracy, or of the first run's minus the second's."""
    tables = [_table(*run) for run in runs]
    videos = [table.shape[-1] for table in tables]
    if len(set(videos)) > 1:
        found = f"runs over {' and '.join(map(str, videos))} videos"
        raise AvelError(found, "the same videos in the same order", "compare two runs on one split")
    if samples < 1 or not 0 < level < 1:
        raise AvelError(f"{samples} samples, level {level}", "1 or more, between 0 and 1", "2000 and 0.95 are usual")
    generator = np.random.default_rng(seed)
    blocks = []
    for first in range(0, samples, 100):  # all at once, 2000 resamples of AVE's 4143 videos would take 66 MB
        rows = min(100, samples - first)
        drawn = _draws(generator, rows, videos[0])  # the same videos for every table
        sums = [((table @ drawn.T) * _draws(generator, rows, table.shape[1]).T).sum(1) for table in tables]
        blocks.append(_difference(np.stack(sums)))
    resampled = np.concatenate(blocks)
    kept = resampled[~np.isnan(resampled)]
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2]) if kept.size else (np.nan, np.nan)
    return Interval(float(_difference(np.stack([table.sum((1, 2)) for table in tables]))), float(low), float(high))


def _draws(generator: np.random.Generator, rows: int, size: int) -> npt.NDArray[np.float64]:
    """(rows, size) how often each of ``size`` items came up in ``size`` draws with replacement."""
    drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _table(correct: npt.ArrayLike, counted: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(2, S, N): correct and counted."""
    right, asked = np.asarray(correct, dtype=np.float64), np.asarray(counted, dtype=np.float64)
    fits = right.shape == asked.shape and right.ndim in (1, 2) and right.size > 0
    if not fits:
        found = f"correct of shape {right.shape} and counted of shape {asked.shape}"
        raise AvelError(found, "both (N,) or both (S, N), N at least 1", "give both numbers for every video")
    if not ((right >= 0) & (right <= asked) & np.isfinite(asked)).all():
        found = f"correct from {right.min()} to {right.max()} where {asked.min()} to {asked.max()} were counted"
        raise AvelError(found, "0 <= correct <= counted in every video", "pass the correct counts first")
    return np.stack([np.atleast_2d(right), np.atleast_2d(asked)])


def _difference(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(runs, 2, ...) sums of correct and counted -> (...) accuracy, minus the second run's if there is one."""
    correct, counted = sums[:, 0], sums[:, 1]
    return np.subtract.reduce(np.divide(correct, counted, out=np.full(correct.shape, np.nan), where=counted > 0))


def _iou(one: Span, other: Span) -> float:
    """Intersection over union of two spans, 0 where they do not overlap."""
    intersection = min(one.end, other.end) - max(one.start, other.start)
    union = max(one.end, other.end) - min(one.start, other.start)
    return intersection / union if intersection > 0 else 0.0

"""Metrics against oracles in plain Python and against cases done by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avel.errors import AvelError
from avel.metrics import (
    EventCounts,
    class_recall,
    confusion,
    event_counts,
    event_f1,
    labels_to_spans,
    segment_accuracy,
)
from avel.types import Event, Span

ids = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30)


@given(ids)
def test_confusion_accuracy_and_recall(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array([p[0] for p in pairs], dtype=int), np.array([p[1] for p in pairs], dtype=int)
    counts = confusion(labels, predictions, 3)
    assert counts.shape == (4, 4) and counts.dtype == np.int64
    for true in range(4):
        for predicted in range(4):
            assert counts[true, predicted] == pairs.count((true, predicted))
    if pairs:
        assert segment_accuracy(counts) == sum(a == b for a, b in pairs) / len(pairs)
    else:
        assert math.isnan(segment_accuracy(counts))
    for true, recall in enumerate(class_recall(counts)):
        own = [b for a, b in pairs if a == true]
        assert recall == own.count(true) / len(own) if own else math.isnan(recall)


@given(ids, ids)
def test_confusion_counts_add(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    def counted(pairs: list[tuple[int, int]]) -> np.ndarray:
        array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return confusion(array[:, 0], array[:, 1], 3)

    assert (counted(one) + counted(other) == counted(one + other)).all()


def test_confusion_by_hand() -> None:
    """Two clips of three segments, two classes and background (2)."""
    counts = confusion(np.array([[0, 0, 2], [1, 2, 2]]), np.array([[0, 1, 2], [1, 2, 0]]), 2)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert segment_accuracy(counts) == 4 / 6
    assert class_recall(counts).tolist() == [0.5, 1.0, 2 / 3]


def test_small_integer_types_do_not_overflow() -> None:
    labels = np.full(3, 28, dtype=np.int8)
    assert confusion(labels, labels, 28)[28, 28] == 3


@pytest.mark.parametrize(
    ("labels", "predictions", "words"),
    [
        ([0, 1], [0], r"labels of shape \(2,\) and predictions of shape \(1,\)"),
        ([0, 3], [0, 0], "labels from 0 to 3"),
        ([0, 1], [-1, 0], "predictions from -1 to 0"),
    ],
)
def test_confusion_refuses(labels: list[int], predictions: list[int], words: str) -> None:
    with pytest.raises(AvelError, match=words):
        confusion(np.array(labels), np.array(predictions), 2)


def matching_oracle(truth: list[Span], predicted: list[Span], iou: float) -> int:
    """Take the best pair that is left, again and again; starts and ends are whole seconds here."""

    def overlap(a: Span, b: Span) -> float:
        seconds_a = set(range(int(a.start), int(a.end)))
        seconds_b = set(range(int(b.start), int(b.end)))
        return len(seconds_a & seconds_b) / len(seconds_a | seconds_b) if a.label == b.label else 0.0

    truth, predicted, matched = sorted(truth, key=_order), sorted(predicted, key=_order), 0
    while truth and predicted:
        best = max(((overlap(a, b), -i, -j) for i, a in enumerate(truth) for j, b in enumerate(predicted)))
        if best[0] < iou:
            break
        matched += 1
        del truth[-best[1]], predicted[-best[2]]
    return matched


def _order(span: Span) -> tuple[float, float]:
    return span.start, span.end


spans = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 8), st.integers(1, 6)).map(
        lambda drawn: Span(drawn[0], float(drawn[1]), float(drawn[1] + drawn[2]))
    ),
    max_size=5,
)


@settings(deadline=None)
@given(spans, spans, st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.randoms(use_true_random=False))
def test_event_counts_match_the_best_pair_first(truth: list, predicted: list, iou: float, random) -> None:
    counts = event_counts(truth, predicted, iou)
    assert counts == EventCounts(matching_oracle(truth, predicted, iou), len(predicted), len(truth))
    shuffled = random.sample(truth, len(truth)), random.sample(predicted, len(predicted))
    assert event_counts(*shuffled, iou) == counts
    assert event_counts(predicted, truth, iou).matched <= min(len(truth), len(predicted))


def test_event_counts_by_hand() -> None:
    truth = [Span("dog", 0, 4), Span("dog", 6, 10), Span("bell", 4, 6)]
    found = [Event("dog", 0, 2, 0.9), Event("dog", 2, 5, 0.8), Event("bell", 6, 8, 0.7), Event("dog", 6, 10, 0.6)]
    assert event_counts(truth, found, 0.5) == EventCounts(matched=2, predicted=4, truth=3)
    assert event_counts(truth, found, 0.51) == EventCounts(matched=1, predicted=4, truth=3)  # 2 of 4 s is exactly 0.5
    assert event_counts([], [], 0.5) == EventCounts() and event_counts(truth, [], 0.5) == EventCounts(0, 0, 3)


def test_one_prediction_is_matched_once_and_the_better_truth_wins() -> None:
    truth, found = [Span("dog", 0, 3), Span("dog", 1, 4)], [Span("dog", 1, 4)]
    assert event_counts(truth, found, 0.5).matched == 1
    assert event_counts(truth, [*found, Span("dog", 0, 2)], 0.5).matched == 2  # not 1, as if (0, 3) had taken (1, 4)


def test_iou_is_not_decided_by_binary_fractions() -> None:
    tenth = 0.1  # 3 of 6 tenths come out as 0.4999999999999999
    truth, found = Span("a", 0.0, 6 * tenth), Span("a", 2 * tenth, 5 * tenth)
    assert event_counts([truth], [found], 0.5).matched == 1


def test_touching_and_empty_spans_do_not_match() -> None:
    assert event_counts([Span("a", 0, 2), Span("a", 3, 3)], [Span("a", 2, 3), Span("a", 3, 3)], 1e-9).matched == 0


@pytest.mark.parametrize("iou", [0, -0.1, 1.1, math.nan])
def test_iou_threshold_out_of_range(iou: float) -> None:
    with pytest.raises(AvelError, match="IoU threshold"):
        event_counts([], [], iou)


def test_counts_add_and_give_f1() -> None:
    total = sum([EventCounts(1, 2, 1), EventCounts(2, 2, 4)], EventCounts())
    assert total == EventCounts(3, 4, 5)
    assert event_f1(total) == 2 * 3 / 9
    precision, recall = 3 / 4, 3 / 5
    assert event_f1(total) == pytest.approx(2 * precision * recall / (precision + recall))
    assert event_f1(EventCounts(0, 3, 0)) == 0 and math.isnan(event_f1(EventCounts()))


@given(st.lists(st.integers(0, 2), max_size=20), st.sampled_from([1.0, 0.5, 2.0]))
def test_labels_to_spans_cover_the_events_and_nothing_else(labels: list[int], seconds: float) -> None:
    found = labels_to_spans(np.array(labels, dtype=np.int64), ("a", "b"), seconds)
    painted = [2] * len(labels)
    for span in found:
        for t in range(round(span.start / seconds), round(span.end / seconds)):
            painted[t] = "ab".index(span.label)
    assert painted == labels
    for before, after in pairwise(found):
        assert before.end < after.start or (before.end == after.start and before.label != after.label)


def test_labels_to_spans_by_hand() -> None:
    labels = np.array([2, 0, 0, 1, 2, 1])
    assert labels_to_spans(labels, ("dog", "bell"), 1.0) == [
        Span("dog", 1.0, 3.0),
        Span("bell", 3.0, 4.0),
        Span("bell", 5.0, 6.0),
    ]

"""Metrics against oracles in plain Python and against cases done by hand."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avel.errors import AvelError
from avel.metrics import (
    EventCounts,
    Interval,
    bootstrap_interval,
    class_recall,
    confusion,
    event_counts,
    event_curve,
    event_f1,
    labels_to_spans,
    locate,
    paired_interval,
    partial_event,
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


def test_the_best_pair_comes_first_even_where_another_choice_would_match_more() -> None:
    truth, found = [Span("dog", 0, 4), Span("dog", 4, 8)], [Span("dog", 0, 1), Span("dog", 2, 6)]
    # (0, 4) takes (2, 6), IoU 1/3, and not (0, 1), IoU 1/4: nothing is left for (4, 8).
    assert event_counts(truth, found, 0.1) == EventCounts(matched=1, predicted=2, truth=2)
    assert event_counts(truth[::-1], found[::-1], 0.1).matched == 1


def test_iou_is_not_decided_by_binary_fractions() -> None:
    tenth = 0.1  # 3 of 6 tenths come out as 0.4999999999999999
    truth, found = Span("a", 0.0, 6 * tenth), Span("a", 2 * tenth, 5 * tenth)
    assert event_counts([truth], [found], 0.5).matched == 1


def test_touching_and_empty_spans_do_not_match() -> None:
    assert event_counts([Span("a", 0, 2), Span("a", 3, 3)], [Span("a", 2, 3), Span("a", 3, 3)], 1e-9).matched == 0


def test_an_event_without_length_is_none() -> None:
    truth, found = [Span("bell", 0, 0), Span("dog", 1, 4)], [Span("dog", 1, 4)]
    assert event_counts(truth, found, 0.5) == EventCounts(1, 1, 1)
    assert event_counts([*truth, Span("dog", 2, 2)], found, 0.5) == EventCounts(1, 1, 1)
    assert event_counts(truth[:1], [], 0.5) == EventCounts()
    assert event_counts([], truth[:1], 0.5) == EventCounts(0, 1, 0)  # but predicting one is a mistake


@pytest.mark.parametrize("iou", [0, -0.1, 1.1, math.nan])
def test_iou_threshold_out_of_range(iou: float) -> None:
    with pytest.raises(AvelError, match="IoU threshold"):
        event_counts([], [], iou)
    with pytest.raises(AvelError, match="IoU threshold"):
        event_curve([], [], [0.5, iou])


@given(spans, spans)
def test_event_curve_is_the_counts_at_each_threshold(truth: list, predicted: list) -> None:
    ious = [0.25, 0.75, 0.5]
    curve = event_curve(truth, predicted, ious)
    assert curve == [event_counts(truth, predicted, iou) for iou in ious]
    assert event_curve(truth, predicted, []) == []


def test_event_curve_by_hand() -> None:
    truth, found = [Span("dog", 0, 4), Span("bell", 4, 8)], [Span("dog", 0, 2), Span("bell", 4, 7)]
    curve = event_curve(truth, found, [0.5, 0.6, 0.75, 0.8])
    assert [point.matched for point in curve] == [2, 1, 1, 0]
    other = event_curve(truth, [], [0.5, 0.6, 0.75, 0.8])
    assert [sum(points, EventCounts()) for points in zip(curve, other, strict=True)][1] == EventCounts(1, 2, 4)


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


def locate_oracle(distance: list[list[int]]) -> int:
    """The first start with the smallest sum along the diagonal."""
    length = len(distance[0])
    sums = [sum(distance[n + i][i] for i in range(length)) for n in range(len(distance) - length + 1)]
    return sums.index(min(sums))


def event_oracle(mask: list[bool]) -> tuple[int, int] | None:
    """Try every start and length."""
    total = len(mask)
    for start in range(total):
        for length in range(1, total):
            if mask == [start <= t < start + length for t in range(total)]:
                return start, length
    return None


@st.composite
def searches(draw: st.DrawFn) -> list[list[int]]:
    """Distances (Ts, l) of few values, so that ties are many."""
    length = draw(st.integers(1, 5))
    rows = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    return draw(st.lists(rows, min_size=length, max_size=7))


@given(searches())
def test_locate(distance: list[list[int]]) -> None:
    assert locate(np.array(distance)) == locate_oracle(distance)
    assert locate(np.array(distance, dtype=np.float16)) == locate_oracle(distance)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e-30, 1e30])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_constant_distance_finds_the_first_start(constant: float, kind: type) -> None:
    with np.errstate(over="ignore"):
        distance = np.full((64, 64), constant).astype(kind)
    assert all(locate(distance[:, :length]) == 0 for length in range(1, 65))


def test_locate_by_hand() -> None:
    """Four segments searched with a query of two: sums 1 + 9, 2 + 0, 2 + 0."""
    assert locate(np.array([[1.0, 0.0], [2.0, 9.0], [2.0, 0.0], [9.0, 0.0]])) == 1
    assert locate(np.array([[5.0, 5.0], [5.0, 5.0]])) == 0  # as long as the stream


def test_a_small_difference_beside_a_large_distance_is_seen() -> None:
    """Sums 2**24 + 1, which float32 does not have, and 2**24."""
    assert locate(np.array([[2**24, 9], [2**24, 1], [9, 0]], dtype=np.float32)) == 1


@pytest.mark.parametrize("shape", [(4,), (4, 0), (2, 3), (0, 0), (1, 4, 2)])
def test_locate_refuses_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(AvelError, match="distances of shape"):
        locate(np.zeros(shape))


def test_locate_refuses_what_is_not_a_number() -> None:
    with pytest.raises(AvelError, match="not a number"):
        locate(np.array([[1.0], [math.nan], [0.0]]))


@given(st.lists(st.booleans(), max_size=8))
def test_partial_event(mask: list[bool]) -> None:
    assert partial_event(np.array(mask, dtype=bool)) == event_oracle(mask)


def test_partial_event_by_hand() -> None:
    assert partial_event(np.array([False, True, True])) == (1, 2)
    for nothing in ([False, False], [True, True], [True, False, True], []):
        assert partial_event(np.array(nothing, dtype=bool)) is None


@pytest.mark.parametrize("mask", [[0, 1, 28], [0.0, 1.0]])
def test_class_ids_are_no_event_mask(mask: list[float]) -> None:
    with pytest.raises(AvelError, match="event mask"):  # 28 is background, and yet true
        partial_event(np.array(mask))


def draws_oracle(generator: np.random.Generator, rows: int, size: int) -> list[list[int]]:
    """What each of the rows drew, thing by thing."""
    return generator.integers(size, size=(rows, size)).tolist()


def bootstrap_oracle(runs: list[tuple[list, list]], level: float, samples: int, seed: int) -> Interval:
    """Gather what was drawn, one resample after the other; (S, N) lists."""

    def share(pairs: list[tuple[int, int]]) -> float:
        return sum(right for right, _ in pairs) / total if (total := sum(asked for _, asked in pairs)) else math.nan

    def difference(shares: list[float]) -> float:
        return shares[0] - (shares[1] if len(shares) == 2 else 0)

    videos, generator, values = len(runs[0][0][0]), np.random.default_rng(seed), []
    for first in range(0, samples, 100):
        rows = min(100, samples - first)
        drawn_videos = draws_oracle(generator, rows, videos)
        drawn_seeds = [draws_oracle(generator, rows, len(correct)) for correct, _ in runs]
        for row in range(rows):
            shares = []
            for (correct, counted), seeds in zip(runs, drawn_seeds, strict=True):
                shares.append(share([(correct[s][n], counted[s][n]) for s in seeds[row] for n in drawn_videos[row]]))
            values.append(difference(shares))
    everything = range(videos)
    value = difference([share([(c[s][n], k[s][n]) for s in range(len(c)) for n in everything]) for c, k in runs])
    ordered = sorted(v for v in values if not math.isnan(v))
    if not ordered:
        return Interval(value, math.nan, math.nan)

    def percentile(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return Interval(value, percentile((1 - level) / 2), percentile((1 + level) / 2))


def assert_close(found: Interval, expected: Interval) -> None:
    pair = [(getattr(found, name), getattr(expected, name)) for name in ("value", "low", "high")]
    assert all(a == pytest.approx(b, abs=1e-12, nan_ok=True) for a, b in pair), (found, expected)


@st.composite
def runs(draw: st.DrawFn, videos: int) -> tuple[list, list]:
    """What one run of S seeds got right of what it was asked, each (S, N)."""
    seeds = draw(st.integers(1, 3))
    asked = [[draw(st.integers(0, 3)) for _ in range(videos)] for _ in range(seeds)]
    return [[draw(st.integers(0, most)) for most in row] for row in asked], asked


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 5), st.sampled_from([0.5, 0.9]), st.sampled_from([1, 99, 101, 230]))
def test_bootstrap(data: st.DataObject, videos: int, level: float, samples: int) -> None:
    one, other = data.draw(runs(videos)), data.draw(runs(videos))
    options = {"level": level, "samples": samples, "seed": data.draw(st.integers(0, 9))}
    assert_close(bootstrap_interval(*one, **options), bootstrap_oracle([one], **options))
    assert_close(paired_interval(*one, *other, **options), bootstrap_oracle([one, other], **options))


def test_bootstrap_has_the_width_that_theory_gives() -> None:
    """400 videos, one answer each, half of them right: the standard error is 0.025."""
    correct = np.arange(400) % 2
    interval = bootstrap_interval(correct, np.ones(400))
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    narrow = bootstrap_interval(correct, np.ones(400), level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * 0.025, abs=0.006)


def test_bootstrap_is_repeatable() -> None:
    correct, asked = np.arange(400), np.full(400, 399)
    assert bootstrap_interval(correct, asked) == bootstrap_interval(correct, asked)
    assert bootstrap_interval(correct, asked) != bootstrap_interval(correct, asked, seed=1)


def test_seeds_are_drawn_too() -> None:
    """All videos alike, two seeds at 0.2 and 0.8: only the draw of seeds moves the accuracy."""
    correct = np.array([[2] * 30, [8] * 30])
    interval = bootstrap_interval(correct, np.full((2, 30), 10))
    assert (interval.value, interval.low, interval.high) == (0.5, 0.2, 0.8)
    assert bootstrap_interval(correct[0], np.full(30, 10)) == Interval(0.2, 0.2, 0.2)


def test_seeds_share_the_drawn_videos() -> None:
    """A video is hard for all seeds: five equal seeds are as uncertain as one, not less by the root of five."""
    one = np.arange(100) % 2
    single, five = (bootstrap_interval(row, np.ones_like(row)) for row in (one, np.tile(one, (5, 1))))
    assert five.high - five.low == pytest.approx(single.high - single.low, rel=0.1)


def test_longer_videos_weigh_more() -> None:
    assert bootstrap_interval([1, 0], [1, 9]).value == 0.1


def test_pairing_takes_the_videos_difficulty_away() -> None:
    hard = np.arange(200) % 2 * 8  # either nothing or eight of ten are right, and a always has one more
    asked = np.full(200, 10)
    interval = paired_interval(hard + 1, asked, hard, asked)
    assert interval.value == pytest.approx(0.1)
    assert interval.low == pytest.approx(0.1) and interval.high == pytest.approx(0.1)
    assert paired_interval(hard, asked, hard + 1, asked).value == pytest.approx(-0.1)
    assert paired_interval(hard, asked, hard, asked) == Interval(0, 0, 0)


def test_paired_runs_draw_their_seeds_apart() -> None:
    correct, asked = np.array([[2] * 30, [8] * 30]), np.full((2, 30), 10)
    interval = paired_interval(correct, asked, correct, asked)
    assert interval.value == 0 and interval.low == pytest.approx(-0.6) and interval.high == pytest.approx(0.6)
    fixed = paired_interval(correct, asked, correct[0], asked[0])  # three seeds beside one are no mistake
    assert fixed.value == pytest.approx(0.3) and fixed.low == 0 and fixed.high == pytest.approx(0.6)


def test_nothing_counted_is_nan() -> None:
    for number in vars(bootstrap_interval([0, 0], [0, 0])).values():
        assert math.isnan(number)
    rare = bootstrap_interval([1, 0, 0, 0], [1, 0, 0, 0])  # most resamples here hold the video, the others say nothing
    assert rare == Interval(1, 1, 1)


def test_bootstrap_of_all_of_ave_is_small() -> None:
    correct = np.random.default_rng(0).integers(0, 11, (3, 4143))
    tracemalloc.start()
    bootstrap_interval(correct, np.full_like(correct, 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # bytes; all resamples at once would take 66 MB


@pytest.mark.parametrize(
    ("correct", "counted", "options", "words"),
    [
        ([], [], {}, r"shape \(0,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), {}, r"shape \(0, 3\)"),
        ([1, 1], [1], {}, r"correct of shape \(2,\) and counted of shape \(1,\)"),
        ([[1, 1]], [1, 1], {}, r"counted of shape \(2,\)"),
        (np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), {}, "shape"),
        (1, 1, {}, "shape"),
        ([2], [1], {}, "2.0 where 1.0"),
        ([-1], [1], {}, "from -1.0"),
        ([math.nan], [1], {}, "nan"),
        ([1], [math.inf], {}, "inf"),
        ([1], [1], {"samples": 0}, "0 samples"),
        ([1], [1], {"level": 0}, "level 0"),
        ([1], [1], {"level": 95}, "level 95"),
        ([1], [1], {"level": math.nan}, "level nan"),
    ],
)
def test_bootstrap_refuses(correct: list, counted: list, options: dict, words: str) -> None:
    with pytest.raises(AvelError, match=words):
        bootstrap_interval(correct, counted, **options)
    with pytest.raises(AvelError, match=words):
        paired_interval([1], [1], correct, counted, **options)


def test_paired_runs_need_the_same_videos() -> None:
    with pytest.raises(AvelError, match="runs over 2 and 1 videos"):
        paired_interval([1, 1], [1, 1], [1], [1])
    with pytest.raises(AvelError, match="runs over 2 and 1 videos"):
        paired_interval([1, 1], [1, 1], [[1], [1]], [[1], [1]])

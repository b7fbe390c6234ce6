"""What annotated times mean for segments, windows and whole videos."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avel.data.labels import consecutive_windows, segment_labels, video_class, video_labels, window_class
from avel.errors import AvelError
from avel.types import Span


def plain_labels(spans: list[Span], classes: list[str], num_segments: int, seconds: float) -> list[int]:
    """A segment carries a label if the event covers at least half of it; the earlier of two that do."""
    labels = []
    for t in range(num_segments):
        label = len(classes)
        for span in sorted(spans, key=lambda span: span.start):
            covered = min(span.end, (t + 1) * seconds) - max(span.start, t * seconds)
            if covered >= seconds / 2 - 1e-6:
                label = classes.index(span.label)
                break
        labels.append(label)
    return labels


@given(
    st.lists(st.integers(0, 120), max_size=10, unique=True).map(sorted),
    st.integers(1, 14),
    st.sampled_from([0.5, 1.0, 2.0, 0.96]),
)
def test_segment_labels(tenths: list[int], num_segments: int, seconds: float) -> None:
    classes = ["a", "b", "c"]
    spans = [
        Span(classes[k % 3], start / 10, end / 10)
        for k, (start, end) in enumerate(zip(tenths[::2], tenths[1::2], strict=False))
    ]
    labels = segment_labels(spans, classes, num_segments, seconds)
    assert labels.dtype == np.int64 and labels.shape == (num_segments,)
    assert labels.tolist() == plain_labels(spans, classes, num_segments, seconds)


def test_half_a_segment_is_enough() -> None:
    spans = [Span("a", 0.5, 1.5), Span("b", 1.5, 2.0), Span("a", 2.51, 3.49)]
    assert segment_labels(spans, ("a", "b"), 5, 1.0).tolist() == [0, 0, 2, 2, 2]
    assert segment_labels([], (), 3, 1.0).tolist() == [0, 0, 0]


def test_window_class() -> None:
    assert window_class(np.array([3, 1, 1, 0, 3]), 3) == 1
    assert window_class(np.array([2, 0, 2, 0, 3]), 3) == 2  # as many: the one seen first
    assert window_class(np.array([3, 3]), 3) == 3


def test_the_class_of_a_video() -> None:
    classes = ("a", "b")
    for spans, expected in [
        ((Span("b", 1, 2),), 1),
        ((Span("a", 0, 1), Span("b", 2, 4)), 1),
        ((Span("b", 3, 3),), 1),  # no second of it, yet it names the video
        ((), 2),
    ]:
        assert video_class(spans, classes, segment_labels(spans, classes, 5, 1.0)) == expected


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6))
def test_weak_labels_in_both_forms(rows: list[list[int]]) -> None:
    segments = np.array(rows)
    video = np.array([window_class(row, 3) for row in segments])
    one_hot, proportion = (video_labels(segments, video, 3, form) for form in ("onehot", "proportion"))
    for index, row in enumerate(rows):
        assert one_hot[index].tolist() == [float(label == video[index]) for label in range(4)]
        assert proportion[index].tolist() == [row.count(label) / 4 for label in range(4)]
    assert one_hot.dtype == proportion.dtype == np.float32


def test_another_form_is_refused() -> None:
    with pytest.raises(AvelError, match="form 'soft'"):
        video_labels(np.zeros((1, 2), int), np.zeros(1, int), 3, "soft")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_segments", "window", "starts"),
    [(8, 8, [0]), (16, 8, [0, 8]), (17, 8, [0, 8, 9]), (60, 8, [0, 8, 16, 24, 32, 40, 48, 52]), (3, 8, [0])],
)
def test_windows_follow_one_another_and_the_last_ends_with_the_clip(
    num_segments: int, window: int, starts: list[int]
) -> None:
    assert consecutive_windows(num_segments, window) == starts

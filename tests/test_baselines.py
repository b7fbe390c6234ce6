"""Trivial baselines against an oracle in plain Python, by hand, and on AVE's own annotations."""

import math
import random
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avel.baselines import Baselines, full_name, segment_baselines, window_baselines
from avel.errors import AvelError

NAMES = ("uniform window", "first window", "last window", "most frequent start per length")


def segment_oracle(videos: list[list[int]], background: int) -> tuple[float, float]:
    """All background and right class everywhere, answer by answer."""
    silent = right = total = 0
    for video in videos:
        events = [label for label in video if label != background]
        own = max(sorted(set(events)), key=events.count, default=background)
        silent += sum(label == background for label in video)
        right += sum(label == own for label in video)
        total += len(video)
    return (silent / total, right / total) if total else (math.nan, math.nan)


def partial_oracle(mask: list[bool]) -> tuple[int, int] | None:
    """Start and length of the one run of True that is not all."""
    runs = "".join("x" if inside else " " for inside in mask).split()
    return (mask.index(True), len(runs[0])) if len(runs) == 1 and len(runs[0]) < len(mask) else None


def window_oracle(train: list[list[bool]], masks: list[list[bool]]) -> tuple[list[float], int]:
    """The four baselines in the order of `NAMES`, and the number of videos counted."""
    hits = []
    known = [(len(row), partial_oracle(row)) for row in train]
    for mask in masks:
        event = partial_oracle(mask)
        if event is None:
            continue
        start, length = event
        starts = range(len(mask) - length + 1)
        seen = [other for segments, other in known if segments == len(mask) and other is not None]
        usual = max(starts, key=lambda guess: seen.count((guess, length)))  # max takes the first of equals
        hits.append((1 / len(starts), start == 0, start == starts[-1], start == usual))
    return [sum(column) / len(hits) for column in zip(*hits, strict=True)] or [math.nan] * 4, len(hits)


def approximately(values: list[float]) -> object:
    return pytest.approx(values, abs=1e-12, nan_ok=True)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6))
def test_segment_baselines(videos: list[list[int]]) -> None:
    found = segment_baselines([np.array(video, dtype=np.int64) for video in videos], 3)
    assert list(found) == ["all background", "right class everywhere"]
    assert list(found.values()) == approximately(list(segment_oracle(videos, 3)))


def test_segment_baselines_by_hand() -> None:
    """Two classes, background 2; the last video has no event."""
    labels = np.array([[0, 0, 2, 1], [2, 1, 2, 2], [2, 2, 2, 2]])
    assert segment_baselines(labels, 2) == {"all background": 8 / 12, "right class everywhere": (2 + 1 + 4) / 12}
    assert (
        segment_baselines(labels.astype(np.int8), 2)
        == segment_baselines(list(labels), 2)
        == segment_baselines(labels, 2)
    )


@pytest.mark.parametrize("label", [-1, 3])
def test_segment_baselines_refuse_other_classes(label: int) -> None:
    with pytest.raises(AvelError, match="labels from"):
        segment_baselines(np.array([[0, label]]), 2)


masks = st.lists(
    st.one_of(
        st.lists(st.booleans(), max_size=5),
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)).map(
            lambda drawn: [False] * drawn[0] + [True] * drawn[1] + [False] * drawn[2]
        ),
    ),
    max_size=12,
)


@given(masks, masks)
def test_window_baselines(train: list[list[bool]], test: list[list[bool]]) -> None:
    found = window_baselines(*([np.array(mask, dtype=bool) for mask in split] for split in (train, test)))
    values, counted = window_oracle(train, test)
    assert tuple(found.values) == NAMES and found.counted == counted
    assert list(found.values.values()) == approximately(values)


def mask(pattern: str) -> np.ndarray:
    """``mask("-xx-")`` holds an event in the middle."""
    return np.array([letter == "x" for letter in pattern])


def test_window_baselines_by_hand() -> None:
    train = [mask(row) for row in ("-xx-", "-xx-", "xx--", "--xx", "---x", "x---", "xxxx", "----", "-x-x", "-x")]
    test = [mask(row) for row in ("-xx-", "xx--", "--x-", "---x", "-xxx", "xxxx", "----", "x-x-")]
    found = window_baselines(train, test)
    # Length 2 is usually at 1; length 1 is at 0 and 3 alike, so at 0; length 3 is never seen, so at 0.
    shares = [(1 / 3 + 1 / 3 + 1 / 4 + 1 / 4 + 1 / 2) / 5, 1 / 5, 2 / 5, 1 / 5]
    assert found.counted == 5 and list(found.values.values()) == approximately(shares)
    assert window_baselines(np.array(train[:9]), np.array(test)) == found  # a whole array, the two-segment video aside


def test_the_prior_is_of_the_training_videos_alone_and_of_their_own_number_of_segments() -> None:
    key = "most frequent start per length"
    assert window_baselines([mask("x--")], [mask("--x")] * 3).values[key] == 0
    assert window_baselines([mask("--x")], [mask("--x")]).values[key] == 1
    assert window_baselines([mask("--x-")], [mask("--x")]).values[key] == 0  # four segments say nothing of three
    assert window_baselines([], [mask("x--"), mask("--x")]).values[key] == 0.5


def test_no_video_to_find_anything_in_is_nan() -> None:
    found = window_baselines([mask("x-")], [mask("xx")])
    assert isinstance(found, Baselines) and found.counted == 0
    assert tuple(found.values) == NAMES and all(math.isnan(value) for value in found.values.values())


def test_window_baselines_refuse_class_ids() -> None:
    for arguments in (([mask("x-")], np.array([[0, 28]])), (np.array([[0, 28]]), [mask("x-")])):
        with pytest.raises(AvelError, match="event mask"):
            window_baselines(*arguments)


def annotated(lines: list[str]) -> list[list[int]]:
    """Ten labels for every line of AVE's annotations; 28 is background."""
    classes: list[str] = []
    labels = []
    for line in lines:
        name, *_, start, end = line.split("&")
        if name not in classes:
            classes.append(name)
        labels.append([classes.index(name) if int(start) <= t < int(end) else 28 for t in range(10)])
    assert len(classes) == 28 and len(labels) == 4143
    return labels


@pytest.fixture(scope="module")
def lines(real_data: Path) -> list[str]:
    """AVE's annotations, one line a video."""
    return (real_data / "ave" / "Annotations.txt").read_text(encoding="utf-8").splitlines()


def order(folder: Path, name: str) -> list[int]:
    """The rows of one split."""
    with h5py.File(folder / "ave" / f"{name}.h5") as file:
        return file["order"][:].tolist()


@pytest.mark.parametrize("shuffled", [None, 0, 1])
@pytest.mark.parametrize("split", ["test", "val"])
def test_baselines_of_ave(real_data: Path, lines: list[str], split: str, shuffled: int | None) -> None:
    """As annotated, and with the rows permuted, so that no number can have been learned by heart."""
    rows = list(lines)
    if shuffled is not None:
        random.Random(shuffled).shuffle(rows)
    labels = annotated(rows)
    asked = [labels[row] for row in order(real_data, f"{split}_order")]
    found = segment_baselines(np.array(asked), 28)
    assert list(found.values()) == approximately(list(segment_oracle(asked, 28)))

    events = [[label != 28 for label in row] for row in labels]
    train, test = ([events[row] for row in order(real_data, f"{name}_order_match")] for name in ("train", split))
    windows = window_baselines(np.array(train), np.array(test))
    values, counted = window_oracle(train, test)
    assert windows.counted == counted and list(windows.values.values()) == approximately(values)

    if shuffled is None and split == "test":  # what spec/baselines.md, section 17, found in the same files
        assert [round(100 * value, 2) for value in found.values()] == [17.79, 82.21]
        assert [round(100 * value, 1) for value in windows.values.values()] == [20.8, 35.3, 46.8, 47.0]
        assert windows.counted == 402
    if shuffled is None and split == "val":
        assert round(100 * found["all background"], 2) == 18.21
        assert windows.counted == 198  # the 199 that section 17.4 calls partial, less row 26, which has no length


def test_right_class_everywhere_is_no_ceiling_where_events_are_rare() -> None:
    """One second of ten holds an event: who answers background scores more, and is told to know what, not when."""
    labels = np.full((4, 10), 2)
    labels[:, 3] = 1
    found = segment_baselines(labels, 2)
    assert found["right class everywhere"] == pytest.approx(0.1) and found["all background"] == pytest.approx(0.9)
    assert "not when" in full_name("right class everywhere") and full_name("all background") == "all background"
    assert full_name("uniform window") == "random start" and full_name("last window") == "last start"

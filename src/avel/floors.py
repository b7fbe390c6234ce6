"""Floors: what can be scored from labels alone, without looking or listening. They stand beside every number.

A model has to score more than the highest of them to show that it found *when* events happen.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avel.metrics import confusion, partial_event, segment_accuracy

#: How each floor is called where people read it, if not by its own name.
TOLD = {"right class everywhere": "right class everywhere (knows what, not when)"}


def segment_floors(labels: Iterable[npt.NDArray[np.integer]], num_classes: int) -> dict[str, float]:
    """Segment accuracy of two answers that place no event; nan without segments.

    - ``all background``: nothing ever happens.
    - ``right class everywhere``: each video's own class in all its segments, the most frequent of its events (which
      of equals does not change the score), background where it has no event. It knows what happens, but not when. It
      is no ceiling: where events fill less than half of the segments, ``all background`` can score more.

    Args:
        labels: (N, T), or one (T,) for each video: class ids, background = C.
        num_classes: C.

    Returns:
        Shares from 0 to 1 by name.

    Raises:
        AvelError: an id is not in 0 .. C.
    """
    videos = [np.asarray(video) for video in labels]
    segments = np.concatenate(videos) if videos else np.empty(0, dtype=np.int64)
    silent = confusion(segments, np.full(segments.shape, num_classes), num_classes)
    right = 0
    for video in videos:
        events = video[video < num_classes]
        right += int(np.bincount(events).max()) if len(events) else len(video)
    return {
        "all background": segment_accuracy(silent),
        "right class everywhere": right / len(segments) if len(segments) else float("nan"),
    }


@dataclass(frozen=True)
class Floors:
    """Floors by name.

    Attributes:
        values: shares from 0 to 1.
        counted: videos they are shares of.
    """

    values: dict[str, float]
    counted: int


def window_floors(train_masks: Iterable[npt.NDArray[np.bool_]], masks: Iterable[npt.NDArray[np.bool_]]) -> Floors:
    """Cross-modality localization of four guesses that know the event's length l and nothing else.

    - ``uniform window``: any of the T - l + 1 starts, equally likely; its expected share.
    - ``first window``: start 0, also what a constant distance finds.
    - ``last window``: start T - l.
    - ``most frequent start per length``: of the training videos of the same T and l (ties: the earliest start), the
      first window for a length that training never shows.

    Videos without a `partial_event` are left out, in training and in the test.

    Args:
        train_masks: (N', T), or one (T,) for each training video: True where a segment holds the event.
        masks: (N, T), or one (T,) for each video to be guessed.

    Returns:
        The shares, nan where no video is counted, and the number of videos counted.

    Raises:
        AvelError: a mask is not (T,) of booleans.
    """
    starts: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for total, start, length in _partial(train_masks):
        starts[total, length][start] += 1
    usual = {key: min(counts, key=lambda start: (-counts[start], start)) for key, counts in starts.items()}
    hits = []
    for total, start, length in _partial(masks):
        last = total - length
        hits.append((1 / (last + 1), start == 0, start == last, start == usual.get((total, length), 0)))
    shares = np.mean(hits, axis=0).tolist() if hits else [float("nan")] * 4
    names = ("uniform window", "first window", "last window", "most frequent start per length")
    return Floors(dict(zip(names, shares, strict=True)), len(hits))


def _partial(masks: Iterable[npt.NDArray[np.bool_]]) -> Iterable[tuple[int, int, int]]:
    """T, start and length of every video that has an event to look for."""
    for mask in masks:
        event = partial_event(mask)
        if event is not None:
            yield (len(mask), *event)

"""Labels from annotated times: of segments, of windows, and for each of the three tasks.

==========  =====================================================================================
task        label of a video of T segments and C classes, background = C
==========  =====================================================================================
full        (T,) class ids: `segment_labels`
weak        (C+1,) the video's class alone, or the share of its segments: `video_labels`
cml         (T,) whether a segment holds the event: `segment_labels` < C
==========  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from avel.errors import AvelError
from avel.types import Span


def segment_labels(
    spans: Sequence[Span], classes: Sequence[str], num_segments: int, segment_seconds: float
) -> np.ndarray:
    """Class ids per segment, (T,) int64; background is ``len(classes)``.

    A segment has a label if the event covers at least half of it; of two events that cover one half each, it has the
    earlier.
    """
    starts = np.arange(num_segments) * segment_seconds
    labels = np.full(num_segments, len(classes), dtype=np.int64)
    for span in sorted(spans, key=lambda span: span.start, reverse=True):
        covered = np.minimum(starts + segment_seconds, span.end) - np.maximum(starts, span.start)
        labels[covered >= segment_seconds / 2 - 1e-6] = classes.index(span.label)  # 1e-6: 0.1 + 0.2 is not 0.3
    return labels


def refuse_background(place: str, labels: Iterable[np.ndarray], num_classes: int) -> None:
    """Refuse clips without any event: a model that answers background everywhere would score 100% there.

    Args:
        place: which clips, for the message.
        labels: class ids of the segments of each clip, (T,).
        num_classes: C, the id of background.

    Raises:
        AvelError: no segment has an event.
    """
    if not any((of_clip < num_classes).any() for of_clip in labels):
        raise AvelError(
            f"no event in {place}: all of it is background",
            "clips with events, each covering half a segment or more",
            "fill in start, end and label of events in the CSV and run `avel extract` again: finished clips are kept",
        )


def consecutive_windows(num_segments: int, window: int) -> list[int]:
    """First segments of the consecutive windows that a clip is cut into; the last window is shifted back to fit.

    A clip no longer than a window gives one window, which starts at 0.
    """
    return [max(0, min(end, num_segments) - window) for end in range(window, num_segments + window, window)]


def window_class(labels: np.ndarray, num_classes: int) -> int:
    """The class with the most segments in ``labels`` (T,), the earlier if two are equal; ``num_classes`` if none."""
    events = labels[labels < num_classes]
    if not len(events):
        return num_classes
    counts = np.bincount(events, minlength=num_classes)
    return int(events[counts[events].argmax()])


def video_class(spans: Sequence[Span], classes: Sequence[str], segments: np.ndarray) -> int:
    """The class of a whole video in the weak task; ``len(classes)`` if it has no event.

    Args:
        spans: its annotated events. One without length has no segment, but gives the video its class (AVE's row 26).
        classes: the C names.
        segments: (T,) class ids, as `segment_labels` gives them.
    """
    found = window_class(segments, len(classes))
    return classes.index(spans[0].label) if found == len(classes) and spans else found


def video_labels(
    segments: np.ndarray, video: np.ndarray, num_classes: int, form: Literal["onehot", "proportion"] = "onehot"
) -> np.ndarray:
    """Labels of whole videos for the weak task, (N, C+1) float32, rows summing to 1.

    Args:
        segments: (N, T) class ids, background = C.
        video: (N,) class ids of the videos, as `video_class` gives them.
        num_classes: C.
        form: ``onehot``, 1 at the video's class (AVE's ``mil_labels.h5``); or ``proportion``, the mean of the
            segments' one-hot labels (CCLN's text, PSP's ``prob_label.h5``), which reveals how long the event lasts.

    Raises:
        AvelError: another form.
    """
    one_hot = np.eye(num_classes + 1, dtype=np.float32)
    if form == "onehot":
        return one_hot[video]
    if form == "proportion":
        return one_hot[segments].mean(1)
    raise AvelError(f"weak labels of form {form!r}", "onehot or proportion", "choose one of these")

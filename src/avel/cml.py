"""Cross-modality localization: an event is given in one stream and looked for in the other (Tian et al., ECCV 2018).

Two modes. In ``joint``, as in the paper, both streams enter the network whole and aligned. They interact before
distances are computed, so the query's stream can leak *where* the event is. In ``strict`` only the l segments of the
query enter, with no trace of their position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from avel.baselines import Baselines, window_baselines
from avel.data.loader import Batch, Features, Windows
from avel.inference import outputs
from avel.metrics import locate, partial_event
from avel.types import DistanceOutput

Direction = Literal["a2v", "v2a"]
Mode = Literal["joint", "strict"]
DIRECTIONS: tuple[Direction, Direction] = ("a2v", "v2a")
MODES: tuple[Mode, Mode] = ("joint", "strict")


def events(windows: Windows) -> dict[int, tuple[int, int]]:
    """Index -> start and length, for the windows that hold one event shorter than the window."""
    found = ((index, partial_event(row.numpy() < windows.num_classes)) for index, row in enumerate(windows.labels))
    return {index: event for index, event in found if event is not None}


def by_length(events: dict[int, tuple[int, int]]) -> dict[int, list[int]]:
    """Event length -> the windows with such an event."""
    groups: dict[int, list[int]] = {}
    for index, (_, length) in events.items():
        groups.setdefault(length, []).append(index)
    return dict(sorted(groups.items()))


def query(batch: Batch, num_classes: int, direction: Direction) -> Batch:
    """The batch in mode `strict`, with only the event's segments in the query's stream.

    Args:
        batch: windows with one event each, all of l segments.
        num_classes: C.
        direction: ``a2v`` cuts audio to (B, l, Da), ``v2a`` cuts visual to (B, l, H, W, Dv).
    """
    event = batch.target.labels < num_classes
    size = (len(event), int(event[0].sum()))
    if direction == "a2v":
        return replace(batch, audio=batch.audio[event].unflatten(0, size))
    return replace(batch, visual=batch.visual[event].unflatten(0, size))


@dataclass(frozen=True)
class _Question(Features):
    """A batch as the network gets it, and the directions to read from its distances.

    Attributes:
        windows: indices of the windows.
        directions: the directions that the distances answer.
    """

    windows: list[int]
    directions: tuple[Direction, ...]


def located(
    network: nn.Module,
    windows: Windows,
    mode: Mode,
    *,
    batch_size: int,
    streams: str = "both",
    of: Sequence[int] | None = None,
) -> dict[Direction, npt.NDArray[np.bool_]]:
    """Which events are located exactly, in each direction.

    Args:
        network: audio and visual features -> `DistanceOutput`.
        windows: the windows to search; those without a `partial_event` are left out.
        mode: ``joint`` or ``strict``.
        batch_size: windows per batch.
        streams: the streams that the network may use.
        of: indices of the only windows to search; None for all.

    Returns:
        Direction -> (N,) bool, in the order of the searched windows.
    """
    asked = events(windows)
    if of is not None:
        asked = {index: asked[index] for index in of if index in asked}
    right: dict[Direction, dict[int, bool]] = {"a2v": {}, "v2a": {}}
    for question, output in outputs(network, _questions(windows, asked, mode, batch_size), streams):
        assert isinstance(output, DistanceOutput)
        distance = output.distance.cpu().numpy()
        for direction in question.directions:
            for index, matrix in zip(question.windows, distance, strict=True):
                start, length = asked[index]
                searched = matrix if direction == "a2v" else matrix.T  # rows are searched, columns are the query
                asking = searched[:, start : start + length] if mode == "joint" else searched
                right[direction][index] = locate(asking) == start
    return {way: np.array([right[way][index] for index in asked], dtype=np.bool_) for way in DIRECTIONS}


def _questions(windows: Windows, asked: dict[int, tuple[int, int]], mode: Mode, batch_size: int) -> Iterator[_Question]:
    """The events in batches: in ``joint`` both directions at once, in ``strict`` one direction and one length."""
    groups = [list(asked)] if mode == "joint" else list(by_length(asked).values())
    parts = [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]
    for part, batch in zip(parts, windows.each(parts), strict=True):
        if mode == "joint":
            yield _Question(batch.audio, batch.visual, part, DIRECTIONS)
        else:
            for direction in DIRECTIONS:
                seen = query(batch, windows.num_classes, direction)
                yield _Question(seen.audio, seen.visual, part, (direction,))


def located_baselines(trained: Windows, asked: Windows) -> Baselines:
    """The scores of the trivial baselines in the windows ``asked``, given the labels of ``trained``."""
    masks = [[row.numpy() < asked.num_classes for row in windows.labels] for windows in (trained, asked)]
    return window_baselines(*masks)

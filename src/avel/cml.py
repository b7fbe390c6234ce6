"""Cross-modality localization: an event is given in one stream and looked for in the other (Tian et al., ECCV 2018).

Two modes. In ``joint``, the paper's way, both streams enter the network whole and aligned; each has then seen the other
before distances are taken, so *where* the event is can leak from the stream that is searched with. In ``strict`` the
query enters as its l segments alone, with no trace of their place.
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
    """Index -> start and length, of the windows that hold one event of a part of their length."""
    found = ((index, partial_event(row.numpy() < windows.num_classes)) for index, row in enumerate(windows.labels))
    return {index: event for index, event in found if event is not None}


def by_length(events: dict[int, tuple[int, int]]) -> dict[int, list[int]]:
    """Length -> the windows whose event has it."""
    groups: dict[int, list[int]] = {}
    for index, (_, length) in events.items():
        groups.setdefault(length, []).append(index)
    return dict(sorted(groups.items()))


def query(batch: Batch, num_classes: int, direction: Direction) -> Batch:
    """The batch as `strict` sees it: of the query's stream, only the event's segments.

    Args:
        batch: windows with one event each, all of l segments.
        num_classes: C.
        direction: the query of ``a2v`` is audio, which becomes (B, l, Da); that of ``v2a`` visual, (B, l, H, W, Dv).
    """
    event = batch.target.labels < num_classes
    size = (len(event), int(event[0].sum()))
    if direction == "a2v":
        return replace(batch, audio=batch.audio[event].unflatten(0, size))
    return replace(batch, visual=batch.visual[event].unflatten(0, size))


@dataclass(frozen=True)
class _Question(Features):
    """A batch as the network sees it, and what its distances answer.

    Attributes:
        windows: their indices.
        directions: that are read off the distances.
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
    """Which events are found exactly, in each direction.

    Args:
        network: audio and visual features -> `DistanceOutput`.
        windows: where to look; those without a `partial_event` are left out.
        mode: ``joint`` or ``strict``.
        batch_size: windows at once.
        streams: that the network may use.
        of: only these windows.

    Returns:
        Direction -> (N,) in the order of the windows that are counted.
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
    """The events in batches: in ``joint`` both directions at once, in ``strict`` one of each and of one length."""
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
    """What the trivial baselines find in these windows, knowing the labels of those trained on."""
    masks = [[row.numpy() < asked.num_classes for row in windows.labels] for windows in (trained, asked)]
    return window_baselines(*masks)

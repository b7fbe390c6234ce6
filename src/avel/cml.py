"""Cross-modality localization: an event is given in one stream and looked for in the other (Tian et al., ECCV 2018).

Two modes. In ``joint``, the paper's way, both streams enter the network whole and aligned; each has then seen the other
before distances are taken, so *where* the event is can leak from the stream that is searched with. In ``strict`` the
query enters as its l segments alone, with no trace of where they stood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from avel.baselines import Baselines, window_baselines
from avel.data.loader import Batch, Windows
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
    """The batch as `strict` sees it: of the stream that is asked with, only the event's segments.

    Args:
        batch: windows with one event each, all of l segments.
        num_classes: C.
        direction: ``a2v`` asks with sound, audio becomes (B, l, Da); ``v2a`` with sight, visual (B, l, H, W, Dv).
    """
    event = batch.target.labels < num_classes
    size = (len(event), int(event[0].sum()))
    if direction == "a2v":
        return replace(batch, audio=batch.audio[event].unflatten(0, size))
    return replace(batch, visual=batch.visual[event].unflatten(0, size))


@torch.no_grad()
def located(
    forward: Callable[[Batch], DistanceOutput],
    windows: Windows,
    mode: Mode,
    *,
    batch_size: int,
    of: Sequence[int] | None = None,
) -> dict[Direction, npt.NDArray[np.bool_]]:
    """Which events are found exactly, in each direction.

    Args:
        forward: the network on a batch, in evaluation mode.
        windows: where to look; those without a `partial_event` are left out.
        mode: ``joint`` or ``strict``.
        batch_size: windows at once.
        of: only these windows.

    Returns:
        Direction -> (N,) in the order of the windows that are counted.
    """
    asked = events(windows)
    if of is not None:
        asked = {index: asked[index] for index in of if index in asked}
    right: dict[Direction, dict[int, bool]] = {"a2v": {}, "v2a": {}}
    groups = [list(asked)] if mode == "joint" else list(by_length(asked).values())
    parts = [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]
    for part, batch in zip(parts, windows.each(parts), strict=True):
        joint = forward(batch).distance.cpu().numpy() if mode == "joint" else None
        for direction in DIRECTIONS:
            if joint is None:
                distance = forward(query(batch, windows.num_classes, direction)).distance.cpu().numpy()
            else:
                distance = joint
            for index, matrix in zip(part, distance, strict=True):
                start, length = asked[index]
                searched = matrix if direction == "a2v" else matrix.T  # rows are searched, columns are the query
                asking = searched[:, start : start + length] if joint is not None else searched
                right[direction][index] = locate(asking) == start
    return {way: np.array([right[way][index] for index in asked], dtype=np.bool_) for way in DIRECTIONS}


def located_baselines(trained: Windows, asked: Windows) -> Baselines:
    """What the trivial baselines find in these windows, knowing the labels of those trained on."""
    masks = [[row.numpy() < asked.num_classes for row in windows.labels] for windows in (trained, asked)]
    return window_baselines(*masks)

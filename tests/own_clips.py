"""Clips as a user has them: of 8 to 60 s, with several classes, some without any event; rendered, with their CSV."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from avel.data.table import Clip, write_table
from avel.worlds.rendered.plan import INSTANCES, PLACES
from avel.worlds.rendered.render import ClipPlan, Second, Shot, render_clip

CLASSES = ("dog", "train", "chainsaw")
NOTHING = Second((), None)


def event(label: str, seconds: int) -> tuple[Second, ...]:
    """The thing is seen and heard."""
    return (Second((label,), label),) * seconds


def background(kind: str, label: str, seconds: int) -> tuple[Second, ...]:
    """``sound`` or ``sight`` of a class alone, or nothing."""
    return ({"sound": Second((), label), "sight": Second((label,), None), "nothing": NOTHING}[kind],) * seconds


def plan(number: int, pool: str, video: str, seconds: Sequence[Second]) -> ClipPlan:
    """A clip in one place, with things of its own pool: no split shares any."""
    labels = {label for second in seconds for label in (*second.visual, second.audio) if label}
    instances = tuple(f"{label}-{pool}-{number % INSTANCES[pool]}" for label in sorted(labels))
    shot = Shot(f"place-{pool}-{number % PLACES[pool]}", None, instances, tuple(seconds))
    return ClipPlan(video, pool, 0, number, 24, (shot,))


def plan_clips() -> list[ClipPlan]:
    """For each split some clips of each class, of 8 to 12 s, one without any event, and a long one of 20 to 60 s."""
    random = np.random.default_rng(0)
    plans: list[ClipPlan] = []
    for split, of_each, long_seconds in (("train", 4, 60), ("val", 1, 20), ("test", 2, 30)):
        kinds = cycle(("sound", "nothing", "sight"))
        members: list[tuple[str, list[Second]]] = []
        for copy in range(of_each):
            for label in CLASSES:
                before, during, after = (int(random.integers(*limits)) for limits in ((2, 4), (4, 7), (2, 4)))
                seconds = [*background(next(kinds), label, before), *event(label, during)]
                members.append((f"{label}-{copy}", [*seconds, *background(next(kinds), label, after)]))
        quiet = [second for label in CLASSES for second in background(next(kinds), label, 3)]
        members.append(("quiet", quiet))
        long: list[Second] = []
        for label in cycle(CLASSES):
            piece = [*background(next(kinds), label, 4), *event(label, 6)]
            if len(long) + len(piece) > long_seconds:
                break
            long += piece
        members.append(("long", long + [NOTHING] * (long_seconds - len(long))))
        for name, seconds in members:
            plans.append(plan(len(plans), split, f"clips/{split}-{name}.mp4", seconds))
    return plans


def write_clips(folder: Path) -> Path:
    """Write ``clips.csv`` with its videos, and ``new.mp4`` of half a minute that no split has, with ``truth.csv``."""
    (folder / "clips").mkdir(parents=True)
    plans = plan_clips()
    for each in plans:
        render_clip(each, folder / each.video)
    rows = [Clip(each.video, folder / each.video, each.spans, (each.split,)) for each in plans]
    write_table(folder / "clips.csv", rows)
    seconds = [*background("sight", "dog", 10), *event("train", 12), *background("sound", "chainsaw", 10)]
    new = plan(len(plans) + 1, "long", "new.mp4", seconds)
    render_clip(new, folder / "new.mp4")
    write_table(folder / "truth.csv", [Clip("new.mp4", folder / "new.mp4", new.spans)])
    return folder / "clips.csv"

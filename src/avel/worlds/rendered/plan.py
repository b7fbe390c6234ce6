"""The plan of a rendered world: every setting of its difficulty, and what happens in each video, second by second.

The *world seed* fixes the plan, and with it every picture and sound. It is frozen: a seed gives the same world in every
version of avel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from avel.types import Span
from avel.worlds.rendered.things import THINGS, Rng

CLASSES: tuple[str, ...] = tuple(THINGS)
KINDS = ("event", "sound_only", "sight_only", "wrong_sound", "neither")  # as world.json of every world calls them
POOLS = ("train", "val", "test", "long")  # what instances, places and voices are drawn from; "long" is split "test"

# --- How hard the world is. All of it is written to world.json, and a change asks for a new folder. ---
WIDTH, HEIGHT = 224, 168  # pixels
FRAME_RATES = (24, 25, 30)
SPLIT_SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
INSTANCES = {"train": 60, "val": 20, "test": 30, "long": 15}  # per class
PLACES = {"train": 200, "val": 50, "test": 80, "long": 40}
VOICES = {"train": 24, "val": 6, "test": 10, "long": 6}
EVENT_SECONDS = (2, 10)
EVENT_FREE = 0.10  # share of clips that are background from end to end
TWO_EVENTS = 0.25  # share of clips whose event is cut in two by background
CUT = 0.35  # share of clips that are cut once to another place with other things, as long videos are
KIND_WEIGHTS = {"sound_only": 0.30, "sight_only": 0.24, "wrong_sound": 0.36, "neither": 0.10}
OWN_CLASS = 0.5  # a background second has the class of the shot's event, and not the stranger's, in its first stream
RUN_SECONDS = (1, 3)  # how long one kind of background lasts
SILENT_MOVES = 0.7  # share of background in which a thing in view moves, without its sound
BYSTANDER = 0.08  # a second, silent thing is in view throughout
SIZES = (0.54, 0.74)  # height of a thing, in heights of the frame
CLUTTER = (0, 2)  # moving shapes of no class
SHAKE = 0.2  # share of shots from a shaking camera
GRAIN = (0.0, 4.0)  # deviation of the picture's noise, grey levels
LIGHT = (0.75, 1.1)
NOISE_DB = (-30.0, -10.0)  # level of the sound's noise against the loud parts of the class's sound
LEVEL_DB = (-9.0, 0.0)  # level of the class's sound from clip to clip
VOICED = 0.5  # share of shots with an off-screen voice
VOICE_DB = (-16.0, -5.0)
LONG_SECONDS = (47, 180)  # length of a long video
SHOT_SECONDS = (8, 20)  # length of a shot of it

PERIODS = {  # seconds from stroke to stroke; at most 0.5, or a whole second, so that each second has a full stroke
    "bell": (0.40, 0.50),
    "dog": (0.36, 0.50),
    "train": (0.38, 0.50),
    "siren": (0.30, 0.50),
    "drum": (0.22, 0.42),
    "clock": (0.40, 0.50),
    "ball": (0.42, 0.50),
    "helicopter": (0.085, 0.12),
    "chainsaw": (0.34, 0.50),
    "rooster": (1.0, 1.0),
}


@dataclass(frozen=True)
class Second:
    """One second: the classes in view, the class that sounds, and whether what is in view moves."""

    visual: tuple[str, ...]
    audio: str | None
    moving: bool = True

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        if self.audio is None:
            return "sight_only" if self.visual else "neither"
        if not self.visual:
            return "sound_only"
        return "event" if self.audio in self.visual else "wrong_sound"


@dataclass(frozen=True)
class Shot:
    """A stretch filmed in one place. ``instances`` are the ids of its things, in view or not; ``voice`` may be None."""

    place: str
    voice: str | None
    instances: tuple[str, ...]
    seconds: tuple[Second, ...]


@dataclass(frozen=True)
class ClipPlan:
    """What happens in one video, second by second.

    Attributes:
        video: its path in the world's folder, as the CSV has it.
        pool: what its instances, places and voices are drawn from.
        seed: of the world; with ``number`` it fixes every random choice in the file.
        number: of the clip.
        frame_rate: frames per second.
        shots: in order; a clip has one or two, a long video several.
    """

    video: str
    pool: str
    seed: int
    number: int
    frame_rate: int
    shots: tuple[Shot, ...]

    @property
    def split(self) -> str:
        return "test" if self.pool == "long" else self.pool

    @property
    def seconds(self) -> tuple[Second, ...]:
        return tuple(second for shot in self.shots for second in shot.seconds)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The events: maximal runs of seconds in which one class is seen and heard."""
        spans, at = [], 0
        for label, run in groupby(self.seconds, lambda second: second.audio if second.kind == "event" else None):
            length = len(list(run))
            if label is not None:
                spans.append(Span(label, float(at), float(at + length)))
            at += length
        return tuple(spans)


def plan_world(seed: int = 0, clips: int = 400, long_videos: int = 10, seconds: int = 10) -> list[ClipPlan]:
    """Decide what happens in every video; nothing is drawn yet.

    Args:
        seed: the same seed gives the same plan.
        clips: how many short clips.
        long_videos: how many videos of 47 to 180 s with several classes each.
        seconds: length of a clip, at least 2.

    Returns:
        The clips, then the long videos.
    """
    rng = generator(seed, 0)
    pools = [pool for pool, share in zip(POOLS[:3], _shares(clips), strict=True) for _ in range(share)]
    classes = {pool: _deal(rng, CLASSES) for pool in POOLS}
    plans = []
    for number, pool in enumerate(rng.permutation(np.array(pools, dtype="U5"))):
        own = generator(seed, 1, number)
        cut = int(own.integers(3, seconds - 2)) if seconds >= 6 and own.random() < CUT else seconds
        lengths = [length for length in (cut, seconds - cut) if length]
        shots = tuple(_plan_shot(own, str(pool), next(classes[pool]), length) for length in lengths)
        plans.append(
            ClipPlan(f"videos/clip_{number:04d}.mp4", str(pool), seed, number, int(own.choice(FRAME_RATES)), shots)
        )
    for number in range(long_videos):
        own = generator(seed, 2, number)
        left = int(own.integers(LONG_SECONDS[0], LONG_SECONDS[1] + 1))
        long_shots: list[Shot] = []
        while left:
            length = int(own.integers(SHOT_SECONDS[0], SHOT_SECONDS[1] + 1))
            length = left if left - length < SHOT_SECONDS[0] else length
            long_shots.append(_plan_shot(own, "long", next(classes["long"]), length))
            left -= length
        rate = int(own.choice(FRAME_RATES))
        plans.append(ClipPlan(f"long/long_{number:02d}.mp4", "long", seed, clips + number, rate, tuple(long_shots)))
    return plans


def _plan_shot(rng: Rng, pool: str, label: str, seconds: int) -> Shot:
    """One class has its events here; another, the stranger, appears in background, in one stream at a time."""
    others = [str(other) for other in rng.permutation([one for one in CLASSES if one != label])]
    stranger, bystander = others[0], others[1] if rng.random() < BYSTANDER else None
    along = (bystander,) if bystander else ()
    event = Second((label, *along), label)
    plan: list[Second | None] = [None] * seconds
    if rng.random() >= EVENT_FREE:
        for start, length in _event_stretches(rng, seconds):
            plan[start : start + length] = [event] * length
    while None in plan:
        start = plan.index(None)
        room = next((k for k in range(start, seconds) if plan[k] is not None), seconds) - start
        length = min(room, int(rng.integers(RUN_SECONDS[0], RUN_SECONDS[1] + 1)))
        plan[start : start + length] = [_background(rng, label, stranger, along)] * length
    done = tuple(second for second in plan if second is not None)
    present = {one for second in done for one in (*second.visual, second.audio) if one}
    return Shot(
        place=f"place-{pool}-{rng.integers(PLACES[pool])}",
        voice=f"voice-{pool}-{rng.integers(VOICES[pool])}" if rng.random() < VOICED else None,
        instances=tuple(f"{one}-{pool}-{rng.integers(INSTANCES[pool])}" for one in CLASSES if one in present),
        seconds=done,
    )


def _event_stretches(rng: Rng, seconds: int) -> list[tuple[int, int]]:
    """(start, length) of the one or two events of a shot, at least a second of background between two."""
    shortest, longest = EVENT_SECONDS
    total = int(rng.integers(shortest, min(longest, seconds) + 1))
    if rng.random() < TWO_EVENTS and 2 * shortest <= total < seconds:
        first, gap = int(rng.integers(shortest, total - shortest + 1)), int(rng.integers(1, seconds - total + 1))
        start = int(rng.integers(0, seconds - total - gap + 1))
        return [(start, first), (start + first + gap, total - first)]
    return [(int(rng.integers(0, seconds - total + 1)), total)]


def _background(rng: Rng, label: str, stranger: str, along: tuple[str, ...]) -> Second:
    """One kind of background; a bystander in view makes a wrong sound of a sound alone."""
    kind = rng.choice(list(KIND_WEIGHTS), p=list(KIND_WEIGHTS.values()))
    moving = bool(rng.random() < SILENT_MOVES)
    first, second = (label, stranger) if rng.random() < OWN_CLASS else (stranger, label)
    if kind == "neither":
        return Second(along, None, moving)
    if kind == "sight_only":
        return Second((first, *along), None, moving)
    if kind == "sound_only":
        return Second(along, first, moving)
    return Second((first, *along), second, moving)


def pace(plan: ClipPlan, order: int, instance: str) -> tuple[float, float]:
    """Period of an instance's strokes, its own, and their offset, the shot's: the same for picture and sound."""
    label = instance.split("-")[0]
    period = float(pool_generator(plan.seed, instance, 0).uniform(*PERIODS[label]))
    part = float(generator(plan.seed, 5, plan.number, order, CLASSES.index(label)).uniform(0, 1))
    return period, part * (0.1 if period == 1 else period)


def generator(*key: int) -> Rng:
    """The generator of one random choice, or one chain of them; every one in the world comes from here."""
    return np.random.default_rng(key)


def pool_generator(seed: int, name: str, purpose: int = 0) -> Rng:
    """The generator of an instance, a place or a voice, from its id ``what-pool-number``."""
    what, pool, number = name.split("-")
    return generator(seed, 6, [*CLASSES, "place", "voice"].index(what), POOLS.index(pool), int(number), purpose)


def _deal(rng: Rng, cards: Sequence[str]) -> Iterator[str]:
    """The classes in an order newly shuffled for each round: every class equally often, none twice in a row.

    With one twice in a row, two events of 10 s could meet at a cut and form one that is longer than an event may be.
    """
    last = None
    while True:
        deck = [str(card) for card in rng.permutation(cards)]
        if deck[0] == last:
            deck.append(deck.pop(0))
        yield from deck
        last = deck[-1]


def _shares(clips: int) -> tuple[int, int, int]:
    train, val = round(clips * SPLIT_SHARES["train"]), round(clips * SPLIT_SHARES["val"])
    return train, val, clips - train - val


def knobs() -> dict[str, Any]:
    """Every setting above by name, for world.json."""
    names = (
        "WIDTH HEIGHT FRAME_RATES SPLIT_SHARES INSTANCES PLACES VOICES EVENT_SECONDS EVENT_FREE TWO_EVENTS CUT "
        "KIND_WEIGHTS OWN_CLASS RUN_SECONDS SILENT_MOVES BYSTANDER SIZES CLUTTER SHAKE GRAIN LIGHT NOISE_DB "
        "LEVEL_DB VOICED VOICE_DB LONG_SECONDS SHOT_SECONDS PERIODS"
    )
    return {name: globals()[name] for name in names.split()}

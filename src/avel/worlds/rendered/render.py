"""A rendered world: real mp4 files with audio-visual events, made here, so that nothing has to be downloaded.

Ten classes, each a moving thing with a sound in step. An *event* is a stretch of 2 to 10 whole seconds in which the
same class is seen and heard. The other seconds are background of four kinds, all of them frequent, so that neither
stream is enough alone:

=============  ============================================================
sound_only     a class is heard, nothing of any class is in view
sight_only     a thing is in view, moving or at rest, and no class is heard
wrong_sound    a thing is in view and another class is heard
neither        no class is seen or heard
=============  ============================================================

Places, clutter, noise, a shaking camera and off-screen voices are added to all of it. Instances
(colour, shape, pitch, timbre, pace), places and voices come from pools that no two splits share. ``plan_world`` decides
what happens; ``render_clip`` makes the file.
"""

from __future__ import annotations

import io
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

import avel
from avel.data.table import Clip, read_table, write_table
from avel.errors import AvelError
from avel.files import claim_folder, make_folder, remove_abandoned, write_file
from avel.reading import LARGE_FILE, read_json
from avel.types import Progress
from avel.workers import Work, in_workers, worker_count
from avel.worlds.rendered import plan as world
from avel.worlds.rendered import sounds
from avel.worlds.rendered.plan import (
    CLASSES,
    KINDS,
    ClipPlan,
    Second,
    Shot,
    generator,
    pace,
    plan_world,
    pool_generator,
)
from avel.worlds.rendered.scenes import Actor, Camera, draw_frames, paint_place
from avel.worlds.rendered.things import THINGS, Rng

__all__ = [
    "CLASSES",
    "KINDS",
    "ClipPlan",
    "Second",
    "Shot",
    "draw_clip",
    "plan_world",
    "render",
    "render_clip",
    "synthesize_clip",
]

_VERSION = 1  # of drawing and synthesis: raise it when the same plan gives another file


def render(
    out: str | Path,
    *,
    clips: int = 400,
    long_videos: int = 10,
    seed: int = 0,
    seconds: int = 10,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make a world: ``videos/*.mp4`` with ``clips.csv``, ``long/*.mp4`` with ``long.csv``, and ``world.json``.

    A run that was stopped continues: a video is written under a temporary name and renamed when it is whole, and a
    video that is there is not made again.

    Args:
        out: the folder; it is made if it is missing.
        clips: number of clips, split into train, val and test.
        long_videos: number of videos of 47 to 180 s, with their labels in long.csv.
        seed: seed of the world. The same seed gives the same labels, frames and sound.
        seconds: length of a clip, at least 2.
        workers: processes that share the work; by default one per processor; 0 starts none.
        progress: called as ``("render", done, total)``.

    Returns:
        The path of ``clips.csv``.

    Raises:
        AvelError: impossible numbers; a folder that holds another world or other videos; a full disk; a video that
            crashes the process that renders it.
    """
    out = Path(out)
    check_numbers(clips, long_videos, seconds)
    number = worker_count(workers)
    plans = plan_world(seed, clips, long_videos, seconds)
    _claim(out, _world(plans, {"seed": seed, "clips": clips, "long_videos": long_videos, "seconds": seconds}))
    missing = [plan for plan in plans if not (out / plan.video).exists()]
    done = len(plans) - len(missing)
    if progress:
        progress("render", done, len(plans))
    for _ in _render_all(missing, out, number):
        done += 1
        if progress:
            progress("render", done, len(plans))
    for name, chosen in (("clips.csv", plans[:clips]), ("long.csv", plans[clips:])):
        if chosen:
            _write_labels(
                out / name, [Clip(plan.video, out / plan.video, plan.spans, (plan.split,)) for plan in chosen]
            )
    return out / "clips.csv"


def render_clip(plan: ClipPlan, path: str | Path) -> None:
    """Draw, synthesize and encode one video: H.264 and AAC in mp4, both exactly as long as the plan.

    Raises:
        AvelError: the disk is full; nothing is left behind.
    """
    write_file(path, _encode(draw_clip(plan), synthesize_clip(plan), plan.frame_rate))


def draw_clip(plan: ClipPlan) -> Iterator[NDArray[np.uint8]]:
    """The pictures of a plan before encoding: (HEIGHT, WIDTH, 3) uint8 RGB, frame i at the time i / frame_rate."""
    for order, shot in enumerate(plan.shots):
        rng = generator(plan.seed, 3, plan.number, order)
        place = paint_place(pool_generator(plan.seed, shot.place), world.HEIGHT, world.WIDTH)
        shake = rng.uniform(1.0, 2.0) if rng.random() < world.SHAKE else 0.0
        camera = Camera(shake, rng.uniform(*world.LIGHT), rng.uniform(*world.GRAIN))
        clutter = int(rng.integers(world.CLUTTER[0], world.CLUTTER[1] + 1))
        actors = _actors(rng, plan, order)
        yield from draw_frames(rng, place, actors, camera, clutter, plan.frame_rate, len(shot.seconds))


def synthesize_clip(plan: ClipPlan) -> NDArray[np.float32]:
    """The sound of a plan, before encoding: (samples,) in [-1, 1] at `avel.worlds.rendered.sounds.SAMPLE_RATE`."""
    return np.concatenate([_synthesize(plan, order) for order in range(len(plan.shots))])


def _synthesize(plan: ClipPlan, order: int) -> NDArray[np.float32]:
    shot, rng = plan.shots[order], generator(plan.seed, 4, plan.number, order)
    samples = len(shot.seconds) * sounds.SAMPLE_RATE
    slope, level = rng.uniform(0, 1.0), rng.uniform(*world.LEVEL_DB)
    wave = sounds.noise(rng, samples, 60, 9000, slope) * _gain(rng.uniform(*world.NOISE_DB))
    audio = [second.audio for second in shot.seconds]
    for instance in shot.instances:
        label = instance.split("-")[0]
        stretches = _stretches([one == label for one in audio])
        if stretches:
            period, offset = pace(plan, order, instance)
            own = sounds.sound(label, pool_generator(plan.seed, instance, 1), period, offset, samples)
            wave += sounds.gate(own, stretches) * _gain(level)
    if shot.voice:
        speech = sounds.voice(pool_generator(plan.seed, shot.voice), rng, samples)
        length = int(rng.integers(2, len(shot.seconds) + 1))
        start = int(rng.integers(0, len(shot.seconds) - length + 1))
        wave += sounds.gate(speech, [(start, start + length)], 0.1) * _gain(rng.uniform(*world.VOICE_DB) + level)
    return np.tanh(wave * np.float32(0.25))  # the loud parts stay under 0.3 or so; rare peaks bend instead of clipping


def _actors(rng: Rng, plan: ClipPlan, order: int) -> list[Actor]:
    """The things of a shot that come into view. Two in view together keep to their halves; the train is behind."""
    shot = plan.shots[order]
    crowded = any(len(second.visual) > 1 for second in shot.seconds)
    visible = {label for second in shot.seconds for label in second.visual}
    rail = "train" in visible
    actors = []
    side = int(rng.integers(2))
    for instance in shot.instances:
        label = instance.split("-")[0]
        size, mirrored, across, down = rng.uniform(*world.SIZES), bool(rng.random() < 0.5), rng.random(), rng.random()
        if label not in visible:
            continue
        views = []
        for moving in (True, False):
            inside = [label in second.visual and second.moving == moving for second in shot.seconds]
            views += [(start, end, moving) for start, end in _stretches(inside)]
        half_width = min(0.5, size * THINGS[label].aspect * world.HEIGHT / world.WIDTH / 2)
        x = half_width + across * (1 - 2 * half_width)
        if crowded and label != "train":
            x = half_width + (across * 0.5 + 0.5 * side) * (1 - 2 * half_width)
            always = all(label in second.visual for second in shot.seconds)
            x = _half(half_width, across, side if always else 1 - side)
        y = size / 2 + down * (1 - size)
        if label == "train":
            y = 1 - size / 2 - 0.25 * down
        elif rail and crowded:
            y = size / 2 + 0.1 * down
        period, offset = pace(plan, order, instance)
        look = THINGS[label].look(pool_generator(plan.seed, instance, 2))
        actors.append(Actor(label, look, period, offset, tuple(views), size, (x, y), mirrored))
    return sorted(actors, key=lambda actor: actor.label != "train")


def _half(half_width: float, across: float, side: int) -> float:
    """A centre in the left (0) or right (1) half of the frame, all of the thing inside the frame."""
    low, high = half_width, max(half_width, 0.5 - half_width * 0.6)
    x = low + across * (high - low)
    return 1 - x if side else x


def _stretches(wanted: list[bool]) -> list[tuple[int, int]]:
    runs, at = [], 0
    for value, run in groupby(wanted):
        length = len(list(run))
        if value:
            runs.append((at, at + length))
        at += length
    return runs


def _gain(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))


def _encode(frames: Iterator[NDArray[np.uint8]], wave: NDArray[np.float32], frame_rate: int) -> bytes:
    """An mp4 in memory. One thread each, so that the same pictures give the same bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=frame_rate)
        video.width, video.height, video.pix_fmt = world.WIDTH, world.HEIGHT, "yuv420p"
        # no B-frames: the first frame is at time 0. A key frame each second: players seek to it.
        video.options = {"preset": "ultrafast", "crf": "26", "bf": "0", "g": str(frame_rate), "threads": "1"}
        video.thread_count = 1
        audio = container.add_stream("aac", rate=sounds.SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64_000
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, frame_rate)
            container.mux(video.encode(frame))
            if number % frame_rate == 0:  # a second of sound with each second of pictures keeps the file interleaved
                begin = number // frame_rate * sounds.SAMPLE_RATE
                part = av.AudioFrame.from_ndarray(wave[None, begin : begin + sounds.SAMPLE_RATE], "fltp", "mono")
                part.sample_rate, part.pts, part.time_base = sounds.SAMPLE_RATE, begin, Fraction(1, sounds.SAMPLE_RATE)
                container.mux(audio.encode(part))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return file.getvalue()


def check_numbers(clips: int, long_videos: int, seconds: int = 10) -> None:
    """Raises AvelError if a world of these numbers, as for `render`, is impossible."""
    for name, value, least in (("clips", clips, 1), ("long_videos", long_videos, 0), ("seconds", seconds, 2)):
        if value < least:
            raise AvelError(f"{name} = {value}", f"a whole number, at least {least}", f"give {name} another value")


def _world(plans: list[ClipPlan], settings: dict[str, int]) -> dict[str, Any]:
    """What world.json says."""
    return {
        "format": "avel-world",
        "settings": {"version": _VERSION, **settings, "knobs": world.knobs()},
        "made_with": {
            "avel": avel.__version__,
            "av": av.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "classes": CLASSES,
        "kinds": Counter(second.kind for plan in plans for second in plan.seconds),
        "clips": [
            {
                "video": plan.video,
                "split": plan.split,
                "frame_rate": plan.frame_rate,
                "shots": [
                    {
                        "place": shot.place,
                        "voice": shot.voice,
                        "instances": shot.instances,
                        "seconds": len(shot.seconds),
                    }
                    for shot in plan.shots
                ],
                "kind": [second.kind for second in plan.seconds],
                "seen": ["+".join(second.visual) for second in plan.seconds],
                "heard": [second.audio or "" for second in plan.seconds],
                "moving": [int(second.moving) for second in plan.seconds],
            }
            for plan in plans
        ],
    }


class _World(Struct):
    """What ``world.json`` says that decides whether a folder can be continued."""

    settings: dict[str, Any]


def _claim(out: Path, facts: dict[str, Any]) -> None:
    """Write world.json first, so that a folder is known by it from the start; refuse another world's folder."""
    file = out / "world.json"
    marked = claim_folder(
        out, "world.json", "a rendered world", content=("clips.csv", "long.csv", "videos/*", "long/*")
    )
    make_folder(out / "videos")
    make_folder(out / "long")
    if not marked:
        write_file(file, json.dumps(facts, indent=1) + "\n")
        return
    do = "choose another folder"
    found = read_json(file, _World, expected="the file avel wrote", do=do, limit=LARGE_FILE, folder=out).settings
    wanted = json.loads(json.dumps(facts["settings"]))
    if found != wanted:
        differ = [key for key in wanted if found.get(key) != wanted[key]]
        told = ", ".join(
            f"{key} {found.get(key)} (asked: {wanted[key]})" if key != "knobs" else "other knobs" for key in differ
        )
        raise AvelError(
            f"{out} holds another world: {told}", "the same settings", "choose another folder, or delete this one"
        )


def _write_labels(file: Path, clips: list[Clip]) -> None:
    """Write a table, unless it is there already. Raises AvelError if it was changed since."""
    if os.path.lexists(file):
        if read_table(file) != clips:
            raise AvelError(
                f"{file} was changed since it was written", "the labels of this world", "keep yours under another name"
            )
    else:
        write_table(file, clips)


def _render_all(plans: list[ClipPlan], out: Path, workers: int) -> Iterator[None]:
    """Render every plan, longest first, yielding once per finished video.

    Raises:
        AvelError: the disk is full, or a video crashes the process that renders it, twice.
    """
    plans = sorted(plans, key=lambda plan: -len(plan.seconds))
    number = 0 if len(plans) < 2 else min(workers, len(plans))
    try:
        with closing(in_workers(plans, number, _prepare, (out,))) as results:
            for plan, outcome in results:
                if isinstance(outcome, str):
                    raise AvelError(
                        f"{plan.video} could not be rendered: {outcome}",
                        "worker processes that finish their videos",
                        "render again: finished videos are kept; try fewer --workers if memory is short",
                    )
                yield
    finally:
        for folder in ("videos", "long"):  # a stopped worker leaves its temporary file
            remove_abandoned(out / folder)


def _prepare(out: Path) -> Work[ClipPlan, bool]:
    """What a worker process does with a plan."""

    def work(plan: ClipPlan, alive: Callable[[], None]) -> bool:
        render_clip(plan, out / plan.video)
        return True

    return work

"""How long an extraction will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from avel.data.table import Clip
from avel.errors import AvelError
from avel.features.recipe import DEFAULT_RECIPE, Recipe
from avel.features.segments import BATCH_SEGMENTS, extract_clip
from avel.features.sources import read_source
from avel.features.streams import probe
from avel.workers import Work, Worker

TIMED_SECONDS = 5.0  # how long to time a clip, plus one batch: a video may last for hours


def estimate_seconds(
    source: str | Path | Sequence[str | Path],
    recipe: Recipe = DEFAULT_RECIPE,
    *,
    videos: str | Path | None = None,
    extra_splits: Collection[str] = (),
    workers: int | None = None,
) -> float:
    """About how many seconds `extract` will take with no finished clips. For the arguments see there.

    Two clips are timed for a few seconds each, whatever their length; the lengths of twenty are looked up.

    Raises:
        AvelError: the source or the clips cannot be read, or the extractors cannot be built.
    """
    clips = read_source(source, videos=videos, extra_splits=extra_splits).clips
    built = recipe.build()
    number = max(1, min(len(clips), built.processes(workers)))
    durations: list[float] = []
    speeds: list[float] = []
    cause = ""
    # In a process that may die, with as many threads as a worker.
    worker = Worker[tuple[Clip, bool], tuple[float, float]](_prepare, (built.recipe,), built.limits)
    try:
        for clip in clips[:: max(1, len(clips) // 20)]:
            found = worker.do((clip, len(speeds) < 2))
            if isinstance(found, str):
                cause = cause or found
                continue
            durations.append(found[0])
            speeds += [found[1]] if found[1] else []
    finally:
        worker.end()
    if not speeds:
        raise AvelError(
            f"none of the clips that were tried could be used; the first: {cause}",
            "videos with picture and sound",
            "check whether they play",
        )
    return float(np.mean(speeds) * np.mean(durations)) * len(clips) / number


class _EnoughError(Exception):
    """A clip has been timed for long enough. Caught in this module.

    Args:
        seconds: how much of the clip was done.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def _prepare(recipe: Recipe) -> Work[tuple[Clip, bool], tuple[float, float]]:
    """The work on one clip: find its length and, if asked, the time to process one second of it."""
    _, visual, audio = recipe.build().on_device()

    def look(task: tuple[Clip, bool], alive: Callable[[], None]) -> tuple[float, float] | str:
        clip, timed = task
        start = time.perf_counter()

        def watch(_: str, done: int, __: int) -> None:
            alive()
            if done > BATCH_SEGMENTS * recipe.segment_seconds and time.perf_counter() - start > TIMED_SECONDS:
                raise _EnoughError(done)

        try:
            duration = probe(clip.path, streams=recipe.streams, silent=recipe.missing_audio == "mark").duration
            if not timed:
                return duration, 0.0
            try:
                duration = extract_clip(clip.path, visual, audio, recipe, threads=1, progress=watch).duration
                timed_seconds = duration
            except _EnoughError as enough:
                timed_seconds = enough.seconds
            return duration, (time.perf_counter() - start) / timed_seconds
        except AvelError as error:
            return error.found

    return look

"""Many videos to one feature store, on many processes, resumable clip by clip.

A finished clip is one file in a work folder in OUT; when no clip is left, they are packed into the store in input
order. A later run on the same folder keeps every clip whose media file has not changed, and takes over new labels and
splits.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avel import devices
from avel.data.ave.files import CLASSES, read_annotations
from avel.data.ave.survey import read_splits
from avel.data.store import (
    WORK,
    Packed,
    Part,
    Settings,
    open_store,
    pack,
    part_file,
    read_part,
    stored_part,
    write_part,
)
from avel.data.table import Clip, classes_of, decoded, find_file, is_table, read_tables
from avel.errors import AvelError
from avel.features import build_audio, build_visual, describe, device_for, run_on
from avel.features.clip import BATCH_SEGMENTS, MIXING, ClipFeatures, check_choices, extract_clip
from avel.features.extractor import AudioExtractor, VisualExtractor
from avel.features.folders import MEDIA_SUFFIXES, is_video, videos_in
from avel.features.video import FIRST_STREAMS, Streams, is_media, probe
from avel.files import (
    check_folder,
    file_sha256,
    held_alone,
    make_folder,
    make_work_folder,
    refuse_around,
    refuse_foreign,
    write_file,
)
from avel.processors import worker_count
from avel.reading import LARGE_FILE, check_regular, read_bytes
from avel.types import Progress
from avel.workers import Limits, Work, Worker, check_ray, in_workers, on_ray

__all__ = ["ClipFeatures", "ExtractReport", "Recipe", "estimate_seconds", "extract", "extract_clip"]
__all__ += ["read_ave", "read_source"]

#: A clip is slow, or hangs: a batch of four seconds takes VGG-19 half a minute on a slow core.
CLIP_SECONDS_LIMIT = 300.0
#: GiB. A ten-second clip of 720p takes 0.1 with classical features and 0.5 with VGG-19.
CLIP_MEMORY_LIMIT = 2.0
#: Bytes that a process holds for a GPU: of the computer's memory the GPU's libraries; of the GPU's own those, the
#: networks and a batch. Both are generous estimates; where the GPU's memory is full after all, batches get smaller.
DEVICE_HOST_BYTES, DEVICE_BYTES = 4 * 2**30, 5 * 2**30
FAILURES = "failures.jsonl"  # in the store
TIMED_SECONDS = 5.0  # that a clip is worked at for an estimate, and a batch more: a video may last for hours


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        done: clips decoded in this run.
        skipped: clips that were finished before.
        failed: ``{"id", "cause"}`` of each clip that the store lacks.
        store: the folder.
        choices: ``(id, words)`` of each clip in the store with several streams, with time stamps that jump, with
            picture and sound of unequal length, or with more than two channels of sound: what was read.
        mute: ids of the clips in the store without sound, with ``missing_audio="mark"``.
        device: where the networks of the extractors run; ``cpu`` where none of them is a network.
        left_out: of a folder, each file that was not taken for a video, and why.
    """

    done: int
    skipped: int
    failed: list[dict[str, str]]
    store: Path
    choices: list[tuple[str, str]] = field(default_factory=list)
    mute: list[str] = field(default_factory=list)
    device: str = "cpu"
    left_out: dict[Path, str] = field(default_factory=dict)


def extract(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    visual: str = "classical",
    audio: str = "classical",
    segment_seconds: float = 1.0,
    visual_options: Mapping[str, Any] | None = None,
    audio_options: Mapping[str, Any] | None = None,
    framing: str = "time",
    streams: Streams = FIRST_STREAMS,
    missing_audio: str = "error",
    videos: str | Path | None = None,
    extra_splits: Collection[str] = (),
    engine: str = "local",
    workers: int | None = None,
    device: str = "auto",
    clip_seconds_limit: float = CLIP_SECONDS_LIMIT,
    clip_memory_limit: float = CLIP_MEMORY_LIMIT,
    progress: Progress | None = None,
) -> ExtractReport:
    """Extract the features of many videos into a store.

    Clips that cannot be used are listed in ``OUT/failures.jsonl`` and tried again by the next run; the others go on.
    So it is with a clip that crashes the process which decodes it, or goes over a limit.

    Args:
        source: a CSV of clips or several, a folder of media, a media file, or a ``.txt`` list of media files. What is
            taken of a folder `avel.features.folders.videos_in` says.
        out: folder of the store; an unfinished or older one of the same extractors is continued.
        visual: name of a visual extractor.
        audio: name of an audio extractor.
        segment_seconds: length of a segment, seconds.
        visual_options: of the visual extractor, such as ``{"weights_file": PATH}`` of vgg19.
        audio_options: of the audio extractor.
        framing: ``time``, or ``ave`` for tenths of clips of ten seconds; see `extract_clip`.
        streams: which to take of files with several.
        missing_audio: ``error``, or ``mark`` to keep the pictures of clips without sound. Such clips are marked in the
            store (``audio_valid``), and training and evaluation refuse them.
        videos: folder of AVE's videos, where ``source`` is its Annotations.txt; see `read_ave`.
        extra_splits: names in a CSV's column split beside train, val and test, which nothing here takes by itself.
        engine: ``local``, processes of this machine; or ``ray``, a Ray cluster whose machines see the files under the
            same paths.
        workers: processes; None for one per processor, with ``ray`` of the cluster. With 0 all is done in this process,
            as a debugger wants it: no limit holds there, and a crash ends all. ``ray`` needs at least one.
        device: where VGG-19, VGGish, CLIP and CLAP run: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes a GPU
            where there is one. On a GPU every process keeps networks of its own there; with ``workers`` left out there
            are no more processes than it has room for. The features carry the same tags as those made on a processor:
            what differs is the order in which sums are rounded. With ``ray`` the networks run on processors.
        clip_seconds_limit: seconds in which a clip must get on by a second of video.
        clip_memory_limit: GiB that the process which decodes a clip may hold; with a GPU 4 more, for its libraries.
        progress: called as ``progress("look" or "extract" or "pack", clips done, clips in all)``; "look" is at clips
            of an earlier run.

    Raises:
        AvelError: the source cannot be read; ``out`` is a folder of input or contains one, or holds features of another
            extractor or segment length, or a ``failures.jsonl`` that avel did not write; every clip failed, a limit is
            not positive, the engine is unknown or not installed, ``workers`` is negative or its processes cannot be
            started, there is no such device or ``ray`` was to use it, another run is at work in the folder, or the
            disk is full.
    """
    out = Path(out)
    check_folder(out)
    for folder in (*([source] if isinstance(source, str | Path) else source), videos):
        if folder is not None and os.path.isdir(folder):
            refuse_around(out, folder)
    refuse_foreign(out / FAILURES, _are_failures)
    clips, labelled, left_out = read_source(source, videos=videos, extra_splits=extra_splits)
    limits = _limits(clip_seconds_limit, clip_memory_limit)
    if engine not in ("local", "ray"):
        raise AvelError(f"no engine {engine!r}", "local or ray", "choose one of them")
    if worker_count(workers) == 0 and engine == "ray":
        raise AvelError("0 workers on a Ray cluster", "at least 1", "leave it out for one per processor of the cluster")
    if engine == "ray":
        device = _device_of_ray(device)
        check_ray()
    recipe = Recipe.of(
        visual, audio, segment_seconds, visual_options, audio_options, framing, streams, missing_audio, device
    )
    make_folder(out)
    with held_alone(out):
        finished = _finished(clips, out, recipe, progress)
        todo = [clip for clip in clips if clip.id not in finished]
        # AVE rounds its events up to ten seconds, however short a video is; a CSV may be off by a segment.
        leeway = segment_seconds if videos is None else np.inf
        with closing(_results(todo, out, recipe, engine, workers, limits)) as results:
            failed = _collect(clips, out, results, finished, leeway, progress)
        lacking = {failure["id"] for failure in failed}
        packed = [
            Packed(clip.id, clip.spans if labelled else None, clip.splits, finished[clip.id], clip.video)
            for clip in clips
            if clip.id not in lacking
        ]
        pack(out, recipe.settings(), classes_of(clips) if videos is None else CLASSES, packed, progress)
    return ExtractReport(
        sum(clip.id not in lacking for clip in todo),
        len(clips) - len(todo),
        failed,
        out,
        [(clip.id, clip.part.streams) for clip in packed if clip.part.streams],
        [clip.id for clip in packed if not clip.part.audio_valid],
        recipe.device,
        left_out,
    )


def _results(
    todo: Sequence[Clip], out: Path, recipe: Recipe, engine: str, workers: int | None, limits: Limits
) -> Generator[tuple[Clip, Part | str], None, None]:
    """Extract clips in the way that was chosen; yields each with its part, or the cause of its failure."""
    if not todo:
        return
    make_work_folder(out / WORK)
    if engine == "ray":
        yield from on_ray(todo, workers, _prepare, (out, *recipe.by_name()), limits)
    elif workers == 0:
        recipe.on_device()
        for clip in todo:
            yield clip, _one_clip(clip, out, recipe)
    else:
        number = min(len(todo), _processes(workers, recipe))
        yield from in_workers(todo, number, _prepare, (out, *recipe.by_name()), recipe.limits(limits))


def _collect(
    clips: Sequence[Clip],
    out: Path,
    results: Iterator[tuple[Clip, Part | str]],
    finished: dict[str, Part],
    leeway: float,
    progress: Progress | None,
) -> list[dict[str, str]]:
    """Add the results to those that are finished, and write down what failed, even if this is interrupted.

    Args:
        leeway: seconds by which an event may end after its clip.

    Returns:
        ``{"id", "cause"}`` of the failed clips, in the order of ``clips``.

    Raises:
        AvelError: every clip failed, or as the results are made.
    """
    failures: dict[str, str] = {}
    skipped = len(finished)
    if progress and skipped < len(clips):
        progress("extract", skipped, len(clips))
    try:
        for done, (clip, result) in enumerate(results, start=1):
            if isinstance(result, Part):
                if not result.file.is_file():
                    raise AvelError(
                        f"the features of {clip.id} were written by another machine, and are not in {out} here",
                        "a folder that all machines of the cluster see under this path",
                        "choose an --out on their common storage",
                    )
                finished[clip.id] = result
            else:
                failures[clip.id] = result
            if progress:
                progress("extract", skipped + done, len(clips))
        for clip in clips:
            part = finished.get(clip.id)
            late = "" if part is None else _late(clip, part.duration, leeway)
            if late:
                failures[clip.id] = late
    finally:
        failed = [{"id": clip.id, "cause": failures[clip.id]} for clip in clips if clip.id in failures]
        _write_failures(out / FAILURES, failed)
    if len(failed) == len(clips):
        raise AvelError(
            f"none of the {len(clips)} clips could be used; the first, {failed[0]['id']}: {failed[0]['cause']}",
            "at least one video with picture and sound",
            f"see {out / FAILURES}",
        )
    return failed


def _late(clip: Clip, duration: float, leeway: float) -> str:
    """What is wrong with an event that lies after the end of its clip, "" where none does."""
    for span in clip.spans:
        for moment, seconds, beyond in (
            ("starts", span.start, span.start >= duration),
            ("ends", span.end, span.end > duration + leeway),
        ):
            if beyond:
                return (
                    f"the event {span.label!r} {moment} at {seconds:g} s, but picture and sound together end at "
                    f"{duration:g} s"
                )
    return ""


def estimate_seconds(
    source: str | Path | Sequence[str | Path],
    *,
    visual: str = "classical",
    audio: str = "classical",
    segment_seconds: float = 1.0,
    visual_options: Mapping[str, Any] | None = None,
    audio_options: Mapping[str, Any] | None = None,
    framing: str = "time",
    streams: Streams = FIRST_STREAMS,
    missing_audio: str = "error",
    videos: str | Path | None = None,
    extra_splits: Collection[str] = (),
    workers: int | None = None,
    device: str = "auto",
    clip_seconds_limit: float = CLIP_SECONDS_LIMIT,
    clip_memory_limit: float = CLIP_MEMORY_LIMIT,
) -> float:
    """About how long `extract` will take from nothing, in seconds.

    Two clips are timed, for a few seconds each, whatever their length; of twenty the length is looked up.

    Raises:
        AvelError: the source or the clips cannot be read, or there is no such device.
    """
    clips = read_source(source, videos=videos, extra_splits=extra_splits).clips
    recipe = Recipe.of(
        visual, audio, segment_seconds, visual_options, audio_options, framing, streams, missing_audio, device
    )
    number = max(1, min(len(clips), _processes(workers, recipe)))
    durations: list[float] = []
    speeds: list[float] = []
    cause = ""
    # In a process that may die, and that has as many threads as a worker.
    worker = Worker[tuple[Clip, bool], tuple[float, float]](
        _prepare_timing, recipe.by_name(), recipe.limits(_limits(clip_seconds_limit, clip_memory_limit))
    )
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
            f"none of the clips looked at could be used; the first: {cause}",
            "videos with picture and sound",
            "see whether they play",
        )
    return float(np.mean(speeds) * np.mean(durations)) * len(clips) / number


class Source(NamedTuple):
    """What an extraction reads: the clips, whether they are labelled, and what of a folder was left out, with why."""

    clips: list[Clip]
    labelled: bool
    left_out: dict[Path, str]


def read_source(
    source: str | Path | Sequence[str | Path],
    *,
    videos: str | Path | None = None,
    extra_splits: Collection[str] = (),
) -> Source:
    """The clips of what `extract` takes.

    Raises:
        AvelError: there is no such source, it names no videos, CSVs name no event, a listed file does not exist,
            several sources are not all CSVs, or ``extra_splits`` are given with what has no splits of one's own; or as
            `read_tables` and `read_ave`.
    """
    sources = [Path(source)] if isinstance(source, str | Path) else [Path(each) for each in source]
    no_table = [each for each in sources if not is_table(each)]
    if not no_table and sources and videos is None:
        table = read_tables(sources, extra_splits=extra_splits)
        if not any(clip.spans for clip in table):
            raise AvelError(
                f"no event in {', '.join(map(str, sources))}: start, end and label are empty on every line",
                "at least one event to learn or to test on",
                "fill in the events; or, for features without labels, give the folder of the videos or a .txt list",
            )
        return Source(table, True, {})
    if len(sources) != 1:
        raise AvelError(
            f"{len(sources)} sources" + (f", and {no_table[0]} is no CSV" if no_table else ""),
            "one source, or several CSVs",
            "put the videos into one folder, or their paths into a .txt list, and give that",
        )
    (source,) = sources
    if extra_splits:
        raise AvelError(
            f"extra splits ({', '.join(extra_splits)}) with {source}",
            "a CSV with a column split",
            "leave out --extra-splits, or give a CSV",
        )
    if videos is not None:
        return Source(read_ave(source, videos), True, {})
    if os.path.isdir(source):
        there, left_out = videos_in(source)
        clips = [Clip(file.relative_to(source).as_posix(), file, ()) for file in there]
        return Source(clips, False, {file.relative_to(source): reason for file, reason in left_out.items()})
    try:
        check_regular(source)
    except FileNotFoundError:
        raise AvelError(
            f"no such file or folder: {source}",
            "a CSV, a folder of media, a media file or a .txt list",
            "check the path",
        ) from None
    if source.suffix.lower() != ".txt":
        if source.suffix.lower() not in MEDIA_SUFFIXES and not is_media(source):
            raise AvelError(
                f"{source} is not a media file",
                "a CSV, a folder of media, a media file or a .txt list",
                "check the path; of a spreadsheet give the table saved as CSV",
            )
        return Source([Clip(source.name, source, ())], False, {})
    # As the system writes names, whatever the encoding: so a list can name every file.
    lines = decoded(read_bytes(source, LARGE_FILE), "surrogateescape").splitlines()
    listed: dict[Path, Clip] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name, path = find_file(source.parent, line.strip())
            if path is None:
                raise AvelError(
                    f"{source} line {number}: no such file {str(source.parent / name)!r}",
                    "paths relative to the list's own folder (or absolute)",
                    "correct the path or delete the line",
                )
            listed.setdefault(path, Clip(name, path, ()))
    if not listed:
        raise AvelError(f"{source} is empty", "a path of a video on each line", "write them there")
    return Source(list(listed.values()), False, {})


def read_ave(annotations: str | Path, videos: str | Path) -> list[Clip]:
    """The clips of AVE in the order of its Annotations.txt, in the splits of the order files beside it.

    A video that is not in the folder is a clip all the same, one that fails: many of AVE's have left YouTube.

    Args:
        annotations: AVE's Annotations.txt.
        videos: folder with a file for each video, named by its YouTube id.

    Raises:
        AvelError: the annotations or an order file are damaged, or the folder holds none of the videos.
    """
    annotations, videos = Path(annotations), Path(videos)
    rows = read_annotations(annotations)
    splits = read_splits(annotations.parent, len(rows))
    ids = {row.video for row in rows}
    there = [file for file in videos.glob("*") if file.stem in ids and is_video(file)]
    # Of several files of one id the last counts: one whose suffix is that of a video, where there is one.
    files = {f.stem: f for f in sorted(there, key=lambda f: (f.suffix.lower() in MEDIA_SUFFIXES, f))}
    if not files:
        raise AvelError(
            f"no video of {annotations} in {videos}",
            f"files named by their YouTube ids, such as {rows[0].video}.mp4",
            "give the folder of the archive that holds the mp4 files",
        )
    return [
        Clip(
            id=row.clip_id,
            path=files.get(row.video, videos / f"{row.video}.mp4"),
            spans=(row.span,),
            splits=tuple(name for name, order in splits.items() if row.row in order),
            video=row.video,
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Recipe:
    """What turns a file into features: the extractors, and the choices that `extract_clip` knows by the same names."""

    visual: VisualExtractor
    audio: AudioExtractor
    segment_seconds: float
    framing: str = "time"
    streams: Streams = FIRST_STREAMS
    missing_audio: str = "error"
    device: str = "cpu"

    @classmethod
    def of(
        cls,
        visual: str,
        audio: str,
        segment_seconds: float,
        visual_options: Mapping[str, Any] | None = None,
        audio_options: Mapping[str, Any] | None = None,
        framing: str = "time",
        streams: Streams = FIRST_STREAMS,
        missing_audio: str = "error",
        device: str = "cpu",
    ) -> Recipe:
        """Make the extractors by name, on the processor as yet: see `on_device`.

        Raises:
            AvelError: an unknown extractor or device, or a choice that is out of range.
        """
        check_choices(segment_seconds, framing, missing_audio)
        eyes, ears = build_visual(visual, **(visual_options or {})), build_audio(audio, **(audio_options or {}))
        place = device_for(device, eyes, ears)
        return cls(eyes, ears, segment_seconds, framing, streams, missing_audio, place)

    def on_device(self) -> Recipe:
        """Itself, its networks moved to their device: in the process that uses them, and nowhere else."""
        run_on(self.device, self.visual, self.audio)
        return self

    def limits(self, limits: Limits) -> Limits:
        """The limits of a process that makes features: with a GPU it holds more than its clip."""
        return limits if self.device == "cpu" else replace(limits, memory=limits.memory + DEVICE_HOST_BYTES)

    def by_name(self) -> tuple[Any, ...]:
        """Arguments of `of` that make it again in another process."""
        return (
            self.visual.name,
            self.audio.name,
            self.segment_seconds,
            dict(self.visual.options),
            dict(self.audio.options),
            self.framing,
            self.streams,
            self.missing_audio,
            self.device,
        )

    def choices(self) -> dict[str, Any]:
        """All but the extractors, as `extract_clip` takes it."""
        return {
            "segment_seconds": self.segment_seconds,
            "framing": self.framing,
            "streams": self.streams,
            "missing_audio": self.missing_audio,
        }

    def made(self, part: Part, channels: int) -> bool:
        """Whether a finished clip is what this recipe makes of its file, as far as the settings do not say it.

        Args:
            part: the clip.
            channels: of its file's sound.
        """
        if not part.audio_valid and self.missing_audio == "error":
            return False
        if channels > 2 and not re.search(rf"(^|; ){MIXING} ", part.streams):  # once averaged, and nothing was said
            return False
        words = part.streams if " of " in part.streams else "video 0 of 1, audio 0 of 1"
        asked = {"video": self.streams.video, "audio": self.streams.audio}
        if not part.audio_valid:  # there was no audio stream to choose
            del asked["audio"]
        return all(  # where none is asked for, the first, or one after it where it was passed over
            f"{kind} {number or 0} of " in words or (number is None and f"; {kind} 0" in words)
            for kind, number in asked.items()
        )

    def settings(self) -> Settings:
        """What the store says of it."""
        return Settings(
            segment_seconds=self.segment_seconds,
            framing=self.framing,
            extractors={
                "visual": describe(self.visual, self.framing),
                "audio": describe(self.audio, self.framing),
            },
            grid=self.visual.grid,
            visual_dim=self.visual.dim,
            audio_dim=self.audio.dim,
        )


def _processes(workers: int | None, recipe: Recipe) -> int:
    """As `worker_count`; where the number is left to it, no more than a GPU has room for."""
    number = worker_count(workers)
    if workers is not None or recipe.device == "cpu":
        return number
    return min(number, max(1, devices.free_bytes(devices.device(recipe.device)) // DEVICE_BYTES))


def _device_of_ray(device: str) -> str:
    """The device of a cluster's actors, which is the processor."""
    if device not in ("auto", "cpu"):
        raise AvelError(
            f"device {device!r} with engine ray",
            "device cpu: on a cluster the networks run on the processors",
            "leave out --device, or use --engine local on the machine that has the GPU",
        )
    return "cpu"


def _limits(seconds: float, memory: float) -> Limits:
    """The limits of a clip, of seconds and GiB. Raises AvelError if they leave nothing."""
    if not (seconds > 0 and memory > 0):
        raise AvelError(
            f"limits of {seconds:g} s and {memory:g} GiB for a clip", "more than nothing of both", "raise them"
        )
    return Limits(seconds, int(memory * 2**30))


def _finished(clips: Sequence[Clip], out: Path, recipe: Recipe, progress: Progress | None) -> dict[str, Part]:
    """The clips that an earlier run finished and whose media file is still the same, by id."""
    settings = recipe.settings()
    stored: dict[str, Part] = {}
    if (out / "store.json").exists():
        store = open_store(out)
        _refuse_other(store.settings, settings, out)
        stored = {clip.id: stored_part(store, clip) for clip in store.clips}
    known = [clip for clip in clips if clip.id in stored or part_file(out, clip.id).is_file()]
    finished: dict[str, Part] = {}
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda clip: (_digest(clip.path), _channels(clip.path, recipe.streams)), known)
        for done, (clip, (digest, channels)) in enumerate(zip(known, looks, strict=True), start=1):
            part = stored.get(clip.id)
            if part is None or part.source != digest or not recipe.made(part, channels):
                part = read_part(part_file(out, clip.id), settings, digest) if digest else None
            if part is not None and recipe.made(part, channels):
                finished[clip.id] = part
            if progress:
                progress("look", done, len(known))
    return finished


def _refuse_other(found: Settings, wanted: Settings, out: Path) -> None:
    """AvelError if the store in ``out`` was made in another way than is now asked for."""
    if found.framing != wanted.framing or found.segment_seconds != wanted.segment_seconds:
        raise AvelError(
            f"{out} holds features of segments of {found.segment_seconds:g} s, framing {found.framing!r}",
            f"segments of {wanted.segment_seconds:g} s, framing {wanted.framing!r}, as in this run",
            "choose another --out, or delete that folder",
        )
    for kind in ("visual", "audio"):
        there, here = found.extractors[kind]["tag"], wanted.extractors[kind]["tag"]
        if there != here:
            raise AvelError(
                f"{out} holds {kind} features of the extractor {there}",
                f"features of {here}, which this run would make",
                "choose another --out, or delete that folder",
            )
    if found.shaping != wanted.shaping:
        raise AvelError(
            f"{out} holds features of another origin or shape: {found}",
            f"those of this run: {wanted}",
            "choose another --out, or delete that folder",
        )


def _digest(path: Path, alive: Callable[[], None] = lambda: None) -> str:
    """Hex sha256 of a media file; "" where it cannot be read, which the extraction will report."""
    try:
        return file_sha256(path, alive)
    except OSError:
        return ""


def _channels(path: Path, streams: Streams) -> int:
    """Of a media file's sound; 0 where there is none, or where the file cannot be read."""
    try:
        return probe(path, streams=streams, silent=True).channels
    except AvelError:
        return 0


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _one_clip(clip: Clip, out: Path, recipe: Recipe, alive: Callable[[], None] = lambda: None) -> Part | str:
    """Extract a clip and write its part; returns the cause if the *clip* cannot be used.

    Args:
        alive: called with every block of the file that is read and every second of the video that is done.

    Raises:
        AvelError: the part cannot be written, which is no fault of the clip.
    """
    before = _state(clip.path)
    digest = _digest(clip.path, alive)
    try:
        features = extract_clip(
            clip.path, recipe.visual, recipe.audio, **recipe.choices(), threads=1, progress=lambda *_: alive()
        )
    except AvelError as error:
        return error.found
    if _state(clip.path) != before:  # its features would be kept for the file that it was
        return f"{clip.path} changed while it was read; is it still being written?"
    try:
        return write_part(
            part_file(out, clip.id),
            recipe.settings(),
            features.visual,
            features.audio,
            duration=features.duration,
            audio_valid=features.audio_valid,
            source=digest,
            bad_packets=features.bad_packets,
            streams="; ".join(f"{key} {words}" if key != "streams" else words for key, words in features.tags.items()),
        )
    except OSError as error:
        raise AvelError(
            f"could not write the features of {clip.id} to {out}: {error.strerror}",
            "a folder that can be written to",
            "see to its disk and permissions, and run the same command again: finished clips are kept",
        ) from error


def _prepare(out: Path, *names: Any) -> Work[Clip, Part]:
    """What a worker process does with a clip, its recipe made once."""
    recipe = Recipe.of(*names).on_device()
    return lambda clip, alive: _one_clip(clip, out, recipe, alive)


class _EnoughError(Exception):
    """A clip has been timed for long enough; not meant for anybody else.

    Args:
        seconds: of it that were done.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def _prepare_timing(*names: Any) -> Work[tuple[Clip, bool], tuple[float, float]]:
    """What a worker does for `estimate_seconds`: a clip's length, and if asked, the time that a second of it takes."""
    recipe = Recipe.of(*names).on_device()

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
                timed_seconds = extract_clip(
                    clip.path, recipe.visual, recipe.audio, **recipe.choices(), threads=1, progress=watch
                ).duration
                duration = timed_seconds
            except _EnoughError as enough:
                timed_seconds = enough.seconds
            return duration, (time.perf_counter() - start) / timed_seconds
        except AvelError as error:
            return error.found

    return look


def _are_failures(data: bytes) -> bool:
    return all(json.loads(line).keys() == {"id", "cause"} for line in data.splitlines())


def _write_failures(path: Path, failed: Sequence[Mapping[str, str]]) -> None:
    if failed:
        write_file(path, "".join(json.dumps(failure) + "\n" for failure in failed))
    else:
        path.unlink(missing_ok=True)

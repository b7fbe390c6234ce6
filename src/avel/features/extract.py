"""Extract many videos into one feature store, in many processes, resumable clip by clip.

Each finished clip is one file in a work folder in OUT. Once all clips are done, they are packed into the store in input
order. A later run on the same folder keeps every clip whose media file has not changed, and updates its labels and
splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from msgspec import structs

from avel.data.ave.files import CLASSES
from avel.data.store import WORK, Settings, StoredClip, open_store
from avel.data.store_writing import pack, part_file, read_part, write_part
from avel.data.table import Clip, classes_of
from avel.errors import AvelError
from avel.features.recipe import DEFAULT_RECIPE, BuiltRecipe, Recipe
from avel.features.segments import extract_clip
from avel.features.sources import read_source
from avel.files import (
    check_folder,
    file_sha256,
    held_alone,
    make_folder,
    make_work_folder,
    refuse_foreign,
    write_file,
)
from avel.types import Progress
from avel.workers import Work, check_ray, in_workers, on_ray, worker_count

FAILURES = "failures.jsonl"  # in the store


@dataclass(frozen=True)
class ExtractReport:
    """The result of an extraction.

    Attributes:
        done: number of clips decoded in this run.
        skipped: number of clips finished before.
        failed: ``{"id", "cause"}`` of each clip that the store lacks.
        store: folder of the store.
        choices: ``(id, words)`` for each clip with several streams, jumping time stamps, picture and sound of unequal
            length, or more than two audio channels: what was read.
        mute: ids of the clips without sound, with ``missing_audio="mark"``.
        device: where the extractors' networks ran; ``cpu`` if none is a network.
        left_out: for a source folder, each file that is not a video, and why.
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
    recipe: Recipe = DEFAULT_RECIPE,
    *,
    videos: str | Path | None = None,
    extra_splits: Collection[str] = (),
    workers: int | None = None,
    engine: str = "local",
    progress: Progress | None = None,
) -> ExtractReport:
    """Extract the features of many videos into a store.

    Clips that cannot be used are listed in ``OUT/failures.jsonl``, and the next run tries them again; the others go on.
    That includes clips that crash the process that decodes them or exceed a limit.

    Args:
        source: one or more CSVs of clips (video,start,end,label[,split]); or a folder of media files (see
            `avel.features.folders.videos_in`), a media file, a ``.txt`` list of media files, or AVE's Annotations.txt.
        out: folder of the store; an unfinished or older store with the same extractors is continued.
        recipe: how clips become features. On a GPU every process has its own networks; by default there are no more
            processes than the GPU has room for. Features from a GPU have the same tags as those from a CPU: they differ
            only by rounding.
        videos: folder of AVE's mp4 files, needed when ``source`` is AVE's Annotations.txt.
        extra_splits: names besides train, val and test that a CSV's column split may have. Their clips are stored, but
            training and evaluation use them only when asked to.
        workers: number of processes; by default one per processor, with ``ray`` of the cluster. With 0 this process
            does all the work, for debugging: without limits, and a crash ends the extraction.
        engine: where to work: ``local``, this machine; or ``ray``, the Ray cluster of RAY_ADDRESS (or one started
            here), whose machines must see the files under the same paths. Networks run on its CPUs.
        progress: called as ``progress("look" or "extract" or "pack", clips done, clips in all)``; "look" checks clips
            of an earlier run.

    Raises:
        AvelError: the source cannot be read; ``out`` is or contains an input folder, or holds features of another
            extractor or segment length, or a ``failures.jsonl`` that avel did not write; every clip failed; the
            extractors cannot be built; the engine is unknown or not installed; ``workers`` is negative or its processes
            cannot start; there is no such device, or ``ray`` cannot use it; another run is working in the folder; or
            the disk is full.
    """
    out = Path(out)
    sources = [source] if isinstance(source, str | Path) else source
    check_folder(out, *sources, *([videos] if videos else []))
    refuse_foreign(out / FAILURES, _are_failures)
    clips, labelled, left_out = read_source(source, videos=videos, extra_splits=extra_splits)
    if engine not in ("local", "ray"):
        raise AvelError(f"no engine {engine!r}", "local or ray", "choose one of them")
    if worker_count(workers) == 0 and engine == "ray":
        raise AvelError("0 workers on a Ray cluster", "at least 1", "leave it out for one per processor of the cluster")
    if engine == "ray":
        recipe = replace(recipe, device=_device_of_ray(recipe.device))
        check_ray()
    built = recipe.build()
    make_folder(out)
    with held_alone(out):
        finished = _finished(clips, out, built, progress)
        todo = [clip for clip in clips if clip.id not in finished]
        # AVE rounds its events up to ten seconds, however short a video is; a CSV may be off by a segment.
        leeway = recipe.segment_seconds if videos is None else np.inf
        with closing(_results(todo, out, built, engine, workers)) as results:
            failed = _collect(clips, out, results, finished, leeway, progress)
        lacking = {failure["id"] for failure in failed}
        packed = [  # with the current labels: features may be older
            structs.replace(
                finished[clip.id],
                video=clip.video or clip.id,
                spans=clip.spans if labelled else None,
                splits=clip.splits,
            )
            for clip in clips
            if clip.id not in lacking
        ]
        pack(out, built.settings, classes_of(clips) if videos is None else CLASSES, packed, progress)
    return ExtractReport(
        sum(clip.id not in lacking for clip in todo),
        len(clips) - len(todo),
        failed,
        out,
        [(clip.id, re.sub(r"(^|; )length ", r"\1length: ", clip.streams)) for clip in packed if clip.streams],
        [clip.id for clip in packed if not clip.audio_valid],
        built.recipe.device,
        left_out,
    )


def _results(
    todo: Sequence[Clip], out: Path, built: BuiltRecipe, engine: str, workers: int | None
) -> Generator[tuple[Clip, StoredClip | str], None, None]:
    """Extract clips with the chosen engine; yield each with its part, or the cause of its failure."""
    if not todo:
        return
    make_work_folder(out / WORK)
    if engine == "ray":
        yield from on_ray(todo, workers, _prepare, (out, built.recipe), built.limits)
    elif workers == 0:
        yield from in_workers(todo, 0, _work, (out, built))
    else:
        number = min(len(todo), built.processes(workers))
        yield from in_workers(todo, number, _prepare, (out, built.recipe), built.limits)


def _collect(
    clips: Sequence[Clip],
    out: Path,
    results: Iterator[tuple[Clip, StoredClip | str]],
    finished: dict[str, StoredClip],
    leeway: float,
    progress: Progress | None,
) -> list[dict[str, str]]:
    """Add the results to the finished clips, and write the list of failures, even if interrupted.

    Args:
        leeway: seconds by which an event may end after its clip.

    Returns:
        ``{"id", "cause"}`` of the failed clips, in the order of ``clips``.

    Raises:
        AvelError: every clip failed, or ``results`` raises it.
    """
    failures: dict[str, str] = {}
    skipped = len(finished)
    if progress and skipped < len(clips):
        progress("extract", skipped, len(clips))
    try:
        for done, (clip, result) in enumerate(results, start=1):
            if isinstance(result, StoredClip):
                if not (out / result.shard).is_file():
                    raise AvelError(
                        f"another machine wrote the features of {clip.id}, and they are not in {out} here",
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
    """Which event is past the end of its clip, in words; "" if none is."""
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


def _device_of_ray(device: str) -> str:
    """The device of a cluster's actors, which must be the CPU."""
    if device not in ("auto", "cpu"):
        raise AvelError(
            f"device {device!r} with engine ray",
            "device cpu: on a cluster the networks run on CPUs",
            "leave out --device, or use --engine local on the machine with the GPU",
        )
    return "cpu"


def _finished(clips: Sequence[Clip], out: Path, built: BuiltRecipe, progress: Progress | None) -> dict[str, StoredClip]:
    """The clips that an earlier run finished and whose media file is still the same, by id."""
    recipe, settings = built.recipe, built.settings
    stored: dict[str, StoredClip] = {}
    if (out / "store.json").exists():
        store = open_store(out)
        _refuse_other(store.settings, settings, out)
        stored = {clip.id: clip for clip in store.clips}
    known = [clip for clip in clips if clip.id in stored or part_file(out, clip.id).is_file()]
    finished: dict[str, StoredClip] = {}
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda clip: _digest(clip.path), known)
        for done, (clip, digest) in enumerate(zip(known, digests, strict=True), start=1):
            part = stored.get(clip.id)
            if part is None or part.source != digest or not _is_made(part, recipe):
                part = read_part(out, clip.id, settings, digest) if digest else None
            if part is not None and _is_made(part, recipe):
                finished[clip.id] = part
            if progress:
                progress("look", done, len(known))
    return finished


def _is_made(part: StoredClip, recipe: Recipe) -> bool:
    """Whether a finished clip's streams and missing audio, which settings do not cover, are as the recipe asks."""
    if not part.audio_valid and recipe.missing_audio == "error":
        return False
    words = part.streams if " of " in part.streams else "video 0 of 1, audio 0 of 1"
    asked = recipe.streams._asdict()
    if not part.audio_valid:  # there was no audio stream to choose
        del asked["audio"]
    return all(  # None means the first stream, or a later one if the first was skipped
        f"{kind} {number or 0} of " in words or (number is None and f"; {kind} 0" in words)
        for kind, number in asked.items()
    )


def _refuse_other(found: Settings, wanted: Settings, out: Path) -> None:
    """AvelError if the store in ``out`` was made with other settings."""
    if found.framing != wanted.framing or found.segment_seconds != wanted.segment_seconds:
        raise AvelError(
            f"{out} holds features with segments of {found.segment_seconds:g} s, framing {found.framing!r}",
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
    """Hex sha256 of a media file; "" if it cannot be read, which the extraction will report."""
    try:
        return file_sha256(path, alive)
    except OSError:
        return ""


def _state(path: Path) -> tuple[int, ...] | None:
    """A value that changes when the file does; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _one_clip(clip: Clip, out: Path, built: BuiltRecipe, alive: Callable[[], None] = lambda: None) -> StoredClip | str:
    """Extract a clip and write its part; return the cause if the *clip* cannot be used.

    Args:
        alive: called for every block of the file read and every second of video done.

    Raises:
        AvelError: the part cannot be written, which is not the clip's fault.
    """
    before = _state(clip.path)
    digest = _digest(clip.path, alive)
    try:
        features = extract_clip(
            clip.path, built.visual, built.audio, built.recipe, threads=1, progress=lambda *_: alive()
        )
    except AvelError as error:
        return error.found
    if _state(clip.path) != before:  # the features may belong to the earlier version
        return f"{clip.path} changed while it was read; is it still being written?"
    try:
        return write_part(out, clip.id, built.settings, features, digest)
    except OSError as error:
        raise AvelError(
            f"could not write the features of {clip.id} to {out}: {error.strerror}",
            "a folder that can be written to",
            "check its disk and permissions, and run the same command again: finished clips are kept",
        ) from error


def _prepare(out: Path, recipe: Recipe) -> Work[Clip, StoredClip]:
    """The work of a worker process, which builds its extractors once."""
    return _work(out, recipe.build())


def _work(out: Path, built: BuiltRecipe) -> Work[Clip, StoredClip]:
    """The same with extractors that are already built."""
    built.on_device()
    return lambda clip, alive: _one_clip(clip, out, built, alive)


def _are_failures(data: bytes) -> bool:
    return all(json.loads(line).keys() == {"id", "cause"} for line in data.splitlines())


def _write_failures(path: Path, failed: Sequence[Mapping[str, str]]) -> None:
    if failed:
        write_file(path, "".join(json.dumps(failure) + "\n" for failure in failed))
    else:
        path.unlink(missing_ok=True)

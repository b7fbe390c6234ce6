"""A localized video as files: labels in several formats, a picture and a page."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, replace
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import avel
from avel.errors import AvelError
from avel.features.audio_samples import read_waveform
from avel.features.recipe import FIRST_STREAMS, Streams
from avel.features.streams import probe
from avel.features.video import sample_frames
from avel.files import file_sha256, held_alone, make_folder, together
from avel.plots import frame_times, timeline_picture
from avel.timeline import Timeline
from avel.types import Span
from avel.web import clip_beside, timeline_page

WAVEFORM_RATE = 8000  # Hz; the picture shows an envelope
FRAME_WIDTH = 240  # pixels
FINGERPRINT = "fingerprint"  # the tag of a timeline that says what it was made from
_PATIENCE = 10  # seconds: another run has written its files, and only renames them
LONGEST_NAME = 200  # bytes: a file name may have 255, and suffixes follow


#: What a name gets in each format, by the names that ``avel localize --formats`` takes.
SUFFIXES = {
    "json": ".json",
    "csv": ".csv",
    "vtt": ".vtt",
    "audacity": ".txt",
    "png": ".png",
    "html": ".html",
    "elan": ".eaf",
    "label-studio": ".label-studio.json",
    "sed-eval": ".sed-eval.txt",
}
USUAL_FORMATS = ("json", "csv", "vtt", "audacity", "png")
_WRITERS: dict[str, Callable[[Timeline, Path], None]] = {
    "json": Timeline.to_json,
    "csv": Timeline.to_csv,
    "vtt": Timeline.to_vtt,
    "audacity": Timeline.to_audacity,
    "elan": Timeline.to_elan,
    "label-studio": Timeline.to_label_studio,
    "sed-eval": Timeline.to_sed_eval,
}


def present(
    timeline: Timeline, out: Path, name: str, formats: Sequence[str] = USUAL_FORMATS, *, overwrite: bool = False
) -> list[Path]:
    """Write a timeline as ``out/name`` with the suffix of each format. Either all files appear or none.

    Args:
        timeline: what `localize` returned. Its video must still exist.
        out: folder; it is made if it is missing.
        name: file name without suffix.
        formats: keys of `SUFFIXES`.
        overwrite: replace existing files. By default files of the same timeline are kept, and only missing ones are
            written.

    Returns:
        The files, in the order of `SUFFIXES`.

    Raises:
        AvelError: a file exists that is not this timeline's, the disk is full, or the video can no longer be read.
    """
    make_folder(out)
    files = {key: out / f"{name}{suffix}" for key, suffix in SUFFIXES.items() if key in formats}
    if not overwrite:
        finished(timeline.video, out, name, formats, timeline.tags.get(FINGERPRINT))
    with TemporaryDirectory() as folder, ExitStack() as alone, together(overwrite=overwrite) as now:
        for key, file in files.items():
            if key in _WRITERS:
                _WRITERS[key](timeline, file)
        picture = files.get("png", Path(folder) / "timeline.png")
        if "png" in files or "html" in files:
            draw(timeline, picture)
        if "html" in files:
            write_page(timeline, files["html"], now(picture))
        # Another run may have written there meanwhile. It waits from here until all files have appeared.
        alone.enter_context(held_alone(out, wait_seconds=_PATIENCE))
        if not overwrite:
            _refuse(file for key, file in files.items() if key in _WRITERS and not _same(file, now(file)))
    return list(files.values())


@dataclass(frozen=True)
class Presented:
    """What became of one of several videos: a timeline, or an error.

    Attributes:
        video: its file.
        name: of the files written, without suffix.
        timeline: what was found in it, without the attention; None if that failed.
        files: what was found, in the order of `SUFFIXES`.
        kept: an earlier run wrote them all.
        error: why it failed.
    """

    video: Path
    name: str
    timeline: Timeline | None = None
    files: Sequence[Path] = ()
    kept: bool = False
    error: AvelError | None = None


def present_all(
    videos: Sequence[Path],
    find: Callable[[Path], Timeline],
    out: Path,
    formats: Sequence[str] = USUAL_FORMATS,
    *,
    made_from: Mapping[str, Any],
    truth: Mapping[Path, Sequence[Span]] = MappingProxyType({}),
    overwrite: bool = False,
) -> Iterator[Presented]:
    """Localize videos and write what was found in each, as `present` does. Finished videos are kept.

    Whether the files of each video may be written is checked before any work.

    Args:
        videos: the media files.
        find: gives the timeline of one.
        out, formats, overwrite: as for `present`.
        made_from: what the timelines depend on beside their videos, as for `fingerprint`.
        truth: the true events of some of the videos.
    """
    todo: list[tuple[Presented, str]] = []
    for video, name in zip(videos, file_names(videos), strict=True):
        try:
            labelled = [astuple(span) for span in truth[video]] if video in truth else None
            mark = fingerprint(video, out, **made_from, truth=labelled)
            known = None if overwrite else finished(video, out, name, formats, mark)
            files = [out / f"{name}{suffix}" for key, suffix in SUFFIXES.items() if key in formats]
            todo.append((Presented(video, name, known, files, kept=True), mark))
        except AvelError as error:
            yield Presented(video, name, error=error)
    for planned, mark in todo:
        if planned.timeline is not None:
            yield planned
            continue
        video, name = planned.video, planned.name
        try:
            timeline = find(video)
            spans = tuple(truth[video]) if video in truth else None
            timeline = replace(timeline, truth=spans, tags={**timeline.tags, FINGERPRINT: mark})
            files = present(timeline, out, name, formats, overwrite=overwrite)
        except AvelError as error:
            yield Presented(video, name, error=error)
        else:
            yield Presented(video, name, replace(timeline, attention=None), files)


def index_name(videos: Sequence[Path]) -> str:
    """The name of the page over the pages of several videos, which is none of theirs."""
    return "videos.html" if "index" in file_names(videos) else "index.html"


def fingerprint(video: str | Path, out: str | Path, **made_from: Any) -> str:
    """The tag ``fingerprint`` of a timeline: a hash of the video's content and place, this version, and ``made_from``.

    Args:
        video: the media file; one that cannot be read counts as empty.
        out: folder that the timeline is written to, from which a CSV names the video.
        made_from: JSON values: the model or the labels, and the settings.
    """
    digest = ""
    with suppress(OSError):
        digest = file_sha256(video)
    place = os.path.relpath(os.path.realpath(video), os.path.realpath(out))
    content = json.dumps([avel.__version__, digest, place, made_from], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def finished(video: str | Path, out: Path, name: str, formats: Sequence[str], made_from: str | None) -> Timeline | None:
    """The timeline of an earlier run, if all files that `present` would write exist already; else None.

    Args:
        video: the media file.
        out, name, formats: as for `present`.
        made_from: the `fingerprint` of this run; None for any.

    Raises:
        AvelError: a file exists that this run would not write: it is of another run, was changed since, or avel did not
            write it.
    """
    files = {key: out / f"{name}{suffix}" for key, suffix in SUFFIXES.items() if key in formats}
    known, mark = None, None
    with suppress(AvelError):
        known = Timeline.from_json(out / f"{name}.json")
        mark = known.tags.get(FINGERPRINT)
    page_and_clip = {files["html"], clip_beside(Path(video), files["html"])} if "html" in files else set()
    there = [file for file in {*files.values(), *page_and_clip} if os.path.lexists(file)]
    if known is None or mark is None or made_from not in (None, mark):
        _refuse(there)
        return None
    with together(overwrite=False) as now:
        for key, file in files.items():
            if key in _WRITERS and file in there:
                # How a path is written depends on the working folder, which may have changed.
                _WRITERS[key](known if key == "json" else replace(known, video=os.fspath(video)), file)
        _refuse(file for key, file in files.items() if file in there and key in _WRITERS and not _same(file, now(file)))
        for file in page_and_clip.intersection(there):
            ours = mark.encode() in file.read_bytes() if file == files["html"] else _same(file, Path(video))
            _refuse([] if ours else [file])
        # Drop what was written for the comparison.
        return known if len(there) == len({*files.values(), *page_and_clip}) else None


def _same(file: Path, other: Path) -> bool:
    """Whether a file is missing or has the other's content. In JSON the path of the video may differ."""
    if not os.path.lexists(file):
        return True
    if not file.is_file():
        return False
    if os.path.samefile(file, other):
        return True
    if file.suffix != ".json":
        return file.stat().st_size == other.stat().st_size and file_sha256(file) == file_sha256(other)
    try:
        one, two = (json.loads(each.read_bytes()) for each in (file, other))
        return bool({**one, "video": ""} == {**two, "video": ""})
    except (ValueError, TypeError, RecursionError):
        return file.read_bytes() == other.read_bytes()  # a list, as of Label Studio


def _refuse(files: Iterable[Path]) -> None:
    """AvelError if there are any files."""
    names = sorted(map(str, files))
    if names:
        raise AvelError(
            f"{', '.join(names)} already {'exist' if names[1:] else 'exists'}, and this run would write something else",
            "no file of that name, or an unchanged one from a run with the same video, model and settings",
            "choose another --out, move the files away, or add --overwrite to replace them",
        )


def draw(timeline: Timeline, path: str | Path) -> None:
    """Draw a timeline with the frames and the sound of its video, which is read again; see `Timeline.plot`."""
    named, streams = timeline.tags.get("streams", ""), _streams(timeline)
    there = probe(timeline.video, streams=streams).streams
    if there != named.partition("; ")[0]:  # after that, which were passed over
        raise AvelError(
            f"{timeline.video} has other streams now than when it was localized: {there or 'one of each kind'}",
            named or "one video and one audio stream",
            "localize the file again",
        )
    frames = sample_frames(timeline.video, frame_times(timeline), FRAME_WIDTH, streams=streams)
    waveform = read_waveform(timeline.video, WAVEFORM_RATE, streams=streams)
    timeline_picture(timeline, frames, waveform, WAVEFORM_RATE, path)


def _streams(timeline: Timeline) -> Streams:
    """The streams of its video that were localized."""
    chosen = re.match(r"video (\d+) of .*, audio (\d+) of ", timeline.tags.get("streams", ""))
    return Streams(int(chosen[1]), int(chosen[2])) if chosen else FIRST_STREAMS


def write_page(timeline: Timeline, path: str | Path, picture: str | Path | None = None) -> None:
    """Write the page of a timeline with its picture, drawn here unless it is given; see `Timeline.to_html`."""
    with TemporaryDirectory() as folder:
        if picture is None:
            picture = Path(folder) / "timeline.png"
            draw(timeline, picture)
        start = probe(timeline.video, streams=_streams(timeline)).start
        timeline_page(timeline, timeline.video, path, picture=picture, start=start)


def file_names(videos: Sequence[Path]) -> list[str]:
    """A file name without suffix for each video: its stem, shortened if too long, numbered if several have the same.

    Bytes that are not UTF-8 are written as in a URL, ``caf%E9``, since not every disk accepts them. No two videos share
    a file, even on a disk that ignores case.
    """
    stems = [_shortened(video.stem) for video in videos]
    numbers = Counter(map(_key, stems))
    taken: set[str] = set()
    names: dict[int, str] = {}
    for index in sorted(range(len(stems)), key=lambda index: numbers[_key(stems[index])] > 1):  # the unique ones first
        stem = stems[index]
        plain = [stem] if numbers[_key(stem)] == 1 else []
        names[index] = next(
            name for name in chain(plain, (f"{stem}-{number}" for number in count(1))) if taken.isdisjoint(_all(name))
        )
        taken.update(_all(names[index]))
    return [names[index] for index in range(len(stems))]


def _shortened(stem: str) -> str:
    """A name in UTF-8 of at most LONGEST_NAME bytes. No two long names are shortened to the same."""
    stem = re.sub("[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", stem)
    if len(os.fsencode(stem)) <= LONGEST_NAME:
        return stem
    mark = "-" + hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
    while len(os.fsencode(stem + mark)) > LONGEST_NAME:
        stem = stem[:-1]
    return stem + mark


def _key(name: str) -> str:
    """Equal for names that a file system may treat as the same."""
    return unicodedata.normalize("NFC", name.casefold())


def _all(name: str) -> set[str]:
    """The files that may be written under a name."""
    return {_key(name + suffix) for suffix in SUFFIXES.values()}

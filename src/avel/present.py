"""A localized video as files: labels in several formats, a picture and a page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from avel.errors import AvelError
from avel.features.video import FIRST_STREAMS, Streams, probe, read_waveform, sample_frames
from avel.files import make_folder
from avel.plots import frame_times, timeline_picture
from avel.timeline import Timeline
from avel.web import timeline_page

WAVEFORM_RATE = 8000  # Hz; the picture shows an envelope
FRAME_WIDTH = 240  # pixels


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


def present(timeline: Timeline, out: Path, name: str, formats: Sequence[str] = USUAL_FORMATS) -> list[Path]:
    """Write a timeline as ``out/name`` with the suffix of each format.

    Args:
        timeline: what `localize` returned; its video is still there.
        out: folder, made where it is missing.
        name: file name without suffix.
        formats: keys of `SUFFIXES`.

    Returns:
        The files, in the order of `SUFFIXES`.

    Raises:
        AvelError: the disk is full, or the video cannot be read any more.
    """
    make_folder(out)
    files = {key: out / f"{name}{suffix}" for key, suffix in SUFFIXES.items() if key in formats}
    for key, file in files.items():
        if key in _WRITERS:
            _WRITERS[key](timeline, file)
    if "png" in files:
        draw(timeline, files["png"])
    if "html" in files:
        write_page(timeline, files["html"], files.get("png"))
    return list(files.values())


def draw(timeline: Timeline, path: str | Path) -> None:
    """Draw a timeline with the frames and the sound of its video, which is read once more; see `Timeline.plot`."""
    named = timeline.tags.get("streams", "")
    chosen = re.match(r"video (\d+) of .*, audio (\d+) of ", named)
    streams = Streams(int(chosen[1]), int(chosen[2])) if chosen else FIRST_STREAMS
    there = probe(timeline.video, streams=streams).streams
    if there != named:
        raise AvelError(
            f"{timeline.video} has other streams than when it was localized: {there or 'one of each kind'}",
            named or "one video and one audio stream",
            "localize the file again",
        )
    frames = sample_frames(timeline.video, frame_times(timeline), FRAME_WIDTH, streams=streams)
    waveform = read_waveform(timeline.video, WAVEFORM_RATE, streams=streams)
    timeline_picture(timeline, frames, waveform, WAVEFORM_RATE, path)


def write_page(timeline: Timeline, path: str | Path, picture: str | Path | None = None) -> None:
    """Write a timeline's page with its picture, which is drawn unless it is there already; see `Timeline.to_html`."""
    with TemporaryDirectory() as folder:
        if picture is None:
            picture = Path(folder) / "timeline.png"
            draw(timeline, picture)
        timeline_page(timeline, timeline.video, path, picture=picture)


def file_names(videos: Sequence[Path]) -> list[str]:
    """A file name without suffix for every video: its stem, numbered where two videos share one."""
    stems = Counter(video.stem for video in videos)
    seen: Counter[str] = Counter()
    names = []
    for video in videos:
        seen[video.stem] += 1
        names.append(video.stem if stems[video.stem] == 1 else f"{video.stem}-{seen[video.stem]}")
    return names

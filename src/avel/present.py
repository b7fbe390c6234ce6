"""A localized video as files: JSON, CSV, WebVTT, Audacity labels, a picture and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from avel.features.video import FIRST_STREAMS, Streams, read_waveform, sample_frames
from avel.files import make_folder
from avel.plots import frame_times, timeline_picture
from avel.timeline import Timeline
from avel.web import timeline_page

WAVEFORM_RATE = 8000  # Hz; the picture shows an envelope
FRAME_WIDTH = 240  # pixels


def present(
    timeline: Timeline, video: Path, out: Path, name: str, *, html: bool = False, streams: Streams = FIRST_STREAMS
) -> list[Path]:
    """Write ``out/name.{json,csv,vtt,txt,png}`` and, with ``html``, a page that plays the clip.

    Args:
        timeline: what `localize` returned.
        video: the file it came from.
        out: folder, made where it is missing.
        name: file name without suffix.
        html: write ``name.html`` too, with the clip beside it.
        streams: those that `localize` was asked for.

    Returns:
        The files, in the order written.

    Raises:
        AvelError: the disk is full, or the video cannot be read any more.
    """
    make_folder(out)
    files = [out / f"{name}{suffix}" for suffix in (".json", ".csv", ".vtt", ".txt", ".png")]
    timeline.to_json(files[0])
    timeline.to_csv(files[1])
    timeline.to_vtt(files[2])
    timeline.to_audacity(files[3])
    frames = sample_frames(video, frame_times(timeline), FRAME_WIDTH, streams=streams)
    waveform = read_waveform(video, WAVEFORM_RATE, streams=streams)
    timeline_picture(timeline, frames, waveform, WAVEFORM_RATE, files[4])
    if html:
        files.append(out / f"{name}.html")
        timeline_page(timeline, video, files[-1], picture=files[4])
    return files


def file_names(videos: Sequence[Path]) -> list[str]:
    """A file name without suffix for every video: its stem, numbered where two videos share one."""
    stems = Counter(video.stem for video in videos)
    seen: Counter[str] = Counter()
    names = []
    for video in videos:
        seen[video.stem] += 1
        names.append(video.stem if stems[video.stem] == 1 else f"{video.stem}-{seen[video.stem]}")
    return names

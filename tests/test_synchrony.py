"""Picture and sound on one clock, whatever container, codec, frame rate and sample rate carries them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import GreyMeans
from media import Pictures, Sound, remux, transcode, write_streams

from avel.features import AudioExtractor, VisualExtractor
from avel.features.clip import extract_clip

EVENTS = (0.3, 1.5, 3.7)  # seconds at which there is a flash and a click, of 0.2 s: in segments 0, 1 and 3
SEGMENTS = {0, 1, 3}


class Loudness:
    """An audio extractor that says how loud each sixteenth of a segment is."""

    kind, name, tag, options = "audio", "loudness", "loudness-0", {}
    sample_rate, dim = 16_000, 16

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        return np.sqrt((waveform.reshape(len(waveform), 16, -1) ** 2).mean(-1)).astype(np.float32)


def flash(time: float) -> np.ndarray:
    on = any(start - 1e-6 <= time < start + 0.2 for start in EVENTS)
    return np.full((32, 48, 3), 230 if on else 20, np.uint8)


def click(times: np.ndarray) -> np.ndarray:
    on = np.any([(times >= start) & (times < start + 0.2) for start in EVENTS], axis=0)
    return 0.8 * on * np.sin(2 * np.pi * 1000 * times)


CONTAINERS = [
    ("a.mp4", "libx264", "aac"),
    ("a.mov", "libx264", "pcm_s16le"),
    ("a.mkv", "libx264", "aac"),
    ("b.mkv", "ffv1", "flac"),
    ("a.webm", "libvpx", "libopus"),
    ("b.webm", "libvpx-vp9", "libopus"),
    ("a.ts", "libx264", "aac"),
    ("b.ts", "mpeg2video", "mp2"),
    ("a.mpg", "mpeg2video", "mp2"),
    ("a.avi", "mpeg4", "libmp3lame"),
    ("a.flv", "libx264", "aac"),
]
CASES = [
    (*container, rate, 48_000 if container[2] == "libopus" else 44_100) for container in CONTAINERS for rate in (25,)
]
CASES += [(*container, Fraction(30_000, 1001), 48_000) for container in CONTAINERS if container[0] != "a.flv"]
CASES += [
    ("a.mp4", "libx264", "aac", rate, 44_100) for rate in (10, Fraction(25, 2), Fraction(24_000, 1001), 50, 60, 120)
]
CASES += [("a.mp4", "libx264", "aac", 30, rate) for rate in (8_000, 11_025, 16_000, 22_050, 32_000, 96_000)]
CASES += [("a.mkv", "libx264", "pcm_s16le", 30, rate) for rate in (8_000, 96_000, 192_000)]


@pytest.mark.parametrize(("name", "video", "audio", "frame_rate", "sample_rate"), CASES)
def test_flash_and_click_land_in_the_same_segment(
    tmp_path: Path, name: str, video: str, audio: str, frame_rate: int | Fraction, sample_rate: int
) -> None:
    path = write_streams(tmp_path / name, Pictures(flash, 5, frame_rate, video), Sound(click, 5, sample_rate, audio))
    found = extract_clip(path, GreyMeans(), Loudness())
    seen, heard = found.visual[:, 0, 0] > 120, found.audio > 0.25
    assert found.bad_packets == 0 and len(seen) == 5
    assert set(np.flatnonzero(seen.any(1))) == set(np.flatnonzero(heard.any(1))) == SEGMENTS
    for segment in SEGMENTS:  # a sixteenth of a second at most, and what a frame lasts
        apart = abs(int(seen[segment].argmax()) - int(heard[segment].argmax()))
        assert apart <= 1 + np.ceil(16 / float(frame_rate))


REMUXED = {
    "moov_last.mp4": lambda source, out: remux(source, out),
    "moov_first.mp4": lambda source, out: remux(source, out, {"movflags": "+faststart"}),
    "matroska.mkv": lambda source, out: remux(source, out),
    "mpegts.ts": lambda source, out: remux(source, out),
    "webm.webm": lambda source, out: transcode(source, out, "libvpx", "libopus", 48_000),
}


@pytest.mark.parametrize("name", REMUXED)
def test_a_real_clip_in_every_container(
    real_data: Path, tmp_path: Path, visual: VisualExtractor, audio: AudioExtractor, name: str
) -> None:
    source = real_data / "media" / "BjCEufrlXm4.mp4"
    path = REMUXED[name](source, tmp_path / name)
    if name.endswith(".mp4"):
        data = path.read_bytes()
        assert (data.index(b"moov") < data.index(b"mdat")) == (name == "moov_first.mp4")
    wanted, found = (extract_clip(each, visual, audio) for each in (source, path))
    assert found.bad_packets == 0 and found.visual.shape == (10, 7, 7, visual.dim) and found.audio_valid
    assert found.duration == pytest.approx(wanted.duration, abs=0.1)
    # The same packets on the same clock are the same. Matroska and MPEG-TS do not say that the first 23 ms of AAC are
    # to be left out, so that the clock starts earlier and other frames are the nearest. WebM is coded anew.
    bound = {".mp4": 0.0, ".mkv": 0.4, ".ts": 0.4, ".webm": 0.6}[path.suffix]
    for a, b in ((found.visual, wanted.visual), (found.audio, wanted.audio)):
        a, b = a.astype(np.float64).reshape(10, -1), b.astype(np.float64).reshape(10, -1)
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)
        nearest = ((a[:, None] - b) ** 2).sum(-1).argmin(1)  # each segment is most like the one of its own time
        assert nearest.tolist() == list(range(10))

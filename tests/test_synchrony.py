"""Picture and sound on one clock, whatever container, codec, frame rate and sample rate carries them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GreyMeans
from media import Pictures, Sound, remux, transcode, write_streams

from avel.data.store_writing import ClipFeatures
from avel.features import AudioExtractor, VisualExtractor
from avel.features.segments import extract_clip

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


def large_flash(time: float) -> np.ndarray:
    """For x265, which aborts at pictures of 48 x 32."""
    return np.full((64, 64, 3), flash(time)[0, 0, 0], np.uint8)


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
CASES: list[Any] = [(*container, 25, 48_000 if container[2] == "libopus" else 44_100) for container in CONTAINERS]
CASES += [  # slow: both rates are below in mp4, and each container above at others
    pytest.param(*container, Fraction(30_000, 1001), 48_000, marks=pytest.mark.slow)
    for container in CONTAINERS
    if container[0] not in ("a.flv", "a.mp4")
]
CASES += [("a.mp4", "libx264", "aac", Fraction(30_000, 1001), 48_000)]
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
    assert_in_place(path, float(frame_rate))


def assert_in_place(path: Path, frame_rate: float) -> None:
    """Assert that flash and click are in the segments of EVENTS, and at the same moment."""
    found = extract_clip(path, GreyMeans(), Loudness())
    seen, heard = found.visual[:, 0, 0] > 120, found.audio > 0.25
    assert found.bad_packets == 0 and len(seen) == 5 and "time stamps" not in found.tags
    assert set(np.flatnonzero(seen.any(1))) == set(np.flatnonzero(heard.any(1))) == SEGMENTS
    for segment in SEGMENTS:  # a sixteenth of a second at most, and what a frame lasts
        apart = abs(int(seen[segment].argmax()) - int(heard[segment].argmax()))
        assert apart <= 1 + np.ceil(16 / frame_rate)


UNEVEN = [index / 25 for index in range(125) if index % 7 not in (2, 3)]

#: name of the file, how its pictures and its sound are made, options of the container
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "variable frame rate, mp4": ("a.mp4", {"times": UNEVEN}, {}, {}),
    "variable frame rate, mkv": ("a.mkv", {"times": UNEVEN}, {}, {}),
    "HEVC of 10 bits": ("a.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le", "picture": large_flash}, {}, {}),
    "H.264 of 10 bits": ("a.mp4", {"pix_fmt": "yuv420p10le"}, {}, {}),
    "H.264 with B frames": ("a.mp4", {"options": {"preset": "ultrafast", "bf": "3", "crf": "5"}}, {}, {}),
    "H.264 with B frames, ts": ("a.ts", {"options": {"preset": "ultrafast", "bf": "3", "crf": "5"}}, {}, {}),
    "AV1": ("a.mkv", {"codec": "libsvtav1", "options": {"preset": "12"}}, {}, {}),
    "MPEG-4 with MP3": ("a.mkv", {"codec": "mpeg4"}, {"codec": "libmp3lame"}, {}),
    "MJPEG": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, {"codec": "pcm_s16le"}, {}),
    "ProRes": ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, {"codec": "pcm_s24le"}, {}),
    "MXF": ("a.mxf", {"codec": "mpeg2video"}, {"codec": "pcm_s16le"}, {}),
    "WMV": ("a.wmv", {"codec": "wmv2"}, {"codec": "libmp3lame"}, {}),
    "ASF": ("a.asf", {"codec": "msmpeg4v3"}, {"codec": "libmp3lame"}, {}),
    "VOB": ("a.vob", {"codec": "mpeg2video"}, {"codec": "ac3"}, {}),
    "3GP": ("a.3gp", {}, {"rate": 16_000}, {}),
    "M4V": ("a.m4v", {}, {}, {}),
    "M2TS": ("a.m2ts", {}, {"codec": "ac3"}, {}),
    "AC-3 of 5.1 channels": ("a.mkv", {}, {"codec": "ac3", "layout": "5.1"}, {}),
    "5.1 channels of 96 kHz": ("a.mkv", {}, {"codec": "pcm_s24le", "layout": "5.1", "rate": 96_000}, {}),
    "AAC of 5.1 channels": ("a.mp4", {}, {"layout": "5.1"}, {}),
    "FLAC in mp4": ("a.mp4", {}, {"codec": "flac"}, {}),
    "ALAC": ("a.mov", {}, {"codec": "alac"}, {}),
    "Opus in mp4": ("a.mp4", {}, {"codec": "libopus"}, {}),
    "mu-law of 8 kHz": ("a.mov", {}, {"codec": "pcm_mulaw", "rate": 8_000}, {}),
    "ADPCM": ("a.avi", {"codec": "mpeg4"}, {"codec": "adpcm_ms", "rate": 22_050}, {}),
    "MP3 in mp4": ("a.mp4", {}, {"codec": "libmp3lame"}, {}),
    "index first": ("a.mp4", {}, {}, {"movflags": "+faststart"}),
    "fragments": ("a.mp4", {}, {}, {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "fragments without a start": ("a.mp4", {}, {}, {"movflags": "frag_every_frame+empty_moov+delay_moov"}),
    "no edit list": ("a.mp4", {}, {"codec": "pcm_s16le"}, {"use_editlist": "0"}),
    "no duration": ("a.mkv", {}, {}, {"live": "1"}),
    "FLV without a duration": ("a.flv", {}, {"rate": 44_100}, {"flvflags": "no_duration_filesize"}),
    "stamps that wrap": ("a.ts", {}, {}, {"output_ts_offset": "95441"}),
    "stamps that start late": ("a.ts", {}, {}, {"output_ts_offset": "7000"}),
    "stamps that start late, mkv": ("a.mkv", {}, {}, {"output_ts_offset": "7000"}),
    "stamps that start late, mp4": ("a.mp4", {}, {}, {"output_ts_offset": "70"}),
    "HLS": ("a.m3u8", {}, {}, {"hls_time": "1", "hls_list_size": "0"}),
    "interlaced": ("a.ts", {"codec": "mpeg2video", "interlaced": True}, {"codec": "mp2"}, {}),
    "turned on its side": ("a.mp4", {"turn": (90, False, False)}, {}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files_in_which_events_are_in_their_second(tmp_path: Path, kind: str) -> None:
    name, pictures, sound, options = KINDS[kind]
    path = tmp_path / name
    plans = (
        Pictures(**{"picture": flash, "seconds": 5, "rate": 25, **pictures}),
        Sound(click, **{"seconds": 5, **sound}),
    )
    write_streams(path, *plans, options=options)
    assert_in_place(path, 10 if "times" in pictures else 25)


def test_streams_that_start_late(tmp_path: Path) -> None:
    for name, codec in (("a.mkv", "flac"), ("a.mp4", "aac"), ("a.ts", "mp2"), ("a.mov", "pcm_s16le")):
        late = Sound(lambda times: click(times + 1.2), 3.8, codec=codec, start=1.2)
        path = write_streams(tmp_path / name, Pictures(flash, 5, 25), late)
        found = extract_clip(path, GreyMeans(), Loudness())
        assert set(np.flatnonzero((found.audio > 0.25).any(1))) == {1, 3}
        assert set(np.flatnonzero((found.visual[:, 0, 0] > 120).any(1))) == SEGMENTS


REMUXED = {
    "moov_last.mp4": lambda source, out: remux(source, out),
    "moov_first.mp4": lambda source, out: remux(source, out, {"movflags": "+faststart"}),
    "matroska.mkv": lambda source, out: remux(source, out),
    "mpegts.ts": lambda source, out: remux(source, out),
    "webm.webm": lambda source, out: transcode(source, out, "libvpx", "libopus", 48_000),
}


@pytest.fixture(scope="module")
def wanted(real_data: Path, visual: VisualExtractor, audio: AudioExtractor) -> ClipFeatures:
    """What the real clip gives as it is."""
    return extract_clip(real_data / "media" / "BjCEufrlXm4.mp4", visual, audio)


#: By default in one of them: the clips above, which are shorter, are in all.
@pytest.mark.parametrize(
    "name", [name if name == "mpegts.ts" else pytest.param(name, marks=pytest.mark.slow) for name in REMUXED]
)
def test_a_real_clip_in_every_container(
    real_data: Path, tmp_path: Path, visual: VisualExtractor, audio: AudioExtractor, wanted: ClipFeatures, name: str
) -> None:
    source = real_data / "media" / "BjCEufrlXm4.mp4"
    path = REMUXED[name](source, tmp_path / name)
    if name.endswith(".mp4"):
        data = path.read_bytes()
        assert (data.index(b"moov") < data.index(b"mdat")) == (name == "moov_first.mp4")
    found = extract_clip(path, visual, audio)
    assert found.bad_packets == 0 and found.visual.shape == (10, 7, 7, visual.dim) and found.audio_valid
    assert found.duration == pytest.approx(wanted.duration, abs=0.1)
    bound = {".mp4": 0.0, ".mkv": 1e-3, ".ts": 1e-3, ".webm": 0.6}[path.suffix]  # WebM is coded anew
    for a, b in ((found.visual, wanted.visual), (found.audio, wanted.audio)):
        a, b = a.astype(np.float64).reshape(10, -1), b.astype(np.float64).reshape(10, -1)
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)
        nearest = ((a[:, None] - b) ** 2).sum(-1).argmin(1)  # each segment is most like the one of its own time
        assert nearest.tolist() == list(range(10))

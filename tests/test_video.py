"""Decoding: which frames are chosen, where sound is placed, what it is mixed from."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import grey_of, write_video

from avel.errors import AvelError
from avel.features.audio_samples import AudioTrack, read_waveform
from avel.features.streams import probe
from avel.features.video import FrameChooser, Scaler, open_media, sample_frames, segment_times


def nearest_before(frames: list[float], time: float) -> int:
    """The rule in plain words: the last frame that is not after the time; before the first, the first."""
    return max([index for index, frame in enumerate(frames) if frame <= time + 1e-6], default=0)


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=60, unique=True).map(sorted),
    st.lists(st.integers(0, 6000), max_size=40).map(sorted),
)
def test_frames_nearest_before(frames: list[int], wanted: list[int]) -> None:
    seconds = [frame / 1000 for frame in frames]
    times = [time / 1000 for time in wanted]
    chooser = FrameChooser(iter(times))
    chosen: list[int] = []
    for index, time in enumerate(seconds):
        chosen += [index - 1] * chooser.push(time)
    chosen += [len(frames) - 1] * (len(times) - len(chosen))  # the last is shown to the end
    assert chosen == [nearest_before(seconds, time) for time in times]


@given(st.sampled_from([0.5, 1.0, 2.0, 0.96]), st.sampled_from([24, 25, 30, 12.5, 29.97, 60]))
def test_frames_of_segments(segment_seconds: float, rate: float) -> None:
    chooser = FrameChooser(segment_times(segment_seconds, 16))
    frames = [index / rate for index in range(int(rate * 4))]
    chosen: list[int] = []
    for index, time in enumerate(frames):
        chosen += [index - 1] * chooser.push(time)
    for slot, index in enumerate(chosen):
        t, i = divmod(slot, 16)
        assert index == nearest_before(frames, (t + i / 16) * segment_seconds)


def test_segment_times() -> None:
    assert list(islice(segment_times(1.0, 16), 15, 18)) == [15 / 16, 1.0, 17 / 16]
    assert list(islice(segment_times(2.0, 4), 5)) == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_probe(tiny_video: Path) -> None:
    info = probe(tiny_video)
    assert info.frame_rate == 10
    assert info.duration == pytest.approx(3, abs=0.1)


def test_pictures_are_those_of_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    times = [0.0, 0.05, 0.1, 0.75, 1.59, 2.9, 8.0]
    found = sample_frames(path, times, 32).mean((1, 2, 3))
    assert np.abs(found - [grey_of(k) for k in (0, 0, 1, 7, 15, 29, 29)]).max() < 3
    assert sample_frames(path, [], 32).shape == (0, 24, 32, 3)


def test_pictures_at_uneven_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", times=[0, 0.1, 0.9, 1.0, 2.8])
    found = sample_frames(path, [0.5, 0.95, 2.0, 2.85], 32).mean((1, 2, 3))
    assert np.abs(found - [grey_of(k) for k in (1, 2, 3, 4)]).max() < 3


def test_every_frame_once_in_order_on_any_threads(tiny_video: Path) -> None:
    seen = []
    for threads in (1, 2):
        with open_media(tiny_video, threads=threads) as media:
            frames = [(t, f) for t, f in media.decode() if isinstance(f, av.VideoFrame)]
            assert media.video_end == pytest.approx(3.0, abs=0.01) and media.bad_packets == 0
        assert [t for t, _ in frames] == pytest.approx([k / 10 for k in range(30)])
        seen.append([f.to_ndarray(format="rgb24") for _, f in frames])
    assert np.array_equal(*seen)


def test_scaler_keeps_channels_and_colours_in_order() -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:, 0] = 200
    picture[24:, :, 2] = 100
    scaled = Scaler(16, 16)(av.VideoFrame.from_ndarray(picture, format="rgb24"))
    assert scaled.shape == (16, 16, 3) and scaled.dtype == np.uint8
    assert scaled[2, 12].tolist() == [200, 0, 0] and scaled[12, 2].tolist() == [0, 0, 100]


def pitch(wave: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


@pytest.mark.parametrize("name", ["late.mov", "late.mkv"])
def test_sound_that_starts_late_is_placed_at_its_time(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, audio_codec="pcm_s16le", audio_start=1.0, audio_seconds=2.0)
    wave = read_waveform(path, 16_000)
    assert len(wave) == pytest.approx(48_000, abs=200)
    assert abs(wave[:15_900]).max() < 0.02
    assert abs(wave[16_200:17_000]).max() > 0.45
    assert pitch(wave[20_000:44_000], 16_000) == pytest.approx(440, abs=1)


def test_pictures_that_start_late_share_the_clock(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", times=[1 + k / 10 for k in range(20)], audio_codec="pcm_s16le")
    found = sample_frames(path, [0.5, 1.05, 1.95], 32).mean((1, 2, 3))
    assert np.abs(found - [grey_of(k) for k in (0, 0, 9)]).max() < 3  # before the first picture, the first
    assert probe(path).duration == pytest.approx(3, abs=0.1)


def sound_frame(samples: np.ndarray, rate: int, form: str, layout: str) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples, format=form, layout=layout)
    frame.sample_rate = rate
    return frame


@pytest.mark.parametrize(
    ("form", "kind", "zero", "full"),
    [("s16", np.int16, 0, 32768), ("u8", np.uint8, 128, 128), ("s32", np.int32, 0, 2**31), ("flt", np.float32, 0, 1)],
)
@pytest.mark.parametrize("planar", [False, True])
def test_channels_are_averaged_at_full_scale_one(form: str, kind: type, zero: int, full: int, planar: bool) -> None:
    left, right = 0.5, -0.25
    channels = np.array([[left], [right]]) * full + zero
    samples = np.repeat(channels, 16_000, axis=1).astype(kind)
    packed = samples if planar else samples.T.reshape(1, -1)
    track = AudioTrack(16_000)
    frame = sound_frame(np.ascontiguousarray(packed), 16_000, form + "p" * planar, "stereo")
    wave = np.concatenate([track.push(0.0, frame), track.finish()])
    assert len(wave) == 16_000 and wave.dtype == np.float32
    assert np.abs(wave - (left + right) / 2).max() < 0.01


def test_gaps_are_silent_and_overlaps_are_dropped() -> None:
    ones = np.full((1, 800), 0.5, np.float32)

    def frame() -> av.AudioFrame:
        return sound_frame(ones, 8_000, "flt", "mono")

    gap = AudioTrack(8_000)
    wave = np.concatenate([gap.push(0.0, frame()), gap.push(0.3, frame()), gap.finish()])
    assert wave.shape == (3200,) and (wave[:800] == 0.5).all() and not wave[800:2400].any() and (wave[2400:] > 0).all()
    overlap = AudioTrack(8_000)
    wave = np.concatenate([overlap.push(0.0, frame()), overlap.push(0.05, frame()), overlap.finish()])
    assert wave.shape == (1200,)
    rounded = AudioTrack(8_000)  # a time stamp rounded to 10 ms moves nothing
    wave = np.concatenate([rounded.push(0.0, frame()), rounded.push(0.109, frame()), rounded.finish()])
    assert wave.shape == (1600,)


def test_a_change_of_rate_within_the_sound() -> None:
    track = AudioTrack(16_000)
    pieces = []
    for index, rate in enumerate((8_000, 48_000, 16_000)):
        tone = np.sin(2 * np.pi * 500 * np.arange(rate) / rate).astype(np.float32)
        pieces.append(track.push(float(index), sound_frame(tone[None], rate, "flt", "mono")))
    wave = np.concatenate([*pieces, track.finish()])
    assert len(wave) == pytest.approx(48_000, abs=3)
    for index in range(3):
        assert pitch(wave[16_000 * index + 500 : 16_000 * index + 15_500], 16_000) == pytest.approx(500, abs=2)


@pytest.mark.parametrize("name", ["12:30.mp4", "file:z.mp4", "concat:a|b.mp4", "http:host.mp4", "a%03d.mp4", "-a.mp4"])
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("z.mp4"), seconds=1)
    Path("z.mp4").rename(name)
    assert probe(name).duration == pytest.approx(1, abs=0.1)
    assert probe(tmp_path / name).duration == pytest.approx(1, abs=0.1)
    with pytest.raises(AvelError, match="no such file"):
        probe("file:nothing.mp4")


def test_a_playlist_names_files_of_this_machine_alone(tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(AvelError):
        probe(path)

"""Every real file has its outcome written down here: its features, or which error; alone and muxed with one another."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import EndsOfSound, GreyMeans
from media import Pictures, Sound, write_streams

from avel.errors import AvelError
from avel.features import AudioExtractor, VisualExtractor
from avel.features.audio_samples import read_waveform
from avel.features.recipe import Recipe
from avel.features.segments import extract_clip
from avel.features.streams import MediaInfo, probe
from avel.features.video import sample_frames


@dataclass(frozen=True)
class Outcome:
    """What becomes of a file.

    Attributes:
        error: part of the message that refuses it; "" where it gives features.
        segments: of its features.
        marked: the same with ``missing_audio="mark"``; 0 where it is refused then too.
        frame_rate: pictures a second.
    """

    error: str = ""
    segments: int = 0
    marked: int = 0
    frame_rate: float = 0.0


NO_SOUND, NO_PICTURES, STILL = "has no audio track", "has no video track", "is a still picture"

OUTCOMES = {
    "BjCEufrlXm4.mp4": Outcome(segments=10, marked=10, frame_rate=359 / 12),  # H.264, AAC stereo
    "av1_video.mkv": Outcome(NO_SOUND, marked=5, frame_rate=25),
    "h265_video.mp4": Outcome(NO_SOUND, marked=1, frame_rate=10),
    "bt709_full_range.mp4": Outcome(NO_SOUND, marked=1, frame_rate=30),
    **{
        name: Outcome(NO_PICTURES)
        for name in ("bird_audio.wav", "car_audio.wav", "cat_3-95694-A-5.wav", "dog_audio.wav")
    },
    **{
        f"{name}.jpg": Outcome(STILL) for name in ("bird_image", "car_image", "cars_1", "cat_1", "clock_1", "dog_image")
    },
}


def test_every_file_has_an_outcome(real_data: Path) -> None:
    assert {file.name for file in (real_data / "media").iterdir()} == set(OUTCOMES)


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.parametrize("missing_audio", ["error", "mark"])
def test_the_outcome(
    real_data: Path, visual: VisualExtractor, audio: AudioExtractor, name: str, missing_audio: str
) -> None:
    path, wanted = real_data / "media" / name, OUTCOMES[name]
    segments = wanted.marked if missing_audio == "mark" else wanted.segments
    if not segments:
        with pytest.raises(AvelError) as error:
            extract_clip(path, visual, audio, Recipe(missing_audio=missing_audio))
        assert error.value.found.startswith(f"{path} {wanted.error}") and error.value.expected and error.value.do
        return
    found = extract_clip(path, visual, audio, Recipe(missing_audio=missing_audio))
    assert found.visual.shape == (segments, 7, 7, visual.dim) and found.audio.shape == (segments, audio.dim)
    assert found.audio_valid == bool(wanted.segments) == bool(np.any(found.audio))
    assert found.bad_packets == 0 and found.streams == "" and np.isfinite(found.visual).all()
    assert found.visual.astype(np.float32).std() > 0.1
    info: MediaInfo = probe(path, silent=missing_audio == "mark")
    assert info.frame_rate == pytest.approx(wanted.frame_rate)


def test_pictures_and_sounds_alone_can_be_looked_at_and_heard(real_data: Path) -> None:
    for name in ("av1_video.mkv", "h265_video.mp4", "bt709_full_range.mp4"):
        frames = sample_frames(real_data / "media" / name, [0.0, 0.5], 64)
        assert frames.shape[0] == 2 and frames.std() > 10
    for name, seconds in (("bird", 5.0), ("car", 5.0), ("dog", 2.61)):
        wave = read_waveform(real_data / "media" / f"{name}_audio.wav", 16_000)
        assert abs(wave).max() > 0.1 and len(wave) / 16_000 == pytest.approx(seconds, abs=0.01)


def picture(path: Path, height: int = 240) -> np.ndarray:
    """A still as an array of that height, of even width."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    return frame.to_ndarray(format="rgb24", height=height, width=round(height * frame.width / frame.height / 2) * 2)


@pytest.mark.parametrize(("thing", "seconds", "segments"), [("bird", 5.0, 5), ("car", 5.0, 5), ("dog", 2.61, 3)])
def test_a_real_picture_with_its_real_sound(
    real_data: Path,
    tmp_path: Path,
    visual: VisualExtractor,
    audio: AudioExtractor,
    thing: str,
    seconds: float,
    segments: int,
) -> None:
    still = picture(real_data / "media" / f"{thing}_image.jpg")
    wave = read_waveform(real_data / "media" / f"{thing}_audio.wav", 44_100)
    path = write_streams(
        tmp_path / "a.mp4",
        Pictures(lambda time: still, len(wave) / 44_100, 25),
        Sound(lambda times: wave[: len(times)], len(wave) / 44_100, 44_100),
    )
    found = extract_clip(path, visual, audio)
    assert found.duration == pytest.approx(seconds, abs=0.1) and len(found.visual) == segments
    heard = read_waveform(path, 44_100)
    length = min(len(wave), len(heard))
    assert np.corrcoef(wave[:length], heard[:length])[0, 1] > 0.95  # the same sound at the same time
    (seen,) = sample_frames(path, [seconds / 2], still.shape[1])
    assert np.abs(seen.astype(int) - still).mean() < 6


@pytest.mark.parametrize("name", ["av1_video.mkv", "h265_video.mp4", "bt709_full_range.mp4"])
def test_real_pictures_with_a_real_sound_muxed_in(real_data: Path, tmp_path: Path, name: str) -> None:
    """The packets of the pictures as they are, beside PCM of the dog: the shorter of both counts."""
    source, out = real_data / "media" / name, tmp_path / "a.mkv"
    wave = read_waveform(real_data / "media" / "dog_audio.wav", 48_000)
    with av.open(str(source)) as there, av.open(str(out), "w") as here:
        video = here.add_stream_from_template(there.streams.video[0], opaque=True)
        sound = here.add_stream("pcm_s16le", rate=48_000, layout="mono")
        packets = [packet for packet in there.demux(video=0) if packet.dts is not None]
        frame = av.AudioFrame.from_ndarray((wave * 32_767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        here.mux(sound.encode(frame))
        for packet in packets:
            packet.stream = video
            here.mux(packet)
    found = extract_clip(out, GreyMeans(), EndsOfSound())
    wanted = min(OUTCOMES[name].marked, 2.61)
    assert found.duration == pytest.approx(wanted, abs=0.1) and len(found.visual) == max(1, round(wanted))
    alone = extract_clip(source, GreyMeans(), EndsOfSound(), Recipe(missing_audio="mark"))
    assert np.array_equal(found.visual, alone.visual[: len(found.visual)])

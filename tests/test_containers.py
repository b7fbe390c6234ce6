"""One clip gives one answer in every container, and what a file promises is kept by the streams that are taken."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import EndsOfSound, GreyMeans
from media import Pictures, Sound, cut, remux, write_streams
from test_media_errors import damaged
from test_synchrony import Loudness

from avel import cli
from avel.data.store import open_store
from avel.errors import AvelError
from avel.features import AudioExtractor, VisualExtractor
from avel.features.audio_samples import read_waveform
from avel.features.extract import extract
from avel.features.recipe import Recipe, Streams
from avel.features.segments import extract_clip
from avel.features.streams import probe
from avel.features.video import open_media, sample_frames

NOISE = np.random.default_rng(0).normal(0, 0.2, 500_000)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def grey(time: float) -> np.ndarray:
    return np.full((64, 64, 3), 20 + int(time * 60 + 1e-6) % 200, np.uint8)


def noise(times: np.ndarray) -> np.ndarray:
    return NOISE[: len(times)]


def clip(path: Path, rate: int | Fraction = 25, sound_rate: int = 48_000, codec: str = "aac", **more: Any) -> Path:
    """Pictures that change at each of them, in B frames, and noise."""
    options = {"preset": "ultrafast", "crf": "5", "bf": "2", "b-adapt": "0"}
    pictures = Pictures(grey, **{"seconds": 2.6, "rate": rate, "options": options, **more.get("pictures", {})})
    return write_streams(path, pictures, Sound(noise, **{"seconds": 2.6, "rate": sound_rate, "codec": codec}))


def assert_alike(path: Path, other: Path, visual: Any, audio: Any) -> None:
    """Assert that two files give the same pictures, sound and features."""
    one, two = (extract_clip(each, visual, audio) for each in (path, other))
    assert one.visual.shape == two.visual.shape and one.duration == pytest.approx(two.duration, abs=1e-3)
    assert np.abs(one.visual.astype(float) - two.visual).max() <= 1e-3
    assert np.abs(one.audio - two.audio).max() <= 1e-3
    times = [k / 7 for k in range(int(one.duration * 7))]
    assert np.array_equal(sample_frames(path, times, 16), sample_frames(other, times, 16))
    heard = [read_waveform(each, 16_000) for each in (path, other)]
    length = min(map(len, heard))
    assert max(map(len, heard)) - length < 20 and np.abs(heard[0][:length] - heard[1][:length]).max() <= 1e-3


@pytest.mark.parametrize(
    ("rate", "sound_rate", "codec"),
    [
        pytest.param(25, 48_000, "aac", marks=pytest.mark.slow),
        pytest.param(30, 44_100, "aac", marks=pytest.mark.slow),
        (Fraction(30_000, 1001), 44_100, "aac"),
        (Fraction(30_000, 1001), 48_000, "libmp3lame"),
        (Fraction(24_000, 1001), 48_000, "ac3"),
    ],
)
def test_the_same_packets_in_any_container_are_the_same_features(
    tmp_path: Path, rate: int | Fraction, sound_rate: int, codec: str
) -> None:
    source = clip(tmp_path / "a.mp4", rate, sound_rate, codec)
    for name in ("b.mov", "b.mkv", "b.ts", "b.flv", "b.m2ts"):
        assert_alike(source, remux(source, tmp_path / name), GreyMeans(), Loudness())
    if codec == "aac":
        assert_alike(source, remux(source, tmp_path / "fragments.mp4", FRAGMENTS), GreyMeans(), Loudness())


def test_the_packets_of_an_avi_are_the_same_features_elsewhere(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.avi", 25, 44_100, "libmp3lame", pictures={"codec": "mpeg4"})
    for name in ("b.mkv", "b.mp4"):
        assert_alike(source, remux(source, tmp_path / name), GreyMeans(), Loudness())


@pytest.mark.parametrize("name", ["b.mkv", "b.ts", "fragments.mp4"])
def test_the_default_features_are_the_same_in_any_container(
    tmp_path: Path, name: str, visual: VisualExtractor, audio: AudioExtractor
) -> None:
    source = clip(tmp_path / "a.mp4", Fraction(30_000, 1001), 44_100)
    assert_alike(source, remux(source, tmp_path / name, FRAGMENTS if "frag" in name else None), visual, audio)


def test_a_clip_coded_anew_keeps_its_clock(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.webm", 25, 48_000, "libopus", pictures={"codec": "libvpx"})
    with open_media(path) as media:
        first = next(time for time, frame in media.decode() if isinstance(frame, av.AudioFrame))
        assert media.video_start == 0 and abs(first) < 0.001
    assert np.corrcoef(read_waveform(path, 48_000)[:48_000], NOISE[:48_000])[0, 1] > 0.7  # of noise; a sample off is 0


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("early", [0.3, 1.0])
def test_sound_that_is_truly_early_is_kept(tmp_path: Path, name: str, early: float) -> None:
    def click(times: np.ndarray) -> np.ndarray:
        return 0.8 * ((times >= early) & (times < early + 0.2)) * np.sin(2 * np.pi * 1000 * times)

    pictures = Pictures(grey, times=[early + k / 25 for k in range(50)])
    path = write_streams(tmp_path / name, pictures, Sound(click, 2 + early))
    with open_media(path) as media:
        first = next(time for time, frame in media.decode() if isinstance(frame, av.VideoFrame))
    assert first == pytest.approx(early, abs=0.001)
    wave = np.abs(read_waveform(path, 16_000))
    assert np.flatnonzero(wave > 0.25)[0] / 16_000 == pytest.approx(early, abs=0.003)


def test_mp4_says_what_is_priming_and_keeps_what_is_not(tmp_path: Path) -> None:
    pictures = Pictures(grey, times=[0.02 + k / 25 for k in range(50)])
    path = write_streams(tmp_path / "a.mp4", pictures, Sound(noise, 2))
    with open_media(path) as media:
        times = [(time, type(frame)) for time, frame in media.decode()]
    assert min(time for time, kind in times if kind is av.AudioFrame) == 0
    assert min(time for time, kind in times if kind is av.VideoFrame) == pytest.approx(0.02, abs=1e-6)


# What a file promises.


def together(out: Path, *parts: Path, late: float = 0, options: dict[str, str] | None = None) -> Path:
    """The packets of several files in one, all their stamps later by ``late`` seconds."""
    sources = [av.open(str(part)) for part in parts]
    with av.open(str(out), "w", options=options or {}) as here:
        packets = []
        for source in sources:
            copies = {stream.index: here.add_stream_from_template(stream) for stream in source.streams}
            packets += [(packet, copies[packet.stream.index]) for packet in source.demux() if packet.dts is not None]
        for packet, stream in sorted(packets, key=lambda pair: float(pair[0].dts * pair[0].time_base)):
            packet.pts, packet.dts = (stamp + int(late / packet.time_base) for stamp in (packet.pts, packet.dts))
            packet.stream = stream
            here.mux(packet)
    for source in sources:
        source.close()
    return out


def without_tags(path: Path) -> Path:
    """A Matroska file that does not say how long each stream lasts."""
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"XURATION"))
    return path


def titles(path: Path) -> Path:
    path.write_text("1\n00:00:00,100 --> 00:00:01,000\nhi\n\n2\n00:00:08,000 --> 00:00:09,000\nend\n")
    return path


def refused(path: Path) -> str:
    with pytest.raises(AvelError) as error:
        extract_clip(path, GreyMeans(), EndsOfSound())
    return str(error.value)


@pytest.mark.parametrize("tags", [True, False])
def test_a_subtitle_that_lasts_longer_is_no_damage(tmp_path: Path, tags: bool) -> None:
    source = clip(tmp_path / "a.mp4")
    path = together(tmp_path / "b.mkv", source, titles(tmp_path / "a.srt"))
    assert probe(path).duration == pytest.approx(2.6, abs=0.05)
    path = path if tags else without_tags(path)
    assert extract_clip(path, GreyMeans(), EndsOfSound()).duration == pytest.approx(2.6, abs=0.05)
    assert "promises could be decoded" in refused(cut(path, tmp_path / "cut.mkv", 0.6))


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "untold.mkv", "b.ts", "b.mov"])
def test_a_sound_not_taken_that_lasts_longer_is_no_damage(tmp_path: Path, name: str) -> None:
    longer = write_streams(tmp_path / "long.mp4", Sound(noise, 9))
    path = together(tmp_path / name, clip(tmp_path / "a.mp4"), longer)
    path = without_tags(path) if name == "untold.mkv" else path
    found = extract_clip(path, GreyMeans(), EndsOfSound())
    assert found.duration == pytest.approx(2.6, abs=0.05) and "audio 0 of 2" in found.streams
    if path.suffix == ".mkv":
        assert "promises could be decoded" in refused(cut(path, tmp_path / "cut.mkv", 0.3))


def test_a_chapter_that_lasts_longer_is_no_damage(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        path = tmp_path / name
        source = clip(tmp_path / "source.mp4")
        with av.open(str(source)) as there, av.open(str(path), "w") as here:
            copies = {stream.index: here.add_stream_from_template(stream) for stream in there.streams}
            chapter = {"id": 1, "start": 0, "end": 9000, "time_base": Fraction(1, 1000), "metadata": {"title": "all"}}
            here.set_chapters([chapter])  # type: ignore[list-item]
            for packet in there.demux():
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    here.mux(packet)
        assert extract_clip(path, GreyMeans(), EndsOfSound()).duration == pytest.approx(2.6, abs=0.05)


LATE: dict[str, tuple[str, dict[str, str]]] = {
    "webm": ("b.webm", {}),
    "live webm": ("b.webm", {"live": "1"}),
    "mkv": ("b.mkv", {}),
    "fragments": ("b.mp4", {"movflags": "cmaf+frag_discont+frag_keyframe"}),
    "fragments with an index": ("b.mp4", {"movflags": "frag_keyframe+empty_moov+delay_moov+global_sidx+dash"}),
    "fragments with an edit list": ("b.mp4", {"movflags": "frag_keyframe+empty_moov+delay_moov"}),
}


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("late", [3, 3600])
def test_stamps_that_start_late(tmp_path: Path, kind: str, late: float) -> None:
    name, options = LATE[kind]
    codecs = ("libvpx", "libopus") if name == "b.webm" else ("libx264", "aac")
    pictures = Pictures(grey, 2.6, 25, codecs[0], options={"preset": "ultrafast", "bf": "0", "g": "10"})
    source = write_streams(tmp_path / "a.mkv", pictures, Sound(noise, 2.6, codec=codecs[1]))
    path = together(tmp_path / name, source, late=late, options=options)
    assert probe(path).duration == pytest.approx(2.6, abs=0.05)
    found = extract_clip(path, GreyMeans(), EndsOfSound())
    assert found.duration == pytest.approx(2.6, abs=0.05) and len(found.visual) == 3
    if kind in ("webm", "mkv", "fragments with an index"):  # the others do not know how long they were to be
        assert "promises could be decoded" in refused(cut(path, tmp_path / f"cut-{name}", 0.6))


# What is told.


@pytest.mark.parametrize(
    ("pictures", "sound", "words"),
    [
        (4.0, 0.5, "sound ends at 0.5"),
        (1.0, 4.0, "pictures end at 1.00 s, sound at 4.0"),
        (4.0, 3.7, "sound ends at 3.7"),
    ],
)
def test_pictures_and_sound_of_unequal_length_are_told(
    tmp_path: Path, pictures: float, sound: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_streams(tmp_path / "a.mp4", Pictures(grey, pictures), Sound(noise, sound))
    found = extract_clip(path, GreyMeans(), EndsOfSound())
    assert found.tags["length"].startswith(words) and found.tags["length"].endswith(f"{found.duration:.2f} s used")
    assert cli.main(["extract", str(path), "--out", str(tmp_path / "store"), "--workers", "0"]) == 0
    assert f"a.mp4, what was read: length: {words}" in capsys.readouterr().out
    assert open_store(tmp_path / "store").clips[0].streams.startswith(f"length {words}")
    assert extract(path, tmp_path / "store", workers=0).skipped == 1


def test_lengths_that_agree_are_not_told(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "a.mp4", Pictures(grey, 4), Sound(noise, 3.85))
    assert extract_clip(path, GreyMeans(), EndsOfSound()).tags == {}


def two_sounds(path: Path) -> Path:
    """A file whose first sound is noise, and whose second is a tone."""
    sounds = Sound(noise, 2), Sound(lambda times: 0.5 * np.sin(2 * np.pi * 600 * times), 2)
    return write_streams(path, Pictures(grey, 2), *sounds)


def no_decoder(source: Path, out: Path, count: int = 1) -> Path:
    out.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_ZZZ", count))
    return out


def no_packet(source: Path, out: Path) -> Path:
    with av.open(str(source)) as container:
        count = sum(1 for packet in container.demux(audio=0) if packet.size)
    return damaged(source, out, range(count), "audio")


@pytest.mark.parametrize("spoil", [no_decoder, no_packet])
def test_a_first_sound_that_cannot_be_decoded_is_passed_over(
    tmp_path: Path, spoil: Callable[[Path, Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil(two_sounds(tmp_path / "whole.mkv"), tmp_path / "a.mkv")
    wave = read_waveform(path, 16_000)
    assert np.abs(np.fft.rfft(wave[:16_000])).argmax() == 600
    found = extract_clip(path, GreyMeans(), EndsOfSound())
    assert "audio 1 of 2 (aac" in found.streams and found.streams.endswith("; audio 0 cannot be decoded")
    assert cli.main(["extract", str(path), "--out", str(tmp_path / "store"), "--workers", "0"]) == 0
    assert "; audio 0 cannot be decoded" in capsys.readouterr().out
    assert extract(path, tmp_path / "store", workers=0).skipped == 1  # the same choice again
    assert extract(path, tmp_path / "store", Recipe(streams=Streams(audio=1)), workers=0).skipped == 1
    with pytest.raises(AvelError) as error:
        extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(streams=Streams(audio=0)))
    assert "--audio-stream" in error.value.do and "1 (aac" in error.value.do


def test_where_no_sound_can_be_decoded_the_option_is_named(tmp_path: Path) -> None:
    path = no_decoder(two_sounds(tmp_path / "whole.mkv"), tmp_path / "a.mkv", 2)
    assert "no decoder for its audio stream" in refused(path) and "--audio-stream" in refused(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_picture_before_the_video_is_passed_over(tmp_path: Path, name: str) -> None:
    still = Pictures(lambda time: np.full((32, 32, 3), 250, np.uint8), 0.1, codec="mjpeg", pix_fmt="yuvj420p")
    path = write_streams(tmp_path / name, still, Pictures(grey, 2), Sound(noise, 2))
    assert sample_frames(path, [0.0, 1.0], 16).mean() < 150
    found = extract_clip(path, GreyMeans(), EndsOfSound())
    assert found.duration == pytest.approx(2, abs=0.05) and "video 1 of 2 (h264" in found.streams
    assert found.streams.endswith("; video 0 cannot be decoded or shows a single picture")
    with pytest.raises(AvelError, match="shows a single picture") as error:
        extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(streams=Streams(video=0)))
    assert "--video-stream" in error.value.do

"""Recordings joined end to end, and files whose time stamps jump: events stay in the right second, and it is said."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import EndsOfSound, GreyMeans
from media import Pictures, Sound, remux, write_streams

from avel import cli
from avel.data.store import open_store
from avel.data.store_writing import ClipFeatures
from avel.errors import AvelError
from avel.features.audio_samples import read_waveform
from avel.features.extract import extract
from avel.features.segments import extract_clip
from avel.features.stamps import Stamps
from avel.features.streams import probe
from avel.features.video import open_media, sample_frames

CODECS = {
    "ts": ("libx264", "aac"),
    "mpg": ("mpeg2video", "mp2"),
    "mkv": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
    "mp4": ("libx264", "aac"),
    "flv": ("libx264", "aac"),
    "mxf": ("mpeg2video", "pcm_s16le"),
}


def clip(path: Path, level: int, seconds: float = 4, loud: tuple[float, float] = (1, 2), **sound: float) -> Path:
    """Grey ``level + 10 * second``, and a tone from ``loud[0]`` to ``loud[1]`` seconds."""

    def wave(times: np.ndarray) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * 700 * times) * ((times >= loud[0]) & (times < loud[1]))

    def grey(time: float) -> np.ndarray:
        return np.full((48, 64, 3), level + 10 * int(time + 1e-6), np.uint8)

    video_codec, audio_codec = CODECS[path.suffix[1:]]
    options = {"preset": "ultrafast", "crf": "5"}
    pictures = Pictures(grey, seconds, 25, video_codec, options=options)
    return write_streams(path, pictures, Sound(wave, **{"seconds": seconds, **sound}, codec=audio_codec))


def joined(out: Path, *parts: Path) -> Path:
    out.write_bytes(b"".join(part.read_bytes() for part in parts))
    return out


def jumping(source: Path, out: Path, at: float, by: float, streams: tuple[str, ...] = ("video", "audio")) -> Path:
    """The packets of a file, with the stamps from ``at`` seconds on moved by ``by`` seconds."""
    with av.open(str(source)) as there, av.open(str(out), "w") as here:
        copies = {stream.index: here.add_stream_from_template(stream) for stream in there.streams}
        for packet in there.demux():
            if packet.dts is None or packet.pts is None:
                continue
            if float(packet.pts * packet.time_base) >= at and packet.stream.type in streams:
                packet.pts += int(by / packet.time_base)
                packet.dts += int(by / packet.time_base)
            packet.stream = copies[packet.stream.index]
            here.mux(packet)
    return out


def seconds_of(path: Path) -> tuple[list[int], list[bool], ClipFeatures]:
    """The grey level of every second's middle, and whether it is loud."""
    levels = sample_frames(path, [second + 0.5 for second in range(round(probe(path).duration))], 32).mean((1, 2, 3))
    wave = read_waveform(path, 8000)
    loud = [bool(np.abs(wave[8000 * k + 2000 : 8000 * k + 6000]).mean() > 0.1) for k in range(len(levels))]
    return [round(level / 10) * 10 for level in levels], loud, extract_clip(path, GreyMeans(), EndsOfSound())


@pytest.mark.parametrize("kind", ["ts", "mpg", "mkv", "webm"])
def test_two_recordings_joined_end_to_end_are_read_whole(tmp_path: Path, kind: str) -> None:
    first = clip(tmp_path / f"a.{kind}", 40)
    second = clip(tmp_path / f"b.{kind}", 140, 3, loud=(2, 3))
    path = joined(tmp_path / f"joined.{kind}", first, second)
    with open_media(path) as media:
        assert media.jumps == ""
        for _ in media.decode():
            pass
        assert media.jumps.startswith("jump at 4.0") and "(back by 4.0" in media.jumps
        assert (media.video_end, media.audio_end) == pytest.approx((7, 7), abs=0.15)
        assert media.num_pictures == 175
    features = extract_clip(path, GreyMeans(), EndsOfSound())
    assert features.duration == pytest.approx(7, abs=0.15) and len(features.visual) == 7
    assert features.visual[:, 0, 0, 8] == pytest.approx([40, 50, 60, 70, 140, 150, 160], abs=5)
    wave = read_waveform(path, 8000)
    loud = [bool(np.abs(wave[8000 * k + 2000 : 8000 * k + 6000]).mean() > 0.1) for k in range(7)]
    assert loud == [False, True, False, False, False, False, True]
    shown = sample_frames(path, [0.5, 3.5, 4.5, 6.5], 32).mean((1, 2, 3))
    assert shown == pytest.approx([40, 70, 140, 160], abs=5)


@pytest.mark.parametrize("kind", ["ts", "mpg"])
def test_the_length_of_joined_recordings_is_counted_before_they_are_decoded(tmp_path: Path, kind: str) -> None:
    part = clip(tmp_path / f"a.{kind}", 40)
    assert probe(joined(tmp_path / f"j.{kind}", part, part, part)).duration == pytest.approx(12, abs=0.2)


@pytest.mark.parametrize("by", [100, 3000])
def test_a_recorder_whose_stamps_jump(tmp_path: Path, by: float) -> None:
    path = jumping(clip(tmp_path / "a.ts", 40, loud=(3, 4)), tmp_path / "jump.ts", 2, by)
    levels, loud, features = seconds_of(path)
    assert levels == [40, 50, 60, 70] and loud == [False, False, False, True]
    assert features.duration == pytest.approx(4, abs=0.1)
    assert features.tags["time stamps"].startswith("jump at 1.98 s") and "ahead by" in features.tags["time stamps"]


def test_a_jump_ahead_in_files_that_have_no_jumps_is_a_pause(tmp_path: Path) -> None:
    path = jumping(clip(tmp_path / "a.mkv", 40, loud=(3, 4)), tmp_path / "pause.mkv", 2, 15)
    levels, loud, features = seconds_of(path)
    assert levels == [40, *[50] * 16, 60, 70] and loud == [False] * 18 + [True] and "time stamps" not in features.tags


@pytest.mark.parametrize("kind", ["ts", "mp4", "mkv"])
def test_a_pause_of_the_sound_is_silence(tmp_path: Path, kind: str) -> None:
    source = clip(tmp_path / f"a.{kind}", 40, 18, loud=(0, 18))
    path = tmp_path / f"pause.{kind}"
    with av.open(str(source)) as there, av.open(str(path), "w") as here:
        copies = {stream.index: here.add_stream_from_template(stream) for stream in there.streams}
        for packet in there.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio" and 3 <= float(packet.pts * packet.time_base) < 15:
                continue
            packet.stream = copies[packet.stream.index]
            here.mux(packet)
    levels, loud, features = seconds_of(path)
    assert levels == [40 + 10 * second for second in range(18)]
    assert loud == [True] * 3 + [False] * 12 + [True] * 3 and "time stamps" not in features.tags


def test_six_short_recordings(tmp_path: Path) -> None:
    part = clip(tmp_path / "a.ts", 40, 1, loud=(0, 1))
    levels, loud, features = seconds_of(joined(tmp_path / "j.ts", *[part] * 6))
    assert levels == [40] * 6 and loud == [True] * 6 and "and 2 more" in features.tags["time stamps"]


def test_a_playlist_with_a_discontinuity(tmp_path: Path) -> None:
    for name, level in (("a", 40), ("b", 140)):
        clip(tmp_path / f"{name}.ts", level)
    path = tmp_path / "list.m3u8"
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n"
    path.write_text(head + "#EXTINF:4,\na.ts\n#EXT-X-DISCONTINUITY\n#EXTINF:4,\nb.ts\n#EXT-X-ENDLIST\n")
    levels, loud, features = seconds_of(path)
    assert levels == [40, 50, 60, 70, 140, 150, 160, 170] and loud == [False, True, False, False] * 2
    assert features.tags["time stamps"]


@pytest.mark.parametrize("kind", ["mp4", "flv", "mxf", "fragments"])
def test_joined_files_of_which_only_the_first_can_be_read_are_refused(tmp_path: Path, kind: str) -> None:
    part = clip(tmp_path / f"a.{'mp4' if kind == 'fragments' else kind}", 40)
    if kind == "fragments":
        part = remux(part, tmp_path / "f.mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    assert extract_clip(part, GreyMeans(), EndsOfSound()).duration == pytest.approx(4, abs=0.1)
    path = joined(tmp_path / part.name.replace(".", "-joined."), part, part)
    with pytest.raises(AvelError) as error:
        extract_clip(path, GreyMeans(), EndsOfSound())
    assert ("joined end to end" in error.value.found and "4.0" in error.value.found) or "3.9" in error.value.found
    assert "joined" in str(error.value)


def test_command_line_store_and_page_say_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = clip(tmp_path / "a.ts", 40)
    joined(tmp_path / "j.ts", part, part)
    (tmp_path / "list.txt").write_text("j.ts\n")
    arguments = ["extract", str(tmp_path / "list.txt"), "--out", str(tmp_path / "store"), "--workers", "1"]
    assert cli.main(arguments) == 0
    assert "j.ts, what was read: time stamps jump at 4.0" in capsys.readouterr().out
    stored = open_store(tmp_path / "store").clips[0]
    assert stored.segments == 8 and stored.streams.startswith("time stamps jump at 4.0")
    assert extract(tmp_path / "list.txt", tmp_path / "store", workers=0).skipped == 1


class Packet:
    """The stamps of a packet, in seconds."""

    def __init__(self, stream: int, time: float | None, duration: float = 0.04) -> None:
        self.stream_index, self.time_base, self.duration = stream, Fraction(1, 1000), round(1000 * duration)
        self.pts = self.dts = None if time is None else round(1000 * time)


def moved(*packets: tuple[int, float], may_jump: bool = True) -> list[float]:
    stamps = Stamps(may_jump)
    times = []
    for stream, time in packets:
        packet = Packet(stream, time)
        stamps.move(packet)  # type: ignore[arg-type]
        times.append(packet.pts / 1000)  # type: ignore[operator]
    return times


def run(stream: int, start: float, seconds: float, step: float = 0.04) -> list[tuple[int, float]]:
    return [(stream, start + index * step) for index in range(round(seconds / step))]


def in_turns(*runs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted((packet for run in runs for packet in run), key=lambda packet: packet[1])


def test_both_streams_are_moved_alike_though_one_comes_later_in_the_file() -> None:
    first = in_turns(run(0, 0, 4), run(1, 0, 3))
    second = [*run(0, 0, 2), *run(1, 3, 1), *in_turns(run(0, 2, 2), run(1, 0, 4))]
    times = moved(*first, *second)
    video = [time for (stream, _), time in zip(first + second, times, strict=True) if stream == 0]
    audio = [time for (stream, _), time in zip(first + second, times, strict=True) if stream == 1]
    assert video == pytest.approx(np.arange(200) * 0.04, abs=0.002)
    assert audio == pytest.approx(np.arange(200) * 0.04, abs=0.002)


def test_sound_that_ends_before_a_join_and_begins_after_it_stays_with_its_pictures() -> None:
    first = in_turns(run(0, 0, 20), run(1, 0, 2))
    second = in_turns(run(0, 0, 20), run(1, 2.1, 4))
    times = moved(*first, *second)
    audio = [time for (stream, _), time in zip(first + second, times, strict=True) if stream == 1]
    assert audio[50] == pytest.approx(22.1, abs=0.05)


def test_one_wrong_stamp_moves_nothing_after_it() -> None:
    packets = run(0, 0, 4)
    packets[75] = (0, 0.5)
    times = moved(*packets, may_jump=False)
    assert times[76:] == pytest.approx([time for _, time in packets[76:]], abs=0.002)

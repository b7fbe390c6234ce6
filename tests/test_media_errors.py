"""Every file that cannot be used is refused in words that say why; what can be decoded is."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from media import cut, write_video

from avel.data.store_writing import ClipFeatures
from avel.errors import AvelError
from avel.features import AudioExtractor, VisualExtractor
from avel.features.audio_samples import read_waveform
from avel.features.segments import extract_clip
from avel.features.streams import probe
from avel.features.video import sample_frames

Extract = Callable[[Path], ClipFeatures]


@pytest.fixture
def features(visual: VisualExtractor, audio: AudioExtractor) -> Extract:
    return lambda path: extract_clip(path, visual, audio, threads=1)


def refusal(extract: Extract, path: Path) -> str:
    with pytest.raises(AvelError) as error:
        extract(path)
    assert str(path) in error.value.found
    assert error.value.expected and error.value.do
    return error.value.found


def damaged(source: Path, out: Path, packets: range, kind: str = "video") -> Path:
    """A copy of ``source`` in which the payload of some packets of a stream is rubbish."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0] if kind == "video" else container.streams.audio[0]
        payloads = [bytes(packet) for packet in container.demux(stream) if packet.size]
    data = source.read_bytes()
    for index in packets:
        data = data.replace(payloads[index], b"\xff" * len(payloads[index]), 1)
    out.write_bytes(data)
    return out


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "is empty (0 bytes)"),
        ("text.txt", b"hello world\n", "is not a media file"),
        ("rubbish.mp4", b"\x00\x01rubbish" * 100, "is not a media file"),
        ("titles.srt", b"1\n00:00:01,000 --> 00:00:02,000\nhi\n", "is not a media file"),
        ("page.html", b"<html><body>not found</body></html>\n", "is not a media file"),
    ],
)
def test_what_is_no_media(tmp_path: Path, features: Extract, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert words in refusal(features, path)
    assert words in refusal(lambda path: probe(path), path)  # type: ignore[arg-type, return-value]


def test_a_folder(tmp_path: Path, features: Extract) -> None:
    assert "is a folder" in refusal(features, tmp_path)


def test_still_pictures(tmp_path: Path, features: Extract) -> None:
    for name, codec in (("still.jpg", "mjpeg"), ("still.png", "png")):
        with av.open(str(tmp_path / name), "w", format="image2", options={"update": "1"}) as container:
            stream = container.add_stream(codec, rate=1)
            stream.width, stream.height = 32, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        assert "is a still picture" in refusal(features, tmp_path / name)
    assert "single picture" in refusal(features, write_video(tmp_path / "one.mp4", times=[0]))


def test_one_stream_alone(tmp_path: Path, features: Extract) -> None:
    silent = write_video(tmp_path / "silent.mp4", audio_codec="")
    blind = write_video(tmp_path / "blind.wav", video_codec="", audio_codec="pcm_s16le")
    assert "has no audio track" in refusal(features, silent)
    assert "has no video track" in refusal(features, blind)
    assert sample_frames(silent, [0.0, 1.0], 32).shape == (2, 24, 32, 3)  # pictures alone are fine for pictures
    assert len(read_waveform(blind, 16_000)) == 3 * 16_000
    with pytest.raises(AvelError, match="no audio track"):
        read_waveform(silent, 16_000)
    with pytest.raises(AvelError, match="no video track"):
        sample_frames(blind, [0.0], 32)


def test_a_cover_picture_is_no_video(tmp_path: Path, features: Extract) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture))
        for start in range(0, 32_000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(sound.encode(frame))
        container.mux([*cover.encode(None), *sound.encode(None)])
    assert "has no video track" in refusal(features, path)


def test_truncated_with_its_index_first(tmp_path: Path, features: Extract) -> None:
    whole = write_video(tmp_path / "whole.mp4", moov_first=True, noise=40)
    for share in (0.9, 0.5, 0.2):
        found = refusal(features, cut(whole, tmp_path / f"cut{share}.mp4", share))
        only, promised = (float(found.split(before)[1].split(" s")[0]) for before in ("only ", "of the "))
        assert abs(promised - 3.0) < 0.1
        assert abs(only - 3.0 * share) < 0.25
    nearly = features(cut(whole, tmp_path / "nearly.mp4", 0.975))  # 97% are enough, and the loss is counted
    assert nearly.bad_packets >= 1 and len(nearly.visual) == 3


def test_truncated_with_its_index_last(tmp_path: Path, features: Extract) -> None:
    whole = write_video(tmp_path / "whole.mp4", noise=40)
    for share in (0.97, 0.5):
        assert "truncated or damaged" in refusal(features, cut(whole, tmp_path / f"cut{share}.mp4", share))


def test_truncated_matroska(tmp_path: Path, features: Extract) -> None:
    whole = write_video(tmp_path / "whole.mkv", noise=40)
    found = refusal(features, cut(whole, tmp_path / "cut.mkv", 0.5))
    assert "of the 3.0" in found and "could be decoded" in found


def test_damage_within(tmp_path: Path, features: Extract) -> None:
    source = write_video(tmp_path / "source.mp4", noise=40)
    little = features(damaged(source, tmp_path / "little.mp4", range(12, 13)))
    assert little.bad_packets == 1 and len(little.visual) == 3 and little.duration == pytest.approx(3, abs=0.01)
    found = refusal(features, damaged(source, tmp_path / "much.mp4", range(8, 14)))
    assert "only 2.40 s of the 3.00 s of pictures" in found and "6 bad packets" in found
    found = refusal(features, damaged(source, tmp_path / "start.mp4", range(0, 3)))
    assert "of pictures" in found
    assert "no picture could be decoded" in refusal(features, damaged(source, tmp_path / "all.mp4", range(0, 30)))


def test_damaged_sound(tmp_path: Path, features: Extract) -> None:
    source = write_video(tmp_path / "source.mp4", seconds=4)
    found = refusal(features, damaged(source, tmp_path / "much.mp4", range(10, 30), "audio"))
    assert "of sound" in found and "of the 4.0" in found and "20 bad packets" in found
    source = write_video(tmp_path / "source.mkv", seconds=4)
    found = refusal(features, damaged(source, tmp_path / "much.mkv", range(10, 30), "audio"))
    assert "of sound" in found and "20 bad packets" in found
    found = refusal(features, damaged(source, tmp_path / "nearly.mkv", range(62), "audio"))
    assert "of sound" in found and "62 bad packets" in found


def test_damaged_end_of_matroska(tmp_path: Path, features: Extract) -> None:
    source = write_video(tmp_path / "source.mkv", noise=40)
    assert "of pictures" in refusal(features, damaged(source, tmp_path / "end.mkv", range(20, 30)))
    assert "of pictures" in refusal(features, damaged(source, tmp_path / "start.mkv", range(0, 10)))


def test_nothing_within(tmp_path: Path, features: Extract) -> None:
    # A header that promises two streams, and not one packet of either.
    source = write_video(tmp_path / "source.mkv", noise=10)
    data = source.read_bytes()
    (tmp_path / "header.mkv").write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])  # up to the first Matroska cluster
    assert refusal(features, tmp_path / "header.mkv")
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    with pytest.raises(AvelError, match="no sound could be decoded"):
        read_waveform(tmp_path / "none.wav", 16_000)


def test_long_gaps_between_pictures_are_no_damage(tmp_path: Path, features: Extract) -> None:
    for name in ("slides.mp4", "slides.mkv"):
        assert len(features(write_video(tmp_path / name, times=[0, 0.1, 2.5, 2.6])).visual) == 3


def test_uncommon_containers(tmp_path: Path, features: Extract) -> None:
    assert len(features(write_video(tmp_path / "a.ts")).visual) == 3
    assert len(features(write_video(tmp_path / "a.avi", video_codec="mpeg4", audio_codec="mp2")).visual) == 3
    webm = write_video(tmp_path / "a.webm", video_codec="libvpx", audio_codec="libopus", sample_rate=48_000)
    assert len(features(webm).visual) == 3


def test_a_real_file_truncated(real_data: Path, tmp_path: Path, features: Extract) -> None:
    found = refusal(features, cut(real_data / "media" / "BjCEufrlXm4.mp4", tmp_path / "cut.mp4", 0.6))
    assert "truncated or damaged" in found

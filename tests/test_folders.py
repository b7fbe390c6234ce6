"""A folder of anything: every video is opened, whatever it is called, and every other file is left out by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from media import Pictures, Sound, cut, write_streams, write_video

from avel import cli
from avel.data.store import open_store
from avel.errors import AvelError
from avel.features.extract import extract
from avel.features.folders import in_words, videos_in
from avel.features.sources import read_source
from avel.timeline import Timeline
from avel.types import Event
from avel.web import timeline_page

SECONDS = 0.4


def grey(width: int, height: int, codec: str) -> Pictures:
    def picture(time: float) -> np.ndarray:
        return np.full((height, width, 3), round(40 + 200 * time), dtype=np.uint8)

    return Pictures(picture, SECONDS, 25, codec)


def hum(times: np.ndarray) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * times)


#: Name, FFmpeg's name of the container, codecs and size, sound layout.
KINDS = [
    ("camera.MTS", "mpegts", "libx264", "ac3", (64, 64), "mono"),
    ("camera.m2ts", "mpegts", "libx264", "ac3", (64, 64), "mono"),
    ("phone.3gp", "3gp", "mpeg4", "aac", (64, 64), "mono"),
    ("disc.VOB", "vob", "mpeg2video", "mp2", (64, 64), "mono"),
    ("studio.mxf", "mxf", "mpeg2video", "pcm_s16le", (64, 64), "mono"),
    ("tape.dv", "dv", "dvvideo", "pcm_s16le", (720, 576), "stereo"),
    ("free.ogg", "ogg", "libvpx", "libopus", (64, 64), "mono"),
    ("old.asf", "asf", "wmv2", "mp2", (64, 64), "mono"),
    ("recording", "mp4", "libx264", "aac", (64, 64), "mono"),
    ("talk.mp4.part", "matroska", "libx264", "aac", (64, 64), "mono"),
]


def write_kind(folder: Path, kind: tuple[str, str, str, str, tuple[int, int], str]) -> Path:
    name, container, video, audio, size, layout = kind
    made = folder / f"made.{ {'mpegts': 'ts', 'matroska': 'mkv'}.get(container, container) }"
    options = {"mpegts_m2ts_mode": "1"} if name.endswith(".m2ts") else {}
    write_streams(made, grey(*size, video), Sound(hum, SECONDS, codec=audio, layout=layout), options=options)
    return made.rename(folder / name)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        write_kind(folder, kind)
    return folder


def test_a_video_is_taken_whatever_it_is_called(kinds: Path, tmp_path: Path) -> None:
    assert videos_in(kinds) == (sorted(kinds.iterdir()), {})
    report = extract(kinds, tmp_path / "store", workers=0)
    assert report.failed == [] and report.left_out == {} and report.done == len(KINDS)
    clips = open_store(tmp_path / "store").clips
    assert [clip.id for clip in clips] == sorted(kind[0] for kind in KINDS)
    assert all(clip.duration == pytest.approx(SECONDS, abs=0.1) and clip.audio_valid for clip in clips)


@pytest.fixture
def folder(tmp_path: Path, tiny_video: Path) -> Path:
    """Two videos, one of them broken, and what lies about in folders."""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(tiny_video, folder / "sub" / "a.mp4")
    (folder / "broken.MTS").write_bytes(b"<html>not found</html>")
    for name in ("._a.mp4", ".DS_Store", "sub/._a.mp4", "Thumbs.db", "sub/desktop.ini"):
        shutil.copy(tiny_video, folder / name)  # even where they would open
    (folder / ".Trashes").mkdir()
    shutil.copy(tiny_video, folder / ".Trashes" / "b.mp4")
    (folder / "notes.txt").write_text("Grüße\n" * 2000)  # the 4096th byte is in the middle of a letter, or not
    (folder / "notes.nfo").write_bytes("Grüße\n".encode("latin-1") * 2000)
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n")
    (folder / "a.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n")
    (folder / "a.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nsub/a.mp4\n")
    (folder / "numbers.npy").write_bytes(np.random.default_rng(0).bytes(300_000))
    (folder / "empty").touch()
    write_video(folder / "song.ogg", video_codec="", audio_codec="libopus", sample_rate=48_000, seconds=SECONDS)
    write_video(folder / "mute.bin.mp4", audio_codec="", seconds=SECONDS).rename(folder / "mute.bin")
    cut(tiny_video, folder / "half", 0.5)
    with av.open(str(folder / "still.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), dtype=np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (folder / "still.png").rename(folder / "still.jpeg")
    (folder / "nowhere.txt").symlink_to("gone")
    (folder / "linked").symlink_to(folder / "sub")
    os.mkfifo(folder / "pipe.mp4")
    return folder


LEFT_OUT = {
    "._a.mp4": "hidden",
    ".DS_Store": "hidden",
    ".Trashes": "hidden",
    "sub/._a.mp4": "hidden",
    "Thumbs.db": "of the operating system",
    "sub/desktop.ini": "of the operating system",
    "notes.txt": "not a media file",
    "notes.nfo": "not a media file",
    "a.srt": "not a media file",
    "a.vtt": "not a media file",
    "a.m3u8": "not a media file",
    "numbers.npy": "not a media file",
    "empty": "empty",
    "song.ogg": "has no video track",
    "mute.bin": "has no audio track",
    "half": "an MP4 file whose index (moov) cannot be read: it is truncated or damaged",
    "still.jpeg": "a still picture",
    "nowhere.txt": "a broken link",
    "linked": "a link to a folder",
    "pipe.mp4": "not a regular file",
}


def test_what_is_no_video_is_left_out_by_name_and_a_broken_video_has_failed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, labelled, left_out = read_source(folder)
    assert [clip.id for clip in clips] == ["broken.MTS", "sub/a.mp4"] and not labelled
    assert {path.as_posix(): reason for path, reason in left_out.items()} == LEFT_OUT

    report = extract(folder, folder / "store", workers=0)
    assert [failure["id"] for failure in report.failed] == ["broken.MTS"] and report.left_out == left_out
    monkeypatch.chdir(tmp_path)
    assert cli.main(["extract", "videos", "--out", "videos/store", "--workers", "0"]) == 1
    told = capsys.readouterr().err
    assert "21 left out:" in told and "store (a feature store)" in told
    assert "a.m3u8, a.srt, a.vtt and 3 more (not a media file)" in told


def test_what_is_left_out_is_told_in_a_line_however_much_it_is() -> None:
    many = {Path(f"{number}.txt"): "not a media file" for number in range(1000)} | {Path("a\n\x1b.png"): "a still"}
    assert in_words(many) == (
        r"1001 left out: 0.txt, 1.txt, 2.txt and 997 more (not a media file); a\n\x1b.png (a still)"
    )
    assert in_words({}) == ""


def test_hidden_files_and_known_suffixes_are_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    monkeypatch.setattr("avel.features.folders._look", lambda file, *_: looked_at.append(file.name) or "no")
    videos_in(folder)
    unopened = ("hidden", "of the", "a link", "a broken link", "not a regular file")
    known = {name for name, reason in LEFT_OUT.items() if reason.startswith(unopened)}
    assert sorted(looked_at) == sorted(set(LEFT_OUT) - known)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refused(path: str) -> object:  # root may read any folder
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("os.scandir", refused)
    assert videos_in(tmp_path)[1] == {tmp_path / "closed": "a folder that cannot be read: Permission denied"}


def test_a_folder_without_videos_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(AvelError, match=r"no videos in the folder .*: 1 left out: notes.txt \(not a media file\)"):
        videos_in(tmp_path)


def test_localize_tells_what_of_a_folder_is_left_out_and_the_clip_of_a_page_is(
    tmp_path: Path, tiny_video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probabilities = np.array([[0.9, 0.1]] * 3)

    def find(video: Path, **_: object) -> Timeline:
        return Timeline(str(video), 3.0, 1.0, ("dog",), probabilities, None, (Event("dog", 0, 2, 0.9),), {})

    shutil.copy(tiny_video, tmp_path / "talk.mp4")
    shutil.copy(tiny_video, tmp_path / "my.clip.mp4")  # no page plays it
    timeline_page(find(tmp_path / "talk.mp4"), tmp_path / "talk.mp4", tmp_path / "talk.html")
    monkeypatch.setattr(cli, "_by_model", lambda *_, **__: (find, {}))
    words = ["localize", str(tmp_path), "--model", "run", "--out", str(tmp_path / "out"), "--formats", "json"]
    assert cli.main(words) == 0
    told = capsys.readouterr().err
    assert f"{tmp_path}/talk.clip.mp4 (the clip of a page)" in told and f"{tmp_path}/talk.html (not a media" in told
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["my.clip.json", "talk.json"]

"""Kinds of files that no other test makes, and the table in docs/media.md, whose every row names its test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import GreyMeans
from media import Pictures, Sound, write_streams
from test_synchrony import Loudness, assert_in_place, click, flash

from avel.errors import AvelError
from avel.features.recipe import Recipe
from avel.features.segments import extract_clip
from avel.features.streams import probe

ROOT = Path(__file__).parents[1]


def test_every_kind_in_the_table_names_a_test_that_is_there() -> None:
    lines = [line for line in (ROOT / "docs" / "media.md").read_text().splitlines() if line.startswith("| ")]
    kinds = [line for line in lines if line != "| kind | what avel does | test |"]
    rows = [re.fullmatch(r"\| .+ \| .+ \| `(test_\w+\.py)::(test_\w+)` \|", line) for line in kinds]
    assert len(kinds) > 80 and [kind for kind, row in zip(kinds, rows, strict=True) if not row] == []
    named = [(row[1], row[2]) for row in rows if row]
    files = {file: (ROOT / "tests" / file).read_text() for file in {file for file, _ in named}}
    there = {file: set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)) for file, text in files.items()}
    assert [f"{file}::{name}" for file, name in named if name not in there[file]] == []


def dull(height: int, width: int) -> dict[str, Any]:
    """Pictures of a size that a codec wants."""
    return {"picture": lambda time: np.full((height, width), flash(time)[0, 0, 0], np.uint8), "source_format": "gray"}


#: name of the file, how its pictures and its sound are made
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DV": ("a.dv", {"codec": "dvvideo", **dull(576, 720)}, {"codec": "pcm_s16le", "layout": "stereo"}),
    "Ogg": ("a.ogg", {"codec": "libvpx"}, {"codec": "libopus"}),
    "Ogg with FLAC": ("a.ogv", {"codec": "libvpx"}, {"codec": "flac"}),
    "MPEG-1": ("a.mpg", {"codec": "mpeg1video"}, {"codec": "mp2", "rate": 44_100}),
    "H.263": ("a.3gp", {"codec": "h263", **dull(144, 176)}, {"rate": 16_000}),
    "NUT": ("a.nut", {"codec": "ffv1"}, {"codec": "pcm_s16le"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_more_kinds_in_which_events_are_in_their_second(tmp_path: Path, kind: str) -> None:
    name, pictures, sound = KINDS[kind]
    plans = (
        Pictures(**{"picture": flash, "seconds": 5, "rate": 25, **pictures}),
        Sound(click, **{"seconds": 5, **sound}),
    )
    assert_in_place(write_streams(tmp_path / name, *plans), 25)


def test_what_an_edit_list_hides_is_not_seen(tmp_path: Path) -> None:
    """An mp4 cut without coding it anew: its first second is there, for the pictures after it, and not shown."""
    plans = Pictures(lambda time: flash(time - 1), 6, 25), Sound(lambda times: click(times - 1), 6)
    source, path = write_streams(tmp_path / "source.mp4", *plans), tmp_path / "cut.mp4"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as there, av.open(str(path), "w", options=options) as here:
        streams = {stream.index: here.add_stream_from_template(stream) for stream in there.streams}
        for packet in there.demux():
            if packet.dts is not None:
                packet.pts, packet.dts = (stamp - int(1 / packet.time_base) for stamp in (packet.pts, packet.dts))
                packet.stream = streams[packet.stream.index]
                here.mux(packet)
    assert probe(path).duration == pytest.approx(5, abs=0.05)
    assert_in_place(path, 25)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts"])
def test_a_third_of_a_second_is_one_segment(tmp_path: Path, name: str) -> None:
    codecs = ("libvpx", "libopus") if name == "a.webm" else ("libx264", "aac")
    pictures = Pictures(lambda time: np.full((48, 64, 3), 90, np.uint8), 0.3, 25, codecs[0])
    path = write_streams(
        tmp_path / name, pictures, Sound(lambda times: 0.5 * np.sin(2000 * times), 0.3, 48_000, codecs[1])
    )
    found = extract_clip(path, GreyMeans(), Loudness())
    assert found.duration == pytest.approx(0.3, abs=0.03) and found.visual.shape == (1, 1, 1, 16)
    assert (
        found.visual == pytest.approx(90, abs=3) and (found.audio[0, :4] > 0.2).all() and not found.audio[0, 6:].any()
    )


def test_pictures_may_change_their_size_on_the_way(tmp_path: Path) -> None:
    def large(time: float) -> np.ndarray:
        return np.full((96, 128, 3), flash(time + 2)[0, 0, 0], np.uint8)

    first = write_streams(tmp_path / "1.ts", Pictures(flash, 2, 25), Sound(click, 2))
    second = write_streams(tmp_path / "2.ts", Pictures(large, 3, 25), Sound(lambda times: click(times + 2), 3))
    (tmp_path / "a.ts").write_bytes(first.read_bytes() + second.read_bytes())
    found = extract_clip(tmp_path / "a.ts", GreyMeans(), Loudness())
    assert set(np.flatnonzero((found.visual[:, 0, 0] > 120).any(1))) == {0, 1, 3}
    assert set(np.flatnonzero((found.audio > 0.25).any(1))) == {0, 1, 3} and len(found.visual) == 5


def test_a_recording_that_begins_between_two_key_pictures(tmp_path: Path) -> None:
    """What comes before the first whole picture is left out, and picture and sound stay on one clock."""
    options = {"preset": "ultrafast", "crf": "5", "g": "25"}
    data = write_streams(tmp_path / "whole.ts", Pictures(flash, 8, 25, options=options), Sound(click, 8)).read_bytes()
    (tmp_path / "a.ts").write_bytes(data[len(data) // 188 // 8 * 188 :])
    found = extract_clip(tmp_path / "a.ts", GreyMeans(), Loudness())
    assert 6.5 < found.duration < 7.5 and found.bad_packets == 0
    seen, heard = (
        (values.reshape(-1) > bound).nonzero()[0] for values, bound in ((found.visual, 120), (found.audio, 0.25))
    )
    assert abs(int(seen[-1]) - int(heard[-1])) <= 2


def test_a_moving_picture_without_sound(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "a.gif", Pictures(flash, 5, 10, "gif", "rgb8"))
    with pytest.raises(AvelError, match="has no audio track"):
        extract_clip(path, GreyMeans(), Loudness())
    found = extract_clip(path, GreyMeans(), Loudness(), Recipe(missing_audio="mark"))
    assert np.flatnonzero((found.visual[:, 0, 0] > 120).any(1)).tolist() == [0, 1, 3] and not found.audio_valid


HOURS = """
import re, sys
from pathlib import Path
from avel.features import build_audio, build_visual
from avel.features.segments import extract_clip
found = extract_clip(sys.argv[1], build_visual("classical", frames_per_segment=2), build_audio("classical"))
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(len(found.visual), round(found.duration), peak * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from /proc")
def test_three_hours_take_a_gigabyte_of_memory(tmp_path: Path) -> None:
    """A minute 180 times; two frames a segment save minutes and no memory."""
    minute = write_streams(tmp_path / "minute.mkv", Pictures(flash, 60, 10), Sound(click, 60, 16_000, "pcm_s16le"))
    path = tmp_path / "hours.mkv"
    with av.open(str(path), "w") as here:
        streams: dict[int, Any] = {}
        for number in range(180):
            with av.open(str(minute)) as there:
                streams = streams or {each.index: here.add_stream_from_template(each) for each in there.streams}
                for packet in there.demux():
                    if packet.dts is not None:
                        packet.pts += int(60 * number / packet.time_base)
                        packet.dts += int(60 * number / packet.time_base)
                        packet.stream = streams[packet.stream.index]
                        here.mux(packet)
    done = subprocess.run([sys.executable, "-c", HOURS, str(path)], capture_output=True, text=True, check=True)
    segments, seconds, peak = map(int, done.stdout.split())
    assert (segments, seconds) == (10_800, 10_800) and peak < 1.0 * 2**30

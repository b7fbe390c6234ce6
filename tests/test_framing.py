"""Which frames a segment shows: framing ``time`` by the clock, framing ``ave`` by tenths as AVE's own script."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import EndsOfSound, GreyMeans
from hypothesis import given, settings
from hypothesis import strategies as st
from media import grey_of, write_video

from avel import cli
from avel.data.store import open_store
from avel.errors import AvelError
from avel.features import AudioExtractor, VisualExtractor, build_audio, build_visual, describe
from avel.features.extract import extract
from avel.features.recipe import Recipe
from avel.features.segments import ave_frames, count_segments, extract_clip
from avel.features.video import FrameChooser, segment_times

#: Tags of the features as they were before there was a choice of framing: what is trained on them must go on.
TAGS = {"visual": "classical-02f5b288c8e5", "audio": "classical-787adebcc69f"}


def script_of_ave(num_frames: int, sample_num: int) -> list[int]:
    """The arithmetic of AVE's script, in floats, as it is published."""
    frame_interval = int(num_frames / 10)
    return [
        int(s * frame_interval + (i * 1.0 / sample_num) * frame_interval) for s in range(10) for i in range(sample_num)
    ]


def test_251_frames() -> None:
    first = [0, 1, 3, 4, 6, 7, 9, 10, 12, 14, 15, 17, 18, 20, 21, 23]
    assert ave_frames(251) == [25 * tenth + index for tenth in range(10) for index in first]


def test_tenths_of_any_number_of_frames_as_aves_script() -> None:
    for number in range(1, 1001):
        found = ave_frames(number)
        assert found == script_of_ave(number, 16)
        assert found == sorted(found) and len(found) == 160 and max(found) < max(number - number % 10, 1)


@given(st.integers(1, 1000), st.integers(1, 64))
def test_tenths_with_other_numbers_of_frames_a_segment(number: int, each: int) -> None:
    found = ave_frames(number, each)
    assert len(found) == 10 * each
    for place, index in enumerate(found):  # in whole numbers, so that no float is off by one
        tenth, i = divmod(place, each)
        assert index <= (tenth + i / each) * (number // 10) + 1e-9 < index + 1 + 1e-6


@settings(deadline=None)
@given(st.integers(1, 1000), st.floats(0.1, 600), st.sampled_from([0.5, 0.96, 1.0, 2.0]))
def test_segments_of_any_number_of_frames_over_any_duration(number: int, duration: float, length: float) -> None:
    """Frames at even times over the duration: each slot shows the last frame that is not after it."""
    times = np.arange(number) * (duration / number)
    num_segments = count_segments(duration, length)
    assert num_segments >= 1 and (num_segments == 1 or abs(num_segments * length - duration) <= length / 2 + 1e-9)
    slots = num_segments * 16
    chooser = FrameChooser(segment_times(length, 16))
    chosen: list[int] = []
    for index, time in enumerate(times):
        chosen += [index - 1] * chooser.push(float(time))
    chosen = (chosen + [number - 1] * max(0, slots - len(chosen)))[:slots]
    wanted = np.searchsorted(times, np.array(list(islice(segment_times(length, 16), slots))) + 1e-6, side="right") - 1
    assert chosen == wanted.clip(0).tolist()


def test_ave_framing_of_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=10.04, frame_rate=25)  # 251 frames
    found = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave"))
    assert found.visual.shape == (10, 1, 1, 16) and found.audio.shape == (10, 3)
    assert np.abs(found.visual.reshape(-1) - [grey_of(index) for index in ave_frames(251)]).max() < 3
    by_time = extract_clip(path, GreyMeans(), EndsOfSound())
    assert np.array_equal(found.audio, by_time.audio)
    assert np.array_equal(found.visual, by_time.visual)  # at 25 a second, tenths of 251 frames are seconds


def test_ave_framing_goes_by_frames_and_not_by_time(tmp_path: Path) -> None:
    times = [k / 10 for k in range(50)] + [5 + k / 2 for k in range(10)]  # 60 frames, of which 50 in the first half
    path = write_video(tmp_path / "a.mkv", seconds=10, times=times)
    found = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave")).visual.reshape(-1)
    assert np.abs(found - [grey_of(index) for index in ave_frames(60)]).max() < 3


@settings(max_examples=5, deadline=None)
@given(number=st.integers(10, 300))
def test_ave_framing_of_files_with_any_number_of_frames(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    path = tmp_path_factory.mktemp("media") / "a.mkv"
    times = [10 * k / number for k in range(number)]
    write_video(path, seconds=10, times=times, frame_rate=max(1, number // 10), size=(16, 16), audio_codec="pcm_s16le")
    found = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave")).visual.reshape(-1)
    assert np.abs(found - [grey_of(index) for index in ave_frames(number)]).max() < 3


@pytest.mark.parametrize(
    ("video", "audio", "fits"),
    [(9.4, 10, False), (9.5, 9.5, True), (10.5, 10.5, True), (10.6, 10, False), (10, 9.3, False), (10, 12, False)],
)
def test_ave_framing_takes_clips_of_ten_seconds_alone(tmp_path: Path, video: float, audio: float, fits: bool) -> None:
    path = write_video(tmp_path / "a.mov", seconds=video, audio_seconds=audio, audio_codec="pcm_s16le", size=(16, 16))
    if fits:
        assert len(extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave")).visual) == 10
        return
    with pytest.raises(AvelError, match=r"a\.mov: pictures from 0\.00 s until") as error:
        extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave"))
    assert "9.5 and 10.5 s" in error.value.expected and "--framing time" in error.value.do


def test_ave_framing_of_a_long_clip_stops_early(tmp_path: Path) -> None:
    class Counting(GreyMeans):
        scaled = 0

        def resize(self, frame: np.ndarray) -> np.ndarray:
            Counting.scaled += 1
            return frame[:8, :8]

    path = write_video(tmp_path / "a.mp4", seconds=20, size=(16, 16))
    with pytest.raises(AvelError, match="and more"):
        extract_clip(path, Counting(), EndsOfSound(), Recipe(framing="ave"))
    assert 100 <= Counting.scaled <= 130


def test_ave_framing_wants_pictures_from_the_start_and_ten_of_them(tmp_path: Path) -> None:
    late = write_video(tmp_path / "late.mkv", seconds=10, times=[3 + k / 10 for k in range(70)])
    with pytest.raises(AvelError, match=r"pictures from 3\.0"):
        extract_clip(late, GreyMeans(), EndsOfSound(), Recipe(framing="ave"))
    few = write_video(tmp_path / "few.mkv", seconds=10, times=[1.25 * k for k in range(8)], frame_rate=1)
    with pytest.raises(AvelError, match=r"few\.mkv has only 8 pictures"):
        extract_clip(few, GreyMeans(), EndsOfSound(), Recipe(framing="ave"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"framing": "tenths"}, "framing 'tenths'"),
        ({"framing": "ave", "segment_seconds": 0.5}, "segments of 0.5 s"),
        ({"missing_audio": "zeros"}, "missing_audio 'zeros'"),
    ],
)
def test_choices_out_of_range(tiny_video: Path, tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(AvelError, match=words):
        extract_clip(tiny_video, GreyMeans(), EndsOfSound(), Recipe(**options))
    with pytest.raises(AvelError, match=words):
        extract(tiny_video, tmp_path / "store", Recipe(**options))
    assert not (tmp_path / "store").exists()


def test_tags(visual: VisualExtractor, audio: AudioExtractor) -> None:
    for extractor in (visual, audio):
        assert extractor.tag == TAGS[extractor.kind] == describe(extractor)["tag"]
        assert set(describe(extractor)) == {"name", "tag", "options"}
        described = describe(extractor, "ave")
        assert described["framing"] == "ave" and described["options"] == extractor.options
        assert described["tag"].startswith("classical-") and described["tag"] != extractor.tag
    few = build_visual("classical", frames_per_segment=4)
    assert few.tag != visual.tag and few.options["frames_per_segment"] == 4
    assert build_visual("classical", frames_per_segment=16).tag == visual.tag


def test_a_store_says_its_framing_and_takes_no_other(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=10, size=(16, 16))
    out = tmp_path / "store"
    extract(path, out, Recipe(framing="ave"), workers=0)
    store = open_store(out)
    assert store.framing == "ave" and store.clips[0].segments == 10
    assert {kind: store.extractors[kind]["framing"] for kind in TAGS} == {"visual": "ave", "audio": "ave"}
    assert all(store.extractors[kind]["tag"] != TAGS[kind] for kind in TAGS)
    assert extract(path, out, Recipe(framing="ave"), workers=0).skipped == 1
    with pytest.raises(AvelError, match=r"framing 'ave'\n.*framing 'time'"):
        extract(path, out, workers=0)
    extract(path, tmp_path / "usual", workers=0)
    usual = open_store(tmp_path / "usual")
    assert usual.framing == "time" and {kind: usual.extractors[kind]["tag"] for kind in TAGS} == TAGS


@pytest.mark.parametrize("each", [2, 6, 16, 32])
def test_frames_per_segment(tmp_path: Path, each: int) -> None:
    extractor = build_visual("classical", frames_per_segment=each)
    path = write_video(tmp_path / "a.mp4", seconds=3, noise=20)
    found = extract_clip(path, extractor, build_audio("classical")).visual
    assert found.shape == (3, 7, 7, extractor.dim) and np.isfinite(found).all()
    built = Recipe(visual_options={"frames_per_segment": each}).build()
    assert built.recipe.build().settings == built.settings
    assert built.settings.visual_dim == extractor.dim


@pytest.mark.parametrize("each", [0, 1, 7, 66, -2])
def test_frames_per_segment_out_of_range(each: int) -> None:
    with pytest.raises(AvelError, match="frames a segment"):
        build_visual("classical", frames_per_segment=each)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--frames-per-segment", "0"], "0 frames a segment"), (["--framing", "ave", "--segment-seconds", "2"], "'ave'")],
)
def test_the_command_line_refuses_choices_out_of_range(
    tiny_video: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["extract", str(tiny_video), "--out", str(tmp_path / "store"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_the_command_line_passes_the_choices_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=10, size=(16, 16))
    words = ["--framing", "ave", "--frames-per-segment", "4", "--workers", "1"]
    assert cli.main(["extract", str(path), "--out", str(tmp_path / "store"), *words]) == 0
    store = open_store(tmp_path / "store")
    assert store.framing == "ave" and store.extractors["visual"]["options"]["frames_per_segment"] == 4

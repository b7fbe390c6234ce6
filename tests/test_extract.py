"""Videos to a store: segments, failures, resuming after any kill, and the same bytes however it came about."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import EndsOfSound, GreyMeans
from hypothesis import given
from hypothesis import strategies as st
from media import grey_of, read_failures, write_video
from synthetic import assert_unchanged
from worker_tasks import prepare_timing

import avel.features.estimate as estimate_module
import avel.features.extract as extract_module
import avel.features.recipe as recipe_module
from avel import cli
from avel.data import store_writing
from avel.data.store import WORK, open_store
from avel.data.table import Clip
from avel.errors import AvelError
from avel.features import AudioExtractor, VisualExtractor, build_extractor, describe
from avel.features.estimate import estimate_seconds
from avel.features.extract import extract
from avel.features.recipe import Recipe
from avel.features.segments import BATCH_SEGMENTS, AudioSegments, extract_clip
from avel.features.sources import read_source
from avel.files import held_alone

Clips = Callable[[Path, int], Path]


def test_segments_show_the_frames_nearest_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=3)
    found = extract_clip(path, GreyMeans(), EndsOfSound()).visual[:, 0, 0]
    wanted = [[grey_of(int((t + i / 16) * 10 + 1e-6)) for i in range(16)] for t in range(3)]
    assert found.shape == (3, 16) and np.abs(found - wanted).max() < 3
    halves = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(segment_seconds=0.5)).visual[:, 0, 0]
    wanted = [[grey_of(int((t + i / 16) * 5 + 1e-6)) for i in range(16)] for t in range(6)]
    assert halves.shape == (6, 16) and np.abs(halves - wanted).max() < 3


@pytest.mark.parametrize(
    ("video_seconds", "audio_seconds", "segments"),
    [(3.0, 3.0, 3), (3.0, 2.0, 2), (2.0, 3.4, 2), (2.4, 2.4, 2), (2.6, 2.6, 3), (0.3, 3.0, 1), (6.6, 5.6, 6)],
)
def test_number_of_segments(tmp_path: Path, video_seconds: float, audio_seconds: float, segments: int) -> None:
    path = write_video(tmp_path / "a.mov", seconds=video_seconds, audio_seconds=audio_seconds, audio_codec="pcm_s16le")
    features = extract_clip(path, GreyMeans(), EndsOfSound())
    assert features.duration == pytest.approx(min(video_seconds, audio_seconds), abs=0.01)
    assert features.visual.shape == (segments, 1, 1, 16) and features.visual.dtype == np.float16
    assert features.audio.shape == (segments, 3) and features.audio.dtype == np.float32
    last = min(round(video_seconds * 10), round(segments * 10)) - 1  # the last frame stays to the end
    assert abs(float(features.visual[-1, 0, 0, -1]) - grey_of(last)) < 3


@given(
    st.lists(st.integers(1, 30_000), min_size=1, max_size=12),
    st.sampled_from([0.3, 0.5, 0.96, 1.0, 1.2]),
)
def test_sound_is_cut_at_its_seconds(lengths: list[int], segment_seconds: float) -> None:
    total = sum(lengths)
    wave = np.arange(1, total + 1, dtype=np.float32)
    segments = AudioSegments(EndsOfSound(), segment_seconds)
    start = 0
    for length in lengths:
        segments._add(wave[start : start + length])
        start += length
    number = max(1, round(total / 16_000 / segment_seconds))
    found = segments.finish(number)
    samples = round(segment_seconds * 16_000)
    for t in range(number):
        first = round(t * segment_seconds * 16_000)
        last = first + samples - 1
        assert found[t].tolist() == [wave[first], wave[last] if last < total else 0.0, samples]


def test_real_features(tiny_video: Path, visual: VisualExtractor, audio: AudioExtractor) -> None:
    seen: list[tuple[str, int, int]] = []
    features = extract_clip(tiny_video, visual, audio, progress=lambda *now: seen.append(now))
    assert features.visual.shape == (3, *visual.grid, visual.dim) and features.audio.shape == (3, audio.dim)
    assert seen == [("decode", done, 3) for done in (1, 2, 3)]


def test_a_long_video_takes_no_more_memory(tmp_path: Path) -> None:
    held: list[int] = []

    class Counting(GreyMeans):
        def __call__(self, frames: np.ndarray) -> np.ndarray:
            held.append(len(frames))
            return super().__call__(frames)

    extract_clip(write_video(tmp_path / "a.mp4", seconds=20), Counting(), EndsOfSound())
    assert max(held) <= 16 * BATCH_SEGMENTS and sum(held) >= 20 * 16


def test_a_picture_that_stands_still_for_minutes_is_looked_at_once(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(GreyMeans):
        def __call__(self, frames: np.ndarray) -> np.ndarray:
            calls.append(len(frames))
            return super().__call__(frames)

    times = [0, 0.5, 60, 60.5, 61]
    path = write_video(tmp_path / "a.mkv", times=times, seconds=61, audio_codec="pcm_s16le")
    found = extract_clip(path, Counting(), EndsOfSound()).visual[:, 0, 0]
    wanted = [[grey_of(int(np.searchsorted(times, t + i / 16 + 1e-6)) - 1) for i in range(16)] for t in range(61)]
    assert found.shape == (61, 16) and np.abs(found - wanted).max() < 3
    assert calls == [64, 64, 16]  # seconds 0 to 3; 4 to 7, which stand for those to 59; second 60


def test_build_and_describe() -> None:
    extractor = build_extractor("visual", "classical")
    told = describe(extractor)
    assert describe(build_extractor("visual", told["name"], **told["options"])) == told
    assert told["tag"].startswith("classical-") and len(told["tag"]) == len("classical-") + 12
    for kind in ("visual", "audio"):
        with pytest.raises(AvelError, match="is called 'vgg'"):
            build_extractor(kind, "vgg")
        with pytest.raises(AvelError, match=r"has no option 'size'\n  expected: .*version \(1\)"):
            build_extractor(kind, "classical", size=3)
        for value in ("one", 1.5, True, None):
            with pytest.raises(AvelError, match=f"version {value!r} of the {kind} .*\n  expected: a whole number"):
                build_extractor(kind, "classical", version=value)
        with pytest.raises(AvelError, match="version 99"):
            build_extractor(kind, "classical", version=99)


def contents(out: Path) -> dict[str, bytes]:
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def reference(tiny_clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A CSV of four clips and the store that an undisturbed run makes of it, a shard for each clip."""
    folder = tmp_path_factory.mktemp("reference")
    table = tiny_clips(folder / "clips", 4)
    before, store_writing.SHARD_BYTES = store_writing.SHARD_BYTES, 1
    extract(table, folder / "store", workers=0)
    yield table, folder / "store"
    store_writing.SHARD_BYTES = before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded in this process."""
    names: list[str] = []
    original = extract_clip

    def counting(path: Path, *arguments: object, **options: object) -> object:
        names.append(Path(path).name)
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(extract_module, "extract_clip", counting)
    return names


def test_store_of_a_table(reference: tuple[Path, Path]) -> None:
    table, out = reference
    store = open_store(out)
    assert_unchanged(store)
    assert [clip.id for clip in store.clips] == [f"clip{k}.mp4" for k in range(4)]
    assert store.classes == ("bell", "dog") and store.split("test") == [0] and store.split("train") == [1, 2, 3]
    assert [store.labels(k).tolist() for k in range(4)] == [[0, 2], [1, 2], [0, 2], [1, 2]]
    assert {file.name for file in out.iterdir()} == {"store.json", *(clip.shard for clip in store.clips)}
    features = extract_clip(
        table.parent / "clip2.mp4", build_extractor("visual", "classical"), build_extractor("audio", "classical")
    )
    assert np.array_equal(store.visual(2).numpy(), features.visual)
    assert np.array_equal(store.audio(2).numpy(), features.audio)


def test_workers_make_the_same_bytes(reference: tuple[Path, Path], tmp_path: Path) -> None:
    table, out = reference
    seen: list[tuple[str, int, int]] = []
    report = extract(table, tmp_path / "store", workers=2, progress=lambda *now: seen.append(now))
    assert (report.done, report.skipped, report.failed) == (4, 0, [])
    assert contents(tmp_path / "store") == contents(out)
    assert seen == [("extract", k, 4) for k in range(5)] + [("pack", k, 4) for k in range(1, 5)]


def test_a_finished_store_is_left_alone(reference: tuple[Path, Path], calls: list[str]) -> None:
    table, out = reference
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.iterdir()}
    report = extract(table, out, workers=0)
    assert (report.done, report.skipped, calls) == (0, 4, [])
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.iterdir()} == before


def test_what_changes_is_redone_and_nothing_else(tiny_clips: Clips, tmp_path: Path, calls: list[str]) -> None:
    table = tiny_clips(tmp_path / "clips", 3)
    out = tmp_path / "store"
    extract(table, out, workers=0)
    shards = {file: file.stat().st_ino for file in out.glob("shard-*")}
    calls.clear()

    table.write_text(table.read_text().replace("dog", "cat"))  # other labels
    assert extract(table, out, workers=0).skipped == 3
    assert open_store(out).classes == ("bell", "cat") and calls == []
    assert {file: file.stat().st_ino for file in out.glob("shard-*")} == shards

    (tmp_path / "clips" / "clip1.mp4").touch()  # another date is no other content
    assert extract(table, out, workers=0).skipped == 3 and calls == []

    tiny_clips(tmp_path / "clips", 4)  # another clip
    assert extract(table, out, workers=0).done == 1 and calls == ["clip3.mp4"]
    calls.clear()

    write_video(tmp_path / "clips" / "clip1.mp4", seconds=2, tone=5000)  # another file under the old name
    old = open_store(out).audio(1).clone()
    assert extract(table, out, workers=0).done == 1 and calls == ["clip1.mp4"]
    assert not np.array_equal(open_store(out).audio(1).numpy(), old.numpy())
    assert_unchanged(open_store(out))

    fresh = tmp_path / "fresh"
    extract(table, fresh, workers=0)
    assert contents(fresh) == contents(out)


def test_a_store_of_another_making_is_refused(reference: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    table, out = reference
    with pytest.raises(AvelError, match="segments of 1 s"):
        extract(table, out, Recipe(segment_seconds=0.5))
    tag = open_store(out).extractors["audio"]["tag"]
    real = recipe_module.build_audio

    def other(name: str, **options: object) -> AudioExtractor:
        extractor = real(name, **options)
        extractor.tag = "classical-000000000000"  # type: ignore[misc]
        return extractor

    monkeypatch.setattr(recipe_module, "build_audio", other)
    with pytest.raises(AvelError, match=f"audio features of the extractor {tag}\n.*classical-000000000000"):
        extract(table, out)


def test_failures_are_listed_and_tried_again(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 3)
    out = tmp_path / "store"
    good = (tmp_path / "clips" / "clip1.mp4").read_bytes()
    (tmp_path / "clips" / "clip1.mp4").write_bytes(good[: len(good) // 2])
    text = table.read_text()
    table.write_text(text.replace("clip2.mp4,0,1", "clip2.mp4,7,8"))
    for workers in (2, 0):
        report = extract(table, out, workers=workers)
        assert [failure["id"] for failure in report.failed] == ["clip1.mp4", "clip2.mp4"]
        assert "truncated" in report.failed[0]["cause"] and "starts at 7 s" in report.failed[1]["cause"]
        assert read_failures(out) == report.failed
        assert [clip.id for clip in open_store(out).clips] == ["clip0.mp4"]
    (tmp_path / "clips" / "clip1.mp4").write_bytes(good)
    table.write_text(text)
    report = extract(table, out, workers=0)
    assert report.failed == [] and len(open_store(out).clips) == 3
    assert not (out / "failures.jsonl").exists()


def test_all_clips_failed(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"rubbish")
    with pytest.raises(AvelError, match=r"none of the 1 clips could be used.*not a media file"):
        extract(tmp_path / "a.mp4", tmp_path / "store")
    assert read_failures(tmp_path / "store")[0]["id"] == "a.mp4"


def test_sources(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 2)
    folder = table.parent
    (folder / "sub").mkdir()
    (folder / "sub" / "x.MP4").write_bytes((folder / "clip0.mp4").read_bytes())
    (folder / "notes.md").touch()
    (tmp_path / "list.txt").write_text("clips/clip1.mp4\n\nclips/clip0.mp4\nclips/clip1.mp4\n")
    assert read_source(table)[1]
    for source, ids in (
        (folder, ["clip0.mp4", "clip1.mp4", "sub/x.MP4"]),
        (folder / "clip0.mp4", ["clip0.mp4"]),
        (tmp_path / "list.txt", ["clips/clip1.mp4", "clips/clip0.mp4"]),
    ):
        clips, labelled, _ = read_source(source)
        assert [clip.id for clip in clips] == ids and not labelled
        assert all(clip.path.is_file() and clip.spans == () and clip.splits == () for clip in clips)
    extract(tmp_path / "list.txt", tmp_path / "store", workers=0)
    assert [clip.spans for clip in open_store(tmp_path / "store").clips] == [None, None]


def test_odd_names_and_links(tiny_video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    names = [os.fsdecode(b"caf\xe9.mp4"), "[bold]a\nb.mp4", "sub/ä.mp4"]
    for name in names:
        (folder / name).write_bytes(tiny_video.read_bytes())
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "folder.mp4").mkdir()
    report = extract(folder, tmp_path / "store", workers=0)
    assert [clip.id for clip in open_store(tmp_path / "store").clips] == sorted(names)
    assert {failure["id"] for failure in report.failed} == {"dangling.mp4", "self.mp4"}
    assert all("no such file" in failure["cause"] for failure in report.failed)
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfsub/\xc3\xa4.mp4\r\ncaf\xe9.mp4\r\n")  # a BOM, and Latin-1
    assert [clip.id for clip in read_source(folder / "list.txt")[0]] == [names[2], names[0]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "no such file"),
        ("none.mp4", None, "no such file or folder"),
        ("empty", "", "no videos in the folder"),
        ("empty.txt", "\n", "is empty"),
        ("list.txt", "x.mp4\n", "line 1: no such file"),
        ("long.txt", f"{'x' * 5000}\n", "line 1: no such file"),
        ("x" * 5000, None, "no such file or folder"),
    ],
)
def test_bad_sources(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if name == "empty":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(AvelError, match=words):
        extract(tmp_path / name, tmp_path / "store")


def test_out_is_a_file(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 1)
    (tmp_path / "store").touch()
    with pytest.raises(AvelError, match="is a file"):
        extract(table, tmp_path / "store")


def test_two_runs_in_one_folder(tiny_clips: Clips, tmp_path: Path) -> None:
    table, out = tiny_clips(tmp_path / "clips", 1), tmp_path / "store"
    out.mkdir()
    with held_alone(out), pytest.raises(AvelError, match="another run is writing to"):
        extract(table, out, workers=0)
    assert list(out.iterdir()) == []
    assert extract(table, out, workers=0).done == 1
    assert {file.name[:5] for file in out.iterdir()} == {"store", "shard"}


def test_workers_have_ended_when_an_error_comes_out(tiny_clips: Clips, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if done:
            raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="own"):
        extract(tiny_clips(tmp_path / "clips", 2), tmp_path / "store", workers=1, progress=progress)
    assert multiprocessing.active_children() == []


def test_a_file_that_changes_while_it_is_read_has_failed(
    tiny_clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny_clips(tmp_path / "clips", 2)
    original = extract_clip

    def growing(path: Path, *arguments: object, **options: object) -> object:
        found = original(path, *arguments, **options)  # type: ignore[arg-type]
        if path.name == "clip1.mp4":
            path.write_bytes(path.read_bytes() + b"more")
        return found

    monkeypatch.setattr(extract_module, "extract_clip", growing)
    report = extract(table, tmp_path / "store", workers=0)
    assert report.done == 1 and "clip1.mp4 changed while it was read" in report.failed[0]["cause"]


def test_an_estimate_is_the_work_of_all_clips_shared_by_the_workers(
    tiny_clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny_clips(tmp_path / "clips", 4)
    monkeypatch.setattr(estimate_module, "_prepare", prepare_timing)  # 10 s each, half a second's work a second
    found = {workers: estimate_seconds(table, workers=workers) for workers in (0, 1, 2, 100)}
    assert found == {0: 20.0, 1: 20.0, 2: 10.0, 100: 5.0}


def test_a_clip_is_timed_by_the_second(tiny_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 106.0])
    monkeypatch.setattr(estimate_module, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    look = estimate_module._prepare(Recipe())
    found = look((Clip("tiny.mp4", tiny_video, ()), True), lambda: None)
    assert not isinstance(found, str)
    duration, speed = found
    assert duration == pytest.approx(3, abs=0.1) and speed == 6.0 / duration


def test_an_event_that_starts_where_its_clip_ends_has_failed_and_one_that_ends_there_has_not(
    tiny_clips: Clips, tmp_path: Path
) -> None:
    table = tiny_clips(tmp_path / "clips", 2)
    extract(table.parent, tmp_path / "unlabelled", workers=0)
    end = open_store(tmp_path / "unlabelled").clips[0].duration
    table.write_text(f"video,start,end,label\nclip0.mp4,{end!r},{end + 0.5!r},bell\nclip1.mp4,1,{end!r},dog\n")
    report = extract(table, tmp_path / "store", workers=0)
    assert report.failed == [
        {
            "id": "clip0.mp4",
            "cause": f"the event 'bell' starts at {end:g} s, but picture and sound together end at {end:g} s",
        }
    ]


def test_estimate_with_broken_clips(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 4)
    for k in range(3):
        (table.parent / f"clip{k}.mp4").write_bytes(b"rubbish")
    assert estimate_seconds(table, workers=1) > 0
    (table.parent / "clip3.mp4").unlink()
    with pytest.raises(AvelError, match=r"none of the clips that were tried.*clip0.mp4 is not a media file"):
        estimate_seconds(table.parent, workers=1)


def test_an_estimate_of_long_videos_takes_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=60, frame_rate=2, size=(32, 32))
    monkeypatch.setattr(estimate_module, "TIMED_SECONDS", 0.0)
    shown: list[int] = []
    look = estimate_module._prepare(Recipe())
    duration, speed = look((Clip("a.mp4", path, ()), True), lambda: shown.append(1))
    assert duration == pytest.approx(60, abs=0.2) and speed > 0 and len(shown) < 10


def test_the_limits_hold_for_the_estimate_and_a_bad_estimate_stops_nothing(
    tiny_clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tiny_clips(tmp_path / "clips", 9)
    with pytest.raises(AvelError, match="no progress for 1e-06 s"):
        estimate_seconds(table.parent / "clip0.mp4", Recipe(clip_seconds_limit=1e-6))

    def estimate(source: Path, recipe: Recipe, **options: object) -> float:
        assert recipe.clip_memory_limit == 3
        raise AvelError("none of the clips looked at", "other clips", "choose them")

    monkeypatch.setattr(estimate_module, "estimate_seconds", estimate)
    words = ["extract", str(table), "--out", str(tmp_path / "store"), "--workers", "1", "--clip-memory-limit", "3"]
    assert cli.main(words) == 0 and "9 clips extracted" in capsys.readouterr().out


def test_progress_of_a_resumed_run_starts_where_the_last_one_ended(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 2)
    extract(table.parent, tmp_path / "store", workers=0)
    tiny_clips(tmp_path / "clips", 4)
    seen: list[tuple[str, int, int]] = []
    extract(table.parent, tmp_path / "store", workers=0, progress=lambda *now: seen.append(now))
    looks, extracts = [("look", k, 2) for k in (1, 2)], [("extract", k, 4) for k in (2, 3, 4)]
    assert seen[:5] == looks + extracts and seen[-1] == ("pack", 4, 4)


START = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
import avel.data.store_writing as store, avel.features.segments as segments, avel.features.extract as extract
store.SHARD_BYTES = 1
table, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
"""
RUN = "\nextract.extract(table, out, workers=workers)\n"
KILL = """
place, moment, calls = sys.argv[4], int(sys.argv[5]), 0
def killing(function, half=False):
    def called(*arguments, **options):
        global calls
        calls += 1
        if calls == moment:
            if half:  # of the file that was written is on the disk
                file = arguments[0]
                os.truncate(f"/proc/self/fd/{file}", os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return called
if place == "decode":
    segments.Scaler.__call__ = killing(segments.Scaler.__call__)
elif place == "write":
    os.fsync = killing(os.fsync, half=True)
elif place == "rename":
    os.replace = killing(os.replace)
else:
    store._remove_leftovers = killing(store._remove_leftovers)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START + code + RUN, *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def end_group(process: subprocess.Popen[str]) -> str:
    """Kill what is left of the group; returns what it wrote to stderr."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=30)[1]


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


# Two frames a tenth of a second are scaled: about 20 a clip. Writes and renames: 4 parts, 4 shards, store.json.
@pytest.mark.parametrize(
    ("place", "moments"),
    [
        ("decode", (5, 25, 30)),
        pytest.param("write", (1, 2, 2), marks=pytest.mark.slow),
        pytest.param("rename", (1, 2, 2), marks=pytest.mark.slow),
        ("write", (5, 2, 4)),
        pytest.param("rename", (6, 2, 2), marks=pytest.mark.slow),
        ("clean", (1, 1, 1)),
    ],
)
def test_killed_three_times_then_resumed(
    reference: tuple[Path, Path], tmp_path: Path, calls: list[str], place: str, moments: tuple[int, ...]
) -> None:
    table, whole = reference
    out = tmp_path / "store"
    kept: dict[str, tuple[int, int]] = {}
    for moment in moments:
        process = start(KILL, table, out, 0, place, moment)
        process.wait(timeout=60)
        errors = end_group(process)
        assert process.returncode == -signal.SIGKILL, errors
        now = {
            file.relative_to(out).as_posix(): (file.stat().st_ino, file.stat().st_mtime_ns)
            for file in out.rglob("*.safetensors")
        }
        assert kept.items() <= now.items()  # what was finished is there, and was not written again
        kept = now
    parts = [name for name in kept if name.startswith(f"{WORK}/")]
    finished = 4 if (out / "store.json").exists() else len(parts)
    report = extract(table, out, workers=0)
    assert (report.done, report.skipped, len(calls)) == (4 - finished, finished, 4 - finished)
    assert contents(out) == contents(whole)
    for name, state in kept.items():
        if name not in parts:
            assert (out / name).stat().st_ino == state[0]


@pytest.mark.slow
def test_two_hundred_clips_killed_at_ten_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "clips", tmp_path / "store"
    folder.mkdir()
    for k in range(200):
        write_video(folder / f"{k:03d}.mp4", seconds=1, tone=100.0 + 20 * k)
    (folder / "137.mp4").write_bytes((folder / "137.mp4").read_bytes()[:2000])
    monkeypatch.setattr(store_writing, "SHARD_BYTES", 200_000)  # a dozen shards
    assert extract(folder, tmp_path / "whole", workers=2).done == 199

    generator = random.Random(0)
    kept: dict[Path, tuple[int, int]] = {}
    for number in sorted(generator.sample(range(199), 10)):  # of clips that are finished when it happens, at least
        process = start("store.SHARD_BYTES = 200_000", folder, out, 2)
        wait_until(lambda: len(parts_of(out)) >= number or process.poll() is not None, 120)  # noqa: B023
        time.sleep(generator.uniform(0, 0.1))
        assert process.poll() is None, end_group(process)
        os.killpg(process.pid, signal.SIGKILL)
        end_group(process)
        now = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in parts_of(out)}
        assert kept.items() <= now.items()  # what was finished is there, and was not written again
        kept = now
    report = extract(folder, out, workers=2)
    assert (report.done, report.skipped) == (199 - len(kept), len(kept)) and len(kept) > 100
    assert contents(out) == contents(tmp_path / "whole")


STOPPED = """
extracted = extract.extract
def progress(stage, done, total):
    if stage == "extract" and done == 2:
        signal.pause()  # however late the test's signal comes, it comes in the middle of the work
extract.extract = lambda *arguments, **options: extracted(*arguments, progress=progress, **options)
"""


def parts_of(out: Path) -> list[Path]:
    return list((out / WORK).glob("*.safetensors"))


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_ctrl_c(tiny_clips: Clips, tmp_path: Path, workers: int) -> None:
    table = tiny_clips(tmp_path / "clips", 4)
    for k in range(4, 24):
        (table.parent / f"clip{k}.mp4").write_bytes((table.parent / f"clip{k % 4}.mp4").read_bytes())
    process = start(STOPPED, table.parent, tmp_path / "store", workers)
    wait_until(lambda: len(parts_of(tmp_path / "store")) >= 2 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    process.wait(timeout=60)
    wait_until(lambda: not is_alive(process.pid))
    errors = end_group(process)
    assert errors.rstrip().endswith("KeyboardInterrupt") and errors.count("Traceback") == 1, errors
    assert not (tmp_path / "store" / "store.json").exists()
    kept = len(parts_of(tmp_path / "store"))
    report = extract(table.parent, tmp_path / "store", workers=0)
    assert report.skipped == kept >= 2 and report.done == 24 - kept


def test_workers_end_with_their_parent(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 4)
    for k in range(4, 12):
        (table.parent / f"clip{k}.mp4").write_bytes((table.parent / f"clip{k % 4}.mp4").read_bytes())
    process = start(STOPPED, table.parent, tmp_path / "store", 2)
    wait_until(lambda: len(parts_of(tmp_path / "store")) >= 1 or process.poll() is not None)
    process.kill()
    process.wait(timeout=60)
    try:
        wait_until(lambda: not is_alive(process.pid))
    finally:
        end_group(process)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_room_on_the_disk_is_no_failed_clip(tiny_clips: Clips, tmp_path: Path, workers: int) -> None:
    table = tiny_clips(tmp_path / "clips", 2)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    process = start(limit, table, tmp_path / "store", workers)
    process.wait(timeout=60)
    errors = end_group(process)
    assert "AvelError: could not write" in errors and "run the same command again" in errors
    assert [file.name for file in (tmp_path / "store").rglob("*.safetensors")] == []


def test_workers_import_no_torch() -> None:
    code = "import sys, avel.features.extract; sys.exit(bool({'torch', 'h5py', 'rich', 'matplotlib'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_folder_of_aves_videos_in_the_order_of_its_annotations(tmp_path: Path, tiny_clips: Clips) -> None:
    tiny_clips(tmp_path / "clips", 2)
    videos = tmp_path / "AVE"
    videos.mkdir()
    for name, clip in {"ZZZ": "clip0", "AAA": "clip1"}.items():
        (videos / f"{name}.mp4").write_bytes((tmp_path / "clips" / f"{clip}.mp4").read_bytes())
    rows = ["Bark&ZZZ&good&0&1", "Cat&dead0000000&good&0&10", "Church bell&AAA&good&1&2", "Cat&ZZZ&good&1&10"]
    (tmp_path / "Annotations.txt").write_text("\n".join(rows))
    for name, order in {"train": [3, 1], "val": [2], "test": [0]}.items():
        with h5py.File(tmp_path / f"{name}_order.h5", "w") as file:
            file["order"] = np.array(order)
    report = extract(tmp_path / "Annotations.txt", tmp_path / "store", videos=videos, workers=0)
    assert report.done == 3 and [failure["id"] for failure in report.failed] == ["0001-dead0000000"]
    assert "dead0000000.mp4" in report.failed[0]["cause"]
    assert read_failures(tmp_path / "store") == report.failed
    store = open_store(tmp_path / "store")
    assert [clip.id for clip in store.clips] == ["0000-ZZZ", "0002-AAA", "0003-ZZZ"]
    assert store.clips[0].video == store.clips[2].video == "ZZZ"
    assert store.clips[0].checksum == store.clips[2].checksum != store.clips[1].checksum
    assert len(store.classes) == 28 and store.labels(0).tolist() == [2, 28] and store.labels(2).tolist() == [28, 22]
    assert (store.split("train"), store.split("val"), store.split("test")) == ([2], [1], [0])


def test_a_folder_without_any_of_aves_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Annotations.txt").write_text("Bark&ZZZ&good&0&1\n")
    with pytest.raises(AvelError, match="no video of"):
        extract(tmp_path / "Annotations.txt", tmp_path / "store", videos=tmp_path)
    assert not (tmp_path / "store").exists()

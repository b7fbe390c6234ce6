"""The rendered world: the plan, the files, and what happens when the work is stopped."""

import csv
import hashlib
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import worker_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from avel.data.table import read_table
from avel.errors import AvelError
from avel.types import Span
from avel.worlds.rendered import plan as world
from avel.worlds.rendered import scenes, sounds
from avel.worlds.rendered.render import (
    CLASSES,
    KINDS,
    ClipPlan,
    Second,
    Shot,
    _world,
    draw_clip,
    plan_world,
    render,
    render_clip,
    synthesize_clip,
)
from avel.worlds.rendered.things import THINGS, Canvas, draw, draw_distractor

SMALL = {"clips": 6, "long_videos": 0, "seconds": 2}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small world, made by two processes without a break; and the plans it was made from."""
    out = tmp_path_factory.mktemp("world") / "small"
    render(out, **SMALL, workers=2)
    return out, plan_world(clips=6, long_videos=0, seconds=2)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def one_shot(seconds: list[Second], **changes) -> ClipPlan:
    """A clip with these seconds in one place, without a voice."""
    labels = {one for second in seconds for one in (*second.visual, second.audio) if one}
    shot = Shot("place-test-3", None, tuple(f"{one}-test-1" for one in CLASSES if one in labels), tuple(seconds))
    return replace(ClipPlan("videos/x.mp4", "test", 5, 0, 25, (shot,)), **changes)


def decode(path: Path) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """All of both streams: pictures (N, H, W, 3), waveform (samples,), picture times."""
    with av.open(str(path)) as file:
        frames = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in file.decode(video=0)]
    with av.open(str(path)) as file:
        parts = list(file.decode(audio=0))
    assert parts[0].pts == 0
    return np.stack([f for f, _ in frames]), np.concatenate([p.to_ndarray()[0] for p in parts]), [t for _, t in frames]


# --- the plan ---


def test_plan_is_a_function_of_its_seed():
    assert plan_world(7, 40, 2) == plan_world(7, 40, 2)
    assert plan_world(7, 40, 2) != plan_world(8, 40, 2)
    assert not np.array_equal(next(draw_clip(plan_world(7, 1, 0)[0])), next(draw_clip(plan_world(8, 1, 0)[0])))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_share_of_background_and_balance_of_classes(seed):
    plans = plan_world(seed, 400, 10)[:400]
    kinds = Counter(second.kind for plan in plans for second in plan.seconds)
    assert sum(kinds.values()) == 4000 and set(kinds) == set(KINDS)
    assert 0.40 <= 1 - kinds["event"] / 4000 <= 0.54
    assert all(kinds[kind] / 4000 >= low for kind, low in
               {"sound_only": 0.08, "sight_only": 0.1, "wrong_sound": 0.13, "neither": 0.03}.items())  # fmt: skip
    assert Counter(plan.split for plan in plans) == {"train": 240, "val": 60, "test": 100}
    for split in ("train", "val", "test"):
        own = [plan for plan in plans if plan.split == split]
        owners = Counter(label for plan in own for label in {span.label for span in plan.spans})
        assert set(owners) == set(CLASSES)
        assert max(owners.values()) - min(owners.values()) <= 1 + 0.2 * len(own)
    assert any(not plan.spans for plan in plans)
    # the thing of a clip's event is silent in view, or its sound is without it, in most of the same clips
    both = 0
    for plan in plans:
        own = plan.spans[0].label if plan.spans else None
        rest = [second for second in plan.seconds if second.kind != "event"]
        both += any(second.audio == own or own in second.visual for second in rest) if own else 0
    assert both > 0.6 * 400


@pytest.mark.parametrize("seed", [0, 3])
def test_held_out_instances_places_and_voices_are_never_seen_in_training(seed):
    used: dict[str, set[str]] = {pool: set() for pool in world.POOLS}
    for plan in plan_world(seed, 400, 10):
        for shot in plan.shots:
            used[plan.pool] |= {shot.place, *shot.instances, *([shot.voice] if shot.voice else [])}
    for pool in world.POOLS:
        assert all(name.split("-")[1] == pool for name in used[pool])
        assert len({name.split("-")[0] for name in used[pool]}) == len(CLASSES) + 2
        for other in world.POOLS:
            assert pool == other or not used[pool] & used[other]
    looks = [THINGS["drum"].look(world.pool_generator(seed, f"drum-{pool}-{number}", 2))
             for pool in world.POOLS for number in range(8)]  # fmt: skip
    assert len(set(looks)) == len(looks)  # another name is another instance


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), seconds=st.integers(2, 25))
def test_events_are_stretches_of_two_to_ten_whole_seconds(seed, seconds):
    for plan in plan_world(seed, 4, 0, seconds):
        assert len(plan.seconds) == seconds
        labels: list[str | None] = [None] * seconds
        for span in plan.spans:
            assert span.start == int(span.start) and 2 <= span.end - span.start <= 10
            labels[int(span.start) : int(span.end)] = [span.label] * int(span.end - span.start)
        for label, second in zip(labels, plan.seconds, strict=True):
            assert label == (second.audio if second.audio and second.audio in second.visual else None)


def test_kinds_by_hand():
    assert Second(("bell",), "bell").kind == "event"
    assert Second(("dog", "bell"), "bell").kind == "event"
    assert Second(("bell",), "dog").kind == "wrong_sound"
    assert Second(("bell",), None).kind == "sight_only"
    assert Second((), "bell").kind == "sound_only"
    assert Second((), None).kind == "neither"


def test_long_videos_last_47_to_180_seconds_and_show_several_classes():
    plans = plan_world(1, 1, 20)[1:]
    for plan in plans:
        assert 47 <= len(plan.seconds) <= 180 and plan.split == "test" and plan.pool == "long"
        assert all(8 <= len(shot.seconds) <= 27 for shot in plan.shots)
        assert all(2 <= span.end - span.start <= 10 for span in plan.spans)
        assert len({span.label for span in plan.spans}) >= 2
    assert len({len(plan.seconds) for plan in plans}) > 5


def test_every_knob_is_told():
    kept = {"CLASSES", "KINDS", "POOLS", "THINGS"}
    names = {name for name in vars(world) if name.isupper() and not name.startswith("_")}
    assert set(world.knobs()) == names - kept


# --- frozen: the same seed gives what it gave before ---


def test_the_plan_is_frozen():
    """Every clip of the usual world, and every knob; computed before the module moved here."""
    facts = _world(plan_world(3, 400, 10), {"seed": 3})
    del facts["made_with"]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    assert digest == "00b76249b5c2a93548a22d3538866384d0bea4e05356bf19dc5c9ba0f4a1ffc3"


DRAWN = """
import hashlib
from avel.worlds.rendered import plan as world
from avel.worlds.rendered.render import CLASSES, draw_clip, plan_world, synthesize_clip
world.WIDTH, world.HEIGHT = 80, 60
plans = plan_world(seed=52, clips=11, long_videos=0, seconds=2)
assert {second.audio for plan in plans for second in plan.seconds} >= set(CLASSES)
assert {label for plan in plans for second in plan.seconds for label in second.visual} >= set(CLASSES)
print(hashlib.sha256(b"".join(frame.tobytes() for plan in plans for frame in draw_clip(plan))).hexdigest())
print(hashlib.sha256(b"".join(synthesize_clip(plan).tobytes() for plan in plans)).hexdigest())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the digests were computed on x86_64")
def test_pictures_and_sounds_are_frozen():
    """All ten classes before encoding, small; numpy keeps to what every x86_64 processor can do.

    With AVX2 or AVX-512, numpy's float32 sines and exponentials differ in the last bit. The pictures are the same.
    """
    plain = {**os.environ, "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}
    said = subprocess.run([sys.executable, "-c", DRAWN], env=plain, capture_output=True, text=True, check=True).stdout
    assert said.split() == [
        "b767eb3be519db7d536167e55f0492c627f918364e86964d9227be595860362e",
        "b5423e81e4d186cf2cd6705977ac450b782abe9d0c0b8d93a880fd9012f4d1a0",
    ]


# --- the sounds ---


@pytest.mark.parametrize("label", CLASSES)
def test_every_second_of_a_sound_has_a_full_stroke(label):
    for number in range(4):
        plan = one_shot([Second((label,), label)] * 5, seed=number)
        period, offset = world.pace(plan, 0, f"{label}-test-1")
        wave = sounds.sound(label, world.pool_generator(number, f"{label}-test-1", 1), period, offset, 5 * 24_000)
        assert wave.dtype == np.float32 and np.isfinite(wave).all() and abs(wave).max() < 8
        for second in range(5):
            starts = offset + period * np.arange(-2, 80)
            whole = (starts >= second) & (starts + min(period, 0.86) * 0.9 <= second + 1)
            assert whole.any() or (period > 0.45 and ((starts >= second) & (starts + 0.4 <= second + 1)).any())
            frames = wave[second * 24_000 :][:24_000].reshape(20, -1)
            assert np.sqrt((frames**2).mean(1)).max() > 0.5  # as loud as the class's loud parts


def test_instances_differ_and_one_instance_is_always_itself():
    def wave(name: str, samples: int) -> np.ndarray:
        return sounds.sound("bell", world.pool_generator(0, name, 1), 0.45, 0.1, samples)

    assert np.array_equal(wave("bell-train-0", 24_000), wave("bell-train-0", 24_000))
    assert abs(wave("bell-train-0", 24_000) - wave("bell-test-0", 24_000)).max() > 0.1


def test_gate_keeps_whole_seconds_and_fades_inside_them():
    wave = sounds.gate(np.ones(4 * 24_000, np.float32), [(1, 2), (3, 4)])
    assert not wave[:24_000].any() and not wave[48_000:72_000].any()
    assert wave[24_000] == 0 and wave[24_000 + 360 : 48_000 - 360].min() == 1


def test_noise_keeps_to_its_band():
    wave = sounds.noise(np.random.default_rng(0), 24_000, 500, 2000)
    power = abs(np.fft.rfft(wave)) ** 2
    assert power[500:2000].sum() > 0.8 * power.sum() and np.isclose((wave**2).mean(), 1, rtol=1e-4)


def test_voice_is_loud_enough_and_finite():
    for number in range(5):
        wave = sounds.voice(np.random.default_rng(number), np.random.default_rng(9), 120_000)
        assert np.isfinite(wave).all() and 0.9 < sounds.loudness(wave) < 1.1


# --- the pictures ---


def test_shapes_by_hand():
    canvas = Canvas(100, 200)
    assert canvas.x.min() == pytest.approx(-1.99) and canvas.y.max() == pytest.approx(0.99)
    canvas.shape(canvas.circle(1.0, 0.0, 0.5), (200, 100, 50))
    red, alpha = canvas.planes[0], canvas.planes[3]
    assert alpha[50, 150] == 1 and red[50, 150] == 200 and alpha[50, 50] == 0
    assert alpha.sum() == pytest.approx(np.pi * 25**2, rel=0.01)
    square = Canvas(100, 100)
    square.shape(square.polygon([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]), (255, 255, 255))
    assert square.planes[3].sum() == pytest.approx(2500, rel=0.01)
    turned = Canvas(100, 100)
    view = turned.turned(np.pi / 2)
    view.shape(view.box(0.5, 0, 0.3, 0.1), (255, 255, 255))
    assert turned.planes[3][75, 50] == 1 and turned.planes[3][50, 75] == 0  # a quarter turn clockwise, y down


@pytest.mark.parametrize("label", CLASSES)
def test_things_move_with_their_beat(label):
    thing = THINGS[label]
    look = thing.look(np.random.default_rng(1))
    poses = [draw(label, look, cycle / 6 * thing.cycle, 64).planes for cycle in range(6)]
    for planes in poses:
        assert planes.shape == (4, 64, round(64 * thing.aspect)) and np.isfinite(planes).all()
        assert planes[3].min() >= 0 and planes[3].max() == pytest.approx(1, abs=1e-5)
        assert 0.08 < planes[3].mean() < 0.95
    assert max((abs(pose - poses[0])[:3].max(0) > 50).mean() for pose in poses) > 0.01


def test_places_and_distractors_of_every_kind():
    places = [scenes.paint_place(np.random.default_rng(number), 96, 128) for number in range(24)]
    assert all(place.shape == places[0].shape and place.std() > 3 for place in places)
    for number in range(24):
        planes = draw_distractor(np.random.default_rng(number), 24).planes
        assert np.isfinite(planes).all() and planes[3].max() > 0.9


def test_a_thing_is_in_view_in_its_seconds_only(monkeypatch):
    for name, value in (("CLUTTER", (0, 0)), ("SHAKE", 0.0), ("GRAIN", (0.0, 0.0))):
        monkeypatch.setattr(world, name, value)
    for label in CLASSES:
        nothing, seen, still = Second((), label), Second((label,), None), Second((label,), "bell", False)
        frames = np.stack(list(draw_clip(one_shot([nothing, seen, still, nothing])))).astype(np.int16)
        assert frames.shape == (100, world.HEIGHT, world.WIDTH, 3)
        present = (abs(frames - frames[0]).max(3) > 20).sum((1, 2)) > 150
        assert present.tolist() == [False] * 25 + [True] * 50 + [False] * 25
        moves = abs(np.diff(frames[29:46], axis=0)).max(3).sum((1, 2)).max()
        assert moves > 500 and not np.diff(frames[54:70], axis=0).any()  # at rest it is quite still


# --- the files ---


def test_both_streams_last_exactly_as_planned(small):
    out, plans = small
    for plan in plans:
        with av.open(str(out / plan.video)) as file:
            assert [stream.codec_context.name for stream in file.streams] == ["h264", "aac"]
            assert [float(stream.duration * stream.time_base) for stream in file.streams] == [2, 2]
            assert file.duration == 2_000_000
        pictures, wave, times = decode(out / plan.video)
        assert len(pictures) == 2 * plan.frame_rate
        assert 0 <= len(wave) - 2 * sounds.SAMPLE_RATE < 1024  # a decoder gives the last AAC frame whole
        assert np.allclose(times, np.arange(len(times)) / plan.frame_rate, atol=1e-4)


def test_sound_and_picture_stay_in_their_second(tmp_path, monkeypatch):
    calm = {"NOISE_DB": (-90, -90), "LEVEL_DB": (0, 0), "CLUTTER": (0, 0), "SHAKE": 0.0, "GRAIN": (0.0, 0.0)}
    for name, value in calm.items():
        monkeypatch.setattr(world, name, value)
    for rate, label in ((24, "drum"), (25, "clock"), (30, "rooster")):
        nothing, event = Second((), None), Second((label,), label)
        plan = one_shot([nothing, nothing, event, event, nothing, event, nothing], frame_rate=rate)
        render_clip(plan, tmp_path / "x.mp4")
        pictures, wave, _ = decode(tmp_path / "x.mp4")
        wave = wave[: 7 * sounds.SAMPLE_RATE]
        energy = (wave.reshape(7, -1) ** 2).sum(1)
        assert (energy / energy.max() > 0.2).tolist() == [False, False, True, True, False, True, False]
        assert energy[[0, 1, 4, 6]].max() < 1e-3 * energy.max()
        seen = (abs(pictures.astype(np.int16) - pictures[0]).max(3) > 40).sum((1, 2)) > 150
        seen = seen.reshape(7, rate)[:, 1:-1]  # it is faint in the first and last frame of a stretch
        assert (seen == np.array([False, False, True, True, False, True, False])[:, None]).all()
        planned = synthesize_clip(plan)
        lags = [np.dot(planned[2000:-2000], wave[2000 + lag : len(wave) - 2000 + lag]) for lag in range(-1500, 1501)]
        assert abs(int(np.argmax(lags)) - 1500) <= 1  # the encoder's priming is gone


def test_tables_say_what_was_planned(small, tmp_path):
    out, plans = small
    clips = read_table(out / "clips.csv")
    assert [(clip.id, clip.spans, clip.splits) for clip in clips] == [(p.video, p.spans, (p.split,)) for p in plans]
    facts = json.loads((out / "world.json").read_text())
    assert facts["settings"]["seed"] == 0 and tuple(facts["classes"]) == CLASSES
    assert [clip["kind"] for clip in facts["clips"]] == [[second.kind for second in plan.seconds] for plan in plans]
    assert not (out / "long.csv").exists()


def test_same_seed_same_bytes_whatever_the_number_of_workers(small, tmp_path):
    calls = []
    path = render(tmp_path / "w", **SMALL, workers=0, progress=lambda *call: calls.append(call))
    assert path == tmp_path / "w" / "clips.csv"
    assert contents(tmp_path / "w") == contents(small[0])
    assert calls == [("render", done, 6) for done in range(7)]


def test_background_only_clip_and_long_table(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "EVENT_FREE", 1.0)
    monkeypatch.setattr(world, "LONG_SECONDS", (4, 4))
    render(tmp_path, clips=1, long_videos=1, seconds=2, workers=0)
    rows = list(csv.DictReader((tmp_path / "clips.csv").open()))
    assert [(row["start"], row["end"], row["label"]) for row in rows] == [("", "", "")]
    assert read_table(tmp_path / "long.csv")[0].id == "long/long_00.mp4"


def test_a_plan_with_shots_changes_place_and_keeps_time(tmp_path):
    first, second = one_shot([Second(("dog",), "dog")] * 2), one_shot([Second(("bell",), "bell")] * 3)
    plan = replace(first, shots=(first.shots[0], replace(second.shots[0], place="place-test-4")))
    assert plan.spans == (Span("dog", 0, 2), Span("bell", 2, 5))
    assert len(synthesize_clip(plan)) == 5 * sounds.SAMPLE_RATE
    frames = list(draw_clip(plan))
    cuts = [abs(b.astype(int) - a).mean() for a, b in pairwise(frames)]
    assert len(frames) == 125 and int(np.argmax(cuts)) == 49


# --- stopped, and gone on with ---


def test_resume_makes_only_what_is_missing(small, tmp_path):
    render(tmp_path, **SMALL, workers=0)
    (tmp_path / "videos/clip_0003.mp4").unlink()
    (tmp_path / "clips.csv").unlink()
    (tmp_path / "videos/.avel-0123456789abcdef.tmp").write_bytes(b"half a clip")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("videos/clip*.mp4")}
    calls = []
    render(tmp_path, **SMALL, workers=0, progress=lambda *call: calls.append(call))
    assert calls == [("render", 5, 6), ("render", 6, 6)]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert contents(tmp_path) == contents(small[0])


HOOKED = """
import os, signal, sys
from avel.worlds.rendered import render as rendered
import avel.files
count, place = 0, int(sys.argv[2])
true_replace = os.replace
def replace(a, b):
    global count
    count += 1
    if count == place:
        os.kill(os.getpid(), signal.SIGKILL)
    true_replace(a, b)
os.replace = replace
rendered.render(sys.argv[1], clips=6, long_videos=0, seconds=2, workers=0)
"""


def test_killed_while_writing_then_resumed(small, tmp_path):
    for place in (1, 3, 6):  # writing world.json, the second clip, and after the other five the table
        killed = subprocess.run([sys.executable, "-c", HOOKED, str(tmp_path), str(place)], check=False)
        assert killed.returncode == -signal.SIGKILL
    render(tmp_path, **SMALL, workers=0)
    assert contents(tmp_path) == contents(small[0])


PLAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from avel.worlds.rendered.render import render
def progress(*step):
    print(*step, flush=True)
    if step[1] == 1:
        signal.pause()  # however late the test's signal comes, it comes in the middle of the work
if __name__ == "__main__":
    render(sys.argv[1], clips=6, long_videos=0, seconds=2, workers=2, progress=progress)
"""


def start(tmp_path: Path, out: Path) -> subprocess.Popen:
    """A render by two workers, of which the first clip is finished."""
    script = tmp_path / "script.py"
    script.write_text(PLAIN)
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"render 0 6\n" and process.stdout.readline() == b"render 1 6\n"
    return process


def alive_in_session(session: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(entry.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see the workers")
def test_workers_end_with_a_parent_killed_and_the_work_goes_on(small, tmp_path):
    out = tmp_path / "w"
    process = start(tmp_path, out)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while alive_in_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive_in_session(process.pid)
    assert any(out.glob("videos/clip*.mp4")) and not (out / "clips.csv").exists()
    render(out, **SMALL, workers=2)
    assert contents(out) == contents(small[0])


@pytest.mark.slow  # extraction has the same workers, and is stopped by default
def test_ctrl_c_leaves_whole_clips_and_no_temporary_files(small, tmp_path):
    out = tmp_path / "w"
    process = start(tmp_path, out)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the parent and to the workers
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode != 0 and errors.count(b"Traceback") == 1 and errors.rstrip().endswith(b"KeyboardInterrupt")
    )
    whole = contents(small[0])
    assert not list(out.rglob("*.tmp")) and all(whole[name] == data for name, data in contents(out).items())
    render(out, **SMALL, workers=0)
    assert contents(out) == whole


def test_a_clip_that_ends_its_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("avel.worlds.rendered.render._prepare", worker_tasks.prepare_dying)
    with pytest.raises(AvelError, match=r"clip_\d+\.mp4 could not be rendered: its process .*SIGKILL"):
        render(tmp_path, **SMALL, workers=2)
    assert not (tmp_path / "clips.csv").exists() and not list(tmp_path.rglob("*.tmp"))


# --- mistakes ---


@pytest.mark.parametrize("changes", [{"clips": 0}, {"long_videos": -1}, {"seconds": 1}], ids=lambda c: next(iter(c)))
def test_impossible_numbers(tmp_path, changes):
    with pytest.raises(AvelError, match=next(iter(changes))):
        render(tmp_path, **{**SMALL, **changes})


def test_a_folder_with_another_world_is_refused(tmp_path, monkeypatch):
    render(tmp_path, clips=1, long_videos=0, seconds=2, workers=0)
    with pytest.raises(AvelError, match=r"another world: seed 0 \(asked: 1\)"):
        render(tmp_path, clips=1, long_videos=0, seconds=2, workers=0, seed=1)
    monkeypatch.setattr(world, "BYSTANDER", 0.9)
    with pytest.raises(AvelError, match="knobs"):
        render(tmp_path, clips=1, long_videos=0, seconds=2, workers=0)
    (tmp_path / "world.json").write_text("[]")
    with pytest.raises(AvelError, match=r"world\.json is damaged"):
        render(tmp_path, clips=1, long_videos=0, seconds=2, workers=0)
    (tmp_path / "world.json").unlink()
    with pytest.raises(AvelError, match=r"no world\.json"):
        render(tmp_path, clips=1, long_videos=0, seconds=2, workers=0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_told_and_nothing_is_left_half_done(tmp_path, workers):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(AvelError, match=r"could not write .*mp4"):
            render(tmp_path, clips=3, long_videos=0, seconds=3, workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "clips.csv").exists()
    render(tmp_path, clips=3, long_videos=0, seconds=3, workers=0)
    assert len(read_table(tmp_path / "clips.csv")) == 3

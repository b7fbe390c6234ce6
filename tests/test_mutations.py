"""Five hundred files as they should not be: each gives features or a failure with its cause, and stops no other."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from media import cut, read_failures, write_video
from random_weights import digest, random_stack, write_keras
from synthetic import assert_unchanged

import avel.features.extract as extract_module
from avel.data.store import StoredClip, open_store
from avel.data.table import Clip
from avel.errors import AvelError
from avel.features import vgg19
from avel.features.extract import extract
from avel.features.recipe import Recipe
from avel.features.streams import probe
from avel.workers import Limits, in_workers

LIMITS = Limits(seconds=60, memory=2 * 2**30)
STAGES = ("features", "decode", "open", "killed")
#: How many files of each kind. The mix is chosen so that every stage is met often.
KINDS = {
    "few bytes flipped": 130,
    "many bytes flipped": 90,
    "head bytes flipped": 60,
    "cut": 90,
    "spliced": 60,
    "wrong extension": 30,
    "garbage": 40,
}


def remux(path: Path, out: Path, seconds: float, moov_first: bool = False) -> Path:
    """The first seconds of a file in another container, its packets as they are."""
    options = {"movflags": "+faststart"} if moov_first else {}
    with av.open(str(path)) as source, av.open(str(out), "w", options=options) as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams if s.type in ("video", "audio")}
        for packet in source.demux(list(source.streams.video + source.streams.audio)):
            if packet.dts is not None and packet.dts * packet.time_base < seconds:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return out


def sources(real: Path, folder: Path) -> list[Path]:
    """Whole files of three seconds: a real clip in five containers, and small ones made here in seven."""
    folder.mkdir()
    # With the usual coder of AAC: another one makes other bytes, and so another mix of stages.
    return [
        remux(real, folder / "real.mp4", 3),
        remux(real, folder / "real-first.mp4", 3, moov_first=True),
        remux(real, folder / "real.mkv", 3),
        remux(real, folder / "real.ts", 3),
        remux(real, folder / "real.mov", 3),
        write_video(folder / "made.mp4", noise=40, fast_aac=False),
        write_video(folder / "made-first.mp4", noise=40, moov_first=True, fast_aac=False),
        write_video(folder / "made.mkv", noise=40, fast_aac=False),
        write_video(folder / "made.ts", noise=40, fast_aac=False),
        write_video(folder / "made.avi", noise=40, video_codec="mpeg4", audio_codec="mp2"),
        write_video(folder / "made.webm", noise=40, video_codec="libvpx", audio_codec="libopus", sample_rate=48_000),
        write_video(folder / "made.mov", noise=40, audio_codec="pcm_s16le"),
    ]


def flip(data: bytes, places: list[int], generator: random.Random) -> bytes:
    """Another value at each place."""
    changed = bytearray(data)
    for place in places:
        changed[place] ^= generator.randrange(1, 256)
    return bytes(changed)


def mutate(kind: str, whole: list[Path], pictures: list[Path], generator: random.Random) -> tuple[bytes, str]:
    """One file's bytes and suffix."""
    source = generator.choice(whole)
    data, suffix = source.read_bytes(), source.suffix
    size = len(data)
    match kind:
        case "few bytes flipped":
            return flip(data, generator.sample(range(size), generator.randint(1, 3)), generator), suffix
        case "many bytes flipped":
            return flip(data, generator.sample(range(size), size // generator.randint(300, 2000)), generator), suffix
        case "head bytes flipped":  # where an mp4 has its index, there too
            index = data.find(b"moov")
            start = generator.choice([0, max(0, index - 4)])
            stretch = range(start, min(size, start + 400))
            return flip(data, generator.sample(stretch, generator.randint(2, 12)), generator), suffix
        case "cut":
            return data[: int(size * generator.uniform(0.02, 0.99))], suffix
        case "spliced":
            start, end = sorted(generator.sample(range(size), 2))
            other = generator.choice(whole).read_bytes()
            return generator.choice(
                [
                    data[:start] + data[end:],
                    data[:end] + data[start:],
                    data[:start] + other[len(other) // 3 : len(other) // 2] + data[start:],
                    data[:start] + other[-(size - start) :],
                ]
            ), suffix
        case "wrong extension":
            wrong = generator.choice([".mp4", ".avi", ".mkv", ".mpg", ".webm", ".wav", ".txt", ".jpg", ""])
            return data, wrong
        case _:
            return generator.choice(
                [
                    b"",
                    bytes(size),
                    generator.randbytes(5000),
                    b"\0\0\0\x20ftypisom" + generator.randbytes(5000),
                    b"\x1aE\xdf\xa3" + generator.randbytes(5000),
                    b"RIFF\xff\xff\xff\xffAVI LIST" + generator.randbytes(5000),
                    b"<html><body>this video is not available</body></html>\n",
                    generator.choice(pictures).read_bytes(),
                ]
            ), generator.choice([".mp4", ".mkv", ".avi", ".ts", ".webm"])


def prepare_timed(out: Path, recipe: Recipe) -> Callable[[Clip, Callable[[], None]], StoredClip | str]:
    """As `extract` prepares its workers, with a note of every clip's seconds and the process's memory."""
    work = extract_module._prepare(out, recipe)

    def timed(clip: Clip, alive: Callable[[], None]) -> StoredClip | str:
        start = time.monotonic()
        try:
            return work(clip, alive)
        finally:
            status = Path("/proc/self/status").read_text()
            peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
            note = {"id": clip.id, "seconds": time.monotonic() - start, "peak": peak * 1024}
            with open(out.with_name("notes.jsonl"), "a") as file:
                file.write(json.dumps(note) + "\n")

    return timed


def prepare_probe() -> Callable[[Path, Callable[[], None]], str]:
    """Tells at which stage a file failed that gave no features."""

    def stage(path: Path, alive: Callable[[], None]) -> str:
        try:
            probe(path)
        except AvelError:
            return "open"
        return "decode"

    return stage


@pytest.mark.slow
def test_five_hundred_mutated_files(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = random.Random(0)
    whole = sources(real_data / "media" / "BjCEufrlXm4.mp4", tmp_path / "whole")
    pictures = sorted((real_data / "media").glob("*.jpg"))
    files = tmp_path / "files"
    files.mkdir()
    kinds: dict[str, str] = {}
    for kind in (kind for kind, number in KINDS.items() for _ in range(number)):
        data, suffix = mutate(kind, whole, pictures, generator)
        name = f"{len(kinds):03d}{suffix}"
        (files / name).write_bytes(data)
        kinds[name] = kind
    (files / "list.txt").write_text("\n".join(kinds))
    monkeypatch.setattr(extract_module, "_prepare", prepare_timed)

    began = time.monotonic()
    report = extract(
        files / "list.txt",
        tmp_path / "store",
        Recipe(clip_seconds_limit=LIMITS.seconds, clip_memory_limit=LIMITS.memory / 2**30),
    )
    took = time.monotonic() - began

    store = open_store(tmp_path / "store")
    assert_unchanged(store)
    assert read_failures(tmp_path / "store") == report.failed
    causes = {failure["id"]: failure["cause"] for failure in report.failed}
    assert sorted([clip.id for clip in store.clips] + list(causes)) == sorted(kinds)  # every file, once
    assert report.done == len(store.clips) and all(causes.values())

    notes = {note["id"]: note for note in map(json.loads, (tmp_path / "notes.jsonl").read_text().splitlines())}
    failed_at = dict(in_workers([files / name for name in causes], 2, prepare_probe, (), LIMITS))
    stages = dict.fromkeys(kinds, "features")
    stages |= {path.name: stage for path, stage in failed_at.items()}
    stages |= dict.fromkeys(set(kinds) - set(notes), "killed")
    counts = Counter((kinds[name], stages[name]) for name in kinds)
    totals = Counter(stages.values())
    slowest = max(notes.values(), key=lambda note: note["seconds"])
    largest = max(notes.values(), key=lambda note: note["peak"])
    with capsys.disabled():
        print(f"\n{'':20}" + "".join(f"{stage:>10}" for stage in STAGES))
        for kind in KINDS:
            print(f"{kind:20}" + "".join(f"{counts[kind, stage]:10}" for stage in STAGES))
        print(f"{'all':20}" + "".join(f"{totals[stage]:10}" for stage in STAGES))
        for name in sorted(set(kinds) - set(notes)):
            print(f"killed: {name} ({kinds[name]}): {causes[name]}")
        for name, cause in causes.items():
            if cause.startswith("unexpected"):
                print(f"{name} ({kinds[name]}): {cause}")
        print(f"slowest: {slowest['id']} ({kinds[slowest['id']]}, {stages[slowest['id']]}), {slowest['seconds']:.1f} s")
        print(f"most memory: {largest['peak'] / 2**20:.0f} MiB; all in {took:.0f} s")

    assert totals["features"] >= 150 and totals["decode"] >= 150 and totals["open"] >= 100
    assert not totals["killed"] and not any(cause.startswith("unexpected") for cause in causes.values())
    assert largest["peak"] < LIMITS.memory


@pytest.mark.slow
def test_vgg19_within_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_keras(tmp_path / "weights.h5", random_stack(vgg19.BLOCKS, 3))
    folder = tmp_path / "clips"
    folder.mkdir()
    write_video(folder / "small.mp4", seconds=2, noise=40)
    write_video(folder / "large.mp4", seconds=2, size=(1280, 720))
    cut(write_video(folder / "cut.mp4", seconds=2, noise=40, moov_first=True), folder / "cut.mp4", 0.6)
    monkeypatch.setattr(extract_module, "_prepare", prepare_timed)
    report = extract(
        folder,
        tmp_path / "store",
        Recipe(
            visual="vgg19",
            visual_options={"weights_file": str(weights), "weights_sha": digest(weights)},
            clip_memory_limit=LIMITS.memory / 2**30,
        ),
        workers=1,
    )
    assert report.done == 2 and [failure["id"] for failure in report.failed] == ["cut.mp4"]
    assert "could be decoded" in report.failed[0]["cause"]
    store = open_store(tmp_path / "store")
    assert [tuple(store.visual(k).shape) for k in range(2)] == [(2, 7, 7, 512)] * 2
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    peak = max(note["peak"] for note in notes)
    with capsys.disabled():
        print("\nVGG-19: " + ", ".join(f"{note['id']} {note['seconds']:.1f} s" for note in notes), end="")
        print(f"; most memory: {peak / 2**20:.0f} MiB")
    assert peak < LIMITS.memory

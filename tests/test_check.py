"""check: every kind of damage is found, and named alone; what is right raises no error."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import torch
from ave_files import write_ave, write_h5
from safetensors.torch import load_file, save_file
from synthetic import write_store

import avel.data.ave.check as check_ave_module
import avel.data.measure as measure_module
from avel.data.check import check, exit_code
from avel.data.store import WORK, Settings
from avel.data.store_writing import ClipFeatures, pack, write_part
from avel.errors import AvelError
from avel.files import make_work_folder
from avel.types import Finding, Span

CLASSES = ("bell", "dog")
WINDOW = 4


@dataclass
class Made:
    """One clip of a store made here, as a test may change it: four segments of positive features, one event."""

    id: str
    visual: np.ndarray
    audio: np.ndarray
    splits: tuple[str, ...]
    spans: tuple[Span, ...] | None
    audio_valid: bool = True
    video: str | None = None
    duration: float = 4.0


@dataclass
class MadeStore:
    clips: list[Made]
    origin: str = ""
    classes: tuple[str, ...] = CLASSES
    tags: dict[str, str] = field(default_factory=lambda: {"visual": "v-1", "audio": "a-1"})


def made_store() -> MadeStore:
    random = np.random.default_rng(0)
    return MadeStore(
        [
            Made(
                f"c{index}",
                (random.random((4, 2, 2, 3)) + 0.1).astype(np.float16),
                (random.random((4, 5)) + 0.1).astype(np.float32),
                (("train", "val", "test")[index % 3],),
                (Span(CLASSES[index % 2], 1.0, 3.0),),
            )
            for index in range(12)
        ]
    )


def write(path: Path, made: MadeStore) -> Path:
    extractors = {kind: {"name": "made", "tag": tag, "options": {}} for kind, tag in made.tags.items()}
    settings = Settings(1.0, "time", extractors, (2, 2), 3, 5, made.origin)
    make_work_folder(path / WORK)
    members = []
    for number, clip in enumerate(made.clips):
        features = ClipFeatures(clip.visual, clip.audio, clip.duration, clip.audio_valid)
        part = write_part(path, f"{number}", settings, features, str(number))
        labels = {"spans": clip.spans, "splits": clip.splits, "video": clip.video or clip.id}
        members.append(msgspec.structs.replace(part, id=clip.id, **labels))
    pack(path, settings, made.classes, members)
    return path


def lines(findings: list[Finding], *levels: str) -> list[str]:
    return [str(finding) for finding in findings if finding.level in levels]


def odd(path: Path, **options: Any) -> list[str]:
    """The lines that are no ``ok``."""
    return lines(check(path, **options), "note", "error")


def test_a_clean_store(tmp_path: Path) -> None:
    findings = check(write(tmp_path / "s", made_store()), window=WINDOW)
    assert [str(each) for each in findings if not re.search("values from|MB", each.text)] == [
        "ok    store.json: 12 clips, 48 segments of 1 s, visual (T, 2, 2, 3), audio (T, 5), 2 classes",
        "ok    visual: extractor made, tag v-1",
        "ok    audio: extractor made, tag a-1",
        "ok    splits train, val, test: disjoint and complete: 4 + 4 + 4 clips",
        "ok    labels: 12 events in 12 clips",
        "ok    windows of 4 segments: every clip is long enough, and no window has several classes",
    ]
    assert len(findings) == 9 and exit_code(findings) == 0


def test_the_values_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_store()
    made.clips[3].visual[1, 0] = 0
    made.clips[7].visual[2, 1, 1, 2] = -3.5
    made.clips[11].audio[3, 4] = 7.25
    path = write(tmp_path / "s", made)
    for piece in (1, 10**6):  # bytes measured at once: a segment, all of them
        monkeypatch.setattr(measure_module, "PIECE_BYTES", piece)
        said = {each.place: each.text for each in check(path, window=WINDOW) if "values from" in each.text}
        for kind in ("visual", "audio"):
            values = np.concatenate([getattr(clip, kind).reshape(-1) for clip in made.clips]).astype(np.float64)
            assert said[kind] == (
                f"values from {values.min():.5g} to {values.max():.5g}, mean {values.mean():.5g}, "
                f"{(values == 0).mean():.2%} zeros"
            )
    assert "-3.5 to" in said["visual"] and "to 7.25" in said["audio"] and "1.04% zeros" in said["visual"]


def change(*numbers: int, **facts: Any) -> Callable[[MadeStore], None]:
    def apply(made: MadeStore) -> None:
        for number in numbers:
            for name, value in facts.items():
                setattr(made.clips[number], name, value)

    return apply


def spoil(kind: str, number: int, place: Any, value: float) -> Callable[[MadeStore], None]:
    def apply(made: MadeStore) -> None:
        getattr(made.clips[number], kind)[place] = value

    return apply


def both(*changes: Callable[[MadeStore], None]) -> Callable[[MadeStore], None]:
    def apply(made: MadeStore) -> None:
        for each in changes:
            each(made)

    return apply


def tagless(made: MadeStore) -> None:
    made.tags["audio"] = ""


def simulated(made: MadeStore) -> None:
    made.origin = "simulated, not AVE (version 1, seed 0)"


def unused(made: MadeStore) -> None:
    made.classes = (*CLASSES, "cat")


def one_class(made: MadeStore) -> None:
    made.classes = ("bell",)
    change(*range(12), spans=(Span("bell", 1.0, 3.0),))(made)


def a_third_class(*numbers: int, **facts: Any) -> Callable[[MadeStore], None]:
    def apply(made: MadeStore) -> None:
        unused(made)
        change(*numbers, spans=(Span("cat", 1.0, 3.0),), **facts)(made)

    return apply


NEGATIVE = "negative values, usual in classical features, unusual in those of VGG and VGGish, in"
NAN, INF = float("nan"), float("inf")

NO_EVENT = "no segment with an event"

#: What is changed in a clean store, and the lines that must come of it: these and no others.
CASES: list[tuple[str, Callable[[MadeStore], None], list[str]]] = [
    ("nan", spoil("audio", 11, (3, 4), NAN), ["error audio: NaN or infinity in 1 segment: c11 segment 3"]),
    (
        "inf",
        both(spoil("visual", 0, (0, 0, 0, 0), -INF), spoil("visual", 5, (2, 1, 1, 2), INF)),
        ["error visual: NaN or infinity in 2 segments: c0 segment 0, c5 segment 2"],
    ),
    (
        "all nan",
        both(*(spoil("audio", number, ..., NAN) for number in range(12))),
        [
            "error audio: NaN or infinity in 48 segments: c0 segment 0, c0 segment 1, c0 segment 2, c0 segment 3, "
            "c1 segment 0, c1 segment 1, c1 segment 2, c1 segment 3, c2 segment 0, c2 segment 1 and 38 more"
        ],
    ),
    (
        "negative",
        both(spoil("visual", 4, (0, 1, 0, 2), -0.5), spoil("visual", 4, (1, 1, 0, 2), -1), spoil("visual", 9, 3, -1)),
        [f"note  visual: {NEGATIVE} 2 of 12 clips: c4, c9"],
    ),
    ("minus zero is no negative", spoil("audio", 4, (0, 1), -0.0), []),
    (
        "a clip of silence",
        both(spoil("audio", 2, ..., 0), spoil("audio", 6, ..., 0)),
        ["error audio: audio features of zeros alone though audio_valid is true, in 2 of 12 clips: c2, c6"],
    ),
    (
        "a clip that says it is silent",
        both(spoil("audio", 2, ..., 0), change(2, audio_valid=False)),
        ["note  store.json: clips without valid audio (audio_valid is false) (1): c2"],
    ),
    (
        "a silent segment of a clip that says it is silent",
        both(spoil("audio", 2, 3, 0), change(2, audio_valid=False)),
        ["note  store.json: clips without valid audio (audio_valid is false) (1): c2"],
    ),
    ("a silent segment", spoil("audio", 2, 3, 0), ["note  audio: zeros alone in 1 segment: c2 segment 3"]),
    ("a black segment", spoil("visual", 2, 0, 0), ["note  visual: zeros alone in 1 segment: c2 segment 0"]),
    (
        "a black clip",
        spoil("visual", 10, ..., 0),
        ["note  visual: visual features of zeros alone, in 1 of 12 clips: c10"],
    ),
    ("one value is not zero", spoil("audio", 2, (3, slice(4)), 0), []),
    ("ids", change(3, 6, id="c0"), ["error store.json: ids given to several clips (1): c0"]),
    (
        "val and test",
        change(1, 4, splits=("val", "test")),
        ["error splits val and test: clips in both (2): c1, c4"],
    ),
    ("train and val", change(0, splits=("train", "val")), ["error splits train and val: clips in both (1): c0"]),
    ("train and test", change(0, splits=("train", "test")), ["error splits train and test: clips in both (1): c0"]),
    (
        "left out",
        change(7, splits=()),
        ["note  splits train, val, test: labelled clips in none of them (1): c7"],
    ),
    ("background is of no family", change(7, splits=("background",), spans=()), []),
    (
        "no val",
        change(1, 4, 7, 10, splits=("train",)),
        ["note  splits train, test: no clip in val"],
    ),
    (
        "no splits",
        change(*range(12), splits=()),
        ["note  splits: none: nothing says what to train on and what to test on"],
    ),
    (
        "one video in train and val",
        both(change(0, 1, video="film"), change(3, 6, video="same split")),
        ["note  splits train and val: videos with clips in both (1): film"],
    ),
    (
        "one video in val and test",
        change(1, 2, video="f"),
        ["note  splits val and test: videos with clips in both (1): f"],
    ),
    ("no tag", tagless, ["error audio: no tag says what made the features, so no model can be matched to them"]),
    ("simulated", simulated, ["note  store.json: origin: simulated, not AVE (version 1, seed 0)"]),
    (
        "late",
        change(0, spans=(Span("bell", 1.0, 4.5),)),
        ["note  labels: events ending after the end of the clip (1): c0 bell 1-4.5 s"],
    ),
    ("the last segment may end after the clip", change(0, duration=3.6, spans=(Span("bell", 1.0, 4.0),)), []),
    ("the clip may end after the last segment", change(0, duration=4.4, spans=(Span("bell", 1.0, 4.4),)), []),
    (
        "outside",
        change(0, spans=(Span("bell", 4.0, 5.0),)),
        ["error labels: events starting after the end of the clip (1): c0 bell 4-5 s"],
    ),
    (
        "impossible",
        change(0, 2, spans=(Span("bell", 2.0, 1.0),)),
        ["error labels: events with impossible times (2): c0 bell 2-1 s, c2 bell 2-1 s"],
    ),
    (
        "before the start",
        change(0, spans=(Span("bell", -1.0, 1.0),)),
        ["error labels: events with impossible times (1): c0 bell -1-1 s"],
    ),
    (
        "no length",
        change(0, spans=(Span("bell", 2.0, 2.0),)),
        ["note  labels: events without length, so that no segment has their label (1): c0 bell 2-2 s"],
    ),
    (
        "short",
        change(0, spans=(Span("bell", 1.75, 2.25),)),
        [
            "note  labels: events too short to cover half of a segment, so that none has their label (1): "
            "c0 bell 1.75-2.25 s"
        ],
    ),
    (
        "overlapping",
        change(0, spans=(Span("bell", 2.0, 4.0), Span("bell", 0.0, 2.5))),
        ["error labels: events overlapping, although AVEL allows one at a time (1): c0 bell 0-2.5 s and bell 2-4 s"],
    ),
    ("touching", change(0, spans=(Span("bell", 2.0, 4.0), Span("bell", 0.0, 2.0))), []),
    (
        "a class of one video",
        a_third_class(0),
        ["error classes: in one video only, so no other is left to test them on (1): cat (c0)"],
    ),
    (
        "a class that training never sees",
        a_third_class(1, 4),
        ["error classes of split val: in no clip of split train (1): cat (c1)"],
    ),
    (
        "no event in train",
        change(0, 3, 6, 9, spans=()),
        [
            "error split train: no segment with an event in any of its 4 clips",
            "error classes of split val: in no clip of split train (2): bell (c4), dog (c1)",
            "error classes of split test: in no clip of split train (2): bell (c2), dog (c5)",
        ],
    ),
    (
        "no event in test, but one without length",
        both(change(2, 5, 8, spans=()), change(11, spans=(Span("bell", 2.0, 2.0),))),
        [
            "note  labels: events without length, so that no segment has their label (1): c11 bell 2-2 s",
            "error split test: no segment with an event in any of its 4 clips",
        ],
    ),
    (
        "no event at all",
        change(*range(12), spans=()),
        [
            "note  labels: classes in no clip (2): bell, dog",
            f"error labels: {NO_EVENT} in any of 12 labelled clips, so there is nothing to learn",
        ],
    ),
    (
        "events without length alone",
        change(*range(12), spans=(Span("bell", 2.0, 2.0),)),
        [
            "note  labels: events without length, so that no segment has their label (12): "
            + ", ".join(f"c{number} bell 2-2 s" for number in range(10))
            + " and 2 more",
            "note  labels: classes in no clip (1): dog",
            f"error labels: {NO_EVENT} in any of 12 labelled clips, so there is nothing to learn",
        ],
    ),
    ("one class", one_class, []),
    ("unused", unused, ["note  labels: classes in no clip (1): cat"]),
    (
        "unlabelled",
        change(0, 1, spans=None),
        ["note  labels: clips without labels, which cannot be trained on (2): c0, c1"],
    ),
    (
        "unknown label",
        change(0, spans=(Span("cow", 0.0, 2.0),)),
        ["error labels: events with a label that is not among the classes (1): c0 cow 0-2 s"],
    ),
    (
        "several classes",
        change(0, spans=(Span("bell", 0.0, 2.0), Span("dog", 3.0, 4.0))),
        ["note  windows of 4 segments: with events of several classes (1): c0 at 0 s (bell and dog)"],
    ),
    (
        "shorter",
        change(5, visual=np.ones((2, 2, 2, 3), np.float16), audio=np.ones((2, 5), np.float32), duration=2.0, spans=()),
        ["note  windows of 4 segments: shorter clips, the shortest of 2 segments (1): c5"],
    ),
    (
        "a line break in an id",
        both(change(3, id="a\nb"), spoil("audio", 3, 0, 0)),
        ["note  audio: zeros alone in 1 segment: a b segment 0"],
    ),
]


@pytest.mark.parametrize("piece", [1, 10**9])  # bytes measured at once: a segment, a clip
@pytest.mark.parametrize(("apply", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_every_finding_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    apply: Callable[[MadeStore], None],
    expected: list[str],
    piece: int,
) -> None:
    monkeypatch.setattr(measure_module, "PIECE_BYTES", piece)
    made = made_store()
    apply(made)
    findings = check(write(tmp_path / "s", made), window=WINDOW)
    assert lines(findings, "note", "error") == expected
    assert exit_code(findings) == int(any(line.startswith("error") for line in expected))
    assert all("\n" not in str(finding) for finding in findings)


def test_windows_are_those_of_training(tmp_path: Path) -> None:
    """Five segments in windows of two: at 0, 2 and, shifted back, 3 s; segments 1 and 2 are in no window together."""
    made = made_store()
    clip = made.clips[0]
    clip.visual, clip.audio, clip.duration = np.ones((5, 2, 2, 3), np.float16), np.ones((5, 5), np.float32), 5.0
    clip.spans = (Span("bell", 0.0, 2.0), Span("dog", 2.0, 4.0), Span("bell", 4.0, 5.0))
    path = write(tmp_path / "s", made)
    assert odd(path, window=2) == [
        "note  windows of 2 segments: with events of several classes (1): c0 at 3 s (bell and dog)"
    ]
    assert any("shorter clips, the shortest of 4 segments (12): c0, c1" in line for line in odd(path, window=6))
    assert not odd(path, window=1)
    with pytest.raises(AvelError, match="a window of 0 segments"):
        check(path, window=0)


def test_two_families_of_splits(tmp_path: Path) -> None:
    made = made_store()
    for index, clip in enumerate(made.clips):
        clip.splits = (*clip.splits, ("train_match", "test_match", "val_match")[index % 3])
    made.clips[11].splits = ("background",)
    findings = check(write(tmp_path / "a", made), window=WINDOW)
    assert [each.text for each in findings if each.place.startswith("split")] == [
        "disjoint and complete: 4 + 4 + 3 clips",
        "disjoint and complete: 4 + 3 + 4 clips",
        "1 clip for the training of task weak",
    ]
    made.clips[2].splits = ("test", "train_match", "val_match")
    made.clips[3].splits = ("train",)
    assert odd(write(tmp_path / "b", made), window=WINDOW) == [
        "error splits train_match and val_match: clips in both (1): c2",
        "note  splits train_match, val_match, test_match: labelled clips in none of them (1): c3",
    ]


def test_splits_that_nothing_takes(tmp_path: Path) -> None:
    """A store made before the names were checked holds them as they were written."""
    made = made_store()
    for index, name in enumerate(("Train", "TEST ", "valid", "eval", "fold2")):
        made.clips[index].splits = (name,)
    path = write(tmp_path / "s", made)
    taken = "1 clip that avel neither trains nor tests on"
    assert odd(path, window=WINDOW) == [
        *(
            f"error split {name!r}: {taken}: the split is called {right} here; "
            "write that into the CSV and extract again"
            for name, right in (
                ("Train", "'train'"),
                ("TEST ", "'test'"),
                ("valid", "'val'"),
                ("eval", "'val' (chooses the epoch) or 'test' (is scored once)"),
            )
        ),
        f"note  split 'fold2': {taken} by itself; `avel evaluate --split` scores them",
    ]
    assert exit_code(check(path, window=WINDOW)) == 1


def test_progress_counts_clips(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    check(write(tmp_path / "s", made_store()), window=WINDOW, progress=lambda *now: seen.append(now))
    assert seen == [("check", done, 12) for done in range(1, 13)]


def test_the_shared_synthetic_store_has_no_error(tmp_path: Path) -> None:
    write_store(tmp_path / "s", segments=(6, 9))
    findings = check(tmp_path / "s", window=6)
    assert not lines(findings, "error") and len(lines(findings, "note")) == 2  # its features are partly negative


def damage_index(path: Path, old: str, new: str) -> None:
    text = (path / "store.json").read_text()
    assert old in text
    (path / "store.json").write_text(text.replace(old, new, 1))


def test_damaged_stores_are_findings(tmp_path: Path) -> None:
    def fresh(name: str) -> tuple[Path, Path]:
        path = write(tmp_path / name, made_store())
        return path, next(path.glob("shard-*"))

    def only(path: Path) -> str:
        (finding,) = (each for each in check(path, window=WINDOW) if each.level != "ok")
        assert finding.level == "error"
        return f"{finding.place}: {finding.text}"

    path, _ = fresh("json")
    damage_index(path, '"clips": [', '"clips": ')
    assert re.match(rf"{path}: .*store.json is damaged .*; expected: the JSON .*; do this: delete it", only(path))
    path, shard = fresh("gone")
    shard.unlink()
    assert "missing" in only(path)
    path, shard = fresh("flipped")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert only(path) == "shards: features that differ from their checksum: clips (1): c11"
    path, shard = fresh("header")
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    assert re.fullmatch(r"shards: .*shard-.*: a header of .* bytes: clips \(12\): c0, .*, c9 and 2 more", only(path))
    path, _ = fresh("rows")
    text = (path / "store.json").read_text()
    (path / "store.json").write_text(re.sub(r'"row": \d+', '"row": 46', text))
    lacking = [each.text for each in check(path, window=WINDOW) if each.level == "error"]
    assert len(lacking) == 11 and re.fullmatch(r"shard .*: visual features of c0 of shape \(2, .*: c0", lacking[0])
    assert lacking[-1] == "clips that cannot be read either (2): c10, c11"
    path, shard = fresh("type")
    save_file({name: value.to(torch.bfloat16) for name, value in load_file(shard).items()}, shard)
    damage_index(path, '"bytes": ', f'"bytes": {shard.stat().st_size}, "was": ')
    assert "visual features of type BF16, not F16" in only(path)
    path = tmp_path / "half"
    make_work_folder(path / WORK)
    assert "holds an unfinished extraction" in only(path)
    path, _ = fresh("no segment")
    index = path / "store.json"
    line = re.search(r'\{"id": "c6".*\}', index.read_text())[0]  # type: ignore[index]
    none = {"segments": 0, "checksum": hashlib.sha256().hexdigest(), "spans": []}
    damage_index(path, line, json.dumps({**json.loads(line), **none}))
    first, second = (each for each in check(path, window=WINDOW) if each.level != "ok")
    assert str(first) == "error store.json: clips without any segment (1): c6"
    assert second.text == "shorter clips, the shortest of 0 segments (1): c6"
    path, _ = fresh("empty")
    content = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**content, "clips": []}))
    assert exit_code(check(path)) == 1
    (path / "store.json").write_text(json.dumps({**content, "grid": [2, 0]}))
    assert exit_code(check(path)) == 1


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_what_is_neither_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(AvelError, match=f"{name} is neither a feature store nor a folder of AVE's files"):
        check(tmp_path / name)


# AVE's files

KEY = "key avadataset"


@pytest.fixture
def ave(tmp_path: Path) -> Path:
    """A folder whose every feature is a float32 number, so that nothing is to be said of them."""
    folder = write_ave(tmp_path / "ave", rows=6, grid=(2, 2), visual_dim=4)
    for path in folder.glob("*_feature*.h5"):
        with h5py.File(path, "r+") as file:
            file["avadataset"][...] = file["avadataset"][...].astype(np.float32)
    return folder


def of_files(folder: Path) -> list[str]:
    """The errors, and the notes on features; the folder's other notes are the survey's."""
    findings = [each for each in check(folder) if each.level == "error" or each.place.endswith(KEY)]
    return lines(findings, "error", "note")


def edit(file: Path, place: Any, value: float) -> None:
    with h5py.File(file, "r+") as opened:
        opened["avadataset"][place] = value


def test_a_clean_folder(ave: Path) -> None:
    findings = check(ave)
    said = [str(each) for each in findings]
    assert not of_files(ave) and exit_code(findings) == 0
    assert f"ok    {ave}: the data are in AVE's layout, other annotations" in said
    assert "ok    task full: every file is there" in said and "ok    task cml: every file is there" in said
    assert f"ok    audio_feature.h5, {KEY}: float64 of shape (6, 10, 4)" in said
    line = "ok    visual_feature_vec.h5: is the mean over the cells of visual_feature.h5: largest relative difference"
    assert any(each.startswith(line) for each in said)
    (ave / "audio_feature.h5").unlink()
    assert "note  task full: not possible without audio_feature.h5" in map(str, check(ave))


AVE_CASES: list[tuple[str, Any, float, list[str]]] = [
    (
        "audio_feature.h5", (5, 9, 3), NAN,
        [f"error audio_feature.h5, {KEY}: NaN or infinity in 1 segment: row 5 segment 9"],
    ),
    (
        "visual_feature.h5", (5, 9, 1, 1, 3), INF,
        [f"error visual_feature.h5, {KEY}: NaN or infinity in 1 segment: row 5 segment 9"],
    ),
    (
        "visual_feature_noisy.h5", (2, 9, 1, 1, 3), NAN,
        [f"error visual_feature_noisy.h5, {KEY}: NaN or infinity in 1 segment: row 2 segment 9"],
    ),
    (
        "visual_feature_vec.h5", (5, 9, 3), NAN,
        [f"error visual_feature_vec.h5, {KEY}: NaN or infinity in 1 segment: row 5 segment 9"],
    ),
    ("audio_feature.h5", (4, 2, 1), -0.5, [f"note  audio_feature.h5, {KEY}: {NEGATIVE} 1 of 6 rows: row 4"]),
    ("audio_feature.h5", (4, 2), 0, [f"note  audio_feature.h5, {KEY}: zeros alone in 1 segment: row 4 segment 2"]),
    (
        "audio_feature_noisy.h5", 2, 0,
        [f"note  audio_feature_noisy.h5, {KEY}: audio features of zeros alone, in 1 of 3 rows: row 2"],
    ),
    (
        "audio_feature.h5", (0, 0, 0), 0.1,
        [f"note  audio_feature.h5, {KEY}: 1 of 240 values are not exactly float32; in a store they are rounded"],
    ),
    ("audio_feature.h5", (0, 0, 0), 65536.0, []),  # a store holds audio as float32
    ("visual_feature_noisy.h5", (0, 0, 0, 0, 0), 65504.0, []),
    *(
        (
            "visual_feature_noisy.h5", (2, 9, 1, 1, 3), value,
            [
                f"error visual_feature_noisy.h5, {KEY}: values beyond 65504, the largest that a store's float16 can "
                "hold, in 1 segment: row 2 segment 9",
                *([f"note  visual_feature_noisy.h5, {KEY}: {NEGATIVE} 1 of 3 rows: row 2"] if value < 0 else []),
            ],
        )
        for value in (65536.0, -65536.0)
    ),
]  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 400, 10**9])  # bytes: one row, a few rows, the file
@pytest.mark.parametrize(("file", "place", "value", "expected"), AVE_CASES)
def test_every_finding_on_a_file_alone(
    ave: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, file: str, place: Any, value: float, expected: list[str]
) -> None:
    monkeypatch.setattr(check_ave_module, "CHUNK_BYTES", chunk)
    edit(ave / file, place, value)
    assert of_files(ave) == expected


@pytest.mark.parametrize("chunk", [1, 3000, 10**9])
@pytest.mark.parametrize(("row", "by", "right"), [(5, 0.05, False), (0, -0.05, False), (5, 1e-5, True)])
def test_pooled_features_must_be_the_mean_over_the_cells(
    ave: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, row: int, by: float, right: bool
) -> None:
    monkeypatch.setattr(check_ave_module, "CHUNK_BYTES", chunk)
    with h5py.File(ave / "visual_feature_vec.h5", "r+") as file:
        segment = file["avadataset"][row, 9].astype(np.float32).astype(np.float64)
        largest = segment.max()
        segment[2] = np.float32(segment[2] + by * largest)
        file["avadataset"][row, 9] = segment
    (finding,) = (each for each in check(ave) if "the mean over the cells" in each.text)
    assert finding.level == ("ok" if right else "error")
    value = float(finding.text.split()[-1])
    expected = abs(by) / max(1.0, segment.max() / largest)
    assert value == pytest.approx(expected, rel=0.06)


def test_swapped_rows_of_the_pooled_file(ave: Path) -> None:
    with h5py.File(ave / "visual_feature_vec.h5", "r+") as file:
        file["avadataset"][...] = file["avadataset"][...][::-1]
    (line,) = of_files(ave)
    assert line.startswith("error visual_feature_vec.h5: is not the mean over the cells of visual_feature.h5")


def test_damaged_folders_are_findings(ave: Path) -> None:
    def broken(file: str) -> list[str]:
        return [str(each) for each in check(ave) if each.level == "error"]

    whole = (ave / "audio_feature.h5").read_bytes()
    (ave / "audio_feature.h5").write_bytes(whole[: len(whole) // 2])
    edit(ave / "visual_feature.h5", (5, 9), NAN)
    first, second = broken("audio_feature.h5")  # the one damaged file does not keep the others from being read
    assert first.startswith(f"error {ave}: cannot read {ave}/audio_feature.h5: ") and "do this: " in first
    assert second == f"error visual_feature.h5, {KEY}: NaN or infinity in 1 segment: row 5 segment 9"
    (ave / "audio_feature.h5").write_bytes(whole)
    (ave / "Annotations.txt").rename(ave / "other.txt")
    write_h5(ave / "audio_feature.h5", np.ones((6, 10)))
    lines = broken("audio_feature.h5")
    assert f"no Annotations.txt in {ave}" in lines[0] and lines[1] == second
    assert "audio_feature.h5: " in lines[2] and "float64 of shape (6, 10); expected: floats of shape" in lines[2]
    assert len(lines) == 3
    (ave / "other.txt").rename(ave / "Annotations.txt")
    lines = broken("audio_feature.h5")
    assert len(lines) == 2 and "audio_feature.h5, key avadataset: float64 of shape (6, 10)" in lines[0]


def test_a_file_that_breaks_off_inside(ave: Path) -> None:
    """Compressed rows, of which a later one is damaged: it opens, its first rows can be read."""
    path = ave / "audio_feature.h5"
    with h5py.File(path) as file:
        values = file["avadataset"][...]
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("avadataset", data=values, chunks=(1, 10, 4), compression="gzip")
        place = dataset.id.get_chunk_info(5)
    data = bytearray(path.read_bytes())
    data[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(data)
    (line,) = of_files(ave)
    assert line.startswith(f"error audio_feature.h5: {path}, key avadataset: rows 0 to 5: ")


def test_simulated_data_are_called_so(ave: Path) -> None:
    (ave / "simulated.json").write_text(json.dumps({"version": 3, "seed": 7}))
    assert f"note  {ave}: the data are simulated, not AVE (version 3, seed 7)" in map(str, check(ave))


def test_progress_counts_rows(ave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_ave_module, "CHUNK_BYTES", 4 * 10 * 4 * 8)
    seen: list[tuple[str, int, int]] = []
    check(ave, progress=lambda *now: seen.append(now))
    assert [each for each in seen if each[0] == "audio_feature.h5"] == [
        ("audio_feature.h5", 4, 6), ("audio_feature.h5", 6, 6),
    ]  # fmt: skip


def test_real_files(real_data: Path) -> None:
    findings = check(real_data / "ave")
    assert exit_code(findings) == 0
    said = [each.text for each in findings if each.place.startswith("audio_feature_noisy.h5,")]
    assert said == [
        "float64 of shape (178, 10, 128)", "values from 0 to 4.5373, mean 0.12219, 65.27% zeros",
    ]  # fmt: skip
    tasks = [each for each in findings if each.place.startswith("task")]
    assert len(tasks) == 4 and all("not possible without visual_feature.h5" in each.text for each in tasks)


def test_memory_stays_small(tmp_path: Path) -> None:
    """A file of 160 MB, of which less than half may ever be in memory at once."""
    path = tmp_path / "visual_feature.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("avadataset", (80, 10, 7, 7, 512), np.float64)  # zeros, which take no room on the disk
    code = (
        "import sys\nfrom pathlib import Path\nimport avel.data.check as c, avel.data.ave.check as ave\n"
        "ave.CHUNK_BYTES = 2**23\n"
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak(); findings = c.check(sys.argv[1]); print((peak() - before) / 1000)\n"
        "assert any('row 79' in f.text or '80 of 80 rows' in f.text for f in findings), findings"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 75

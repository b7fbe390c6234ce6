"""The feature store: what goes in comes out, without copies; damage is noticed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors import safe_open
from synthetic import assert_unchanged, write_store

from avel.data import store_writing
from avel.data.check import check
from avel.data.store import WORK, Settings, StoredClip, open_store
from avel.data.store_writing import ClipFeatures, pack, read_part, write_part
from avel.errors import AvelError
from avel.files import make_work_folder
from avel.types import Span

SETTINGS = Settings(
    segment_seconds=1.0,
    framing="time",
    extractors={
        "visual": {"name": "v", "tag": "v-1", "options": {"size": 3}},
        "audio": {"name": "a", "tag": "a-1", "options": {}},
    },
    grid=(2, 3),
    visual_dim=5,
    audio_dim=4,
)


def features(index: int, segments: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    return rng.normal(size=(segments, 2, 3, 5)).astype(np.float16), rng.normal(size=(segments, 4)).astype(np.float32)


def make_part(out: Path, index: int, segments: int = 0) -> StoredClip:
    make_work_folder(out / WORK)
    visual, audio = features(index, segments or index + 1)
    clip = ClipFeatures(visual, audio, index + 1.25, bad_packets=index)
    return write_part(out, f"c{index}", SETTINGS, clip, f"hash{index}")


def labelled(index: int, part: StoredClip) -> StoredClip:
    spans = (Span("bell" if index % 2 else "dog", 0.0, 1.0),) if index else ()
    return replace(part, spans=spans, splits=("train",) if index < 3 else ("test",))


def make_store(out: Path, number: int = 5) -> Path:
    pack(out, SETTINGS, ("bell", "dog"), [labelled(index, make_part(out, index)) for index in range(number)])
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_what_goes_in_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, shards in ((10**9, 1), (300, 4), (1, 5)):  # a segment takes 76 bytes
        monkeypatch.setattr(store_writing, "SHARD_BYTES", bound)
        store = open_store(make_store(tmp_path / str(bound)))
        assert len({clip.shard for clip in store.clips}) == shards
        assert len(list(store.path.iterdir())) == shards + 1  # and store.json: no parts are left
        assert store.classes == ("bell", "dog") and store.grid == (2, 3) and store.segment_seconds == 1.0
        assert (store.visual_dim, store.audio_dim, store.framing) == (5, 4, "time")
        assert store.extractors["visual"] == {"name": "v", "tag": "v-1", "options": {"size": 3}}
        for index, clip in enumerate(store.clips):
            visual, audio = features(index, index + 1)
            assert (clip.id, clip.duration, clip.segments) == (f"c{index}", index + 1.25, index + 1)
            assert (clip.source, clip.bad_packets, clip.audio_valid) == (f"hash{index}", index, True)
            assert store.visual(index).dtype == torch.float16 and store.audio(index).dtype == torch.float32
            assert np.array_equal(store.visual(index).numpy(), visual)
            assert np.array_equal(store.audio(index).numpy(), audio)
        assert store.labels(2).tolist() == [1, 2, 2] and store.labels(0).tolist() == [2]
        assert store.labels(0).dtype == torch.int64
        assert store.split("train") == [0, 1, 2] and store.split("test") == [3, 4]
        assert_unchanged(store)


def test_clips_that_fill_a_shard_to_the_byte_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = write_store(tmp_path / "one", clips=1).settings
    for bound, sizes in ((2 * 6 * settings.segment_bytes, [2, 2]), (2 * 6 * settings.segment_bytes - 1, [1, 1, 1, 1])):
        monkeypatch.setattr(store_writing, "SHARD_BYTES", bound)
        store = write_store(tmp_path / str(bound), clips=4)
        assert list(Counter(clip.shard for clip in store.clips).values()) == sizes


def test_unknown_split_and_missing_labels(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "a"))
    with pytest.raises(AvelError, match=r"no clips of split 'val'\n.*train, test"):
        store.split("val")
    part = make_part(tmp_path / "b", 1)
    pack(tmp_path / "b", SETTINGS, (), [part])
    store = open_store(tmp_path / "b")
    with pytest.raises(AvelError, match="has no labels"):
        store.labels(0)
    with pytest.raises(AvelError, match="this one has none"):
        store.split("train")


def test_the_same_twice_is_the_same_bytes(tmp_path: Path) -> None:
    assert contents(make_store(tmp_path / "a")) == contents(make_store(tmp_path / "b"))
    assert open_store(tmp_path / "a").checksum == open_store(tmp_path / "b").checksum


def test_the_format_on_disk_is_as_it_was(tmp_path: Path) -> None:
    """Computed by the code that had a class each for parts, clips and their JSON: shards by name, ``store.json``."""
    part = tmp_path / make_part(tmp_path, 1).shard
    with safe_open(part, "np") as file:
        facts = json.loads(file.metadata()["facts"])
    assert [*facts] == ["segments", "duration", "checksum", "audio_valid", "source", "bad_packets", "streams"]
    store = open_store(make_store(tmp_path / "store"))
    assert store.checksum == "d5afff464a3621ae613f07111b45dd46d0479550a8429b78282cbb0aad91dfb6"


def test_features_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path))
    assert store.visual(1).data_ptr() - store.visual(0).data_ptr() == 2 * 3 * 5 * 2  # one segment on
    assert store.visual(1).data_ptr() == store.visual(1).data_ptr()
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "shard-" in line]
    ranges = [tuple(int(end, 16) for end in line.split("-")) for line in mapped]
    for view in (store.visual(3), store.audio(3)):
        assert any(low <= view.data_ptr() < high for low, high in ranges)


def private_kilobytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


def test_a_large_shard_costs_no_memory(tmp_path: Path) -> None:
    part = make_part(tmp_path, 1, segments=1_000_000)  # 76 MB
    pack(tmp_path, SETTINGS, (), [part])
    open_store(make_store(tmp_path / "small")).visual(0)  # what the first use of the library costs
    before = private_kilobytes()
    store = open_store(tmp_path)
    assert store.visual(0)[500_000].float().sum().isfinite() and store.audio(0)[999_999].sum().isfinite()
    assert private_kilobytes() - before < 4_000


def test_packing_again_writes_nothing(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path))
    before = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    pack(tmp_path, SETTINGS, store.classes, store.clips)
    assert {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == before


def test_new_labels_rewrite_the_index_alone(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path))
    shards = {file: file.stat().st_ino for file in tmp_path.glob("shard-*")}
    clips = [replace(clip, spans=(Span("cat", 0, 1),), splits=("val",)) for clip in store.clips]
    pack(tmp_path, SETTINGS, ("cat",), clips)
    assert open_store(tmp_path).labels(4).tolist() == [0, 1, 1, 1, 1]
    assert {file: file.stat().st_ino for file in tmp_path.glob("shard-*")} == shards
    assert open_store(tmp_path).checksum != store.checksum


def test_clips_added_and_taken_away(tmp_path: Path) -> None:
    old = open_store(make_store(tmp_path))
    clips = [old.clips[3], labelled(7, make_part(tmp_path, 7)), old.clips[1]]
    pack(tmp_path, SETTINGS, ("bell", "dog"), clips)
    store = open_store(tmp_path)
    assert [clip.id for clip in store.clips] == ["c3", "c7", "c1"]
    for row, index in enumerate((3, 7, 1)):
        assert np.array_equal(store.visual(row).numpy(), features(index, index + 1)[0])
    assert_unchanged(store)
    assert len(list(tmp_path.iterdir())) == 2  # the former shard is gone


def test_killed_before_the_index_the_former_store_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path, 2)
    before = contents(tmp_path)
    clips = [labelled(index, make_part(tmp_path, index)) for index in range(4)]
    monkeypatch.setattr(store_writing, "write_file", lambda path, data: 1 / 0 if path.name == "store.json" else None)
    monkeypatch.setattr(store_writing, "_pack_shard", lambda path, clips: path.write_bytes(b"new"))
    with pytest.raises(ZeroDivisionError):
        pack(tmp_path, SETTINGS, ("bell", "dog"), clips)
    assert before.items() <= contents(tmp_path).items()
    assert_unchanged(open_store(tmp_path))


def test_parts_of_another_making_are_not_used(tmp_path: Path) -> None:
    part = make_part(tmp_path, 1)
    file = tmp_path / part.shard
    assert read_part(tmp_path, "c1", SETTINGS, "hash1") == part
    assert read_part(tmp_path, "c1", SETTINGS, "another") is None
    other = Settings(2.0, "time", SETTINGS.extractors, (2, 3), 5, 4)
    assert read_part(tmp_path, "c1", other, "hash1") is None
    extractors = {**SETTINGS.extractors, "audio": {"name": "a", "tag": "a-2", "options": {}}}
    assert read_part(tmp_path, "c1", Settings(1.0, "time", extractors, (2, 3), 5, 4), "hash1") is None
    assert read_part(tmp_path, "c2", SETTINGS, "hash1") is None
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    for damaged in (data, data[: len(data) // 2], b""):
        file.write_bytes(damaged)
        assert read_part(tmp_path, "c1", SETTINGS, "hash1") is None


def refusal(path: Path) -> str:
    """What cannot be read of a store: of the whole, or else of a clip."""
    with pytest.raises(AvelError) as error:
        for index in range(len((store := open_store(path)).clips)):
            store.visual(index)
    return error.value.found


def test_no_store(tmp_path: Path) -> None:
    assert "no feature store" in refusal(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "no feature store" in refusal(tmp_path / "file")
    make_part(tmp_path / "half", 1)
    assert "unfinished extraction" in refusal(tmp_path / "half")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: '{"schema": 2}',
        lambda text: text.replace('"row"', '"raw"', 1),
        lambda text: text.replace('"grid": [', '"grid": [7,', 1),
        lambda text: text.replace('"spans": []', '"spans": [1]', 1),
    ],
)
def test_damaged_index(tmp_path: Path, change: object) -> None:
    index = make_store(tmp_path) / "store.json"
    index.write_text(change(index.read_text()))  # type: ignore[operator]
    assert "is damaged" in refusal(tmp_path)


def test_another_schema(tmp_path: Path) -> None:
    index = make_store(tmp_path) / "store.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "schema": 99}))
    assert "has schema 99" in refusal(tmp_path)


def test_damaged_shards(tmp_path: Path) -> None:
    shard = next(make_store(tmp_path).glob("shard-*"))
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    (finding,) = (each for each in check(tmp_path, window=1) if each.place == "shards")
    assert finding.level == "error" and "differ from their checksum: clips (1): c4" in finding.text
    shard.write_bytes(whole[:-1])
    assert f"{len(whole) - 1} bytes instead of {len(whole)}" in refusal(tmp_path)
    shard.write_bytes(b"\xff" * len(whole))
    assert str(shard) in refusal(tmp_path)
    shard.unlink()
    assert "missing" in refusal(tmp_path)

"""AVE's h5 files into a store: the values, twenty-six ways to damage a file, kills, and a disk without room."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ave_files import BACKGROUND, write_ave, write_h5
from synthetic import assert_unchanged

from avel import cli
from avel.config import TrainConfig
from avel.data import store_writing
from avel.data.ave.files import CLASSES, full_labels, read_annotations
from avel.data.ave.importing import import_ave
from avel.data.loader import Windows
from avel.data.store import WORK, Store, open_store
from avel.errors import AvelError
from avel.evaluation import baselines, evaluate
from avel.files import make_work_folder
from avel.training import train

pytestmark = pytest.mark.usefixtures("blank_pictures")

Mutation = Callable[[Path, np.random.Generator], None]


def array(path: Path, key: str = "avadataset") -> np.ndarray:
    with h5py.File(path) as file:
        return file[key][:]


def content(store: Store) -> list[tuple[object, ...]]:
    """All that must be equal in two imports of the same data: clips and features, apart from where they lie."""
    return [
        (clip.id, clip.video, clip.spans, clip.splits, clip.checksum, store.visual(i).tolist(), store.audio(i).tolist())
        for i, clip in enumerate(store.clips)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ave(tmp_path_factory.mktemp("ave"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("store") / "ave"
    import_ave(folder, out)
    return open_store(out)


# What the store holds


def test_every_value_is_that_of_the_files_rounded_once(folder: Path, whole: Store) -> None:
    assert_unchanged(whole)
    visual, audio = array(folder / "visual_feature.h5"), array(folder / "audio_feature.h5")
    assert len(whole.clips) == 14 + 3 and whole.grid == (2, 3) and (whole.visual_dim, whole.audio_dim) == (5, 4)
    for row in range(14):
        assert np.array_equal(whole.visual(row).numpy(), visual[row].astype(np.float16))
        assert np.array_equal(whole.audio(row).numpy(), audio[row].astype(np.float32))
    noisy = array(folder / "visual_feature_noisy.h5"), array(folder / "audio_feature_noisy.h5")
    for row in range(3):
        assert np.array_equal(whole.visual(14 + row).numpy(), noisy[0][row].astype(np.float16))
        assert np.array_equal(whole.audio(14 + row).numpy(), noisy[1][row].astype(np.float32))


def test_labels_splits_and_names_follow_the_annotations(folder: Path, whole: Store) -> None:
    annotations = read_annotations(folder / "Annotations.txt")
    labels = full_labels(annotations)
    assert whole.classes == CLASSES and whole.framing == "ave" and whole.segment_seconds == 1
    for row, annotation in enumerate(annotations):
        assert np.array_equal(whole.labels(row).numpy(), labels[row])
        assert whole.clips[row].id == f"{row:04d}-{annotation.video}" and whole.clips[row].video == annotation.video
    for name in ("train", "val", "test", "train_match", "val_match", "test_match"):
        order = array(folder / f"{name.split('_')[0]}_order{'_match' if '_' in name else ''}.h5", "order")
        assert whole.split(name) == sorted(order.tolist())
    assert whole.split("background") == [14, 15, 16]
    assert (whole.labels(15) == BACKGROUND).all() and whole.clips[15].spans == ()
    assert whole.clips[1].spans is not None and (whole.labels(1) == BACKGROUND).all()  # no length, yet a class


def test_the_report_says_what_was_found_and_keeps_it(folder: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    report = import_ave(folder, tmp_path / "store", progress=lambda *step: steps.append(step))
    assert (report.clips, report.done) == (17, 17) and steps[-1] == ("import", 17, 17)
    said = [str(finding) for finding in report.findings]
    assert any("visual_feature_vec.h5: is the mean over the cells of visual_feature.h5" in line for line in said)
    kept = json.loads((tmp_path / "store" / "import.json").read_text())
    assert [finding["text"] for finding in kept["findings"]] == [finding.text for finding in report.findings]
    assert kept["files"]["visual_feature.h5"]["bytes"] == (folder / "visual_feature.h5").stat().st_size
    again = import_ave(folder, tmp_path / "store")
    assert again.done == 0 and again.findings == report.findings


def test_odd_features_are_reported_and_imported_as_they_are(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "ave"))
    visual, audio = array(copy / "visual_feature.h5"), array(copy / "audio_feature.h5")
    visual[3, 2, 0, 0, 1] = -2
    audio[[5, 9], 4] = 0
    write_h5(copy / "visual_feature.h5", visual)
    write_h5(copy / "audio_feature.h5", audio)
    report = import_ave(copy, tmp_path / "store")
    said = "\n".join(map(str, report.findings))
    assert re.search("negative values, unlike in AVE's files, in 1 row: 3$", said, re.MULTILINE)
    assert re.search("a second of zeros, which VGGish never gives, in 2 rows: 5, 9$", said, re.MULTILINE)
    assert re.search("note  visual_feature_vec.h5: is not the mean over the cells", said)
    assert open_store(tmp_path / "store").visual(3)[2, 0, 0, 1] == -2


def test_pooled_features_alone_serve_cross_modality_localization(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "ave"))
    (copy / "visual_feature.h5").unlink()
    report = import_ave(copy, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.grid == (1, 1) and len(store.clips) == 14  # the background-only clips have cells
    pooled = array(copy / "visual_feature_vec.h5").astype(np.float32).astype(np.float16)
    assert np.array_equal(store.visual(4)[:, 0, 0].numpy(), pooled[4])
    assert report.survey.lacking()["full"] == ["visual_feature.h5"] and not report.survey.lacking()["cml"]


def test_a_store_of_ave_trains_evaluates_and_names_the_shared_videos(whole: Store, tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 4, "options": {"width": 16, "heads": 2}, "device": "cpu", "threads": 1}
    train(TrainConfig(store=whole.path, out=tmp_path / "run", **settings))  # type: ignore[arg-type]
    scores = evaluate(tmp_path / "run", "test")
    assert scores["data"] == "in AVE's layout, other annotations"
    shared = scores["without_shared_videos"]  # row 0 is tested and the last row, the same video, is trained on
    assert shared["videos"] == ["video_00000"] and shared["clips"] == scores["clips"] - 1
    saved = np.load(tmp_path / "run" / "predictions_test.npz")
    right = (saved["probabilities"].argmax(1) == saved["labels"]).reshape(-1, 10)
    others = saved["clip"] != "0000-video_00000"
    assert shared["segment_accuracy"] == pytest.approx(right[others].mean())
    assert scores["segment_accuracy"] == pytest.approx(right.mean())


def test_the_baselines_of_a_store_are_those_of_its_files(folder: Path, whole: Store) -> None:
    for split in ("train", "val", "test", "test_match"):
        of_files, of_store = baselines(folder, split), baselines(whole.path, split)
        assert of_files == of_store
        assert of_store.windows_split == (split if "_" in split else f"{split}_match")
    with pytest.raises(AvelError, match="train_match"):
        baselines(folder, "dev")


def test_the_loader_serves_the_background_clips_too(whole: Store) -> None:
    batch = Windows(whole, whole.split("background"), 10).batch([0, 2])
    assert (batch.target.video == BACKGROUND).all() and torch.equal(batch.audio[1], whole.audio(16))


# Damage


def _rewrite(name: str, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], key: str = "avadataset"):
    def mutate(folder: Path, random: np.random.Generator) -> None:
        write_h5(folder / name, change(array(folder / name, key), random), key)

    return mutate


def _put(value: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
        row = int(random.integers(len(values)))
        values[(row, *(int(random.integers(size)) for size in values.shape[1:]))] = value
        return values

    return change


def _truncate(name: str) -> Mutation:
    def mutate(folder: Path, random: np.random.Generator) -> None:
        size = (folder / name).stat().st_size
        os.truncate(folder / name, int(random.integers(0, size)))

    return mutate


def _lines(
    change: Callable[[list[str], np.random.Generator], list[str]],
) -> Callable[[Path, np.random.Generator], None]:
    def mutate(folder: Path, random: np.random.Generator) -> None:
        lines = (folder / "Annotations.txt").read_text().splitlines()
        (folder / "Annotations.txt").write_text("\n".join(change(lines, random)) + "\n")

    return mutate


def _field(place: int, values: list[str]) -> Callable[[list[str], np.random.Generator], list[str]]:
    def change(lines: list[str], random: np.random.Generator) -> list[str]:
        row = int(random.integers(len(lines)))
        fields = lines[row].split("&")
        fields[place] = str(random.choice(values))
        return [*lines[:row], "&".join(fields), *lines[row + 1 :]]

    return change


def _garbage(folder: Path, random: np.random.Generator) -> None:
    lines = (folder / "Annotations.txt").read_bytes().splitlines()
    junk = bytes(random.integers(128, 256, int(random.integers(1, 40)), dtype=np.uint8))
    row = int(random.integers(len(lines)))
    (folder / "Annotations.txt").write_bytes(b"\n".join([*lines[:row], junk, *lines[row + 1 :]]))


def _no_h5(folder: Path, random: np.random.Generator) -> None:
    (folder / "audio_feature.h5").write_bytes(random.bytes(5000))


def _rename_key(folder: Path, random: np.random.Generator) -> None:
    name = str(random.choice(["visual_feature.h5", "audio_feature.h5", "visual_feature_noisy.h5"]))
    write_h5(folder / name, array(folder / name), str(random.choice(["features", "avadatasets", "AVADATASET"])))


def _compressed(folder: Path, random: np.random.Generator) -> None:
    values = array(folder / "visual_feature.h5")
    with h5py.File(folder / "visual_feature.h5", "w") as file:
        chunks = (int(random.integers(1, 14)), 5, 2, 3, 5)
        file.create_dataset("avadataset", data=values, chunks=chunks, compression="gzip", shuffle=True)


def _big_endian(folder: Path, random: np.random.Generator) -> None:
    write_h5(folder / "audio_feature.h5", array(folder / "audio_feature.h5").astype(">f8"))


def _other_writing(folder: Path, random: np.random.Generator) -> None:
    text = (folder / "Annotations.txt").read_text().replace("\n", str(random.choice(["\n", "\r\n"])))
    header = str(random.choice(["", "Category&VideoID&Quality&StartTime&EndTime\n"]))
    (folder / "Annotations.txt").write_bytes((str(random.choice(["", "\ufeff"])) + header + text).encode())


def _drop_optional(folder: Path, random: np.random.Generator) -> None:
    (folder / str(random.choice(["labels.h5", "mil_labels.h5", "prob_label.h5", "labels_closs.h5"]))).unlink()


def _duplicate(order: np.ndarray, random: np.random.Generator) -> np.ndarray:
    one, other = random.choice(len(order), 2, replace=False)
    order[one] = order[other]
    return order


def _outside(order: np.ndarray, random: np.random.Generator) -> np.ndarray:
    order[int(random.integers(len(order)))] = int(random.choice([-1, 14, 4143, 2**40]))
    return order


def _foreign(order: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.append(order[1:], random.choice(np.setdiff1d(np.arange(14), order)))


VISUAL, AUDIO, ORDER = "visual_feature.h5", "audio_feature.h5", "train_order_match.h5"

#: name -> (what is done to the folder, what the error must say; None where it is harmless)
MUTATIONS: dict[str, tuple[Mutation, str | None]] = {
    "a row of vision missing": (_rewrite(VISUAL, lambda v, _: v[:-1]), f"{VISUAL}, key avadataset: .*13, 10"),
    "nine segments": (_rewrite(AUDIO, lambda v, _: v[:, :9]), f"{AUDIO}, key avadataset: .*14, 9"),
    "a flat map": (_rewrite(VISUAL, lambda v, _: v.reshape(14, 10, 6, 5)), f"{VISUAL}, key avadataset: .*6, 5"),
    "whole numbers": (_rewrite(VISUAL, lambda v, _: v.astype(np.int32)), f"{VISUAL}, key avadataset: int32"),
    "another width": (_rewrite("audio_feature_noisy.h5", lambda v, _: v[..., :3]), "audio_feature_noisy.h5, key"),
    "another key": (_rename_key, "_feature.*h5, key avadataset: not there; the file holds"),
    "vision cut short": (_truncate(VISUAL), VISUAL),
    "sound cut short": (_truncate(AUDIO), AUDIO),
    "no h5 file": (_no_h5, AUDIO),
    "NaN in vision": (_rewrite(VISUAL, _put(np.nan)), rf"{VISUAL}, key avadataset, row \d+, segment \d: .* nan"),
    "NaN in sound": (_rewrite(AUDIO, _put(np.nan)), rf"{AUDIO}, key avadataset, row \d+, segment \d: .* nan"),
    "infinite sound": (_rewrite(AUDIO, _put(-np.inf)), rf"{AUDIO}, key avadataset, row \d+, segment \d: .*inf"),
    "too large for float16": (_rewrite(VISUAL, _put(70000)), rf"{VISUAL}, key avadataset, row \d+.*: .*70000"),
    "NaN in pooled vision": (_rewrite("visual_feature_vec.h5", _put(np.nan)), r"vec.h5, key avadataset, row \d+"),
    "index out of range": (_rewrite(ORDER, _outside, "order"), rf"{ORDER}, key order: row \d is "),
    "index twice": (_rewrite(ORDER, _duplicate, "order"), rf"{ORDER}, key order: rows \d and \d are both"),
    "index missing": (_rewrite(ORDER, lambda o, r: r.permutation(o)[1:], "order"), "key order: row .* is in none of"),
    "index in two splits": (_rewrite("val_order.h5", _foreign, "order"), "(val|test)_order.h5.*: row .* also in"),
    "order of fractions": (_rewrite(ORDER, lambda o, _: o / 1.0, "order"), f"{ORDER}, key order: float64"),
    "unknown class": (_lines(_field(0, ["Barks", "bark", "Churh bell", "background"])), r"Annotations.txt line \d+"),
    "impossible times": (_lines(_field(4, ["11", "x", "-1", "3.5", ""])), r"Annotations.txt line \d+"),
    "a line missing": (_lines(lambda lines, r: lines[:-1]), "key "),
    "garbage in the text": (_garbage, r"Annotations.txt line \d+"),
    "float32": (_rewrite(VISUAL, lambda v, _: v.astype(np.float32)), None),
    "chunks, compressed": (_compressed, None),
    "big-endian": (_big_endian, None),
    "order shuffled": (_rewrite("train_order.h5", lambda o, r: r.permutation(o), "order"), None),
    "text written otherwise": (_other_writing, None),
    "labels wrong": (_rewrite("labels.h5", _put(0.5)), None),
    "labels missing": (_drop_optional, None),
}  # fmt: skip


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 10), marks=pytest.mark.slow)], ids=["two", "eight"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_damage_is_named_or_harmless(folder: Path, whole: Store, tmp_path: Path, name: str, seeds: range) -> None:
    """The error names file, key and row, and nothing is left; or the store is the original's."""
    mutate, said = MUTATIONS[name]
    for seed in seeds:
        copy = Path(shutil.copytree(folder, tmp_path / f"ave-{seed}"))
        out = tmp_path / f"store-{seed}"
        mutate(copy, np.random.default_rng([seed, len(name)]))
        if said is None:
            import_ave(copy, out)
            assert content(open_store(out)) == content(whole)
            continue
        with pytest.raises(AvelError) as error:
            import_ave(copy, out)
        assert re.search(said, error.value.found), error.value.found
        assert str(copy) in error.value.found, "the file is named by its path"
        assert not out.exists(), "nothing half-written"


@pytest.mark.parametrize("name", ["NaN in vision", "vision cut short", "unknown class", "index twice"])
def test_on_the_command_line_damage_is_three_lines_and_exit_code_2(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "ave"))
    MUTATIONS[name][0](copy, np.random.default_rng(1))
    assert cli.main(["data", "import-ave", str(copy), "--out", str(tmp_path / "store")]) == 2
    error = capsys.readouterr().err
    assert "expected:" in error and "do this:" in error and "Traceback" not in error
    assert not (tmp_path / "store").exists()


def test_the_command_line_imports_and_tells(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "import-ave", str(folder), "--out", str(tmp_path / "store"), "--workers", "1"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "17 clips in" in said and "task cml: ready" in said and "train and test: videos in both (1)" in said
    assert cli.main(words) == 0
    assert "17 of them from an earlier run" in capsys.readouterr().out
    assert cli.main(["data", "import-ave", str(folder)]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "ave"))
    (copy / "visual_feature.h5").unlink()
    (copy / "test_order_match.h5").unlink()
    before = sorted(path.name for path in copy.iterdir())
    assert cli.main(["data", "import-ave", str(copy), "--dry-run", "--out", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    assert "missing" in said and "task full: not ready without visual_feature.h5" in said
    assert "task cml: not ready without train_order_match.h5" in said
    assert sorted(path.name for path in copy.iterdir()) == before and not (tmp_path / "store").exists()


# Other folders, kills, full disks


def test_no_splits_and_no_features_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "ave"))
    (copy / "val_order.h5").unlink()
    import_ave(copy, tmp_path / "one family")
    assert open_store(tmp_path / "one family").splits() and "val" not in open_store(tmp_path / "one family").splits()
    (copy / "val_order_match.h5").unlink()
    with pytest.raises(AvelError, match="no whole family of splits"):
        import_ave(copy, tmp_path / "store")
    (copy / "audio_feature.h5").unlink()
    with pytest.raises(AvelError, match=r"no audio_feature.h5"):
        import_ave(copy, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_with_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_ave(tmp_path / "other", visual_dim=6)
    import_ave(other, tmp_path / "store")
    kept = (tmp_path / "store" / "store.json").read_bytes()
    with pytest.raises(AvelError, match=r"holds another store, of ave-layout-visual-2x3x6"):
        import_ave(folder, tmp_path / "store")
    assert (tmp_path / "store" / "store.json").read_bytes() == kept
    make_work_folder(tmp_path / "half" / WORK)
    (tmp_path / "half" / WORK / "1.safetensors").touch()
    with pytest.raises(AvelError, match="unfinished extraction"):
        import_ave(folder, tmp_path / "half")
    (tmp_path / "file").touch()
    with pytest.raises(AvelError, match="is a file"):
        import_ave(folder, tmp_path / "file")


def test_changed_files_are_imported_anew(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "ave"))
    import_ave(copy, tmp_path / "store")
    before = set((tmp_path / "store").glob("shard-*"))
    write_h5(copy / "visual_feature.h5", array(copy / "visual_feature.h5") * 2)
    report = import_ave(copy, tmp_path / "store")
    assert report.done == 17
    store = open_store(tmp_path / "store")
    assert np.array_equal(store.visual(2).numpy(), array(copy / "visual_feature.h5")[2].astype(np.float16))
    assert not before & set((tmp_path / "store").glob("shard-*")), "the old shards are gone"


def test_other_splits_cost_no_feature(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "ave"))
    import_ave(copy, tmp_path / "store")
    one, other = array(copy / "train_order.h5", "order"), array(copy / "test_order.h5", "order")
    write_h5(copy / "train_order.h5", np.append(one[1:], other[0]), "order")
    write_h5(copy / "test_order.h5", np.append(other[1:], one[0]), "order")
    assert import_ave(copy, tmp_path / "store").done == 0
    assert one[0] in open_store(tmp_path / "store").split("test")


KILL = """
import os, signal, sys
from pathlib import Path
import avel.data.store_writing as store
from avel.data.ave.importing import import_ave
store.SHARD_BYTES = 4 * 10 * (2 * 3 * 5 * 2 + 4 * 4)  # four clips
folder, out, place, moment = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
calls = 0
def killing(function):
    def called(*arguments, **options):
        global calls
        calls += 1
        if calls == moment:
            if place == "fsync":  # half of the file that was written is on the disk
                os.truncate(f"/proc/self/fd/{arguments[0]}", os.fstat(arguments[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return called
setattr(os, place, killing(getattr(os, place)))
import_ave(folder, out, workers=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_killed_at_every_write_and_resumed(folder: Path, whole: Store, tmp_path: Path, place: str) -> None:
    """The shards' names, five shards, store.json, import.json: a run killed at its second write finishes one."""
    out = tmp_path / "store"
    kept: dict[str, tuple[int, int]] = {}
    kills = 0
    while True:
        command = [sys.executable, "-c", KILL, folder, out, place, "1" if kills == 0 else "2"]
        process = subprocess.run(command, capture_output=True, text=True)
        now = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.glob("shard-*")}
        assert kept.items() <= now.items(), "a finished shard was written again"
        kept = now
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
        kills += 1
    assert kills == 2 + 6 and len(kept) == 5  # the last run writes import.json alone
    process = subprocess.run(
        [sys.executable, "-c", KILL, folder, tmp_path / "unkilled", place, "99"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    unkilled = {file.name: file.read_bytes() for file in (tmp_path / "unkilled").iterdir()}
    assert {file.name: file.read_bytes() for file in out.iterdir()} == unkilled
    assert content(open_store(out)) == content(whole)


def test_a_full_disk_keeps_what_is_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writing, "SHARD_BYTES", 1)  # a clip a shard
    written = 0
    original = os.fsync

    def full(file: int) -> None:
        nonlocal written
        written += 1
        if written > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AvelError, match="No space left"):
        import_ave(folder, tmp_path / "store", workers=1)
    monkeypatch.setattr(os, "fsync", original)
    assert not list((tmp_path / "store").glob(".avel-*.tmp"))
    assert import_ave(folder, tmp_path / "store", workers=1).done == 17 - 5  # the names of the shards, and five


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5000))  # type: ignore[attr-defined]
    with pytest.raises(AvelError, match="GB are free on the disk"):
        import_ave(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_damaged_shard_is_made_again(folder: Path, whole: Store, tmp_path: Path) -> None:
    import_ave(folder, tmp_path / "store")
    (tmp_path / "store" / "store.json").unlink()
    shard = next((tmp_path / "store").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert 0 < import_ave(folder, tmp_path / "store").done <= 17
    assert content(open_store(tmp_path / "store")) == content(whole)

"""A store as AVE's h5 files: what is in them, that they come back equal, what is refused, kills and full disks."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import h5py
import numpy as np
import pytest
import torch
from ave_files import write_ave, write_h5
from synthetic import relabel, write_store

from avel import cli
from avel.data.ave.export import export_h5
from avel.data.ave.files import CLASSES, NAMES, full_labels, read_annotations
from avel.data.ave.importing import import_ave
from avel.data.ave.survey import survey
from avel.data.check import check, exit_code
from avel.data.compare import compare
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.worlds.simulated.simulate import simulate

ORDERS = [f"{split}_order{match}.h5" for split in ("train", "val", "test") for match in ("", "_match")]
CLASSES_OF_OUR_OWN = ("bell", "dog", "train")  # of `write_store`


def array(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        (key,) = file
        return file[key][:]


def attributes(path: Path) -> dict[str, object]:
    with h5py.File(path) as file:
        (key,) = file
        return dict(file[key].attrs)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def same_features_and_labels(one: Path, other: Path) -> None:
    """`avel data compare` finds no difference, and ids, events, splits and tags are equal."""
    found = compare(one, other)
    assert found.clips == len(open_store(other).clips) and not found.only_a and not found.only_b
    assert found.visual.max_absolute == 0 and found.audio.max_absolute == 0
    a, b = open_store(one), open_store(other)
    assert a.settings == b.settings and a.classes == b.classes
    for index, (mine, theirs) in enumerate(zip(a.clips, b.clips, strict=True)):
        assert (mine.id, mine.video, mine.spans, mine.splits) == (theirs.id, theirs.video, theirs.spans, theirs.splits)
        assert (a.labels(index) == b.labels(index)).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ave(tmp_path_factory.mktemp("ave"))


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("store") / "ave"
    import_ave(folder, out)
    return open_store(out)


@pytest.fixture(scope="module")
def exported(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_h5(store.path, tmp_path_factory.mktemp("export") / "h5").folder


# What is in the files


def test_every_file_of_ave_comes_back_with_its_values(folder: Path, exported: Path) -> None:
    names = {file.name for file in exported.iterdir()}
    assert names == {file.name for file in folder.iterdir()} | {"export.json"}
    assert (exported / "Annotations.txt").read_bytes() == (folder / "Annotations.txt").read_bytes()
    for name in names - {"Annotations.txt", "export.json"}:
        given, made = array(folder / name), array(exported / name)
        kind = np.int64 if name in ORDERS else np.float64 if "_feature" in name else np.float32
        assert made.dtype == kind, name
        if name.startswith("visual_feature_vec"):
            np.testing.assert_allclose(made, array(exported / "visual_feature.h5").mean((2, 3)), rtol=1e-6)
        elif name.startswith("visual"):
            assert np.array_equal(made, given.astype(np.float16)), name  # what a store keeps of them
        else:
            assert np.array_equal(made, given.astype(np.float32)), name


def test_import_of_an_export_is_the_store_again(store: Store, exported: Path, tmp_path: Path) -> None:
    import_ave(exported, tmp_path / "again")
    same_features_and_labels(tmp_path / "again", store.path)
    second = export_h5(tmp_path / "again", tmp_path / "h5").folder
    ours, theirs = contents(second), contents(exported)
    del ours["export.json"], theirs["export.json"]  # they name the checksum of their store
    assert ours == theirs
    assert exit_code(check(exported)) == 0 == exit_code(check(store.path)), "one row of a class of AVE's is no error"


def test_simulated_data_come_back_and_stay_marked(tmp_path: Path) -> None:
    simulate(tmp_path / "data", videos=60, grid=(3, 4), visual_dim=16, background_videos=5)
    import_ave(tmp_path / "data", tmp_path / "store")
    report = export_h5(tmp_path / "store", tmp_path / "h5")
    assert (report.rows, report.background_rows, len(report.splits)) == (60, 5, 6)
    for name in (*ORDERS, "labels.h5", "mil_labels.h5", "labels_closs.h5", "labels_noisy.h5"):
        assert np.array_equal(array(tmp_path / "h5" / name), array(tmp_path / "data" / name)), name
    assert np.array_equal(array(tmp_path / "h5" / "audio_feature.h5"), array(tmp_path / "data" / "audio_feature.h5"))
    import_ave(tmp_path / "h5", tmp_path / "again")
    same_features_and_labels(tmp_path / "again", tmp_path / "store")
    assert survey(tmp_path / "h5").origin == "simulated, not AVE (version 2, seed 0)"
    assert open_store(tmp_path / "again").origin == "simulated, not AVE (version 2, seed 0)"
    assert attributes(tmp_path / "h5" / "visual_feature.h5")["origin"] == "simulated, not AVE (version 2, seed 0)"
    assert any(each.level == "note" and "simulated, not AVE" in each.text for each in check(tmp_path / "h5"))


@pytest.fixture(scope="module")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with AVE's own small files under ``data``, and a store of them and of made-up features."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "data").mkdir()
    for name in ("Annotations.txt", "mil_labels.h5", "labels_closs.h5", *ORDERS):
        shutil.copy(real_data / "ave" / name, folder / "data" / name)
    random = np.random.default_rng(0)
    write_h5(folder / "data" / "visual_feature.h5", random.random((4143, 10, 1, 1, 2)))
    write_h5(folder / "data" / "audio_feature.h5", random.random((4143, 10, 2)).astype(np.float32))
    import_ave(folder / "data", folder / "store")
    return folder


@pytest.mark.slow
def test_ave_s_own_annotations_and_splits_come_back(real: Path, tmp_path: Path) -> None:
    """The annotations byte for byte; of the h5 files all values in the same order: HDF5 of 2017 laid them out
    otherwise, with the time of writing in them."""
    given = real / "data"
    export_h5(real / "store", tmp_path / "h5")
    assert (tmp_path / "h5" / "Annotations.txt").read_bytes() == (given / "Annotations.txt").read_bytes()
    for name in ("mil_labels.h5", "labels_closs.h5", *ORDERS):
        ours, theirs = array(tmp_path / "h5" / name), array(given / name)
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype, name
    one_hot = array(tmp_path / "h5" / "labels.h5")
    assert one_hot.shape == (4143, 10, 29) and (one_hot.sum(-1) == 1).all()
    assert np.array_equal(one_hot.argmax(-1), full_labels(read_annotations(given / "Annotations.txt")))
    import_ave(tmp_path / "h5", tmp_path / "again")
    same_features_and_labels(tmp_path / "again", real / "store")
    assert open_store(tmp_path / "again").origin == "AVE"


def test_code_written_for_ave_reads_it(exported: Path, store: Store) -> None:
    """As the published loaders do: whole arrays by key, rows picked by the order file."""
    with h5py.File(exported / "visual_feature.h5", "r") as file:
        visual = file["avadataset"][:]
    with h5py.File(exported / "audio_feature.h5", "r") as file:
        audio = file["avadataset"][:]
    with h5py.File(exported / "labels.h5", "r") as file:
        labels = file["avadataset"][:]
    with h5py.File(exported / "test_order.h5", "r") as file:
        order = file["order"][:]
    lines = (exported / "Annotations.txt").read_text().splitlines()
    assert visual.shape == (14, 10, 2, 3, 5) and audio.shape == (14, 10, 4) and labels.shape == (14, 10, 29)
    assert len(lines) == 14 and len(order) == 3
    for row in order:
        category, video, _, start, end = lines[row].split("&")
        (index,) = (i for i, clip in enumerate(store.clips) if clip.id == f"{row:04d}-{video}")
        assert np.array_equal(visual[row], store.visual(index).float().numpy())
        assert np.array_equal(audio[row], store.audio(index).numpy())
        assert "test" in store.clips[index].splits
        inside = np.zeros(10, bool)
        inside[int(start) : int(end)] = True
        column = list(CLASSES).index(category)
        assert (labels[row, :, column] == inside).all() and (labels[row, :, 28] == ~inside).all()


def test_features_are_float64_as_ave_s_and_equal_to_the_store_s(store: Store, exported: Path) -> None:
    visual, audio = (array(exported / f"{kind}_feature.h5") for kind in ("visual", "audio"))
    assert visual.dtype == audio.dtype == np.float64
    for row in range(len(visual)):
        assert np.array_equal(visual[row], store.visual(row).numpy().astype(np.float64))
        assert np.array_equal(audio[row], store.audio(row).numpy().astype(np.float64))


def test_float32_holds_the_same_in_half_the_room(store: Store, exported: Path, tmp_path: Path) -> None:
    export_h5(store.path, tmp_path / "h5", dtype="float32", files=["visual_feature.h5", "audio_feature.h5"])
    assert {file.name for file in (tmp_path / "h5").iterdir()} == {
        *("Annotations.txt", "export.json", "visual_feature.h5", "audio_feature.h5")
    }
    for name in ("visual_feature.h5", "audio_feature.h5"):
        small, large = array(tmp_path / "h5" / name), array(exported / name)
        assert small.dtype == np.float32 and np.array_equal(small, large)


@pytest.mark.parametrize(("dtype", "runs"), [("float64", True), ("float32", False)])
def test_code_in_double_precision_reads_the_default_alone(
    store: Store, tmp_path: Path, dtype: Literal["float32", "float64"], runs: bool
) -> None:
    """As CMRAN and CMBS: the arrays go as they are into a network in double precision."""
    export_h5(store.path, tmp_path / "h5", dtype=dtype, files=["audio_feature.h5"])
    audio = torch.from_numpy(array(tmp_path / "h5" / "audio_feature.h5"))
    network = torch.nn.Linear(audio.shape[-1], 4).double()
    with nullcontext() if runs else pytest.raises(RuntimeError, match="same dtype"):
        network(audio)


@pytest.mark.parametrize("name", ["visual_feature.h5", "visual_feature_vec.h5", "audio_feature_noisy.h5", "labels.h5"])
def test_each_file_alone_is_as_among_all(store: Store, exported: Path, tmp_path: Path, name: str) -> None:
    report = export_h5(store.path, tmp_path / "h5", files=[name])
    assert report.files == ("Annotations.txt", name) and report.splits == {}
    assert (tmp_path / "h5" / name).read_bytes() == (exported / name).read_bytes()


# Classes of one's own


def test_own_classes_are_cut_into_rows_with_their_own_columns(tmp_path: Path) -> None:
    write_store(tmp_path / "store", clips=12, segments=(4, 7), background=2)

    def spans(index: int, old: list) -> list:
        """Clip 0 (4 s) has two events, clip 1 (7 s) one across the cut, clip 2 none."""
        return {0: [["bell", 0, 1], ["dog", 2, 4]], 1: [["train", 2, 6]], 2: []}.get(index, old)

    store = relabel(tmp_path / "store", spans)
    report = export_h5(tmp_path / "store", tmp_path / "h5", segments=4)
    # of every second clip two rows, from 0 s and from 3 s
    assert report.rows == 6 + 2 * 6 and report.background_rows == 1 + 2 and report.classes == CLASSES_OF_OUR_OWN
    assert report.splits == {"train": 8, "val": 5, "test": 5} and report.left_out == ()
    lines = (tmp_path / "h5" / "Annotations.txt").read_text().splitlines()
    assert lines[:4] == [
        "dog&clip-0&good&2&4",
        "train&clip-1&good&2&4",
        "train&clip-1&good&0&3",
        "background&clip-2&good&0&0",
    ]
    assert report.several >= 1
    labels = array(tmp_path / "h5" / "labels.h5")
    assert labels.shape == (18, 4, 4) and (labels.sum(-1) == 1).all()
    assert labels.argmax(-1)[:4].tolist() == [[0, 3, 1, 1], [3, 3, 2, 2], [2, 2, 2, 3], [3, 3, 3, 3]]
    assert array(tmp_path / "h5" / "mil_labels.h5").argmax(-1)[:4].tolist() == [1, 2, 2, 3]
    np.testing.assert_array_equal(array(tmp_path / "h5" / "prob_label.h5"), labels.mean(1))
    assert np.array_equal(array(tmp_path / "h5" / "labels_closs.h5"), labels[..., :3].sum(-1))
    assert (array(tmp_path / "h5" / "labels_noisy.h5") == [0, 0, 0, 1]).all()
    told = attributes(tmp_path / "h5" / "labels.h5")
    assert list(told["classes"]) == [*CLASSES_OF_OUR_OWN, "background"]  # type: ignore[call-overload]
    assert told["visual_tag"] == "made-000000000000" and told["segment_seconds"] == 1.0
    visual = array(tmp_path / "h5" / "visual_feature.h5")
    assert np.array_equal(visual[2], store.visual(1)[3:].float().numpy())
    assert np.array_equal(array(tmp_path / "h5" / "audio_feature_noisy.h5")[2], store.audio(13)[3:].numpy())
    mark = json.loads((tmp_path / "h5" / "export.json").read_text())
    assert mark["rows"][1:3] == [{"clip": "clip-1", "start": 0.0}, {"clip": "clip-1", "start": 3.0}]
    assert mark["background_rows"][0]["clip"] == "clip-12" and mark["classes"] == list(CLASSES_OF_OUR_OWN)


def test_ave_s_classes_in_any_order_get_ave_s_columns(tmp_path: Path) -> None:
    write_store(tmp_path / "store", clips=12, segments=10)
    content = json.loads((tmp_path / "store" / "store.json").read_text())
    content["classes"] = ["Mandolin", "Bark", "Church bell"]
    (tmp_path / "store" / "store.json").write_text(json.dumps(content))
    names = dict(zip(CLASSES_OF_OUR_OWN, content["classes"], strict=True))
    store = relabel(tmp_path / "store", lambda _, old: [[names[label], start, end] for label, start, end in old])
    assert export_h5(tmp_path / "store", tmp_path / "h5").classes == CLASSES
    labels = array(tmp_path / "h5" / "labels.h5")
    columns = np.array([27, 2, 0, 28])
    for row in range(12):
        assert np.array_equal(labels[row].argmax(-1), columns[store.labels(row).numpy()])
    import_ave(tmp_path / "h5", tmp_path / "again")
    assert [clip.spans for clip in open_store(tmp_path / "again").clips] == [clip.spans for clip in store.clips]


@pytest.mark.slow
def test_features_made_by_avel_are_never_taken_for_ave_s(real: Path, tmp_path: Path) -> None:
    """AVE's videos through an extractor of ours: the annotations are AVE's, the features are not."""
    shutil.copytree(real / "store", tmp_path / "store")
    content = json.loads((tmp_path / "store" / "store.json").read_text())
    content["extractors"]["visual"] = {"name": "classical", "tag": "classical-0123", "options": {}}
    content["origin"] = ""
    (tmp_path / "store" / "store.json").write_text(json.dumps(content))
    export_h5(tmp_path / "store", tmp_path / "h5")
    import_ave(tmp_path / "h5", tmp_path / "again")
    again = open_store(tmp_path / "again")
    assert again.extractors["visual"]["tag"] == "classical-0123" and again.origin == ""
    assert survey(tmp_path / "h5").origin == "in AVE's layout, features made by avel"


def test_a_store_without_splits_has_no_order_files(tmp_path: Path) -> None:
    write_store(tmp_path / "store", clips=6, segments=10)
    content = json.loads((tmp_path / "store" / "store.json").read_text())
    for clip in content["clips"]:
        clip["splits"] = []
    (tmp_path / "store" / "store.json").write_text(json.dumps(content))
    report = export_h5(tmp_path / "store", tmp_path / "h5")
    assert report.rows == 6 and not report.splits and not set(report.files) & set(ORDERS)


# What is refused


def test_clips_of_other_lengths_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "store", clips=14, segments=(10, 8, 12))
    words = ["export-h5", str(tmp_path / "store"), str(tmp_path / "h5")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "9 of 14 clips" in said and "clip-1 (8), clip-2 (12), clip-4 (8), clip-5 (12), clip-7 (8) and 4 more" in said
    assert "--segments 8" in said and "do this:" in said and not (tmp_path / "h5").exists()
    assert cli.main([*words, "--segments", "9"]) == 2
    said = capsys.readouterr().err
    assert "clip-1 (8), clip-4 (8)" in said and "clip-2 (12)" not in said and "--segments 8" in said
    assert cli.main([*words, "--segments", "8"]) == 0
    with pytest.raises(AvelError, match="0 segments"):
        export_h5(tmp_path / "store", tmp_path / "other", segments=0)


def test_missing_sound_is_never_written_as_numbers(tmp_path: Path) -> None:
    write_store(tmp_path / "store", clips=12, segments=10)
    content = json.loads((tmp_path / "store" / "store.json").read_text())
    content["clips"][7]["audio_valid"] = False
    (tmp_path / "store" / "store.json").write_text(json.dumps(content))
    with pytest.raises(AvelError, match=r"no valid audio .* clip-7"):
        export_h5(tmp_path / "store", tmp_path / "h5")
    assert not (tmp_path / "h5").exists()
    content["clips"][7]["splits"] = ["mute"]  # as docs/data.md says
    (tmp_path / "store" / "store.json").write_text(json.dumps(content))
    report = export_h5(tmp_path / "store", tmp_path / "h5")
    assert report.rows == 11 and report.left_out == ("clip-7",)
    assert "clip-7&" not in (tmp_path / "h5" / "Annotations.txt").read_text()
    store = open_store(tmp_path / "store")
    for name in ("train", "val", "test"):
        rows = array(tmp_path / "h5" / f"{name}_order.h5")
        lines = (tmp_path / "h5" / "Annotations.txt").read_text().splitlines()
        assert [lines[row].split("&")[1] for row in rows] == [store.clips[index].id for index in store.split(name)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda clip: clip.update(spans=None), "clip-2 .*has no labels"),
        (lambda clip: clip.update(video="a&b"), "video name 'a&b'"),
        (lambda clip: clip.update(video="a\nb"), "video name 'a.nb'"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    write_store(tmp_path / "store", clips=6, segments=10)
    content = json.loads((tmp_path / "store" / "store.json").read_text())
    change(content["clips"][2])
    (tmp_path / "store" / "store.json").write_text(json.dumps(content))
    with pytest.raises(AvelError, match=said):
        export_h5(tmp_path / "store", tmp_path / "h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_splits_of_other_names_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store", clips=6, segments=10)
    content = json.loads((tmp_path / "store" / "store.json").read_text())
    for clip in content["clips"]:
        clip["splits"] = ["learn"]
    (tmp_path / "store" / "store.json").write_text(json.dumps(content))
    with pytest.raises(AvelError, match="there are learn"):
        export_h5(tmp_path / "store", tmp_path / "h5")


def test_nothing_is_overwritten_unasked(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "h5"
    out.mkdir()  # an empty folder is as good as none
    export_h5(store.path, out, files=["labels.h5"])
    before = contents(out)
    with pytest.raises(AvelError, match="holds an earlier export") as error:
        export_h5(store.path, out)
    assert "--overwrite" in error.value.do and contents(out) == before
    export_h5(store.path, out, files=["mil_labels.h5"], overwrite=True)
    assert {file.name for file in out.iterdir()} == {"Annotations.txt", "export.json", "mil_labels.h5"}
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(AvelError, match=r"thesis.tex beside an earlier export"):
        export_h5(store.path, out, overwrite=True)
    for other, said in ((tmp_path / "file", "is a file"), (tmp_path / "full", "is not an export of avel")):
        if other.name == "file":
            other.touch()
        else:
            other.mkdir()
            (other / "visual_feature.h5").touch()
        with pytest.raises(AvelError, match=said):
            export_h5(store.path, other, overwrite=True)
    with pytest.raises(AvelError, match=r"no file 'visual.h5' can be made"):
        export_h5(store.path, tmp_path / "new", files=["visual.h5"])
    with pytest.raises(AvelError, match="dtype 'int8'"):
        export_h5(store.path, tmp_path / "new", dtype="int8")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists() and (out / "thesis.tex").exists()


def test_an_export_with_another_s_mark_is_refused(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "h5"))
    mark = json.loads((copy / "export.json").read_text())
    mark["settings"]["visual_dim"] += 1
    (copy / "export.json").write_text(json.dumps(mark))
    with pytest.raises(AvelError, match=r"export.json says that visual_feature.h5 has \(2, 3, 6\)"):
        import_ave(copy, tmp_path / "store")
    mark["settings"]["visual_dim"] -= 1
    mark["settings"]["segment_seconds"] = 0.5
    (copy / "export.json").write_text(json.dumps(mark))
    with pytest.raises(AvelError, match=r"segments of 0.5 s"):
        import_ave(copy, tmp_path / "store")
    (copy / "export.json").write_text("{}")
    with pytest.raises(AvelError, match=r"export.json is damaged"):
        import_ave(copy, tmp_path / "store")


# Memory, kills, full disks


def test_memory_does_not_grow_with_the_store(store: Store, tmp_path: Path) -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024  # MiB

    write_store(tmp_path / "store", clips=24, segments=10, grid=(7, 7), visual_dim=512)
    export_h5(store.path, tmp_path / "warm")
    before, seen = anonymous(), []
    report = export_h5(tmp_path / "store", tmp_path / "h5", progress=lambda *_: seen.append(anonymous()))
    assert report.bytes > 48e6 and max(seen) - before < 12


KILL = """
import os, signal, sys
from avel.data.ave.export import export_h5
store, out, place, moment = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
calls = 0
def die(*arguments, original=None):
    global calls
    calls += 1
    if calls == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments) if original else None
if place == "replace":
    original = os.replace
    os.replace = lambda *arguments: die(*arguments, original=original)
export_h5(store, out, overwrite=True, progress=die if place == "row" else None)
"""


@pytest.mark.parametrize(("place", "moment"), [pytest.param("row", 9, marks=pytest.mark.slow), ("replace", 2)])
def test_a_killed_export_leaves_the_former_one_or_none(
    store: Store, exported: Path, tmp_path: Path, place: str, moment: int
) -> None:
    """At the ninth row; and between the renames of the old folder and of the new one ."""
    out = tmp_path / "h5"
    export_h5(store.path, out, files=["labels.h5"])
    former = contents(out)
    command = [sys.executable, "-c", KILL, store.path, out, place, str(moment)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (contents(out) == former) if place == "row" else not out.exists()
    if place == "replace":  # what stood there is not lost
        with pytest.raises(AvelError, match="holds an earlier export"):
            export_h5(store.path, out)
        assert contents(out) == former
    export_h5(store.path, out, overwrite=True)
    assert contents(out) == contents(exported)
    assert [path.name for path in tmp_path.iterdir()] == ["h5"], "nothing hidden is left"


@pytest.mark.parametrize(("files", "limit"), [(None, 1000), (["visual_feature.h5"], 10_000)])
def test_a_full_disk_is_said_and_leaves_nothing(
    store: Store, tmp_path: Path, files: list[str] | None, limit: int
) -> None:
    """A limit on the size of a file, met by the labels and by the features."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        with pytest.raises(AvelError, match="could not write") as error:
            export_h5(store.path, tmp_path / "h5", files=files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert "kept" not in error.value.do and list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = 14 * 10 * store.audio_dim
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * values - 1))
    with pytest.raises(AvelError, match="GB are free on the disk"):
        export_h5(store.path, tmp_path / "h5", files=["audio_feature.h5"])
    assert export_h5(store.path, tmp_path / "small", files=["audio_feature.h5"], dtype="float32").rows == 14
    assert export_h5(store.path, tmp_path / "h5", files=["labels.h5"]).rows == 14
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * values))
    assert export_h5(store.path, tmp_path / "enough", files=["audio_feature.h5"]).rows == 14


# The command line


def test_the_command_line_exports_and_tells(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "h5"
    assert cli.main(["export-h5", str(store.path), str(out)]) == 0
    said = capsys.readouterr()
    assert "14 rows and 3 of background alone, 28 classes" in said.out and "8 train, 3 val, 3 test" in said.out
    assert "visual_feature_noisy.h5" in said.out and "export" in said.err and "17/17" in said.err
    assert array(out / "audio_feature.h5").dtype == np.float64
    words = ["export-h5", str(store.path), str(out), "--overwrite", "--files", "mil_labels.h5", "train_order.h5"]
    assert cli.main(words) == 0
    assert {name for names in NAMES.values() for name in names if (out / name).exists()} == {
        *("Annotations.txt", "mil_labels.h5", "train_order.h5")
    }
    assert "splits: 8 train\n" in capsys.readouterr().out
    assert cli.main(["export-h5", str(tmp_path), str(out)]) == 2
    assert "no feature store" in capsys.readouterr().err

"""Files of a stranger: each is read as it says or refused with an AvelError, and nothing hangs or fills the memory."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hostile_cases import (
    COMMANDS,
    FILES,
    FOLDERS,
    Case,
    cases,
    command_outcome,
    file_of,
    make_folder,
    outcome,
    read,
    write_good,
)
from synthetic import assert_unchanged

from avel.config import TrainConfig
from avel.data.store import open_store
from avel.data.table import read_table
from avel.errors import AvelError
from avel.features.sources import read_source
from avel.runs import read_run

GOOD = ("refused", "as it says")

#: As version 0.1.0 wrote it before files had types. It must be read for as long as its schema stands.
OLD_RUN = """{"avel": "0.1.0", "config": {"store": "store", "out": "run", "model": "ccln", "task": "full",
"options": {}, "window": 10, "epochs": 60,
"batch_size": 32, "drop_last": false, "learning_rate": 0.001, "schedule": "constant",
"weak_labels": "onehot",
"background_videos": true, "cml_mode": "joint", "feature_noise": 0.0, "seed": 0,
"streams": "both", "select_on": "val", "validate_every": 1, "device": "auto", "precision": "32-true", "threads": 0},
"store_checksum": "%s", "seed": 0, "threads": 2, "processes": 1, "commit": null,
"versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.0"}, "machine": "Linux x86_64, 2 cores",
"windows": {"train": 18, "val": 6}}""" % ("0" * 64)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_good(folder)
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_a_good_file_is_read_as_it_says(good: Path, kind: str) -> None:
    ours, theirs = read(kind, good)
    assert ours == theirs
    whole = file_of(kind, good).read_bytes()
    assert outcome(Case(kind, "unchanged", whole), good) == "as it says"
    assert file_of(kind, good).read_bytes() == whole


def test_a_run_of_an_earlier_avel_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(OLD_RUN)
    assert read_run(tmp_path).settings() == TrainConfig(Path("store"), Path("run"))


def test_a_folder_may_be_reached_through_a_link_and_so_may_a_table(good: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(good / "store")
    assert_unchanged(open_store(tmp_path / "store"))
    (tmp_path / "v.mp4").touch()
    (tmp_path / "real.csv").write_text("video,start,end,label\nv.mp4,0,1,bell\n")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert [clip.id for clip in read_table(tmp_path / "link.csv")] == ["v.mp4"]


@pytest.mark.parametrize("name", ["clips.csv", "clips.txt"])
def test_a_pipe_or_a_device_is_no_table(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(AvelError, match="is a pipe"):
        read_source(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(AvelError, match="is a device"):
        read_source(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 2**40)
    with pytest.raises(AvelError, match="bytes"):
        read_source(tmp_path / name)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)], ids=["a fifth", "all"])
def test_changed_files_are_read_as_they_say_or_refused(good: Path, tmp_path: Path, step: int) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    every = cases(good)
    named = [(case.kind, case.name) for case in every]
    assert len(every) >= 300 and [(case.kind, case.name) for case in cases(good)] == named, (
        "many, and those of the seed"
    )
    found = [(case, outcome(case, folder)) for case in every[::step]]
    wrong = [f"{case.kind}, {case.name}: {what}" for case, what in found if what not in GOOD]
    assert not wrong, "\n".join(wrong)
    said = Counter(what for _, what in found)
    assert said["refused"] > 250 / step and said["as it says"] > 10 / step


@pytest.mark.parametrize(("name", "place", "put"), FOLDERS, ids=[name for name, _, _ in FOLDERS])
@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "others"])
def test_hostile_folders_are_refused_by_every_command(
    good: Path, tmp_path: Path, name: str, place: str, put, others: bool
) -> None:
    """Commands that read what is hostile refuse it; the others may do their work."""
    make_folder(good, tmp_path, place, put)
    concerned = {"store": ("check", "train", "evaluate", "export-h5"), "run": ("evaluate", "localize")}[
        place[: place.index("/")]
    ]
    if "run.json" in place:
        concerned = ("train", "evaluate")
    if "state" in place:
        concerned = ("train",)
    if "metrics" in place:
        concerned = ("evaluate",)
    if others:
        found = {command: command_outcome(command, tmp_path, place) for command in COMMANDS if command not in concerned}
        assert set(found.values()) <= {"refused", "done"}, found
    else:
        found = {command: command_outcome(command, tmp_path, place) for command in concerned}
        assert set(found.values()) == {"refused"}, found

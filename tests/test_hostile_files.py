"""Files of a stranger: each is read as it says or refused with an AvelError, and nothing hangs or fills the memory."""

from __future__ import annotations

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

GOOD = ("refused", "as it says")


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


def test_changed_files_are_read_as_they_say_or_refused(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    every = cases(good)
    assert len(every) >= 300 and cases(good) == every, "the cases are many, and those of the seed"
    found = [(case, outcome(case, folder)) for case in every]
    wrong = [f"{case.kind}, {case.name}: {what}" for case, what in found if what not in GOOD]
    assert not wrong, "\n".join(wrong)
    said = Counter(what for _, what in found)
    assert said["refused"] > 250 and said["as it says"] > 10


@pytest.mark.parametrize(("name", "place", "put"), FOLDERS, ids=[name for name, _, _ in FOLDERS])
def test_hostile_folders_are_refused_by_every_command(good: Path, tmp_path: Path, name: str, place: str, put) -> None:
    make_folder(good, tmp_path, place, put)
    found = {command: command_outcome(command, tmp_path, place) for command in COMMANDS}
    assert set(found.values()) <= {"refused", "done"}, found
    concerned = {"store": ("check", "train", "evaluate", "export-h5"), "run": ("evaluate", "localize")}[
        place[: place.index("/")]
    ]
    if "run.json" in place:
        concerned = ("train", "evaluate")
    if "state" in place:
        concerned = ("train",)
    if "metrics" in place:
        concerned = ("evaluate",)
    assert all(found[command] == "refused" for command in concerned), found

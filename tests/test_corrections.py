"""The CSVs of `avel localize` go back into `avel extract` and `avel train`, corrected; and the truth it is given."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from avel import cli
from avel.data.store import open_store
from avel.data.table import read_table, read_truth
from avel.errors import AvelError
from avel.features.extract import extract
from avel.timeline import Timeline
from avel.types import Span

pytestmark = pytest.mark.usefixtures("blank_pictures")

Clips = Callable[[Path, int], Path]
TINY = ["--window", "2", "--epochs", "2", "--batch-size", "2", "--options.width", "16", "--options.heads", "2"]
TINY += ["--device", "cpu", "--threads", "1"]


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def world(tiny_clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``videos/clip0.mp4`` to ``clip3.mp4``, and ``run``: a tiny model of bells and dogs."""
    folder = tmp_path_factory.mktemp("world")
    table = tiny_clips(folder / "videos", 4)
    table.write_text(table.read_text().replace("clip3.mp4,0,1,dog,train", "clip3.mp4,0,1,dog,val"))
    extract(table, folder / "store", workers=0)
    assert run("train", "--store", folder / "store", "--out", folder / "run", *TINY) == 0
    return folder


def correct(table: Path, **changes: str) -> None:
    """What a user does to the first row of a CSV in an editor; the other rows go."""
    with table.open(newline="") as file:
        header, first, *_ = csv.reader(file)
    row = dict(zip(header, first, strict=True)) | changes
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([header, [row[name] for name in header]])


# Found, corrected, learnt from


def test_found_events_are_corrected_and_learnt_from(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted((world / "videos").glob("*.mp4"))
    assert run("localize", *videos, "--model", world / "run", "--out", tmp_path / "found") == 0
    tables = sorted((tmp_path / "found").glob("*.csv"))
    assert len(tables) == 4 and all(clip.splits == ("train",) for table in tables for clip in read_table(table))
    correct(tables[1], start="0.5", end="2", label="siren")
    store = tmp_path / "store"
    assert run("extract", *tables, "--out", store, "--workers", 0) == 0
    opened = open_store(store)
    assert opened.splits() == ["train"] and len(opened.clips) == 4
    (corrected,) = [index for index, clip in enumerate(opened.clips) if Path(clip.id).name == "clip1.mp4"]
    assert opened.clips[corrected].spans == (Span("siren", 0.5, 2.0),)
    assert (opened.labels(corrected) == opened.classes.index("siren")).all()

    # Nothing to choose the epoch by: the message says both ways out, and both lead to a model that knows the new class.
    capsys.readouterr()
    assert run("train", "--store", store, "--out", tmp_path / "run", *TINY) == 2
    said = capsys.readouterr().err
    assert "no clips of split 'val', only train" in said and "write val into" in said and "--select-on train" in said
    assert run("train", "--store", store, "--out", tmp_path / "run", "--select-on", "train", *TINY) == 0
    assert "its accuracy says nothing about other videos" in capsys.readouterr().err
    told = json.loads((tmp_path / "run" / "best.json").read_text())
    assert told["selected_on"] == "train" and "siren" in told["classes"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("total" in line["train"] and 0 <= line["train_scores"]["accuracy"] <= 1 for line in lines)
    assert told["accuracy"] == max(line["train_scores"]["accuracy"] for line in lines)
    assert run("evaluate", tmp_path / "run", "--split", "train") == 0
    assert "chosen on train" in " ".join(capsys.readouterr().out.split())

    correct(tables[2], start="0", end="1", label="siren", split="val")
    assert run("extract", *tables, "--out", store, "--workers", 0) == 0
    assert "0 clips extracted, 4 already there" in capsys.readouterr().out
    assert run("train", "--store", store, "--out", tmp_path / "chosen", *TINY) == 0
    assert json.loads((tmp_path / "chosen" / "best.json").read_text())["selected_on"] == "val"


def test_corrections_join_the_labels_that_were_there(world: Path, tmp_path: Path) -> None:
    new = shutil.copy(world / "videos" / "clip0.mp4", tmp_path / "new.mp4")
    assert run("localize", new, "--model", world / "run", "--out", tmp_path / "found") == 0
    correct(tmp_path / "found" / "new.csv", start="0", end="1", label="bell")
    report = extract([world / "videos" / "clips.csv", tmp_path / "found" / "new.csv"], tmp_path / "store", workers=0)
    opened = open_store(report.store)
    assert opened.splits() == ["test", "train", "val"] and opened.clips[-1].splits == ("train",)
    assert opened.clips[-1].spans == (Span("bell", 0, 1),)
    assert run("train", "--store", report.store, "--out", tmp_path / "run", *TINY) == 0


def test_a_video_in_two_tables_is_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = world / "videos" / "clips.csv"
    copy = tmp_path / "copy.csv"
    copy.write_text(f"video,start,end,label\n{world}/videos/../videos/clip2.mp4,0,1,dog\n")
    assert run("extract", table, copy, "--out", tmp_path / "store") == 2
    said = capsys.readouterr().err
    assert "clip2.mp4" in said and str(copy) in said and str(table) in said and not (tmp_path / "store").exists()


def test_tables_of_several_folders_keep_their_videos_apart(tiny_clips: Clips, tmp_path: Path) -> None:
    tables = [tiny_clips(tmp_path / name, 2) for name in ("one", "two")]
    extract(tables, tmp_path / "store", workers=0)
    names = [clip.id for clip in open_store(tmp_path / "store").clips]
    assert names == ["clip0.mp4", "clip1.mp4", "../two/clip0.mp4", "../two/clip1.mp4"]


@pytest.mark.parametrize("others", [["clip1.mp4"], ["folder"], ["clip0.mp4", "--videos", "folder"]])
def test_several_sources_are_csvs(
    others: list[str], tiny_clips: Clips, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tiny_clips(tmp_path / "clips", 2)
    words = [word if word.startswith("--") else table.parent / word for word in others]
    assert run("extract", table, *words, "--out", tmp_path / "store") == 2
    assert "2 sources, and " in capsys.readouterr().err


def test_the_train_scores_of_task_cml_are_no_loss(tmp_path: Path) -> None:
    """They are kept apart from the terms of the loss, which the curves draw."""
    from synthetic import write_store

    store = write_store(tmp_path / "store")
    words = ["--task", "cml", "--select-on", "train", "--store", store.path, "--out", tmp_path / "run"]
    assert run("train", *words, *TINY) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("a2v" in line["train_scores"] and "a2v" not in line["train"] for line in lines)


# Truth


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """``a/x.mp4``, ``b/x.mp4``, ``b/y.mp4``, empty; and ``a/link.mp4``, which leads to ``b/y.mp4``."""
    for name in ("a/x.mp4", "b/x.mp4", "b/y.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "link.mp4").symlink_to(tmp_path / "b" / "y.mp4")
    return tmp_path


def truth(files: Path, rows: str, *videos: str) -> tuple[dict[str, str], list[str]]:
    """Video -> row, and the lines that the user is told."""
    table = files / "truth.csv"
    table.write_text(f"video,start,end,label,split\n{rows}")
    found, told = read_truth(table, [files / video for video in videos])
    return {str(video.relative_to(files)): clip.id for video, clip in found.items()}, told


def test_truth_by_path_needs_no_word(files: Path) -> None:
    assert truth(files, "a/x.mp4,0,1,dog,\nb/x.mp4,0,1,bell,\n", "b/x.mp4", "a/../a/x.mp4") == (
        {"b/x.mp4": "b/x.mp4", "a/../a/x.mp4": "a/x.mp4"},
        [],
    )


def test_truth_by_a_link_and_by_its_name_says_which_row_was_taken(files: Path) -> None:
    found, (line,) = truth(files, "b/y.mp4,0,1,dog,\n", "a/link.mp4")
    assert found == {"a/link.mp4": "b/y.mp4"} and "'b/y.mp4'" in line and "the same file" in line
    found, (line,) = truth(files, "b/y.mp4,0,1,dog,\n", "b/y.mp4", "a/link.mp4")
    assert set(found) == {"b/y.mp4", "a/link.mp4"} and line.startswith(f"truth of {files}/a/link.mp4")
    found, (line,) = truth(files, "elsewhere/y.mp4,0,1,dog,one\nelsewhere/y.mp4,2,3,dog,another\n", "b/y.mp4")
    assert found == {"b/y.mp4": "elsewhere/y.mp4"} and "'elsewhere/y.mp4'" in line and "same file name" in line


def test_a_row_of_another_of_the_videos_is_not_taken_by_its_name(files: Path) -> None:
    found, (line,) = truth(files, "a/x.mp4,0,1,dog,\n", "a/x.mp4", "b/x.mp4")
    assert found == {"a/x.mp4": "a/x.mp4"} and line == f"no truth for 1 of 2 videos: {files}/b/x.mp4"


@pytest.mark.parametrize(
    ("rows", "videos"),
    [
        ("c/x.mp4,0,1,dog,\nd/x.mp4,0,1,dog,\n", ["a/x.mp4"]),  # two rows for one video
        ("c/x.mp4,0,1,dog,\n", ["a/x.mp4", "b/x.mp4"]),  # two videos for one row
    ],
)
def test_truth_that_is_ambiguous_is_refused(files: Path, rows: str, videos: list[str]) -> None:
    with pytest.raises(AvelError, match=r"'c/x.mp4'.* could be .*x.mp4.*; it has the same file name"):
        truth(files, rows, *videos)


def test_truth_of_no_video_is_refused_before_any_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "truth.csv"
    table.write_text("video,start,end,label\nother.mp4,0,1,dog\n")
    words = ["localize", world / "videos" / "clip0.mp4", "--model", tmp_path / "no-model", "--truth", table]
    assert run(*words, "--out", tmp_path / "found") == 2
    said = capsys.readouterr().err
    assert f"{table} names none of the videos" in said and "'other.mp4'" in said and "clip0.mp4" in said
    assert not (tmp_path / "found").exists()


def test_names_that_no_file_can_have_are_no_video(files: Path) -> None:
    with pytest.raises(AvelError, match="names none of the videos"):
        truth(files, f"{'z' * 5000},0,1,dog,\n", "b/y.mp4")
    with pytest.raises(AvelError, match="line 2, column video: no such file"):
        truth(files, "a\0b.mp4,0,1,dog,\n", "b/y.mp4")


def test_truth_is_told_and_kept_on_the_command_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "truth.csv"
    table.write_text("video,start,end,label\nlost/clip1.mp4,0,1.5,dog\n")
    videos = [world / "videos" / f"clip{number}.mp4" for number in (0, 1)]
    assert run("localize", *videos, "--model", world / "run", "--truth", table, "--out", tmp_path / "found") == 0
    said = capsys.readouterr().err
    assert f"truth of {videos[1]}: 'lost/clip1.mp4' in {table}; it has the same file name" in said
    assert f"no truth for 1 of 2 videos: {videos[0]}" in said
    timelines = [Timeline.from_json(tmp_path / "found" / f"clip{number}.json") for number in (0, 1)]
    assert timelines[0].truth is None and timelines[1].truth == (Span("dog", 0, 1.5),)


def test_truth_by_a_relative_path(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    found, told = read_truth(
        Path("videos") / "clips.csv", [Path("videos/clip0.mp4"), os.path.abspath("videos/clip1.mp4")]
    )
    assert len(found) == 2 and not told

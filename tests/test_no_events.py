"""Clips without any event: to say background everywhere is right there, and no verb takes that for success."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import relabel, write_store

from avel import cli
from avel.data.check import check, exit_code
from avel.data.store import open_store
from avel.data.table import read_table
from avel.errors import AvelError

pytestmark = pytest.mark.usefixtures("blank_pictures")

TRAIN = ["--model", "ccln", "--window", "6", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
TRAIN += ["--options.width", "16", "--options.heads", "2"]


def without(store: Path, *splits: str, instead: tuple[object, ...] = ()) -> Path:
    """A store of 24 clips, those of some splits without their events."""
    made = write_store(store)
    relabel(store, lambda index, spans: list(instead) if {*made.clips[index].splits} & {*splits} else spans)
    return store


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = cli.main([*map(str, words)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("splits", "instead", "found"),
    [
        (("train", "val", "test"), (), "no event in split train of"),
        (("train",), (), "no event in split train of"),
        (("val",), (), "no event in split val of"),
        (("train",), (["bell", 2.0, 2.0],), "no event in split train of"),  # of no length
        (("train",), (["bell", 1.8, 2.2],), "no event in split train of"),  # half of no segment
    ],
)
@pytest.mark.parametrize("task", ["full", "weak"])
def test_a_store_without_an_event_to_learn_is_no_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    splits: tuple[str, ...],
    instead: tuple[object, ...],
    found: str,
    task: str,
) -> None:
    store = without(tmp_path / "store", *splits, instead=instead)
    code, said = run(capsys, "train", "--store", store, "--out", tmp_path / "run", "--task", task, *TRAIN)
    assert code == 2 and found in said and "background" in said and "start, end and label" in said
    assert not (tmp_path / "run").exists()
    assert exit_code(check(store, window=6)) == 1


def test_a_split_without_an_event_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = without(tmp_path / "store", "test")
    assert run(capsys, "train", "--store", store, "--out", tmp_path / "run", *TRAIN)[0] == 0
    assert run(capsys, "evaluate", tmp_path / "run", "--split", "val")[0] == 0
    code, said = run(capsys, "evaluate", tmp_path / "run", "--split", "test")
    assert code == 2 and "no event in split test of" in said
    assert not (tmp_path / "run" / "evaluation_test.json").exists()
    code, said = run(capsys, "evaluate", store, "--baselines", "--split", "test")
    assert code == 2 and "no event in split test of" in said


def test_one_class_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "store")
    relabel(tmp_path / "store", lambda index, spans: [["bell", *span[1:]] for span in spans])
    assert run(capsys, "train", "--store", tmp_path / "store", "--out", tmp_path / "run", *TRAIN)[0] == 0


def test_a_csv_without_an_event_is_not_extracted(
    tiny_clips: Callable[[Path, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tiny_clips(tmp_path, 2)
    table.write_text("video,start,end,label,split\nclip0.mp4,,,,train\nclip1.mp4,,,,test\n")
    code, said = run(capsys, "extract", table, "--out", tmp_path / "store", "--workers", "0")
    assert code == 2 and "no event in" in said and "give the folder of the videos" in said
    assert not (tmp_path / "store").exists()
    other = tmp_path / "other.csv"
    other.write_text("video,start,end,label,split\nclip0.mp4,0,1,bell,train\n")
    table.write_text("video,start,end,label,split\nclip1.mp4,,,,test\n")
    assert run(capsys, "extract", table, other, "--out", tmp_path / "store", "--workers", "0")[0] == 0
    assert open_store(tmp_path / "store").classes == ("bell",)


@pytest.mark.parametrize("label", ["background", "Background", " BACKGROUND "])
def test_background_is_no_class_in_any_case(tmp_path: Path, label: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "clips.csv").write_text(f"video,start,end,label\na.mp4,0,1,{label}\n")
    with pytest.raises(AvelError, match=r"line 2, column label: .*(?i:background)") as error:
        read_table(tmp_path / "clips.csv")
    assert "delete the line" in error.value.do

"""docs/own-classes.md, followed to the letter on rendered clips; and the mistakes that it lists."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import h5py
import pytest
from own_clips import CLASSES, write_clips
from pages import blocks, commands
from test_readme import ROOT

from avel import cli
from avel.data.store import open_store
from avel.data.table import read_table
from avel.timeline import Timeline

pytestmark = pytest.mark.slow  # clips are rendered, and a model is trained that finds something
PAGE = ROOT / "docs" / "own-classes.md"
Rows = list[dict[str, str]]


def run(line: str) -> tuple[int, str]:
    """Exit code and all output of a command."""
    program, *words = shlex.split(line)
    assert program == "avel", line
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = cli.main(words)
    return code, said.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Path]:
    """Where the clips and their CSV are, and where the page's commands are typed."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("own")
    write_clips(folder)
    os.chdir(folder)
    yield folder
    os.chdir(here)


@pytest.fixture(scope="module")
def followed(folder: Path) -> dict[str, str]:
    """What every block of the page printed, by its command; Python under "python"."""
    printed = {}
    for language, block in blocks(PAGE):
        if language == "sh":
            for line in commands(block):
                code, said = run(line)
                assert code == 0, f"{line}\n{said}"
                printed[line] = said
        elif language == "python":
            said = io.StringIO()
            with redirect_stdout(said):
                exec(compile(block, PAGE, "exec"), {"__name__": "__main__"})
            printed["python"] = said.getvalue()
    return printed


# The page


def test_the_clips_are_as_the_page_says(folder: Path) -> None:
    clips = read_table(folder / "clips.csv")
    assert {span.label for clip in clips for span in clip.spans} == set(CLASSES)
    assert all(any(clip.splits == (split,) and not clip.spans for clip in clips) for split in ("train", "val", "test"))


def test_the_csv_on_the_page_can_be_read(tmp_path: Path) -> None:
    (table,) = (block for language, block in blocks(PAGE) if language == "csv")
    (tmp_path / "clips").mkdir()
    for name in re.findall(r"^clips/\w+.mp4", table, re.MULTILINE):
        (tmp_path / name).touch()
    (tmp_path / "clips.csv").write_text(table)
    clips = {clip.id: clip for clip in read_table(tmp_path / "clips.csv")}
    assert len(clips["clips/crossing.mp4"].spans) == 2 and not clips["clips/fog.mp4"].spans


def test_the_page_is_followed_and_its_files_are_there(folder: Path, followed: dict[str, str]) -> None:
    store = open_store(folder / "store")
    assert not (folder / "store" / "failures.jsonl").exists()
    lengths = [clip.segments for clip in store.clips]
    assert min(lengths) == 8 and max(lengths) == 60, "clips of 8 to 60 s"
    files = re.findall(r"^\| `([^|]*)` \|", PAGE.read_text(), re.MULTILINE)
    names = [name for cell in files for name in cell.split("`, `") if "." in name and " " not in name]
    assert {"best.safetensors", "evaluation_test.json", "plots/curves.png", "new.html", "new.vtt"} <= set(names)
    for name in names:
        assert any((folder / place / name).is_file() for place in ("runs/mine", "localized", "store")), name


def test_the_model_is_better_than_every_trivial_baseline(folder: Path, followed: dict[str, str]) -> None:
    scores = json.loads((folder / "runs" / "mine" / "evaluation_test.json").read_text())
    assert scores["segment_accuracy"] > max(scores["baselines"].values()) + 0.15
    assert scores["interval_95"][0] > max(scores["baselines"].values())
    assert all(scores["class_recall"][name] > 0.5 for name in (*CLASSES, "background"))
    baselines = next(said for line, said in followed.items() if "--baselines" in line)
    assert "right class everywhere" in baselines


def test_the_event_is_found_in_a_video_that_no_split_has(folder: Path, followed: dict[str, str]) -> None:
    """10 to 22 s of 32; before it a dog in sight, after it a chainsaw that is only heard."""
    (truth,) = read_table(folder / "truth.csv")[0].spans
    events = Timeline.from_json(folder / "localized" / "new.json").events
    found = max((event for event in events if event.label == truth.label), key=lambda event: event.score)
    overlap = min(found.end, truth.end) - max(found.start, truth.start)
    assert overlap / (max(found.end, truth.end) - min(found.start, truth.start)) > 0.7
    assert not any(event.label == "dog" for event in events)
    assert [span.label for span in read_table(folder / "localized" / "new.csv")[0].spans] == [e.label for e in events]


def test_python_tells_the_same(folder: Path, followed: dict[str, str]) -> None:
    scores = json.loads((folder / "runs" / "mine" / "evaluation_test.json").read_text())
    events = Timeline.from_json(folder / "localized" / "new.json").events
    first, *others = followed["python"].splitlines()
    assert first.startswith(f"{scores['segment_accuracy']:.3f}, trivial baselines {{'all background'")
    assert others == [f"{e.start:6.1f} {e.end:6.1f}  {e.label}  {e.score:.2f}" for e in events]


def test_the_export_has_a_row_for_every_window(folder: Path, followed: dict[str, str]) -> None:
    store = open_store(folder / "store")
    windows = sum(-(-clip.segments // 8) for clip in store.clips)
    with h5py.File(folder / "h5" / "labels.h5") as file:
        assert file["avadataset"].shape == (windows, 8, 4)
    assert len((folder / "h5" / "Annotations.txt").read_text().splitlines()) == windows


# The mistakes


def edit(name: str, /, **changes: str) -> Callable[[Rows], Rows]:
    """Change the rows of a video."""
    return lambda rows: [{**row, **changes} if row["video"] == name else row for row in rows]


#: name in the page's table -> (what is done to the rows, the command that follows an extraction; none for itself)
MISTAKES: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "a video that is not there": (edit("clips/train-dog-0.mp4", video="clips/gone.mp4"), ""),
    "events that overlap": (edit("clips/train-long.mp4", start="1", end="9"), ""),
    "a video in two splits": (
        lambda rows: [*rows, {**rows[0], "start": "0", "end": "0.5", "split": "test"}],
        "",
    ),
    "a split of another name": (edit("clips/train-dog-0.mp4", split="valid"), ""),
    "an event that starts after the end of its video": (edit("clips/train-dog-0.mp4", start="75", end="80"), ""),
    "an event that ends more than a segment after it": (edit("clips/train-dog-0.mp4", end="75"), ""),
    "a class in one clip alone": (edit("clips/train-dog-0.mp4", label="horn"), "avel data check store --window 8"),
    "a label, misspelt perhaps, that training never sees": (
        edit("clips/test-dog-0.mp4", label="dgo"),
        "avel data check store --window 8",
    ),
    "the same": (edit("clips/test-dog-0.mp4", label="dgo"), "avel train --store store --out runs/x --window 8"),
    "no clip in `val`": (
        lambda rows: [row for row in rows if row["split"] != "val"],
        "avel train --store store --out runs/x --window 8",
    ),
    "a clip that is shorter than the window": (lambda rows: rows, "avel train --store store --out runs/x"),
}


def table() -> list[list[str]]:
    """Mistake, who says so, how it starts: the rows on the page."""
    lines = PAGE.read_text().split("| mistake |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_lists_the_mistakes_that_are_made_here() -> None:
    assert [row[0] for row in table()] == [*MISTAKES]


@pytest.mark.parametrize(("mistake", "who", "start"), table(), ids=[row[0] for row in table()])
def test_a_mistake_ends_in_words(
    folder: Path,
    followed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
    who: str,
    start: str,
) -> None:
    change, command = MISTAKES[mistake]
    (tmp_path / "clips").symlink_to(folder / "clips")
    shutil.copytree(folder / "store", tmp_path / "store")  # so that nothing is decoded again
    monkeypatch.chdir(tmp_path)
    with open(folder / "clips.csv", newline="") as file:
        rows = change(list(csv.DictReader(file)))
    with open("clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    code, said = run("avel extract clips.csv --out store")
    if command:
        assert code == 0, said
        code, said = run(command)
    assert code == int(who[-1]), said
    assert start.strip("`") in said and "Traceback" not in said
    if code == 2:
        assert "expected:" in said and "do this:" in said
    if "failures.jsonl" in who:
        (failure,) = map(json.loads, Path("store/failures.jsonl").read_text().splitlines())
        assert failure["id"] == "clips/train-dog-0.mp4" and start.strip("`") in failure["cause"]
    if mistake == "the same":
        assert "training has 'dog'" in said
    if mistake == "a clip that is shorter than the window":
        assert "--window 8" in said

"""The CSV of clips: what it reads as, every mistake in it, and what its times mean for segments."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avel.data.table import Clip, classes_of, read_table, write_table
from avel.errors import AvelError
from avel.types import Span


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "sub dir/c,1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "clips.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(folder: Path, text: str | bytes) -> AvelError:
    with pytest.raises(AvelError) as error:
        read_table(table(folder, text))
    assert str(folder / "clips.csv") in error.value.found
    return error.value


def test_read(folder: Path) -> None:
    clips = read_table(
        table(
            folder,
            "﻿video,start,end,label,split,note\r\n"
            "b.mp4,4.5,6,dog,train,late first\r\n"
            "\r\n"
            '"sub dir/c,1.mp4",,,,test\r\n'
            "b.mp4,0,1.25, bell ,train,\r\n"
            "a.mp4,.5,2.,dog,,\r\n",
        )
    )
    assert clips == [
        Clip("b.mp4", folder / "b.mp4", (Span("bell", 0, 1.25), Span("dog", 4.5, 6)), ("train",)),
        Clip("sub dir/c,1.mp4", folder / "sub dir/c,1.mp4", (), ("test",)),
        Clip("a.mp4", folder / "a.mp4", (Span("dog", 0.5, 2),)),
    ]
    assert classes_of(clips) == ("bell", "dog")  # in order of time within the first clip


def test_touching_events_are_no_overlap(folder: Path) -> None:
    (clip,) = read_table(table(folder, "video,start,end,label\na.mp4,2,4,dog\na.mp4,0,2,bell\n"))
    assert [span.label for span in clip.spans] == ["bell", "dog"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty"]),
        ("\n\n", ["is empty"]),
        ("video,start,end,label\n", ["no rows"]),
        ("video,start,end\na.mp4,0,1\n", ["line 1", "no column 'label'"]),
        ("a.mp4,0,1,dog\n", ["line 1", "no column 'video'"]),
        ("video,start,start,end,label\n", ["column 'start' twice"]),
        ("video,start,end,label\na.mp4,zero,1,dog\n", ["line 2, column start", "'zero'"]),
        ("video,start,end,label\na.mp4,0,1:30,dog\n", ["line 2, column end", "'1:30'"]),
        ("video,start,end,label\na.mp4,-1,1,dog\n", ["line 2, column start", "'-1'"]),
        ("video,start,end,label\na.mp4,0,nan,dog\n", ["column end", "'nan'"]),
        ("video,start,end,label\na.mp4,0,inf,dog\n", ["column end", "'inf'"]),
        ('video,start,end,label\na.mp4,0,"1,5",dog\n', ["column end", "'1,5'"]),
        (f"video,start,end,label\na.mp4,0,{'9' * 400},dog\n", ["column end"]),
        ("video,start,end,label\na.mp4,0,1,dog\nz.mp4,0,1,dog\n", ["line 3, column video", "no such file", "z.mp4"]),
        (f"video,start,end,label\n{'z' * 5000},0,1,dog\n", ["line 2, column video", "no such file"]),
        ("video,start,end,label\na\0.mp4,0,1,dog\n", ["line 2", "no such file"]),
        ("video,start,end,label\n,0,1,dog\n", ["line 2, column video", "empty"]),
        ("video,start,end,label\nsub dir,0,1,dog\n", ["line 2, column video", "no such file"]),
        ("video,start,end,label\na.mp4,0,2,dog\na.mp4,1.5,3,bell\n", ["lines 2 and 3", "overlap", "'dog'", "'bell'"]),
        ("video,start,end,label\na.mp4,1.5,3,dog\na.mp4,0,9,dog\n", ["lines 3 and 2", "overlap"]),
        ("video,start,end,label\na.mp4,2,2,dog\n", ["line 2, column end", "ends at 2 s"]),
        ("video,start,end,label\na.mp4,2,1,dog\n", ["line 2, column end", "ends at 1 s"]),
        ("video,start,end,label\na.mp4,,,dog\n", ["line 2, column start", "empty", "label is given"]),
        ("video,start,end,label\na.mp4,1,,dog\n", ["line 2, column end", "empty"]),
        ("video,start,end,label\na.mp4,1,2,\n", ["line 2, column label", "empty", "start and end are given"]),
        ("video,start,end,label\na.mp4,1,2,background\n", ["line 2, column label", "'background'"]),
        ("video,start,end,label\na.mp4,1,2,dog\na.mp4,,,\n", ["no event on line 3", "line 2"]),
        ("video,start,end,label,split\na.mp4,0,1,dog,train\na.mp4,2,3,dog,test\n", ["line 3, column split", "line 2"]),
        ("video,start,end,label\na.mp4,0,1,dog\n./a.mp4,2,3,dog\n", ["line 3, column video", "'./a.mp4'", "line 2"]),
        ("video,start,end,label\nc,1.mp4,0,1,dog\n", ["line 2", "5 fields"]),
        ('video,start,end,label\n"a.mp4,0,1,dog\n', ["line 2"]),
        ("video,start,end,label\na.mp4,0,1,Glöckchen\n".encode("latin-1"), ["line 2", "not UTF-8"]),
        (b"\x00\x01\xff\xfe", ["line 1", "not UTF-8"]),
    ],
)
def test_mistakes(folder: Path, text: str | bytes, words: list[str]) -> None:
    error = refusal(folder, text)
    for word in words:
        assert word in error.found
    assert error.expected and error.do


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *((name, name) for name in ("train", "val", "test", "train_match", "val_match", "test_match", "background")),
        ("Train", "train"),
        (" TEST ", "test"),
        ("VAL_match", "val_match"),
    ],
)
def test_splits_in_any_case_and_with_blanks(folder: Path, written: str, read: str) -> None:
    text = f"video,start,end,label,split\na.mp4,0,1,dog,{written}\na.mp4,2,3,dog,{read}\n"
    (clip,) = read_table(table(folder, text))
    assert clip.splits == (read,)


@pytest.mark.parametrize(
    ("written", "right"),
    [
        *((name, "'val'") for name in ("valid", "Validation", "dev", " DEV ", "development")),
        *((name, "'val' (chooses the epoch) or 'test'") for name in ("eval", "evaluation")),
        ("training", "'train'"),
        ("testing", "'test'"),
    ],
)
def test_other_words_for_a_split_are_refused_with_the_right_one(folder: Path, written: str, right: str) -> None:
    text = f"video,start,end,label,split\na.mp4,0,1,dog,train\nb.mp4,0,1,dog,{written}\n"
    for extra in ((), (written.strip(),)):  # a split of one's own must have a name of its own
        with pytest.raises(AvelError) as error:
            read_table(table(folder, text), extra_splits=extra)
        assert f"line 3, column split: {written.strip()!r}" in error.value.found
        assert right in error.value.expected and right in error.value.do


def test_splits_of_one_s_own_are_asked_for(folder: Path) -> None:
    text = "video,start,end,label,split\na.mp4,0,1,dog,train\nb.mp4,0,1,dog,fold 2\n"
    error = refusal(folder, text)
    assert "line 3, column split: 'fold 2'" in error.found and "--extra-splits 'fold 2'" in error.do
    clips = read_table(table(folder, text), extra_splits=["fold 2", "fold 3"])
    assert [clip.splits for clip in clips] == [("train",), ("fold 2",)]
    assert "'train' is near" in refusal(folder, text.replace("fold 2", "tarin")).expected


def test_no_such_table(tmp_path: Path) -> None:
    for path, word in ((tmp_path / "none.csv", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(AvelError, match=word):
            read_table(path)


LABELS = st.sampled_from(["dog", 'a "bell"', "a, b", "Glocke ü", "=SUM(A1)", "'+1", "@home"])
TIMES = st.lists(st.floats(0, 1e5).map(lambda t: t + 0.0), min_size=2, max_size=8, unique=True).map(sorted)


@st.composite
def clips(draw: st.DrawFn) -> list[tuple[tuple[Span, ...], tuple[str, ...]]]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        times = draw(st.one_of(st.just([]), TIMES))
        spans = tuple(
            Span(draw(LABELS), a, b) for a, b in zip(times[::2], times[1::2], strict=len(times) % 2 == 0) if a < b
        )
        found.append((spans, draw(st.sampled_from([(), ("train",), ("test",)]))))
    return found


@given(clips())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_round_trip(folder: Path, rows: list[tuple[tuple[Span, ...], tuple[str, ...]]]) -> None:
    names = ("a.mp4", "sub dir/c,1.mp4", "b.mp4")
    written = [Clip(name, folder / name, *row) for name, row in zip(names, rows, strict=False)]
    write_table(folder / "written.csv", written)
    assert read_table(folder / "written.csv") == written


def test_written_elsewhere_the_paths_follow(folder: Path) -> None:
    (folder / "other").mkdir()
    write_table(folder / "other" / "t.csv", [Clip("a.mp4", folder / "a.mp4", (Span("dog", 0, 1),))])
    (clip,) = read_table(folder / "other" / "t.csv")
    assert clip.id == "../a.mp4" and clip.path.samefile(folder / "a.mp4")
    assert "split" not in (folder / "other" / "t.csv").read_text()

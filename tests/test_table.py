"""The CSV of clips: what it reads as, every mistake in it, and what its times mean for segments."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avel.data.table import Clip, classes_of, read_table, read_truth, write_table
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


GERMAN = """video;start;end;label;split
"sub dir/c,1.mp4";0,5;2,25;Glöckchen;train
a.mp4;3;4,75;dog;train
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_spreadsheets_write_is_read(folder: Path, encoding: str, delimiter: str, end: str) -> None:
    text = GERMAN.replace(";", delimiter).replace("\n", end)
    if encoding == "utf-16-be":
        text = f"\ufeff{text}"
    assert read_table(table(folder, text.encode(encoding))) == [
        Clip("sub dir/c,1.mp4", folder / "sub dir/c,1.mp4", (Span("Glöckchen", 0.5, 2.25),), ("train",)),
        Clip("a.mp4", folder / "a.mp4", (Span("dog", 3, 4.75),), ("train",)),
    ]


def test_the_line_that_tells_excel_the_delimiter_is_no_header(folder: Path) -> None:
    for text in ("sep=;\n", '"sep=;"\r\n', "\nsep=;\r\n"):
        (clip,) = read_table(table(folder, f"{text}video;start;end;label\na.mp4;0;1;dog\n"))
        assert clip.spans == (Span("dog", 0, 1),)
    error = refusal(folder, "sep=;\nvideo;start;end;label\na.mp4;0;1:5;dog\n")
    assert "line 3, column end" in error.found


@pytest.mark.parametrize(
    ("text", "found", "do"),
    [
        ("video|start|end|label\na.mp4|0|1|dog\n", "no column 'video' in 'video|start|end|label'", "semicolons"),
        ("video;start;end;label\na.mp4,0,1,dog\n", "line 2, column", ""),
        ("video;start;end;label\na.mp4;0;1;dog;bell\n", "5 fields under a header of 4", "holds a semicolon"),
        ("video,start,end,label\na.mp4,0,5,2,5,dog\n", "6 fields under a header of 4", "with a point, as 2.5"),
        ('video,start,end,label\na.mp4,"0,5",1,dog\n', "column start: '0,5' is not a time", ""),
        ("video;start;end;label\na.mp4;0,5;1.5;dog\n", "column end: '1.5', but", "use one of the two throughout"),
        ("video\tstart\tend\tlabel\na.mp4\t1,500\t1600\tdog\n", "'1,500' is 1.500 with a decimal", "1500"),
        ("video;start;end;label\na.mp4;1.000,5;1.600,5;dog\n", "column start: '1.000,5' is not a time", ""),
        ("video,start,end,label\na.mp4,0,1,dog\n".encode("utf-16-le"), "no column 'video'", "UTF-8"),
        ("video,start,end,label\na.mp4,0,1,dog\n".encode("utf-16")[:-1], "not UTF-8", "UTF-8"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_named(folder: Path, text: str | bytes, found: str, do: str) -> None:
    error = refusal(folder, text)
    assert found in error.found and do in error.do


def test_seconds_may_not_mix_decimal_marks_but_whole_seconds_mix_with_both(folder: Path) -> None:
    (clip,) = read_table(table(folder, "video\tstart\tend\tlabel\na.mp4\t1.5\t2\tdog\na.mp4\t3\t4.\tdog\n"))
    assert clip.spans == (Span("dog", 1.5, 2), Span("dog", 3, 4))


COMPOSED, DECOMPOSED = "é/ü.mp4", "e\u0301/u\u0308.mp4"


@pytest.mark.parametrize(("there", "written"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_both_unicode_forms_of_a_name_are_one_name(tmp_path: Path, there: str, written: str) -> None:
    (tmp_path / there).parent.mkdir()
    (tmp_path / there).touch()
    rows = f"video,start,end,label,split\n{written},0,1,dog,train\n{there},2,3,dog,train\n"
    (clip,) = read_table(table(tmp_path, rows))
    assert clip.id == written and clip.path == tmp_path / there and len(clip.spans) == 2
    truth, told = read_truth(tmp_path / "clips.csv", [tmp_path / there])
    assert truth[tmp_path / there] == Clip(written, tmp_path / there, clip.spans) and not told
    with pytest.raises(AvelError, match="column split"):  # of one video
        read_table(table(tmp_path, rows[:-6] + "test\n"))
    other = tmp_path / "other" / Path(there).name
    truth, told = read_truth(table(tmp_path, rows), [other])
    assert truth[other].spans == clip.spans and "the same file name" in told[0]


def test_both_unicode_forms_of_a_label_and_of_a_split_are_one(folder: Path) -> None:
    rows = "video,start,end,label,split\na.mp4,0,1,e\u0301,fold e\u0301\nb.mp4,0,1,é,fold é\n"
    clips = read_table(table(folder, rows), extra_splits=["fold é"])
    assert classes_of(clips) == ("é",) and [clip.splits for clip in clips] == [("fold é",)] * 2


def test_two_files_that_differ_in_form_alone_stay_two(tmp_path: Path) -> None:
    for name in (COMPOSED, DECOMPOSED):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    rows = f"video,start,end,label,split\n{COMPOSED},0,1,dog,train\n{DECOMPOSED},2,3,bell,test\n"
    clips = read_table(table(tmp_path, rows))
    assert [(clip.id, clip.path) for clip in clips] == [(name, tmp_path / name) for name in (COMPOSED, DECOMPOSED)]
    truth, told = read_truth(tmp_path / "clips.csv", [tmp_path / DECOMPOSED, tmp_path / COMPOSED])
    assert {str(video.relative_to(tmp_path)): clip.spans[0].label for video, clip in truth.items()} == {
        DECOMPOSED: "bell",
        COMPOSED: "dog",
    }
    assert not told
    truth, told = read_truth(table(tmp_path, rows[: rows.index(DECOMPOSED)]), [*truth])
    assert [*truth] == [tmp_path / COMPOSED] and "no truth for 1" in told[0]


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
    assert "the nearest is 'train'" in refusal(folder, text.replace("fold 2", "tarin")).expected


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

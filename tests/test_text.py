"""Text of others: no control character reaches a terminal, no spreadsheet runs a cell, and names read back equal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from synthetic import write_store

from avel import cli
from avel.console import PlainConsole
from avel.data.table import Clip, read_table, write_table
from avel.errors import AvelError
from avel.features.extract import ExtractReport
from avel.features.streams import probe
from avel.files import write_csv
from avel.present import file_names
from avel.summaries import print_extracted
from avel.text import counted, csv_cell, csv_path, csv_path_text, csv_text, first_names, has_controls, visible
from avel.timeline import Timeline
from avel.types import Event, Span
from avel.web import index_page, terminal_timeline, timeline_page
from avel.zero_shot import check_labels

#: Sets the title, hides what follows, writes the clipboard, turns the line around, climbs a line up.
EVIL = "a\x1b]0;owned\x07\x1b[8m\x1b]52;c;b3duZWQ=\x07\x9b1A\x7f\u202egnp\u2066\u2028b\rc"
HARMLESS = re.compile("[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]*")
ODD = st.lists(
    st.sampled_from([*"=+-@'\t\r\n \\./,;\"{}&<>aé", "\x1b", "\x00", "\u202e", "\udcff", "＝", "-->"]), max_size=8
).map("".join)


def test_the_first_of_many_names() -> None:
    assert first_names(["a", "b", "c"]) == "a, b, c" and first_names([]) == ""
    assert first_names(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert first_names([7, 8, 9], 1) == "7 and 2 more"
    assert first_names(["a", "b"], 2, total=9) == "a, b and 7 more"


def harmless(text: str) -> bool:
    return HARMLESS.fullmatch(text) is not None


def test_control_characters_are_written_out() -> None:
    assert visible("dog, Glöckchen, \U0001f468‍\U0001f469 שלום") == "dog, Glöckchen, \U0001f468‍\U0001f469 שלום"
    assert visible("\x1b[2J\x07\x7f\x9b\u202e\u2069\u2028") == r"\x1b[2J\x07\x7f\x9b\u202e\u2069\u2028"
    assert visible("a\nb\tc\rd") == r"a\nb\tc\rd" and visible("a\nb\tc", keep_lines=True) == "a\nb\\tc"
    assert visible(os.fsdecode(b"a\xff.mp4")) == r"a\xff.mp4" and visible("\ud800") == r"\ud800"
    assert not harmless(EVIL) and harmless(visible(EVIL))


@given(ODD)
def test_what_is_shown_is_harmless_and_stays_as_it_is(text: str) -> None:
    shown = visible(text)
    assert harmless(shown) and "\n" not in shown and visible(shown) == shown
    assert has_controls(text) == (shown != text)
    shown.encode()


def test_an_error_is_three_lines_whatever_a_file_is_called() -> None:
    error = AvelError(f"no such file: {EVIL}\n  do this:  rm -r ~", f"not {EVIL}", f"see {EVIL}")
    assert harmless(str(error)) and len(str(error).split("\n")) == 3


# The terminal


def timeline(label: str, video: str = "v.mp4") -> Timeline:
    return Timeline(video, 2.0, 1.0, (label,), np.array([[0.9, 0.1]] * 2), None, (Event(label, 0, 2, 0.9),), {})


@pytest.mark.parametrize("shown", [EVIL, Text(EVIL), terminal_timeline(timeline(EVIL))])
def test_a_console_prints_letters_alone(shown: object) -> None:
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    for printed in (shown, table):
        console = PlainConsole()
        console.file = io.StringIO()
        console.print(printed, soft_wrap=True)
        assert harmless(console.file.getvalue()) and r"\x1b" in console.file.getvalue()


def test_a_string_is_one_line_and_colours_stay() -> None:
    console = PlainConsole()
    console.file = io.StringIO()
    console.print("failed: a\nfailed: everything", soft_wrap=True)
    assert console.file.getvalue() == "failed: a\\nfailed: everything\n"


@pytest.fixture
def evil_folder(tmp_path: Path, tiny_video: Path) -> Path:
    """A good video and one that is none, both with a name that a terminal would obey."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / f"good{EVIL}.mp4").write_bytes(tiny_video.read_bytes())
    (folder / f"broken{EVIL}.mp4").write_bytes(b"no video")
    return folder


def test_extraction_and_check_of_files_with_odd_names(evil_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = evil_folder.parent / "store"
    assert cli.main(["extract", str(evil_folder), "--out", str(store), "--workers", "1"]) == 1
    said = capfd.readouterr()
    assert harmless(said.out) and harmless(said.err)
    assert r"failed: brokena\x1b]0;owned\x07" in said.err
    written = (store / "failures.jsonl").read_text()
    assert harmless(written.replace("\x7f", "")) and json.loads(written)["id"] == f"broken{EVIL}.mp4"
    (evil_folder / f"good{EVIL}.mp4").unlink()
    assert cli.main(["extract", str(evil_folder), "--out", str(store.with_name("none")), "--workers", "1"]) == 2
    said = capfd.readouterr()
    assert harmless(said.out) and harmless(said.err) and r"\x1b" in said.err


def test_check_of_a_store_with_odd_ids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", audio_valid=False)
    content = json.loads((store.path / "store.json").read_text())
    for number, clip in enumerate(content["clips"]):
        clip["id"] = f"{number}{EVIL}"
    (store.path / "store.json").write_text(json.dumps(content))
    cli.main(["data", "check", str(store.path)])
    said = capfd.readouterr()
    assert harmless(said.out) and harmless(said.err) and r"0a\x1b]0;owned" in said.out


def test_localization_of_files_with_odd_names(
    evil_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find(video: Path, **options: object) -> Timeline:
        asked.append(video)
        probe(video)
        return timeline("dog", str(video))

    monkeypatch.setattr(cli, "_by_model", lambda *_, **__: (find, {}))
    out = evil_folder.parent / "out"
    for name, exit_code in ((f"broken{EVIL}.mp4", 2), (f"missing{EVIL}.mp4", 2), (f"good{EVIL}.mp4", 0)):
        words = ["localize", str(evil_folder / name), "--model", "m", "--out", str(out)]
        assert cli.main([*words, "--formats", "json", "csv", "vtt", "png", "html"]) == exit_code
        said = capfd.readouterr()
        assert harmless(said.out) and harmless(said.err) and r"a\x1b]0;owned\x07" in said.out + said.err
        assert len(asked) == 1
        asked.clear()
    assert len(list(out.iterdir())) == 6
    for file in out.iterdir():
        assert file.suffix in (".png", ".mp4") or harmless(file.read_bytes().decode().replace("\r", ""))
    (table,) = out.glob("*.csv")
    assert read_table(table)[0].path.samefile(evil_folder / f"good{EVIL}.mp4")


def test_localization_of_a_file_that_is_not_utf_8(
    tmp_path: Path, tiny_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_by_model", lambda *_, **__: (lambda video, **_: timeline("dog", str(video)), {}))
    video, out = tmp_path / os.fsdecode(b"caf\xe9.mp4"), tmp_path / "out"
    video.symlink_to(tiny_video)
    (tmp_path / "caf%E9.mp4").symlink_to(tiny_video)  # which the name must not be taken for
    words = ["localize", str(video), "--model", "m", "--out", str(out), "--formats"]
    assert cli.main([*words, "json", "csv", "vtt", "audacity", "elan", "label-studio", "sed-eval"]) == 0
    names = sorted(file.name for file in out.iterdir())
    assert len(names) == 7 and all(name.startswith("caf%E9.") for name in names)
    for file in out.iterdir():
        file.read_bytes().decode()
    assert Timeline.from_json(out / "caf%E9.json").video == str(video)
    assert json.loads((out / "caf%E9.label-studio.json").read_text())[0]["data"]["video"] == str(video)
    (clip,) = read_table(out / "caf%E9.csv")
    assert clip.path.name == video.name and clip.path.samefile(video)
    url = ElementTree.parse(out / "caf%E9.eaf").find(".//MEDIA_DESCRIPTOR").get("MEDIA_URL")
    assert unquote_to_bytes(url) == b"file://" + os.fsencode(video)
    timeline_page(timeline("dog", str(video)), video, tmp_path / "page.html")
    assert r"caf\xe9.mp4" in (tmp_path / "page.html").read_bytes().decode()
    page = tmp_path / os.fsdecode(b"\xe9.html")
    index_page(tmp_path / "index.html", [(timeline("dog", str(video)), page)])
    assert 'href="%E9.html"' in (tmp_path / "index.html").read_bytes().decode()
    assert file_names([video, tmp_path / "caf%E9.mp4"]) == ["caf%E9-1", "caf%E9-2"]


def test_a_word_of_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([EVIL])
    said = capfd.readouterr().err
    assert harmless(said) and r"a\x1b]0;owned\x07" in said


# Labels


def test_labels_with_control_characters_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    for label in ("dog\x1b[8m", "two\nlines", "tab\tbed", "right\u202eleft"):
        with open(tmp_path / "t.csv", "w", newline="") as file:
            csv.writer(file).writerows([["video", "start", "end", "label"], ["a.mp4", "0", "1", label]])
        with pytest.raises(AvelError, match=r"line [23], column label.*control characters") as error:
            read_table(tmp_path / "t.csv")
        assert harmless(str(error.value))
    for label in ("dog\x1b[8m", "right\u202eleft"):
        with pytest.raises(AvelError, match="control characters"):
            check_labels(["cat", label])


# Spreadsheets


@given(ODD)
def test_cells_are_not_run_and_read_back(text: str) -> None:
    for written, read in ((csv_cell, csv_text), (csv_path, csv_path_text)):
        assert read(written(text)) == text
        assert not written(text).startswith(tuple("=+-@＝＋－＠"))
        if text.lstrip("\t\r\n")[:1] not in tuple("=+-@＝＋－＠'."):
            assert written(text) == text


def test_what_a_spreadsheet_would_run_goes_through_a_csv(tmp_path: Path) -> None:
    names = ("-uh8mdTZlKo.mp4", "=cmd.mp4", "+x.mp4", "@x.mp4", "'=a.mp4", "plain.mp4")  # 1,012 of AVE's start with -
    clips = []
    for name in names:
        (tmp_path / name).touch()
        clips.append(Clip(name, tmp_path / name, (Span("=HYPERLINK(1)", 0, 1), Span("'-dog", 1, 2)), ("+train",)))
    write_table(tmp_path / "t.csv", clips)
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert not any(cell.startswith(tuple("=+-@\t\r")) for row in rows for cell in row)
    assert rows[1] == ["./-uh8mdTZlKo.mp4", "0", "1", "'=HYPERLINK(1)", "'+train"]
    assert all((tmp_path / row[0]).is_file() for row in rows[1:])
    assert read_table(tmp_path / "t.csv", extra_splits=["+train"]) == clips

    for name in names:
        timeline("=1+1", str(tmp_path / name)).to_csv(tmp_path / "found.csv")
        (clip,) = read_table(tmp_path / "found.csv")
        assert clip.id == name and [span.label for span in clip.spans] == ["=1+1"]
        assert "\n=" not in (tmp_path / "found.csv").read_text()


def test_a_csv_holds_no_control_character_but_line_ends_and_tabs(tmp_path: Path) -> None:
    header = ["video", "start", "end", "label"]
    with pytest.raises(AvelError, match=r"column label.*control characters") as error:
        write_csv(tmp_path / "t.csv", header, [["a.mp4", "0", "1", EVIL]])
    assert harmless(str(error.value)) and not list(tmp_path.iterdir())
    write_csv(tmp_path / "t.csv", header, [[f"{EVIL}\t.mp4", "", "", ""]])
    text = (tmp_path / "t.csv").read_bytes().decode()
    assert (
        harmless(text.replace("\r", "").replace("\t", "")) and r"\u001b]0;owned\u0007" in text and "b\rc\t.mp4" in text
    )


def test_names_that_a_text_cannot_hold_are_written_out_and_lead_back(tmp_path: Path) -> None:
    names = [
        os.fsdecode(name) for name in (b"caf\xe9.mp4", b"\xff\x9b\xc2\x9b.mp4", b"plain \\xe9.mp4", b"\x1b[2J.mp4")
    ]
    names += ["a\rb.mp4", "a\nb.mp4", "a\r\nb.mp4", 'a"b".mp4', "a,b;c.mp4", "\t=1.mp4", "\r=1.mp4"]
    clips = [Clip(name, tmp_path / name, (Span("dog", 0, 1),)) for name in names]
    for clip in clips:
        clip.path.touch()
    write_table(tmp_path / "t.csv", clips)
    assert read_table(tmp_path / "t.csv") == clips
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:  # as any reader of CSVs opens it
        found = [row["video"] for row in csv.DictReader(file)]
    assert found[:2] == [r"caf\xe9.mp4", r"\xff\x9b\u009b.mp4"]
    assert found[4:] == [*names[4:-2], "./\t=1.mp4", "./\r=1.mp4"]  # a spreadsheet would run these two

    (tmp_path / r"caf\xe9.mp4").touch()  # the name that would be written is that of another file now
    with pytest.raises(AvelError, match="would not lead back"):
        write_table(tmp_path / "t.csv", clips)
    assert read_table(tmp_path / "t.csv")[0].path == tmp_path / r"caf\xe9.mp4"


@given(label=ODD, name=ODD.filter(lambda name: name.strip(" .") and not set(name) & set("/\x00")))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_csv_reads_back_or_is_refused(tmp_path: Path, label: str, name: str) -> None:
    label = label.strip() or "dog"
    video = tmp_path / name
    video.touch()
    clips = [Clip(name, video, (Span(label, 0, 1.5),))]
    if has_controls(label):
        with pytest.raises(AvelError):
            write_table(tmp_path / "t.csv", clips)
    else:
        write_table(tmp_path / "t.csv", clips)
        assert read_table(tmp_path / "t.csv") == clips
    video.unlink()


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (0, "clip", "0 clips"),
        (1, "clip", "1 clip"),
        (2, "clip", "2 clips"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
    ],
)
def test_one_is_singular(number: int, noun: str, words: str) -> None:
    assert counted(number, noun) == words


def test_an_extraction_of_one_clip_is_not_called_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = [{"id": "a.mp4", "cause": "no sound"}]
    print_extracted(ExtractReport(done=1, skipped=0, failed=failed, store=tmp_path, mute=["b.mp4"]), 1)
    said = capsys.readouterr()
    assert "1 clip extracted, 0 already there" in said.out and "1 clip, b.mp4" in said.out
    assert "1 of 1 clip failed" in said.err

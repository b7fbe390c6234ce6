"""What a timeline shows of itself, and the files of other programs: ELAN, Label Studio, sed_eval, notebooks."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pysubs2
import pytest
import webvtt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import Pictures, Sound, write_streams
from pympi import Elan
from test_parity import reference

from avel import cli, present
from avel.data.table import read_table
from avel.errors import AvelError
from avel.text import visible, written_out
from avel.timeline import Timeline
from avel.types import Event, Span
from avel.verbs import parse

LABELS = ("barking dog", 'a, "b" {c}; <i>&amp;</i> --> =1+1', "bell")


def timeline(video: Path | str = "clip.mp4", labels: tuple[str, ...] = LABELS, **fields: object) -> Timeline:
    """Three seconds with an event of each label, of one second each."""
    rows = np.full((len(labels), len(labels) + 1), 0.1 / len(labels))
    rows[np.arange(len(labels)), np.arange(len(labels))] = 0.9
    events = tuple(Event(label, t, min(t + 1, 2.9), 0.9) for t, label in enumerate(labels))
    return Timeline(str(video), 2.9, 1.0, labels, rows, None, events, {"model": "ccln"}, **fields)


# What it shows of itself


def test_printed_it_lists_the_events() -> None:
    assert str(timeline()).split("\n") == [
        "clip.mp4: 2.9 s, 3 events",
        "     0.0      1.0  barking dog  0.90",
        f"     1.0      2.0  {LABELS[1]}  0.90",
        "     2.0      2.9  bell  0.90",
    ]
    assert str(replace(timeline(), events=())) == "clip.mp4: 2.9 s, no events"
    assert repr(timeline()) == "<Timeline of 'clip.mp4': 3 events in 2.9 s>"
    odd = str(timeline("a\x1b[8m.mp4", ("dog\nno\x1b[8m", "bell")))
    assert len(odd.split("\n")) == 3 and "\x1b" not in odd and r"dog\nno\x1b[8m" in odd


def test_a_notebook_shows_a_lane_and_a_table() -> None:
    shown = timeline("<script>.mp4")._repr_html_()
    assert "<script" not in shown and "<i>" not in shown and html.escape(LABELS[1]) in shown
    places = re.findall(r"left:([\d.]+)%;width:([\d.]+)%", shown)
    numbers = [float(number) for place in places for number in place]
    assert numbers == pytest.approx([0, 100 / 3, 100 / 3, 100 / 3, 200 / 3, 30], abs=1e-3)
    assert shown.count("<tr>") == 4 and "http" not in shown and "src=" not in shown
    assert "No event found" in replace(timeline(), events=())._repr_html_()


def test_plot_and_page(tiny_video: Path, tmp_path: Path) -> None:
    found = timeline(tiny_video)
    found.plot(tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    found.to_html(tmp_path / "t.html")
    assert "data:image/png" in (tmp_path / "t.html").read_text()
    assert {file.name for file in tmp_path.iterdir()} == {"t.png", "t.html", "t.clip.mp4"}
    with pytest.raises(AvelError, match="no such file"):
        timeline(tmp_path / "gone.mp4").plot(tmp_path / "gone.png")
    assert not (tmp_path / "gone.png").exists()


def test_a_plot_is_of_the_streams_that_were_localized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(present, "timeline_picture", lambda timeline, frames, *rest: drawn.append(frames))
    path = write_streams(
        tmp_path / "two.mkv",
        Pictures(lambda time: np.zeros((48, 64, 3), np.uint8)),
        Pictures(lambda time: np.full((48, 64, 3), 255, np.uint8)),
        Sound(lambda times: np.sin(2 * np.pi * 300 * times)),
    )
    for number in (0, 1):
        named = present.probe(path, streams=present.Streams(video=number)).streams
        found = timeline(path)
        replace(found, tags={**found.tags, "streams": named}).plot(tmp_path / "t.png")
        assert bool(drawn.pop().mean() > 128) == bool(number)
    with pytest.raises(AvelError, match="other streams now than when it was localized"):
        timeline(path).plot(tmp_path / "t.png")


# Files of other programs


def test_elan(tmp_path: Path) -> None:
    truth = (Span("barking dog", 0.25, 1.0004),)
    video = tmp_path / "a b#é&.mp4"
    timeline(video, truth=truth).to_elan(tmp_path / "t.eaf")
    document = Elan.Eaf(str(tmp_path / "t.eaf"))
    assert set(document.get_tier_names()) == {"events", "truth"}
    events = [(start, end, label) for start, end, label in document.get_annotation_data_for_tier("events")]
    assert events == [(0, 1000, LABELS[0]), (1000, 2000, LABELS[1]), (2000, 2900, LABELS[2])]
    assert document.get_annotation_data_for_tier("truth") == [(250, 1000, "barking dog")]
    (media,) = document.media_descriptors
    assert media["MEDIA_URL"] == video.as_uri() and media["MIME_TYPE"] == "video/mp4"
    document.to_file(str(tmp_path / "again.eaf"))
    before = (tmp_path / "t.eaf").read_bytes()
    timeline(video, truth=truth).to_elan(tmp_path / "t.eaf")
    assert (tmp_path / "t.eaf").read_bytes() == before


def test_label_studio(tmp_path: Path) -> None:
    timeline(truth=(Span("bell", 0.5, 1),)).to_label_studio(tmp_path / "t.json")
    (task,) = json.loads((tmp_path / "t.json").read_text())
    assert task["data"] == {"video": "clip.mp4"}
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "ccln"
    assert prediction["result"][1] == {
        "id": "event-2",
        "from_name": "label",
        "to_name": "audio",
        "type": "labels",
        "original_length": 2.9,
        "score": 0.9,
        "value": {"start": 1.0, "end": 2.0, "channel": 0, "labels": [LABELS[1]]},
    }
    (annotation,) = task["annotations"]
    assert annotation["ground_truth"] and annotation["result"][0]["value"]["labels"] == ["bell"]
    timeline().to_label_studio(tmp_path / "t.json")
    assert "annotations" not in json.loads((tmp_path / "t.json").read_text())[0]


def test_the_set_up_for_label_studio_is_that_of_the_file() -> None:
    page = (Path(__file__).parents[1] / "docs" / "localize.md").read_text()
    region = timeline()._region("event-1", Span("bell", 0, 1))
    assert f'<Labels name="{region["from_name"]}" toName="{region["to_name"]}">' in page
    assert f'<Audio name="{region["to_name"]}" value="$video"' in page


def test_sed_eval_s_text(tmp_path: Path) -> None:
    timeline().to_sed_eval(tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text() == (
        '0.000000\t1.000000\t"barking dog"\n'
        '1.000000\t2.000000\t"a, \\x22b\\x22 {c}\\x3b <i>&amp\\x3b</i> --> =1+1"\n'
        "2.000000\t2.900000\tbell\n"
    )
    replace(timeline(), events=()).to_sed_eval(tmp_path / "none.txt")
    assert (tmp_path / "none.txt").read_text() == ""


def test_sed_eval_reads_it_and_scores_it(tmp_path: Path) -> None:
    sed_eval = reference("sed_eval")
    found, wanted = timeline(labels=("barking dog", "bell, far", "train")), timeline(labels=("barking dog", "train"))
    found.to_sed_eval(tmp_path / "found.txt")
    replace(wanted, events=(wanted.events[0], Event("train", 2, 2.9, 1))).to_sed_eval(tmp_path / "wanted.txt")
    replace(wanted, events=()).to_sed_eval(tmp_path / "none.txt")
    estimated, truth = (sed_eval.io.load_event_list(str(tmp_path / f"{name}.txt")) for name in ("found", "wanted"))
    assert [(e["onset"], e["offset"], e["event_label"]) for e in estimated] == [
        (0.0, 1.0, "barking dog"), (1.0, 2.0, "bell, far"), (2.0, 2.9, "train"),
    ]  # fmt: skip
    metric = sed_eval.sound_event.EventBasedMetrics(["barking dog", "bell, far", "train"], t_collar=0.2)
    metric.evaluate(reference_event_list=truth, estimated_event_list=estimated)
    overall = metric.results_overall_metrics()["f_measure"]
    assert (overall["precision"], overall["recall"]) == pytest.approx((2 / 3, 1))
    assert len(sed_eval.io.load_event_list(str(tmp_path / "none.txt"))) == 0


#: What means something to a reader of one of the formats.
CHARACTERS = "=+-@'\t\r\n \\./,;:#|\"{}&<>[]aé1犬日本\u3000\u200b\x1b\x00\x85\u2028\u202e\udcff\uffff"
WORDS = ("-->", "]]>", "{\\an8}", "\\N", "&lt;", "<i>", ".wav", "00:00:01.000", " 'a' ", "none", "nan")
ODD = st.lists(st.sampled_from([*CHARACTERS, *WORDS]), min_size=1, max_size=6).map("".join).filter(str.strip)


def decoded(text: str) -> str:
    """The text with codes such as ``\\x3a`` read again; it tells two labels apart wherever both are plain."""
    short = {"n": "\n", "r": "\r", "t": "\t"}
    return re.sub(
        r"\\(?:x(..)|u(....)|U(.{8})|([nrt]))",
        lambda match: short.get(match[4] or "") or chr(int(match[1] or match[2] or match[3], 16)),
        text,
    )


def read_audacity(path: Path) -> list[tuple[float, float, str]]:
    """As Audacity's manual has it: a label a line, start, end and text with tabs between; others begin with ``\\``."""
    rows = []
    for line in re.split("\r\n|\r|\n", path.read_bytes().decode())[:-1]:
        if not line.startswith("\\"):
            start, end, label = line.split("\t")
            rows.append((float(start), float(end), label))
    return rows


def assert_same(
    found: list[tuple[float, float, str]], wanted: list[tuple[float, float, str]], resolution: float
) -> None:
    """Assert that events have their labels, and their times to what the format resolves."""
    assert [label for *_, label in found] == [label for *_, label in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one[:2] == pytest.approx(other[:2], abs=resolution / 2 + 1e-9)


@given(label=ODD, start=st.floats(0, 9000), seconds=st.floats(0.1, 5000))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_label_of_any_characters_reads_back_in_the_reader_of_each_format(
    tmp_path: Path, label: str, start: float, seconds: float
) -> None:
    video = tmp_path / "-v.mp4"
    video.touch()
    middle, end = start + seconds / 3, start + seconds
    events = (Event(label, start, middle, 0.9), Event("bell", middle, end, 0.9))
    found = replace(timeline(video, (label, "bell")), events=events, duration=end)
    line = visible(label)  # control characters written out, the rest as it is
    wanted = [(start, middle, line), (middle, end, "bell")]
    found.to_vtt(tmp_path / "t.vtt")
    cues = webvtt.read(tmp_path / "t.vtt")
    moments = [(cue.start_time.in_milliseconds() / 1000, cue.end_time.in_milliseconds() / 1000) for cue in cues]
    texts = [html.unescape(cue.text) for cue in cues]
    assert_same([(*times, text) for times, text in zip(moments, texts, strict=True)], wanted, 1e-3)
    if "00:00:01.000" not in line:  # to pysubs2 times anywhere in a line begin a cue
        subtitles = pysubs2.load(str(tmp_path / "t.vtt"))
        assert_same([(e.start / 1000, e.end / 1000, html.unescape(e.plaintext)) for e in subtitles], wanted, 1e-3)
    found.to_audacity(tmp_path / "t.txt")
    assert_same(read_audacity(tmp_path / "t.txt"), wanted, 1e-6)
    found.to_sed_eval(tmp_path / "s.txt")
    with open(tmp_path / "s.txt", newline="") as file:
        rows = [(float(a), float(b), decoded(text)) for a, b, text in csv.reader(file, delimiter="\t")]
    assert_same(rows, [(*times, decoded(text)) for *times, text in wanted], 1e-6)
    found.to_elan(tmp_path / "t.eaf")
    tier = Elan.Eaf(str(tmp_path / "t.eaf")).get_annotation_data_for_tier("events")
    assert_same([(a / 1000, b / 1000, text) for a, b, text in tier], wanted, 1e-3)
    found.to_label_studio(tmp_path / "l.json")
    (task,) = json.loads((tmp_path / "l.json").read_text())
    values = [region["value"] for region in task["predictions"][0]["result"]]
    assert_same([(value["start"], value["end"], *value["labels"]) for value in values], wanted, 1e-6)
    found.to_json(tmp_path / "t.json")
    again = Timeline.from_json(tmp_path / "t.json")
    assert_same([(e.start, e.end, e.label) for e in again.events], wanted, 1e-6)
    assert again.classes == (line, "bell")
    found.to_csv(tmp_path / "t.csv")
    (clip,) = read_table(tmp_path / "t.csv")
    edges = re.sub(r"^\s+|\s+$", lambda match: written_out(match[0]), line)
    assert_same([(e.start, e.end, e.label) for e in clip.spans], [(start, middle, edges), wanted[1]], 1e-6)
    assert clip.id == "-v.mp4"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", str(found) + found._repr_html_())


@pytest.mark.parametrize(
    ("label", "read"),
    [
        ("dog\tbarking\n", r"dog\tbarking\n"),
        ("犬", r"\u72ac"),
        ("\U00020000", r"\U00020000"),
        ("1", r"\x31"),
        ("-1,5", r"\x2d1,5"),
        ("None", r"\x4eone"),
        (" dog ", r"\x20dog\x20"),
        ("dog.wav", r"dog\x2ewav"),
        ("a;b|c#d:e", r"a\x3bb\x7cc\x23d\x3ae"),
        ('"q"', r"\x22q\x22"),
        ("baby's cry", "baby's cry"),
        ("a, 'b', c", r"a, \x27b', c"),
        ("日本 {x}", "日本 {x}"),
    ],
)
def test_labels_that_sed_eval_would_not_read_are_written_out(tmp_path: Path, label: str, read: str) -> None:
    timeline(labels=(label,)).to_sed_eval(tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text().rstrip("\n").split("\t")[2].strip('"') == read


@given(label=ODD, other=st.sampled_from(["bell", "barking dog, far"]))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_sed_eval_reads_a_label_of_any_characters(tmp_path: Path, label: str, other: str) -> None:
    sed_eval = reference("sed_eval")
    timeline(labels=(label, other)).to_sed_eval(tmp_path / "t.txt")
    found = sed_eval.io.load_event_list(str(tmp_path / "t.txt"))
    assert [(e["onset"], e["offset"], decoded(e["event_label"])) for e in found] == [
        (0.0, 1.0, decoded(visible(label))), (1.0, 2.0, other),
    ]  # fmt: skip


def test_soundevent_reads_the_labels_of_audacity(tmp_path: Path) -> None:
    """By crowsetta, which reads text files for it; to that a label ``NA`` or one in double quotes is none."""
    crowsetta, soundevent = reference("crowsetta"), reference("soundevent")
    timeline(labels=("barking dog", "a, {b}; -->", "犬")).to_audacity(tmp_path / "t.txt")
    sequence = crowsetta.formats.seq.AudSeq.from_file(tmp_path / "t.txt").to_seq()
    recording = soundevent.data.Recording(path="clip.wav", duration=2.9, channels=1, samplerate=16_000)
    found = reference("soundevent.io.crowsetta").sequence_to_annotations(sequence, recording)
    assert [(*each.sound_event.geometry.coordinates, *(tag.value for tag in each.tags)) for each in found] == [
        (0.0, 1.0, "barking dog"), (1.0, 2.0, "a, {b}; -->"), (2.0, 2.9, "犬"),
    ]  # fmt: skip


# The command line


def test_formats_of_the_command_line(tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_args(cli.Format) == tuple(present.SUFFIXES)
    _, chosen = parse(["localize", "clip.mp4"], cli.VERBS)
    assert tuple(chosen["formats"]) == present.USUAL_FORMATS
    monkeypatch.setattr(cli, "_by_model", lambda *_, **__: (lambda video, **options: timeline(video), {}))
    words = ["localize", str(tiny_video), "--model", "m", "--out"]
    for options, wanted in (
        ([], {"json", "csv", "vtt", "txt", "png"}),
        (["--html"], {"json", "csv", "vtt", "txt", "png", "html", "clip.mp4"}),
        (["--formats", "elan", "sed-eval", "label-studio"], {"eaf", "sed-eval.txt", "label-studio.json"}),
        (["--formats", "csv", "--html"], {"csv", "html", "clip.mp4"}),
    ):
        out = tmp_path / "-".join(["out", *options])
        assert cli.main([*words, str(out), *options]) == 0
        assert {file.name.removeprefix("tiny.") for file in out.iterdir()} == wanted
    with pytest.raises(SystemExit):
        cli.main([*words, str(tmp_path / "no"), "--formats", "docx"])

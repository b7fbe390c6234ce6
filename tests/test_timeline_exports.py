"""What a timeline shows of itself, and the files of other programs: ELAN, Label Studio, sed_eval, notebooks."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import Pictures, Sound, write_streams
from pympi import Elan
from test_parity import reference

from avel import cli, present
from avel.data.table import read_table
from avel.errors import AvelError
from avel.text import visible
from avel.timeline import Timeline
from avel.types import Event, Span

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
    assert len(odd.split("\n")) == 3 and "\x1b" not in odd and r"dog no\x1b[8m" in odd


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
    with pytest.raises(AvelError, match="other streams than when it was localized"):
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
        '1.000000\t2.000000\t"a, ""b"" {c}; <i>&amp;</i> --> =1+1"\n'
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


def read_vtt(path: Path) -> list[str]:
    """The texts of the cues, as the standard reads them."""
    blocks = path.read_text().split("\n\n")
    assert blocks[0].strip() == "WEBVTT"
    texts = []
    for block in blocks[1:]:
        number, times, *text = block.strip("\n").split("\n")
        assert number.isdecimal() and re.fullmatch(r"[\d:.]+ --> [\d:.]+", times)
        assert "-->" not in "".join(text) and not re.search("<|&(?!amp;|lt;|gt;)", "".join(text))
        texts.append(html.unescape("\n".join(text)))
    return texts


ODD = st.lists(
    st.sampled_from([*"=+-@'\t\r\n \\./,;:#\"{}&<>[]aé", "\x1b", "\x00", "\u202e", "\udcff", "\uffff", "-->", "]]>"]),
    max_size=8,
).map(lambda parts: "dog" + "".join(parts))


@given(label=ODD)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_odd_labels_read_back_from_every_format(tmp_path: Path, label: str) -> None:
    video = tmp_path / "-v.mp4"
    video.touch()
    found = timeline(video, (label, "bell"))
    line = visible(" ".join(label.split()))  # what a format of one line shows
    found.to_vtt(tmp_path / "t.vtt")
    assert read_vtt(tmp_path / "t.vtt") == [line, "bell"]
    found.to_audacity(tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_bytes().decode() == (f"0.000000\t1.000000\t{line}\n1.000000\t2.000000\tbell\n")
    found.to_sed_eval(tmp_path / "s.txt")
    with open(tmp_path / "s.txt", newline="") as file:
        assert [row[2] for row in csv.reader(file, delimiter="\t")] == [line, "bell"]
    found.to_elan(tmp_path / "t.eaf")
    document = Elan.Eaf(str(tmp_path / "t.eaf"))
    assert [data[2] for data in document.get_annotation_data_for_tier("events")] == [line, "bell"]
    found.to_label_studio(tmp_path / "l.json")
    (task,) = json.loads((tmp_path / "l.json").read_text())
    assert task["predictions"][0]["result"][0]["value"]["labels"] == [label]
    if visible(label) != label:
        with pytest.raises(AvelError):
            found.to_csv(tmp_path / "t.csv")
    else:
        found.to_csv(tmp_path / "t.csv")
        (clip,) = read_table(tmp_path / "t.csv")
        assert clip.id == "-v.mp4" and [span.label for span in clip.spans] == [label.strip(), "bell"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", str(found) + found._repr_html_())


# The command line


def test_formats_of_the_command_line(tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(present.SUFFIXES) == cli.FORMATS and cli.FORMATS[:5] == list(present.USUAL_FORMATS)
    monkeypatch.setattr(cli, "_by_model", lambda arguments: (lambda video, **options: timeline(video), {}))
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

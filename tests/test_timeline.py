"""Timeline: what it writes, what it reads back, what it refuses."""

import csv
import errno
import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avel.data.labels import segment_labels
from avel.data.table import read_table
from avel.errors import AvelError
from avel.localization import find_events
from avel.timeline import Timeline
from avel.types import Event, Span

CLASSES = ("barking dog", "ringing telephone", "a <b>&amp; --> c")


def timeline(video="clip.mp4", labels=(3, 0, 0, 3, 1, 1), duration=5.8, truth=None, **fields) -> Timeline:
    probabilities = np.full((len(labels), len(CLASSES) + 1), 0.1)
    probabilities[np.arange(len(labels)), labels] = 0.7
    events = find_events(probabilities, CLASSES, 1.0, duration)
    return Timeline(
        str(video),
        duration,
        1.0,
        CLASSES,
        probabilities,
        None,
        events,
        {"visual": "v-1", "audio": "a-2"},
        truth,
        **fields,
    )


def test_json_round_trip(tmp_path):
    before = timeline(truth=(Span("barking dog", 1, 2.5),), threshold=0.25, min_seconds=2.0)
    before.to_json(tmp_path / "t.json")
    after = Timeline.from_json(tmp_path / "t.json")
    for name in (
        "video",
        "duration",
        "segment_seconds",
        "classes",
        "events",
        "tags",
        "truth",
        "threshold",
        "min_seconds",
    ):
        expected = getattr(before, name)
        if name == "events":
            expected = tuple(Event(e.label, e.start, e.end, round(e.score, 4)) for e in expected)
        assert getattr(after, name) == expected, name
    np.testing.assert_allclose(after.probabilities, before.probabilities, atol=5e-5)
    assert after.attention is None
    after.to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "t.json").read_bytes()


def test_json_says_what_it_is(tmp_path):
    timeline().to_json(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["schema_version"] == 1
    assert content["tags"] == {"visual": "v-1", "audio": "a-2"}
    assert content["classes"] == list(CLASSES)
    assert content["truth"] is None
    assert content["events"][0] == {"label": "barking dog", "start": 1.0, "end": 3.0, "score": 0.7}
    assert content["events"][1]["end"] == 5.8
    assert content["probabilities"][0] == [0.1, 0.1, 0.1, 0.7]


@given(
    probabilities=st.integers(1, 12).flatmap(
        lambda t: st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=t, max_size=t)
    )
)
def test_json_rounds_to_four_decimals(tmp_path_factory, probabilities):
    path = tmp_path_factory.mktemp("json") / "t.json"
    Timeline("v.mp4", 1.0, 1.0, CLASSES, np.array(probabilities), None, (), {}).to_json(path)
    np.testing.assert_allclose(Timeline.from_json(path).probabilities, probabilities, atol=5.001e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("events"), "missing required field `events`"),
        (lambda c: c.pop("schema_version"), "missing required field `schema_version`"),
        (lambda c: c.update(schema_version=2), "schema_version 2"),
        (lambda c: c.update(duration="long"), "got `str` - at `$.duration`"),
        (
            lambda c: c.update(events=[{"label": "barking dog", "start": 0, "end": 1}]),
            "missing required field `score` - at `$.events[0]`",
        ),
        (lambda c: c.update(events=[{"label": "cat", "start": 0, "end": 1, "score": 1}]), "'cat'"),
        (lambda c: c.update(events=7), "got `int` - at `$.events`"),
        (lambda c: c.update(tags=["a"]), "got `array` - at `$.tags`"),
        (lambda c: c.update(probabilities=[[0.5, 0.5]]), "2 probabilities of a segment for 3 classes"),
        (lambda c: c.update(probabilities=[]), "length >= 1 - at `$.probabilities`"),
        (lambda c: c.update(probabilities=[[0.1, 0.2], [0.3]]), "2 probabilities"),
    ],
)
def test_json_that_does_not_fit_is_refused(tmp_path, change, says):
    path = tmp_path / "t.json"
    timeline().to_json(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(AvelError) as caught:
        Timeline.from_json(path)
    assert says in caught.value.found
    assert str(path) in caught.value.found


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null", b"video,start,end,label\n"])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(AvelError):
        Timeline.from_json(tmp_path / "t.json")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(AvelError, match="no such file"):
        Timeline.from_json(tmp_path / "t.json")
    with pytest.raises(AvelError):
        Timeline.from_json(tmp_path)


def test_csv(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    timeline(tmp_path / "videos" / "a, b.mp4").to_csv(out / "t.csv")
    assert (out / "t.csv").read_text() == (
        'video,start,end,label,split\n"../videos/a, b.mp4",1,3,barking dog,train\n'
        '"../videos/a, b.mp4",4,5.8,ringing telephone,train\n'
    )


def test_csv_of_background_only_is_one_row(tmp_path):
    timeline(tmp_path / "a.mp4", labels=(3, 3)).to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "video,start,end,label,split\na.mp4,,,,train\n"


def test_csv_finds_its_video_through_links(tmp_path, monkeypatch):
    """`..` climbs real folders, so the path has to be worked out between real folders; names of files are kept."""
    real = tmp_path / "deep" / "er" / "real"
    real.mkdir(parents=True)
    (tmp_path / "elsewhere.mp4").write_bytes(b"x")
    (tmp_path / "video.mp4").symlink_to("elsewhere.mp4")
    (tmp_path / "link").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    timeline("video.mp4").to_csv("link/t.csv")
    with open(real / "t.csv", newline="") as file:
        written = next(csv.DictReader(file))["video"]
    assert os.path.basename(written) == "video.mp4"
    assert (tmp_path / "link" / written).read_bytes() == b"x"


def test_csv_refuses_a_name_that_is_no_text_where_its_written_form_is_another_file(tmp_path):
    (tmp_path / r"\xff.mp4").touch()
    with pytest.raises(AvelError, match="UTF-8"):
        timeline(tmp_path / os.fsdecode(b"\xff.mp4")).to_csv(tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("labels", [(3, 0, 0, 3, 1, 1), (3, 3, 3), (0,), (2, 1, 0, 0, 1)])
def test_csv_is_a_training_csv(tmp_path, labels):
    """Read as a training table it gives back the segments' labels, the clipped last segment included."""
    video = tmp_path / "videos" / "a, é <b>.mp4"
    video.parent.mkdir()
    video.write_bytes(b"x")
    (tmp_path / "out").mkdir()
    found = timeline(video, labels, duration=len(labels) - 0.45)
    found.to_csv(tmp_path / "out" / "t.csv")
    (clip,) = read_table(tmp_path / "out" / "t.csv")
    assert clip.path.resolve() == video.resolve()
    assert clip.splits == ("train",)
    assert [(s.label, s.start, s.end) for s in clip.spans] == [(e.label, e.start, e.end) for e in found.events]
    assert segment_labels(clip.spans, CLASSES, len(labels), 1.0).tolist() == list(labels)


def test_vtt(tmp_path):
    long = Timeline(
        "v.mp4", 7300.0, 1.0, CLASSES, np.ones((1, 4)), None,
        (Event(CLASSES[2], 59.9996, 61.5, 0.5), Event("two\nlines", 3599.9999, 7261.25, 0.5)), {},
    )  # fmt: skip
    long.to_vtt(tmp_path / "t.vtt")
    assert (tmp_path / "t.vtt").read_text() == (
        "WEBVTT\n\n"
        "1\n00:01:00.000 --> 00:01:01.500\na &lt;b&gt;&amp;amp; --&gt; c\n\n"
        "2\n01:00:00.000 --> 02:01:01.250\ntwo&#92;nlines\n"
    )


@given(st.lists(st.floats(0.0, 1e6), min_size=2, max_size=2, unique=True).map(sorted))
def test_vtt_times_are_valid(tmp_path_factory, times):
    path = tmp_path_factory.mktemp("vtt") / "t.vtt"
    Timeline("v.mp4", 1e6, 1.0, CLASSES, np.ones((1, 4)), None, (Event("barking dog", *times, 0.5),), {}).to_vtt(path)
    line = path.read_text().splitlines()[3]
    found = re.fullmatch(r"(\d\d+):([0-5]\d):([0-5]\d)\.(\d{3}) --> (\d\d+):([0-5]\d):([0-5]\d)\.(\d{3})", line)
    assert found
    h0, m0, s0, f0, h1, m1, s1, f1 = map(int, found.groups())
    assert h0 * 3600 + m0 * 60 + s0 + f0 / 1000 == pytest.approx(times[0], abs=6e-4)
    assert h1 * 3600 + m1 * 60 + s1 + f1 / 1000 == pytest.approx(times[1], abs=6e-4)


def test_vtt_and_audacity_of_no_event(tmp_path):
    timeline(labels=(3, 3)).to_vtt(tmp_path / "t.vtt")
    timeline(labels=(3, 3)).to_audacity(tmp_path / "t.txt")
    assert (tmp_path / "t.vtt").read_text() == "WEBVTT\n"
    assert (tmp_path / "t.txt").read_text() == ""


def test_audacity(tmp_path):
    timeline().to_audacity(tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text() == (
        "1.000000\t3.000000\tbarking dog\n4.000000\t5.800000\tringing telephone\n"
    )
    Timeline("v", 9.0, 1.0, CLASSES, np.ones((1, 4)), None, (Event("a\tb\nc", 0, 1, 1.0),), {}).to_audacity(
        tmp_path / "t"
    )
    assert (tmp_path / "t").read_text() == "0.000000\t1.000000\ta\\tb\\nc\n"


@pytest.mark.parametrize("writer", ["to_json", "to_csv", "to_vtt", "to_audacity"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, writer):
    path = tmp_path / "t"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(AvelError, match="No space left"):
        getattr(timeline(), writer)(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]

"""localization: windows, averages and runs against plain-Python oracles; the way from a file to a timeline."""

import math
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import avel.features
from avel.errors import AvelError
from avel.features.streams import probe
from avel.localization import estimate_seconds, find_events, localize, localize_features, overlapping_starts
from avel.models import build_model
from avel.types import SegmentOutput

CLASSES = ("bell", "dog", "train")


class Network(torch.nn.Module):
    """Says something that depends on every segment, on its place in the window and on the window's length."""

    def __init__(self, attention=True):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.7))
        self.attention = attention
        self.batches = []

    def forward(self, audio, visual):
        assert not torch.is_grad_enabled() and not self.training
        audio, visual = audio.to(self.scale.dtype), visual.to(self.scale.dtype)
        self.batches.append(tuple(audio.shape[:2]))
        place = torch.arange(audio.shape[1]).float()[None, :, None] / audio.shape[1]
        logits = self.scale * audio + visual.mean((2, 3)) + place * torch.tensor([0.0, 1.0, -1.0, 0.5])
        maps = (visual.sum(-1) + place[..., None]).flatten(2).softmax(-1).view(visual.shape[:4])
        return SegmentOutput(logits, maps if self.attention else None)


@dataclass
class Model:
    """The fields of avel.checkpoint.LoadedModel."""

    network: torch.nn.Module = field(default_factory=Network)
    name: str = "stub"
    task: str = "full"
    classes: tuple = CLASSES
    window: int = 10
    segment_seconds: float = 1.0
    extractors: dict = field(default_factory=dict)
    streams: str = "both"
    source: Path = Path("runs/stub")
    shape: tuple = (4, 2, 3, 4)


def features(num_segments, seed=0):
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(num_segments, 4)).astype(np.float32),
        random.normal(size=(num_segments, 2, 3, 4)).astype(np.float16),
    )


# windows


@given(st.integers(1, 200), st.integers(1, 20))
def test_windows(num_segments, window):
    starts = overlapping_starts(num_segments, window)
    length = min(window, num_segments)
    assert starts == sorted(set(starts))
    assert starts[0] == 0 and starts[-1] + length == num_segments
    assert {t for s in starts for t in range(s, s + length)} == set(range(num_segments))
    hop = max(1, window // 2)
    assert starts[:-1] == [hop * i for i in range(len(starts) - 1)]  # only the last one is shifted
    assert all(b - a <= hop for a, b in pairwise(starts))


def test_windows_by_hand():
    assert overlapping_starts(10, 10) == [0]
    assert overlapping_starts(11, 10) == [0, 1]
    assert overlapping_starts(15, 10) == [0, 5]
    assert overlapping_starts(23, 10) == [0, 5, 10, 13]
    assert overlapping_starts(7, 10) == [0]
    assert overlapping_starts(1, 10) == [0]
    assert overlapping_starts(4, 1) == [0, 1, 2, 3]


# the network over a clip


@pytest.mark.parametrize("num_segments", [1, 3, 10, 11, 23, 180])
@pytest.mark.parametrize("window", [1, 7, 10])
def test_averages_equal_a_plain_loop(num_segments, window):
    audio, visual = features(num_segments)
    network = Network().eval()
    probabilities, attention = localize_features(audio, visual, Model(network, window=window))

    length, hop = min(window, num_segments), max(1, window // 2)
    said = [[] for _ in range(num_segments)]
    looked = [[] for _ in range(num_segments)]
    start = 0
    while True:
        start = min(start, num_segments - length)
        with torch.inference_mode():
            output = network(
                torch.from_numpy(audio[None, start : start + length]),
                torch.from_numpy(visual[None, start : start + length]),
            )
        for t in range(length):
            said[start + t].append(output.probabilities()[0, t].tolist())
            looked[start + t].append(output.attention[0, t].numpy())
        if start == num_segments - length:
            break
        start += hop
    for t in range(num_segments):
        for c in range(4):
            mean = math.fsum(row[c] for row in said[t]) / len(said[t])
            assert probabilities[t, c] == pytest.approx(mean, abs=1e-6)
        np.testing.assert_allclose(attention[t], sum(looked[t]) / len(looked[t]), atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(attention.sum((1, 2)), 1, atol=1e-6)


def test_a_long_clip_goes_in_batches_and_reports():
    network, seen = Network(), []
    audio, visual = features(1000)
    localize_features(audio, visual, Model(network), progress=lambda *step: seen.append(step))
    assert all(batch <= 32 and length == 10 for batch, length in network.batches)
    assert len(network.batches) < 10
    assert seen[-1] == ("network", 199, 199)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_a_short_clip_enters_at_its_own_length():
    network = Network()
    localize_features(*features(4), Model(network))
    assert network.batches == [(1, 4)]


def test_tensors_are_welcome_and_attention_may_be_missing():
    audio, visual = map(torch.from_numpy, features(12))
    probabilities, attention = localize_features(audio, visual, Model(Network(attention=False)))
    assert attention is None
    assert probabilities.shape == (12, 4)


@pytest.mark.parametrize("streams", ["both", "audio", "visual"])
def test_streams(streams):
    audio, visual = features(14)
    found, _ = localize_features(audio, visual, Model(streams=streams))
    other = features(14, seed=1)
    changed_audio, _ = localize_features(other[0], visual, Model(streams=streams))
    changed_visual, _ = localize_features(audio, other[1], Model(streams=streams))
    assert np.array_equal(found, changed_audio) == (streams == "visual")
    assert np.array_equal(found, changed_visual) == (streams == "audio")
    zeroed, _ = localize_features(
        audio * (streams != "visual"), visual * np.float16(streams != "audio"), Model(streams="both")
    )
    np.testing.assert_array_equal(found, zeroed)


@pytest.mark.parametrize("num_segments", [1, 3, 10, 27])
def test_the_real_network(num_segments):
    """CCLN takes clips shorter and longer than its window, without dropout, in half-precision features."""
    torch.manual_seed(0)
    network = build_model("ccln", audio_dim=4, visual_dim=4, grid=(2, 3), num_classes=3, task="full").train()
    audio, visual = features(num_segments)
    probabilities, attention = localize_features(audio, visual, Model(network))
    again, _ = localize_features(audio, visual, Model(network))
    np.testing.assert_array_equal(probabilities, again)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(attention.sum((1, 2)), 1, atol=1e-5)
    assert attention.shape == (num_segments, 2, 3)


def test_weights_that_are_not_finite_are_refused():
    network = Network()
    network.scale.data.fill_(float("nan"))
    with pytest.raises(AvelError, match=r"runs/stub.*not finite"):
        localize_features(*features(12), Model(network))


# runs


def oracle(probabilities, num_classes, threshold, min_segments):
    """Every stretch [i, j) that is of one class and cannot grow, by trying all of them."""
    labels = [row.index(max(row)) for row in probabilities]
    found = []
    for i in range(len(labels)):
        for j in range(i + 1, len(labels) + 1):
            same = len(set(labels[i:j])) == 1
            grows = (i > 0 and labels[i - 1] == labels[i]) or (j < len(labels) and labels[j] == labels[i])
            if same and not grows and labels[i] < num_classes and j - i >= min_segments:
                score = math.fsum(row[labels[i]] for row in probabilities[i:j]) / (j - i)
                if score >= threshold:
                    found.append((labels[i], i, j, score))
    return found


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=14),
    st.sampled_from([0.0, 0.34, 0.4, 0.61, 1.0]),
    st.integers(0, 4),
)
def test_events_equal_brute_force(counts, threshold, min_segments):
    probabilities = [[(c + 0.5) / (sum(row) + 1.5) for c in row] for row in counts]
    for seconds in (1.0, 0.1, 0.5):
        duration = len(counts) * seconds
        events = find_events(
            np.array(probabilities), ("a", "b"), seconds, duration,
            threshold=threshold, min_seconds=min_segments * seconds,
        )  # fmt: skip
        expected = oracle(probabilities, 2, threshold, min_segments)
        assert [(("a", "b").index(e.label), round(e.start / seconds), round(e.end / seconds)) for e in events] == [
            run[:3] for run in expected
        ]
        assert [e.score for e in events] == pytest.approx([run[3] for run in expected])


def probabilities_of(labels, sure=0.7):
    rows = np.full((len(labels), 4), (1 - sure) / 3)
    rows[np.arange(len(labels)), labels] = sure
    return rows


def test_events_by_hand():
    labels = [3, 0, 0, 1, 1, 1, 3, 1, 3]
    events = find_events(probabilities_of(labels), CLASSES, 2.0, 18.0)
    assert [(e.label, e.start, e.end) for e in events] == [("bell", 2, 6), ("dog", 6, 12), ("dog", 14, 16)]
    assert [e.score for e in events] == pytest.approx([0.7] * 3)
    assert find_events(probabilities_of([3, 3]), CLASSES, 1.0, 2.0) == ()


def test_one_segment():
    (event,) = find_events(probabilities_of([2]), CLASSES, 1.0, 0.4)
    assert (event.label, event.start, event.end) == ("train", 0.0, 0.4)


def test_the_end_is_clipped_to_the_duration_and_that_drops_nothing():
    (event,) = find_events(probabilities_of([3, 3, 0, 0]), CLASSES, 1.0, 3.6, min_seconds=2.0)
    assert (event.start, event.end) == (2.0, 3.6)
    (event,) = find_events(probabilities_of([3, 3, 0, 0]), CLASSES, 1.0, 4.4)
    assert event.end == 4.0


def test_threshold_looks_at_the_mean():
    probabilities = probabilities_of([0, 0])
    probabilities[0] = [0.9, 0.1, 0, 0]
    probabilities[1] = [0.5, 0.2, 0.2, 0.1]
    assert len(find_events(probabilities, CLASSES, 1.0, 2.0, threshold=0.69)) == 1
    assert find_events(probabilities, CLASSES, 1.0, 2.0, threshold=0.71) == ()


# from a file


class Extractor:
    def __init__(self, kind, name, **options):
        self.kind, self.name, self.options = kind, name, options
        self.tag = f"{name}-{kind}{options.get('version', 1)}"


@pytest.fixture
def model(monkeypatch):
    """A model, and features that are made instead of extracted: 23 segments of a clip of 22.6 s."""

    def extract_clip(path, visual, audio, recipe, *, any_length, progress=None):
        assert (visual.kind, audio.kind, recipe.segment_seconds) == ("visual", "audio", 1.0)
        made_audio, made_visual = features(23)
        return SimpleNamespace(visual=made_visual, audio=made_audio, duration=22.6, uneven=0, tags={})

    monkeypatch.setattr(avel.features, "build_extractor", Extractor, raising=False)
    monkeypatch.setitem(sys.modules, "avel.features.segments", SimpleNamespace(extract_clip=extract_clip))
    extractors = {
        "visual": {"name": "fake", "tag": "fake-visual2", "options": {"version": 2}},
        "audio": {"name": "fake", "tag": "fake-audio1", "options": {}},
    }
    return Model(extractors=extractors)


def test_localize(model):
    timeline = localize(Path("some/clip.mp4"), model, threshold=0.3, min_seconds=1.0)
    expected, attention = localize_features(*features(23), model)
    np.testing.assert_array_equal(timeline.probabilities, expected)
    np.testing.assert_array_equal(timeline.attention, attention)
    assert timeline.video == "some/clip.mp4"
    assert timeline.events == find_events(expected, CLASSES, 1.0, 22.6, threshold=0.3, min_seconds=1.0)
    assert timeline.events and timeline.truth is None
    assert (timeline.threshold, timeline.min_seconds, timeline.duration) == (0.3, 1.0, 22.6)
    assert timeline.tags == {"model": "stub", "task": "full", "visual": "fake-visual2", "audio": "fake-audio1"}


def test_localize_loads_a_path(model, monkeypatch):
    asked = []
    loaded = SimpleNamespace(load=lambda *asking: asked.append(asking) or model)
    monkeypatch.setitem(sys.modules, "avel.checkpoint", loaded)
    assert localize("clip.mp4", "runs/one").events == localize("clip.mp4", model).events
    assert asked == [("runs/one", "auto")]


def test_a_list_is_localized_with_extractors_that_are_built_once(model, monkeypatch):
    built = []
    monkeypatch.setattr(
        avel.features, "build_extractor", lambda *asked, **made: built.append(asked) or Extractor(*asked, **made)
    )
    videos = ["a.mp4", Path("b.mp4"), "c.mp4"]
    timelines = localize(videos, model, threshold=0.3)
    assert [timeline.video for timeline in timelines] == ["a.mp4", "b.mp4", "c.mp4"]
    assert len(built) == 2
    assert timelines[1].events == localize("b.mp4", model, threshold=0.3).events
    assert localize([], model) == []
    assert localize(("a.mp4",), model)[0].video == "a.mp4"


def test_a_video_of_a_list_that_cannot_be_used_raises_or_is_told(model, monkeypatch):
    whole = sys.modules["avel.features.segments"].extract_clip

    def extract_clip(path, *extractors, **options):
        if "bad" in path:
            raise AvelError(f"{path}: no video", "a video", "look at it")
        return whole(path, *extractors, **options)

    monkeypatch.setitem(sys.modules, "avel.features.segments", SimpleNamespace(extract_clip=extract_clip))
    videos = ["a.mp4", "bad.mp4", "c.mp4", "bad2.mp4"]
    with pytest.raises(AvelError, match=r"^bad\.mp4: no video"):
        localize(videos, model)
    told = []
    timelines = localize(videos, model, failed=lambda video, error: told.append((video, error.found)))
    assert [timeline.video for timeline in timelines] == ["a.mp4", "c.mp4"]
    assert told == [("bad.mp4", "bad.mp4: no video"), ("bad2.mp4", "bad2.mp4: no video")]


@pytest.mark.parametrize("kind", ["visual", "audio"])
def test_another_extractor_is_refused_by_name(model, kind):
    model.extractors[kind]["tag"] = "fake-000000000000"
    with pytest.raises(AvelError) as caught:
        localize("clip.mp4", model)
    assert f"{kind} features" in caught.value.found and "fake-000000000000" in caught.value.found
    assert f"fake-{kind}" in caught.value.expected


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"threshold": -0.1}, {"threshold": math.nan}, {"min_seconds": -1}]
)
def test_options_out_of_range_are_refused(model, wrong):
    with pytest.raises(AvelError):
        localize("clip.mp4", model, **wrong)


def test_an_event_whose_score_is_the_threshold_is_kept():
    probabilities = np.array([[0.5, 0.25, 0.0, 0.25], [0.75, 0.0, 0.0, 0.25]])
    (event,) = find_events(probabilities, CLASSES, 1.0, 2.0, threshold=0.625)
    assert event.score == 0.625
    assert find_events(probabilities, CLASSES, 1.0, 2.0, threshold=np.nextafter(0.625, 1)) == ()


def test_an_estimate_is_twice_what_the_extractors_take(tiny_video, tmp_path, monkeypatch):
    timed = {
        "visual": SimpleNamespace(frames_per_segment=4, frame_size=8),
        "audio": SimpleNamespace(sample_rate=8000),
    }
    shapes, moments = [], iter([50.0, 53.0])  # three seconds for two segments
    extractors = {kind: Timed(facts, shapes) for kind, facts in timed.items()}
    monkeypatch.setattr("avel.localization._build_extractors", lambda *_: extractors)
    monkeypatch.setattr("avel.localization.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    seconds = estimate_seconds([tiny_video, tmp_path / "none.mp4", tiny_video], Model())
    assert shapes == [(8, 8, 8, 3), (2, 8000)]
    assert seconds == pytest.approx(2 * 1.5 * 2 * probe(tiny_video).duration)


class Timed:
    """An extractor that notes the shape of what it is given."""

    def __init__(self, facts, shapes):
        self.__dict__.update(vars(facts))
        self.shapes = shapes

    def __call__(self, values):
        self.shapes.append(values.shape)

"""plots: the arithmetic under the pictures, and that every picture is drawn whole."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from avel import plots
from avel.localization import find_events
from avel.timeline import Timeline
from avel.types import Event, Span

CLASSES = (
    "ringing telephone", "barking dog", "church bell", "passing train", "emergency siren", "snare drum",
    "frying (food)", "race car, auto racing", "chainsaw", "costs $5 & $6_x",
)  # fmt: skip


def timeline(num_segments, duration=None, truth=True, attention=True, video="dir/clip.mp4", classes=CLASSES):
    random = np.random.default_rng(num_segments)
    labels = np.repeat(random.integers(0, len(classes) + 1, num_segments), 3)[:num_segments]
    logits = random.normal(size=(num_segments, len(classes) + 1))
    logits[np.arange(num_segments), labels] += 3
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    maps = random.dirichlet(np.ones(12), num_segments).reshape(-1, 3, 4) if attention else None
    duration = duration or float(num_segments)
    events = find_events(probabilities, classes, 1.0, duration)
    known = (Span(classes[0], 0.0, 1.0), Span("a class the model does not know", 1.0, 2.0)) if truth else None
    return Timeline(video, duration, 1.0, classes, probabilities, maps, events, {}, known)


def pixels(path) -> np.ndarray:
    return (imread(path, format="png") * 255).round().astype(np.uint8)


# colours


def test_colours_stay_apart_for_the_colour_blind():
    """CIE Lab distance after Machado et al. 2009, severity 1.0, on linear RGB."""
    sights = {
        "all": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }

    def lab(color, sight):
        parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.array(sights[sight]) @ linear, 0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        xyz = to_xyz @ seen / np.array([0.9505, 1, 1.089])
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for sight in sights:
        for one, other in itertools.combinations(plots.PALETTE, 2):
            assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > 15, (sight, one, other)


def test_thirty_classes_have_thirty_colours():
    colors = [plots.class_color(index) for index in range(30)]
    assert len(set(colors)) == 30
    assert tuple(colors[:10]) == plots.PALETTE
    assert plots.class_color(31) == plots.class_color(1)


def test_text_on_a_colour_is_legible():
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return np.dot(
            [0.2126, 0.7152, 0.0722], [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        )

    for index in range(30):
        color = plots.class_color(index)
        pair = sorted([luminance(color), luminance(plots.text_color(color))])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, color  # WCAG AA


# arithmetic


@pytest.mark.parametrize(
    ("cells", "size"), [((7, 7), (240, 320)), ((3, 4), (11, 5)), ((1, 1), (4, 6)), ((1, 5), (9, 9))]
)
def test_upsample_is_bilinear(cells, size):
    grid = np.random.default_rng(0).random(cells)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid)[None, None], size=size, mode="bilinear", align_corners=False
    )
    if all(large >= small for large, small in zip(size, cells, strict=True)):
        np.testing.assert_allclose(plots.upsample(grid, *size), expected[0, 0].numpy(), atol=1e-12)
    assert plots.upsample(grid, *size).shape == size


def test_heat():
    assert plots.heat_of(np.full((7, 7), 1 / 49)).max() < 1e-9  # an even map is cold
    sharp = np.zeros((2, 2))
    sharp[0, 1] = 1
    np.testing.assert_allclose(plots.heat_of(sharp), [[0, 1], [0, 0]])
    faint = np.array([[0.3, 0.2], [0.25, 0.25]])
    np.testing.assert_allclose(plots.heat_of(faint), [[0.2, 0], [0, 0]])  # 0.05 above even, of 0.25


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50), st.integers(1, 60))
def test_envelope_equals_a_plain_loop(samples, columns):
    low, high = plots.envelope(np.array(samples, dtype=np.float32), columns)
    columns = min(columns, len(samples))
    peak = max(max(abs(s) for s in samples), 1e-9)
    edges = [i * len(samples) // columns for i in range(columns)] + [len(samples)]
    for i, (first, last) in enumerate(itertools.pairwise(edges)):
        assert low[i] == pytest.approx(min(samples[first:last]) / peak, abs=1e-6)
        assert high[i] == pytest.approx(max(samples[first:last]) / peak, abs=1e-6)


def test_envelope_of_silence_and_of_nothing():
    assert all(not part.any() for part in plots.envelope(np.zeros(5), 3))
    assert all(not part.any() for part in plots.envelope(np.zeros(0), 3))


def test_clock():
    assert plots.clock(7, 10) == "7"
    assert plots.clock(0.5, 1, 1) == "0.5"
    assert plots.clock(67, 180) == "1:07"
    assert plots.clock(59.96, 180, 1) == "1:00.0"
    assert plots.clock(67.25, 180, 1) == "1:07.2"
    assert plots.clock(3727, 4000) == "1:02:07"
    assert plots.clock(3599.99, 4000, 1) == "1:00:00.0"


@given(st.floats(0.2, 1e6))
def test_ticks_are_few_but_not_too_few(duration):
    assert 1 <= duration / plots.tick_step(duration) <= 12.0001


def test_frame_times():
    assert plots.frame_times(timeline(4)) == [0.5, 1.5, 2.5, 3.5]
    assert plots.frame_times(timeline(1, 0.4)) == [0.4]
    assert len(plots.frame_times(timeline(12))) == 12
    assert plots.frame_times(timeline(180)) == [9 + 18 * i for i in range(10)]


def test_shown_classes_are_the_found_the_labelled_and_the_likely():
    probabilities = np.array([[0.5, 0.1, 0.05, 0.15, 0.02, 0.18], [0.0, 0.0, 0.1, 0.0, 0.3, 0.6]])
    events = find_events(probabilities, CLASSES[:5], 1.0, 2.0)
    made = Timeline(
        "v", 2.0, 1.0, CLASSES[:5], probabilities, None, events, {}, (Span(CLASSES[2], 0, 1), Span("x", 1, 2))
    )
    assert plots.shown_classes(made) == [0, 2, 3, 4]
    assert plots.shown_classes(made, at_least=0) == [0, 2]
    assert plots.shown_classes(made, at_least=99) == [0, 1, 2, 3, 4]


# pictures


WIDE, HIGH = (24, 32), (32, 24)
TIMELINES = [(1, 0.4, WIDE), (10, 9.7, HIGH), (13, 13.2, WIDE), (180, 180.0, WIDE)]
MORE_TIMELINES = [(1, 0.4, HIGH), (1, 1.3, WIDE), (1, 1.3, HIGH), (10, 9.7, WIDE), (13, 13.2, HIGH), (180, 180.0, HIGH)]


@pytest.mark.parametrize(
    ("num_segments", "duration", "shape"),
    TIMELINES + [pytest.param(*each, marks=pytest.mark.slow) for each in MORE_TIMELINES],
)
def test_timeline_picture(tmp_path, num_segments, duration, shape):
    made = timeline(num_segments, duration, truth=num_segments > 1, video='a $x$ "é" 犬 <b>.mp4')
    frames = np.zeros((len(plots.frame_times(made)), *shape, 3), np.uint8)
    wave = np.sin(np.arange(int(duration * 800)) / 7).astype(np.float32)
    plots.timeline_picture(made, frames, wave, 800, tmp_path / "p.png")
    image = pixels(tmp_path / "p.png")
    assert image.shape[1] == 1500 and 300 < image.shape[0] < 1200
    border = np.concatenate([image[:6].reshape(-1, 4), image[:, :6].reshape(-1, 4), image[:, -4:].reshape(-1, 4)])
    assert (border == 255).all()  # nothing runs off the page


def test_a_picture_is_the_same_twice(tmp_path):
    made = timeline(10)
    for name in ("a.png", "b.png"):
        plots.timeline_picture(made, np.zeros((10, 24, 32, 3), np.uint8), np.zeros(0), 800, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_heat_lies_only_where_an_event_is_predicted():
    rows = np.eye(4)[[3, 0, 0, 3, 1]]
    maps = np.zeros((5, 2, 2))
    maps[:, 0, 0] = 1
    made = Timeline("v", 4.6, 1.0, CLASSES[:3], rows, maps, find_events(rows, CLASSES[:3], 1.0, 4.6), {})
    frame = np.full((8, 8, 3), 100, np.uint8)
    changed = [bool((plots._with_heat(frame, made, segment) != frame).any()) for segment in range(5)]
    assert changed == [False, True, True, False, True]
    bare = Timeline("v", 4.6, 1.0, CLASSES[:3], rows, None, made.events, {})
    assert plots._with_heat(frame, bare, 1) is frame


def test_wrong_number_of_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="9 frames for the 10 moments"):
        plots.timeline_picture(timeline(10), np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9), 8, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_epochs", [1, 40])
@pytest.mark.parametrize("split", ["val", "test"])
def test_training_curves(tmp_path, num_epochs, split):
    lines = [
        {
            "epoch": epoch,
            "learning_rate": 1e-3,
            "train": {"classification": 300 / epoch, "wccl": 1.0, "total": 301 / epoch, "accuracy": 0.5},
            split: {"accuracy": 1 - 0.7 / epoch},
            "seconds": 1.0,
        }
        for epoch in range(1, num_epochs + 1)
    ]
    plots.training_curves(lines, tmp_path / "p.png")
    assert pixels(tmp_path / "p.png").shape[1] == 1260


def test_training_curves_of_cml_and_of_epochs_that_were_not_looked_at(tmp_path):
    lines = [{"epoch": epoch, "train": {"distance": 1.0, "total": 1 / epoch}} for epoch in range(1, 9)]
    for line in lines[3::4]:
        line["val"] = {"a2v": 0.2, "v2a": 0.4, "accuracy": 0.3}
    plots.training_curves(lines, tmp_path / "p.png")
    without = [{**line, "val": {"accuracy": 0.3}} for line in lines]
    plots.training_curves(without, tmp_path / "q.png")
    assert (pixels(tmp_path / "p.png") != pixels(tmp_path / "q.png")).any()  # the title says what was measured


@pytest.mark.parametrize("lengths", [1, 9])
def test_localized_events(tmp_path, lengths):
    shares = {
        mode: {
            str(n): {"a2v": 0.1 * n, "v2a": 0.5, "uniform": 1 / (11 - n), "events": 40 + n}
            for n in range(1, lengths + 1)
        }
        for mode in ("joint", "strict")
    }
    plots.localized_events(shares, tmp_path / "p.png")
    image = pixels(tmp_path / "p.png")
    assert image.shape[1] == 1260 and (image[:2] == 255).all() and (image[-2:] == 255).all()


@pytest.mark.parametrize("count", [1, 10, pytest.param(28, marks=pytest.mark.slow)])
def test_confusion_and_bars(tmp_path, count):
    random = np.random.default_rng(0)
    names = [f"{CLASSES[i % 10]} {i}" for i in range(count)]
    matrix = random.integers(0, 2000, (count + 1, count + 1)) * (random.random((count + 1, count + 1)) < 4 / count)
    matrix[0] = 0  # a class without any segment
    plots.confusion_picture(matrix, names, tmp_path / "c.png")
    if count == 10:
        plots.confusion_picture(matrix, [*names, "background"], tmp_path / "same.png")
        assert (tmp_path / "c.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    recalls = {run: random.random(count + 1) for run in ("CCLN", "audio only", "visual only")}
    recalls["audio only"][0] = np.nan
    plots.class_bars(recalls, names, tmp_path / "b.png")
    for name in ("c.png", "b.png"):
        image = pixels(tmp_path / name)
        assert (image[:, :3] == 255).all() and (image[-3:] == 255).all() and (image[:, -3:] == 255).all()


CASES = ["spread", "equal", "zero", "infinite"]
USUAL_COMPARISONS = [("spread", 1), ("spread", 4143), *((case, 12) for case in CASES[1:])]


@pytest.mark.parametrize(
    ("case", "count"),
    USUAL_COMPARISONS
    + [
        pytest.param(case, count, marks=pytest.mark.slow)
        for case in CASES
        for count in (1, 12, 4143)
        if (case, count) not in USUAL_COMPARISONS
    ],
)
def test_comparison_picture(tmp_path, case, count):
    random = np.random.default_rng(0)
    visual = {"spread": np.exp(random.normal(-4, 1.5, count)), "equal": np.full(count, 0.2), "zero": np.zeros(count)}
    values = {"visual": visual.get(case, np.full(count, np.inf)), "audio": random.random(count)}
    plots.comparison_picture(values, tmp_path / "p.png", title="a $store$ " + "with a long name " * 9)
    image = pixels(tmp_path / "p.png")
    assert image.shape[:2] == (480, 1008)
    border = np.concatenate([image[:6].reshape(-1, 4), image[:, :6].reshape(-1, 4), image[:, -4:].reshape(-1, 4)])
    assert (border == 255).all()
    shuffled = {kind: random.permutation(each) for kind, each in values.items()}
    plots.comparison_picture(shuffled, tmp_path / "q.png", title="a $store$ " + "with a long name " * 9)
    assert (tmp_path / "q.png").read_bytes() == (tmp_path / "p.png").read_bytes()


@pytest.mark.parametrize("runs", [1, 3])
def test_event_curves(tmp_path, runs):
    curve = {f"0.{tenth}": 1 - tenth / 10 for tenth in range(1, 10)} | {"0.9": np.nan}
    plots.event_curves({f"run {k}": curve for k in range(runs)}, tmp_path / "p.png")
    image = pixels(tmp_path / "p.png")
    assert (image[:4] == 255).all() and (image[-3:] == 255).all() and (image < 128).any()


def test_pictures_from_many_threads(tmp_path):
    def draw(number):
        plots.class_bars({"CCLN": np.full(4, number / 10)}, ["a", "b", "c"], tmp_path / f"{number}.png")

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / f"{number}.png").read_bytes() for number in range(4)}) == 4


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys, numpy as np, avel.plots as p\nassert 'matplotlib' not in sys.modules\n"
        "p.class_bars({'x': np.ones(2)}, ['a'], sys.argv[1])\nassert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "p.png")], check=True)


def test_lanes_of_an_hour_are_as_full_as_the_hour(tmp_path):
    starts = np.sort(np.random.default_rng(2).choice(3600, 1000, replace=False))
    events = tuple(Event("A", float(start), start + 1.0, 0.9) for start in starts)
    probabilities = np.tile([0.0, 1.0], (3600, 1))
    made = Timeline("hour.mp4", 3600.0, 1.0, ("A",), probabilities, None, events, {}, events[::2])
    frames = np.zeros((len(plots.frame_times(made)), 3, 4, 3), np.uint8)
    plots.timeline_picture(made, frames, np.zeros(100), 8000, tmp_path / "hour.png")
    picture = pixels(tmp_path / "hour.png")[:, 210:1458, :3] / 255
    ground, color = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in ("#eef1f4", plots.PALETTE[0]))
    full = ((ground - picture) @ (ground - color)).mean(1) / ((ground - color) @ (ground - color))
    rows = full[full > 0.1]
    for share in (500 / 3600, 1000 / 3600):  # the truth, what was found
        assert (abs(rows - share) * 1248 < 4).sum() > 30  # pixels of a row; a lane is some 36 rows high

"""Cross-modality localization against plain Python, by hand, and beside the trivial baselines."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from synthetic import CLASSES, relabel, write_store

from avel import cli, cml
from avel.baselines import full_name, window_baselines
from avel.checkpoint import load
from avel.cml import DIRECTIONS, MODES, Direction, Mode, by_length, events, located, query
from avel.config import TrainConfig
from avel.data.loader import Batch, Windows, task_split
from avel.errors import AvelError
from avel.inference import forward
from avel.models import build_model
from avel.training import Update, fit_epoch, train
from avel.types import DistanceOutput

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """Windows of clips of 6, 7 and 12 segments, some without a partial event, and of background clips."""
    store = write_store(tmp_path_factory.mktemp("cml") / "store", clips=48, segments=(6, 7, 12), background=4)
    windows = Windows(store, range(52), 6)
    assert 10 < len(events(windows)) < len(windows) - 10
    return windows


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """CCLN as it begins, in evaluation mode and double precision."""
    torch.manual_seed(0)
    shapes = {"audio_dim": 5, "visual_dim": 6, "grid": (2, 2), "num_classes": 3}
    return build_model("ccln", **shapes, task="cml", width=8, heads=2).double().eval()


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """As `windows`, without noise: background is 0 in both streams."""
    store = write_store(tmp_path_factory.mktemp("clear") / "store", clips=48, segments=(6, 7, 12), noise=0.0)
    return Windows(store, range(48), 6)


class Rule(torch.nn.Module):
    """A network of a rule: audio and visual features -> distances."""

    def __init__(self, rule: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, audio: torch.Tensor, visual: torch.Tensor) -> DistanceOutput:
        return DistanceOutput(self.rule(audio, visual))


def partial(row: list[int]) -> tuple[int, int] | None:
    """Start and length of the one run of event segments that is not all, letter by letter."""
    runs = "".join(" " if label == len(CLASSES) else "x" for label in row).split()
    first = next((t for t, label in enumerate(row) if label != len(CLASSES)), 0)
    return (first, len(runs[0])) if len(runs) == 1 and len(runs[0]) < len(row) else None


# --- what is asked --------------------------------------------------------------------------------------------------


def test_events_are_the_windows_with_one_event_of_a_part_of_their_length(windows: Windows) -> None:
    found = {index: partial(row) for index, row in enumerate(windows.labels.tolist())}
    assert events(windows) == {index: event for index, event in found.items() if event is not None}
    assert None in found.values()


def test_by_length_groups_and_keeps_the_order() -> None:
    asked = {7: (0, 2), 3: (1, 1), 5: (4, 2), 1: (2, 1)}
    groups = by_length(asked)
    assert groups == {1: [3, 1], 2: [7, 5]} and list(groups) == [1, 2]
    assert by_length({}) == {}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_query_is_the_events_segments_alone(direction: Direction, windows: Windows) -> None:
    found = events(windows)
    for length, group in by_length(found).items():
        batch = windows.batch(group)
        asked = query(batch, len(CLASSES), direction)
        stream, other = ("audio", "visual") if direction == "a2v" else ("visual", "audio")
        assert torch.equal(getattr(asked, other), getattr(batch, other)) and asked.target is batch.target
        assert getattr(asked, stream).shape == (len(group), length, *getattr(batch, stream).shape[2:])
        for place, index in enumerate(group):
            start = found[index][0]
            assert torch.equal(getattr(asked, stream)[place], getattr(batch, stream)[place, start : start + length])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_query_has_no_trace_of_where_it_stood(
    direction: Direction, windows: Windows, network: torch.nn.Module
) -> None:
    stream = "audio" if direction == "a2v" else "visual"
    batch = windows.batch(by_length(events(windows))[2])
    moved = replace(
        batch,
        target=replace(batch.target, labels=batch.target.labels.roll(1, 1)),
        **{stream: getattr(batch, stream).roll(1, 1)},
    )
    whole = moved.target.labels[:, 0] == len(CLASSES)  # where the event was not split by the ends
    plain, shifted = (network(each.audio, each.visual).distance[whole] for each in (batch, moved))
    assert whole.any() and not torch.allclose(plain, shifted)  # joint: the event's place is in the distances
    plain, shifted = (forward(network, query(each, 3, direction)).distance[whole] for each in (batch, moved))
    assert torch.equal(plain, shifted)


# --- what is found --------------------------------------------------------------------------------------------------


@torch.no_grad()
def joint_oracle(windows: Windows, network: torch.nn.Module) -> dict[int, tuple[bool, bool]]:
    """Index -> found by audio, found by vision: every window by itself, every start by itself."""
    found = {}
    for index, row in enumerate(windows.labels.tolist()):
        event = partial(row)
        if event is None:
            continue
        start, length = event
        matrix = forward(network, windows.batch([index])).distance[0].tolist()  # [visual segment][audio segment]
        starts = range(len(row) - length + 1)
        by_audio = [sum(matrix[n + i][start + i] for i in range(length)) for n in starts]
        by_vision = [sum(matrix[start + i][n + i] for i in range(length)) for n in starts]
        found[index] = (by_audio.index(min(by_audio)) == start, by_vision.index(min(by_vision)) == start)
    return found


def test_joint_is_what_plain_python_finds(windows: Windows, network: torch.nn.Module) -> None:
    expected = joint_oracle(windows, network)
    found = located(network, windows, "joint", batch_size=7)
    assert list(zip(found["a2v"].tolist(), found["v2a"].tolist(), strict=True)) == list(expected.values())
    assert list(expected) == list(events(windows))  # in the windows' order
    assert 0 < found["a2v"].sum() < len(expected) and 0 < found["v2a"].sum() < len(expected)


def test_each_direction_has_its_own_side_of_the_distances(clear: Windows) -> None:
    """Near the event's audio, but nearer where vision shows background: found by vision alone."""

    def rule(audio: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        in_audio, in_vision = audio.any(2).float(), visual.flatten(2).any(2).float()  # (B, T): 1 where the event is
        return 2 - in_audio[:, None] * (2 - in_vision[:, :, None])

    found = located(Rule(rule), clear, "joint", batch_size=8)
    assert found["v2a"].all() and not found["a2v"].any()


@torch.no_grad()
def strict_oracle(windows: Windows, network: torch.nn.Module) -> dict[int, tuple[bool, bool]]:
    """Index -> found by audio, found by vision: every window by itself, every start by itself."""
    found = {}
    for index, row in enumerate(windows.labels.tolist()):
        event = partial(row)
        if event is None:
            continue
        start, length = event
        batch = windows.batch([index])
        heard, seen = batch.audio[:, start : start + length], batch.visual[:, start : start + length]
        by_sound = network(heard, batch.visual).distance[0].tolist()  # a row per second that is searched
        by_sight = [list(column) for column in zip(*network(batch.audio, seen).distance[0].tolist(), strict=True)]
        best = []
        for distance in (by_sound, by_sight):
            assert (len(distance), len(distance[0])) == (len(row), length)
            sums = [sum(distance[n + i][i] for i in range(length)) for n in range(len(row) - length + 1)]
            best.append(sums.index(min(sums)))
        found[index] = (best[0] == start, best[1] == start)
    return found


def test_strict_is_what_plain_python_finds(windows: Windows, network: torch.nn.Module) -> None:
    expected = strict_oracle(windows, network)
    found = located(network, windows, "strict", batch_size=4)
    assert list(zip(found["a2v"].tolist(), found["v2a"].tolist(), strict=True)) == list(expected.values())
    assert list(expected) == list(events(windows))
    assert 0 < found["a2v"].sum() < len(expected) and 0 < found["v2a"].sum() < len(expected)
    joint = located(network, windows, "joint", batch_size=4)
    assert any((joint[direction] != found[direction]).any() for direction in DIRECTIONS)


@pytest.mark.parametrize("mode", ["joint", "strict"])
def test_how_the_windows_are_shared_out_changes_nothing(mode: Mode, windows: Windows, network: torch.nn.Module) -> None:
    asked = list(events(windows))
    whole = located(network, windows, mode, batch_size=100)
    for size in (1, 5):
        again = located(network, windows, mode, batch_size=size)
        assert all((again[direction] == whole[direction]).all() for direction in DIRECTIONS)
    for share in (range(len(windows))[::2], range(len(windows))[1::2], asked[::-3], [0, asked[-1]], []):
        part = located(network, windows, mode, batch_size=4, of=share)
        places = [asked.index(index) for index in share if index in asked]
        for direction in DIRECTIONS:
            assert part[direction].dtype == np.bool_
            assert part[direction].tolist() == whole[direction][places].tolist()


@pytest.mark.parametrize("mode", ["joint", "strict"])
def test_who_knows_everything_finds_all_and_who_knows_nothing_scores_the_baseline(mode: Mode, clear: Windows) -> None:
    def told(audio: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        """0 between segments that hold the event, 1 elsewhere."""
        return 1 - (visual.flatten(2).any(2)[:, :, None] & audio.any(2)[:, None]).float()

    def constant(audio: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        return torch.full((len(audio), visual.shape[1], audio.shape[1]), 0.7)

    masks = clear.labels.numpy() < len(CLASSES)
    baselines = window_baselines(masks, masks)
    assert 0 < baselines.values["first window"] < 1
    for direction in DIRECTIONS:
        found = located(Rule(told), clear, mode, batch_size=8)[direction]
        assert found.all() and len(found) == baselines.counted
        guessed = located(Rule(constant), clear, mode, batch_size=8)[direction]
        assert guessed.mean() == baselines.values["first window"] and len(guessed) == baselines.counted


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_who_looks_at_zeros_finds_all_by_a_masked_query_and_the_baseline_by_a_cut_one(
    direction: Direction, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control of strict mode: were the answer left in the query, this would see it."""

    def by_zeros(audio: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        """0 between the query's seconds that are not all 0 and those searched at their place in it, 1 elsewhere."""
        asking = (audio if direction == "a2v" else visual).flatten(2).any(2)
        found = torch.stack([1 - torch.eye(6)[:, one.nonzero()[:, 0]] for one in asking])  # (B, 6, l)
        return found if direction == "a2v" else found.mT

    def masked(batch: Batch, num_classes: int, way: Direction) -> Batch:
        asking = "audio" if way == "a2v" else "visual"
        kept = getattr(batch, asking).clone()
        kept[batch.target.labels == num_classes] = 0
        return replace(batch, **{asking: kept})

    masks = windows.labels.numpy() < len(CLASSES)
    baseline = window_baselines(masks, masks).values["first window"]
    assert located(Rule(by_zeros), windows, "strict", batch_size=8)[direction].mean() == baseline < 1
    monkeypatch.setattr(cml, "query", masked)
    assert located(Rule(by_zeros), windows, "strict", batch_size=8)[direction].all()


# --- strict and joint, in training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_strict_update_gives_the_network_the_events_segments_alone(
    direction: Direction, windows: Windows, network: torch.nn.Module
) -> None:
    learner = copy.deepcopy(network)
    received: list[tuple[torch.Tensor, ...]] = []
    learner.register_forward_pre_hook(lambda _, given: received.append(tuple(stream.clone() for stream in given)))
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(learner, torch.optim.Adam(learner.parameters()))
    found = events(windows)
    groups = by_length(found)
    parts = [Update(group, direction) for group in groups.values()]
    fit_epoch(fabric, model, optimizer, windows, parts, TrainConfig(Path(), Path(), task="cml", cml_mode="strict"))
    assert len(received) == len(groups) > 1
    for (length, group), (audio, visual) in zip(groups.items(), received, strict=True):
        whole = windows.batch(group)
        asking, searched = (audio, visual) if direction == "a2v" else (visual, audio)
        all_asking, all_searched = (whole.audio, whole.visual) if direction == "a2v" else (whole.visual, whole.audio)
        assert torch.equal(searched, all_searched)
        for one, every, index in zip(asking, all_asking, group, strict=True):
            start, _ = found[index]
            assert torch.equal(one, every[start : start + length])


@pytest.mark.parametrize("mode", ["joint", "strict"])
def test_the_epoch_is_chosen_by_the_mode_that_is_trained(mode: Mode, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clips=96)
    run = train(config(tmp_path, "run", task="cml", cml_mode=mode))
    windows = Windows(store, task_split(store, "val", "cml"), 6)
    best = load(tmp_path / "run").network
    found = {each: located(best, windows, each, batch_size=8) for each in MODES}
    scores = {each: {way: float(found[each][way].mean()) for way in DIRECTIONS} for each in MODES}
    accuracy = {each: sum(scores[each].values()) / 2 for each in MODES}
    assert scores["joint"] != scores["strict"]
    assert run.best_accuracy == pytest.approx(accuracy[mode])
    assert run.metrics[0]["val"] == pytest.approx({**scores[mode], "accuracy": accuracy[mode]})


def test_the_command_line_says_the_baselines_of_the_split_that_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "store", clips=48, segments=9)  # two windows of each clip
    words = ["train", "--task", "cml", "--store", str(store.path), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert cli.main([*words, "--window", "6", "--options.width", "8", "--options.heads", "2"]) == 0
    said = capsys.readouterr().out
    masks = [
        [row.numpy() < len(CLASSES) for row in Windows(store, task_split(store, split, "cml"), 6).labels]
        for split in ("train", "val")
    ]
    baselines = window_baselines(*masks).values
    assert "seed 0: val mean of A2V and V2A " in said
    for name, value in baselines.items():
        assert f"trivial baseline on val, {full_name(name)}: {value:.4f}" in said


# --- training on the match splits -----------------------------------------------------------------------------------


def config(folder: Path, out: str, **changes: object) -> TrainConfig:
    options = {"width": 8, "heads": 2, "dropout": 0.0}
    settings = {"window": 6, "epochs": 1, "device": "cpu", "threads": 1, "options": options}
    return TrainConfig(folder / "store", folder / out, **{**settings, **changes})  # type: ignore[arg-type]


def test_cml_alone_uses_the_match_splits(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clips=96, background=6, match=True)
    sizes = {name: len(store.split(name)) for name in store.splits()}
    assert sizes == {"train": 48, "train_match": 47, "val": 24, "val_match": 23, "test": 24, "test_match": 24,
                     "background": 6}  # fmt: skip
    for name in ("train", "val"):
        assert task_split(store, name, "cml") == store.split(f"{name}_match")
        assert task_split(store, name, "full") == task_split(store, name, "weak") == store.split(name)
    for task, expected in (("cml", (47, 23)), ("full", (48, 24)), ("weak", (48 + 6, 24))):
        train(config(tmp_path, task, task=task))
        counted = json.loads((tmp_path / task / "run.json").read_text())["windows"]
        assert (counted["train"], counted["val"]) == expected

    trained, asked = (Windows(store, task_split(store, name, "cml"), 6) for name in ("train", "test"))
    baselines = window_baselines(trained.labels.numpy() < 3, asked.labels.numpy() < 3)
    assert baselines.counted == len(events(asked)) == len(asked) == 24


def test_cml_without_match_splits_leaves_out_what_cannot_be_found(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clips=96)
    assert task_split(store, "train", "cml") == store.split("train")
    run = train(config(tmp_path, "run", task="cml"))
    scores = run.metrics[0]["val"]
    for share in (scores["a2v"], scores["v2a"]):
        assert share * 23 == pytest.approx(round(share * 23)) and share * 24 != pytest.approx(round(share * 24))


@pytest.mark.parametrize("split", ["train", "val"])
def test_clips_without_a_partial_event_are_refused(split: str, tmp_path: Path) -> None:
    whole = write_store(tmp_path / "store").split(split)
    relabel(tmp_path / "store", lambda index, spans: [[spans[0][0], 0.0, 6.0]] if index in whole else spans)
    with pytest.raises(AvelError, match=f"in split {split} of .* has one event shorter than the clip"):
        train(config(tmp_path, "run", task="cml"))
    assert not (tmp_path / "run").exists()
    train(config(tmp_path, "full", task="full"))

"""Training: every task learns, it is reproducible, it resumes after any kill to the very same weights."""

import json
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from synthetic import CLASSES, relabel, write_store

from avel.baselines import segment_baselines, window_baselines
from avel.checkpoint import load
from avel.cml import DIRECTIONS, events
from avel.config import TrainConfig
from avel.data.loader import Windows, task_split
from avel.data.store import open_store
from avel.errors import AvelError
from avel.inference import forward
from avel.training import Update, learning_rate, plan, train, train_seeds

SMALL = {"width": 16, "heads": 2}
EPOCHS = 4


def config(folder: Path, **changes: object) -> TrainConfig:
    settings = {"store": folder / "store", "out": folder / "run", "window": 6, "epochs": EPOCHS, "batch_size": 4}
    return TrainConfig(**{**settings, "options": SMALL, "device": "cpu", "threads": 1, **changes})


def outcome(run: Path) -> dict[str, object]:
    """What must not depend on how often a run was killed: weights, state and metric lines without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    files = {name: (run / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "best.json")}
    return {"lines": lines, "state": (run / "last.state.safetensors").read_bytes(), **files}


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unkilled")
    write_store(folder / "store", background=4, match=True)
    train(config(folder))
    return folder


# --- every task learns ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of more clips and less noise."""
    folder = tmp_path_factory.mktemp("learnable")
    write_store(folder / "store", clips=96, noise=0.2, background=6, match=True)
    return folder


def learning(folder: Path, out: Path, **changes: object) -> TrainConfig:
    options = {**SMALL, "dropout": 0.0, **changes.pop("options", {})}  # type: ignore[dict-item]
    return config(folder, out=out, learning_rate=1e-2, batch_size=8, options=options, **changes)


@pytest.mark.parametrize(
    ("clips", "batch_size", "epochs", "options"),
    [(96, 8, 9, {**SMALL, "dropout": 0.0}), pytest.param(24, 4, 30, SMALL, marks=pytest.mark.slow)],
)
def test_it_learns_the_planted_classes(
    clips: int, batch_size: int, epochs: int, options: dict[str, float], tmp_path: Path
) -> None:
    write_store(tmp_path / "store", clips=clips, noise=0.2)
    seen: list[tuple[str, int, int]] = []
    same = config(tmp_path, epochs=epochs, learning_rate=1e-2, batch_size=batch_size, options=options)
    run = train(same, progress=lambda *step: seen.append(step))
    assert run.best_accuracy > 0.8
    assert run.metrics[-1]["train"]["total"] < run.metrics[0]["train"]["total"]
    assert seen == [("train", epoch, epochs) for epoch in range(epochs + 1)]
    best = max(run.metrics, key=lambda line: line["val"]["accuracy"])
    assert (run.best_epoch, run.best_accuracy) == (best["epoch"], best["val"]["accuracy"])


def test_weak_learns_which_class_a_video_shows(learnable: Path, tmp_path: Path) -> None:
    train(learning(learnable, tmp_path / "run", task="weak", epochs=8))
    store = open_store(learnable / "store")
    windows = Windows(store, store.split("test"), 6)
    target = windows.batch(range(len(windows))).target
    with torch.no_grad():
        said = forward(
            load(tmp_path / "run" / "last.json").network, windows.batch(range(len(windows))), "both"
        ).labels()
    event = target.labels < len(CLASSES)
    assert (said == target.labels)[event].float().mean() > 0.9  # a guess: a third


def test_weak_learns_where_the_event_is_if_told_how_long(learnable: Path, tmp_path: Path) -> None:
    run = train(learning(learnable, tmp_path / "run", task="weak", weak_labels="proportion", epochs=8, seed=1))
    store = open_store(learnable / "store")
    labels = Windows(store, store.split("val"), 6).labels.numpy()
    assert run.best_accuracy > max(segment_baselines(labels, len(CLASSES)).values()) + 0.1


@pytest.mark.parametrize("mode", ["joint", "strict"])
def test_cml_learns_to_find_the_event_in_the_other_stream(mode: str, learnable: Path, tmp_path: Path) -> None:
    same = learning(
        learnable, tmp_path / "run", task="cml", cml_mode=mode, options={"cml_pairs": "all"}, epochs=6, seed=2
    )
    run = train(same)
    store = open_store(learnable / "store")
    masks = [Windows(store, task_split(store, name, "cml"), 6).labels.numpy() < 3 for name in ("train", "val")]
    baseline = window_baselines(*masks).values["most frequent start per length"]
    assert run.best_accuracy > baseline + 0.3
    assert set(run.metrics[-1]["train"]) == {"distance", "wccl", "total"}
    for line in run.metrics:
        scores = line["val"]
        assert scores["accuracy"] == pytest.approx((scores["a2v"] + scores["v2a"]) / 2)
        assert scores["a2v"] * 23 == pytest.approx(round(scores["a2v"] * 23))  # of 24 events one fills its clip
    assert min(max(line["val"][direction] for line in run.metrics) for direction in DIRECTIONS) > baseline + 0.1


# --- what a run is --------------------------------------------------------------------------------------------------


def test_the_run_folder_says_where_it_comes_from(unkilled: Path) -> None:
    run = json.loads((unkilled / "run" / "run.json").read_text())
    assert (
        run["seed"] == 0 and run["threads"] == run["processes"] == 1 and run["versions"]["torch"] == torch.__version__
    )
    assert len(run["store_checksum"]) == 64
    lines = [json.loads(line) for line in (unkilled / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert {"classification", "fee", "wccl", "total", "accuracy"} <= set(lines[0]["train"])


def test_the_kept_model_is_the_one_that_was_chosen(unkilled: Path) -> None:
    model = load(unkilled / "run")
    store = write_store(unkilled / "again")
    windows = Windows(store, store.split("val"), 6)
    batch = windows.batch(range(len(windows)))
    with torch.no_grad():
        labels = forward(model.network, batch, "both").labels()
    accuracy = (labels == batch.target.labels).float().mean().item()
    assert accuracy == pytest.approx(json.loads((unkilled / "run" / "best.json").read_text())["accuracy"])
    assert model.classes == CLASSES and model.window == 6 and not model.network.training


def test_the_same_seed_gives_the_same_run_and_another_seed_another(unkilled: Path, tmp_path: Path) -> None:
    same, other = config(unkilled, out=tmp_path / "same"), config(unkilled, out=tmp_path / "other", seed=1)
    train(same), train(other)
    expected = outcome(unkilled / "run")
    assert outcome(tmp_path / "same") == expected
    assert outcome(tmp_path / "other")["best.safetensors"] != expected["best.safetensors"]


def test_a_finished_run_is_not_trained_again(unkilled: Path) -> None:
    before = (unkilled / "run" / "last.state.safetensors").stat().st_mtime_ns
    run = train(config(unkilled))
    assert (unkilled / "run" / "last.state.safetensors").stat().st_mtime_ns == before
    assert len(run.metrics) == EPOCHS


def test_more_epochs_go_on_from_where_it_ended(unkilled: Path, tmp_path: Path) -> None:
    short = config(unkilled, out=tmp_path / "run", epochs=2)
    train(short)
    train(replace(short, epochs=EPOCHS))
    assert outcome(tmp_path / "run") == outcome(unkilled / "run")


def test_updates_are_counted_and_a_last_batch_can_be_left_out(unkilled: Path, tmp_path: Path) -> None:
    uneven = config(unkilled, out=tmp_path / "all", batch_size=5, epochs=2)
    assert [line["updates"] for line in train(uneven).metrics] == [3, 6]  # of 12 windows
    short = replace(uneven, out=tmp_path / "full", drop_last=True)
    assert [line["updates"] for line in train(short).metrics] == [2, 4]
    assert outcome(tmp_path / "full")["last.safetensors"] != outcome(tmp_path / "all")["last.safetensors"]


@pytest.mark.parametrize("streams", ["audio", "visual"])
def test_a_single_stream_never_sees_the_other(streams: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    train(config(tmp_path, streams=streams, epochs=1))
    model = load(tmp_path / "run")
    assert model.streams == streams
    windows = Windows(store, store.split("test"), 6)
    batch = windows.batch(range(4))
    other = replace(batch, **{"visual" if streams == "audio" else "audio": torch.randn(4, 6, 2, 2, 6)[..., :6]})
    if streams == "visual":
        other = replace(batch, audio=torch.randn(4, 6, 5))
    with torch.no_grad():
        assert torch.equal(forward(model.network, batch, streams).logits, forward(model.network, other, streams).logits)


def test_noise_on_the_features_changes_training_only_and_resumes_exactly(unkilled: Path, tmp_path: Path) -> None:
    noisy = config(unkilled, out=tmp_path / "run", feature_noise=0.5)
    train(replace(noisy, epochs=2))
    train(noisy)
    train(replace(noisy, out=tmp_path / "again"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "again")
    assert outcome(tmp_path / "run") != outcome(unkilled / "run")
    store = open_store(unkilled / "store")
    windows = Windows(store, store.split("val"), 6)
    model = load(tmp_path / "run")
    with torch.no_grad():
        labels = torch.cat([forward(model.network, batch, "both").labels() for batch in windows.batches(4)])
        truth = torch.cat([batch.target.labels for batch in windows.batches(4)])
    described = json.loads((tmp_path / "run" / "best.json").read_text())["accuracy"]
    assert (labels == truth).float().mean().item() == pytest.approx(described)


def test_several_seeds_get_a_folder_each(tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    runs = train_seeds(config(tmp_path, epochs=1), [3, 5])
    assert [run.folder.name for run in runs] == ["seed-3", "seed-5"]
    assert json.loads((tmp_path / "run" / "seed-5" / "run.json").read_text())["seed"] == 5


# --- the updates of an epoch ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """48 windows, of which 47 hold an event of a part of their length."""
    store = write_store(tmp_path_factory.mktemp("many") / "store", clips=96)
    windows = Windows(store, store.split("train"), 6)
    assert (len(windows), len(events(windows))) == (48, 47)
    return windows


ALL = config(Path(), batch_size=10)
STRICT = replace(ALL, batch_size=4, task="cml", cml_mode="strict")


def indices(parts: list[Update]) -> list[int]:
    return [index for part in parts for index in part.windows]


@pytest.mark.parametrize("task", ["full", "weak", "cml"])
def test_every_window_comes_once_an_epoch(task: str, many: Windows) -> None:
    parts = plan(many, replace(ALL, task=task), 1)
    assert sorted(indices(parts)) == list(range(48))
    assert [len(part.windows) for part in parts] == [10, 10, 10, 10, 8]
    assert all(part.query is None for part in parts)


def test_every_partial_event_comes_once_a_strict_epoch_one_length_and_direction_a_batch(many: Windows) -> None:
    asked = set()
    for epoch in (1, 2, 3):
        parts = plan(many, STRICT, epoch)
        assert sorted(indices(parts)) == sorted(events(many))
        assert {len(part.windows) for part in parts} == {1, 2, 3, 4}  # lengths do not fill their last batch
        for part in parts:
            assert len({events(many)[index][1] for index in part.windows}) == 1
            asked.add(part.query)
        lengths = [events(many)[part.windows[0]][1] for part in parts]
        assert lengths != sorted(lengths), "lengths come in any order"
    assert asked == set(DIRECTIONS)


@pytest.mark.parametrize("settings", [ALL, STRICT], ids=["joint", "strict"])
def test_seed_and_epoch_fix_the_updates(settings: TrainConfig, many: Windows) -> None:
    first = plan(many, settings, 1)
    assert plan(many, settings, 1) == first
    for other in (plan(many, settings, 2), plan(many, replace(settings, seed=1), 1)):
        assert indices(other) != indices(first)
        assert {tuple(sorted(part.windows)) for part in other} != {tuple(sorted(part.windows)) for part in first}
    if settings is STRICT:
        directions = [[part.query for part in plan(many, settings, epoch)] for epoch in (1, 2, 3)]
        assert directions[0] != directions[1] != directions[2]


def test_drop_last_leaves_full_batches_only(many: Windows) -> None:
    short = plan(many, replace(ALL, drop_last=True), 1)
    assert short == [part for part in plan(many, ALL, 1) if len(part.windows) == ALL.batch_size]
    assert plan(many, replace(ALL, drop_last=True, batch_size=100), 1) == plan(many, replace(ALL, batch_size=100), 1), (
        "not all is left out"
    )


def test_drop_last_is_refused_where_rare_lengths_would_never_be_trained(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="drop_last with cml_mode strict"):
        train(replace(STRICT, drop_last=True, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting",
    [{"learning_rate": 0.0}, {"learning_rate": math.inf}, {"learning_rate": math.nan}, {"feature_noise": -1.0}],
)
def test_impossible_rates_are_refused_before_anything_is_written(setting: dict[str, Any], tmp_path: Path) -> None:
    (name,) = setting
    with pytest.raises(AvelError, match=f"{name} .*") as caught:
        train(replace(ALL, **setting, out=tmp_path / "run"))
    assert "finite" in caught.value.expected and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting", [{"weak_labels": "proportion"}, {"background_videos": False}, {"cml_mode": "strict"}], ids=str
)
def test_a_setting_that_the_task_does_not_read_is_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    (name,) = setting
    with pytest.raises(AvelError, match=f"{name} .* with task full") as caught:
        train(replace(ALL, **setting, out=tmp_path / "run"))
    assert f"--{name.replace('_', '-')}" in caught.value.do and not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("settings", [ALL, STRICT], ids=["joint", "strict"])
def test_what_the_processes_do_not_divide_is_left_out(settings: TrainConfig, processes: int, many: Windows) -> None:
    said: list[str] = []
    alone, shared = plan(many, settings, 1), plan(many, settings, 1, processes, said.append)
    expected = [
        Update(part.windows[: len(part.windows) - len(part.windows) % processes], part.query)
        for part in alone
        if len(part.windows) >= processes
    ]
    assert shared == expected
    lost = len(indices(alone)) - len(indices(shared))
    if (settings, processes) == (ALL, 2):
        assert lost == 0 and said == []
    else:
        assert lost > 0
        windows = f"{lost} window{'s' * (lost > 1)}"
        assert said == [
            f"some batches do not divide evenly among {processes} processes: each epoch leaves out {windows}"
        ]


def test_more_processes_than_windows_in_a_batch_are_refused(many: Windows) -> None:
    with pytest.raises(AvelError, match="5 processes share batches of at most 4 windows"):
        plan(many, replace(ALL, batch_size=4), 1, 5)


# --- the weak task --------------------------------------------------------------------------------------------------


def weights(folder: Path, out: Path, **changes: object) -> bytes:
    train(config(folder, out=out, epochs=2, task="weak", **changes))
    return (out / "last.safetensors").read_bytes()


def test_weak_training_cannot_see_which_segments_hold_the_event(tmp_path: Path) -> None:
    def scattered(index: int, spans: list, number: int = 0) -> list:
        """As many of the six segments as before, or ``number``, anywhere."""
        (label, start, end), dice = spans[0], random.Random(index)
        return [[label, t, t + 1.0] for t in dice.sample(range(6), number or round(end - start))]

    folders = [tmp_path / name for name in ("as it was", "shuffled", "other length")]
    for folder in folders:
        write_store(folder / "store")
    relabel(folders[1] / "store", scattered)
    relabel(folders[2] / "store", lambda index, spans: scattered(index, spans, 1 + index % 5))
    labels = [Windows(open_store(folder / "store"), range(24), 6).labels for folder in folders]
    assert not torch.equal(labels[0], labels[1]) and torch.equal(labels[0].sum(1), labels[1].sum(1))
    one, two, three = (weights(folder, folder / "onehot") for folder in folders)
    assert one == two == three
    told, shuffled, other = (weights(folder, folder / "proportion", weak_labels="proportion") for folder in folders)
    assert told == shuffled != other, "shares of the segments tell how long the event lasts, not when it is"
    assert told != one


def test_background_videos_join_the_weak_training_where_there_are_some(unkilled: Path, tmp_path: Path) -> None:
    def windows(out: str) -> int:
        return json.loads((tmp_path / out / "run.json").read_text())["windows"]["train"]

    write_store(tmp_path / "plain" / "store")  # the same clips without those of background alone
    with_them = weights(unkilled, tmp_path / "with")
    left_out = weights(unkilled, tmp_path / "left out", background_videos=False)
    without = weights(tmp_path / "plain", tmp_path / "without")
    assert (windows("with"), windows("left out"), windows("without")) == (12 + 4, 12, 12)
    assert with_them != left_out == without
    assert json.loads((unkilled / "run" / "run.json").read_text())["windows"]["train"] == 12, "task full"


# --- rates and looks at the validation split ------------------------------------------------------------------------


def test_the_learning_rate_stays_or_falls_along_a_cosine(unkilled: Path, tmp_path: Path) -> None:
    falling = config(unkilled, out=tmp_path / "run", schedule="cosine", learning_rate=8.0)
    by_hand = [8.0, 4 + 2 * math.sqrt(2), 4.0, 4 - 2 * math.sqrt(2)]
    assert [learning_rate(falling, epoch) for epoch in (1, 2, 3, 4)] == pytest.approx(by_hand)
    assert [learning_rate(replace(falling, schedule="constant"), epoch) for epoch in (1, 4)] == [8.0, 8.0]

    run = train(replace(falling, learning_rate=1e-3))
    assert [line["learning_rate"] * 8e3 for line in run.metrics] == pytest.approx(by_hand)
    constant = outcome(unkilled / "run")["lines"]
    assert run.metrics[0]["train"] == constant[0]["train"]  # type: ignore[index]
    assert run.metrics[2]["train"] != constant[2]["train"]  # type: ignore[index]


def test_another_number_of_epochs_does_not_go_with_a_cosine(unkilled: Path, tmp_path: Path) -> None:
    falling = config(unkilled, out=tmp_path / "run", schedule="cosine", epochs=2)
    train(falling)
    for epochs in (1, 3):
        with pytest.raises(AvelError, match=rf"2 epochs, but --epochs is {epochs}[\s\S]*cosine schedule depends on it"):
            train(replace(falling, epochs=epochs))


def test_only_epochs_that_were_looked_at_can_be_the_best(unkilled: Path, tmp_path: Path) -> None:
    run = train(config(unkilled, out=tmp_path / "run", epochs=8, validate_every=3, learning_rate=1e-2))
    assert [line["epoch"] for line in run.metrics if "val" in line] == [3, 6, 8]
    best = max((line for line in run.metrics if "val" in line), key=lambda line: line["val"]["accuracy"])
    assert (run.best_epoch, run.best_accuracy) == (best["epoch"], best["val"]["accuracy"])
    described = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (described["epoch"], described["accuracy"]) == (run.best_epoch, run.best_accuracy)
    every = train(config(unkilled, out=tmp_path / "every", epochs=8, learning_rate=1e-2))
    assert [line["train"] for line in run.metrics] == [line["train"] for line in every.metrics], (
        "looking changes nothing"
    )


# --- killed, then resumed -------------------------------------------------------------------------------------------

# Children come from a server that has torch imported already: a fresh interpreter would take seconds each.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["avel.training", "avel.cli", "pytest"])


def in_child(function: Callable[..., None], *arguments: object) -> int | None:
    """Run in another process; returns its exit code, negative for a signal."""
    process = CHILDREN.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def train_until_killed(config: TrainConfig, module: object, name: str, count: int, before: bool) -> None:
    """Train, and die at the ``count``-th call of a function, before or after it has run."""
    function, left = getattr(module, name), count

    def wrapped(*arguments: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, wrapped)
    train(config)


def kill_at(config: TrainConfig, module: str, name: str, count: int, before: bool) -> None:
    train_until_killed(config, sys.modules[module], name, count, before)


@pytest.mark.parametrize(
    ("module", "name", "count", "before"),
    [
        ("avel.training", "fit_epoch", 1, True),  # before anything was learned
        pytest.param("avel.training", "fit_epoch", 3, False, marks=pytest.mark.slow),
        pytest.param("avel.training", "scores_on", 2, False, marks=pytest.mark.slow),
        # A checkpoint write, half done: an epoch writes best (if better), metrics, last and state, all by write_file.
        pytest.param(
            "avel.checkpoint", "write_file", 1, False, marks=pytest.mark.slow
        ),  # best's weights without its description
        ("avel.checkpoint", "write_file", 4, True),  # last's description missing
        ("avel.checkpoint", "save_state", 2, True),  # everything but the state, which alone finishes an epoch
        ("os", "replace", 12, True),  # a file written under its temporary name and not yet renamed
    ],
)
def test_killed_in_an_epoch_or_a_checkpoint_write_it_resumes_exactly(
    module: str, name: str, count: int, before: bool, unkilled: Path, tmp_path: Path
) -> None:
    same = config(unkilled, out=tmp_path / "run")
    assert in_child(kill_at, same, module, name, count, before) == -signal.SIGKILL
    state = tmp_path / "run" / "last.state.safetensors"
    finished = 0
    if state.is_file():
        with safe_open(state, "pt") as file:
            finished = json.loads(file.metadata()["facts"])["epoch"]
    trained: list[int] = []
    train(same, progress=lambda _, done, total: trained.append(done))
    assert trained == list(range(finished, EPOCHS + 1)), "nothing finished is done again"
    assert outcome(tmp_path / "run") == outcome(unkilled / "run")


OTHERS: dict[str, dict[str, object]] = {
    "weak": {"task": "weak"},
    "strict": {"task": "cml", "cml_mode": "strict"},
    "cosine": {"schedule": "cosine", "validate_every": 3, "epochs": 5},  # killed before it was ever looked at
}


@pytest.mark.parametrize(
    ("run", "module", "name", "count", "before"),
    [
        pytest.param("weak", "avel.training", "fit_epoch", 3, False, marks=pytest.mark.slow),
        pytest.param("strict", "avel.checkpoint", "save_state", 2, True, marks=pytest.mark.slow),
        ("cosine", "avel.training", "fit_epoch", 3, False),
    ],
)
def test_other_kinds_of_training_resume_exactly_too(
    run: str, module: str, name: str, count: int, before: bool, unkilled: Path, tmp_path: Path
) -> None:
    train(config(unkilled, out=tmp_path / "never killed", **OTHERS[run]))
    same = config(unkilled, out=tmp_path / "run", **OTHERS[run])
    assert in_child(kill_at, same, module, name, count, before) == -signal.SIGKILL
    trained: list[int] = []
    train(same, progress=lambda _, done, total: trained.append(done))
    assert trained[0] == count - 1
    assert outcome(tmp_path / "run") == outcome(tmp_path / "never killed")


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_as_if_never_killed(unkilled: Path, tmp_path: Path) -> None:
    same, moments = config(unkilled, out=tmp_path / "run"), random.Random(0)
    for _ in range(10):
        process = CHILDREN.Process(target=train, args=(same,))
        process.start()
        time.sleep(moments.uniform(0.05, 0.6))
        process.kill()
        process.join(60)
    assert in_child(train, same) == 0
    assert outcome(tmp_path / "run") == outcome(unkilled / "run")


# --- what a user can get wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": 9}, "window 6"),
        ({"model": "nonsense"}, "ccln"),
        ({"options": {"widht": 3}}, "width"),
        ({"select_on": "nowhere"}, "test"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"epochs": 0}, "epochs 0"),
        ({"validate_every": 0}, "validate-every"),
    ],
)
def test_settings_that_do_not_fit_the_store_are_refused(
    changes: dict, said: str, unkilled: Path, tmp_path: Path
) -> None:
    with pytest.raises(AvelError, match=said):
        train(config(unkilled, out=tmp_path / "run", **changes))


def test_a_clip_without_labels_or_audio_is_refused_by_name(tmp_path: Path) -> None:
    write_store(tmp_path / "store", labelled=False)
    with pytest.raises(AvelError, match=r"clip-0 .* no labels"):
        train(config(tmp_path))
    write_store(tmp_path / "silent", audio_valid=False)
    with pytest.raises(AvelError, match=r"no valid audio .* clip-0"):
        train(config(tmp_path, store=tmp_path / "silent"))


def test_another_run_in_the_folder_is_refused_naming_what_differs(unkilled: Path) -> None:
    with pytest.raises(AvelError, match="different settings: learning_rate, seed"):
        train(config(unkilled, learning_rate=0.1, seed=7))
    with pytest.raises(AvelError, match="4 epochs, but --epochs is 2"):
        train(config(unkilled, epochs=2))


def test_a_store_that_changed_under_a_run_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    train(config(tmp_path, epochs=1))
    write_store(tmp_path / "store2", seed=1)
    with pytest.raises(AvelError, match="store"):
        train(config(tmp_path, epochs=1, store=tmp_path / "store2"))


def test_a_folder_with_other_things_in_it_is_left_alone(unkilled: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(AvelError, match="not a run folder"):
        train(config(unkilled, out=tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_no_number_stops_with_what_to_change(unkilled: Path, tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="learning-rate"):
        train(config(unkilled, out=tmp_path / "run", learning_rate=1e30))


def train_with_little_room(config: TrainConfig, said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        train(config)
    except AvelError as error:
        said.write_text(str(error))


def test_a_full_disk_keeps_the_finished_epochs_and_says_so(unkilled: Path, tmp_path: Path) -> None:
    same = config(unkilled, out=tmp_path / "run")
    train(replace(same, epochs=2))
    assert in_child(train_with_little_room, same, tmp_path / "said") == 0
    said = (tmp_path / "said").read_text()
    assert "could not write" in said and "room" in said
    assert not list((tmp_path / "run").glob(".*.tmp"))
    train(same)
    assert outcome(tmp_path / "run") == outcome(unkilled / "run")


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="no checkpoint in"):
        load(tmp_path)
    with pytest.raises(AvelError, match="no such run folder"):
        load(tmp_path / "nowhere")


def test_damaged_checkpoints_are_refused_by_name(unkilled: Path, tmp_path: Path) -> None:
    for name in ("best.json", "best.safetensors"):
        (tmp_path / name).write_bytes((unkilled / "run" / name).read_bytes())
    weights = bytearray((tmp_path / "best.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "best.safetensors").write_bytes(weights)
    with pytest.raises(AvelError, match=r"best\.safetensors does not match"):
        load(tmp_path)
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(AvelError, match=r"best\.safetensors is missing"):
        load(tmp_path)
    for content, said in (("{", "is damaged"), ("[]", "is damaged"), ('{"network": {}}', "missing required field")):
        (tmp_path / "best.json").write_text(content)
        with pytest.raises(AvelError, match=said):
            load(tmp_path)
    description = json.loads((unkilled / "run" / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps({**description, "schema": 99}))
    with pytest.raises(AvelError, match="schema 99"):
        load(tmp_path)


def test_a_damaged_state_is_refused_with_what_to_do(unkilled: Path, tmp_path: Path) -> None:
    train(config(unkilled, out=tmp_path / "run", epochs=1))
    state = tmp_path / "run" / "last.state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(AvelError, match="cannot resume"):
        train(config(unkilled, out=tmp_path / "run", epochs=2))

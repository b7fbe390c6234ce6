"""Training: it learns, it is reproducible, it resumes after any kill to the very same weights."""

import json
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

import pytest
import torch
from safetensors import safe_open
from synthetic import CLASSES, write_store

from avel.checkpoint import load
from avel.config import TrainConfig
from avel.data.loader import Windows
from avel.data.store import open_store
from avel.errors import AvelError
from avel.training import forward, train, train_seeds

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
    write_store(folder / "store")
    train(config(folder))
    return folder


def test_it_learns_the_planted_classes(tmp_path: Path) -> None:
    write_store(tmp_path / "store", noise=0.2)
    seen: list[tuple[str, int, int]] = []
    run = train(config(tmp_path, epochs=40), progress=lambda *step: seen.append(step))
    assert run.best_accuracy > 0.8
    assert run.metrics[-1]["train"]["total"] < run.metrics[0]["train"]["total"]
    assert seen == [("train", epoch, 40) for epoch in range(41)]
    best = max(run.metrics, key=lambda line: line["val"]["accuracy"])
    assert (run.best_epoch, run.best_accuracy) == (best["epoch"], best["val"]["accuracy"])


def test_the_run_folder_says_where_it_comes_from(unkilled: Path) -> None:
    run = json.loads((unkilled / "run" / "run.json").read_text())
    assert run["seed"] == 0 and run["threads"] == 1 and run["versions"]["torch"] == torch.__version__
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


# --- killed, then resumed -------------------------------------------------------------------------------------------

# Children come from a server that has torch imported already: a fresh interpreter would take seconds each.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["avel.training"])


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
        ("avel.training", "fit_epoch", 3, False),
        ("avel.training", "accuracy_on", 2, False),
        # A checkpoint write, half done: an epoch writes best (if better), metrics, last and state, all by write_file.
        ("avel.checkpoint", "write_file", 1, False),  # best's weights without its description
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
    with pytest.raises(AvelError, match=r"clip-0 .* no valid audio"):
        train(config(tmp_path, store=tmp_path / "silent"))


def test_another_run_in_the_folder_is_refused_naming_what_differs(unkilled: Path) -> None:
    with pytest.raises(AvelError, match="another learning_rate, seed"):
        train(config(unkilled, learning_rate=0.1, seed=7))
    with pytest.raises(AvelError, match="4 epochs, and 2"):
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
    for content, said in (("{", "not a checkpoint"), ("[]", "not a checkpoint"), ('{"network": {}}', "schema")):
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

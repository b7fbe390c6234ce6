"""The settings that the papers' recipes need: each changes weights, rates, order and files as it says, resumed too."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from synthetic import write_store

from avel import checkpoint, training
from avel.checkpoint import load
from avel.config import TrainConfig
from avel.data.loader import Windows
from avel.data.store import open_store
from avel.errors import AvelError
from avel.evaluation import evaluate
from avel.models import build_model
from avel.runs import read_run
from avel.training import Update, learning_rate, plan, train, train_clips, train_seeds

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"width": 16, "heads": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips to train on, 4 of background alone."""
    return write_store(tmp_path_factory.mktemp("recipes") / "store", background=4).path


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    settings = {"window": 6, "epochs": 1, "batch_size": 12, "device": "cpu", "threads": 1, "options": OPTIONS}
    return TrainConfig(store, out, **{**settings, **changes})


def outcome(run: Path) -> list[Any]:
    """What must not depend on whether a run was stopped and resumed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    files = ("best.safetensors", "last.safetensors", "last.state.safetensors", "best.json")
    return [{**line, "seconds": 0} for line in lines] + [(run / name).read_bytes() for name in files]


# --- the gradient ---------------------------------------------------------------------------------------------------


def gradient(run: Path) -> torch.Tensor:
    """What Adam was given in the only update of a run: its first moment is a tenth of it."""
    state = load_file(run / "last.state.safetensors")
    moments = {int(key.split(".")[1]): value for key, value in state.items() if key.endswith("exp_avg")}
    return torch.cat([moments[index].flatten() for index in sorted(moments)]) * 10


@pytest.fixture(scope="module")
def plain(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one update."""
    return train(config(store, tmp_path_factory.mktemp("plain") / "run")).folder


def test_a_large_gradient_is_scaled_to_the_norm_and_a_small_one_is_left_alone(
    store: Path, plain: Path, tmp_path: Path
) -> None:
    whole = gradient(plain)
    norm = float(whole.norm())
    train(config(store, tmp_path / "clipped", gradient_clipping=norm / 4))
    torch.testing.assert_close(gradient(tmp_path / "clipped"), whole / 4, rtol=1e-4, atol=1e-7)
    train(config(store, tmp_path / "loose", gradient_clipping=norm * 4))
    assert torch.equal(gradient(tmp_path / "loose"), whole)


def test_weight_decay_adds_a_share_of_the_weights_to_the_clipped_gradient(
    store: Path, plain: Path, tmp_path: Path
) -> None:
    opened = open_store(store)
    torch.manual_seed(0)
    shapes: dict[str, Any] = {"audio_dim": opened.audio_dim, "visual_dim": opened.visual_dim, "grid": opened.grid}
    network = build_model("ccln", **shapes, num_classes=3, task="full", **OPTIONS)
    state = load_file(plain / "last.state.safetensors")
    moved = {int(key.split(".")[1]) for key in state if key.endswith("exp_avg")}
    weights = torch.cat([each.detach().flatten() for index, each in enumerate(network.parameters()) if index in moved])
    whole = gradient(plain)
    norm = float(whole.norm())
    train(config(store, tmp_path / "run", weight_decay=0.5, gradient_clipping=norm / 4))
    torch.testing.assert_close(gradient(tmp_path / "run"), whole / 4 + 0.5 * weights, rtol=1e-4, atol=1e-6)


# --- the learning rate ----------------------------------------------------------------------------------------------


def test_the_rate_is_multiplied_after_each_milestone(store: Path, tmp_path: Path) -> None:
    falling = config(store, tmp_path / "run", epochs=5, schedule="step", milestones=[2, 3], gamma=0.5)
    by_hand = [1e-3, 1e-3, 5e-4, 2.5e-4, 2.5e-4]
    assert [learning_rate(falling, epoch) for epoch in range(1, 6)] == pytest.approx(by_hand)
    train(replace(falling, epochs=2))
    run = train(falling)  # milestones do not depend on the number of epochs, so it may grow
    assert [line["learning_rate"] for line in run.metrics] == pytest.approx(by_hand)
    train(replace(falling, out=tmp_path / "at once"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "at once")


def test_the_optimizer_takes_the_rate_of_the_epoch(store: Path, tmp_path: Path) -> None:
    stopped = config(store, tmp_path / "run", schedule="step", milestones=[1], gamma=1e-20)
    train(stopped)
    before = load_file(tmp_path / "run" / "last.safetensors")
    train(replace(stopped, epochs=3))
    after = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


# --- the order of the windows ---------------------------------------------------------------------------------------


def imported(store: Path, folder: Path, orders: dict[str, Sequence[int]]) -> Path:
    """A copy of a store with the orders of split files."""
    copy = Path(shutil.copytree(store, folder))
    (copy / "import.json").write_text(json.dumps({"orders": orders}))
    return copy


def test_without_shuffling_batches_are_slices_of_the_order_of_the_split_file(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = open_store(store).split("train")
    order = [*trained[5:], *trained[:5]]
    seen: list[list[int]] = []

    def noted(fabric: Any, model: Any, optimizer: Any, windows: Windows, updates: list[Update], *rest: Any) -> Any:
        seen.append([windows.items[index][0] for update in updates for index in update.windows])
        assert [len(update.windows) for update in updates] == [5, 5]  # a last one of 2 is left out
        return fit_epoch(fabric, model, optimizer, windows, updates, *rest)

    fit_epoch = training.fit_epoch
    monkeypatch.setattr(training, "fit_epoch", noted)
    other = imported(store, tmp_path / "store", {"train": order})
    train(config(other, tmp_path / "run", shuffle=False, batch_size=5, drop_last=True, epochs=2))
    assert seen == [order[:10], order[:10]]


def test_the_order_is_the_stores_without_a_split_file_or_with_one_of_other_clips(store: Path, tmp_path: Path) -> None:
    trained = open_store(store).split("train")
    for orders in ({}, {"val": [1, 0]}, {"train": trained[1:]}):
        other = open_store(imported(store, tmp_path / str(len(orders)) / str(orders), orders))
        assert train_clips(other, config(other.path, tmp_path, shuffle=False)) == trained
    assert train_clips(open_store(store), config(store, tmp_path, shuffle=False)) == trained


def test_background_videos_follow_and_a_shuffled_run_does_not_read_the_order(store: Path, tmp_path: Path) -> None:
    opened = open_store(imported(store, tmp_path / "store", {"train": open_store(store).split("train")[::-1]}))
    weak = config(opened.path, tmp_path, task="weak", shuffle=False)
    trained, background = opened.split("train"), opened.split("background")
    assert train_clips(opened, weak) == [*trained[::-1], *background]
    assert train_clips(opened, replace(weak, shuffle=True)) == [*trained, *background]
    windows = Windows(opened, train_clips(opened, weak), 6)
    assert [update.windows for update in plan(windows, replace(weak, batch_size=8), 3)] == [
        [*range(8)],
        [*range(8, 16)],
    ]


def test_a_damaged_order_is_refused(store: Path, tmp_path: Path) -> None:
    other = imported(store, tmp_path / "store", {})
    (other / "import.json").write_text('{"orders": 3}')
    with pytest.raises(AvelError, match=r"import\.json is damaged"):
        train(config(other, tmp_path / "run", shuffle=False))
    assert not (tmp_path / "run").exists()


# --- the weights that are kept --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "kept", "selected_on"), [("best", 1, "val"), ("last", 3, "last epoch")])
def test_the_last_weights_are_kept_even_if_they_are_worse(
    keep: str, kept: int, selected_on: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(training, "scores_on", lambda *_: {"accuracy": next(falling)})
    same = config(store, tmp_path / "run", keep=keep, epochs=3)
    train(replace(same, epochs=2))
    run = train(same)
    assert (run.best_epoch, run.best_accuracy) == (kept, [0.9, 0.8, 0.7][kept - 1])
    folder = run.folder
    said = json.loads((folder / "best.json").read_text())
    assert (said["epoch"], said["selected_on"]) == (kept, selected_on)
    alike = (folder / "best.safetensors").read_bytes() == (folder / "last.safetensors").read_bytes()
    assert alike == (keep == "last")
    assert load(folder).network is not None
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)  # pictures take seconds
    assert evaluate(folder, "val")["selected_on"] == selected_on


# --- weights of another run -----------------------------------------------------------------------------------------


def test_a_run_starts_from_the_kept_weights_of_another(store: Path, plain: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(config(store, tmp_path / "run", init_from=plain, learning_rate=1e-30, seed=5), notice=said.append)
    given, taken = (load_file(run / "best.safetensors") for run in (plain, tmp_path / "run"))
    assert all(torch.equal(given[key], taken[key]) for key in given)
    start = read_run(tmp_path / "run").started_from
    assert start is not None and (start.model, start.epoch, start.fresh, start.unused) == ("ccln", 1, [], [])
    assert sorted(start.taken) == sorted(given) and start.other_data == []
    assert start.weights_sha256 == json.loads((plain / "best.json").read_text())["weights_sha256"]
    assert f"starts from {plain / 'best.json'} (ccln, epoch 1): {len(given)} tensors taken" in said
    assert read_run(plain).started_from is None


def test_tensors_of_other_shapes_start_at_random_and_are_told(plain: Path, tmp_path: Path) -> None:
    wider = write_store(tmp_path / "store", visual_dim=7).path
    said: list[str] = []
    still = config(wider, tmp_path / "random", learning_rate=1e-30)
    train(still)
    train(replace(still, out=tmp_path / "warm", init_from=plain), notice=said.append)
    start = read_run(tmp_path / "warm").started_from
    given, random, warm = (
        load_file(run / "last.safetensors") for run in (plain, tmp_path / "random", tmp_path / "warm")
    )
    assert start is not None
    assert start.fresh == start.unused != []
    assert {*start.fresh} == {name for name in warm if warm[name].shape != given[name].shape}
    assert sorted(start.taken) == sorted(warm.keys() - start.fresh)
    for name, tensor in warm.items():
        assert torch.equal(tensor, (random if name in start.fresh else given)[name])
    assert any(
        f"{len(start.taken)} tensors taken; {len(start.fresh)} start at random: {start.fresh[0]}" in line
        for line in said
    )


def test_tensors_of_other_names_start_at_random_too(store: Path, plain: Path, tmp_path: Path) -> None:
    train(config(store, tmp_path / "cml", task="cml", init_from=plain))
    found = read_run(tmp_path / "cml").started_from
    assert found is not None and found.taken and found.unused
    train(config(store, tmp_path / "full", init_from=tmp_path / "cml"))
    back = read_run(tmp_path / "full").started_from
    assert back is not None and back.taken == found.taken and back.fresh == found.unused


def test_a_run_with_nothing_in_common_is_refused(plain: Path) -> None:
    extractors = load(plain).extractors
    with pytest.raises(AvelError, match="no tensor of") as caught:
        checkpoint.start_from(plain, torch.nn.Linear(3, 4), ("bell",), extractors)
    assert "--init-from" in caught.value.do
    with pytest.raises(AvelError, match="no such run folder"):
        checkpoint.start_from(plain / "nowhere", torch.nn.Linear(3, 4), ("bell",), extractors)


def test_other_classes_and_other_features_are_told(plain: Path) -> None:
    network = load(plain).network
    others = {kind: {"tag": "other"} for kind in ("audio", "visual")}
    start = checkpoint.start_from(plain, network, ("bell",), others)
    assert start.other_data == ["classes", "features"] and str(start).endswith("trained on other classes and features")


def test_a_started_run_resumes_without_the_run_that_it_came_from(store: Path, plain: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    warm = config(store, tmp_path / "run", init_from=source, epochs=2)
    train(warm)
    train(replace(warm, out=tmp_path / "stopped", epochs=1))
    shutil.rmtree(source)
    train(replace(warm, out=tmp_path / "stopped"))
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "run")


def test_weights_that_changed_before_the_first_epoch_ended_are_refused(
    store: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    warm = config(store, tmp_path / "run", init_from=source)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "fit_epoch", stop)
        train(warm)
    shutil.rmtree(source)
    train(config(store, source, seed=1))
    with pytest.raises(AvelError, match="has changed since the run"):
        train(warm)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_each_seed_starts_from_the_run_of_its_own(store: Path, tmp_path: Path) -> None:
    train_seeds(config(store, tmp_path / "source"), [0, 1])
    train_seeds(config(store, tmp_path / "runs", init_from=tmp_path / "source"), [0, 1])
    for seed in (0, 1):
        start = read_run(tmp_path / "runs" / f"seed-{seed}").started_from
        assert start is not None and start.checkpoint == str(tmp_path / "source" / f"seed-{seed}" / "best.json")


# --- float64 --------------------------------------------------------------------------------------------------------


def test_float64_holds_from_the_parameters_to_the_losses_and_through_a_resume(store: Path, tmp_path: Path) -> None:
    exact = config(store, tmp_path / "run", precision="64-true", epochs=2, batch_size=4, gradient_clipping=0.5)
    train(replace(exact, epochs=1))
    run = train(exact)
    train(replace(exact, out=tmp_path / "at once"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "at once")
    weights = load_file(run.folder / "last.safetensors")
    assert all(value.dtype == torch.float64 for value in weights.values() if value.is_floating_point())
    assert all(float(np.float32(value)) != value for value in (line["train"]["total"] for line in run.metrics))
    assert any(not torch.equal(value, value.float().double()) for value in weights.values())
    single = train(replace(exact, out=tmp_path / "single", precision="32-true"))
    for line, other in zip(run.metrics, single.metrics, strict=True):  # the same weights at the start
        assert line["train"]["total"] == pytest.approx(other["train"]["total"], rel=1e-4)
    model = load(run.folder)
    assert {each.dtype for each in model.network.parameters()} == {torch.float64}


def test_a_float64_run_is_evaluated_as_it_was_validated(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)  # pictures take seconds
    run = train(config(store, tmp_path / "run", precision="64-true", epochs=3, learning_rate=1e-2))
    assert evaluate(run.folder, "val")["segment_accuracy"] == pytest.approx(run.best_accuracy)


def test_float64_is_refused_on_a_device_without_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "device", torch.device)
    with pytest.raises(AvelError, match="precision 64-true on mps"):
        train(config(store, tmp_path / "run", precision="64-true", device="mps"))
    assert not (tmp_path / "run").exists()


# --- what a user can get wrong, and what earlier versions wrote -----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said", "option"),
    [
        ({"gradient_clipping": -1.0}, "gradient_clipping -1.0", "--gradient-clipping"),
        ({"weight_decay": float("nan")}, "weight_decay nan", "--weight-decay"),
        ({"schedule": "step"}, "schedule step without milestones", "--milestones"),
        ({"milestones": [3]}, "milestones .* with schedule constant", "--schedule step"),
        ({"gamma": 0.5}, "gamma 0.5 with schedule constant", "--gamma"),
        ({"schedule": "step", "milestones": [3, 3]}, "milestones", "--milestones"),
        ({"schedule": "step", "milestones": [0]}, "milestones", "--milestones"),
        ({"schedule": "step", "milestones": [3], "gamma": 0.0}, "gamma 0.0", "--gamma"),
        ({"task": "cml", "cml_mode": "strict", "shuffle": False}, "shuffle false with cml_mode strict", "--shuffle"),
        ({"epochs": 0}, "epochs 0", "--epochs"),
        ({"cml_mode": "strict"}, "cml_mode strict with task full", "--cml-mode"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_naming_the_option(changes: Any, said: str, option: str) -> None:
    with pytest.raises(AvelError, match=said) as caught:
        TrainConfig(Path("store"), Path("run"), **changes)
    assert option in caught.value.do


def test_a_run_of_an_earlier_version_is_read_and_resumed(store: Path, plain: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(plain, tmp_path / "run"))
    content = json.loads((old / "run.json").read_text())
    del content["started_from"]
    for name in ("shuffle", "milestones", "gamma", "weight_decay", "gradient_clipping", "init_from", "keep"):
        del content["config"][name]
    (old / "run.json").write_text(json.dumps(content))
    same = config(store, old)
    assert read_run(old).settings() == replace(same, out=plain)
    assert len(train(replace(same, epochs=2)).metrics) == 2
    with pytest.raises(AvelError, match="different settings: weight_decay, keep"):
        train(replace(same, keep="last", weight_decay=0.1))

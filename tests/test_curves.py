"""What a training shows while it runs: reports, the line or bar made of them, and TensorBoard's curves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from synthetic import write_store

from avel import cli, console, training
from avel.config import TrainConfig
from avel.errors import AvelError
from avel.training import train
from avel.types import TrainStatus


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves") / "store"
    write_store(folder)
    return folder


def config(store: Path, out: Path, **settings: object) -> TrainConfig:
    settings = {
        "options": {"width": 16},
        "batch_size": 8,
        "epochs": 2,
        "device": "cpu",
        "threads": 1,
        "window": 6,
        **settings,
    }
    return TrainConfig(store=store, out=out, **settings)  # type: ignore[arg-type]


def test_each_epoch_is_reported_with_loss_and_accuracy(store: Path, tmp_path: Path) -> None:
    seen: list[TrainStatus] = []
    run = train(config(store, tmp_path / "run", seed=3), report=seen.append)
    ended = [status for status in seen if status.done == 1]
    assert [(each.seed, each.epoch, each.epochs) for each in ended] == [(3, 1, 2), (3, 2, 2)]
    for status, line in zip(ended, run.metrics, strict=True):
        assert status.loss == line["train"]["total"] and status.accuracy == line["val"]["accuracy"]
    assert (ended[-1].best_accuracy, ended[-1].best_epoch) == (run.best_accuracy, run.best_epoch)


def test_reports_within_an_epoch_change_nothing_that_is_learned(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(config(store, tmp_path / "plain"))
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    seen: list[TrainStatus] = []
    shown = train(config(store, tmp_path / "shown"), report=seen.append)
    within = [status for status in seen if status.done < 1]
    assert within and all(0 < status.done < 1 and status.loss > 0 for status in within)
    assert within[0].accuracy is None and within[-1].accuracy == plain.metrics[0]["val"]["accuracy"]
    for one, other in zip(plain.metrics, shown.metrics, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    name = "last.safetensors"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "shown" / name).read_bytes()


def test_a_resumed_run_knows_its_accuracy_before_it_validates_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(config(store, tmp_path / "run"))
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    seen: list[TrainStatus] = []
    train(config(store, tmp_path / "run", epochs=3), report=seen.append)
    assert seen[0].epoch == 3 and seen[0].accuracy == first.metrics[-1]["val"]["accuracy"]
    assert seen[0].best_accuracy == first.best_accuracy


def test_without_a_terminal_a_line_an_epoch_is_told_and_one_a_minute_within_it() -> None:
    clock = iter([0.0, 10.0, 75.0, 100.0, 200.0])
    lines: list[str] = []
    report = console.training_lines(lines.append, lambda: next(clock))
    report(TrainStatus(0, 1, 4, 0.1, 3.0, None, None, 0))  # 10 s: too soon
    report(TrainStatus(0, 1, 4, 0.5, 2.0, None, None, 0))  # 75 s
    report(TrainStatus(0, 1, 4, 1.0, 1.5, 0.25, 0.25, 1))
    report(TrainStatus(0, 2, 4, 1.0, 1.0, 0.2, 0.25, 1))
    assert lines == [
        "seed 0, epoch 1/4 (50%), loss 2.0000, 9 min left",
        "seed 0, epoch 1/4, loss 1.5000, accuracy 0.2500, best 0.2500 at epoch 1, 5 min left",
        "seed 0, epoch 2/4, loss 1.0000, accuracy 0.2000, best 0.2500 at epoch 1, 3 min left",
    ]


def test_the_command_prints_plain_lines_where_there_is_no_terminal(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--store",
        str(store),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "2",
        "--options.width",
        "16",
        "--window",
        "6",
    ]
    assert cli.main(["train", *words, "--device", "cpu", "--threads", "1"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seed 0, epoch")]
    assert len(said) == 2 and "loss" in said[0] and "accuracy" in said[0] and "best" in said[1]


def test_the_bar_shows_loss_accuracy_and_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=140)
    monkeypatch.setattr(console, "console", lambda stderr=False: terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.training_bars() as report:
        report(TrainStatus(0, 3, 4, 1.0, 1.5, 0.25, 0.5, 1))
    assert "epoch 3/4, loss 1.5000, accuracy 0.2500, best 0.5000 at epoch 1" in drawn.getvalue()
    assert "75%" in drawn.getvalue()


def test_without_tensorboard_the_option_says_what_to_install(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(AvelError, match=r"pip install \"avel\[tensorboard\]\""):
        train(config(store, tmp_path / "run", tensorboard=True))
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_metrics_jsonl_once_and_after_a_resume(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard; `make parity` has it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Killed(Exception):
        pass

    out = tmp_path / "run"
    train(config(store, out))  # TensorBoard asked for only later: these epochs are written then
    real = training.checkpoint.save_state

    def killed(*arguments: object) -> None:
        if os.path.exists(out / "tensorboard") and b'"epoch": 4' in (out / "metrics.jsonl").read_bytes():
            raise Killed
        real(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.checkpoint, "save_state", killed)
        with pytest.raises(Killed):
            train(config(store, out, epochs=5, tensorboard=True))
    run = train(config(store, out, epochs=5, tensorboard=True))
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    expected = {"learning_rate": [line["learning_rate"] for line in run.metrics]}
    for group in ("train", "val"):
        expected |= {f"{group}/{name}": [line[group][name] for line in run.metrics] for name in run.metrics[0][group]}
    assert set(events.Tags()["scalars"]) == expected.keys()
    for name, values in expected.items():
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3, 4, 5], name
        assert [point.value for point in points] == pytest.approx(values, rel=1e-6), name
    (tmp_path / "other").mkdir()
    train(config(store, tmp_path / "linked", epochs=1))
    (tmp_path / "linked" / "tensorboard").symlink_to(tmp_path / "other")
    with pytest.raises(AvelError, match="is a link"):
        train(config(store, tmp_path / "linked", tensorboard=True))
    assert not any((tmp_path / "other").iterdir())

"""Several runs on one split: what is printed and written of them, and what is refused before anything is scored."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
from synthetic import CLASSES, write_store

from avel import cli
from avel.checkpoint import best_seed, load
from avel.comparison import compare_runs, evaluate_runs
from avel.config import TrainConfig
from avel.errors import AvelError
from avel.evaluation import evaluate
from avel.runs import seeds_of
from avel.training import train, train_seeds


def settings(folder: Path, name: str, store: str = "store") -> TrainConfig:
    """One epoch, small."""
    options = {"width": 8, "heads": 2}
    out = folder / "runs" / name
    return TrainConfig(folder / store, out, window=6, epochs=1, batch_size=8, options=options, device="cpu", threads=1)


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """What takes most of the time, and is looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("avel.evaluation.draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, no_pictures: None) -> Path:
    """Runs on one store, ``mine`` of two seeds, and on stores of their own; all but ``mine`` have predictions."""
    folder = tmp_path_factory.mktemp("runs")
    write_store(folder / "store", noise=0.2)
    write_store(folder / "other-features", noise=0.2, tag="other-000000000000")
    write_store(folder / "fewer-clips", noise=0.2, clips=12)
    write_store(folder / "other-labels", noise=0.2, seed=1)
    train_seeds(settings(folder, "mine"), [0, 1])
    train(replace(settings(folder, "other"), seed=7))
    train(replace(settings(folder, "cml"), task="cml"))
    train(replace(settings(folder, "cml-5"), task="cml", window=5))
    for store in ("other-features", "fewer-clips", "other-labels"):
        train(settings(folder, store, store))
    for run in ("other", "cml", "cml-5", "other-features", "fewer-clips", "other-labels"):
        evaluate(folder / "runs" / run)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the runs, on the stores of the fixture."""
    return shutil.copytree(trained / "runs", tmp_path / "runs")


def test_mean_spread_and_difference_go_to_files(runs: Path) -> None:
    mine, other = evaluate_runs([runs / "mine", runs / "other"], against=runs / "other")
    written = json.loads((runs / "mine" / "evaluation_test.json").read_text())
    each = [evaluate(runs / "mine" / f"seed-{seed}")["segment_accuracy"] for seed in (0, 1)]
    assert written["measures"]["segment accuracy"] == {"mean": mean(each), "spread": stdev(each), "each": each}
    assert written["seeds"] == [0, 1] and written["class_recall"].keys() == {*CLASSES, "background"}
    assert written["baselines"] == mine.each[0]["baselines"]
    assert json.loads((runs / "other" / "evaluation_test.json").read_text()) == other.each[0]

    compared = json.loads((runs / "mine" / "comparison_test_other.json").read_text())
    interval, clips = compare_runs([runs / "mine" / "seed-0", runs / "mine" / "seed-1"], [runs / "other"])
    assert mine.difference == interval
    assert (compared["difference"], compared["interval_95"]) == (interval.value, [interval.low, interval.high])
    assert compared["clips"] == clips == 6 and compared["measure"] == "segment accuracy"
    assert len(compared["weights_sha256"]) == 3
    assert other.difference is not None and other.difference.value == 0
    assert other.written == [runs / "other" / "comparison_test_other.json"]


def test_the_command_line_prints_one_table_of_all_runs(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(runs)
    assert cli.main(["evaluate", "mine", "other"]) == 0
    said = capsys.readouterr().out
    assert said.count("segment accuracy") == 1
    (row,) = (line for line in said.splitlines() if "mine" in line and "ccln, full, val" in line)
    assert "+-" in row
    assert "mine/evaluation_test.json" in said and "trivial baseline, all background" in said
    assert cli.main(["evaluate", "mine", "--against", "other"]) == 0
    said = capsys.readouterr().out
    assert "mine - other: " in said and "over 6 clips" in said and "mine/comparison_test_other.json" in said


def test_a_run_is_compared_with_itself_and_with_other_features_of_the_same_clips(runs: Path) -> None:
    (same,) = evaluate_runs([runs / "other"], against=runs / "other")
    assert same.difference is not None and same.difference.value == 0
    (found,) = evaluate_runs([runs / "other"], against=runs / "other-features")
    assert found.compared == 6


def as_they_are(runs: Path) -> None:
    pass


def never_evaluated(runs: Path) -> None:
    (runs / "other" / "predictions_test.npz").unlink()


def trained_since(runs: Path) -> None:
    description = json.loads((runs / "other" / "best.json").read_text())
    (runs / "other" / "best.json").write_text(json.dumps(description | {"weights_sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("words", "prepare", "said"),
    [
        ("mine --against other", never_evaluated, "no predictions_test.npz in other"),
        ("mine --against other", trained_since, "other was trained further since"),
        ("mine --against cml", as_they_are, "mine/seed-0 was trained in task full, cml in task cml"),
        ("mine cml", as_they_are, "mine/seed-0 was trained in task full, cml in task cml"),
        ("cml --against cml-5", as_they_are, "windows of 6 segments, cml-5 on windows of 5"),
        ("mine --against fewer-clips", as_they_are, "6 clips against 3"),
        ("mine --against other-labels", as_they_are, "other labels for 'clip-9'"),
        ("mine --against nowhere", as_they_are, "no such run folder: nowhere"),
        ("mine nowhere", as_they_are, "no such run folder: nowhere"),
        ("mine mine/../mine", as_they_are, "named twice"),
        ("mine --split dev", as_they_are, "train, val, test"),
        ("mine/seed-0/best.json", as_they_are, "no such run folder: mine/seed-0/best.json"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_scored_or_printed(
    runs: Path,
    words: str,
    prepare: Callable[[Path], None],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(runs)
    monkeypatch.chdir(runs)
    monkeypatch.setattr("avel.comparison.score_run", lambda *_, **__: pytest.fail("it scored"))
    assert cli.main(["evaluate", *words.split()]) == 2
    told = capsys.readouterr()
    assert said in told.err and "do this:" in told.err
    assert told.out == ""


def test_seeds_on_other_clips_have_no_mean(runs: Path) -> None:
    shutil.copytree(runs / "fewer-clips", runs / "mine" / "seed-2")
    with pytest.raises(AvelError, match=r"seed-2 on .* 6 clips against 3"):
        evaluate_runs([runs / "mine"])


def test_saved_predictions_of_other_tasks_are_not_compared(runs: Path) -> None:
    with pytest.raises(AvelError, match="tasks that are not scored alike"):
        compare_runs([runs / "other"], [runs / "cml"])


def test_the_best_of_several_seeds_is_the_best_on_the_split_that_chose_the_epoch(runs: Path) -> None:
    for seed, accuracy in ((0, 0.5), (1, 0.75)):
        file = runs / "mine" / f"seed-{seed}" / "best.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"accuracy": accuracy}))
    assert best_seed(runs / "mine") == runs / "mine" / "seed-1"
    assert load(runs / "mine").source == runs / "mine" / "seed-1" / "best.json"
    assert best_seed(runs / "other") == runs / "other"
    (runs / "mine" / "seed-1" / "best.json").unlink()
    with pytest.raises(AvelError, match=r"seed-1/best.json has no accuracy"):
        load(runs / "mine")


def test_seeds_are_in_order_and_no_run_of_its_own_stands_among_them(runs: Path) -> None:
    mine = runs / "mine"
    for seed in (10, 2):
        (mine / f"seed-{seed}").mkdir()
    (mine / "seed-of-mine").mkdir()
    assert [folder.name for folder in seeds_of(mine)] == ["seed-0", "seed-1", "seed-2", "seed-10"]
    with pytest.raises(AvelError, match="holds runs of several seeds") as caught:
        evaluate(mine)
    assert "seed-0" in caught.value.do
    shutil.copy(runs / "other" / "run.json", mine)
    with pytest.raises(AvelError, match="is a run itself, and also holds 4 others"):
        seeds_of(mine)

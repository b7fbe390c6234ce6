"""Evaluation and the plain rivals: numbers against a count by hand, files that hold what they say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import CLASSES, write_store

from avel import cli
from avel.checkpoint import load
from avel.config import TrainConfig
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.evaluation import IOUS, Prediction, compare_runs, evaluate, floors, per_video, predict, score
from avel.rivals import fit_logistic, logistic_regression, nearest_class_mean
from avel.training import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_store(folder / "store", noise=0.2)
    train(
        TrainConfig(
            store=folder / "store",
            out=folder / "run",
            window=6,
            epochs=12,
            batch_size=4,
            options={"width": 16, "heads": 2},
            device="cpu",
            threads=1,
        )
    )
    return folder


def test_the_numbers_are_those_of_a_count_by_hand(folder: Path) -> None:
    scores = evaluate(folder / "run", "test")
    saved = np.load(folder / "run" / "predictions_test.npz")
    labels, predicted = saved["labels"].tolist(), saved["probabilities"].argmax(1).tolist()
    right = [truth == guess for truth, guess in zip(labels, predicted, strict=True)]
    assert scores["segment_accuracy"] == pytest.approx(sum(right) / len(right))
    assert scores["segments"] == len(labels) == saved["segments"].sum() == 6 * 6
    for index, name in enumerate([*CLASSES, "background"]):
        seconds = [good for truth, good in zip(labels, right, strict=True) if truth == index]
        assert scores["class_recall"][name] == pytest.approx(sum(seconds) / len(seconds))
    assert scores["floors"]["all background"] == pytest.approx(labels.count(3) / len(labels))
    assert np.sum(scores["confusion"]) == len(labels)
    assert saved["classes"].tolist() == [*CLASSES, "background"]
    assert np.allclose(saved["probabilities"].sum(1), 1, atol=1e-5)


def test_it_writes_what_it_returns_and_draws_it(folder: Path) -> None:
    scores = evaluate(folder / "run", "val")
    assert json.loads((folder / "run" / "evaluation_val.json").read_text()) == scores
    assert scores["selected_on"] == "val" and len(scores["weights_sha256"]) == 64
    for name in ("curves", "confusion_val", "classes_val"):
        assert (folder / "run" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_perfect_prediction_scores_one(folder: Path) -> None:
    store = open_store(folder / "store")
    predictions = predict(load(folder / "run"), store, store.split("test"))
    perfect = [
        type(each)(each.clip, each.labels, np.eye(4, dtype=np.float32)[each.labels], None) for each in predictions
    ]
    scores = score(perfect, store)
    assert scores["segment_accuracy"] == scores["event_f1"] == 1.0
    assert all(value == 1.0 for value in scores["class_recall"].values())


def test_no_such_split_names_those_there_are(folder: Path) -> None:
    with pytest.raises(AvelError, match="train, val, test"):
        evaluate(folder / "run", "dev")


def test_a_store_by_another_extractor_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", tag="other-111111111111")
    with pytest.raises(AvelError, match="other-111111111111") as error:
        predict(load(folder / "run"), store, [0])
    assert "made-000000000000" in str(error.value)


def test_a_store_that_is_gone_or_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["store"] = str(tmp_path / "copy" / "store")
    (run / "run.json").write_text(json.dumps(facts))
    evaluate(run, "test")
    shutil.rmtree(tmp_path / "copy" / "store")
    write_store(tmp_path / "copy" / "store", seed=1)
    with pytest.raises(AvelError, match="has changed since"):
        evaluate(run, "test")
    shutil.rmtree(tmp_path / "copy" / "store")
    with pytest.raises(AvelError, match="no feature store"):
        evaluate(run, "test")


def test_a_run_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="no checkpoint"):
        evaluate(tmp_path, "test")


def test_the_interval_holds_the_accuracy_and_the_curve_falls(folder: Path) -> None:
    scores = evaluate(folder / "run", "test")
    low, high = scores["interval_95"]
    assert 0 <= low <= scores["segment_accuracy"] <= high <= 1 and low < high
    curve = list(scores["event_f1_curve"].values())
    assert list(scores["event_f1_curve"]) == [f"{iou:.1f}" for iou in IOUS]
    assert curve == sorted(curve, reverse=True)
    assert scores["event_f1_curve"]["0.5"] == scores["event_f1"]
    assert scores["without_shared_videos"] is None and scores["data"] == ""
    assert (folder / "run" / "plots" / "events_test.png").read_bytes().startswith(b"\x89PNG")


def made_up(clip: int, labels: list[int], answers: list[int]) -> Prediction:
    return Prediction(clip, np.array(labels), np.eye(4, dtype=np.float32)[answers], None)


def test_right_segments_are_counted_per_clip() -> None:
    predictions = [made_up(0, [0, 0, 3], [0, 1, 3]), made_up(1, [2], [2])]
    correct, counted = per_video(predictions)
    assert correct.tolist() == [2, 1] and counted.tolist() == [3, 1]


def saved_run(folder: Path, answers: list[list[int]], truth: list[list[int]], clips: list[str]) -> Path:
    """The predictions that `evaluate` saves, of clips of any length."""
    folder.mkdir()
    np.savez(
        folder / "predictions_test.npz",
        clip=np.array(clips),
        segments=np.array([len(row) for row in truth]),
        labels=np.concatenate(truth),
        probabilities=np.eye(4)[np.concatenate(answers)],
    )
    return folder


def test_two_runs_are_compared_clip_by_clip(tmp_path: Path) -> None:
    truth, clips = [[0, 0, 3], [1, 1], [2, 3, 3, 3]], ["a", "b", "c"]
    wrong = [[1, 0, 3], [1, 0], [2, 3, 3, 0]]
    right = saved_run(tmp_path / "right", truth, truth, clips)
    others = [saved_run(tmp_path / name, wrong, truth, clips) for name in ("seed-0", "seed-1")]
    interval, videos = compare_runs([right], others)
    assert interval.value == pytest.approx(3 / 9) and videos == 3
    assert interval.low == pytest.approx(1 / 4) and interval.high == pytest.approx(1 / 2)  # clip c alone, clip b alone
    assert compare_runs(others, [right])[0].value == pytest.approx(-3 / 9)
    other_clips = saved_run(tmp_path / "other", truth, truth, ["a", "b", "d"])
    with pytest.raises(AvelError, match="other clips"):
        compare_runs([right], [other_clips])
    with pytest.raises(AvelError, match=r"no predictions_val.npz"):
        compare_runs([right], others, "val")


def test_the_command_line_compares_and_prints_floors(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = str(folder / "run")
    assert cli.main(["evaluate", run, "--against", run]) == 0
    said = capsys.readouterr().out
    assert "+0.0000, 95% of resampled videos and seeds in [+0.0000, +0.0000] over 6 clips: no difference seen" in said
    assert "event F1 at IoU 0.5" in said and "95% of resampled videos in [" in said
    for path in (run, str(folder / "store")):
        assert cli.main(["evaluate", path, "--floors"]) == 0
        said = capsys.readouterr().out
        expected = floors(folder / "store")
        assert f"{100 * expected.segment['all background']:.2f}" in said and "most frequent start per length" in said
    assert cli.main(["evaluate", str(folder / "none"), "--floors"]) == 2
    assert cli.main(["evaluate", run, "--floors", "--split", "dev"]) == 2
    assert "train, val, test" in capsys.readouterr().err


def test_the_floors_of_a_store_against_a_count_by_hand(folder: Path) -> None:
    store = open_store(folder / "store")
    found = floors(folder / "store", "val")
    labels = [store.labels(index).tolist() for index in store.split("val")]
    assert found.segment["all background"] == sum(row.count(3) for row in labels) / (6 * len(labels))
    lengths = [6 - row.count(3) for row in labels]
    partial = [row for row, length in zip(labels, lengths, strict=True) if 0 < length < 6]
    assert found.windows_counted == len(partial) and found.windows_split == "val"
    assert found.windows["first window"] == pytest.approx(sum(row[0] != 3 for row in partial) / len(partial))


# --- rivals ---------------------------------------------------------------------------------------------------------


def test_nearest_class_mean_is_background_unless_both_streams_agree(tmp_path: Path) -> None:
    store = write_store(tmp_path, noise=0.05, clips=48)
    truth = np.concatenate([store.labels(index).numpy() for index in store.split("test")])
    assert (nearest_class_mean(store, "test") == truth).mean() > 0.95
    deaf = _with_audio_of_another_class(store)
    assert (nearest_class_mean(deaf, "test") == len(CLASSES)).all(), "the streams never agree on an event"


def _with_audio_of_another_class(store: Store) -> Store:
    """The same store, but what is heard in the test clips is always the next class."""

    class Deaf:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def audio(self, index: int) -> torch.Tensor:
            audio = store.audio(index).clone()
            if index in store.split("test"):
                audio[:, :3] = audio[:, :3].roll(1, dims=1)
                audio[store.labels(index) == 3, 1] += 2  # and something is heard where nothing happens
            return audio

    return Deaf()  # type: ignore[return-value]


def test_logistic_regression_learns_and_chooses_on_validation(tmp_path: Path) -> None:
    store = write_store(tmp_path, noise=0.2, clips=48)
    truth = np.concatenate([store.labels(index).numpy() for index in store.split("test")])
    assert (logistic_regression(store, "test") == truth).mean() > 0.9


def test_the_logistic_fit_is_at_the_minimum() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=random)
    labels = (features[:, 0] > 0).long() + (features[:, 1] > 1).long()
    weights = fit_logistic(features, labels, 3, 0.01).double().requires_grad_()
    probabilities = (features.double() @ weights[:-1] + weights[-1]).softmax(1)
    loss = -probabilities[torch.arange(60), labels].log().mean() + 0.01 * weights[:-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-4

"""Evaluation and the plain rivals: numbers against a count by hand, files that hold what they say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import CLASSES, write_store

from avel.checkpoint import load
from avel.config import TrainConfig
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.evaluation import evaluate, predict, score
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

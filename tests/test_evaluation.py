"""Evaluation and the plain classifiers: numbers against a count by hand, files that hold what they say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import CLASSES, write_store

from avel import cli
from avel.baselines import fit_logistic, logistic_regression, nearest_class_mean
from avel.checkpoint import load
from avel.cml import DIRECTIONS, MODES
from avel.comparison import compare_runs
from avel.config import TrainConfig
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.evaluation import IOUS, Prediction, baselines, choose_threshold, evaluate, per_video, predict, score
from avel.localization import localize
from avel.metrics import locate, partial_event
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
    assert scores["baselines"]["all background"] == pytest.approx(labels.count(3) / len(labels))
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


def test_clips_predicted_together_are_as_each_alone_and_in_the_order_asked(tmp_path: Path, folder: Path) -> None:
    store = write_store(tmp_path / "store", segments=(6, 9, 4), noise=0.2)
    model = load(folder / "run")
    clips = [5, 0, 1, 2, 7, 4, 3]
    together = predict(model, store, clips)
    assert [prediction.clip for prediction in together] == clips
    for prediction in together:
        (alone,) = predict(model, store, [prediction.clip])
        assert np.allclose(prediction.probabilities, alone.probabilities, atol=1e-6)
        assert prediction.attention is not None and alone.attention is not None
        assert np.allclose(prediction.attention, alone.attention, atol=1e-6)
        assert len(prediction.probabilities) == store.clips[prediction.clip].segments


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
    with pytest.raises(AvelError, match=f"is not at {tmp_path / 'copy' / 'store'}") as error:
        evaluate(run, "test")
    assert "--store" in error.value.do


def moved(folder: Path, to: Path) -> Path:
    """A copy of the run and its store in another place; the old place is no longer known to the run."""
    shutil.copytree(folder, to)
    facts = json.loads((to / "run" / "run.json").read_text())
    facts["config"] |= {"store": "/gone/project/store", "out": "/gone/project/run"}
    (to / "run" / "run.json").write_text(json.dumps(facts))
    return to


def test_run_and_store_are_found_after_they_were_moved_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)
    new = moved(folder, tmp_path / "new")
    scores = evaluate(new / "run", "test")
    monkeypatch.chdir(new / "run")
    assert evaluate(".", "test")["segment_accuracy"] == scores["segment_accuracy"]
    assert baselines(".").clips == scores["clips"]


def test_a_store_that_was_moved_alone_is_named_by_an_option(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)
    new = moved(folder, tmp_path / "new")
    shutil.move(new / "store", tmp_path / "elsewhere")
    words = ["evaluate", str(new / "run")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"is not at /gone/project/store, nor at {new / 'store'}" in said and "--store STORE" in said
    for more in ([], ["--baselines"]):
        assert cli.main([*words, *more, "--store", str(tmp_path / "elsewhere")]) == 0
    write_store(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert cli.main([*words, "--store", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    checksums = [open_store(tmp_path / name).checksum[:12] for name in ("other", "elsewhere")]
    assert f"{tmp_path / 'other'} is not the store of" in said and all(checksum in said for checksum in checksums)
    assert cli.main([*words, "--store", str(tmp_path / "nowhere")]) == 2
    assert "no feature store in" in capsys.readouterr().err


def test_a_run_of_an_older_version_names_its_store_from_where_training_began(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)
    new = moved(folder, tmp_path / "new")
    facts = json.loads((new / "run" / "run.json").read_text())
    facts["config"] |= {"store": "store", "out": "run"}
    (new / "run" / "run.json").write_text(json.dumps(facts))
    write_store(tmp_path / "store", seed=1)  # another one of that name, where the command runs
    monkeypatch.chdir(tmp_path)
    assert evaluate("new/run", "test")["clips"] == 6
    monkeypatch.chdir(new)
    assert evaluate("run", "test")["clips"] == 6


def test_a_training_that_was_moved_goes_on_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    write_store(Path("store"))
    settings = {"window": 6, "options": {"width": 8, "heads": 1}, "device": "cpu", "threads": 1}
    train(TrainConfig("store", "run", epochs=1, **settings))  # type: ignore[arg-type]
    known = json.loads(Path("run/run.json").read_text())["config"]
    assert (known["store"], known["out"]) == (str(tmp_path / "old" / "store"), str(tmp_path / "old" / "run"))
    monkeypatch.chdir(tmp_path)
    assert evaluate("old/run")["clips"] == 6
    shutil.move("old/run", "run")
    shutil.move("old/store", "features")
    run = train(TrainConfig("features", "run", epochs=2, **settings))  # type: ignore[arg-type]
    assert [line["epoch"] for line in run.metrics] == [1, 2]
    monkeypatch.chdir("/")
    assert evaluate(tmp_path / "run")["clips"] == 6


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


def test_of_thresholds_that_do_equally_well_the_lowest_is_chosen(tmp_path: Path) -> None:
    store = write_store(tmp_path, clips=1)
    labels = store.labels(0).numpy()
    true = np.flatnonzero(labels == 0)
    (false,) = [place for place in (0, 5) if labels[place] == 3][:1]
    probabilities = np.eye(4)[labels]
    probabilities[true] = [0.96, 0, 0, 0.04]

    def chosen(wrong: float) -> float:
        """With an event of another class that is not there, of that score."""
        probabilities[false] = [0, wrong, (1 - wrong) / 2, (1 - wrong) / 2]
        return choose_threshold([Prediction(0, labels, probabilities, None)], store, min_seconds=0)

    assert chosen(0.35) == 0.4  # 0.4 to 0.9 all find what is there and nothing else
    assert chosen(0.85) == 0.9
    assert chosen(0.99) == 0.0  # from 0 to 0.9 all are wrong in the same way


def saved_run(folder: Path, answers: list[list[int]], truth: list[list[int]], clips: list[str]) -> Path:
    """The predictions that `evaluate` saves, of clips of any length."""
    folder.mkdir()
    np.savez(
        folder / "predictions_test.npz",
        clip=np.array(clips),
        segments=np.array([len(row) for row in truth]),
        labels=np.concatenate(truth),
        probabilities=np.eye(4)[np.concatenate(answers)],
        classes=np.array(["bell", "dog", "cat", "background"]),
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


def test_the_command_line_compares_and_prints_trivial_baselines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = str(folder / "run")
    assert cli.main(["evaluate", run, "--against", run]) == 0
    said = capsys.readouterr().out
    assert "+0.0000, 95% of resampled videos and seeds in [+0.0000, +0.0000] over 6 clips: no difference seen" in said
    assert "event F1 at IoU 0.5" in said and "95% of resampled videos in [" in said
    for path in (run, str(folder / "store")):
        assert cli.main(["evaluate", path, "--baselines"]) == 0
        said = capsys.readouterr().out
        expected = baselines(folder / "store")
        assert f"{100 * expected.segment['all background']:.2f}" in said and "most frequent start per length" in said
    assert cli.main(["evaluate", str(folder / "none"), "--baselines"]) == 2
    assert cli.main(["evaluate", run, "--baselines", "--split", "dev"]) == 2
    assert "train, val, test" in capsys.readouterr().err


def test_the_baselines_of_a_store_against_a_count_by_hand(folder: Path) -> None:
    store = open_store(folder / "store")
    found = baselines(folder / "store", "val")
    labels = [store.labels(index).tolist() for index in store.split("val")]
    assert found.segment["all background"] == sum(row.count(3) for row in labels) / (6 * len(labels))
    lengths = [6 - row.count(3) for row in labels]
    partial = [row for row, length in zip(labels, lengths, strict=True) if 0 < length < 6]
    assert found.windows_counted == len(partial) and found.windows_split == "val"
    assert found.windows["first window"] == pytest.approx(sum(row[0] != 3 for row in partial) / len(partial))


# --- cross-modality localization ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def localized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and runs of task cml, trained in both modes."""
    folder = tmp_path_factory.mktemp("cml")
    write_store(folder / "store", noise=0.2)
    for mode in MODES:
        train(
            TrainConfig(
                store=folder / "store",
                out=folder / mode,
                task="cml",
                cml_mode=mode,
                window=6,
                epochs=3,
                batch_size=4,
                options={"width": 16, "heads": 2},
                device="cpu",
                threads=1,
            )
        )
    return folder


@pytest.mark.parametrize("trained", MODES)
def test_both_modes_of_cml_are_those_of_a_count_one_clip_at_a_time(localized: Path, trained: str) -> None:
    scores = evaluate(localized / trained, "test")
    assert scores["trained_mode"] == trained and scores["task"] == "cml"
    store, model = open_store(localized / "store"), load(localized / trained)
    found: dict[str, list[bool]] = {f"{mode}_{direction}": [] for mode in MODES for direction in DIRECTIONS}
    lengths = []
    for index in store.split("test"):
        event = partial_event(store.labels(index).numpy() < len(CLASSES))
        if event is None:
            continue
        start, length = event
        lengths.append(length)
        audio, visual = store.audio(index)[None], store.visual(index)[None]
        part = slice(start, start + length)
        with torch.no_grad():
            joint = model.network(audio, visual).distance[0].numpy()
            asked_with_sound = model.network(audio[:, part], visual).distance[0].numpy()
            asked_with_sight = model.network(audio, visual[:, part]).distance[0].numpy()
        found["joint_a2v"].append(locate(joint[:, part]) == start)
        found["joint_v2a"].append(locate(joint[part].T) == start)
        found["strict_a2v"].append(locate(asked_with_sound) == start)
        found["strict_v2a"].append(locate(asked_with_sight.T) == start)
    saved = np.load(localized / trained / "predictions_test.npz")
    for mode in MODES:
        for direction in DIRECTIONS:
            expected = found[f"{mode}_{direction}"]
            assert saved[f"{mode}_{direction}"].tolist() == expected
            assert scores[mode][direction] == pytest.approx(np.mean(expected))
        assert scores[mode]["mean"] == pytest.approx(np.mean([scores[mode][direction] for direction in DIRECTIONS]))
        low, high = scores[mode]["interval_95"]
        assert low <= scores[mode]["mean"] <= high
        events_of = {int(length): row["events"] for length, row in scores[mode]["by_length"].items()}
        assert events_of == {length: lengths.count(length) for length in set(lengths)}
        assert all(row["uniform"] == 1 / (7 - int(length)) for length, row in scores[mode]["by_length"].items())
    assert scores["events"] == len(lengths) and scores["baselines"] == baselines(localized / "store").windows
    pictures = {file.name for file in (localized / trained / "plots").iterdir()}
    assert pictures == {"curves.png", "events_test.png"}
    assert json.loads((localized / trained / "evaluation_test.json").read_text()) == scores


def test_runs_of_cml_are_compared_each_in_the_mode_it_was_trained_in(localized: Path) -> None:
    scores = {mode: evaluate(localized / mode, "test") for mode in MODES}
    interval, videos = compare_runs([localized / "joint"], [localized / "strict"])
    assert videos == scores["joint"]["events"]
    assert interval.value == pytest.approx(scores["joint"]["joint"]["mean"] - scores["strict"]["strict"]["mean"])


def test_the_command_line_prints_both_modes_and_the_trivial_baselines(
    localized: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["evaluate", str(localized / "strict")]) == 0
    said = capsys.readouterr().out
    for words in ("joint A2V", "strict V2A", "trained strict", "trivial baseline, most frequent start per length"):
        assert words in said


def test_a_model_for_cml_says_nothing_of_segments(localized: Path) -> None:
    store, model = open_store(localized / "store"), load(localized / "joint")
    for use in (lambda: predict(model, store, [0]), lambda: localize(localized / "no.mp4", model)):
        with pytest.raises(AvelError, match="task cml") as caught:
            use()
        assert "full or weak" in caught.value.expected


# --- plain classifiers ----------------------------------------------------------------------------------------------


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

"""Scoring a checkpoint on a split: numbers, predictions and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avel.baselines import segment_baselines, window_baselines
from avel.checkpoint import LoadedModel, load
from avel.cml import DIRECTIONS, MODES, events, located, located_baselines
from avel.data.labels import refuse_background
from avel.data.loader import Windows, task_split
from avel.data.splits import BACKGROUND_SPLIT
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.files import check_folder, file_sha256, is_missing, make_folder, refuse_foreign_json, replacing, write_file
from avel.inference import device_of
from avel.localization import find_events, localize_features
from avel.metrics import (
    EventCounts,
    bootstrap_interval,
    class_recall,
    confusion,
    event_counts,
    event_curve,
    event_f1,
    labels_of,
    segment_accuracy,
)
from avel.plots import class_bars, confusion_picture, event_curves, localized_events, training_curves
from avel.reading import read_arrays
from avel.runs import RunFacts, read_metrics, run_facts, store_of
from avel.types import BACKGROUND, Progress

CLIPS_AT_ONCE = 32
IOU = 0.5
IOUS = tuple(tenth / 10 for tenth in range(1, 10))


@dataclass(frozen=True)
class Prediction:
    """A model's predictions for one clip of a store, with the true labels.

    Attributes:
        clip: index in the store.
        labels: (T,) int64, the true labels.
        probabilities: (T, C+1) float32.
        attention: (T, H, W) float32 or None.
    """

    clip: int
    labels: np.ndarray
    probabilities: np.ndarray
    attention: np.ndarray | None


def predict(
    model: LoadedModel, store: Store, clips: Sequence[int], *, progress: Progress | None = None
) -> list[Prediction]:
    """Predict every segment of the clips, each clip at its own length. No clip may come twice.

    Raises:
        AvelError: the store's features come from other extractors than the model's, its classes differ, or a clip has
            no valid audio.
    """
    _check_features(model, store)
    store.require_audio(clips)
    lengths: dict[int, list[int]] = {}
    for index in clips:
        lengths.setdefault(store.clips[index].segments, []).append(index)
    done: dict[int, Prediction] = {}
    # Clips of one length share a batch: with one clip per call, the calls would take most of the time.
    for same in lengths.values():
        for first in range(0, len(same), CLIPS_AT_ONCE):
            if progress:
                progress("predict", len(done), len(clips))
            batch = same[first : first + CLIPS_AT_ONCE]
            audio = torch.stack([store.audio(index) for index in batch])
            visual = torch.stack([store.visual(index) for index in batch])
            probabilities, attention = localize_features(audio, visual, model)
            for place, index in enumerate(batch):
                weights = None if attention is None else attention[place]
                done[index] = Prediction(index, store.labels(index).numpy(), probabilities[place], weights)
    if progress:
        progress("predict", len(clips), len(clips))
    return [done[index] for index in clips]


def _check_features(model: LoadedModel, store: Store) -> None:
    for kind, wanted in model.extractors.items():
        if store.extractors[kind]["tag"] != wanted["tag"]:
            raise AvelError(
                f"the {kind} features of {store.path} come from {store.extractors[kind]['tag']}",
                f"features from {wanted['tag']}, which {model.source} was trained on",
                "extract the clips again with the model's extractor, or evaluate a model trained on this store",
            )
    shape = (store.audio_dim, *store.grid, store.visual_dim)
    if shape != model.shape:
        raise AvelError(
            f"the features of {store.path} have (Da, H, W, Dv) = {shape}",
            f"{model.shape}, as {model.source} takes",
            "evaluate on the store that the model was trained on",
        )
    if store.classes != model.classes:
        raise AvelError(
            f"{store.path} has the classes {', '.join(store.classes)}",
            f"the classes of {model.source}: {', '.join(model.classes)}",
            "evaluate on a store whose CSV names the same classes in the same order",
        )


def score(predictions: Sequence[Prediction], store: Store) -> dict[str, Any]:
    """Score predictions: segment accuracy with its interval, recall per class, confusion, event F1.

    Event F1 compares with the annotated spans in seconds, so events shorter than a segment count, too. If clips share a
    video with a training clip, as eight of AVE's test clips do, the accuracy without them is also given.
    """
    num_classes = len(store.classes)
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    curve = [EventCounts() for _ in IOUS]
    events = EventCounts()
    correct, counted = per_video(predictions)
    for prediction in predictions:
        clip = store.clips[prediction.clip]
        counts += confusion(prediction.labels, labels_of(prediction.probabilities), num_classes)
        found = find_events(prediction.probabilities, store.classes, store.segment_seconds, clip.duration)
        events += event_counts(clip.spans or (), found, IOU)
        curve = [a + b for a, b in zip(curve, event_curve(clip.spans or (), found, IOUS), strict=True)]
    recall = class_recall(counts)
    names = (*store.classes, BACKGROUND)
    interval = bootstrap_interval(correct, counted)
    return {
        "clips": len(predictions),
        "segments": int(counts.sum()),
        "segment_accuracy": segment_accuracy(counts),
        "interval_95": [interval.low, interval.high],
        "without_shared_videos": _without_shared(predictions, store),
        "event_f1": event_f1(events),
        "event_iou": IOU,
        "event_f1_curve": {f"{iou:.1f}": event_f1(at) for iou, at in zip(IOUS, curve, strict=True)},
        "class_recall": {
            name: None if np.isnan(value) else float(value) for name, value in zip(names, recall, strict=True)
        },
        "baselines": segment_baselines([prediction.labels for prediction in predictions], num_classes),
        "confusion": counts.tolist(),
    }


def per_video(predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) correct segments of each clip, and (N,) its segments."""
    right = [int((labels_of(each.probabilities) == each.labels).sum()) for each in predictions]
    return np.array(right), np.array([len(each.labels) for each in predictions])


def _without_shared(predictions: Sequence[Prediction], store: Store) -> dict[str, Any] | None:
    """Accuracy without the clips whose video is also in training, under another annotation; None if there are none."""
    asked = {prediction.clip for prediction in predictions}
    trained = {clip.video for index, clip in enumerate(store.clips) if "train" in clip.splits and index not in asked}
    shared = sorted({store.clips[index].video for index in asked} & trained)
    if not shared:
        return None
    kept = [each for each in predictions if store.clips[each.clip].video not in trained]
    correct, counted = per_video(kept)
    return {"videos": shared, "clips": len(kept), "segment_accuracy": float(correct.sum() / counted.sum())}


@dataclass(frozen=True)
class BaselineTable:
    """The scores of the trivial baselines on a split.

    Attributes:
        split: name of the split.
        origin: what the data are; "" for the user's own clips.
        clips: number of clips in the split.
        segment: name -> segment accuracy, 0 to 1.
        windows_split: the split for cross-modality localization: the ``_match`` split, if there is one.
        windows: name -> accuracy of cross-modality localization, 0 to 1, the same in both directions.
        windows_counted: number of clips with one event shorter than the clip.
    """

    split: str
    origin: str
    clips: int
    segment: dict[str, float]
    windows_split: str
    windows: dict[str, float]
    windows_counted: int


def baselines(path: str | Path, split: str = "test", *, store: str | Path | None = None) -> BaselineTable:
    """Compute the trivial baselines of a split, from labels alone.

    Args:
        path: a feature store, a run folder, or a folder with AVE's Annotations.txt and order files.
        split: train, val or test; for cross-modality localization its ``_match`` counterpart, if there is one.
        store: where the store of a run is now, as in `evaluate`.

    Raises:
        AvelError: the path is none of these, has no such split, or the split has no event.
    """
    path = Path(path)
    if os.path.isfile(path / "Annotations.txt") and is_missing(path / "store.json"):
        from avel.data.ave.files import CLASSES, full_labels
        from avel.data.ave.survey import survey

        found = survey(path)
        every = full_labels(found.annotations)
        labels = {name: [every[row] for row in order.tolist()] for name, order in found.splits.items()}
        num_classes, origin = len(CLASSES), found.origin
    else:
        if not is_missing(path / "run.json"):
            opened = store_of(path, run_facts(path), store)
            path = opened.path
        else:
            opened = open_store(path)
        labels = {name: [opened.labels(index).numpy() for index in opened.split(name)] for name in opened.splits()}
        num_classes, origin = len(opened.classes), opened.origin
    if split not in labels:
        there = ", ".join(labels) or "none"
        raise AvelError(f"{path} has no split {split!r}", f"one of its splits: {there}", "name another --split")
    refuse_background(f"split {split} of {path}", labels[split], num_classes)
    match = f"{split}_match" if f"{split}_match" in labels else split
    trained = "train_match" if match.endswith("_match") else "train"
    masks = {name: [row < num_classes for row in labels.get(name, [])] for name in (trained, match)}
    windows = window_baselines(masks[trained], masks[match])
    return BaselineTable(
        split=split,
        origin=origin,
        clips=len(labels[split]),
        segment=segment_baselines(labels[split], num_classes),
        windows_split=match,
        windows=windows.values,
        windows_counted=windows.counted,
    )


def read_predictions(run: Path, split: str) -> dict[str, np.ndarray]:
    """Read the predictions that `evaluate` saved: ``clip`` (N,), and arrays that depend on the task.

    In tasks full and weak, with S segments in all: ``segments`` (N,), ``labels`` (S,), ``probabilities`` (S, C+1) and
    ``classes`` (C+1,). In task cml: ``start`` and ``length`` (N,), a bool (N,) for every mode and direction, and
    ``trained_mode``.

    Raises:
        AvelError: there are none for this split, or the file is damaged.
    """
    file = run / f"predictions_{split}.npz"
    do = f"run `avel evaluate {run} --split {split}` again"
    try:
        saved = read_arrays(file, run)
    except FileNotFoundError:
        raise AvelError(
            f"no {file.name} in {run}", "predictions of both runs on the same split", do.removesuffix("again") + "first"
        ) from None
    number = len(saved["clip"]) if saved.get("clip", np.array(0)).ndim == 1 else 0
    if "probabilities" in saved:
        segments = saved.get("segments", np.array([]))
        whole = segments.dtype == np.int64 and segments.ndim == 1 and bool((segments > 0).all())
        total = sum(segments.tolist()) if whole else 0
        width = saved["classes"].size if "classes" in saved else 0
        wanted = {
            "clip": ("U", (number,)),
            "segments": ("i", (number,)),
            "labels": ("i", (total,)),
            "probabilities": ("f", (total, width)),
            "classes": ("U", (width,)),
        }
    else:
        wanted = {"clip": ("U", (number,)), "start": ("i", (number,)), "length": ("i", (number,))}
        wanted |= {f"{mode}_{direction}": ("b", (number,)) for mode in MODES for direction in DIRECTIONS}
        wanted["trained_mode"] = ("U", ())
    found = {name: (array.dtype.kind, array.shape) for name, array in saved.items()}
    sound = number > 0 and found == wanted
    if sound and "probabilities" in saved:
        sound = bool(np.isfinite(saved["probabilities"]).all())
    elif sound:
        sound = str(saved["trained_mode"]) in MODES
    if not sound:
        raise AvelError(f"{file} is damaged: its arrays do not match each other", "the file that avel wrote", do)
    return saved


def choose_threshold(predictions: Sequence[Prediction], store: Store, *, min_seconds: float) -> float:
    """The threshold among 0, 0.1, ... 0.9 with the best event F1 at IoU 0.5 on these predictions (ties: the lowest).

    Use predictions on the validation split: a threshold chosen on test would inflate the scores on test.
    """

    def f1(threshold: float) -> float:
        events = EventCounts()
        for prediction in predictions:
            clip = store.clips[prediction.clip]
            found = find_events(
                prediction.probabilities,
                store.classes,
                store.segment_seconds,
                clip.duration,
                threshold=threshold,
                min_seconds=min_seconds,
            )
            events += event_counts(clip.spans or (), found, IOU)
        return event_f1(events)

    return max((tenth / 10 for tenth in range(10)), key=f1)


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready to be scored on a split.

    Attributes:
        folder: the run folder.
        model: its best checkpoint.
        facts: the content of its ``run.json``.
        store: the store it was trained on, unchanged.
        clips: the clips of the split, for its task.
    """

    folder: Path
    model: LoadedModel
    facts: RunFacts
    store: Store
    clips: list[int]


def open_run(run: str | Path, split: str, device: str, place: str | Path | None = None) -> OpenRun:
    """Load and check all that scoring a run needs, before anything is computed; ``place`` is where its store is now.

    Raises:
        AvelError: as in `evaluate`.
    """
    run = Path(run)
    facts = run_facts(run)
    model = load(run, device)
    store = store_of(run, facts, place)
    clips = task_split(store, split, model.task)
    _check_features(model, store)
    store.require_audio(clips)
    if model.task == "cml" and not events(Windows(store, clips, model.window)):
        raise AvelError(
            f"no clip of split {split} in {store.path} has one event shorter than the clip",
            "events that begin or end inside a clip",
            "evaluate on another split",
        )
    if split != BACKGROUND_SPLIT:  # which has no events: it shows false alarms
        refuse_background(
            f"split {split} of {store.path}", (store.labels(index).numpy() for index in clips), len(store.classes)
        )
    check_folder(run)
    refuse_foreign_json(run / f"evaluation_{split}.json", {"run", "split"})
    if (run / "plots").is_symlink():
        raise AvelError(
            f"{run / 'plots'} is a link", "a folder, so that the run holds all its files", "delete the link"
        )
    return OpenRun(run, model, facts, store, clips)


def evaluate(
    run: str | Path,
    split: str = "test",
    *,
    store: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run's best checkpoint on a split of the store that it was trained on.

    Writes ``evaluation_<split>.json``, ``predictions_<split>.npz`` and pictures under ``plots/`` into the run folder.

    Args:
        run: the folder of one seed that `avel train` wrote; nothing else is needed.
        split: train, val or test.
        store: where that store is now; None tries its recorded path, and then the same path relative to the run.
        device: where the network runs: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes a GPU if there is one.

    Returns:
        The content of ``evaluation_<split>.json``.

    Raises:
        AvelError: there is no checkpoint, the store is missing or has changed, it has no such split, the split has no
            event that the task looks for, or there is no such device.
    """
    return score_run(open_run(run, split, device, store), split, progress=progress)


def score_run(opened: OpenRun, split: str, *, progress: Progress | None = None) -> dict[str, Any]:
    """As `evaluate`, for a run that is already open."""
    run, model, facts, store = opened.folder, opened.model, opened.facts, opened.store
    about = {
        "run": str(run),
        "model": model.name,
        "task": model.task,
        "split": split,
        "data": store.origin,
        "selected_on": facts.settings().selected_on,
        "seed": facts.seed,
        "commit": facts.commit,
        "machine": facts.machine,
        "device": str(device_of(model.network)),
        "weights_sha256": file_sha256(model.source.with_suffix(".safetensors")),
    }
    scores, saved = _cml(opened, progress) if model.task == "cml" else _segments(opened, progress)
    scores = {**about, **scores}
    # Predictions first: if killed in between, the old scores name other weights, and a comparison notices.
    with replacing(run / f"predictions_{split}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **saved)
    write_file(run / f"evaluation_{split}.json", json.dumps(scores, indent=1))
    make_folder(run / "plots")
    draw(run, scores, (*store.classes, BACKGROUND))
    return scores


Evaluated = tuple[dict[str, Any], dict[str, np.ndarray]]


def _segments(opened: OpenRun, progress: Progress | None) -> Evaluated:
    """Tasks full and weak: the scores, and every segment's probabilities."""
    store = opened.store
    predictions = predict(opened.model, store, opened.clips, progress=progress)
    saved = {
        "clip": np.array([store.clips[prediction.clip].id for prediction in predictions]),
        "segments": np.array([len(prediction.labels) for prediction in predictions]),
        "labels": np.concatenate([prediction.labels for prediction in predictions]),
        "probabilities": np.concatenate([prediction.probabilities for prediction in predictions]),
        "classes": np.array([*store.classes, BACKGROUND]),
    }
    return score(predictions, store), saved


def _cml(opened: OpenRun, progress: Progress | None) -> Evaluated:
    """Task cml: the scores of both directions in both modes, whichever was trained, and which events were found."""
    model, store, clips, settings = opened.model, opened.store, opened.clips, opened.facts.settings()
    windows = Windows(store, clips, model.window)
    windows.serve(device_of(model.network), resident=False)
    asked = events(windows)

    found = {}
    for done, mode in enumerate(MODES):
        if progress:
            progress("predict", done, len(MODES))
        found[mode] = located(model.network, windows, mode, batch_size=settings.batch_size, streams=model.streams)
    if progress:
        progress("predict", len(MODES), len(MODES))
    trained = Windows(store, task_split(store, "train", "cml"), model.window)
    lengths = np.array([length for _, length in asked.values()])
    scores: dict[str, Any] = {"clips": len(clips), "events": len(asked), "trained_mode": settings.cml_mode}
    for mode in MODES:
        right = {direction: found[mode][direction] for direction in DIRECTIONS}
        both = np.sum([*right.values()], axis=0)
        interval = bootstrap_interval(both, np.full(len(asked), 2))
        scores[mode] = {direction: float(hits.mean()) for direction, hits in right.items()}
        scores[mode] |= {
            "mean": float(both.mean() / 2),
            "interval_95": [interval.low, interval.high],
            "by_length": {
                str(length): {direction: float(hits[lengths == length].mean()) for direction, hits in right.items()}
                | {"uniform": 1 / (model.window - length + 1), "events": int((lengths == length).sum())}
                for length in np.unique(lengths).tolist()
            },
        }
    scores["baselines"] = located_baselines(trained, windows).values
    saved = {
        "clip": np.array([store.clips[windows.items[index][0]].id for index in asked]),
        "start": np.array([start for start, _ in asked.values()]),
        "length": lengths,
        **{f"{mode}_{direction}": found[mode][direction] for mode in MODES for direction in DIRECTIONS},
        "trained_mode": np.array(settings.cml_mode),
    }
    return scores, saved


def draw(run: Path, scores: dict[str, Any], names: Sequence[str]) -> None:
    """Draw the training curves and the pictures for the run's task, under ``plots/``."""
    metrics = read_metrics(run)
    if metrics:
        training_curves(metrics, run / "plots" / "curves.png")
    if scores["task"] == "cml":
        localized_events(
            {mode: scores[mode]["by_length"] for mode in MODES}, run / "plots" / f"events_{scores['split']}.png"
        )
        return
    confusion_picture(np.array(scores["confusion"]), names, run / "plots" / f"confusion_{scores['split']}.png")
    recall = np.array([np.nan if value is None else value for value in scores["class_recall"].values()])
    class_bars({scores["model"]: recall}, names, run / "plots" / f"classes_{scores['split']}.png")
    event_curves({scores["model"]: scores["event_f1_curve"]}, run / "plots" / f"events_{scores['split']}.png")

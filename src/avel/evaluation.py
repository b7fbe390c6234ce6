"""A checkpoint and a split in, numbers, predictions and pictures out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avel.checkpoint import LoadedModel, file_sha256, load
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.files import replacing, write_file
from avel.localization import find_events, localize_features
from avel.metrics import EventCounts, class_recall, confusion, event_counts, event_f1, segment_accuracy
from avel.plots import class_bars, confusion_picture, training_curves
from avel.types import BACKGROUND, Progress

IOU = 0.5


@dataclass(frozen=True)
class Prediction:
    """What a model says about one clip of a store, beside the truth.

    Attributes:
        clip: index in the store.
        labels: (T,) int64, the truth.
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
    """Predict every segment of the clips, each clip at its own length.

    Raises:
        AvelError: the store's features come from other extractors than the model's, or its classes differ.
    """
    for kind, wanted in model.extractors.items():
        if store.extractors[kind]["tag"] != wanted["tag"]:
            raise AvelError(
                f"the {kind} features of {store.path} come from {store.extractors[kind]['tag']}",
                f"features from {wanted['tag']}, which {model.source} was trained on",
                "extract the clips again with the model's extractor, or evaluate a model trained on this store",
            )
    if store.classes != model.classes:
        raise AvelError(
            f"{store.path} has the classes {', '.join(store.classes)}",
            f"the classes of {model.source}: {', '.join(model.classes)}",
            "evaluate on a store whose CSV names the same classes in the same order",
        )
    predictions = []
    for done, index in enumerate(clips):
        if progress:
            progress("predict", done, len(clips))
        probabilities, attention = localize_features(store.audio(index), store.visual(index), model)
        predictions.append(Prediction(index, store.labels(index).numpy(), probabilities, attention))
    if progress:
        progress("predict", len(clips), len(clips))
    return predictions


def score(predictions: Sequence[Prediction], store: Store) -> dict[str, Any]:
    """The numbers of a set of predictions: segment accuracy, recall per class, confusion, event F1 at IoU 0.5.

    Event F1 compares with the annotated spans in seconds, so events shorter than a segment count too.
    """
    num_classes = len(store.classes)
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    events = EventCounts()
    for prediction in predictions:
        clip = store.clips[prediction.clip]
        counts += confusion(prediction.labels, prediction.probabilities.argmax(-1), num_classes)
        found = find_events(prediction.probabilities, store.classes, store.segment_seconds, clip.duration)
        events += event_counts(clip.spans or (), found, IOU)
    recall = class_recall(counts)
    names = (*store.classes, BACKGROUND)
    segments = int(counts.sum())
    return {
        "clips": len(predictions),
        "segments": segments,
        "segment_accuracy": segment_accuracy(counts),
        "event_f1": event_f1(events),
        "event_iou": IOU,
        "class_recall": {
            name: None if np.isnan(value) else float(value) for name, value in zip(names, recall, strict=True)
        },
        "floors": {
            "all background": float(counts[-1].sum() / segments),
            "most frequent label": float(counts.sum(1).max() / segments),
        },
        "confusion": counts.tolist(),
    }


def choose_threshold(predictions: Sequence[Prediction], store: Store, *, min_seconds: float) -> float:
    """The threshold of 0, 0.1, ... 0.9 with the best event F1 at IoU 0.5 on these predictions (ties: the lowest).

    Give it predictions on the validation split: chosen on test, the threshold would flatter every number after it.
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


def evaluate(run: str | Path, split: str = "test", *, progress: Progress | None = None) -> dict[str, Any]:
    """Score a run's best checkpoint on a split of the store that it was trained on.

    Writes ``evaluation_<split>.json``, ``predictions_<split>.npz`` and pictures under ``plots/`` into the run folder.

    Args:
        run: the folder that `avel train` wrote; nothing else is needed.
        split: train, val or test.

    Returns:
        The content of ``evaluation_<split>.json``.

    Raises:
        AvelError: no checkpoint there, the store is gone or has changed, or it has no such split.
    """
    run = Path(run)
    model = load(run)
    facts = json.loads((run / "run.json").read_text())
    store = open_store(facts["config"]["store"])
    if store.checksum != facts["store_checksum"]:
        raise AvelError(
            f"{store.path} has changed since {run} was trained on it",
            f"the store with checksum {facts['store_checksum'][:12]}...",
            "train again on the new store",
        )
    clips = store.split(split)
    predictions = predict(model, store, clips, progress=progress)
    scores = {
        "run": str(run),
        "model": model.name,
        "split": split,
        "selected_on": facts["config"]["select_on"],
        "seed": facts["seed"],
        "commit": facts["commit"],
        "machine": facts["machine"],
        "weights_sha256": file_sha256(model.source.with_suffix(".safetensors")),
        **score(predictions, store),
    }
    write_file(run / f"evaluation_{split}.json", json.dumps(scores, indent=1))
    with replacing(run / f"predictions_{split}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            clip=np.array([store.clips[prediction.clip].id for prediction in predictions]),
            segments=np.array([len(prediction.labels) for prediction in predictions]),
            labels=np.concatenate([prediction.labels for prediction in predictions]),
            probabilities=np.concatenate([prediction.probabilities for prediction in predictions]),
            classes=np.array([*store.classes, BACKGROUND]),
        )
    (run / "plots").mkdir(exist_ok=True)
    draw(run, scores, (*store.classes, BACKGROUND))
    return scores


def draw(run: Path, scores: dict[str, Any], names: Sequence[str]) -> None:
    """Curves, confusion matrix and bars per class of an evaluated run, under ``plots/``."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training_curves(metrics, run / "plots" / "curves.png")
    confusion_picture(np.array(scores["confusion"]), names, run / "plots" / f"confusion_{scores['split']}.png")
    recall = np.array([np.nan if value is None else value for value in scores["class_recall"].values()])
    class_bars({scores["model"]: recall}, names, run / "plots" / f"classes_{scores['split']}.png")

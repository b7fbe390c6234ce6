"""Baselines: what a model has to beat.

- Trivial baselines know only labels. Every table shows them; a model has to beat the highest of them to show that it
  found *when* events happen.
- Plain classifiers see each segment on its own: its audio feature (Da) and its visual feature averaged over
  the cells (Dv).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from avel.data.store import Store
from avel.metrics import confusion, partial_event, segment_accuracy

if TYPE_CHECKING:  # the trivial baselines need no torch
    import torch


_FULL_NAMES = {
    "right class everywhere": "right class everywhere (knows what, not when)",
    "uniform window": "random start",
    "first window": "first start",
    "last window": "last start",
}


def full_name(name: str) -> str:
    """The name of a trivial baseline for people to read; files keep the short name."""
    return _FULL_NAMES.get(name, name)


# --- trivial baselines ------------------------------------------------------------------------------------------------


def segment_baselines(labels: Iterable[npt.NDArray[np.integer]], num_classes: int) -> dict[str, float]:
    """Segment accuracy of two predictions that place no event in time; nan without segments.

    - ``all background``: nothing ever happens.
    - ``right class everywhere``: each video's most frequent event class in all its segments, background where it has no
      event. It knows what happens, but not when. Where events fill less than half of the segments, ``all background``
      can score more.

    Args:
        labels: (N, T), or one (T,) per video: class ids, background = C.
        num_classes: C.

    Returns:
        Shares from 0 to 1 by name.

    Raises:
        AvelError: an id is not in 0 .. C.
    """
    videos = [np.asarray(video) for video in labels]
    segments = np.concatenate(videos) if videos else np.empty(0, dtype=np.int64)
    silent = confusion(segments, np.full(segments.shape, num_classes), num_classes)
    right = 0
    for video in videos:
        events = video[video < num_classes]
        right += int(np.bincount(events).max()) if len(events) else len(video)
    return {
        "all background": segment_accuracy(silent),
        "right class everywhere": right / len(segments) if len(segments) else float("nan"),
    }


@dataclass(frozen=True)
class Baselines:
    """Trivial baselines by name.

    Attributes:
        values: shares from 0 to 1.
        counted: the number of videos behind the shares.
    """

    values: dict[str, float]
    counted: int


def window_baselines(train_masks: Iterable[npt.NDArray[np.bool_]], masks: Iterable[npt.NDArray[np.bool_]]) -> Baselines:
    """Cross-modality localization of four guesses that know the event's length l and nothing else.

    - ``uniform window``: any of the T - l + 1 starts, equally likely; its expected share.
    - ``first window``: start 0, which a model with a constant distance gives too.
    - ``last window``: start T - l.
    - ``most frequent start per length``: in the training videos with the same T and l (ties: the earliest); start 0
      for a length that no training video has.

    Videos without a `partial_event` are left out of both sets.

    Args:
        train_masks: (N', T), or one (T,) per training video: True where a segment holds the event.
        masks: (N, T), or one (T,) per video to guess.

    Returns:
        The shares, nan where no video is counted, and the number of videos counted.

    Raises:
        AvelError: a mask is not (T,) of booleans.
    """
    starts: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for total, start, length in _partial(train_masks):
        starts[total, length][start] += 1
    usual = {key: min(counts, key=lambda start: (-counts[start], start)) for key, counts in starts.items()}
    hits = []
    for total, start, length in _partial(masks):
        last = total - length
        hits.append((1 / (last + 1), start == 0, start == last, start == usual.get((total, length), 0)))
    shares = np.mean(hits, axis=0).tolist() if hits else [float("nan")] * 4
    names = ("uniform window", "first window", "last window", "most frequent start per length")
    return Baselines(dict(zip(names, shares, strict=True)), len(hits))


def _partial(masks: Iterable[npt.NDArray[np.bool_]]) -> Iterable[tuple[int, int, int]]:
    """T, start and length for every video that has an event to look for."""
    for mask in masks:
        event = partial_event(mask)
        if event is not None:
            yield (len(mask), *event)


# --- plain classifiers ------------------------------------------------------------------------------------------------


def segment_features(store: Store, clips: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Audio (N, Da), visual averaged over the cells (N, Dv), and labels (N,) of all segments of the clips.

    Raises:
        AvelError: a clip has no valid audio.
    """
    store.require_audio(clips)
    audio = np.concatenate([store.audio(index).numpy() for index in clips])
    visual = np.concatenate([store.visual(index).float().mean((1, 2)).numpy() for index in clips])
    return audio, visual, np.concatenate([store.labels(index).numpy() for index in clips])


def standardize(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All arrays (N, features), minus the training array's mean, divided by its standard deviation."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    return [(array - mean) / deviation for array in (train, *others)]


def nearest_class_mean(store: Store, split: str) -> np.ndarray:
    """(N,) labels: each stream votes for the class with the nearest training mean; background unless both agree.

    Raises:
        AvelError: a clip of the training split or of ``split`` has no valid audio.
    """
    answers = []
    *train_streams, labels = segment_features(store, store.split("train"))
    *streams, _ = segment_features(store, store.split(split))
    present = np.unique(labels)
    for train, stream in zip(train_streams, streams, strict=True):
        train, stream = standardize(train, stream)
        means = np.stack([train[labels == label].mean(0) for label in present])
        distances = ((stream[:, None] - means[None]) ** 2).sum(-1)
        answers.append(present[distances.argmin(1)])
    return np.where(answers[0] == answers[1], answers[0], len(store.classes))


def logistic_regression(store: Store, split: str) -> np.ndarray:
    """(N,) labels from multinomial logistic regression on the concatenated streams.

    The L2 penalty, {1e-4, 1e-3, 1e-2, 1e-1} x the sum of squared weights, is chosen on the validation split.

    Raises:
        AvelError: a clip of the training split, the validation split or ``split`` has no valid audio.
    """
    import torch

    features = {}
    for name in {"train", "val", split}:
        audio, visual, labels = segment_features(store, store.split(name))
        features[name] = (np.concatenate([audio, visual], axis=1), labels)
    names = ["train", *sorted(set(features) - {"train"})]
    scaled = dict(zip(names, standardize(*(features[name][0] for name in names)), strict=True))
    tensors = {name: torch.from_numpy(array).float() for name, array in scaled.items()}
    best, answer = -1.0, np.empty(0, dtype=np.int64)
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1):
        weights = fit_logistic(
            tensors["train"], torch.from_numpy(features["train"][1]), len(store.classes) + 1, penalty
        )
        predicted = {name: (tensors[name] @ weights[:-1] + weights[-1]).argmax(1).numpy() for name in ("val", split)}
        accuracy = float((predicted["val"] == features["val"][1]).mean())
        if accuracy > best:
            best, answer = accuracy, predicted[split]
    return answer


def fit_logistic(features: torch.Tensor, labels: torch.Tensor, num_labels: int, penalty: float) -> torch.Tensor:
    """Weights (features + 1, num_labels), bias last, that minimize cross-entropy + penalty x sum of squared weights."""
    import torch

    weights = torch.zeros(features.shape[1] + 1, num_labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features @ weights[:-1] + weights[-1]
        loss = torch.nn.functional.cross_entropy(logits, labels) + penalty * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()

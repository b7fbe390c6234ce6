"""Plain rivals: what a network must beat before it means anything.

Both see each segment alone: the audio feature (Da) and the visual feature averaged over the cells (Dv).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from avel.data.store import Store


def segment_features(store: Store, clips: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Audio (N, Da), visual (N, Dv) averaged over the cells, and labels (N,) of all segments of the clips.

    Raises:
        AvelError: a clip has no valid audio.
    """
    store.refuse_mute(clips)
    audio = np.concatenate([store.audio(index).numpy() for index in clips])
    visual = np.concatenate([store.visual(index).float().mean((1, 2)).numpy() for index in clips])
    return audio, visual, np.concatenate([store.labels(index).numpy() for index in clips])


def standardize(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All arrays (N, features) with the training array's mean taken off and divided by its deviation."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    return [(array - mean) / deviation for array in (train, *others)]


def nearest_class_mean(store: Store, split: str) -> np.ndarray:
    """(N,) labels: each stream takes the class whose training mean is nearest; background unless both agree."""
    answers = []
    audio, visual, labels = segment_features(store, store.split("train"))
    audio_asked, visual_asked, _ = segment_features(store, store.split(split))
    for stream, asked in ((audio, audio_asked), (visual, visual_asked)):
        stream, asked = standardize(stream, asked)
        present = np.unique(labels)
        means = np.stack([stream[labels == label].mean(0) for label in present])
        distances = ((asked[:, None] - means[None]) ** 2).sum(-1)
        answers.append(present[distances.argmin(1)])
    return np.where(answers[0] == answers[1], answers[0], len(store.classes))


def logistic_regression(store: Store, split: str) -> np.ndarray:
    """(N,) labels from multinomial logistic regression on both streams side by side.

    The L2 penalty, of {1e-4, 1e-3, 1e-2, 1e-1} x the sum of squared weights, is chosen on the validation split.
    """
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
    """Weights (features + 1, num_labels), bias last, minimizing cross-entropy + penalty x sum of squared weights."""
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

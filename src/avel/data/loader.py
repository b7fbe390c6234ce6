"""Batches of windows, cut from a feature store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avel.data.labels import window_class
from avel.data.store import Store
from avel.errors import AvelError
from avel.types import Target


@dataclass(frozen=True)
class Batch:
    """A batch of windows.

    Attributes:
        audio: (B, T, Da) float32.
        visual: (B, T, H, W, Dv) float16 as stored; models cast it.
        target: labels (B, T) and video classes (B,).
        counted: (B, T) bool, False on segments that an earlier window of the same clip has shown already.
    """

    audio: Tensor
    visual: Tensor
    target: Target
    counted: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        target = Target(self.target.labels.to(device), self.target.video.to(device))
        return Batch(self.audio.to(device), self.visual.to(device), target, self.counted.to(device))


class Windows:
    """The windows of T segments that some clips of a store fall into.

    A longer clip is cut into consecutive windows, the last one shifted back to end with the clip.

    Raises:
        AvelError: a clip is shorter than the window, has no labels, or lacks valid audio.
    """

    def __init__(self, store: Store, clips: Sequence[int], window: int) -> None:
        self.store = store
        self.window = window
        self.num_classes = len(store.classes)
        self.items: list[tuple[int, int, int]] = []  # clip, first segment, segments already shown
        shortest = min((store.clips[index] for index in clips), key=lambda clip: clip.segments, default=None)
        if shortest is not None and shortest.segments < window:
            raise AvelError(
                f"clip {shortest.id} in {store.path} has {shortest.segments} segments",
                f"at least {window}, the window, in every clip that is trained on",
                f"train with --window {shortest.segments}, or leave the short clips out of the CSV",
            )
        for index in clips:
            clip = store.clips[index]
            if clip.spans is None:
                raise AvelError(
                    f"clip {clip.id} in {store.path} has no labels",
                    "a row in the CSV that the store was extracted from",
                    "extract from a CSV with columns video,start,end,label,split",
                )
            if not clip.audio_valid:
                raise AvelError(
                    f"clip {clip.id} in {store.path} has no valid audio",
                    "audio in every clip that is trained on",
                    "take the clip out of the CSV and extract again",
                )
            for end in range(window, clip.segments + window, window):
                first = min(end, clip.segments) - window
                self.items.append((index, first, end - window - first))

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The windows at ``indices``, in that order."""
        audio, visual, labels, counted = [], [], [], []
        for index in indices:
            clip, first, shown = self.items[index]
            segments = slice(first, first + self.window)
            audio.append(self.store.audio(clip)[segments])
            visual.append(self.store.visual(clip)[segments])
            labels.append(self.store.labels(clip)[segments])
            counted.append(torch.arange(self.window) >= shown)
        stacked = torch.stack(labels)
        video = torch.tensor([window_class(row.numpy(), self.num_classes) for row in stacked])
        return Batch(torch.stack(audio), torch.stack(visual), Target(stacked, video), torch.stack(counted))

    def batches(self, size: int, *, shuffle_seed: tuple[int, int] | None = None) -> Iterator[Batch]:
        """All windows once, in batches of ``size`` (the last may be smaller).

        Args:
            size: windows in a batch.
            shuffle_seed: run seed and epoch, which fix the order; None keeps the order of the store.
        """
        order = list(range(len(self)))
        if shuffle_seed is not None:
            seed, epoch = shuffle_seed
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(len(self), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

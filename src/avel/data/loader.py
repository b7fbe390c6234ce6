"""Batches of windows, cut from a feature store.

Features are read from the memory map straight into the batch and converted on the way, without another copy. Memory
then limits the speed of shuffled reading, so worker processes would not help.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avel.data.labels import consecutive_windows, video_class, video_labels, window_class
from avel.data.store import Store
from avel.devices import free_bytes
from avel.errors import AvelError
from avel.types import Target


@dataclass(frozen=True)
class Features:
    """What a network receives: B windows.

    Attributes:
        audio: (B, T, Da).
        visual: (B, T, H, W, Dv).
    """

    audio: Tensor
    visual: Tensor


@dataclass(frozen=True)
class Batch(Features):
    """A batch of windows. Audio is float32; visual float32 on a CPU, float16 elsewhere, which halves the bytes to move.

    Attributes:
        target: labels (B, T) and video classes (B,).
        counted: (B, T) bool, False on segments that an earlier window of the same clip already has.
    """

    target: Target
    counted: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        target = Target(moved(self.target.labels), moved(self.target.video), moved(self.target.video_labels))
        return Batch(moved(self.audio), moved(self.visual), target, self.counted)


@dataclass(frozen=True)
class Residence:
    """Where the features of a training are, and how long reading them takes.

    Attributes:
        needed: bytes of the clips of all windows, as stored.
        free: bytes free on the device; on a CPU, memory that the page cache may take.
        device: the device's name.
        seconds: estimated time to read them once; 0 if they fit.
    """

    needed: int
    free: int
    device: str
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether they fit, with a tenth of the room left for everything else."""
        return self.needed <= 0.9 * self.free

    def __str__(self) -> str:
        number, unit = (self.needed / 1e9, "GB") if self.needed >= 1e9 else (self.needed / 1e6, "MB")
        size = f"features: {number:.3g} {unit}"
        if self.device == "cpu":
            if self.fits:
                return f"{size}, which fit in memory"
            return (
                f"{size}, more than the {self.free / 1e9:.2f} GB of free memory: read from the disk in every epoch, "
                f"which takes about {self.seconds:.0f} s each time"
            )
        if self.fits:
            return f"{size}, kept on {self.device}"
        return (
            f"{size}, more than the {self.free / 1e9:.2f} GB free on {self.device}: copied there batch by batch, "
            f"about {self.seconds:.0f} s of reading per epoch"
        )


class Windows:
    """Clips of a store, cut into windows of T segments.

    The windows of a clip are consecutive; the last one is shifted back to end with the clip.

    Args:
        store: where the features are.
        clips: indices into it.
        window: T.
        weak_labels: form of the labels of whole windows, see `avel.data.labels.video_labels`.

    Raises:
        AvelError: a clip is shorter than the window, has no labels, or lacks valid audio.
    """

    def __init__(
        self,
        store: Store,
        clips: Sequence[int],
        window: int,
        *,
        weak_labels: Literal["onehot", "proportion"] = "onehot",
    ) -> None:
        self.store = store
        self.window = window
        self.device = torch.device("cpu")
        self.num_classes = len(store.classes)
        self.items: list[tuple[int, int, int]] = []  # clip, first segment, segments that the window before has
        self.clips = list(clips)
        shortest = min((store.clips[index] for index in clips), key=lambda clip: clip.segments, default=None)
        if shortest is not None and shortest.segments < window:
            raise AvelError(
                f"clip {shortest.id} in {store.path} has {shortest.segments} segments",
                f"at least {window}, the window, in every clip that is trained on",
                f"train with --window {shortest.segments}, or leave the short clips out of the CSV",
            )
        store.require_audio(clips)
        labels = []
        video = []  # class of each window as the weak task has it
        for index in clips:
            clip = store.clips[index]
            if clip.spans is None:
                raise AvelError(
                    f"clip {clip.id} in {store.path} has no labels",
                    "a row in the CSV that the store was extracted from",
                    "extract from a CSV with columns video,start,end,label,split",
                )
            whole = store.labels(index)
            for number, first in enumerate(consecutive_windows(clip.segments, window)):
                self.items.append((index, first, number * window - first))
                labels.append(whole[first : first + window])
                spans = clip.spans if clip.segments == window else ()  # events elsewhere say nothing about a part
                video.append(video_class(spans, store.classes, labels[-1].numpy()))
        self.labels = torch.stack(labels) if labels else torch.zeros((0, window), dtype=torch.int64)
        self._video = torch.tensor([window_class(row.numpy(), self.num_classes) for row in self.labels])
        known = np.array(video, dtype=np.int64)
        self._video_labels = torch.from_numpy(video_labels(self.labels.numpy(), known, self.num_classes, weak_labels))
        shown = torch.tensor([shown for _, _, shown in self.items])
        self._counted = torch.arange(window) >= shown[:, None] if self.items else self.labels.bool()
        self._resident: tuple[Tensor, Tensor, Tensor] | None = None  # audio, visual, first row of each window

    def __len__(self) -> int:
        return len(self.items)

    @property
    def needed_bytes(self) -> int:
        """Bytes of the clips' features, as stored."""
        return sum(self.store.clips[index].segments for index in self.clips) * self.store.settings.segment_bytes

    def serve(self, device: torch.device, *, resident: bool) -> None:
        """Put every later batch on ``device``.

        Args:
            device: where the computation is.
            resident: copy the features of all clips there first, as stored, and gather the batches from them. A CPU
                already has them through the memory map.

        Raises:
            torch.OutOfMemoryError: the device has less room than `residence` found.
        """
        self.device = device
        if resident and device.type != "cpu":
            self._copy_to(device)

    def _copy_to(self, device: torch.device) -> None:
        lengths = [self.store.clips[index].segments for index in self.clips]
        firsts = dict(zip(self.clips, accumulate(lengths, initial=0), strict=False))
        audio = torch.empty((sum(lengths), self.store.audio_dim), device=device)
        shape = (sum(lengths), *self.store.grid, self.store.visual_dim)
        visual = torch.empty(shape, dtype=torch.float16, device=device)
        for (index, first), length in zip(firsts.items(), lengths, strict=True):
            audio[first : first + length] = self.store.audio(index)
            visual[first : first + length] = self.store.visual(index)
        rows = torch.tensor([firsts[index] + first for index, first, _ in self.items], device=device)
        self._resident = audio, visual, rows

    def batch(self, indices: Sequence[int], out: Batch | None = None) -> Batch:
        """The windows at ``indices``, in that order.

        Args:
            indices: B of them.
            out: an earlier batch of at least B windows, on a CPU, whose features are written over: memory that was used
                before costs no page faults.
        """
        chosen = torch.as_tensor(indices)
        target = Target(self.labels[chosen], self._video[chosen], self._video_labels[chosen])
        if self._resident is not None:
            audio, visual, firsts = self._resident
            rows = firsts[chosen.to(self.device), None] + torch.arange(self.window, device=self.device)
            return Batch(audio[rows], visual[rows], target, self._counted[chosen]).to(self.device)
        on_cpu = self.device.type == "cpu"
        if out is not None and len(out.audio) >= len(indices):
            audio, visual = out.audio[: len(indices)], out.visual[: len(indices)]
        else:
            size = (len(indices), self.window)
            audio = torch.empty((*size, self.store.audio_dim))
            visual_type = torch.float32 if on_cpu else torch.float16
            visual = torch.empty((*size, *self.store.grid, self.store.visual_dim), dtype=visual_type)
        for place, index in enumerate(indices):
            clip, first, _ = self.items[index]
            segments = slice(first, first + self.window)
            audio[place].copy_(self.store.audio(clip, segments))
            visual[place].copy_(self.store.visual(clip, segments))
        ready = Batch(audio, visual, target, self._counted[chosen])
        return ready if on_cpu else ready.to(self.device)

    def batches(
        self, size: int, *, shuffle_seed: tuple[int, int] | None = None, reuse: bool = False
    ) -> Iterator[Batch]:
        """All windows once, in batches of ``size`` (the last may be smaller).

        Args:
            size: windows in a batch.
            shuffle_seed: run seed and epoch, which fix the order; None keeps the order of the store.
            reuse: as in `each`.
        """
        order = range(len(self)) if shuffle_seed is None else self.shuffled(*shuffle_seed)
        yield from self.each([order[start : start + size] for start in range(0, len(order), size)], reuse=reuse)

    def shuffled(self, seed: int, epoch: int) -> list[int]:
        """The windows' indices in the order that seed and epoch fix."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self), generator=generator).tolist()
        return order

    def each(self, parts: Sequence[Sequence[int]], *, reuse: bool = False) -> Iterator[Batch]:
        """A batch for each list of windows' indices.

        Args:
            parts: the indices.
            reuse: on a CPU, write each batch over the one before it, which is then no longer valid.
        """
        if self.device.type == "cpu" or self._resident is not None:
            last: Batch | None = None
            for part in parts:
                last = self.batch(part, last if reuse and self.device.type == "cpu" else None)
                yield last
            return
        # A GPU computes while a thread here reads the next batch. On a CPU, the thread would only take processors from
        # the computation.
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.batch, parts[0]) if parts else None
            for following in range(1, len(parts) + 1):
                assert coming is not None
                ready = coming.result()
                coming = reader.submit(self.batch, parts[following]) if following < len(parts) else None
                yield ready


def task_split(store: Store, name: str, task: str, *, as_imported: bool = False) -> list[int]:
    """Indices of the clips that a task has in a split: for cml those of ``NAME_match``, if the store has it.

    Args:
        store: with the clips.
        name: of the split.
        task: full, weak or cml.
        as_imported: in the order of the file that the split was imported from, if there was one, and not of the store.

    Raises:
        AvelError: the store has no such split.
    """
    match = f"{name}_match"
    split = match if task == "cml" and match in store.splits() else name
    return store.imported_order(split) if as_imported else store.split(split)


def residence(windows: Sequence[Windows], device: torch.device, *, free: int | None = None) -> Residence:
    """Whether the features fit on the device and, where they do not, how long reading them takes.

    Args:
        windows: all windows of an epoch.
        device: where it computes.
        free: bytes free there; None asks the device.
    """
    needed = sum(each.needed_bytes for each in windows)
    if free is None:
        free = free_bytes(device)
    place = Residence(needed, free, str(device), 0.0)
    if place.fits:
        return place
    return Residence(needed, free, str(device), sum(_seconds_to_read(each) for each in windows))


def _seconds_to_read(windows: Windows, sample: int = 64) -> float:
    """Estimate the time to read all windows once, from a sample spread over the store."""
    chosen = list(range(0, len(windows), max(1, len(windows) // sample)))
    began = time.perf_counter()
    windows.batch(chosen)
    return (time.perf_counter() - began) / len(chosen) * len(windows)

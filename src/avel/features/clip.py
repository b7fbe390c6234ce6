"""One video to the features of its segments, in one pass and without holding its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from avel.errors import AvelError
from avel.features.extractor import AudioExtractor, VisualExtractor
from avel.features.video import FrameChooser, Scaler, SoundTrack, open_media, segment_times
from avel.types import Progress

BATCH_SEGMENTS = 4  # segments handed to an extractor at once: its arrays fit the processor's cache


@dataclass(frozen=True)
class ClipFeatures:
    """The features of one clip.

    Attributes:
        visual: (T, H, W, Dv) float16.
        audio: (T, Da) float32.
        duration: seconds for which there is both picture and sound.
        bad_packets: packets and pictures that could not be decoded.
    """

    visual: np.ndarray
    audio: np.ndarray
    duration: float
    bad_packets: int


def extract_clip(
    path: str | Path,
    visual: VisualExtractor,
    audio: AudioExtractor,
    *,
    segment_seconds: float = 1.0,
    threads: int = 0,
    progress: Progress | None = None,
) -> ClipFeatures:
    """Decode a video once, and compute the features of its segments as they come.

    There are ``T = max(1, round(d / segment_seconds))`` segments, ``d`` being the earlier of the ends of picture and
    sound. Segment t shows the frames nearest before ``(t + i / frames_per_segment) * segment_seconds``.

    Args:
        path: of the video.
        visual: what makes the (T, H, W, Dv) features.
        audio: what makes the (T, Da) features.
        segment_seconds: length of a segment, seconds.
        threads: that decode; 0 leaves the choice to the decoder.
        progress: called as ``progress("decode", seconds done, seconds in all)``.

    Raises:
        AvelError: the file cannot be used; see `avel.features.video.probe` and `Media.decode`.
    """
    if not 0.05 <= segment_seconds <= 60:
        raise AvelError(f"segments of {segment_seconds} s", "0.05 to 60 seconds", "choose another segment length")
    pictures = PictureSegments(visual, segment_seconds)
    sounds = SoundSegments(audio, segment_seconds)
    with open_media(path, threads=threads) as media:
        whole = max(1, round(media.info.duration))
        shown = 0
        for moment, frame in media.decode():
            if isinstance(frame, av.VideoFrame):
                pictures.push(moment, frame)
            else:
                sounds.push(moment, frame)
            if progress and int(moment) > shown:
                shown = int(moment)
                progress("decode", min(shown, whole), whole)
        duration = min(media.video_end, media.audio_end)
        num_segments = max(1, round(duration / segment_seconds))
        features = ClipFeatures(
            pictures.finish(num_segments).astype(np.float16),
            sounds.finish(num_segments).astype(np.float32),
            duration,
            media.bad_packets,
        )
    for name, values in (("visual", features.visual), ("audio", features.audio)):
        if not np.isfinite(values).all():
            raise AvelError(f"{path}: its {name} features are not finite", "numbers", "leave this file out")
    return features


class PictureSegments:
    """Collects the frames of segments, a few segments at a time, and keeps their features."""

    def __init__(self, extractor: VisualExtractor, segment_seconds: float) -> None:
        self._extractor = extractor
        self._scaler = Scaler(extractor.frame_size, extractor.frame_size)
        self._chooser = FrameChooser(segment_times(segment_seconds, extractor.frames_per_segment))
        self._last: av.VideoFrame | None = None
        self._waiting: list[np.ndarray] = []
        self._features: list[np.ndarray] = []
        self._batch = BATCH_SEGMENTS * extractor.frames_per_segment

    def push(self, time: float, frame: av.VideoFrame) -> None:
        """Tell of the next frame."""
        self._show(self._chooser.push(time))
        self._last = frame

    def finish(self, num_segments: int) -> np.ndarray:
        """(T, H, W, Dv); the last frame is shown to the end."""
        wanted = num_segments * self._extractor.frames_per_segment
        have = sum(map(len, self._features)) * self._extractor.frames_per_segment + len(self._waiting)
        self._show(max(0, wanted - have))
        del self._waiting[
            len(self._waiting) // self._extractor.frames_per_segment * self._extractor.frames_per_segment :
        ]
        self._extract()
        return np.concatenate(self._features)[:num_segments]

    def _show(self, count: int) -> None:
        if not count or self._last is None:
            return
        picture = self._scaler(self._last)
        for _ in range(count):
            self._waiting.append(picture)
            if len(self._waiting) == self._batch:
                self._extract()

    def _extract(self) -> None:
        if self._waiting:
            self._features.append(self._extractor(np.stack(self._waiting)))
            self._waiting.clear()


class SoundSegments:
    """Cuts the sound into segments, and keeps their features."""

    def __init__(self, extractor: AudioExtractor, segment_seconds: float) -> None:
        self._extractor = extractor
        self._track = SoundTrack(extractor.sample_rate)
        self._length = segment_seconds * extractor.sample_rate  # in samples, perhaps a fraction
        self._waiting = np.zeros(0, dtype=np.float32)
        self._first = 0  # index of the first waiting sample
        self._features: list[np.ndarray] = []
        self._done = 0

    def push(self, time: float, frame: av.AudioFrame) -> None:
        """Tell of the next frame."""
        self._add(self._track.push(time, frame))

    def finish(self, num_segments: int) -> np.ndarray:
        """(T, Da); silence follows the last sample."""
        self._add(self._track.finish())
        missing = round(num_segments * self._length) + 1 - self._first - len(self._waiting)
        self._add(np.zeros(max(0, missing), dtype=np.float32))
        if self._done < num_segments:
            self._extract(num_segments - self._done)
        return np.concatenate(self._features)[:num_segments]

    def _add(self, samples: np.ndarray) -> None:
        self._waiting = np.concatenate([self._waiting, samples])
        while self._first + len(self._waiting) > round((self._done + BATCH_SEGMENTS) * self._length):
            self._extract(BATCH_SEGMENTS)

    def _extract(self, count: int) -> None:
        starts = [round((self._done + index) * self._length) - self._first for index in range(count)]
        samples = round(self._length)
        self._features.append(self._extractor(np.stack([self._waiting[s : s + samples] for s in starts])))
        self._done += count
        used = round(self._done * self._length) - self._first
        self._waiting = self._waiting[used:]
        self._first += used

"""One video to the features of its segments, in one pass and without holding its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from avel.errors import AvelError
from avel.features.extractor import AudioExtractor, OwnResampling, OwnResize, SoundSpans, VisualExtractor
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
        self._resize = extractor.resize if isinstance(extractor, OwnResize) else None
        self._scaler = Scaler() if self._resize else Scaler(extractor.frame_size, extractor.frame_size)
        self._chooser = FrameChooser(segment_times(segment_seconds, extractor.frames_per_segment))
        self._last: av.VideoFrame | None = None
        self._waiting: list[np.ndarray] = []
        self._still: np.ndarray | None = None  # the picture of which the last whole batch consisted
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
        batches = -(-num_segments // BATCH_SEGMENTS)  # the pictures may go on for long after the sound
        return np.concatenate(self._features[:batches])[:num_segments]

    def _show(self, count: int) -> None:
        if not count or self._last is None:
            return
        picture = self._scaler(self._last)
        if self._resize:
            picture = self._resize(picture)
        for _ in range(count):
            self._waiting.append(picture)
            if len(self._waiting) == self._batch:
                self._extract()

    def _extract(self) -> None:
        if self._waiting:
            first = self._waiting[0]
            still = first if all(picture is first for picture in self._waiting) else None
            if still is not None and still is self._still and len(self._waiting) == self._batch:
                self._features.append(self._features[-1])  # one picture for minutes, as damaged times can make it
            else:
                self._features.append(self._extractor(np.stack(self._waiting)))
            self._still = still if len(self._waiting) == self._batch else None
            self._waiting.clear()


class SoundSegments:
    """Cuts the sound into segments, and keeps their features."""

    def __init__(self, extractor: AudioExtractor, segment_seconds: float) -> None:
        self._extractor = extractor
        self._segment_seconds = segment_seconds
        if isinstance(extractor, OwnResampling):
            self._resampling: OwnResampling | None = extractor
            self._spans = extractor.spans(segment_seconds)
        else:
            self._resampling = None
            self._spans = SoundSpans(segment_seconds, 0.0, segment_seconds)
        self._track = SoundTrack(None if self._resampling else extractor.sample_rate)
        self._waiting = np.zeros(0, dtype=np.float32)
        self._first: int | None = None  # index of the first waiting sample, once their rate is known
        self._features: list[np.ndarray] = []
        self._done = 0

    def push(self, time: float, frame: av.AudioFrame) -> None:
        """Tell of the next frame."""
        self._add(self._track.push(time, frame))

    def finish(self, num_segments: int) -> np.ndarray:
        """(T, Da); silence follows the last sample.

        Raises:
            AvelError: segments of another length than the extractor's own, which by the end have drifted half a
                segment away from the pictures.
        """
        drift = abs(self._spans.hop - self._segment_seconds) * (num_segments - 1)
        if drift > self._segment_seconds / 2:
            raise AvelError(
                f"{self._extractor.name} takes the sound in steps of {self._spans.hop:g} s: the last of {num_segments} "
                f"segments of {self._segment_seconds:g} s would be {drift:.2f} s off its pictures",
                "steps as long as segments, or a clip of about ten seconds",
                f"choose --segment-seconds {self._spans.hop:g}, or another framing",
            )
        self._add(self._track.finish())
        missing = self._start(num_segments - 1) + self._samples + 1 - len(self._waiting)
        self._add(np.zeros(max(0, missing), dtype=np.float32))
        if self._done < num_segments:
            self._extract(num_segments - self._done)
        return np.concatenate(self._features)[:num_segments]

    @property
    def _samples(self) -> int:
        return round(self._spans.length * self._track.sample_rate)

    def _start(self, segment: int) -> int:
        """Where a segment starts, counted from the first waiting sample."""
        start = round(segment * (self._spans.hop * self._track.sample_rate))
        return start - round(self._spans.before * self._track.sample_rate) - (self._first or 0)

    def _add(self, samples: np.ndarray) -> None:
        if self._first is None:  # before the sound there is silence
            self._first = self._start(0)
            samples = np.concatenate([np.zeros(-self._first, dtype=np.float32), samples])
        self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) > self._start(self._done + BATCH_SEGMENTS - 1) + self._samples:
            self._extract(BATCH_SEGMENTS)

    def _extract(self, count: int) -> None:
        starts = [self._start(self._done + index) for index in range(count)]
        segments = np.stack([self._waiting[start : start + self._samples] for start in starts])
        if self._resampling:
            segments = self._resampling.resample(segments, self._track.sample_rate)
        self._features.append(self._extractor(segments))
        self._done += count
        used = self._start(self._done)
        self._waiting = self._waiting[used:]
        self._first = (self._first or 0) + used

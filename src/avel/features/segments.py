"""Turn one video into the features of its segments, in one pass and without keeping its pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from avel.data.ave.files import SEGMENTS
from avel.data.store_writing import ClipFeatures
from avel.errors import AvelError
from avel.features.audio_samples import AudioTrack
from avel.features.extractor import AudioExtractor, AudioSpans, OwnMemory, OwnResampling, OwnResize, VisualExtractor
from avel.features.recipe import DEFAULT_RECIPE, Recipe
from avel.features.video import DECODED_SHARE, FrameChooser, Media, Scaler, open_media, segment_times
from avel.types import Progress

BATCH_SEGMENTS = 4  # segments per call of an extractor: its arrays fit the CPU's cache
_AVE_ENDS = (SEGMENTS - 0.5, SEGMENTS + 0.5)  # seconds: a clip must end between them for framing ``ave``
_AVE_LATEST = 0.5  # seconds: its first picture must come by then


def extract_clip(
    path: str | Path,
    visual: VisualExtractor,
    audio: AudioExtractor,
    recipe: Recipe = DEFAULT_RECIPE,
    *,
    any_length: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> ClipFeatures:
    """Decode a video once, and compute the features of its segments on the way.

    With framing ``time`` there are ``T = max(1, round(d / segment_seconds))`` segments, where ``d`` is the earlier end
    of picture and sound. Segment t takes the last frames before ``(t + i / frames_per_segment) * segment_seconds``.
    With framing ``ave`` there are ten, with a tenth of the frames each (see `ave_frames`) and one second of sound. With
    ``any_length`` there are as many as with framing ``time``, with tenths of the frames of every ten seconds (see
    `AveVisualSegments`).

    Args:
        path: path of the video.
        visual: extractor of the (T, H, W, Dv) features.
        audio: extractor of the (T, Da) features.
        recipe: its segments, framing, streams and missing_audio count here, not its extractors. With
            ``missing_audio="mark"`` a file without sound is accepted, and `ClipFeatures.audio_valid` is False; sound
            that cannot be decoded is still an error.
        any_length: with framing ``ave``, accept a video of any length.
        threads: number of decoding threads; 0 leaves it to the decoder.
        progress: called as ``progress("decode", seconds done, seconds in all)``.

    Raises:
        AvelError: the file cannot be used, see `avel.features.streams.probe` and `avel.features.video.Media.decode`;
            with framing ``ave``, the clip is too short, too long or has fewer than ten frames.
    """
    segment_seconds = recipe.segment_seconds
    visual_segments: AveVisualSegments | VisualSegments
    if recipe.framing == "ave":
        visual_segments = AveVisualSegments(visual, any_length=any_length)
    else:
        visual_segments = VisualSegments(visual, segment_seconds)
    ten_seconds = recipe.framing == "ave" and not any_length
    audio_segments = AudioSegments(audio, segment_seconds)
    with open_media(path, threads=threads, streams=recipe.streams, silent=recipe.missing_audio == "mark") as media:
        whole = max(1, round(media.info.duration))
        shown = 0
        for moment, frame in media.decode():
            if isinstance(frame, av.VideoFrame):
                visual_segments.push(moment, frame)
            else:
                audio_segments.push(moment, frame)
            if ten_seconds and moment > _AVE_ENDS[1]:  # before its frames fill the memory
                _refuse_unless_ten_seconds(media)
            if progress and int(moment) > shown:
                shown = int(moment)
                progress("decode", min(shown, whole), whole)
        if progress and shown < whole:  # no frame comes after the last second
            progress("decode", whole, whole)
        if ten_seconds:
            _refuse_unless_ten_seconds(media)
            if media.num_pictures < SEGMENTS:
                raise AvelError(
                    f"{path} has only {media.num_pictures} pictures",
                    f"for framing 'ave' at least one for each of {SEGMENTS} segments",
                    "use --framing time",
                )
        duration = min(media.video_end, media.audio_end) if media.has_sound else media.video_end
        num_segments = count_segments(duration, segment_seconds)
        if isinstance(visual_segments, AveVisualSegments):
            visual_features = visual_segments.finish(num_segments, media.video_end)
        else:
            visual_features = visual_segments.finish(num_segments)
        told = {
            "streams": media.info.streams,
            "time stamps": media.jumps,
            "length": _unequal(media) if media.has_sound else "",
            "channels": audio_segments.mixing,
        }
        features = ClipFeatures(
            visual_features.astype(np.float16),
            audio_segments.finish(num_segments).astype(np.float32)
            if media.has_sound
            else np.zeros((num_segments, audio.dim), dtype=np.float32),
            duration,
            audio_valid=media.has_sound,
            bad_packets=media.bad_packets,
            tags={key: words for key, words in told.items() if words},
            uneven=visual_segments.by_time if isinstance(visual_segments, AveVisualSegments) else 0,
        )
    for name, values in (("visual", features.visual), ("audio", features.audio)):
        if not np.isfinite(values).all():
            raise AvelError(f"{path}: its {name} features are not finite", "finite numbers", "leave this file out")
    return features


def _unequal(media: Media) -> str:
    """``sound ends at 2.00 s, pictures at 10.00 s: the first 2.00 s used``; "" if the difference is small."""
    ends = {"sound": media.audio_end, "pictures": media.video_end}
    shorter, longer = sorted(ends, key=lambda kind: ends[kind])
    if ends[shorter] >= DECODED_SHARE * ends[longer]:
        return ""
    end, verb = ends[shorter], "end" if shorter == "pictures" else "ends"
    return f"{shorter} {verb} at {end:.2f} s, {longer} at {ends[longer]:.2f} s: the first {end:.2f} s used"


def count_segments(duration: float, segment_seconds: float) -> int:
    """T of a clip of that many seconds: for clips of 9.5 to 10.5 s and one-second segments, AVE's ten."""
    return max(1, round(duration / segment_seconds))


def ave_frames(num_frames: int, frames_per_segment: int = 16, segments: int = SEGMENTS) -> list[int]:
    """Which frames the segments of framing ``ave`` take, as AVE's own script chose them: tenths of the clip.

    Of ``num_frames`` decoded frames it takes ``int(l * interval + i / frames_per_segment * interval)`` for
    l = 0, ..., 9 and i = 0, ..., frames_per_segment - 1, where ``interval = int(num_frames / 10)``. The remainder at
    the end is not used. ``segments`` replaces the ten.
    """
    interval = num_frames // segments
    return [
        tenth * interval + index * interval // frames_per_segment
        for tenth in range(segments)
        for index in range(frames_per_segment)
    ]


def _refuse_unless_ten_seconds(media: Media) -> None:
    """AvelError unless framing ``ave`` may divide a clip into tenths of its frames."""
    ends = [media.video_end, media.audio_end] if media.has_sound else [media.video_end]
    shortest, longest = _AVE_ENDS
    if media.video_start > _AVE_LATEST or not all(shortest <= end <= longest for end in ends):
        sound = f", sound until {media.audio_end:.2f} s" if media.has_sound else ""
        raise AvelError(
            f"{media.path}: pictures from {media.video_start:.2f} s until {media.video_end:.2f} s{sound}"
            + (", and more" if max(ends) > longest else ""),
            f"for framing 'ave' a clip of {SEGMENTS} s: both must end between {shortest:g} and {longest:g} s",
            "use --framing time, which takes clips of any length, or cut the clip to ten seconds",
        )


def _to_size(extractor: VisualExtractor) -> Callable[[av.VideoFrame], np.ndarray]:
    """A function from a picture to the (frame_size, frame_size, 3) uint8 array that an extractor takes."""
    if isinstance(extractor, OwnResize):
        resize, own_size = extractor.resize, Scaler()
        return lambda frame: resize(own_size(frame))
    return Scaler(extractor.frame_size, extractor.frame_size)


class AveVisualSegments:
    """Keeps the frames of ten seconds, and makes features of their tenths.

    Only at the end of the ten seconds is it known how many frames there are, and so which ones to take. They are kept
    at the extractor's size: 45 MB for VGG-19 at 30 frames per second.

    A longer video is cut by time into stretches of ten seconds, each with tenths of its own frames. The last stretch is
    the rest: n segments with n-ths of its frames. It may be up to half a second longer than ten seconds, as in AVE. If
    frames are so unevenly spaced that a tenth would start a second or more from its own second, the frames of that
    stretch are chosen by time.

    Args:
        extractor: makes the features.
        any_length: cut into stretches; otherwise all frames are one clip of ten seconds.

    Attributes:
        by_time: number of stretches whose frames were chosen by time.
    """

    def __init__(self, extractor: VisualExtractor, *, any_length: bool) -> None:
        self._each = extractor.frames_per_segment
        self._to_size = _to_size(extractor)
        self._any_length = any_length
        self._shown = _Shown(extractor)
        self._start = 0  # of the stretch, seconds
        self._frames: list[tuple[float, np.ndarray]] = []
        self._before: np.ndarray | None = None  # the last frame before the stretch, or the video's first
        self.by_time = 0

    def push(self, time: float, frame: av.VideoFrame) -> None:
        """Take the next frame."""
        picture, time = self._to_size(frame), round(time, 6)  # rounding must not move a frame back
        if self._before is None:
            self._before = picture
        while self._any_length and time >= self._start + _AVE_ENDS[1]:
            self._close()
        self._frames.append((time, picture))

    def finish(self, num_segments: int, end: float) -> np.ndarray:
        """(T, H, W, Dv).

        Args:
            num_segments: T.
            end: end of the pictures, seconds.
        """
        left = count_segments(end, 1.0) - self._start if self._any_length else SEGMENTS
        if left > SEGMENTS:
            self._close()
            left -= SEGMENTS
        self._show(self._frames, max(1, left))
        return self._shown.finish(num_segments)

    def _close(self) -> None:
        """End the stretch after its ten seconds; later frames belong to the next one."""
        end = self._start + SEGMENTS
        self._show([each for each in self._frames if each[0] < end], SEGMENTS)
        self._frames = [each for each in self._frames if each[0] >= end]
        self._start = end

    def _show(self, frames: list[tuple[float, np.ndarray]], segments: int) -> None:
        starts = np.arange(segments)
        times = np.array([time for time, _ in frames]) - self._start
        interval = len(frames) // segments
        if self._any_length and not (interval and np.all(np.abs(times[starts * interval] - starts) < 1)):
            self.by_time += 1
            wanted = np.arange(segments * self._each) / self._each
            chosen = (np.searchsorted(times, wanted + 1e-6, side="right") - 1).tolist()
        else:
            chosen = ave_frames(len(frames), self._each, segments)
        for index in chosen:
            picture = frames[index][1] if index >= 0 else self._before
            assert picture is not None
            self._shown.show(picture)
        if frames:
            self._before = frames[-1][1]


class VisualSegments:
    """Chooses the frames of segments by time, and makes the features of the segments."""

    def __init__(self, extractor: VisualExtractor, segment_seconds: float) -> None:
        self._each = extractor.frames_per_segment
        self._to_size = _to_size(extractor)
        self._chooser = FrameChooser(segment_times(segment_seconds, extractor.frames_per_segment))
        self._last: av.VideoFrame | None = None
        self._shown = _Shown(extractor)

    def push(self, time: float, frame: av.VideoFrame) -> None:
        """Take the next frame."""
        self._show(self._chooser.push(time))
        self._last = frame

    def finish(self, num_segments: int) -> np.ndarray:
        """(T, H, W, Dv); the last frame is repeated to the end."""
        self._show(max(0, num_segments * self._each - self._shown.count))
        return self._shown.finish(num_segments)

    def _show(self, count: int) -> None:
        if not count or self._last is None:
            return
        picture = self._to_size(self._last)
        for _ in range(count):
            self._shown.show(picture)


class _Shown:
    """Passes the pictures of segments to an extractor, a few segments at a time, and keeps the features.

    Attributes:
        count: pictures so far.
    """

    def __init__(self, extractor: VisualExtractor) -> None:
        self._extractor = extractor
        self._batch = BATCH_SEGMENTS * extractor.frames_per_segment
        self._waiting: list[np.ndarray] = []
        self._still: np.ndarray | None = None  # the picture, if the last full batch repeats a single one
        self._features: list[np.ndarray] = []
        self.count = 0

    def show(self, picture: np.ndarray) -> None:
        """Take the next picture, (frame_size, frame_size, 3) uint8."""
        self._waiting.append(picture)
        self.count += 1
        if len(self._waiting) == self._batch:
            self._extract()

    def finish(self, num_segments: int) -> np.ndarray:
        """(T, H, W, Dv); pictures that do not fill a segment are left out."""
        del self._waiting[len(self._waiting) - self.count % self._extractor.frames_per_segment :]
        self._extract()
        batches = -(-num_segments // BATCH_SEGMENTS)  # the pictures may last much longer than the sound
        return np.concatenate(self._features[:batches])[:num_segments]

    def _extract(self) -> None:
        if self._waiting:
            first = self._waiting[0]
            still = first if all(picture is first for picture in self._waiting) else None
            if still is not None and still is self._still and len(self._waiting) == self._batch:
                self._features.append(self._features[-1])  # one picture for minutes, as damaged time stamps can cause
                if isinstance(self._extractor, OwnMemory):
                    self._extractor.repeat()
            else:
                self._features.append(self._extractor(np.stack(self._waiting)))
            self._still = still if len(self._waiting) == self._batch else None
            self._waiting.clear()


class AudioSegments:
    """Cuts the sound into segments, and keeps their features."""

    def __init__(self, extractor: AudioExtractor, segment_seconds: float) -> None:
        self._extractor = extractor
        self._segment_seconds = segment_seconds
        if isinstance(extractor, OwnResampling):
            self._resampling: OwnResampling | None = extractor
            self._spans = extractor.spans(segment_seconds)
        else:
            self._resampling = None
            self._spans = AudioSpans(segment_seconds, 0.0, segment_seconds)
        self._track = AudioTrack(None if self._resampling else extractor.sample_rate)
        self._waiting = np.zeros(0, dtype=np.float32)
        self._first: int | None = None  # index of the first waiting sample, once their rate is known
        self._features: list[np.ndarray] = []
        self._done = 0

    def push(self, time: float, frame: av.AudioFrame) -> None:
        """Take the next frame."""
        self._add(self._track.push(time, frame))

    def finish(self, num_segments: int) -> np.ndarray:
        """(T, Da); the sound is padded with silence.

        Raises:
            AvelError: the extractor's own segment length differs, so that by the end sound and pictures are more than
                half a segment apart.
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
    def mixing(self) -> str:
        """As `AudioTrack.mixing`, for the sound so far."""
        return self._track.mixing

    @property
    def _samples(self) -> int:
        return round(self._spans.length * self._track.sample_rate)

    def _start(self, segment: int) -> int:
        """Where a segment starts, counted from the first waiting sample."""
        start = round(segment * (self._spans.hop * self._track.sample_rate))
        return start - round(self._spans.before * self._track.sample_rate) - (self._first or 0)

    def _add(self, samples: np.ndarray) -> None:
        if self._first is None:  # pad the start with silence
            self._first = self._start(0)
            samples = np.concatenate([np.zeros(-self._first, dtype=np.float32), samples])
        self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) > self._start(self._done + BATCH_SEGMENTS - 1) + self._samples:
            self._extract(BATCH_SEGMENTS)

    def _extract(self, count: int) -> None:
        starts = [self._start(self._done + index) for index in range(count)]
        segments = np.stack([self._waiting[start : start + self._samples] for start in starts])
        if self._resampling:
            segments = self._resampling.resample(segments, self._track.sample_rate, self._done)
        self._features.append(self._extractor(segments))
        self._done += count
        used = self._start(self._done)
        self._waiting = self._waiting[used:]
        self._first = (self._first or 0) + used

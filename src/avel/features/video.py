"""Decoding: one pass over a media file, pictures and sound on one clock (see `avel.features.streams`).

Sound that starts late is placed at its time, as are pictures. Where time stamps start again or jump, as in recordings
joined end to end, what follows is moved to where the part before it ends (`avel.features.stamps`). What cannot be
decoded is skipped and counted; where that is more than a twentieth of what the file promised for the streams that are
taken, the file is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from avel.errors import AvelError
from avel.features.recipe import FIRST_STREAMS, Streams
from avel.features.stamps import Stamps, in_words
from avel.features.streams import (
    DO,
    PRIMINGS,
    TOLERANCE,
    Header,
    count_movies,
    in_seconds,
    open_header,
    several_in_one,
)

DECODED_SHARE = 0.95  # of the promised duration, in either stream


@contextmanager
def open_media(
    path: str | Path,
    *,
    video: bool = True,
    audio: bool = True,
    threads: int = 0,
    streams: Streams = FIRST_STREAMS,
    silent: bool = False,
) -> Iterator[Media]:
    """Open a media file for one pass over it.

    Args:
        path: of the file.
        video: whether pictures are needed.
        audio: whether sound is needed.
        threads: that decode the pictures; 0 leaves the choice to the decoder. They do not change what is decoded.
        streams: which to take, where there are several.
        silent: whether a file without any sound will do where sound is needed.

    Raises:
        AvelError: as `avel.features.streams.probe`, of the streams that are needed.
    """
    with open_header(path, video=video, audio=audio, streams=streams, silent=silent) as header:
        yield Media(header, video, audio, threads)


class Media:
    """An opened media file. `decode` may be called once.

    Attributes:
        info: what the file says of itself.
        has_sound: whether there is sound that is decoded.
        bad_packets: packets and pictures skipped so far because they could not be decoded.
        num_pictures: decoded so far.
        video_start: time of the first one on the common clock, seconds.
        video_end: end of the pictures decoded so far, the same way.
        audio_end: the same for the sound.
    """

    def __init__(self, header: Header, video: bool, audio: bool, threads: int) -> None:
        self.path, self.info = header.path, header.info
        self.has_sound = audio and header.audio is not None
        self.bad_packets = 0
        self.video_end = self.audio_end = 0.0
        self._header = header
        self._stamps = Stamps(header.restarts)
        all_streams = (video or not header.there["video"]) and (audio or not header.there["audio"])
        #: Whether the length of the whole file is all that says where a stream ends.
        self._whole_counts = (
            all_streams and not header.restarts and any(header.promise(stream) is None for stream in header.clocked)
        )
        self._video = header.video if video else None
        self._audio = header.audio if audio else None
        if self._video is not None:
            self._video.codec_context.thread_count = threads
            self._video.codec_context.thread_type = "AUTO"
        self._rate = 0.0 if header.exact or self._video is None else float(self._video.guessed_rate or 0)
        self._packet_times: list[float] = []
        self._frame_times: list[float] = []
        self._audio_packet_times: list[float] = []
        self._audio_times: list[float] = []
        self._audio_seconds = 0.0
        self._others_end = 0.0
        self._left_out: list[float] = []
        self._read_bytes = 0

    @property
    def jumps(self) -> str:
        """Where time stamps started again or jumped in what was decoded so far, in words; "" where they did not."""
        return in_words(self._stamps.jumps, self._header.zero)

    @property
    def num_pictures(self) -> int:
        return len(self._frame_times)

    @property
    def video_start(self) -> float:
        return self._frame_times[0] if self._frame_times else 0.0

    def decode(self) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """The frames of both streams in the file's order, each with its time on the common clock, seconds.

        Raises:
            AvelError: at the end, if under 95% of the promised duration was decoded in either stream, or there is
                but a single picture or no sound in it; at the first picture, if it is to be turned by an angle that is
                no multiple of 90 degrees.
        """
        for frame in self._frames():
            # a damaged time base makes NaN of a time
            time = None if frame.time is None or not np.isfinite(frame.time) else frame.time - self._header.zero
            if isinstance(frame, av.VideoFrame):
                if frame.is_corrupt:
                    self.bad_packets += 1
                    continue
                if not self._frame_times:
                    self._refuse_if_askew(frame)
                time = self.video_end if time is None else time
                time = self._even_time(time)
                if self._frame_times and time <= self._frame_times[-1]:
                    self._left_out.append(time)  # two pictures for one moment: the first stands
                    continue
                self._frame_times.append(time)
                seconds = in_seconds(frame.duration, frame) or self._frame_seconds()
                self.video_end = self._even_time(time + seconds, next_picture=True)
            else:
                seconds = frame.samples / frame.sample_rate
                if self._header.primed and not self._audio_times:
                    time = self._first_audio_time(time, frame.sample_rate)
                elif time is None:
                    time = self.audio_end
                elif not self._header.exact:  # a time stamp that is rounded moves nothing
                    time = next((each for each in (self.audio_end, 0.0) if abs(time - each) <= self._header.tick), time)
                self._audio_times.append(time)
                self._audio_seconds += seconds
                self.audio_end = time + seconds
                if self._header.primed and self.audio_end <= TOLERANCE:
                    continue
            yield time, frame
        self._refuse_if_joined()
        self._refuse_if_damaged()

    def _first_audio_time(self, time: float | None, sample_rate: int) -> float:
        """The time of the first sound, before the container rounded it."""
        exact = min((-samples / sample_rate for samples in PRIMINGS), key=lambda each: abs(each - (time or 0.0)))
        return time if time is not None and abs(exact - time) > self._header.tick else exact

    def _even_time(self, time: float, next_picture: bool = False) -> float:
        """A picture's time before the container rounded it, as long as its pictures come at an even rate."""
        if not self._rate or not self._frame_times:
            return time
        first = self._frame_times[0]
        even = first + round((time - first) * self._rate) / self._rate
        if abs(even - time) <= self._header.tick:
            return even
        if not next_picture:
            self._rate = 0.0
        return time

    def _frames(self) -> Iterator[av.VideoFrame | av.AudioFrame]:
        """All frames that can be decoded; the rest is counted."""
        for stream, packet in self._packets():
            time = in_seconds(packet.pts, packet) if packet is not None and packet.size else None
            if time is not None:
                times = self._packet_times if stream is self._video else self._audio_packet_times
                times.append(time - self._header.zero)
            try:
                yield from stream.decode(packet)
            except (av.error.FFmpegError, OSError):
                self.bad_packets += 1

    def _packets(self) -> Iterator[tuple[av.VideoStream | av.AudioStream, av.Packet | None]]:
        """The packets of the streams that are wanted; None tells a decoder to hand out what it still holds."""
        streams = [stream for stream in (self._video, self._audio) if stream is not None]
        try:
            # One not asked for fills the gaps of the other; any may be the one for which the file lasts.
            for packet in self._header.container.demux(*([] if self._whole_counts else [self._header.clocked])):
                self._read_bytes = max(self._read_bytes, (packet.pos or 0) + packet.size)
                if packet.stream not in self._header.clocked:
                    end = in_seconds((packet.pts or 0) + (packet.duration or 0), packet)
                    self._others_end = max(self._others_end, end or 0.0)
                    continue
                self._stamps.move(packet)
                if packet.stream in streams:
                    yield packet.stream, packet
        except IndexError:  # of PyAV, at the end of a file where a stream more appeared: the others have been flushed
            pass
        except (av.error.FFmpegError, OSError):  # the container breaks off here
            self.bad_packets += 1
            for stream in streams:
                yield stream, None

    def _frame_seconds(self) -> float:
        return 1 / self.info.frame_rate if self.info.frame_rate else 0.0

    def _mean_audio_seconds(self) -> float:
        return self._audio_seconds / len(self._audio_times)

    def _refuse_if_askew(self, frame: av.VideoFrame) -> None:
        degrees = _turn(frame)[0]
        if abs(degrees - 90 * round(degrees / 90)) > 1:  # FFmpeg's tolerance
            raise AvelError(
                f"{self.path}: its pictures are to be turned by {degrees:.1f} degrees",
                "turns of 0, 90, 180 or 270 degrees",
                "encode the video with its pictures upright",
            )

    def _refuse_if_joined(self) -> None:
        """Refuse what was put together so that only a part can be read or placed in time."""
        size = self.path.stat().st_size
        if self._header.container.format.name == "flv" and size - self._read_bytes > (1 - DECODED_SHARE) * size:
            raise several_in_one(self.path, max(self.video_end, self.audio_end))
        lost = len(self._left_out) * self._frame_seconds()
        if lost > max(1.0, (1 - DECODED_SHARE) * self.video_end):
            raise AvelError(
                f"{self.path}: {len(self._left_out)} pictures have the time of one before them, the first at "
                f"{self._left_out[0]:.2f} s",
                "a time of its own for every picture, in order",
                "write the file anew with a video tool; give files that were joined end to end one by one",
            )

    def _refuse_if_damaged(self) -> None:
        header = self._header
        if self._video is not None:
            if not self._frame_times:
                raise AvelError(f"{self.path}: no picture could be decoded", "a video", header.others("video"))
            if len(self._frame_times) == 1:
                do = header.others("video") if header.there["video"][1:] else "give a video with more than one picture"
                raise AvelError(f"{self.path} shows a single picture", "a video", do)
            inside, outside = _lost_seconds(self._packet_times, self._frame_times, self._frame_seconds(), header.tick)
            seconds = self.video_end - self._frame_times[0] - inside
            self._refuse_if_less(seconds, self._promised(self._video) or seconds + inside + outside, "pictures")
        if self._audio is not None:
            if not self._audio_seconds or (header.primed and self.audio_end <= TOLERANCE):
                raise AvelError(f"{self.path}: no sound could be decoded", "a video with sound", header.others("audio"))
            inside, outside = _lost_seconds(
                self._audio_packet_times, self._audio_times, self._mean_audio_seconds(), header.tick
            )
            seconds = self.audio_end - self._audio_times[0] - inside  # a pause is no loss
            self._refuse_if_less(seconds, self._promised(self._audio) or seconds + inside + outside, "sound")
        if self._whole_counts and not self._stamps.jumps:
            # A length that the file states as a whole is kept by the stream that ends last.
            end = max(self._others_end, *(self._stamps.end(stream.index) for stream in header.clocked))
            seconds = max(self.video_end, self.audio_end, self._others_end - header.zero)
            self._refuse_if_less(seconds, header.whole(end) or 0.0, "pictures and sound")

    def _promised(self, stream: av.VideoStream | av.AudioStream) -> float | None:
        """Length that the file states for a stream, seconds, once its packets are read."""
        return None if self._stamps.jumps else self._header.promise(stream, self._stamps.end(stream.index))

    def _refuse_if_less(self, seconds: float, promised: float, what: str) -> None:
        if seconds < DECODED_SHARE * promised:
            if self._header.container.format.name.startswith("mov") and count_movies(self.path)[0] > 1:
                raise several_in_one(self.path, seconds)
            raise AvelError(
                f"{self.path}: only {seconds:.2f} s of the {promised:.2f} s of {what} that the file promises could "
                f"be decoded ({self.bad_packets} bad packets)",
                f"at least {DECODED_SHARE:.0%} of either stream; the file is truncated or damaged",
                DO,
            )


class FrameChooser:
    """Which frames to show at wanted times: of the frames so far the one nearest before each time.

    Frames come in order of time. A time that is before the first frame shows the first.

    Args:
        times: the wanted times in order, seconds; may be endless.
    """

    def __init__(self, times: Iterator[float]) -> None:
        self._times = times
        self._wanted = next(times, np.inf)
        self._started = False

    def push(self, time: float) -> int:
        """Take a frame at ``time``; returns at how many wanted times the frame *before* it is shown."""
        shown = 0
        while self._started and self._wanted < time - TOLERANCE:
            self._wanted = next(self._times, np.inf)
            shown += 1
        self._started = True
        return shown


def segment_times(segment_seconds: float, frames_per_segment: int) -> Iterator[float]:
    """Endless times (t + i / frames_per_segment) * segment_seconds of the frames of segments t = 0, 1, ..."""
    index = 0
    while True:
        yield index * segment_seconds / frames_per_segment
        index += 1


class Scaler:
    """Turns decoded pictures into arrays of one size with FFmpeg's scaler, bilinear, the way up they are to be shown.

    Args:
        width, height: pixels; None keeps the picture's own.
    """

    def __init__(self, width: int | None = None, height: int | None = None) -> None:
        self.width, self.height = width, height
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        quarters, mirrored = orientation(frame)
        width, height = (self.height, self.width) if quarters % 2 else (self.width, self.height)
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BILINEAR", threads=1
        )
        picture = scaled.to_ndarray()
        if mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, quarters)) if quarters or mirrored else picture


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """How a picture is to be shown, as phones write it: quarter turns counterclockwise, 0 to 3, after mirroring left
    and right where the second is True."""
    degrees, mirrored = _turn(frame)
    return round(degrees / 90) % 4, mirrored


def _turn(frame: av.VideoFrame) -> tuple[float, bool]:
    """The same with the angle in degrees, whatever it is."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0.0, False
    # Rows (a b u), (c d v), (x y w): the pixel at (x, y) is shown at (a x + c y, b x + d y), y pointing down.
    a, b, _, c, d = (int(value) / 65536 for value in np.frombuffer(bytes(matrix), dtype=np.int32)[:5])
    mirrored = a * d - b * c < 0
    return math.degrees(math.atan2(b, -a) if mirrored else math.atan2(-b, a)), mirrored


def sample_frames(
    path: str | Path, times: Sequence[float], width: int, *, streams: Streams = FIRST_STREAMS
) -> np.ndarray:
    """The pictures nearest before some times, for people to look at: (N, h, w, 3) uint8 RGB, aspect ratio kept.

    Args:
        path: of a video, with or without sound.
        times: N times on the common clock, seconds, in order; after the end the last picture is shown.
        width: of the pictures, pixels.
        streams: which to take, where there are several.

    Raises:
        AvelError: as `avel.features.streams.probe` and `Media.decode`.
    """
    pictures: list[np.ndarray] = []
    with open_media(path, audio=False, streams=streams) as media:
        scaler: Scaler | None = None
        chooser = FrameChooser(iter(times))
        last: av.VideoFrame | None = None
        for time, frame in media.decode():
            if isinstance(frame, av.VideoFrame):
                if scaler is None:  # all pictures in the size of the first, which says which way up it is
                    across, down = frame.width, frame.height
                    across, down = (down, across) if orientation(frame)[0] % 2 else (across, down)
                    scaler = Scaler(width, max(2, round(width * down / across)))
                shown = chooser.push(time)
                if shown and last is not None:
                    pictures += [scaler(last)] * shown
                last = frame
        if scaler is not None and last is not None and len(pictures) < len(times):
            pictures += [scaler(last)] * (len(times) - len(pictures))
    height = scaler.height if scaler and scaler.height else 2
    return np.stack(pictures) if pictures else np.zeros((0, height, width, 3), dtype=np.uint8)


def _lost_seconds(
    packets: Sequence[float], frames: Sequence[float], usual: float, rounding: float
) -> tuple[float, float]:
    """Seconds in which packets came to nothing, between frames and outside them.

    A long gap between frames without a packet in it is no loss: the frame rate may vary.

    Args:
        packets: times of packets, seconds, in any order.
        frames: times of decoded frames, seconds, in order.
        usual: seconds from frame to frame.
        rounding: seconds by which the times of a packet and its frame differ at most.
    """
    if not packets:
        return 0.0, 0.0
    known = np.unique(packets)
    times = np.array(frames)
    inside = np.searchsorted(known, times[1:] - rounding) > np.searchsorted(known, times[:-1] + rounding)
    between = np.maximum(np.diff(times) - usual, 0)[inside].sum()
    outside = max(0, times[0] - known[0] - usual) + max(0, known[-1] - times[-1] - usual)
    return float(between), float(outside)

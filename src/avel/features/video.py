"""Decoding: one pass over a media file, pictures and sound on one clock (see `avel.features.streams`).

Sound or pictures that start late are placed at their time. Where time stamps restart or jump, as in recordings joined
end to end, what follows is moved to the end of the part before it (`avel.features.stamps`). What cannot be decoded is
skipped and counted. If more than a twentieth of the promised length of a stream is lost, the file is refused.
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

DECODED_SHARE = 0.95  # of the promised duration, in each stream


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
        path: path of the file.
        video: whether pictures are needed.
        audio: whether sound is needed.
        threads: number of threads that decode pictures; 0 leaves it to the decoder. They do not change the result.
        streams: which streams to take, if there are several.
        silent: whether to accept a file without sound even if sound is needed.

    Raises:
        AvelError: as in `avel.features.streams.probe`, for the streams that are needed.
    """
    with open_header(path, video=video, audio=audio, streams=streams, silent=silent) as header:
        yield Media(header, video, audio, threads)


class Media:
    """An opened media file. `decode` may be called once.

    Attributes:
        info: what the header says.
        has_sound: whether sound is decoded.
        bad_packets: number of packets and pictures skipped so far because they could not be decoded.
        num_pictures: number of pictures decoded so far.
        video_start: time of the first picture on the common clock, seconds.
        video_end: end of the pictures decoded so far, on the common clock.
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
        #: Whether only the length of the whole file says where a stream ends.
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
        """Where time stamps have restarted or jumped so far, in words; "" if they have not."""
        return in_words(self._stamps.jumps, self._header.zero)

    @property
    def num_pictures(self) -> int:
        return len(self._frame_times)

    @property
    def video_start(self) -> float:
        return self._frame_times[0] if self._frame_times else 0.0

    def decode(self) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """The frames of both streams in file order, each with its time on the common clock, seconds.

        Raises:
            AvelError: at the end, if under 95% of the promised duration of a stream was decoded, or there is only one
                picture or no sound; at the first picture, if its rotation is not a multiple of 90 degrees.
        """
        for frame in self._frames():
            # a damaged time base makes times NaN
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
                    self._left_out.append(time)  # two pictures for one time: the first is kept
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
                elif not self._header.exact:  # the rounding of a time stamp moves nothing
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
        """The time of the first sound before the container rounded it."""
        exact = min((-samples / sample_rate for samples in PRIMINGS), key=lambda each: abs(each - (time or 0.0)))
        return time if time is not None and abs(exact - time) > self._header.tick else exact

    def _even_time(self, time: float, next_picture: bool = False) -> float:
        """A picture's time before the container rounded it, as long as pictures come at an even rate."""
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
        """All frames that can be decoded; the others are counted."""
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
        """The packets of the needed streams; None tells a decoder to return the frames it still holds."""
        streams = [stream for stream in (self._video, self._audio) if stream is not None]
        try:
            # A stream that is not needed fills gaps of the other; any may be the one that lasts longest.
            for packet in self._header.container.demux(*([] if self._whole_counts else [self._header.clocked])):
                self._read_bytes = max(self._read_bytes, (packet.pos or 0) + packet.size)
                if packet.stream not in self._header.clocked:
                    end = in_seconds((packet.pts or 0) + (packet.duration or 0), packet)
                    self._others_end = max(self._others_end, end or 0.0)
                    continue
                self._stamps.move(packet)
                if packet.stream in streams:
                    yield packet.stream, packet
        except IndexError:  # from PyAV, at the end of a file where a new stream appeared; the others have been flushed
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
                f"{self.path}: its pictures are rotated by {degrees:.1f} degrees",
                "rotations by 0, 90, 180 or 270 degrees",
                "encode the video with its pictures upright",
            )

    def _refuse_if_joined(self) -> None:
        """Refuse joined files of which only a part can be read or placed in time."""
        size = self.path.stat().st_size
        if self._header.container.format.name == "flv" and size - self._read_bytes > (1 - DECODED_SHARE) * size:
            raise several_in_one(self.path, max(self.video_end, self.audio_end))
        lost = len(self._left_out) * self._frame_seconds()
        if lost > max(1.0, (1 - DECODED_SHARE) * self.video_end):
            raise AvelError(
                f"{self.path}: {len(self._left_out)} pictures have the time of an earlier one, the first at "
                f"{self._left_out[0]:.2f} s",
                "increasing times of the pictures",
                "rewrite the file with a video tool; give files that were joined end to end one by one",
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
            seconds = self.audio_end - self._audio_times[0] - inside  # a pause is not a loss
            self._refuse_if_less(seconds, self._promised(self._audio) or seconds + inside + outside, "sound")
        if self._whole_counts and not self._stamps.jumps:
            # A length stated for the whole file is that of the stream that ends last.
            end = max(self._others_end, *(self._stamps.end(stream.index) for stream in header.clocked))
            seconds = max(self.video_end, self.audio_end, self._others_end - header.zero)
            self._refuse_if_less(seconds, header.whole(end) or 0.0, "pictures and sound")

    def _promised(self, stream: av.VideoStream | av.AudioStream) -> float | None:
        """The length that the file states for a stream, seconds, once its packets are read."""
        return None if self._stamps.jumps else self._header.promise(stream, self._stamps.end(stream.index))

    def _refuse_if_less(self, seconds: float, promised: float, what: str) -> None:
        if seconds < DECODED_SHARE * promised:
            if self._header.container.format.name.startswith("mov") and count_movies(self.path)[0] > 1:
                raise several_in_one(self.path, seconds)
            raise AvelError(
                f"{self.path}: only {seconds:.2f} s of the {promised:.2f} s of {what} that the file promises could "
                f"be decoded ({self.bad_packets} bad packets)",
                f"at least {DECODED_SHARE:.0%} of each stream; the file is truncated or damaged",
                DO,
            )


class FrameChooser:
    """Chooses the frames for given times: the last frame before each time.

    Frames come in order of time. A time before the first frame gets the first.

    Args:
        times: the times in order, seconds; may be endless.
    """

    def __init__(self, times: Iterator[float]) -> None:
        self._times = times
        self._wanted = next(times, np.inf)
        self._started = False

    def push(self, time: float) -> int:
        """Take a frame at ``time``; return how many of the times get the frame *before* it."""
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
    """Turns decoded pictures into upright arrays of one size, with FFmpeg's bilinear scaler.

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
    """How to turn a picture upright, as phones record it: quarter turns counterclockwise, 0 to 3, after swapping left
    and right if the second is True."""
    degrees, mirrored = _turn(frame)
    return round(degrees / 90) % 4, mirrored


def _turn(frame: av.VideoFrame) -> tuple[float, bool]:
    """As `orientation`, with the exact angle in degrees."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0.0, False
    # Rows (a b u), (c d v), (x y w): the pixel at (x, y) is shown at (a x + c y, b x + d y), with y pointing down.
    a, b, _, c, d = (int(value) / 65536 for value in np.frombuffer(bytes(matrix), dtype=np.int32)[:5])
    mirrored = a * d - b * c < 0
    return math.degrees(math.atan2(b, -a) if mirrored else math.atan2(-b, a)), mirrored


def sample_frames(
    path: str | Path, times: Sequence[float], width: int, *, streams: Streams = FIRST_STREAMS
) -> np.ndarray:
    """The last pictures before given times, for people to look at: (N, h, w, 3) uint8 RGB, aspect ratio kept.

    Args:
        path: path of a video, with or without sound.
        times: N times on the common clock, seconds, in order; after the end the last picture is repeated.
        width: width of the pictures, pixels.
        streams: which streams to take, if there are several.

    Raises:
        AvelError: as in `avel.features.streams.probe` and `Media.decode`.
    """
    pictures: list[np.ndarray] = []
    with open_media(path, audio=False, streams=streams) as media:
        scaler: Scaler | None = None
        chooser = FrameChooser(iter(times))
        last: av.VideoFrame | None = None
        for time, frame in media.decode():
            if isinstance(frame, av.VideoFrame):
                if scaler is None:  # all pictures get the size of the first when upright
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
    """Seconds whose packets gave no frames, between frames and outside them.

    A long gap between frames without packets is not a loss: the frame rate may vary.

    Args:
        packets: times of packets, seconds, in any order.
        frames: times of decoded frames, seconds, in order.
        usual: usual seconds from frame to frame.
        rounding: largest difference between the times of a packet and its frame, seconds.
    """
    if not packets:
        return 0.0, 0.0
    known = np.unique(packets)
    times = np.array(frames)
    inside = np.searchsorted(known, times[1:] - rounding) > np.searchsorted(known, times[:-1] + rounding)
    between = np.maximum(np.diff(times) - usual, 0)[inside].sum()
    outside = max(0, times[0] - known[0] - usual) + max(0, known[-1] - times[-1] - usual)
    return float(between), float(outside)

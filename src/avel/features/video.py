"""Decoding: one pass over a media file, pictures and sound on one clock.

The clock starts (0 s) where the earlier of the two streams starts. What an encoder puts before its first sound
(priming) does not count. MP4 leaves it out by an edit list; in other containers it is left out here, so that the same
packets give the same answer in each. Sound that starts late is placed at its time, as are pictures. Where time stamps
start again or jump, as in recordings joined end to end, what follows is moved to where the part before it ends
(`avel.features.stamps`). What cannot be decoded is skipped and counted; where that is more than a twentieth of what the
file promised for the streams that are taken, the file is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from avel.errors import AvelError
from avel.features.recipe import FIRST_STREAMS, Streams
from avel.features.stamps import Stamps, in_words
from avel.reading import check_regular

DECODED_SHARE = 0.95  # of the promised duration, in either stream
_TOLERANCE = 1e-6  # seconds; times are ratios of whole numbers that floats do not always meet
_GAP = 0.02  # seconds of silence or overlap between two sound frames that is taken for a rounded time stamp
#: What a channel adds to mono sound, before all shares are divided by their sum: FFmpeg's matrix. It leaves out every
#: other channel, that of low frequencies (LFE) among them.
_SHARES = {
    "FC": 1.0,
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "TFL", "TFR"), math.sqrt(0.5)),
    **dict.fromkeys(("BL", "BR", "BC", "SL", "SR"), 0.5),
}
_PRIMINGS = (256, 312, 481, 1024, 1105, 2048, 2112)  # samples before the first sound: AC-3, Opus, MP2, AAC, MP3, AAC
_PRIMING = max(_PRIMINGS)
_PRIMING_LONG = 5186  # the same where a packet holds 2048 samples or more: HE-AAC, which decodes to twice the rate
_HEAD = 2**16  # bytes that tell a file's format
_RESTARTS = int(cast(Any, av.format.Flags.ts_discont).value)
_DO = "check that it plays in a video player; encode or download it again"


@dataclass(frozen=True)
class MediaInfo:
    """What a media file says of itself; a stream that it lacks has 0 everywhere.

    Attributes:
        duration: seconds for which there is both picture and sound, as promised.
        video_duration: promised end of the pictures on the common clock, seconds.
        audio_duration: promised end of the sound on the common clock, seconds.
        width, height: of a picture as it is coded, pixels; a picture that is to be shown on its side is not turned yet.
        frame_rate: pictures a second, on average.
        sample_rate: of the sound, Hz.
        channels: of the sound.
        start: where the common clock starts on the file's own, seconds.
        streams: which of several streams are taken, in words ("video 0 of 1 (h264, 320x240), audio 1 of 2 (...)"); ""
            where there is no choice.
    """

    duration: float
    video_duration: float
    audio_duration: float
    width: int
    height: int
    frame_rate: float
    sample_rate: int
    channels: int
    start: float = 0.0
    streams: str = ""


def probe(path: str | Path, *, streams: Streams = FIRST_STREAMS, silent: bool = False) -> MediaInfo:
    """Read the header of a video with sound; nothing is decoded, so damage further on goes unseen.

    Args:
        path: of the file.
        streams: which to look at.
        silent: whether a file without any sound will do; its ``duration`` is that of its pictures.

    Raises:
        AvelError: no such file, not a media file, truncated so that it cannot be opened, a still picture, without
            pictures, without sound or without the stream that was asked for.
    """
    with open_media(path, streams=streams, silent=silent) as media:
        return media.info


def is_media(path: str | Path) -> bool:
    """Whether the head of a file is of a format that FFmpeg knows. What it does not know takes it milliseconds here,
    and a sixth of a second where the file is opened."""
    try:
        _container(Path(path), formatprobesize=str(_HEAD)).close()
    except (av.error.FFmpegError, OSError):
        return False
    return True


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
        AvelError: as `probe`, of the streams that are needed.
    """
    path = Path(path)
    try:
        size = check_regular(path).st_size
    except FileNotFoundError:
        raise AvelError(f"no such file: {path}", "a video file", "check the path") from None
    if not size:
        raise AvelError(f"{path} is empty (0 bytes)", "a video file", _DO)
    try:
        container = _container(path)
    except (av.error.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error
    with container:
        fragments = False
        if container.format.name.startswith("mov"):
            movies, fragments = _movies(path)
            if movies > 1 and not fragments:
                raise _several_in_one(path, (container.duration or 0) / av.time_base)
        yield Media(path, container, fragments, video, audio, threads, streams, silent)


def _container(path: Path, **options: str) -> av.container.InputContainer:
    """Open a file of this machine, whatever its name looks like (``12:30.mp4``); a playlist may name files alone."""
    options["protocol_whitelist"] = "file"
    return av.open(f"file:{os.fspath(path)}", metadata_errors="replace", options=options)


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

    def __init__(
        self,
        path: Path,
        container: av.container.InputContainer,
        fragments: bool,
        video: bool,
        audio: bool,
        threads: int,
        streams: Streams,
        silent: bool,
    ) -> None:
        self.path = path
        self.bad_packets = 0
        self.video_end = self.audio_end = 0.0
        self._container = container
        #: A format whose time stamps may start again within a file: what it says of its length is a guess of FFmpeg's.
        self._restarts = bool(container.format.flags & _RESTARTS)
        matroska = "matroska" in container.format.name
        #: A whole MP4 says what is priming, and has a time base for each stream; others round to one of their own.
        self._exact = container.format.name.startswith("mov") and not fragments
        self._states_ends = matroska or fragments
        self._states_tags = matroska
        pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
        sounds = list(container.streams.audio)
        no_audio = audio and not silent and not sounds
        self._refuse_unfit(path, container, video and not pictures, no_audio, not pictures and not sounds)
        self._video = _chosen(path, pictures, streams.video, 2) if pictures else None
        self._audio = _chosen(path, sounds, streams.audio, 1) if sounds else None
        self._there: dict[str, Sequence[av.VideoStream | av.AudioStream]] = {"video": pictures, "audio": sounds}
        for stream in (self._video, self._audio):
            if stream is not None and stream.codec_context is None:
                raise AvelError(
                    f"{path}: nothing here decodes its {stream.type} stream",
                    "a common codec",
                    self._others(stream.type),
                )
        self._clocked = [stream for stream in (self._video, self._audio) if stream is not None]
        self._tick = max((float(s.time_base) for s in self._clocked if s.time_base), default=0.0) + _TOLERANCE
        self._stamps = Stamps(self._restarts)
        #: Whether sound before the start of the clock is an encoder's.
        self._zero, self._primed = self._clock_start()
        self.info = self._read_info(_in_words(self._there, streams, self._video, self._audio))
        self.has_sound = audio and self._audio is not None
        # A stream that is not asked for still helps to set the clock.
        all_streams = (video or not pictures) and (audio or not sounds)
        #: Whether the length of the whole file is all that says where a stream ends.
        self._whole_counts = (
            all_streams and not self._restarts and any(self._promise(stream) is None for stream in self._clocked)
        )
        self._video = self._video if video else None
        self._audio = self._audio if audio else None
        if self._video is not None:
            self._video.codec_context.thread_count = threads
            self._video.codec_context.thread_type = "AUTO"
        self._rate = 0.0 if self._exact or self._video is None else float(self._video.guessed_rate or 0)
        self._packet_times: list[float] = []
        self._frame_times: list[float] = []
        self._sound_packet_times: list[float] = []
        self._sound_times: list[float] = []
        self._audio_seconds = 0.0
        self._others_end = 0.0
        self._left_out: list[float] = []
        self._read_bytes = 0

    @staticmethod
    def _refuse_unfit(
        path: Path, container: av.container.InputContainer, no_video: bool, no_audio: bool, neither: bool
    ) -> None:
        name = container.format.name
        if neither or name == "tty":  # FFmpeg draws a text file as pictures of a terminal
            raise AvelError(f"{path} is not a media file", "a video with sound", "check the path")
        if name == "image2" or name.endswith("_pipe"):
            raise AvelError(f"{path} is a still picture", "a video with sound", "give a video file")
        if no_video:
            raise AvelError(f"{path} has no video track", "a video with sound", "give the video, not its sound alone")
        if no_audio:
            raise AvelError(
                f"{path} has no audio track",
                "a video with sound: an audio-visual event is seen and heard",
                "use the file that has the sound, or leave this one out",
            )

    def _clock_start(self) -> tuple[float, bool]:
        """Where the clock starts, seconds in the file, and whether the sound before it is priming.

        An encoder puts up to two packets before the first sound, and a decoder makes no whole sound of the first. Where
        the file does not say so itself, sound that comes earlier than the pictures by no more than that starts with
        them; sound that comes earlier still starts after its first packet.
        """
        video, audio = self._video, self._audio
        video_start, audio_start = (
            None if stream is None else _seconds(stream.start_time, stream) for stream in (video, audio)
        )
        if video_start is None or audio_start is None or audio_start >= video_start or self._exact:
            return min((start for start in (video_start, audio_start) if start is not None), default=0.0), False
        assert audio is not None
        if not audio.codec_context.codec.lossy or not audio.codec_context.sample_rate:
            return audio_start, False
        with _container(self.path) as container:
            packet = next((each for each in container.demux(container.streams[audio.index]) if each.size), None)
        if packet is None or packet.has_sidedata("skip_samples"):
            return audio_start, False
        first = _seconds(packet.duration, packet) or 0.0
        rate = audio.codec_context.sample_rate
        priming = (_PRIMING_LONG if round(first * rate) >= 2048 else _PRIMING) / rate
        if video_start - audio_start <= max(priming, first) + self._tick:
            return video_start, True
        return audio_start + first, True

    def _read_info(self, streams: str) -> MediaInfo:
        promises = [None if stream is None else self._promise(stream) for stream in (self._video, self._audio)]
        whole = self._whole()
        unknown = whole is None and None in promises
        counted = self._counted_ends() if self._restarts or unknown else {}
        ends = [0.0, 0.0]
        for index, stream in enumerate((self._video, self._audio)):
            if stream is not None and stream.index in counted:
                ends[index] = counted[stream.index] - self._zero
            elif stream is not None:
                start, length = _seconds(stream.start_time, stream), promises[index]
                ends[index] = (whole or 0.0) if length is None else (start or self._zero) - self._zero + length
        video, audio = self._video, self._audio
        return MediaInfo(
            duration=min(end for end, stream in zip(ends, (video, audio), strict=True) if stream is not None),
            video_duration=ends[0],
            audio_duration=ends[1],
            width=video.codec_context.width if video else 0,
            height=video.codec_context.height if video else 0,
            frame_rate=float(video.average_rate or video.guessed_rate or 0) if video else 0.0,
            sample_rate=audio.codec_context.sample_rate if audio else 0,
            channels=audio.codec_context.layout.nb_channels if audio else 0,
            start=self._zero,
            streams=streams,
        )

    def _whole(self, end: float | None = None) -> float | None:
        """Where the file as a whole is said to end on the common clock, seconds; ``end`` as for `_length`."""
        stated, start = self._container.duration, (self._container.start_time or 0) / av.time_base
        length = self._length(None if stated is None else stated / av.time_base, start, end)
        return None if length is None else length - (self._zero - start if self._primed else 0.0)

    def _length(self, stated: float | None, start: float, end: float | None) -> float | None:
        """Seconds from ``start``, of a stated length: Matroska and MP4 of fragments may state where the end is instead.

        Args:
            stated: seconds.
            start: in the file, seconds.
            end: of the packets in the file, seconds; None where they are not read yet. None comes after a stated end.
        """
        is_end = self._states_ends and stated is not None and 0 < start < stated
        if stated is None or not is_end or (end is not None and end > stated + start / 2):
            return stated
        return stated - start

    def _counted_ends(self) -> dict[int, float]:
        """Where the streams end, seconds, by a look at every packet; nothing is decoded."""
        stamps = Stamps(self._restarts)
        with _container(self.path) as container:
            try:
                for packet in container.demux([container.streams[stream.index] for stream in self._clocked]):
                    stamps.move(packet)
            except (av.error.FFmpegError, OSError, IndexError):  # as far as it goes: `decode` tells what is wrong
                pass
        return {stream.index: stamps.end(stream.index) for stream in self._clocked}

    @property
    def jumps(self) -> str:
        """Where time stamps started again or jumped in what was decoded so far, in words; "" where they did not."""
        return in_words(self._stamps.jumps, self._zero)

    @property
    def num_pictures(self) -> int:
        return len(self._frame_times)

    @property
    def video_start(self) -> float:
        return self._frame_times[0] if self._frame_times else 0.0

    def _promise(self, stream: av.VideoStream | av.AudioStream, end: float | None = None) -> float | None:
        """Length that the file states for a stream, seconds; ``end`` as for `_length`. Matroska may state one by a tag,
        and what FFmpeg then says of a stream is a guess; so it is of a format that may restart its time stamps."""
        if self._restarts or self._stamps.jumps:
            return None
        stated = (
            _clock_time(stream.metadata.get("DURATION", "")) if self._states_tags else _seconds(stream.duration, stream)
        )
        if stated is not None and self._states_tags and self._container.duration:  # a tag may be left from before a cut
            stated = min(stated, self._container.duration / av.time_base)
        return self._length(stated, _seconds(stream.start_time, stream) or 0.0, end)

    def _others(self, kind: str) -> str:
        """What to do where a stream cannot be used."""
        if len(self._there[kind]) < 2:
            return _DO
        there = ", ".join(_described(index, each) for index, each in enumerate(self._there[kind]))
        return f"choose another by --{kind}-stream: {there}"

    def decode(self) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """The frames of both streams in the file's order, each with its time on the common clock, seconds.

        Raises:
            AvelError: at the end, if under 95% of the promised duration was decoded in either stream, or there is
                but a single picture or no sound in it; at the first picture, if it is to be turned by an angle that is
                no multiple of 90 degrees.
        """
        for frame in self._frames():
            # a damaged time base makes NaN of a time
            time = None if frame.time is None or not np.isfinite(frame.time) else frame.time - self._zero
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
                seconds = _seconds(frame.duration, frame) or self._frame_seconds()
                self.video_end = self._even_time(time + seconds, next_picture=True)
            else:
                seconds = frame.samples / frame.sample_rate
                if self._primed and not self._sound_times:
                    time = self._first_sound(time, frame.sample_rate)
                elif time is None:
                    time = self.audio_end
                elif not self._exact:  # a time stamp that is rounded moves nothing
                    time = next((each for each in (self.audio_end, 0.0) if abs(time - each) <= self._tick), time)
                self._sound_times.append(time)
                self._audio_seconds += seconds
                self.audio_end = time + seconds
                if self._primed and self.audio_end <= _TOLERANCE:
                    continue
            yield time, frame
        self._refuse_if_joined()
        self._refuse_if_damaged()

    def _first_sound(self, time: float | None, sample_rate: int) -> float:
        """The time of the first sound, before the container rounded it."""
        exact = min((-samples / sample_rate for samples in _PRIMINGS), key=lambda each: abs(each - (time or 0.0)))
        return time if time is not None and abs(exact - time) > self._tick else exact

    def _even_time(self, time: float, next_picture: bool = False) -> float:
        """A picture's time before the container rounded it, as long as its pictures come at an even rate."""
        if not self._rate or not self._frame_times:
            return time
        first = self._frame_times[0]
        even = first + round((time - first) * self._rate) / self._rate
        if abs(even - time) <= self._tick:
            return even
        if not next_picture:
            self._rate = 0.0
        return time

    def _frames(self) -> Iterator[av.VideoFrame | av.AudioFrame]:
        """All frames that can be decoded; the rest is counted."""
        for stream, packet in self._packets():
            time = _seconds(packet.pts, packet) if packet is not None and packet.size else None
            if time is not None:
                times = self._packet_times if stream is self._video else self._sound_packet_times
                times.append(time - self._zero)
            try:
                yield from stream.decode(packet)
            except (av.error.FFmpegError, OSError):
                self.bad_packets += 1

    def _packets(self) -> Iterator[tuple[av.VideoStream | av.AudioStream, av.Packet | None]]:
        """The packets of the streams that are wanted; None tells a decoder to hand out what it still holds."""
        streams = [stream for stream in (self._video, self._audio) if stream is not None]
        try:
            # One not asked for fills the gaps of the other; any may be the one for which the file lasts.
            for packet in self._container.demux(*([] if self._whole_counts else [self._clocked])):
                self._read_bytes = max(self._read_bytes, (packet.pos or 0) + packet.size)
                if packet.stream not in self._clocked:
                    end = _seconds((packet.pts or 0) + (packet.duration or 0), packet)
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

    def _mean_sound_seconds(self) -> float:
        return self._audio_seconds / len(self._sound_times)

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
        if self._container.format.name == "flv" and size - self._read_bytes > (1 - DECODED_SHARE) * size:
            raise _several_in_one(self.path, max(self.video_end, self.audio_end))
        lost = len(self._left_out) * self._frame_seconds()
        if lost > max(1.0, (1 - DECODED_SHARE) * self.video_end):
            raise AvelError(
                f"{self.path}: {len(self._left_out)} pictures have the time of one before them, the first at "
                f"{self._left_out[0]:.2f} s",
                "pictures whose times go on, each its own",
                "write the file anew with a video tool; files joined end to end give as they were",
            )

    def _refuse_if_damaged(self) -> None:
        if self._video is not None:
            if not self._frame_times:
                raise AvelError(f"{self.path}: no picture could be decoded", "a video", self._others("video"))
            if len(self._frame_times) == 1:
                do = self._others("video") if self._there["video"][1:] else "give a video that moves"
                raise AvelError(f"{self.path} shows a single picture", "a video", do)
            inside, outside = _lost_seconds(self._packet_times, self._frame_times, self._frame_seconds(), self._tick)
            seconds = self.video_end - self._frame_times[0] - inside
            self._refuse_if_less(seconds, self._promised(self._video) or seconds + inside + outside, "pictures")
        if self._audio is not None:
            if not self._audio_seconds or (self._primed and self.audio_end <= _TOLERANCE):
                raise AvelError(f"{self.path}: no sound could be decoded", "a video with sound", self._others("audio"))
            inside, outside = _lost_seconds(
                self._sound_packet_times, self._sound_times, self._mean_sound_seconds(), self._tick
            )
            seconds = self.audio_end - self._sound_times[0] - inside  # a pause is no loss
            self._refuse_if_less(seconds, self._promised(self._audio) or seconds + inside + outside, "sound")
        if self._whole_counts and not self._stamps.jumps:
            # A length that the file states as a whole is kept by the stream that ends last.
            end = max(self._others_end, *(self._stamps.end(stream.index) for stream in self._clocked))
            seconds = max(self.video_end, self.audio_end, self._others_end - self._zero)
            self._refuse_if_less(seconds, self._whole(end) or 0.0, "pictures and sound")

    def _promised(self, stream: av.VideoStream | av.AudioStream) -> float | None:
        """Length that the file states for a stream, seconds, once its packets are read."""
        return self._promise(stream, self._stamps.end(stream.index))

    def _refuse_if_less(self, seconds: float, promised: float, what: str) -> None:
        if seconds < DECODED_SHARE * promised:
            if self._container.format.name.startswith("mov") and _movies(self.path)[0] > 1:
                raise _several_in_one(self.path, seconds)
            raise AvelError(
                f"{self.path}: only {seconds:.2f} s of the {promised:.2f} s of {what} that the file promises could "
                f"be decoded ({self.bad_packets} bad packets)",
                f"at least {DECODED_SHARE:.0%} of either stream; the file is truncated or damaged",
                _DO,
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
        """Tell of a frame at ``time``; returns at how many wanted times the frame *before* it is shown."""
        shown = 0
        while self._started and self._wanted < time - _TOLERANCE:
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


class SoundTrack:
    """Mono sound of one rate without gaps from time 0, made of the frames of a file.

    Two channels are averaged, and more are mixed by where they belong, as FFmpeg does, see `mono_shares`. Where frames
    leave a gap there is silence; where they overlap, the earlier stands.

    Args:
        sample_rate: of the result, Hz. None does as AVE's recipe: it takes the first frame's, so that nothing is
            resampled, rounds each channel to 16 bits, as a WAV file made of it would, and averages any number of them.

    Attributes:
        sample_rate: the same; 0 until the first frame has told it.
        mixing: how more than two channels became one, in words; "" where there were no more.
    """

    def __init__(self, sample_rate: int | None) -> None:
        self.sample_rate = sample_rate or 0
        self.mixing = ""
        self._sixteen_bit = sample_rate is None
        self._rate = 0
        self._end = 0.0
        self._held: list[np.ndarray] = []
        self._resampler = self._new_resampler()

    def push(self, time: float, frame: av.AudioFrame) -> np.ndarray:
        """Tell of a frame at ``time``; returns the samples that are ready, (some,) float32, full scale 1."""
        ready = []
        if frame.sample_rate != self._rate:
            self.sample_rate = self.sample_rate or frame.sample_rate
            ready.append(self.finish())
            self._rate = frame.sample_rate
        shares = None
        if frame.layout.nb_channels > 2:
            shares = None if self._sixteen_bit else mono_shares(frame.layout)
            words = _mixing_in_words(frame.layout, shares, self._sixteen_bit)
            if words not in self.mixing:  # the number of channels may change, as in broadcasts
                self.mixing = f"{self.mixing}, then {words}" if self.mixing else words
        mono = _mono(frame, self._sixteen_bit, shares)
        offset = round((time - self._end) * self._rate)
        if offset > _GAP * self._rate or (offset > 0 and not self._end):
            self._end = time
            while offset:  # in pieces: a long gap must not be one long array
                piece = min(offset, self._rate)
                ready.append(self._resample(np.zeros(piece, dtype=np.float32)))
                offset -= piece
        elif offset < 0 and (-offset > _GAP * self._rate or not self._end):
            mono = mono[-offset:]
        self._end += len(mono) / self._rate
        ready.append(self._resample(mono))
        return np.concatenate(ready)

    def finish(self) -> np.ndarray:
        """The samples that are still held back, (some,) float32."""
        last = self._resample(np.zeros(0, dtype=np.float32), everything=True)
        if self._rate:
            last = np.concatenate([last, _joined(self._resampler.resample(None))])
        self._resampler = self._new_resampler()
        return last

    def _new_resampler(self) -> av.AudioResampler:
        return av.AudioResampler(format="flt", layout="mono", rate=self.sample_rate)

    def _resample(self, mono: np.ndarray, everything: bool = False) -> np.ndarray:
        self._held.append(mono)
        if not everything and sum(map(len, self._held)) < self._rate / 4:  # a call costs as much as many samples
            return np.zeros(0, dtype=np.float32)
        mono = np.concatenate(self._held)
        self._held = []
        if not len(mono):
            return mono
        frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
        frame.sample_rate = self._rate
        return _joined(self._resampler.resample(frame))


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
        AvelError: as `probe` and `Media.decode`.
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


def read_waveform(path: str | Path, sample_rate: int, *, streams: Streams = FIRST_STREAMS) -> np.ndarray:
    """The whole sound on the common clock, mixed to mono as `SoundTrack` does: (samples,) float32, full scale 1.

    Raises:
        AvelError: as `probe` and `Media.decode`, pictures apart.
    """
    track = SoundTrack(sample_rate)
    with open_media(path, video=False, streams=streams) as media:
        pieces = [track.push(time, frame) for time, frame in media.decode() if isinstance(frame, av.AudioFrame)]
    return np.concatenate([*pieces, track.finish()])


def mono_shares(layout: av.AudioLayout) -> np.ndarray | None:
    """What each channel adds to mono sound, as FFmpeg mixes: (channels,) float32 whose sum is 1.

    FFmpeg first mixes to stereo, the centre and the surrounds at -3 dB and without low frequencies, and then to mono.
    None where a file does not say where its channels belong (FFmpeg guesses) or FFmpeg has no share for any.
    """
    return _shares_of(tuple(channel.name for channel in layout.channels))


@cache
def _shares_of(names: tuple[str, ...]) -> np.ndarray | None:
    shares = np.array([_SHARES.get(name, 0.0) for name in names])
    return (shares / shares.sum()).astype(np.float32) if shares.any() else None


def _mixing_in_words(layout: av.AudioLayout, shares: np.ndarray | None, sixteen_bit: bool) -> str:
    if shares is None:
        reason = "as AVE's recipe does" if sixteen_bit else "as the file does not say where they belong"
        return f"{layout.name}: averaged, {reason}"
    missing = [channel.name for channel, share in zip(layout.channels, shares, strict=True) if not share]
    return f"{layout.name}: mixed as FFmpeg does" + (f", without {' and '.join(missing)}" if missing else "")


def _mono(frame: av.AudioFrame, sixteen_bit: bool, shares: np.ndarray | None) -> np.ndarray:
    """The channels mixed by ``shares``, or their mean: (samples,) float32, full scale 1.

    Args:
        frame: of any format.
        sixteen_bit: whether to round each channel to 16 bits first.
        shares: (channels,) float32 or None.
    """
    channels = frame.layout.nb_channels
    if frame.format.name.startswith("s64"):  # which PyAV makes no array of
        frame = av.AudioResampler(format="dbl").resample(frame)[0]
    elif (
        frame.format.is_planar and channels > 7
    ):  # PyAV 18 takes what follows the eighth plane for a ninth, and crashes
        frame = av.AudioResampler(format=frame.format.packed.name).resample(frame)[0]
    samples = frame.to_ndarray()
    samples = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    if sixteen_bit and samples.dtype.itemsize > 2:
        samples = _sixteen_bits(samples)
    kind = samples.dtype
    samples = samples.astype(np.float32)
    if kind.kind != "f":
        full = np.float32(2 ** (8 * kind.itemsize - 1))  # a power of 2, so that no bit is lost
        samples = (samples - full if kind.kind == "u" else samples) / full
    if channels == 1:
        return samples[0]
    return samples.mean(0) if shares is None else np.einsum("c,cn->n", shares, samples)


def _sixteen_bits(samples: np.ndarray) -> np.ndarray:
    """As FFmpeg does it: floats are rounded, of whole numbers the lower bits are dropped. Any shape -> int16."""
    if samples.dtype.kind == "f":
        return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16)
    return (samples >> (8 * samples.dtype.itemsize - 16)).astype(np.int16)


def _joined(frames: Sequence[av.AudioFrame]) -> np.ndarray:
    return np.concatenate([frame.to_ndarray()[0] for frame in frames] or [np.zeros(0, dtype=np.float32)])


def _seconds(value: int | None, owner: av.stream.Stream | av.VideoFrame | av.Packet) -> float | None:
    """A time stamp in seconds, None where there is none."""
    return None if value is None or owner.time_base is None else float(value * owner.time_base)


def _clock_time(text: str) -> float | None:
    """Seconds of ``00:01:02.003``, None where it is nothing of the kind."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text)
    return None if found is None else 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])


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


def _is_cover(stream: av.VideoStream) -> bool:
    """Whether it is a picture that goes with the file, such as a cover, and no video."""
    disposition = av.stream.Disposition
    return bool(stream.disposition & (disposition.attached_pic | disposition.timed_thumbnails))


_Stream = TypeVar("_Stream", av.VideoStream, av.AudioStream)


def _chosen(path: Path, streams: Sequence[_Stream], number: int | None, frames: int) -> _Stream:
    """The stream of that number; where none is asked for, the first of which so many frames can be decoded."""
    if number is not None and not 0 <= number < len(streams):
        kind, there = streams[0].type, ", ".join(_described(index, each) for index, each in enumerate(streams))
        raise AvelError(
            f"{path} has no {kind} stream {number}",
            f"one of its {kind} streams, counted from 0: {there}",
            f"name one of them by --{kind}-stream, or leave it out to take the first",
        )
    return streams[number if number is not None else _first_whole(path, streams, frames) if streams[1:] else 0]


def _first_whole(path: Path, streams: Sequence[_Stream], frames: int) -> int:
    """Which stream is the first of which so many frames can be decoded; 0 where none is."""
    decoded = {stream.index: 0 for stream in streams if stream.codec_context is not None}
    with _container(path) as container, suppress(av.error.FFmpegError, OSError, IndexError):
        candidates = [container.streams[index] for index in decoded]
        for each in candidates:
            each.codec_context.thread_count = 1  # hands out each picture at once
        for packet in container.demux(candidates) if candidates else ():
            index = packet.stream.index
            if decoded[index] < frames:
                with suppress(av.error.FFmpegError, OSError):
                    decoded[index] += len(packet.decode())
            if decoded[next(iter(decoded))] >= frames:  # no earlier one is left
                break
    return next((number for number, each in enumerate(streams) if decoded.get(each.index, 0) >= frames), 0)


def _described(index: int, stream: av.VideoStream | av.AudioStream) -> str:
    """``0 (h264, 320x240)``, ``1 (aac, 44100 Hz, stereo, fra)``."""
    if stream.codec_context is None:
        facts = ["unknown codec"]
    elif isinstance(stream, av.VideoStream):
        video = stream.codec_context
        facts = [video.name, f"{video.width}x{video.height}"]
    else:
        audio = stream.codec_context
        facts = [audio.name, f"{audio.sample_rate} Hz", audio.layout.name]
    language = stream.metadata.get("language", "und")
    return f"{index} ({', '.join([*facts, language] if language != 'und' else facts)})"


def _in_words(
    there: Mapping[str, Sequence[av.VideoStream | av.AudioStream]],
    asked: Streams,
    *taken: av.VideoStream | av.AudioStream | None,
) -> str:
    """Which streams are taken, "" where there is no choice; after that, which were passed over and why."""
    if all(len(streams) < 2 for streams in there.values()):
        return ""
    words, passed_over = [], ""
    for (kind, streams), stream, number in zip(there.items(), taken, asked, strict=True):
        if stream is None:
            continue
        index = list(streams).index(stream)
        words.append(f"{kind} {_described(index, stream).replace(' ', f' of {len(streams)} ', 1)}")
        if index and number is None:
            why = "cannot be decoded" + (" or shows a single picture" if kind == "video" else "")
            passed_over += f"; {kind} {' and '.join(map(str, range(index)))} {why}"
    return ", ".join(words) + passed_over


def _several_in_one(path: Path, seconds: float) -> AvelError:
    return AvelError(
        f"{path} is several files joined end to end, of which players show the first {seconds:.2f} s alone",
        "one video in a file",
        "give the files as they were before, or join them with a video tool that writes the file anew",
    )


def _movies(path: Path) -> tuple[int, bool]:
    """How many indexes (moov) an MP4 file holds, and whether it is one of fragments (moof), which may repeat theirs."""
    count, fragments = 0, False
    with open(path, "rb") as file:
        while len(head := file.read(16)) >= 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            count, fragments = count + (kind == b"moov"), fragments or kind == b"moof"
            if size < 8:  # 0: to the end of the file; else damaged
                break
            file.seek(size - len(head), os.SEEK_CUR)
    return count, fragments


def _unreadable(path: Path, error: Exception) -> AvelError:
    if isinstance(error, PermissionError):
        return AvelError(f"{path} may not be read", "a readable video file", "check its permissions")
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return AvelError(
            f"{path} is an MP4 file whose index (moov) cannot be read: it is truncated or damaged", "a whole file", _DO
        )
    return AvelError(f"{path} is not a media file, or is damaged from the start", "a video with sound", _DO)

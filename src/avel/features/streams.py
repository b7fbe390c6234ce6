"""The header of a media file: its streams, the choice among them, its clock and its length. Nothing is decoded.

The clock starts (0 s) where the earlier of the two streams starts. Priming, which an encoder puts before the first
sound, does not count. MP4 leaves it out with an edit list; for other containers it is left out here, so that the same
packets give the same result in each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import av
import av.error

from avel.errors import AvelError
from avel.features.recipe import FIRST_STREAMS, Streams
from avel.features.stamps import Stamps
from avel.reading import check_regular

TOLERANCE = 1e-6  # seconds; times are fractions that floats may miss
PRIMINGS = (256, 312, 481, 1024, 1105, 2048, 2112)  # samples before the first sound: AC-3, Opus, MP2, AAC, MP3, AAC
_PRIMING = max(PRIMINGS)
_PRIMING_LONG = 5186  # the same for packets of 2048 samples or more: HE-AAC, which decodes to twice the rate
_HEAD = 2**16  # bytes that identify a file's format
_RESTARTS = int(cast(Any, av.format.Flags.ts_discont).value)
DO = "check that it plays in a video player; encode or download it again"


@dataclass(frozen=True)
class MediaInfo:
    """What the header of a media file says.

    Attributes:
        duration: seconds with both picture and sound, according to the header.
        frame_rate: average pictures per second; 0 without pictures.
        start: where the common clock starts on the file's own, seconds.
        streams: which of several streams are taken, in words ("video 0 of 1 (h264, 320x240), audio 1 of 2 (...)"); ""
            if there is no choice.
    """

    duration: float
    frame_rate: float
    start: float = 0.0
    streams: str = ""


def probe(path: str | Path, *, streams: Streams = FIRST_STREAMS, silent: bool = False) -> MediaInfo:
    """Read the header of a video with sound. Nothing is decoded, so later damage is not found.

    Args:
        path: path of the file.
        streams: which streams to take.
        silent: whether to accept a file without sound; its ``duration`` is then that of its pictures.

    Raises:
        AvelError: the file does not exist, is not a media file, is too damaged to open, is a still picture, or has no
            pictures, no sound or not the requested stream.
    """
    with open_header(path, streams=streams, silent=silent) as header:
        return header.info


def is_media(path: str | Path) -> bool:
    """Whether the head of a file has a format that FFmpeg knows.

    Rejecting a file takes milliseconds here, but a sixth of a second when it is opened.
    """
    try:
        open_container(Path(path), formatprobesize=str(_HEAD)).close()
    except (av.error.FFmpegError, OSError):
        return False
    return True


@contextmanager
def open_header(
    path: str | Path,
    *,
    video: bool = True,
    audio: bool = True,
    streams: Streams = FIRST_STREAMS,
    silent: bool = False,
) -> Iterator[Header]:
    """Open a media file and read its header.

    Args:
        path: path of the file.
        video: whether pictures are needed.
        audio: whether sound is needed.
        streams: which streams to take, if there are several.
        silent: whether to accept a file without sound even if sound is needed.

    Raises:
        AvelError: as in `probe`, for the streams that are needed.
    """
    path = Path(path)
    try:
        size = check_regular(path).st_size
    except FileNotFoundError:
        raise AvelError(f"no such file: {path}", "a video file", "check the path") from None
    if not size:
        raise AvelError(f"{path} is empty (0 bytes)", "a video file", DO)
    try:
        container = open_container(path)
    except (av.error.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error
    with container:
        fragments = False
        if container.format.name.startswith("mov"):
            movies, fragments = count_movies(path)
            if movies > 1 and not fragments:
                raise several_in_one(path, (container.duration or 0) / av.time_base)
        yield Header(path, container, fragments, video, audio, streams, silent)


def open_container(path: Path, **options: str) -> av.container.InputContainer:
    """Open a local file, whatever its name looks like (``12:30.mp4``); a playlist may name only files."""
    options["protocol_whitelist"] = "file"
    return av.open(f"file:{os.fspath(path)}", metadata_errors="replace", options=options)


class Header:
    """The header of an opened media file, before anything is decoded.

    Attributes:
        path: path of the file.
        container: as opened by PyAV.
        info: the header's facts, for callers.
        video: the chosen video stream, if any.
        audio: the chosen audio stream, if any.
        there: all streams of each kind, by the kind's name.
        clocked: the streams that set the clock, including one that is not needed.
        restarts: whether the format has time stamps that may restart within a file. The length of such a file is then
            FFmpeg's guess.
        exact: whether the file marks priming and has a time base for each stream, as an unfragmented MP4 does; others
            round to one time base.
        tick: largest rounding error of a time stamp, seconds.
        zero: where the clock starts, seconds in the file.
        primed: whether the sound before the start of the clock is priming.
    """

    def __init__(
        self,
        path: Path,
        container: av.container.InputContainer,
        fragments: bool,
        video: bool,
        audio: bool,
        streams: Streams,
        silent: bool,
    ) -> None:
        self.path = path
        self.container = container
        self.restarts = bool(container.format.flags & _RESTARTS)
        matroska = "matroska" in container.format.name
        self.exact = container.format.name.startswith("mov") and not fragments
        self._states_ends = matroska or fragments
        self._states_tags = matroska
        video_streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        audio_streams = list(container.streams.audio)
        no_audio = audio and not silent and not audio_streams
        self._refuse_unfit(
            path, container, video and not video_streams, no_audio, not video_streams and not audio_streams
        )
        self.video = _chosen(path, video_streams, streams.video, 2) if video_streams else None
        self.audio = _chosen(path, audio_streams, streams.audio, 1) if audio_streams else None
        self.there: dict[str, Sequence[av.VideoStream | av.AudioStream]] = {
            "video": video_streams,
            "audio": audio_streams,
        }
        for stream in (self.video, self.audio):
            if stream is not None and stream.codec_context is None:
                raise AvelError(
                    f"{path}: FFmpeg has no decoder for its {stream.type} stream",
                    "a common codec",
                    self.others(stream.type),
                )
        self.clocked = [stream for stream in (self.video, self.audio) if stream is not None]
        self.tick = max((float(s.time_base) for s in self.clocked if s.time_base), default=0.0) + TOLERANCE
        self.zero, self.primed = self._clock_start()
        self.info = self._read_info(_in_words(self.there, streams, self.video, self.audio))

    @staticmethod
    def _refuse_unfit(
        path: Path, container: av.container.InputContainer, no_video: bool, no_audio: bool, neither: bool
    ) -> None:
        name = container.format.name
        if neither or name == "tty":  # FFmpeg renders a text file as pictures of a terminal
            raise AvelError(f"{path} is not a media file", "a video with sound", "check the path")
        if name == "image2" or name.endswith("_pipe"):
            raise AvelError(f"{path} is a still picture", "a video with sound", "give a video file")
        if no_video:
            raise AvelError(f"{path} has no video track", "a video with sound", "give the video, not its sound alone")
        if no_audio:
            raise AvelError(
                f"{path} has no audio track",
                "a video with sound: an audio-visual event is seen and heard",
                "use the file with the sound, or leave this one out",
            )

    def _clock_start(self) -> tuple[float, bool]:
        """Where the clock starts, seconds in the file, and whether the sound before it is priming.

        An encoder puts up to two packets before the first sound, and a decoder cannot fully decode the first. If the
        file does not mark priming, sound that precedes the pictures by no more than that starts with them; sound that
        precedes them by more starts after its first packet.
        """
        video, audio = self.video, self.audio
        video_start, audio_start = (
            None if stream is None else in_seconds(stream.start_time, stream) for stream in (video, audio)
        )
        if video_start is None or audio_start is None or audio_start >= video_start or self.exact:
            return min((start for start in (video_start, audio_start) if start is not None), default=0.0), False
        assert audio is not None
        if not audio.codec_context.codec.lossy or not audio.codec_context.sample_rate:
            return audio_start, False
        with open_container(self.path) as container:
            packet = next((each for each in container.demux(container.streams[audio.index]) if each.size), None)
        if packet is None or packet.has_sidedata("skip_samples"):
            return audio_start, False
        first = in_seconds(packet.duration, packet) or 0.0
        rate = audio.codec_context.sample_rate
        priming = (_PRIMING_LONG if round(first * rate) >= 2048 else _PRIMING) / rate
        if video_start - audio_start <= max(priming, first) + self.tick:
            return video_start, True
        return audio_start + first, True

    def _read_info(self, streams: str) -> MediaInfo:
        promises = [None if stream is None else self.promise(stream) for stream in (self.video, self.audio)]
        whole = self.whole()
        unknown = whole is None and None in promises
        counted = self._counted_ends() if self.restarts or unknown else {}
        ends = [0.0, 0.0]
        for index, stream in enumerate((self.video, self.audio)):
            if stream is not None and stream.index in counted:
                ends[index] = counted[stream.index] - self.zero
            elif stream is not None:
                start, length = in_seconds(stream.start_time, stream), promises[index]
                ends[index] = (whole or 0.0) if length is None else (start or self.zero) - self.zero + length
        video, audio = self.video, self.audio
        return MediaInfo(
            duration=min(end for end, stream in zip(ends, (video, audio), strict=True) if stream is not None),
            frame_rate=float(video.average_rate or video.guessed_rate or 0) if video else 0.0,
            start=self.zero,
            streams=streams,
        )

    def whole(self, end: float | None = None) -> float | None:
        """Where the header says that the whole file ends on the common clock, seconds; ``end`` as in `_length`."""
        stated, start = self.container.duration, (self.container.start_time or 0) / av.time_base
        length = self._length(None if stated is None else stated / av.time_base, start, end)
        return None if length is None else length - (self.zero - start if self.primed else 0.0)

    def _length(self, stated: float | None, start: float, end: float | None) -> float | None:
        """A stated length as seconds from ``start``: Matroska and fragmented MP4 may state the end instead.

        Args:
            stated: the stated length or end, seconds.
            start: the start in the file, seconds.
            end: the end of the packets in the file, seconds; None if they are not read yet.
        """
        is_end = self._states_ends and stated is not None and 0 < start < stated
        if stated is None or not is_end or (end is not None and end > stated + start / 2):
            return stated
        return stated - start

    def promise(self, stream: av.VideoStream | av.AudioStream, end: float | None = None) -> float | None:
        """The length that the file states for a stream, seconds; ``end`` as in `_length`.

        Matroska may state it in a tag; FFmpeg's value is then a guess, as in formats whose time stamps may restart.
        """
        if self.restarts:
            return None
        stated = (
            _clock_time(stream.metadata.get("DURATION", ""))
            if self._states_tags
            else in_seconds(stream.duration, stream)
        )
        if stated is not None and self._states_tags and self.container.duration:  # a tag may be older than a cut
            stated = min(stated, self.container.duration / av.time_base)
        return self._length(stated, in_seconds(stream.start_time, stream) or 0.0, end)

    def others(self, kind: str) -> str:
        """What to do if a stream cannot be used."""
        if len(self.there[kind]) < 2:
            return DO
        there = ", ".join(_described(index, each) for index, each in enumerate(self.there[kind]))
        return f"choose another with --{kind}-stream: {there}"

    def _counted_ends(self) -> dict[int, float]:
        """Where the streams end, seconds, from every packet; nothing is decoded."""
        stamps = Stamps(self.restarts)
        with open_container(self.path) as container:
            try:
                for packet in container.demux([container.streams[stream.index] for stream in self.clocked]):
                    stamps.move(packet)
            except (av.error.FFmpegError, OSError, IndexError):  # stop here: `decode` reports what is wrong
                pass
        return {stream.index: stamps.end(stream.index) for stream in self.clocked}


def _is_cover(stream: av.VideoStream) -> bool:
    """Whether a stream is a picture attached to the file, such as a cover, not a video."""
    disposition = av.stream.Disposition
    return bool(stream.disposition & (disposition.attached_pic | disposition.timed_thumbnails))


_Stream = TypeVar("_Stream", av.VideoStream, av.AudioStream)


def _chosen(path: Path, streams: Sequence[_Stream], number: int | None, frames: int) -> _Stream:
    """The stream of that number; for None, the first of which ``frames`` frames can be decoded."""
    if number is not None and not 0 <= number < len(streams):
        kind, there = streams[0].type, ", ".join(_described(index, each) for index, each in enumerate(streams))
        raise AvelError(
            f"{path} has no {kind} stream {number}",
            f"one of its {kind} streams, counted from 0: {there}",
            f"name one of them with --{kind}-stream, or leave it out to take the first",
        )
    return streams[number if number is not None else _first_whole(path, streams, frames) if streams[1:] else 0]


def _first_whole(path: Path, streams: Sequence[_Stream], frames: int) -> int:
    """The first stream of which ``frames`` frames can be decoded; 0 if there is none."""
    decoded = {stream.index: 0 for stream in streams if stream.codec_context is not None}
    with open_container(path) as container, suppress(av.error.FFmpegError, OSError, IndexError):
        candidates = [container.streams[index] for index in decoded]
        for each in candidates:
            each.codec_context.thread_count = 1  # returns each picture at once
        for packet in container.demux(candidates) if candidates else ():
            index = packet.stream.index
            if decoded[index] < frames:
                with suppress(av.error.FFmpegError, OSError):
                    decoded[index] += len(packet.decode())
            if decoded[next(iter(decoded))] >= frames:  # no earlier stream is left
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
    """Which streams are taken, then which were skipped and why; "" if there is no choice."""
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


def several_in_one(path: Path, seconds: float) -> AvelError:
    return AvelError(
        f"{path} is several files joined end to end, of which players show only the first {seconds:.2f} s",
        "one video per file",
        "give the files one by one, or join them with a video tool that writes a new file",
    )


def count_movies(path: Path) -> tuple[int, bool]:
    """How many indexes (moov) an MP4 file has, and whether it is fragmented (moof), which may repeat them."""
    count, fragments = 0, False
    with open(path, "rb") as file:
        while len(head := file.read(16)) >= 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            count, fragments = count + (kind == b"moov"), fragments or kind == b"moof"
            if size < 8:  # 0: to the end of the file; otherwise damaged
                break
            file.seek(size - len(head), os.SEEK_CUR)
    return count, fragments


def _unreadable(path: Path, error: Exception) -> AvelError:
    if isinstance(error, PermissionError):
        return AvelError(f"{path} cannot be read: permission denied", "a readable video file", "check its permissions")
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return AvelError(
            f"{path} is an MP4 file whose index (moov) cannot be read: it is truncated or damaged", "a whole file", DO
        )
    return AvelError(f"{path} is not a media file, or is damaged from the start", "a video with sound", DO)


def in_seconds(value: int | None, owner: av.stream.Stream | av.VideoFrame | av.Packet) -> float | None:
    """A time stamp in seconds; None if there is none."""
    return None if value is None or owner.time_base is None else float(value * owner.time_base)


def _clock_time(text: str) -> float | None:
    """``00:01:02.003`` in seconds; None if the text has another form."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text)
    return None if found is None else 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])

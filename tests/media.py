"""Small media files for tests, made on the spot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FAST_AAC = {"aac_coder": "fast"}  # the usual one takes longer than all else that these files need


def grey_of(index: int) -> int:
    """The grey level that `write_video` gives its frame number ``index``, of 30 different ones."""
    return 20 + 7 * (index % 30)


def write_video(
    path: Path,
    *,
    seconds: float = 3.0,
    frame_rate: int = 10,
    size: tuple[int, int] = (64, 48),
    times: Sequence[float] | None = None,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    sample_rate: int = 16_000,
    audio_start: float = 0.0,
    audio_seconds: float | None = None,
    tone: float = 440.0,
    key_frames: int = 5,
    moov_first: bool = False,
    noise: int = 0,
    fast_aac: bool = True,
) -> Path:
    """Write a video whose frame k is all of grey level `grey_of(k)` (plus noise), and whose sound is a sine.

    ``times`` gives the times of the frames where they are not even; an empty codec leaves a stream out.
    """
    rng = np.random.default_rng(0)
    width, height = size
    times = [k / frame_rate for k in range(round(seconds * frame_rate))] if times is None else times
    with av.open(str(path), "w", options={"movflags": "+faststart"} if moov_first else {}) as container:
        frames: list[tuple[float, object, av.VideoFrame | av.AudioFrame]] = []
        if video_codec:
            stream = container.add_stream(video_codec, rate=frame_rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            stream.codec_context.gop_size = key_frames
            stream.codec_context.thread_count = 1
            if video_codec == "libx264":
                stream.options = {"preset": "ultrafast", "crf": "10", "bf": "0"}
            for index, time in enumerate(times):
                picture = np.full((height, width, 3), grey_of(index), dtype=np.int16)
                picture += rng.integers(-noise, noise + 1, picture.shape, dtype=np.int16)
                frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
                frames.append((time, stream, frame))
        if audio_codec:
            stream = container.add_stream(audio_codec, rate=sample_rate, layout="mono")
            stream.options = FAST_AAC if audio_codec == "aac" and fast_aac else {}
            count = round((seconds if audio_seconds is None else audio_seconds) * sample_rate)
            wave = 0.5 * np.sin(2 * np.pi * tone * np.arange(count) / sample_rate)
            for start in range(0, count, 1024):
                piece = (wave[start : start + 1024] * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
                frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
                frame.pts = start + round(audio_start * sample_rate)
                frames.append((audio_start + start / sample_rate, stream, frame))
        for _, stream, frame in sorted(frames, key=lambda item: item[0]):
            container.mux(stream.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return path


def cut(path: Path, out: Path, share: float) -> Path:
    """The first part of a file."""
    data = path.read_bytes()
    out.write_bytes(data[: int(len(data) * share)])
    return out


def run_killed(code: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process group of its own and leave none of the group alive."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def read_failures(store: Path) -> list[dict[str, str]]:
    """What ``failures.jsonl`` lists."""
    return [json.loads(line) for line in (store / "failures.jsonl").read_text().splitlines()]


@dataclass
class Pictures:
    """A video stream for `write_streams`: ``picture(time)`` is (height, width, 3) uint8 RGB or any other form."""

    picture: Callable[[float], np.ndarray]
    seconds: float = 3.0
    rate: Fraction | int = 10
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    source_format: str = "rgb24"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "ultrafast", "crf": "5"})
    times: Sequence[float] | None = None
    turn: tuple[int, bool, bool] | None = None
    disposition: int = 0
    interlaced: bool = False
    language: str = ""


@dataclass
class Sound:
    """An audio stream for `write_streams`: ``wave(times)`` are (samples,) or (channels, samples), full scale 1."""

    wave: Callable[[np.ndarray], np.ndarray]
    seconds: float = 3.0
    rate: int = 48_000
    codec: str = "aac"
    layout: str = "mono"
    start: float = 0.0
    language: str = ""


def write_streams(path: Path, *plans: Pictures | Sound, options: dict[str, str] | None = None) -> Path:
    """Write a file of any number of streams."""
    with av.open(str(path), "w", options=options or {}) as container:
        frames: list[tuple[float, int, object, av.VideoFrame | av.AudioFrame]] = []
        for number, plan in enumerate(plans):
            stream = container.add_stream(plan.codec, rate=plan.rate)
            if plan.language:
                stream.metadata["language"] = plan.language
            add = _add_pictures if isinstance(plan, Pictures) else _add_sound
            frames += [(time, number, stream, frame) for time, frame in add(stream, plan)]
        for _, _, stream, frame in sorted(frames, key=lambda item: item[:2]):
            container.mux(stream.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return path


def _add_pictures(stream: Any, plan: Pictures) -> Iterator[tuple[float, av.VideoFrame]]:
    first = av.VideoFrame.from_ndarray(plan.picture(0.0), format=plan.source_format)
    stream.width, stream.height, stream.pix_fmt = first.width, first.height, plan.pix_fmt
    stream.options = dict(plan.options) if plan.codec == "libx264" else {}
    stream.codec_context.thread_count = 1
    stream.disposition = plan.disposition
    if plan.times is not None:
        stream.codec_context.time_base = Fraction(1, 1000)
    if plan.interlaced:
        stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me
    if plan.turn:
        stream.set_display_rotation(plan.turn[0], hflip=plan.turn[1], vflip=plan.turn[2])
    rate = Fraction(plan.rate)
    times = [float(k / rate) for k in range(round(plan.seconds * rate))] if plan.times is None else plan.times
    for index, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(plan.picture(time), format=plan.source_format)
        if plan.times is None:
            frame.pts, frame.time_base = index, 1 / rate
        else:
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
        yield time, frame


def _add_sound(stream: Any, plan: Sound) -> Iterator[tuple[float, av.AudioFrame]]:
    stream.layout = plan.layout
    stream.options = FAST_AAC if plan.codec == "aac" else {}
    channels = stream.codec_context.layout.nb_channels
    count = round(plan.seconds * plan.rate)
    wave = np.broadcast_to(plan.wave(np.arange(count) / plan.rate), (channels, count)).astype(np.float32)
    step = stream.codec_context.frame_size or 1024
    for first in range(0, count, step):
        piece = np.ascontiguousarray(wave[:, first : first + step].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=plan.layout)
        frame.sample_rate, frame.time_base = plan.rate, Fraction(1, plan.rate)
        frame.pts = first + round(plan.start * plan.rate)
        yield plan.start + first / plan.rate, frame


def remux(source: Path, out: Path, options: dict[str, str] | None = None) -> Path:
    """The packets of a file in another container."""
    with av.open(str(source)) as there, av.open(str(out), "w", options=options or {}) as here:
        streams = {stream.index: here.add_stream_from_template(stream) for stream in there.streams}
        for packet in there.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                here.mux(packet)
    return out


def later(source: Path, out: Path, video: float, audio: float, options: dict[str, str] | None = None) -> Path:
    """The packets of a file in another one, with the stamps of either stream so many seconds later."""
    by = {"video": video, "audio": audio}
    with av.open(str(source)) as there, av.open(str(out), "w", options=options or {}) as here:
        streams = {stream.index: here.add_stream_from_template(stream) for stream in there.streams}
        for packet in there.demux():
            if packet.dts is not None and packet.pts is not None:
                ticks = round(by[packet.stream.type] / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = streams[packet.stream.index]
                here.mux(packet)
    return out


def transcode(source: Path, out: Path, video_codec: str, audio_codec: str, sample_rate: int) -> Path:
    """A file's pictures and sound through other codecs."""
    with av.open(str(source)) as there, av.open(str(out), "w") as here:
        seen, heard = there.streams.video[0], there.streams.audio[0]
        fast = {"deadline": "realtime", "cpu-used": "8"}
        video = here.add_stream(video_codec, rate=seen.average_rate, bit_rate=2_000_000, options=fast)
        video.width, video.height, video.pix_fmt = seen.width, seen.height, "yuv420p"
        video.codec_context.time_base = seen.time_base
        video.codec_context.thread_count = 1
        audio = here.add_stream(audio_codec, rate=sample_rate, layout="stereo")
        resampler = av.AudioResampler("fltp" if audio_codec != "libopus" else "flt", "stereo", sample_rate)
        for frame in there.decode(seen, heard):
            if isinstance(frame, av.VideoFrame):
                frame.pict_type = 0
                here.mux(video.encode(frame))
            else:
                for each in resampler.resample(frame):
                    here.mux(audio.encode(each))
        for each in resampler.resample(None):
            here.mux(audio.encode(each))
        here.mux([*video.encode(None), *audio.encode(None)])
    return out

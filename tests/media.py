"""Small media files for tests, made on the spot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


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

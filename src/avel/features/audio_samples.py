"""The sound of a file as mono samples at one rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import av
import numpy as np

from avel.features.recipe import FIRST_STREAMS, Streams
from avel.features.video import open_media

_GAP = 0.02  # seconds; a smaller gap or overlap between two sound frames counts as a rounded time stamp
#: The weight of each channel in mono sound, before division by their sum: FFmpeg's matrix. It leaves out all other
#: channels, such as that of low frequencies (LFE).
_SHARES = {
    "FC": 1.0,
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "TFL", "TFR"), math.sqrt(0.5)),
    **dict.fromkeys(("BL", "BR", "BC", "SL", "SR"), 0.5),
}


class AudioTrack:
    """Mono sound at one rate without gaps from time 0, made from the frames of a file.

    Two channels are averaged; more are mixed by their positions, as FFmpeg does, see `mono_shares`. Gaps between frames
    become silence; where frames overlap, the earlier one is kept.

    Args:
        sample_rate: rate of the result, Hz. None follows AVE's recipe: it keeps the rate of the first frame, rounds
            each channel to 16 bits, as a WAV file would, and averages all channels.

    Attributes:
        sample_rate: the same; 0 until the first frame gives it.
        mixing: how more than two channels were mixed, in words; "" for one or two channels.
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
        """Take a frame at ``time``; return the samples that are ready, (N,) float32, full scale 1."""
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
        """The samples that are still held back, (N,) float32."""
        last = self._resample(np.zeros(0, dtype=np.float32), everything=True)
        if self._rate:
            last = np.concatenate([last, _joined(self._resampler.resample(None))])
        self._resampler = self._new_resampler()
        return last

    def _new_resampler(self) -> av.AudioResampler:
        return av.AudioResampler(format="flt", layout="mono", rate=self.sample_rate)

    def _resample(self, mono: np.ndarray, everything: bool = False) -> np.ndarray:
        self._held.append(mono)
        if not everything and sum(map(len, self._held)) < self._rate / 4:  # few calls, as each has a fixed cost
            return np.zeros(0, dtype=np.float32)
        mono = np.concatenate(self._held)
        self._held = []
        if not len(mono):
            return mono
        frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
        frame.sample_rate = self._rate
        return _joined(self._resampler.resample(frame))


def read_waveform(path: str | Path, sample_rate: int, *, streams: Streams = FIRST_STREAMS) -> np.ndarray:
    """The whole sound on the common clock, mixed to mono by `AudioTrack`: (samples,) float32, full scale 1.

    Raises:
        AvelError: as in `avel.features.streams.probe` and `avel.features.video.Media.decode`, for the sound.
    """
    track = AudioTrack(sample_rate)
    with open_media(path, video=False, streams=streams) as media:
        pieces = [track.push(time, frame) for time, frame in media.decode() if isinstance(frame, av.AudioFrame)]
    return np.concatenate([*pieces, track.finish()])


def mono_shares(layout: av.AudioLayout) -> np.ndarray | None:
    """The weights of the channels in mono sound, as FFmpeg mixes: (channels,) float32 whose sum is 1.

    FFmpeg mixes first to stereo, with centre and surrounds at -3 dB and without low frequencies, and then to mono. None
    if the file does not give the positions of its channels (FFmpeg guesses them), or FFmpeg has no weight for any.
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
        frame: a frame in any format.
        sixteen_bit: whether to round each channel to 16 bits first.
        shares: (channels,) float32 or None.
    """
    channels = frame.layout.nb_channels
    if frame.format.name.startswith("s64"):  # PyAV cannot convert it to an array
        frame = av.AudioResampler(format="dbl").resample(frame)[0]
    elif frame.format.is_planar and channels > 7:  # PyAV 18 reads past the eighth plane and crashes
        frame = av.AudioResampler(format=frame.format.packed.name).resample(frame)[0]
    samples = frame.to_ndarray()
    samples = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    if sixteen_bit and samples.dtype.itemsize > 2:
        samples = _sixteen_bits(samples)
    kind = samples.dtype
    samples = samples.astype(np.float32)
    if kind.kind != "f":
        full = np.float32(2 ** (8 * kind.itemsize - 1))  # a power of 2, so that the division is exact
        samples = (samples - full if kind.kind == "u" else samples) / full
    if channels == 1:
        return samples[0]
    return samples.mean(0) if shares is None else np.einsum("c,cn->n", shares, samples)


def _sixteen_bits(samples: np.ndarray) -> np.ndarray:
    """Convert to 16 bits as FFmpeg does: round floats, drop the lower bits of integers. Any shape -> int16."""
    if samples.dtype.kind == "f":
        return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16)
    return (samples >> (8 * samples.dtype.itemsize - 16)).astype(np.int16)


def _joined(frames: Sequence[av.AudioFrame]) -> np.ndarray:
    return np.concatenate([frame.to_ndarray()[0] for frame in frames] or [np.zeros(0, dtype=np.float32)])

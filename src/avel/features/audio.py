"""Audio features that need no download: statistics of the log-mel spectrogram in each segment."""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from avel.errors import AvelError
from avel.features.extractor import make_tag


def mel_filters(num_bands: int, num_bins: int, sample_rate: int, low: float, high: float) -> np.ndarray:
    """Triangular filters, linear on the HTK mel scale, peak 1: (num_bins, num_bands) float64.

    The scale is mel = 1127 ln(1 + f / 700). ``num_bins`` frequencies are evenly spaced from 0 to half the sample rate;
    ``low`` and ``high`` are the outer edges, Hz. The bin at 0 Hz is left out.
    """

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0, sample_rate / 2, num_bins))[:, None]
    edges = np.linspace(mel(low), mel(high), num_bands + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    filters[0] = 0
    return filters


def log_mel(
    waveform: np.ndarray,
    sample_rate: int,
    *,
    num_bands: int = 64,
    low: float = 125.0,
    high: float = 7500.0,
    window: int = 400,
    hop: int = 160,
    fft: int = 512,
    offset: float = 0.01,
) -> np.ndarray:
    """Log-mel spectrogram, ln(mel + offset): (N, samples) -> (N, frames, num_bands) float32.

    It takes magnitudes of a short-time Fourier transform with a periodic Hann window. Frames are not centred, so that
    they lie wholly inside the samples: ``frames = 1 + (samples - window) // hop``.

    Args:
        waveform: (N, samples) float32, full scale 1; at least ``window`` samples.
        sample_rate: Hz.
        num_bands: number of mel bands.
        low: lower edge of the first band, Hz.
        high: upper edge of the last band, Hz.
        window: samples per frame.
        hop: samples from one frame to the next.
        fft: length of the transform; frames are padded with zeros.
        offset: added before the logarithm.
    """
    hann, filters = _window_and_filters(num_bands, sample_rate, low, high, window, fft)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, window, axis=-1)[:, ::hop]
    magnitude = np.abs(np.fft.rfft(frames * hann, fft))
    return np.log(
        np.einsum("nfk,kb->nfb", magnitude, filters) + np.float32(offset)
    )  # einsum: same bits with any number of threads


@cache
def _window_and_filters(
    num_bands: int, sample_rate: int, low: float, high: float, window: int, fft: int
) -> tuple[np.ndarray, np.ndarray]:
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    filters = mel_filters(num_bands, fft // 2 + 1, sample_rate, low, high)
    return hann.astype(np.float32), filters.astype(np.float32)


class ClassicalAudio:
    """Log-mel statistics of each segment, (T, Da).

    For each mel band: mean, spread, maximum and 10th percentile (the background beneath louder moments) over the frames
    of the segment. For each group of bands: the modulation spectrum, the strength of level changes at 1-2, 3-4, 5-8,
    9-16 and 17-32 cycles per segment. And the mean, spread and maximum of the onset strength (spectral flux). Constants
    shift and scale each group to roughly mean 0 and variance 1 on everyday clips.

    Args:
        version: version of the features and their constants; only 1 exists.

    Raises:
        AvelError: the version is not 1.
    """

    kind: Literal["audio"] = "audio"
    name = "classical"
    sample_rate = 16_000

    num_bands = 40
    modulation_groups = 8
    modulation_edges = (1, 3, 5, 9, 17, 33)  # cycles per segment
    #: (mean, spread) of each group of values on rendered clips
    scale = MappingProxyType(
        {
            "mean": (0.4, 1.0),
            "spread": (0.55, 0.35),
            "maximum": (1.75, 1.1),
            "quiet": (-0.3, 1.05),
            "modulation": (3.2, 1.55),
            "onset": (-1.5, 0.9),
        }
    )

    def __init__(self, version: int = 1) -> None:
        if version != 1:
            raise AvelError(
                f"classical audio features of version {version}", "version 1", "use the version of avel that made them"
            )
        self.options: dict[str, Any] = {"version": version}
        self.dim = 4 * self.num_bands + self.modulation_groups * (len(self.modulation_edges) - 1) + 3
        self.tag = make_tag(
            self.name,
            kind=self.kind,
            framing="time",
            resampler="swresample",
            options=self.options,
            scale=dict(self.scale),
        )

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(T, samples) float32 at `sample_rate`, full scale 1 -> (T, Da) float32."""
        return np.concatenate(
            [
                (values - mean) / spread
                for values, (mean, spread) in zip(self.groups(waveform).values(), self.scale.values(), strict=True)
            ],
            axis=1,
            dtype=np.float32,
        )

    def groups(self, waveform: np.ndarray) -> dict[str, np.ndarray]:
        """The values before scaling, by group, each (T, ...)."""
        spectrogram = log_mel(waveform, self.sample_rate, num_bands=self.num_bands, low=60.0, high=7800.0)
        num_segments, num_frames, _ = spectrogram.shape
        ordered = np.sort(spectrogram, axis=1)
        levels = spectrogram.reshape(num_segments, num_frames, self.modulation_groups, -1).mean(-1)
        hann = np.hanning(num_frames).astype(np.float32)[:, None]
        power = np.abs(np.fft.rfft((levels - levels.mean(1, keepdims=True)) * hann, axis=1)) ** 2
        modulation = np.stack(
            [
                power[:, low:high].sum(1)
                for low, high in zip(self.modulation_edges, self.modulation_edges[1:], strict=False)
            ],
            axis=1,
        )
        flux = np.maximum(np.diff(spectrogram, axis=1), 0).mean(-1)
        return {
            "mean": spectrogram.mean(1),
            "spread": spectrogram.std(1),
            "maximum": ordered[:, -1],
            "quiet": ordered[:, num_frames // 10],
            "modulation": np.log(modulation + 1.0).reshape(num_segments, -1),
            "onset": np.log(np.stack([flux.mean(1), flux.std(1), flux.max(1)], axis=1) + 0.02),
        }

"""VGGish on a log-mel spectrogram, as used for AVE's audio features.

Hershey et al., "CNN architectures for large-scale audio classification", ICASSP 2017. An example of 96 frames of 10 ms
and 64 mel bands becomes 128 numbers. AVE kept the ReLU on the last layer (which TensorFlow's file now lacks), used
neither PCA nor quantization, and cut the sound into seconds before it resampled each separately.

All that affects the numbers besides the weights is done here, not by a library: the resampler is that of resampy 0.2
(``kaiser_best``), the spectrogram that of VGGish's own release. FFmpeg's resampler would change log-mel by up to 0.2.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from math import gcd
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from avel.errors import AvelError
from avel.features.audio import mel_filters
from avel.features.batches import Batches
from avel.features.extractor import AudioSpans, make_tag
from avel.features.vgg19 import conv_stack, stack_shapes
from avel.features.weights import PUBLISHED, check_shapes, find_weights, read_torch
from avel.types import Progress

SAMPLE_RATE = 16_000
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the transform's length
NUM_BANDS, LOW, HIGH = 64, 125.0, 7500.0  # mel bands and their outer edges, Hz
OFFSET = 0.01
EXAMPLE_FRAMES = 96
EXAMPLE_SAMPLES = (EXAMPLE_FRAMES - 1) * HOP + WINDOW  # 15600: 0.975 s
EXAMPLES_AT_ONCE = 64  # per batch
EXAMPLE_BYTES = 8 * 2**20  # on a device: the first layer's (64, 96, 64) in float32 are 1.6 MB, several times over

#: (channels, convolutions) of each block; a block ends with a pooling that halves frames and bands.
BLOCKS = ((64, 1), (128, 1), (256, 2), (512, 2))
WIDTHS = (512 * 6 * 4, 4096, 4096, 128)  # of the fully connected layers, from 6 frames x 4 bands x 512 channels

# resampy 0.2's kaiser_best: a sinc out to 64 zero crossings under a Kaiser window, with 512 table values per crossing.
_CROSSINGS, _TABLE, _ROLLOFF, _BETA = 64, 512, 0.9475937167399596, 14.769656459379492

_BLOCK = SAMPLE_RATE  # resampler outputs from one stored time to the next

_MARGIN = 640  # samples, 40 ms: more than the resampler reaches at any rate above 1600 Hz


class Vggish:
    """VGGish of each segment's sound, (T, 128).

    Args:
        weights_file: torchvggish's ``vggish-10086976.pth``; None looks in the cache folder, and downloads it if it is
            not there.
        weights_sha: sha256 of the weights file, for weights other than the published ones.
        last_activation: ``relu``, as in AVE's released features, never negative; or ``none``.
        framing: ``per_second``, as in AVE: each segment is resampled and transformed separately, and its first 0.975 s
            count. ``continuous``, as in VGGish: the whole sound is resampled and examples come every 0.96 s, so that
            example t starts at 0.96 t s (or at the nearest sample). Both give (10, 128) for ten seconds.
        progress: called as ``progress("download", bytes done, bytes in all)``.

    Raises:
        AvelError: an option is invalid, or the weights are missing or do not match; see `find_weights`.
    """

    kind: Literal["audio"] = "audio"
    name = "vggish"
    sample_rate = SAMPLE_RATE
    dim = WIDTHS[-1]

    def __init__(
        self,
        weights_file: str | None = None,
        weights_sha: str | None = None,
        last_activation: str = "relu",
        framing: str = "per_second",
        progress: Progress | None = None,
    ) -> None:
        if last_activation not in ("relu", "none"):
            raise AvelError(f"last activation {last_activation!r}", "relu or none", "choose one of these")
        if framing not in ("per_second", "continuous"):
            raise AvelError(f"framing {framing!r} of VGGish", "per_second or continuous", "choose one of these")
        self._framing = framing
        found = find_weights(PUBLISHED["vggish"], weights_file, weights_sha, progress)
        shaping = {"weights_sha": found.sha256, "last_activation": last_activation, "framing": framing}
        self.options: dict[str, Any] = {**shaping, **({"weights_file": weights_file} if weights_file else {})}
        resampler = "resampy-0.2-kaiser-best" + ("" if framing == "per_second" else ", as a whole")
        self.tag = make_tag(self.name, kind=self.kind, framing="time", resampler=resampler, options=shaping)
        self._last_activation = last_activation
        state = read_torch(found.path)
        stack = stack_shapes(BLOCKS, 1)
        wanted = {f"features.{name}": shape for name, shape in stack.items()}
        for index, (width, out) in enumerate(pairwise(WIDTHS)):
            wanted |= {f"embeddings.{2 * index}.weight": (out, width), f"embeddings.{2 * index}.bias": (out,)}
        check_shapes(found.path, {name: tuple(value.shape) for name, value in state.items()}, wanted)
        self._features = conv_stack(BLOCKS, 1, {name: state[f"features.{name}"].float() for name in stack})
        self._embeddings = [
            (state[f"embeddings.{2 * index}.weight"].float(), state[f"embeddings.{2 * index}.bias"].float())
            for index in range(len(WIDTHS) - 1)
        ]
        self._device = torch.device("cpu")
        self._batches = Batches(on_cpu=EXAMPLES_AT_ONCE, elsewhere=EXAMPLES_AT_ONCE, item_bytes=EXAMPLE_BYTES)

    def to(self, device: torch.device) -> None:
        """Move the network to a device. Log-mel is computed on the CPU, and features stay in main memory."""
        self._features.to(device)
        self._embeddings = [(weight.to(device), bias.to(device)) for weight, bias in self._embeddings]
        self._device = device
        self._batches.to(device)

    def spans(self, segment_seconds: float) -> AudioSpans:
        """Which stretch of the sound each segment takes, with a margin for the resampler."""
        if self._framing == "per_second":
            return AudioSpans(segment_seconds, 0.0, segment_seconds)
        margin = _MARGIN / SAMPLE_RATE
        return AudioSpans(EXAMPLE_FRAMES * HOP / SAMPLE_RATE, margin, margin + EXAMPLE_SAMPLES / SAMPLE_RATE + margin)

    def resample(self, waveform: np.ndarray, rate: int, first: int) -> np.ndarray:
        """(T, samples) at ``rate``, stretches ``first``, ``first + 1``, ... as `spans` says -> (T, samples) float64 at
        16 kHz."""
        if self._framing == "per_second":
            return resample(waveform, rate)
        starts = [number * EXAMPLE_FRAMES * HOP - _MARGIN for number in range(first, first + len(waveform))]
        pieces = [resample(row[None], rate, start=start) for row, start in zip(waveform, starts, strict=True)]
        return np.concatenate(pieces)[:, _MARGIN : _MARGIN + EXAMPLE_SAMPLES]

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(T, samples) at 16 kHz, full scale 1, at most a second each -> (T, 128) float32.

        Less than 0.975 s is padded with silence.

        Raises:
            AvelError: segments are longer than a second, of which VGGish would use only the first.
        """
        if waveform.shape[1] > SAMPLE_RATE:
            raise AvelError(
                f"segments of {waveform.shape[1] / SAMPLE_RATE:g} s for VGGish, which takes 0.975 s",
                "segments of one second or less",
                "choose --segment-seconds 1",
            )
        missing = max(0, EXAMPLE_SAMPLES - waveform.shape[1])
        return self._batches(self.embed, log_mel(np.pad(waveform, ((0, 0), (0, missing))))[:, :EXAMPLE_FRAMES])

    def embed(self, examples: np.ndarray) -> np.ndarray:
        """Run only the network: (T, 96, 64) log-mel -> (T, 128) float32."""
        with torch.inference_mode():
            return self.listen(torch.from_numpy(examples.astype(np.float32)).to(self._device)).cpu().numpy()

    def listen(self, examples: torch.Tensor) -> torch.Tensor:
        """(T, 96, 64) log-mel float32 on the network's device -> (T, 128) float32 there."""
        values: torch.Tensor = self._features(examples[:, None])
        values = values.permute(0, 2, 3, 1).flatten(1)  # frames, bands, channels
        for index, (weight, bias) in enumerate(self._embeddings, start=1):
            values = nn.functional.linear(values, weight, bias)
            if index < len(self._embeddings) or self._last_activation == "relu":
                values = values.relu()
        return values


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """VGGish's spectrogram, ln(mel + 0.01): (N, samples) at 16 kHz -> (N, frames, 64) float64.

    It takes magnitudes under a periodic Hann window that is not centred: ``frames = 1 + (samples - 400) // 160``, 98
    per second. In double precision, as ln(mel + 0.01) of a quiet band would show the rounding of a loud one.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), WINDOW, axis=-1)[:, ::HOP]
    return np.log(np.abs(np.fft.rfft(frames * hann, FFT)) @ _filters() + OFFSET)


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    return mel_filters(NUM_BANDS, FFT // 2 + 1, SAMPLE_RATE, LOW, HIGH)


def resample(waveform: np.ndarray, rate: int, to: int = SAMPLE_RATE, start: int = 0) -> np.ndarray:
    """Resample as resampy 0.2 with its filter ``kaiser_best``: (N, samples) -> (N, samples * to // rate) float64.

    Sample t of the result is at ``t * rate / to`` of the input. It is the sum of the input around it, weighted by a
    sinc of 64 zero crossings from a table. The ratio of the rates is a fraction up / down, so there are ``up`` sets of
    taps: output t uses set ``t % up``, and from one output of a set to the next the input advances by ``down``.

    Args:
        waveform: (N, samples), with silence assumed before and after.
        rate: rate of the waveform, Hz.
        to: rate of the result, Hz.
        start: for a piece of a longer sound, the index of its first sample in the result of the whole; may be negative,
            in the silence before it.
    """
    waveform = waveform.astype(np.float64)
    if rate == to:
        return waveform
    up, down = to // gcd(rate, to), rate // gcd(rate, to)
    number = waveform.shape[1] * up // down
    taps = _taps(up, down)
    reach = taps.shape[1] // 2  # taps before and after the point
    padded = np.pad(waveform, ((0, 0), (reach, reach + down)))
    stretches = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach, axis=-1)[:, 1:]
    result = np.empty((len(waveform), number))
    for phase in range(min(up, number)):
        outputs = result[:, phase::up]
        outputs[:] = stretches[:, phase * down // up :: down][:, : outputs.shape[1]] @ taps[phase]
    # resampy accumulates the time, and rounding puts some points that fall on a sample just before it. Their taps
    # differ slightly (see `_taps`), which at 44.1 kHz changes log-mel by up to 0.001.
    if start % up == 0 and number > -start:
        before = max(0, -start)  # points before the sound
        points = np.arange(before, number, up)
        early = points[_times(rate, to, start + before, number - before)[::up] < (start + points) // up * down]
        result[:, early] = stretches[:, early // up * down - 1] @ taps[up]
    return result


def _times(rate: int, to: int, first: int, number: int) -> np.ndarray:
    """Where resampy puts samples ``first``, ``first + 1``, ... of its result, in samples of the input: (number,)."""
    step = 1 / (to / rate)
    blocks = _block_times(rate, to)
    block, inside = divmod(first, _BLOCK)
    for next_one in range(len(blocks), block + 1):
        blocks[next_one] = np.cumsum(np.append(blocks[next_one - 1], np.full(_BLOCK, step)))[-1]
    return np.cumsum(np.append(blocks[block], np.full(inside + number - 1, step)))[inside:]


@lru_cache(maxsize=8)
def _block_times(rate: int, to: int) -> dict[int, float]:
    """Block -> the time at its start, filled in by `_times`, as every sum needs the one before it."""
    return {0: 0.0}


@lru_cache(maxsize=8)
def _taps(up: int, down: int) -> np.ndarray:
    """The weights of the input around a point, the earliest sample first: (up + 1, 2 * reach) float64.

    Row p is for points ``p * down / up`` samples after a start; the last row is for points just before a sample.
    """
    scale = min(1.0, up / down)
    step = int(scale * _TABLE)  # truncated, as in resampy: at 44.1 kHz the sinc gets 0.4% too wide
    size = _CROSSINGS * _TABLE
    sinc = _ROLLOFF * np.sinc(_ROLLOFF * np.arange(size + 1) / _TABLE)
    table = scale * np.kaiser(2 * size + 1, _BETA)[size:] * sinc
    # Distance in the table from the point to the sample before it (or at it), and to the one after it.
    after = np.append(np.arange(up) * down % up / up, 1.0) * scale * _TABLE
    reach = (size + 1) // step
    wings = [_wing(table, after, step, reach)[:, ::-1], _wing(table, scale * _TABLE - after, step, reach)]
    return np.concatenate(wings, axis=1)


def _wing(table: np.ndarray, start: np.ndarray, step: int, reach: int) -> np.ndarray:
    """The table at ``start``, ``start + step``, ..., interpolated linearly, 0 outside: (up,) -> (up, reach)."""
    first = start.astype(np.intp)
    index = (first[:, None] + step * np.arange(reach)).clip(max=len(table) - 1)
    slope = np.append(np.diff(table), 0.0)
    inside = np.arange(reach) < ((len(table) - first) // step)[:, None]  # resampy drops the last step's remainder
    return np.where(inside, table[index] + (start - first)[:, None] * slope[index], 0.0)

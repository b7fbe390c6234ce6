"""Visual features that need no download: gradient orientations, colour and motion on a grid of cells."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from avel.errors import AvelError
from avel.features.extractor import make_tag

_GREY = np.array([77, 150, 29], dtype=np.uint16)  # Rec. 601 luma in 256ths


class ClassicalVisual:
    """Shape, colour and motion of each cell within each segment, (T, H, W, Dv).

    - *shape*: a soft histogram of gradient orientations relative to its energy, and the log of the energy
      (after Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005);
    - *moving shape*: the same with every pixel weighted by its change, so that still clutter vanishes;
    - *colour*: means and spreads in an opponent space, and a histogram of hues weighted by colourfulness;
    - *motion energy*: mean and maximum of the change from frame to frame, the spectra over time of this change and of
      the cell's brightness (blinking, beating, swinging), and the mean direction and speed of the motion (one
      Lucas-Kanade solution per cell).

    Constants shift and scale each group to roughly mean 0 and variance 1 on everyday clips. Objects are larger than a
    cell, and cells of a convolutional network see beyond their borders. So each cell has its own values, then their
    mean over the 3x3 cells around it.

    Args:
        version: version of the features and their constants; only 1 exists.
        frames_per_segment: an even number. It sets the number of values in the spectra, and so Dv.

    Raises:
        AvelError: the version is not 1, or the number of frames is out of range.
    """

    kind: Literal["visual"] = "visual"
    name = "classical"
    frame_size = 112
    grid = (7, 7)

    orientations = 8
    hues = 8
    #: (mean, spread) of each group of values on rendered clips
    scale = MappingProxyType(
        {
            "shape": (0.30, 0.10),
            "shape energy": (-2.2, 0.8),
            "moving shape": (0.17, 0.15),
            "moving shape energy": (-6.5, 1.35),
            "direction": (0.0, 0.15),
            "speed": (0.13, 0.20),
            "lightness": (0.47, 0.13),
            "colour": (0.04, 0.12),
            "colour spread": (0.045, 0.045),
            "hue": (0.17, 0.17),
            "moving hue": (0.07, 0.10),
            "change": (-4.9, 1.3),
            "largest change": (-2.4, 1.15),
            "change spectrum": (-4.2, 1.1),
            "brightness spectrum": (-4.0, 0.8),
        }
    )

    def __init__(self, version: int = 1, frames_per_segment: int = 16) -> None:
        if version != 1:
            raise AvelError(
                f"classical visual features of version {version}", "version 1", "use the version of avel that made them"
            )
        if frames_per_segment % 2 or not 2 <= frames_per_segment <= 64:  # shape and colour take every other frame
            raise AvelError(
                f"{frames_per_segment} frames a segment for classical features",
                "an even number from 2 to 64; 16 is usual",
                "choose another number",
            )
        self.frames_per_segment = frames_per_segment
        self.options: dict[str, Any] = {"version": version}
        if frames_per_segment != 16:  # 16 is not named, so that older tags stay valid
            self.options["frames_per_segment"] = frames_per_segment
        self.tag = make_tag(
            self.name,
            kind=self.kind,
            framing="time",
            resize="swscale-bilinear",
            options=self.options,
            scale=dict(self.scale),
            surroundings="mean of 3x3",
        )
        size = self.frame_size
        self.dim = self(np.zeros((self.frames_per_segment, size, size, 3), dtype=np.uint8)).shape[-1]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(T * frames_per_segment, 112, 112, 3) uint8 RGB -> (T, 7, 7, Dv) float32."""
        groups = self.groups(frames)
        own = np.concatenate(
            [(groups[name] - mean) / spread for name, (mean, spread) in self.scale.items()], axis=-1, dtype=np.float32
        )
        return np.concatenate([own, _surroundings(own)], axis=-1)

    def groups(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """The values before scaling, by group, each (T, 7, 7, ...)."""
        size = self.frame_size
        frames = frames.reshape(-1, self.frames_per_segment, size, size, 3)
        grey = ((frames[..., 0] * _GREY[0] + frames[..., 1] * _GREY[1] + frames[..., 2] * _GREY[2]) >> 8).astype(
            np.float32
        )
        grey /= 255
        change = grey[:, 1:] - grey[:, :-1]
        size_of_change = np.abs(change)
        return {
            **self._shapes(grey[:, ::2], change[:, ::2], size_of_change[:, ::2]),
            **self._colours(frames[:, ::2], size_of_change[:, ::2]),
            **self._motion(grey, size_of_change),
        }

    def _shapes(self, grey: np.ndarray, change: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Shape and motion from (T, 8, 112, 112) frames, the change to the next frame, and its size."""
        dx = np.zeros_like(grey)
        dy = np.zeros_like(grey)
        np.subtract(grey[..., 2:], grey[..., :-2], out=dx[..., 1:-1])
        np.subtract(grey[..., 2:, :], grey[..., :-2, :], out=dy[..., 1:-1, :])
        dxx, dyy, dxy = dx * dx, dy * dy, dx * dy
        length = np.sqrt(dxx + dyy)
        # The doubled angle, which is the same for opposite gradients, scaled to the gradient's length.
        per_length = 1 / (length + 1e-6)
        cosine, sine = (dxx - dyy) * per_length, 2 * dxy * per_length
        histogram, moving = _histograms(cosine, sine, weight, self.orientations)
        # Lucas-Kanade: least squares of dx u + dy v + change = 0 over the cell
        a, b, c = _cells(dxx) + 1e-4, _cells(dxy), _cells(dyy) + 1e-4
        p, q = -2 * _cells(dx * change), -2 * _cells(dy * change)  # dx, dy span two pixels
        determinant = a * c - b * b
        u = np.clip((c * p - b * q) / determinant, -8, 8)
        v = np.clip((a * q - b * p) / determinant, -8, 8)
        energy, moving_energy = histogram.sum(-1, keepdims=True), moving.sum(-1, keepdims=True)
        return {
            "shape": np.sqrt(histogram / (energy + 0.02)),
            "shape energy": np.log(energy + 0.01),
            "moving shape": np.sqrt(moving / (moving_energy + 0.0005)),
            "moving shape energy": np.log(moving_energy + 0.0005),
            "direction": np.stack([u.mean(1), v.mean(1)], -1),
            "speed": np.stack([np.abs(u).mean(1), np.abs(v).mean(1)], -1),
        }

    def _colours(self, frames: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Colours from (T, 8, 112, 112, 3) frames and the change of each pixel to the next one."""
        half = frames[:, :, ::2, ::2].astype(np.float32) / 255
        red, green, blue = half[..., 0], half[..., 1], half[..., 2]
        opponents = [(red + green + blue) / 3, red - green, (red + green) / 2 - blue]
        means = [_cells(channel) for channel in opponents]
        spreads = [
            np.sqrt(np.maximum(_cells(channel * channel).mean(1) - mean.mean(1) ** 2, 0))
            for channel, mean in zip(opponents, means, strict=True)
        ]
        weight = weight[:, :, ::2, ::2]
        hue, moving_hue = _histograms(opponents[1], opponents[2], weight, self.hues)
        return {
            "lightness": means[0].mean(1)[..., None],
            "colour": np.stack([mean.mean(1) for mean in means[1:]], -1),
            "colour spread": np.stack(spreads, -1),
            "hue": np.sqrt(hue),
            "moving hue": np.sqrt(moving_hue / (_cells(weight).mean(1)[..., None] + 0.005)),
        }

    def _motion(self, grey: np.ndarray, change: np.ndarray) -> dict[str, np.ndarray]:
        """Motion from (T, 16, 112, 112) frames and the 15 sizes of change between them."""
        level = _cells(change)
        rows, columns = self.grid
        cell = self.frame_size // rows
        largest = change.max(1).reshape(-1, rows, cell, columns, cell).max((2, 4))
        brightness = _cells(grey)
        swings = np.abs(np.fft.rfft(brightness - brightness.mean(1, keepdims=True), axis=1))[:, 1:]
        beats = np.abs(np.fft.rfft(level - level.mean(1, keepdims=True), axis=1))[:, 1:]
        return {
            "change": np.log(np.stack([level.mean(1), level.max(1)], -1) + 0.002),
            "largest change": np.log(largest[..., None] + 0.02),
            "change spectrum": np.log(np.moveaxis(beats, 1, -1) + 0.005),
            "brightness spectrum": np.log(np.moveaxis(swings, 1, -1) + 0.01),
        }


def _histograms(x: np.ndarray, y: np.ndarray, weight: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of the directions of vectors (x, y), averaged over the frames of a segment.

    Each of ``number`` (even) directions gets the positive part of a vector's projection on it.

    Args:
        x, y: (T, frames, size, size).
        weight: weight of each vector in the second histogram, not negative.
        number: number of directions.

    Returns:
        The histogram and the weighted histogram, each (T, H, W, number).
    """
    directions = [(np.cos(angle), np.sin(angle)) for angle in 2 * np.pi * np.arange(number // 2) / number]
    plain, weighted = [], []
    for cosine, sine in directions:
        share = np.maximum(x * np.float32(cosine) + y * np.float32(sine), 0)
        plain.append(_cells(share).mean(1))
        weighted.append(_cells(share * weight).mean(1))
    # The negative part, which belongs to the opposite direction, is the positive part minus the whole.
    for halves, horizontal, vertical in ((plain, x, y), (weighted, x * weight, y * weight)):
        sum_x, sum_y = _cells(horizontal).mean(1), _cells(vertical).mean(1)
        wholes = [sum_x * np.float32(cosine) + sum_y * np.float32(sine) for cosine, sine in directions]
        halves += [np.maximum(half - whole, 0) for half, whole in zip(halves, wholes, strict=True)]
    return np.stack(plain, -1), np.stack(weighted, -1)


def _cells(values: np.ndarray, number: int = 7) -> np.ndarray:
    """Means over a grid of cells: (..., size, size) -> (..., number, number)."""
    *rest, height, width = values.shape
    rows = values.reshape(*rest, number, height // number, width).sum(-2)  # whole rows first, which is much faster
    sums = rows.reshape(*rest, number, number, width // number).sum(-1)
    return sums * np.float32(number * number / (height * width))


def _surroundings(values: np.ndarray) -> np.ndarray:
    """Mean over the 3x3 cells around each cell, fewer at the border: (T, H, W, N) -> the same shape."""
    _, height, width, _ = values.shape
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inside = np.pad(np.ones((1, height, width, 1), dtype=values.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums, counts = np.zeros_like(values), np.zeros_like(inside[:, 1:-1, 1:-1])
    for row in range(3):
        for column in range(3):
            sums += padded[:, row : row + height, column : column + width]
            counts += inside[:, row : row + height, column : column + width]
    mean: np.ndarray = sums / counts
    return mean

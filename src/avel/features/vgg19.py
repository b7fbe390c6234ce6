"""VGG-19, up to its last pooling, as used for AVE's visual features.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015. AVE used
Keras's weights: RGB reversed to BGR, ImageNet's mean subtracted, no other scaling, and the mean of ``block5_pool`` over
16 frames. torchvision's weights were trained separately with other preprocessing: the 512 channels do not correspond to
Keras's, and the features have another tag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from avel.errors import AvelError
from avel.features.batches import Batches
from avel.features.extractor import make_tag
from avel.features.weights import PUBLISHED, check_shapes, find_weights, read_keras, read_torch
from avel.types import Progress

#: (channels, convolutions) of each block; a block ends with a pooling that halves height and width.
BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))

FRAMES_AT_ONCE = 2  # per batch on a CPU: fastest on one and two processors; more do not fit their caches
FRAMES_ON_DEVICE = 64  # enough to keep a GPU busy
FRAME_BYTES = 64 * 2**20  # on a device: the first layers' (64, 224, 224) in float32 are 13 MB, several times over

PRECISIONS = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16})

#: (mean, divisor) of red, green and blue on the scale 0-255, by training.
PREPROCESSING = MappingProxyType(
    {
        "keras": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
        "torchvision": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
    }
)


def conv_stack(blocks: Sequence[tuple[int, int]], channels: int, state: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """Blocks of 3x3 convolutions that keep height and width, each followed by ReLU; a 2x2 pooling ends a block.

    VGG-19 and VGGish differ only in their ``blocks``: (N, channels, H, W) -> (N, last, H / 2^blocks, W / 2^blocks).

    Args:
        blocks: (channels, convolutions) of each block.
        channels: number of input channels.
        state: weights and biases by their names in the Sequential ("0.weight"), convolutions (out, in, 3, 3). They are
            used as they are, so the network has their memory format and precision.
    """
    layers: list[nn.Module] = []
    with torch.device("meta"):  # no memory or random numbers: `state` becomes the weights
        for width, convolutions in blocks:
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            # Before the block's last ReLU, not after it: the same result, with a quarter of the numbers for the ReLU.
            layers.insert(-1, nn.MaxPool2d(kernel_size=2))
    stack = nn.Sequential(*layers)
    stack.load_state_dict(dict(state), assign=True)
    return stack.requires_grad_(False).eval()


def stack_shapes(blocks: Sequence[tuple[int, int]], channels: int) -> dict[str, tuple[int, ...]]:
    """The shape of each weight and bias in the ``state`` of `conv_stack`, by name and in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    index = 0
    for width, convolutions in blocks:
        for _ in range(convolutions):
            shapes |= {f"{index}.weight": (width, channels, 3, 3), f"{index}.bias": (width,)}
            channels = width
            index += 2  # a convolution and its ReLU
        index += 1  # the pooling
    return shapes


class Vgg19:
    """The mean of ``block5_pool`` over the frames of each segment, (T, 7, 7, 512), never negative.

    Args:
        weights: ``keras``, as for AVE's released features, or ``torchvision``.
        weights_file: the file that Keras or torchvision published; None looks in the cache folder, and downloads it if
            it is not there.
        weights_sha: sha256 of the weights file, for weights other than the published ones.
        frames_per_segment: number of evenly spaced frames to average.
        precision: ``float32``; or ``bfloat16``, many times faster on processors with matrix units (AMX), with errors
            of at most a few thousandths of the largest feature.
        progress: called as ``progress("download", bytes done, bytes in all)``.

    Raises:
        AvelError: an option is invalid, or the weights are missing or do not match; see `find_weights`.
    """

    kind: Literal["visual"] = "visual"
    name = "vgg19"
    frame_size = 224
    grid = (7, 7)
    dim = 512

    def __init__(
        self,
        weights: str = "keras",
        weights_file: str | None = None,
        weights_sha: str | None = None,
        frames_per_segment: int = 16,
        precision: str = "float32",
        progress: Progress | None = None,
    ) -> None:
        if weights not in PREPROCESSING:
            raise AvelError(f"VGG-19 weights {weights!r}", f"one of {', '.join(PREPROCESSING)}", "choose one of these")
        if precision not in PRECISIONS:
            raise AvelError(f"precision {precision!r}", f"one of {', '.join(PRECISIONS)}", "choose one of these")
        if not 1 <= frames_per_segment <= 1000:
            raise AvelError(f"{frames_per_segment} frames a segment", "1 to 1000; AVE has 16", "choose another number")
        self.frames_per_segment = frames_per_segment
        found = find_weights(PUBLISHED[f"vgg19-{weights}"], weights_file, weights_sha, progress)
        shaping = {
            "weights": weights,
            "weights_sha": found.sha256,
            "frames_per_segment": frames_per_segment,
            "precision": precision,
        }
        self.options: dict[str, Any] = {**shaping, **({"weights_file": weights_file} if weights_file else {})}
        self.tag = make_tag(
            self.name, kind=self.kind, framing="time", resize="opencv-bilinear", layer="block5_pool", options=shaping
        )
        state = (_keras_state if weights == "keras" else _torchvision_state)(str(found.path))
        self._dtype = PRECISIONS[precision]
        # Converted once: to the precision, and to channels last, as in frames and fastest for convolutions.
        state = {
            name: value.to(self._dtype, memory_format=torch.channels_last) if value.ndim == 4 else value.to(self._dtype)
            for name, value in state.items()
        }
        self._stack = conv_stack(BLOCKS, 3, state)
        self._mean, self._divisor = (torch.tensor(values) for values in PREPROCESSING[weights])
        self._batches = Batches(on_cpu=FRAMES_AT_ONCE, elsewhere=FRAMES_ON_DEVICE, item_bytes=FRAME_BYTES)

    def to(self, device: torch.device) -> None:
        """Move the network to a device. Frames and features stay in main memory."""
        self._stack.to(device)
        self._mean, self._divisor = self._mean.to(device), self._divisor.to(device)
        self._batches.to(device)

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB -> (224, 224, 3) uint8, as `resize_bilinear`; the aspect ratio is not kept."""
        return resize_bilinear(frame[None], self.frame_size)[0]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(T * frames_per_segment, 224, 224, 3) uint8 RGB -> (T, 7, 7, 512) float32."""
        pooled = self._batches(self.block5_pool, frames)
        return pooled.reshape(-1, self.frames_per_segment, *self.grid, self.dim).mean(1)

    def block5_pool(self, frames: np.ndarray) -> np.ndarray:
        """The features of single frames, in one batch: (N, 224, 224, 3) uint8 RGB -> (N, 7, 7, 512) float32."""
        with torch.inference_mode():
            return self.pool(torch.from_numpy(np.ascontiguousarray(frames)).to(self._mean.device)).cpu().numpy()

    def pool(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) uint8 RGB on the network's device -> (N, 7, 7, 512) float32 there."""
        pictures = (frames - self._mean) / self._divisor
        pooled: torch.Tensor = self._stack(pictures.to(self._dtype).permute(0, 3, 1, 2))  # a view: channels stay last
        return pooled.permute(0, 2, 3, 1).float().contiguous()


def multiply_adds() -> int:
    """Multiply-adds of the convolutions for one frame."""
    total, side, channels = 0, Vgg19.frame_size, 3
    for width, convolutions in BLOCKS:
        for _ in range(convolutions):
            total += side * side * width * channels * 9
            channels = width
        side //= 2
    return total


def _keras_state(path: str) -> dict[str, torch.Tensor]:
    """The stack's weights from Keras's file: kernels (3, 3, in, out) -> (out, in, 3, 3).

    Keras's network expects BGR. Here the input channels of its first kernel are reversed once, instead of every frame.
    """
    names = [
        f"block{block}_conv{conv}"
        for block, (_, convolutions) in enumerate(BLOCKS, start=1)
        for conv in range(1, convolutions + 1)
    ]
    layers = read_keras(path)
    wanted: dict[str, tuple[int, ...]] = {}
    given: dict[str, np.ndarray] = {}
    targets = list(stack_shapes(BLOCKS, 3).items())
    for name, (_, kernel), (_, bias) in zip(names, targets[::2], targets[1::2], strict=True):
        out, channels, height, width = kernel
        wanted |= {f"{name} kernel": (height, width, channels, out), f"{name} bias": bias}
        given |= dict(zip((f"{name} kernel", f"{name} bias"), layers.get(name, ()), strict=False))
    check_shapes(path, {name: value.shape for name, value in given.items()}, wanted)
    state = {}
    for (name, _), value in zip(targets, (given[name] for name in wanted), strict=True):
        tensor = torch.from_numpy(value)
        state[name] = tensor.permute(3, 2, 0, 1) if value.ndim == 4 else tensor
    state["0.weight"] = state["0.weight"].flip(1)
    return state


def _torchvision_state(path: str) -> dict[str, torch.Tensor]:
    """The stack's weights from torchvision's file, without its classifier."""
    wanted = stack_shapes(BLOCKS, 3)
    given = read_torch(path)
    check_shapes(
        path,
        {name: tuple(value.shape) for name, value in given.items()},
        {f"features.{name}": shape for name, shape in wanted.items()},
    )
    return {name: given[f"features.{name}"] for name in wanted}


def resize_bilinear(frames: np.ndarray, size: int) -> np.ndarray:
    """Resize as OpenCV's INTER_LINEAR, in its fixed-point arithmetic: (N, H, W, 3) uint8 -> (N, size, size, 3) uint8.

    It has half-pixel centres and *no* antialiasing: most pixels of a large picture are ignored. AVE's features were
    made this way; scalers that average (FFmpeg's, Pillow's) change them by a tenth.
    """
    top, bottom, down = _taps(frames.shape[1], size)
    left, right, across = _taps(frames.shape[2], size)
    down, across = down[:, None, None], across[:, None]

    def rows(picked: np.ndarray) -> np.ndarray:
        lines = frames[:, picked]
        return (lines[:, :, left] * (2048 - across) + lines[:, :, right] * across) >> 4

    mixed = (rows(top) * (2048 - down) >> 16) + (rows(bottom) * down >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


@lru_cache(maxsize=64)
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels that each output pixel mixes, and the second one's share in 2048ths (int32): (size,) each."""
    at = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.intp)
    share = np.rint((at - first) * np.float32(2048)).astype(np.int32)
    return first.clip(0, length - 1), (first + 1).clip(0, length - 1), share

"""Weights files made at random, in the formats of the published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from avel.features import vgg19, vggish


def digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_stack(blocks: tuple[tuple[int, int], ...], channels: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state of `conv_stack` that keeps values' spread from layer to layer, with biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in vgg19.stack_shapes(blocks, channels).items():
        fan_in = int(np.prod(shape[1:]))
        spread = (2 / fan_in) ** 0.5 if len(shape) == 4 else 0.5
        state[name] = torch.randn(shape, generator=generator) * spread
    return state


def write_keras(path: Path, state: Mapping[str, torch.Tensor]) -> Path:
    """Keras's h5 layout of 2016: ``block1_conv1/block1_conv1_W_1:0``, kernels (3, 3, in, out)."""
    with h5py.File(path, "w") as file:
        layers, values = ["input_1"], iter(state.values())
        for block, (_, convolutions) in enumerate(vgg19.BLOCKS, start=1):
            for conv in range(1, convolutions + 1):
                layer = f"block{block}_conv{conv}"
                group = file.create_group(layer)
                names = [f"{layer}_W_1:0", f"{layer}_b_1:0"]
                group.attrs["weight_names"] = [name.encode() for name in names]
                group[names[0]] = next(values).permute(2, 3, 1, 0).contiguous().numpy()
                group[names[1]] = next(values).numpy()
                layers.append(layer)
            layers.append(f"block{block}_pool")
        for layer in set(layers) - set(file):
            file.create_group(layer).attrs["weight_names"] = np.array([], dtype="S1")
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
    return path


def write_torchvision(path: Path, state: Mapping[str, torch.Tensor], *, zipped: bool = False) -> Path:
    """torchvision's state dict, with a classifier that nobody reads, in the old format of the published file."""
    content = {f"features.{name}": value for name, value in state.items()} | {"classifier.0.weight": torch.zeros(1, 1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def random_vggish(seed: int = 0) -> dict[str, torch.Tensor]:
    """torchvggish's state dict. The large matrices repeat few numbers, and so do their files."""
    generator = torch.Generator().manual_seed(seed)
    state = {f"features.{name}": value for name, value in random_stack(vggish.BLOCKS, 1, seed).items()}
    for index, (width, out) in enumerate(zip(vggish.WIDTHS, vggish.WIDTHS[1:], strict=False)):
        few = torch.randn(width + 7 * out, generator=generator) * (2 / width) ** 0.5
        state[f"embeddings.{2 * index}.weight"] = few.as_strided((out, width), (7, 1))
        state[f"embeddings.{2 * index}.bias"] = torch.randn(out, generator=generator) * 0.5
    return state


def write_vggish(path: Path, state: Mapping[str, torch.Tensor], *, zipped: bool = False) -> Path:
    """A state dict in the old format of the published file, or as torch writes it today."""
    torch.save(dict(state), path, _use_new_zipfile_serialization=zipped)
    return path

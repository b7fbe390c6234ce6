"""VGG-19 and VGGish of a few channels, whose weights files pass for the published ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from random_weights import digest, random_stack, random_vggish, write_keras, write_vggish

from avel.features import vgg19, vggish
from avel.features.weights import PUBLISHED


def write_tiny(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Narrow both networks, and write weights for them; both still give features of their usual shapes."""
    monkeypatch.setattr(vgg19, "BLOCKS", ((2, 1), (2, 1), (2, 1), (2, 1), (512, 1)))
    monkeypatch.setattr(vggish, "BLOCKS", ((4, 1), (4, 1), (4, 1), (8, 1)))
    monkeypatch.setattr(vggish, "WIDTHS", (8 * 6 * 4, 16, 16, 128))
    keras = write_keras(folder / "vgg19.h5", random_stack(vgg19.BLOCKS, 3))
    torchvggish = write_vggish(folder / "vggish.pth", {k: v.contiguous() for k, v in random_vggish().items()})
    for module, name, file in ((vgg19, "vgg19-keras", keras), (vggish, "vggish", torchvggish)):
        size = file.stat().st_size
        known = replace(PUBLISHED[name], size=size, algorithm="sha256", digest=digest(file))
        monkeypatch.setattr(module, "PUBLISHED", {**PUBLISHED, name: known})
    return keras, torchvggish

"""What an extractor is. VGG-19, VGGish and the classical features all look like this to the rest of avel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np


class Extractor(Protocol):
    """What both kinds declare.

    Attributes:
        kind: ``visual`` or ``audio``.
        name: its name in ``VISUAL_EXTRACTORS`` or ``AUDIO_EXTRACTORS``.
        options: JSON values that make it again: ``build_extractor(kind, name, **options)``.
        dim: width of a feature, Dv or Da.
        tag: name and hash of everything that shapes its output; features of different tags are never mixed.
    """

    @property
    def kind(self) -> Literal["visual", "audio"]: ...
    @property
    def name(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def dim(self) -> int: ...
    @property
    def tag(self) -> str: ...


class VisualExtractor(Extractor, Protocol):
    """Frames to visual features.

    Attributes:
        frame_size: side of the square frames it takes, pixels.
        frames_per_segment: frames it takes for each segment.
        grid: (H, W).
    """

    @property
    def frame_size(self) -> int: ...
    @property
    def frames_per_segment(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(T * frames_per_segment, frame_size, frame_size, 3) uint8 RGB -> (T, H, W, Dv) float32."""


class AudioExtractor(Extractor, Protocol):
    """Sound to audio features.

    Attributes:
        sample_rate: of the sound it takes, Hz.
    """

    @property
    def sample_rate(self) -> int: ...

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(T, samples) float32, full scale 1 -> (T, Da) float32."""


def make_tag(name: str, **facts: Any) -> str:
    """``name`` and 12 hex digits of the sha256 of ``facts`` as canonical JSON."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def describe(extractor: Extractor) -> dict[str, Any]:
    """``{"name", "tag", "options"}``, what stores and models carry of an extractor."""
    return {"name": extractor.name, "tag": extractor.tag, "options": dict(extractor.options)}

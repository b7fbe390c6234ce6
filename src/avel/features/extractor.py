"""The interface of extractors: VGG-19, VGGish, CLIP, CLAP and the classical features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # the classical extractors need no torch
    import torch


class Extractor(Protocol):
    """What every extractor declares.

    Attributes:
        kind: ``visual`` or ``audio``.
        name: its name in ``VISUAL_EXTRACTORS`` or ``AUDIO_EXTRACTORS``.
        options: JSON values that build it again: ``build_extractor(kind, name, **options)``.
        dim: width of a feature, Dv or Da.
        tag: name and hash of everything that affects its output; features with different tags are never mixed.
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
    """Turns frames into visual features.

    Attributes:
        frame_size: side of its square input frames, pixels.
        frames_per_segment: number of input frames per segment.
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
    """Turns sound into audio features.

    Attributes:
        sample_rate: sample rate of its input, Hz.
    """

    @property
    def sample_rate(self) -> int: ...

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(T, samples) float32, full scale 1 -> (T, Da) float32."""


@runtime_checkable
class OwnResize(Protocol):
    """A visual extractor that resizes frames exactly as its reference does; the others use FFmpeg's scaler."""

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB at the file's own size -> (frame_size, frame_size, 3) uint8."""


@runtime_checkable
class OwnMemory(Protocol):
    """A visual extractor that keeps its own results of each batch."""

    def repeat(self) -> None:
        """Told instead of a call when the last batch comes again and its features are reused."""


@runtime_checkable
class OnDevice(Protocol):
    """An extractor whose network can run on other devices than the CPU, where it starts."""

    def to(self, device: torch.device) -> None:
        """Move the network. Its input and output stay in the computer's memory."""


class AudioSpans(NamedTuple):
    """Which stretches of the sound the segments take, in seconds.

    Attributes:
        hop: time from one segment's start to the next.
        before: time before a segment's start that is included.
        length: length of the stretch, ``before`` included.
    """

    hop: float
    before: float
    length: float


@runtime_checkable
class OwnResampling(Protocol):
    """An audio extractor that resamples exactly as its reference does; the others use FFmpeg's resampler.

    Its input is 16-bit sound at the file's own rate, averaged over all channels.
    """

    def spans(self, segment_seconds: float) -> AudioSpans: ...

    def resample(self, waveform: np.ndarray, rate: int, first: int) -> np.ndarray:
        """(T, samples) at ``rate``, stretches ``first``, ``first + 1``, ... as `spans` says -> (T, samples) at
        ``sample_rate``."""


#: Options that name a file on this machine. They do not affect features and mean nothing elsewhere. (``weights`` of
#: CLIP and CLAP is not among them: it is a model id, or a folder whose name is also looked up in avel's cache.)
LOCAL_OPTIONS = frozenset({"weights_file"})


def make_tag(name: str, **facts: Any) -> str:
    """``name`` and 12 hex digits of the sha256 of ``facts`` as canonical JSON."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def describe(extractor: Extractor, framing: str = "time") -> dict[str, Any]:
    """``{"name", "tag", "options"}``, which stores and models record of an extractor, without `LOCAL_OPTIONS`.

    An extractor's own tag is for framing ``time``. Any other framing gives another tag and a fourth key, ``framing``.
    """
    options = {name: value for name, value in extractor.options.items() if name not in LOCAL_OPTIONS}
    described = {"name": extractor.name, "tag": extractor.tag, "options": options}
    if framing == "time":
        return described
    return {**described, "tag": make_tag(extractor.name, framing=framing, of=extractor.tag), "framing": framing}

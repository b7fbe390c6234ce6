"""What an extractor is: the interface of VGG-19, VGGish, CLIP, CLAP and the classical features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # the classical extractors need no torch
    import torch


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


@runtime_checkable
class OwnResize(Protocol):
    """A visual extractor that resizes frames exactly as its reference does; FFmpeg's scaler serves the others."""

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB of the file's own size -> (frame_size, frame_size, 3) uint8."""


@runtime_checkable
class OwnMemory(Protocol):
    """A visual extractor that keeps something of each batch for itself."""

    def repeat(self) -> None:
        """The last batch comes again. Its features are reused without a call."""


@runtime_checkable
class OnDevice(Protocol):
    """An extractor whose network can run elsewhere than on the processor. It starts there."""

    def to(self, device: torch.device) -> None:
        """Move the network. Its input and output stay in the computer's memory."""


class AudioSpans(NamedTuple):
    """Which stretches of the sound are the segments, all in seconds.

    Attributes:
        hop: from one segment's start to the next one's.
        before: sound that is wanted before a segment's start.
        length: of the stretch, ``before`` included.
    """

    hop: float
    before: float
    length: float


@runtime_checkable
class OwnResampling(Protocol):
    """An audio extractor that resamples exactly as its reference does; FFmpeg's resampler serves the others.

    Its sound is 16-bit, at the file's own rate, and all channels are averaged, however many there are.
    """

    def spans(self, segment_seconds: float) -> AudioSpans: ...

    def resample(self, waveform: np.ndarray, rate: int, first: int) -> np.ndarray:
        """(T, samples) at ``rate``, stretches ``first``, ``first + 1``, ... as `spans` says -> (T, samples) at
        ``sample_rate``."""


#: Options that say where a file is on this machine. They change no number and mean nothing elsewhere. (CLIP's and
#: CLAP's ``weights`` is not among them: it is an id on the hub, or a folder by whose name avel's cache is searched.)
LOCAL_OPTIONS = frozenset({"weights_file"})


def make_tag(name: str, **facts: Any) -> str:
    """``name`` and 12 hex digits of the sha256 of ``facts`` as canonical JSON."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def describe(extractor: Extractor, framing: str = "time") -> dict[str, Any]:
    """``{"name", "tag", "options"}``, what stores and models keep of an extractor, without `LOCAL_OPTIONS`.

    An extractor's own tag is for framing ``time``. Any other makes another tag, and is named by a fourth key,
    ``framing``.
    """
    options = {name: value for name, value in extractor.options.items() if name not in LOCAL_OPTIONS}
    described = {"name": extractor.name, "tag": extractor.tag, "options": options}
    if framing == "time":
        return described
    return {**described, "tag": make_tag(extractor.name, framing=framing, of=extractor.tag), "framing": framing}

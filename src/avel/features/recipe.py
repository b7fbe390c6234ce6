"""All settings that decide how a clip becomes features. The sentence under each field is its help text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from avel import devices
from avel.data.store import Settings
from avel.errors import AvelError
from avel.features import build_audio, build_visual, describe, device_for, run_on
from avel.features.extractor import AudioExtractor, VisualExtractor
from avel.workers import Limits, worker_count

#: Bytes that a process needs for a GPU: in main memory the GPU's libraries; in the GPU's memory those, the networks and
#: a batch. Both are generous estimates; if the GPU's memory fills up after all, batches get smaller.
DEVICE_HOST_BYTES, DEVICE_BYTES = 4 * 2**30, 5 * 2**30


class Streams(NamedTuple):
    """Which of a file's streams to take, counted from 0 for each kind.

    None takes the first that can be decoded; a video stream must have at least two pictures.

    Cover pictures and thumbnails are not video streams, and are not counted.
    """

    video: int | None = None
    audio: int | None = None


FIRST_STREAMS = Streams()


@dataclass(frozen=True)
class Recipe:
    """How clips become features.

    The default uses the classical extractors, which need no weights.

    Raises:
        AvelError: a value has the wrong type, is out of range, or is not one of the field's words. `build` checks the
            extractors and the device.
    """

    visual: str = "classical"
    """Visual extractor: classical, vgg19 (as for AVE's features), or clip."""
    audio: str = "classical"
    """Audio extractor: classical, vggish (as for AVE's features), or clap."""
    visual_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the visual extractor, as in --visual_options.precision bfloat16. An unknown name gets the list of all
    options."""
    audio_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the audio extractor, as in --audio_options.framing continuous. An unknown name gets the list of all
    options."""
    segment_seconds: float = 1.0
    """Length of a segment in seconds."""
    framing: Literal["time", "ave"] = "time"
    """Which frames belong to a segment: time takes the frames within it; ave takes a tenth of the frames of a clip of
    9.5 to 10.5 s, as in AVE's own features."""
    streams: Streams = FIRST_STREAMS
    """Video and audio stream to take from files with several, from 0; by default the first that can be decoded."""
    missing_audio: Literal["error", "mark"] = "error"
    """What to do with a video without sound: error counts it as failed; mark keeps its visual features and marks it as
    without sound, so that training refuses it."""
    device: str = "auto"
    """Where the extractors' networks run: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    #: A batch of four seconds takes VGG-19 half a minute on a slow core.
    clip_seconds_limit: float = 300.0
    """Longest time in seconds to process one second of video. A clip that takes longer counts as failed; the others go
    on. No limit with --workers 0."""
    #: A ten-second clip of 720p takes 0.1 with classical features and 0.5 with VGG-19.
    clip_memory_limit: float = 2.0
    """Most memory in GiB for the process of a clip. A clip that needs more counts as failed; the others go on. With a
    GPU the limit is 4 GiB higher, for its libraries. No limit with --workers 0."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            given = getattr(self, name)
            plain = given.item() if isinstance(given, np.generic) else given
            plain = tuple(plain) if isinstance(plain, Streams) else plain  # otherwise msgspec would not check it
            try:
                object.__setattr__(self, name, msgspec.convert(plain, kind))
            except (msgspec.ValidationError, TypeError) as error:
                words = get_args(kind) if get_origin(kind) is Literal else ()
                expected = " or ".join(words) or f"a value of type {getattr(kind, '__name__', kind)}"
                raise AvelError(f"{name} {given!r}", expected, f"give {name} another value") from error
        if not 0.05 <= self.segment_seconds <= 60:
            raise AvelError(
                f"segments of {self.segment_seconds} s", "0.05 to 60 seconds", "choose another segment length"
            )
        if self.framing == "ave" and self.segment_seconds != 1:
            raise AvelError(
                f"segments of {self.segment_seconds:g} s with framing 'ave'",
                "segments of 1 s: a tenth of a ten-second clip",
                "leave out --segment-seconds, or use --framing time",
            )
        if not (self.clip_seconds_limit > 0 and self.clip_memory_limit > 0):
            raise AvelError(
                f"limits of {self.clip_seconds_limit:g} s and {self.clip_memory_limit:g} GiB for a clip",
                "both above 0",
                "raise them",
            )

    def build(self) -> BuiltRecipe:
        """The recipe with its extractors, still on the CPU.

        Raises:
            AvelError: an unknown extractor, option or device; or the weights are missing or do not match.
        """
        visual = build_visual(self.visual, **self.visual_options)
        audio = build_audio(self.audio, **self.audio_options)
        pinned = replace(
            self,
            visual_options=visual.options,
            audio_options=audio.options,
            device=device_for(self.device, visual, audio),
        )
        return BuiltRecipe(pinned, visual, audio)


DEFAULT_RECIPE = Recipe()


class BuiltRecipe(NamedTuple):
    """A recipe and the extractors it names.

    Attributes:
        recipe: with all options of the extractors, such as the sha256 of their weights, and their device, so that it
            builds the same in another process.
        visual: the visual extractor.
        audio: the audio extractor.
    """

    recipe: Recipe
    visual: VisualExtractor
    audio: AudioExtractor

    def on_device(self) -> BuiltRecipe:
        """Move the networks to their device, and return itself. Only for the process that uses them."""
        run_on(self.recipe.device, self.visual, self.audio)
        return self

    @property
    def settings(self) -> Settings:
        """What a store records of the recipe."""
        return Settings(
            segment_seconds=self.recipe.segment_seconds,
            framing=self.recipe.framing,
            extractors={
                "visual": describe(self.visual, self.recipe.framing),
                "audio": describe(self.audio, self.recipe.framing),
            },
            grid=self.visual.grid,
            visual_dim=self.visual.dim,
            audio_dim=self.audio.dim,
        )

    @property
    def limits(self) -> Limits:
        """The limits of a process that makes features; with a GPU, its libraries are added."""
        libraries = 0 if self.recipe.device == "cpu" else DEVICE_HOST_BYTES
        return Limits(self.recipe.clip_seconds_limit, int(self.recipe.clip_memory_limit * 2**30) + libraries)

    def processes(self, workers: int | None) -> int:
        """As `worker_count`, but by default no more than a GPU has room for."""
        number = worker_count(workers)
        if workers is not None or self.recipe.device == "cpu":
            return number
        return min(number, max(1, devices.free_bytes(devices.device(self.recipe.device)) // DEVICE_BYTES))

"""Zero-shot localization: events with any labels, found by CLIP and CLAP without training.

CLIP scores how well each label fits the picture of a segment, CLAP how well it fits the sound. Each gives a
distribution over the labels and "none of them" (a few background prompts). An event is where the two agree.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from avel.errors import AvelError
from avel.features import run_on
from avel.features.extractor import AudioExtractor, VisualExtractor, make_tag
from avel.features.recipe import FIRST_STREAMS, Recipe, Streams
from avel.features.segments import extract_clip
from avel.localization import find_events
from avel.text import has_controls
from avel.timeline import Timeline
from avel.types import BACKGROUND, ZERO_SHOT, Progress

MOST_LABELS = 100


class VisualWords(VisualExtractor, Protocol):
    """An encoder of pictures and words, such as `avel.features.huggingface.ClipVision`.

    Attributes:
        word_scale: factor of the cosines before the softmax.
    """

    @property
    def word_scale(self) -> float: ...

    def embed_frames(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames, as for a visual extractor -> unit vectors of segments (T, D) and of their patches (T, H, W, D)."""

    def embed_words(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, D) unit vectors."""


class AudioWords(AudioExtractor, Protocol):
    """An encoder of sounds and words, such as `avel.features.huggingface.ClapAudio`; its features are unit vectors.

    Attributes:
        word_scale: factor of the cosines before the softmax.
    """

    @property
    def word_scale(self) -> float: ...

    def embed_words(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, Da) unit vectors."""


@dataclass(frozen=True)
class Prompts:
    """The sentences for labels, and those for background.

    Attributes:
        picture: sentences about the picture, each with one ``{}`` for the label; their embeddings are averaged.
        sound: the same about the sound.
        no_picture: sentences for a picture of none of the labels; their probabilities are added up.
        no_sound: the same for the sound.
    """

    picture: tuple[str, ...] = ("a photo of {}.", "a video frame of {}.")
    sound: tuple[str, ...] = ("This is a sound of {}.",)
    no_picture: tuple[str, ...] = ("a photo.", "a photo of something else.", "a photo of an empty scene.")
    no_sound: tuple[str, ...] = (
        "This is a sound of silence.",
        "This is a sound of background noise.",
        "This is a sound of something else.",
    )


def localize_words(
    path: str | Path,
    labels: str | Sequence[str],
    *,
    clip: VisualWords | str | Path | None = None,
    clap: AudioWords | str | Path | None = None,
    threshold: float = 0.5,
    min_seconds: float = 0.0,
    segment_seconds: float = 1.0,
    prompts: Prompts | None = None,
    streams: Streams = FIRST_STREAMS,
    device: str = "auto",
    progress: Progress | None = None,
) -> Timeline:
    """Find where your own labels are seen and heard at once in a media file; nothing is trained.

    A segment gets a label if picture and sound both give it their largest probability, and both at least ``threshold``.
    A run of segments with one label is an event. The timeline's probabilities come from `agree`, its attention from
    `where` for the label with the highest of them.

    Args:
        path: a video with a sound track, of any length.
        labels: what to look and listen for, in English; or a text for `parse_labels`.
        clip: an encoder, or weights for `ClipVision`; None takes its default weights.
        clap: an encoder, or weights for `ClapAudio`; None takes its default weights.
        threshold: least probability of a label in the picture and in the sound, 0 to 1.
        min_seconds: leave out events shorter than this, in whole segments.
        segment_seconds: length of a segment, seconds.
        prompts: the sentences for labels and background; None takes the default ones.
        streams: which streams to take from a file with several; the timeline's tag ``streams`` names them.
        device: where both encoders run: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes a GPU if there is one.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        AvelError: labels, prompts, threshold or min_seconds are invalid; the encoders or the file cannot be used
            (see `ClipVision`, `ClapAudio` and `avel.features.streams.probe`); there is no such device.
    """
    names = parse_labels(labels) if isinstance(labels, str) else check_labels(labels)
    prompts = prompts or Prompts()
    _check_prompts(prompts)
    if not 0.0 <= threshold <= 1.0:
        raise AvelError(f"a threshold of {threshold}", "a probability, 0 to 1", "choose another threshold")
    if not min_seconds >= 0.0:
        raise AvelError(f"min_seconds of {min_seconds}", "seconds, 0 or more", "choose another length")
    visual_encoder, audio_encoder = _encoders(clip, clap)
    run_on(device, visual_encoder, audio_encoder)
    visual_prompts = _embed_prompts(visual_encoder, prompts.picture, prompts.no_picture, names)
    audio_prompts = _embed_prompts(audio_encoder, prompts.sound, prompts.no_sound, names)

    patches = _PatchCosines(visual_encoder, visual_prompts[: len(names)])
    recipe = Recipe(segment_seconds=segment_seconds, streams=streams)
    features = extract_clip(path, patches, audio_encoder, recipe, progress=progress)
    num_segments = len(features.audio)
    embeddings = np.concatenate(patches.embeddings)[:num_segments]
    visual_probabilities = word_probabilities(embeddings, visual_prompts, len(names), visual_encoder.word_scale)
    audio_probabilities = word_probabilities(features.audio, audio_prompts, len(names), audio_encoder.word_scale)
    if not (np.isfinite(visual_probabilities).all() and np.isfinite(audio_probabilities).all()):
        raise AvelError(
            f"{path}: {visual_encoder.tag} or {audio_encoder.tag} gives probabilities that are not finite",
            "weights that are finite numbers",
            "download the weights again",
        )
    probabilities = agree(visual_probabilities, audio_probabilities)
    return Timeline(
        video=os.fspath(path),
        duration=features.duration,
        segment_seconds=segment_seconds,
        classes=names,
        probabilities=probabilities,
        attention=where(features.visual, probabilities[:, :-1].argmax(-1), visual_encoder.word_scale),
        events=find_events(
            _only_agreed(probabilities, visual_probabilities, audio_probabilities, threshold),
            names,
            segment_seconds,
            features.duration,
            min_seconds=min_seconds,
        ),
        tags={
            "model": f"{visual_encoder.name}+{audio_encoder.name}",
            "task": ZERO_SHOT,
            "visual": visual_encoder.tag,
            "audio": audio_encoder.tag,
            "prompts": make_tag("prompts", **asdict(prompts)),
            **features.tags,
        },
        threshold=threshold,
        min_seconds=min_seconds,
    )


def parse_labels(text: str) -> tuple[str, ...]:
    """``dog barking, church bell`` -> its labels, separated by commas; a label with a comma needs double quotes.

    Raises:
        AvelError: as in `check_labels`, or a quote is not closed.
    """
    try:
        row = next(csv.reader([" ".join(text.split())], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise AvelError(
            f"the labels {text!r} cannot be read: {error}",
            'labels separated by commas, and quotes around a label with a comma: dog, "drum, snare"',
            "close the quotes, or leave them out",
        ) from error
    return check_labels(row)


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, without needless spaces.

    Raises:
        AvelError: there are none or too many, one is empty, has control characters or means background, or two are the
            same to CLIP, which ignores case.
    """
    expected = f"1 to {MOST_LABELS} different labels, such as: dog barking, church bell, train horn"
    names = tuple(" ".join(label.split()) for label in labels)
    if not any(names):
        raise AvelError("no labels", expected, "name what to look and listen for")
    if len(names) > MOST_LABELS:
        raise AvelError(f"{len(names)} labels", expected, "leave some out: more labels make each less certain")
    for place, name in enumerate(names):
        if not name:
            raise AvelError(f"label {place + 1} of {len(names)} is empty", expected, "remove the extra comma")
        if has_controls(name):
            raise AvelError(f"the label {name!r} holds control characters", expected, "remove them")
        if name.casefold() == BACKGROUND:
            raise AvelError(f"the label {name!r}", expected, "leave it out: whatever fits no label is background")
        if name.casefold() in (earlier.casefold() for earlier in names[:place]):
            raise AvelError(f"the label {name!r} is given twice", expected, "leave one of them out")
    return names


def word_probabilities(values: np.ndarray, words: np.ndarray, num_labels: int, scale: float) -> np.ndarray:
    """Softmax of the scaled cosines over all prompts; those of the background prompts are added up.

    Args:
        values: (T, D) unit embeddings of pictures or sounds.
        words: (C + background prompts, D) unit embeddings of prompts, labels first.
        num_labels: C.
        scale: factor of the cosines.

    Returns:
        (T, C+1) float64, rows summing to 1, background last.
    """
    shares = _softmax(scale * (values.astype(np.float64) @ words.astype(np.float64).T))
    return np.concatenate([shares[:, :num_labels], shares[:, num_labels:].sum(1, keepdims=True)], axis=1)


def agree(visual: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """The smaller of the two probabilities of each label; background gets the rest.

    So a label reaches a threshold only where picture and sound both do.

    Args:
        visual: (T, C+1) probabilities, background last.
        audio: (T, C+1), the same.

    Returns:
        (T, C+1) float64, rows summing to 1, background last.
    """
    labels = np.minimum(visual, audio)[:, :-1]
    return np.concatenate([labels, np.maximum(0.0, 1.0 - labels.sum(1, keepdims=True))], axis=1)


def where(cosines: np.ndarray, chosen: np.ndarray, scale: float) -> np.ndarray:
    """Attention over the cells: the softmax of how well the chosen label fits each.

    Args:
        cosines: (T, H, W, C), between patches and labels.
        chosen: (T,) label of each segment, 0 to C-1.
        scale: factor of the cosines.

    Returns:
        (T, H, W) float64, each map summing to 1.
    """
    num_segments, height, width, _ = cosines.shape
    maps = np.take_along_axis(cosines.astype(np.float64), chosen[:, None, None, None], axis=-1)
    return _softmax(scale * maps.reshape(num_segments, -1)).reshape(num_segments, height, width)


def _only_agreed(probabilities: np.ndarray, visual: np.ndarray, audio: np.ndarray, threshold: float) -> np.ndarray:
    """(T, C+1): ``probabilities``, but all background where picture and sound disagree or are below the threshold."""
    agreed = (visual.argmax(-1) == audio.argmax(-1)) & (probabilities[:, :-1].max(-1) >= threshold)
    nothing = np.eye(probabilities.shape[1])[-1]
    return np.where(agreed[:, None], probabilities, nothing)


class _PatchCosines:
    """A visual extractor for `extract_clip` that keeps two results of one pass over the frames.

    Its features are the cosines of each patch with each label, (T, H, W, C), stored in half precision, which is enough
    for attention. It also collects the pictures' embeddings, which decide the events, in full precision and in order.
    """

    kind: Literal["visual"] = "visual"

    def __init__(self, encoder: VisualWords, words: np.ndarray) -> None:
        self._encoder, self._words = encoder, words
        self.name, self.tag, self.options = encoder.name, encoder.tag, encoder.options
        self.frame_size, self.frames_per_segment, self.grid = (
            encoder.frame_size,
            encoder.frames_per_segment,
            encoder.grid,
        )
        self.dim = len(words)
        self.embeddings: list[np.ndarray] = []

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        embeddings, patches = self._encoder.embed_frames(frames)
        self.embeddings.append(embeddings)
        return patches @ self._words.T

    def repeat(self) -> None:
        self.embeddings.append(self.embeddings[-1])


def _encoders(
    clip: VisualWords | str | Path | None, clap: AudioWords | str | Path | None
) -> tuple[VisualWords, AudioWords]:
    if clip is None or isinstance(clip, str | Path):
        from avel.features.huggingface import ClipVision

        clip = ClipVision(**_weights(clip))
    if clap is None or isinstance(clap, str | Path):
        from avel.features.huggingface import ClapAudio

        clap = ClapAudio(**_weights(clap))
    return clip, clap


def _weights(given: str | Path | None) -> dict[str, Any]:
    return {} if given is None else {"weights": os.fspath(given)}


def _embed_prompts(
    encoder: VisualWords | AudioWords, templates: Sequence[str], background: Sequence[str], names: Sequence[str]
) -> np.ndarray:
    """(C + background prompts, D) unit vectors; that of a label is the mean over its templates."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    embedded = encoder.embed_words([*texts, *background]).astype(np.float64)
    labels = embedded[: len(texts)].reshape(len(names), len(templates), -1).mean(1)
    labels /= np.linalg.norm(labels, axis=1, keepdims=True)
    return np.concatenate([labels, embedded[len(texts) :]])


def _check_prompts(prompts: Prompts) -> None:
    for name, templates in asdict(prompts).items():
        if not templates or isinstance(templates, str) or not all(template.strip() for template in templates):
            raise AvelError(f"the prompts {name} are {templates!r}", "one sentence or more", "leave the option out")
        for template in () if name.startswith("no_") else templates:
            if template.count("{}") != 1:
                raise AvelError(
                    f"the prompt {template!r} of {name}", "one {} in place of the label", 'write it as "a photo of {}."'
                )


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)

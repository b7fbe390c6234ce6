"""A video of any length -> a Timeline.

The clip is cut into overlapping pieces as long as the windows that the model was trained on, half a window apart. The
probabilities of the pieces that cover a segment are averaged. A run of segments with one class is an event.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from avel.data.ave.files import SEGMENTS
from avel.errors import AvelError
from avel.metrics import labels_of
from avel.timeline import Timeline
from avel.types import DistanceOutput, Event, Progress

if TYPE_CHECKING:
    import torch

    from avel.checkpoint import LoadedModel
    from avel.features.recipe import Streams

_AT_ONCE = 32

#: Extractor names in stores of features read from AVE's h5 files: as its authors released them, or not.
RELEASED, LAYOUT, SIMULATED = "ave-released", "ave-layout", "simulated-"
#: The extractors that make features like the released ones, with their published weights and default options.
RELEASED_BY = MappingProxyType({"visual": "vgg19", "audio": "vggish"})
_RELEASED_TAGS = {"visual": f"{RELEASED}-visual-7x7x512", "audio": f"{RELEASED}-audio-128"}


@overload  # a str is a Sequence of str, too; it is one path here
def localize(  # type: ignore[overload-overlap]
    path: str | Path,
    model: LoadedModel | str | Path,
    *,
    threshold: float = ...,
    min_seconds: float = ...,
    streams: Streams | None = ...,
    visual_weights: str | None = ...,
    audio_weights: str | None = ...,
    device: str = ...,
    progress: Progress | None = ...,
) -> Timeline: ...
@overload
def localize(
    path: Sequence[str | Path],
    model: LoadedModel | str | Path,
    *,
    threshold: float = ...,
    min_seconds: float = ...,
    streams: Streams | None = ...,
    visual_weights: str | None = ...,
    audio_weights: str | None = ...,
    device: str = ...,
    failed: Callable[[str | Path, AvelError], None] | None = ...,
    progress: Progress | None = ...,
) -> list[Timeline]: ...
def localize(
    path: str | Path | Sequence[str | Path],
    model: LoadedModel | str | Path,
    *,
    threshold: float = 0.0,
    min_seconds: float = 0.0,
    streams: Streams | None = None,
    visual_weights: str | None = None,
    audio_weights: str | None = None,
    device: str = "auto",
    failed: Callable[[str | Path, AvelError], None] | None = None,
    progress: Progress | None = None,
) -> Timeline | list[Timeline]:
    """Find the events in one media file, or in each of a list; model and extractors are then loaded only once.

    A model trained on AVE's released features gets features that VGG-19 and VGGish extract from the file with their
    published weights, framed as AVE's. The timeline's tags ``stands_in_for``, ``framing``, ``visual_weights`` and
    ``audio_weights`` say so.

    Args:
        path: a video with a sound track, of any length; or a list of them.
        model: from `avel.load`, or the path of a run folder or checkpoint.
        threshold: leave out events whose score (mean probability) is below this, 0 to 1.
        min_seconds: leave out events shorter than this, in whole segments.
        streams: which streams to take from a file with several, as `avel.Streams(video=1, audio=2)`; None takes the
            first ones. The timeline's tag ``streams`` names them.
        visual_weights: local weights of the model's visual extractor: a file, for CLIP a folder. They must be those
            that the model was trained with. By default they are taken from the cache folder, or else downloaded.
        audio_weights: the same for the model's audio extractor: a file, for CLAP a folder.
        device: where the networks run: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto`` takes a GPU if there is one.
        failed: called with each video of a list that cannot be used, and its error; the result then holds the other
            videos. None raises the first such error, which names the video.
        progress: called as ``progress(stage, done, total)``, starting over for each video.

    Returns:
        The timeline; for a list, the timelines in its order.

    Raises:
        AvelError: the file cannot be used (see `avel.features.streams.probe`), the model was trained on features of
            another version of its extractor or on features that no extractor makes, the extractor's weights are missing
            or do not match, threshold or min_seconds is out of range, or there is no such device.
    """
    _check_choices(threshold, min_seconds)
    if isinstance(model, str | Path):
        from avel.checkpoint import load

        model = load(model, device)
    find = localizer(model, visual_weights=visual_weights, audio_weights=audio_weights, device=device)
    options = {"threshold": threshold, "min_seconds": min_seconds, "streams": streams, "progress": progress}
    if isinstance(path, str | Path):
        return find(path, **options)
    timelines = []
    for video in path:
        try:
            timelines.append(find(video, **options))
        except AvelError as error:
            if failed is None:
                raise
            failed(video, error)
    return timelines


def localizer(
    model: LoadedModel, *, visual_weights: str | None = None, audio_weights: str | None = None, device: str = "auto"
) -> Callable[..., Timeline]:
    """Build a model's extractors once, and return a function that localizes one video.

    Raises:
        AvelError: as in `localize`, for the model and its extractors.
    """
    from avel.features import describe, run_on
    from avel.features.recipe import FIRST_STREAMS, Recipe
    from avel.features.segments import extract_clip

    _check_task(model)
    released = of_released_features(model)
    framing: Any = "ave" if released else model.extractors["visual"].get("framing", "time")
    recipe = Recipe(segment_seconds=model.segment_seconds, framing=framing)
    extractors = _build_extractors(model, visual_weights, audio_weights)
    run_on(device, *extractors.values())
    tags = {kind: describe(extractor, framing)["tag"] for kind, extractor in extractors.items()}
    for kind, tag in tags.items():
        wanted = model.extractors[kind]
        if not released and tag != wanted["tag"]:
            raise AvelError(
                f"{model.source} was trained on {kind} features of the extractor {wanted['tag']}",
                f"features of this version's extractor {wanted['name']!r}, {tag}",
                "localize with the version of avel that trained the model, or extract the features again and train",
            )

    def find(
        path: str | Path,
        *,
        threshold: float = 0.0,
        min_seconds: float = 0.0,
        streams: Streams | None = None,
        progress: Progress | None = None,
    ) -> Timeline:
        _check_choices(threshold, min_seconds)
        features = extract_clip(
            path,
            extractors["visual"],
            extractors["audio"],
            replace(recipe, streams=streams or FIRST_STREAMS),
            any_length=True,
            progress=progress,
        )
        probabilities, attention = localize_features(features.audio, features.visual, model, progress=progress)
        classes = tuple(model.classes)
        return Timeline(
            video=os.fspath(path),
            duration=features.duration,
            segment_seconds=model.segment_seconds,
            classes=classes,
            probabilities=probabilities,
            attention=attention,
            events=find_events(
                probabilities,
                classes,
                model.segment_seconds,
                features.duration,
                threshold=threshold,
                min_seconds=min_seconds,
            ),
            tags={
                "model": model.name,
                "task": model.task,
                **tags,
                **({"framing": _framing_in_words(len(features.audio), features.uneven)} if framing == "ave" else {}),
                **(_stand_ins(extractors) if released else {}),
                **features.tags,
            },
            threshold=threshold,
            min_seconds=min_seconds,
        )

    return find


def _check_choices(threshold: float, min_seconds: float) -> None:
    if not 0.0 <= threshold <= 1.0:
        raise AvelError(f"a threshold of {threshold}", "a probability, 0 to 1", "choose another threshold")
    if not min_seconds >= 0.0:
        raise AvelError(f"min_seconds of {min_seconds}", "seconds, 0 or more", "choose another length")


def of_released_features(model: LoadedModel) -> bool:
    """Whether a model was trained on AVE's released features, whose like VGG-19 and VGGish extract from any video.

    Raises:
        AvelError: its features were read from files in AVE's layout, and no extractor makes features like them.
    """
    tags = {kind: str(made["tag"]) for kind, made in model.extractors.items()}
    makers = {str(made["name"]) for made in model.extractors.values()}
    do = "localize with a model trained on features from `avel extract`, or on AVE's released ones (docs/localize.md)"
    for maker in makers:
        if maker.startswith(SIMULATED):
            raise AvelError(
                f"{model.source} was trained on simulated features ({', '.join(tags.values())})",
                "features extracted from videos: simulated features are random numbers, and no video has such",
                do,
            )
        if maker == LAYOUT:
            raise AvelError(
                f"{model.source} was trained on features from files in AVE's layout ({', '.join(tags.values())})",
                "features from a known extractor: the Annotations.txt beside these is not AVE's own, so they do not "
                "count as the released ones",
                f"if they are AVE's, import them with its repository's Annotations.txt and train again; otherwise {do}",
            )
    if RELEASED in makers and tags != _RELEASED_TAGS:
        raise AvelError(
            f"{model.source} was trained on {' and '.join(tags.values())}",
            f"{' and '.join(_RELEASED_TAGS.values())}, which VGG-19 and VGGish can stand in for",
            "train on a store of visual_feature.h5 and audio_feature.h5",
        )
    return RELEASED in makers


def _build_extractors(model: LoadedModel, visual_weights: str | None, audio_weights: str | None) -> dict[str, Any]:
    """The extractors for the features that a model was trained on, by kind."""
    from avel.features import build_extractor, weights_option

    released = of_released_features(model)
    extractors = {}
    for kind, place in (("visual", visual_weights), ("audio", audio_weights)):
        made = model.extractors[kind]
        name, options = (RELEASED_BY[kind], {}) if released else (made["name"], made["options"])
        try:
            extractors[kind] = build_extractor(kind, name, **{**options, **weights_option(kind, name, place)})
        except AvelError as error:
            if not released:
                raise
            raise AvelError(
                f"{model.source} was trained on AVE's released features, and the {kind} ones need {name}'s published "
                f"weights: {error.found}",
                error.expected,
                f"{error.do.partition('; if other weights are meant')[0]}, or name it with --{kind}-weights",
            ) from error
    return extractors


def _framing_in_words(num_segments: int, uneven: int) -> str:
    """How framing ``ave`` divided a video of that many segments, for its tag."""
    stretches, rest = divmod(num_segments, SEGMENTS)
    words = ["tenths of the frames of every ten seconds"] if stretches else []
    if rest:
        words.append(f"the {'last' if stretches else 'whole'} {rest} s in {rest} equal parts of the frames")
    if uneven:
        words.append(f"{uneven} of {stretches + bool(rest)} stretches by time, as their frames are unevenly spaced")
    return f"ave: {', '.join(words)}"


def _stand_ins(extractors: dict[str, Any]) -> dict[str, str]:
    """Tags that say which weights made the features that stand in for the released ones."""
    from avel.features.weights import PUBLISHED

    published = {"visual": PUBLISHED["vgg19-keras"].name, "audio": PUBLISHED["vggish"].name}
    return {"stands_in_for": ", ".join(_RELEASED_TAGS.values())} | {
        f"{kind}_weights": f"{published[kind]}, sha256 {extractor.options['weights_sha']}"
        for kind, extractor in extractors.items()
    }


def estimate_seconds(
    videos: Sequence[str | Path],
    model: LoadedModel,
    *,
    visual_weights: str | None = None,
    audio_weights: str | None = None,
    device: str = "auto",
) -> float:
    """About how long `localize` and its pictures will take for these videos, in seconds.

    The extractors are timed on two blank segments; decoding and drawing are assumed to cost as much again.
    Videos that cannot be read are not counted.
    """
    from avel.features import run_on
    from avel.features.streams import probe

    visual, audio = _build_extractors(model, visual_weights, audio_weights).values()
    place = run_on(device, visual, audio)
    frames = np.zeros((2 * visual.frames_per_segment, visual.frame_size, visual.frame_size, 3), dtype=np.uint8)
    sound = np.zeros((2, round(audio.sample_rate * model.segment_seconds)), dtype=np.float32)
    if place != "cpu":  # a GPU's first call is far slower
        visual(frames), audio(sound)
    start = time.perf_counter()
    visual(frames), audio(sound)
    per_second = (time.perf_counter() - start) / (2 * model.segment_seconds)
    media = 0.0
    for video in videos:
        with suppress(AvelError):
            media += probe(video).duration
    return 2 * per_second * media


def overlapping_starts(num_segments: int, window: int) -> list[int]:
    """Starts of the pieces of ``window`` segments that cover a clip: hop ``window // 2``, the last moved back to fit.

    A clip no longer than a window is one piece.
    """
    if num_segments <= window:
        return [0]
    starts = list(range(0, num_segments - window, max(1, window // 2)))
    return [*starts, num_segments - window]


def localize_features(
    audio: np.ndarray | torch.Tensor,
    visual: np.ndarray | torch.Tensor,
    model: LoadedModel,
    *,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The model's probabilities for every segment, averaged over the pieces that cover it.

    Args:
        audio: (T, Da) array or tensor of one clip, or (N, T, Da) of several with one length.
        visual: (T, H, W, Dv) or (N, T, H, W, Dv).
        model: its ``streams`` says which streams it may use; the other one is zeroed, as in training.
        progress: called as ``progress("network", pieces done, pieces)``.

    Returns:
        Probabilities (T, C+1) or (N, T, C+1) and attention (T, H, W) or (N, T, H, W), float64; None where the model
        has no attention.

    Raises:
        AvelError: the features do not have the shape that the model takes, the model gives NaN or infinity, or it was
            trained for task cml.
    """
    import torch

    from avel.data.loader import Features
    from avel.inference import outputs

    _check_task(model)
    shape = (audio.shape[-1], *visual.shape[-3:])
    if shape != model.shape:
        raise AvelError(
            f"features with (Da, H, W, Dv) = {shape}",
            f"{model.shape}, as {model.source} takes",
            "use features from the extractors that the model was trained on",
        )
    audio, visual = torch.as_tensor(audio), torch.as_tensor(visual)
    one_clip = audio.ndim == 2
    if one_clip:
        audio, visual = audio.unsqueeze(0), visual.unsqueeze(0)
    num_clips, num_segments = audio.shape[:2]
    length = min(model.window, num_segments)
    starts = overlapping_starts(num_segments, model.window)
    at_once = max(1, _AT_ONCE // num_clips)
    groups = [starts[first : first + at_once] for first in range(0, len(starts), at_once)]
    pieces = (
        Features(*(torch.cat([stream[:, start : start + length] for start in group]) for stream in (audio, visual)))
        for group in groups
    )
    cover = np.zeros(num_segments)
    probabilities = np.zeros((num_clips, num_segments, len(model.classes) + 1))
    attention: np.ndarray | None = None
    done = 0
    for group, (_, output) in zip(groups, outputs(model.network, pieces, model.streams), strict=True):
        assert not isinstance(output, DistanceOutput)
        found = output.probabilities().unflatten(0, (len(group), num_clips)).cpu().numpy().astype(np.float64)
        weights = None
        if output.attention is not None:
            weights = output.attention.unflatten(0, (len(group), num_clips)).cpu().numpy().astype(np.float64)
        if attention is None and weights is not None:
            attention = np.zeros((num_clips, num_segments, *weights.shape[3:]))
        for number, start in enumerate(group):
            span = slice(start, start + length)
            cover[span] += 1
            probabilities[:, span] += found[number]
            if attention is not None and weights is not None:
                attention[:, span] += weights[number]
        done += len(group)
        if progress is not None:
            progress("network", done, len(starts))
    probabilities /= cover[:, None]
    if not np.isfinite(probabilities).all():
        raise AvelError(
            f"{model.source} gives probabilities that are not finite",
            "a model whose weights are finite numbers",
            "train it again, or choose an earlier checkpoint",
        )
    if attention is not None:
        attention /= cover[:, None, None]
    if one_clip:
        return probabilities[0], None if attention is None else attention[0]
    return probabilities, attention


def _check_task(model: LoadedModel) -> None:
    if model.task == "cml":
        raise AvelError(
            f"{model.source} was trained for cross-modality localization (task cml)",
            "a model that predicts every segment: task full or weak",
            "localize with another model; `avel evaluate` can score this one",
        )


def find_events(
    probabilities: np.ndarray,
    classes: tuple[str, ...],
    segment_seconds: float,
    duration: float,
    *,
    threshold: float = 0.0,
    min_seconds: float = 0.0,
) -> tuple[Event, ...]:
    """Maximal runs of segments with the same most probable event class; no gap is bridged.

    Args:
        probabilities: (T, C+1), background last.
        classes: the C names.
        segment_seconds: length of a segment, seconds.
        duration: length of the clip, seconds; the last event ends there at the latest.
        threshold: least score, the mean probability of the class over the run.
        min_seconds: least length, counted in whole segments, so that a partial last segment drops no event.

    Returns:
        Events in order of time, not overlapping.
    """
    labels = labels_of(probabilities)
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    events = []
    for first, last in pairwise(edges):
        label = int(labels[first])
        score = float(probabilities[first:last, label].mean())
        # With a little slack: 3 segments of 0.1 s are 0.30000000000000004 s, and 0.3 / 0.1 is 2.9999999999999996.
        long_enough = (last - first) * segment_seconds >= min_seconds - 1e-9
        if label < len(classes) and score >= threshold and long_enough:
            end = min(last * segment_seconds, duration)
            events.append(Event(classes[label], first * segment_seconds, end, score))
    return tuple(events)

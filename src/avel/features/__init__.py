"""From a media file to features: ``build_extractor`` makes what `extract.extract` and `extract.extract_clip` use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from avel.errors import AvelError
from avel.features.audio import ClassicalAudio
from avel.features.extractor import AudioExtractor, Extractor, VisualExtractor, describe
from avel.features.visual import ClassicalVisual

__all__ = [
    "AUDIO_EXTRACTORS",
    "VISUAL_EXTRACTORS",
    "AudioExtractor",
    "Extractor",
    "VisualExtractor",
    "build_audio",
    "build_extractor",
    "build_visual",
    "describe",
]


def _vgg19(**options: Any) -> VisualExtractor:
    from avel.features.vgg19 import Vgg19  # imports torch, for which the classical features need not wait

    return Vgg19(**options)


def _vggish(**options: Any) -> AudioExtractor:
    from avel.features.vggish import Vggish

    return Vggish(**options)


def _clip(**options: Any) -> VisualExtractor:
    from avel.features.huggingface import ClipVision

    return ClipVision(**options)


def _clap(**options: Any) -> AudioExtractor:
    from avel.features.huggingface import ClapAudio

    return ClapAudio(**options)


VISUAL_EXTRACTORS: dict[str, Callable[..., VisualExtractor]] = {
    "classical": ClassicalVisual,
    "vgg19": _vgg19,
    "clip": _clip,
}
AUDIO_EXTRACTORS: dict[str, Callable[..., AudioExtractor]] = {
    "classical": ClassicalAudio,
    "vggish": _vggish,
    "clap": _clap,
}


def build_visual(name: str, **options: Any) -> VisualExtractor:
    """Make a visual extractor by name. Raises AvelError for an unknown name or option."""
    return _build("visual", VISUAL_EXTRACTORS, name, options)


def build_audio(name: str, **options: Any) -> AudioExtractor:
    """Make an audio extractor by name. Raises AvelError for an unknown name or option."""
    return _build("audio", AUDIO_EXTRACTORS, name, options)


def build_extractor(kind: Literal["visual", "audio"] | str, name: str, **options: Any) -> Any:
    """`build_visual` or `build_audio`, by ``kind``."""
    return {"visual": build_visual, "audio": build_audio}[kind](name, **options)


def _build(kind: str, extractors: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]) -> Any:
    if name not in extractors:
        raise AvelError(
            f"no {kind} extractor is called {name!r}", f"one of {', '.join(extractors)}", "choose one of these"
        )
    try:
        return extractors[name](**options)
    except TypeError as error:
        raise AvelError(
            f"the {kind} extractor {name!r} does not take these options: {error}",
            "options that it declares",
            "leave the options out, or extract again with this version of avel",
        ) from error

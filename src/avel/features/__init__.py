"""From media files to features. ``build_extractor`` makes the extractors that `extract` and `extract_clip` use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from avel import devices
from avel.errors import AvelError
from avel.features.audio import ClassicalAudio
from avel.features.extractor import AudioExtractor, Extractor, OnDevice, VisualExtractor, describe
from avel.features.visual import ClassicalVisual

__all__ = [
    "AUDIO_EXTRACTORS",
    "VISUAL_EXTRACTORS",
    "WEIGHTS_OPTIONS",
    "AudioExtractor",
    "Extractor",
    "VisualExtractor",
    "build_audio",
    "build_extractor",
    "build_visual",
    "describe",
    "device_for",
    "run_on",
    "weights_option",
]


def _vgg19() -> type[VisualExtractor]:
    from avel.features.vgg19 import Vgg19  # imports torch, which the classical features do not need

    return Vgg19


def _vggish() -> type[AudioExtractor]:
    from avel.features.vggish import Vggish

    return Vggish


def _clip() -> type[VisualExtractor]:
    from avel.features.huggingface import ClipVision

    return ClipVision


def _clap() -> type[AudioExtractor]:
    from avel.features.huggingface import ClapAudio

    return ClapAudio


#: Functions that import and return the class of each extractor.
VISUAL_EXTRACTORS: dict[str, Callable[[], type[VisualExtractor]]] = {
    "classical": lambda: ClassicalVisual,
    "vgg19": _vgg19,
    "clip": _clip,
}
AUDIO_EXTRACTORS: dict[str, Callable[[], type[AudioExtractor]]] = {
    "classical": lambda: ClassicalAudio,
    "vggish": _vggish,
    "clap": _clap,
}

#: The option for an extractor's weights: a file, or for CLIP and CLAP a folder or a Hugging Face model id.
WEIGHTS_OPTIONS = MappingProxyType(
    {"vgg19": "weights_file", "vggish": "weights_file", "clip": "weights", "clap": "weights"}
)


def build_visual(name: str, **options: Any) -> VisualExtractor:
    """Make a visual extractor by name. Raises AvelError for an unknown name or option."""
    return _build("visual", VISUAL_EXTRACTORS, name, options)


def build_audio(name: str, **options: Any) -> AudioExtractor:
    """Make an audio extractor by name. Raises AvelError for an unknown name or option."""
    return _build("audio", AUDIO_EXTRACTORS, name, options)


def build_extractor(kind: Literal["visual", "audio"] | str, name: str, **options: Any) -> Any:
    """`build_visual` or `build_audio`, by ``kind``."""
    return {"visual": build_visual, "audio": build_audio}[kind](name, **options)


def device_for(device: str, *extractors: Extractor) -> str:
    """The device that the extractors will use: ``cpu`` if none of them is a network.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes a GPU if there is one.
        extractors: the extractors to use.

    Raises:
        AvelError: this machine has no such device.
    """
    networks = any(isinstance(extractor, OnDevice) for extractor in extractors)
    if device == "cpu" or (device == "auto" and not networks):  # avoids importing torch
        return "cpu"
    place = str(devices.device(device))
    return place if networks else "cpu"


def run_on(device: str, *extractors: Extractor) -> str:
    """Move those extractors that are networks to a device; return its name, as `device_for`."""
    place = device_for(device, *extractors)
    for extractor in extractors:
        if isinstance(extractor, OnDevice):
            extractor.to(devices.device(place))
    return place


def weights_option(kind: str, name: str, place: str | None) -> dict[str, str]:
    """The option that gives an extractor its weights; ``{}`` if ``place`` is None.

    Raises:
        AvelError: the extractor of that name has no weights.
    """
    if place is None:
        return {}
    if name not in WEIGHTS_OPTIONS:
        raise AvelError(
            f"weights for the {kind} extractor {name!r}: {place}",
            f"one that has weights: {', '.join(WEIGHTS_OPTIONS)}",
            f"leave out --{kind}-weights, or choose another --{kind}",
        )
    return {WEIGHTS_OPTIONS[name]: place}


def _build(kind: str, extractors: Mapping[str, Callable[[], type[Any]]], name: str, options: Mapping[str, Any]) -> Any:
    if name not in extractors:
        raise AvelError(
            f"no {kind} extractor is called {name!r}", f"one of {', '.join(extractors)}", "choose one of these"
        )
    extractor = extractors[name]()
    known = dict(inspect.signature(extractor, eval_str=True).parameters)
    known.pop("progress", None)  # no option: it does not affect the features
    for option, value in options.items():
        if option not in known:
            told = ", ".join(f"{each.name} ({each.default})" for each in known.values())
            raise AvelError(
                f"the {kind} extractor {name!r} has no option {option!r}",
                f"one of these (defaults in parentheses): {told}",
                "check the spelling; if a store or model names it, use the version of avel that wrote that file",
            )
        kinds = known[option].annotation
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = "a whole number" if kinds is int else "text"
            raise AvelError(f"{option} {value!r} of the {kind} extractor {name!r}", wanted, "give another value")
    return extractor(**options)

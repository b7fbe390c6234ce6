"""avel finds audio-visual events: moments in a video when something is both seen and heard.

The public names are resolved when first used, so that ``import avel`` opens nothing and imports no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AvelError": "avel.errors",
    "Event": "avel.types",
    "Recipe": "avel.features.recipe",
    "Span": "avel.types",
    "Streams": "avel.features.recipe",
    "Timeline": "avel.timeline",
    "evaluate": "avel.evaluation",
    "extract": "avel.features.extract",
    "load": "avel.checkpoint",
    "localize": "avel.localization",
    "localize_words": "avel.zero_shot",
    "open_store": "avel.data.store",
    "train": "avel.training",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'avel' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

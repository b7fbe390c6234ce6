"""A small feature store made without any media: class c is a bump in feature c of both streams, plus noise."""

from pathlib import Path

import numpy as np

from avel.data.store import Packed, Settings, Store, open_store, pack, part_file, write_part
from avel.types import Span

CLASSES = ("bell", "dog", "train")


def write_store(
    path: Path,
    *,
    clips: int = 24,
    segments: int | tuple[int, ...] = 6,
    grid: tuple[int, int] = (2, 2),
    visual_dim: int = 6,
    audio_dim: int = 5,
    noise: float = 0.3,
    seed: int = 0,
    labelled: bool = True,
    audio_valid: bool = True,
    tag: str = "made-000000000000",
) -> Store:
    """A store with half its clips in train and a quarter in val and in test; ``segments`` may cycle over lengths."""
    random = np.random.default_rng(seed)
    extractors = {kind: {"name": "made", "tag": tag, "options": {}} for kind in ("visual", "audio")}
    settings = Settings(1.0, "time", extractors, grid, visual_dim, audio_dim)
    lengths = (segments,) if isinstance(segments, int) else segments
    members = []
    path.mkdir(parents=True, exist_ok=True)
    (path / "parts").mkdir(exist_ok=True)
    for index in range(clips):
        length = lengths[index % len(lengths)]
        label = index % len(CLASSES)
        start = int(random.integers(0, length - 1))
        end = int(random.integers(start + 1, length + 1))
        visual = random.normal(0, noise, (length, *grid, visual_dim)).astype(np.float32)
        audio = random.normal(0, noise, (length, audio_dim)).astype(np.float32)
        visual[start:end, 0, 0, label] += 2
        audio[start:end, label] += 2
        file = part_file(path, f"clip-{index}")
        facts = {"duration": float(length), "audio_valid": audio_valid, "source": f"{index}", "bad_packets": 0}
        part = write_part(file, settings, visual.astype(np.float16), audio, **facts)
        spans = (Span(CLASSES[label], float(start), float(end)),)
        split = ("train", "val", "train", "test")[(index // len(CLASSES)) % 4]
        members.append(Packed(f"clip-{index}", spans if labelled else None, (split,), part))
    pack(path, settings, CLASSES, members)
    return open_store(path)

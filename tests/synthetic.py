"""A small feature store made without any media: class c is a bump in feature c of both streams, plus noise."""

import json
import shutil
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from msgspec.structs import replace

from avel.data import store_writing
from avel.data.store import WORK, Settings, Store, checksum, open_store
from avel.data.store_writing import ClipFeatures, pack, write_part
from avel.files import make_work_folder
from avel.types import Span

CLASSES = ("bell", "dog", "train")


def copied(write: Callable[..., Store]) -> Callable[..., Store]:
    """Write each store once in this process and copy it from then on: writing takes fifty times as long."""

    @cache
    def written(shard_bytes: int, **choices: object) -> TemporaryDirectory:
        folder = TemporaryDirectory()
        write(Path(folder.name), **choices)
        return folder

    @wraps(write)
    def copy(path: Path, **choices: object) -> Store:
        if (path / "store.json").exists():  # one store over another
            return write(path, **choices)
        shutil.copytree(written(store_writing.SHARD_BYTES, **choices).name, path, dirs_exist_ok=True)
        return open_store(path)

    return copy


@copied
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
    background: int = 0,
    match: bool = False,
) -> Store:
    """A store with half its clips in train and a quarter in val and in test.

    Args:
        path: its folder.
        clips: that have an event.
        segments: of a clip; several are given to the clips in turn.
        grid, visual_dim, audio_dim: shapes of the features.
        noise: its deviation; the bump is 2 high.
        seed: of events and noise.
        labelled: False leaves the annotations out.
        audio_valid: False marks all sound as not decoded.
        tag: of both extractors.
        background: so many clips without an event follow, in the split ``background``.
        match: clips whose event is a part of their length are in ``train_match``, ``val_match`` or ``test_match``, too.
    """
    random = np.random.default_rng(seed)
    extractors = {kind: {"name": "made", "tag": tag, "options": {}} for kind in ("visual", "audio")}
    settings = Settings(1.0, "time", extractors, grid, visual_dim, audio_dim)
    lengths = (segments,) if isinstance(segments, int) else segments
    members = []
    path.mkdir(parents=True, exist_ok=True)
    make_work_folder(path / WORK)
    for index in range(clips + background):
        length = lengths[index % len(lengths)]
        label = index % len(CLASSES)
        start = int(random.integers(0, length - 1))
        end = int(random.integers(start + 1, length + 1))
        visual = random.normal(0, noise, (length, *grid, visual_dim)).astype(np.float32)
        audio = random.normal(0, noise, (length, audio_dim)).astype(np.float32)
        spans = (Span(CLASSES[label], float(start), float(end)),)
        splits = (("train", "val", "train", "test")[(index // len(CLASSES)) % 4],)
        if index >= clips:
            spans, splits = (), ("background",)
        else:
            visual[start:end, 0, 0, label] += 2
            audio[start:end, label] += 2
            if match and end - start < length:
                splits = (*splits, f"{splits[0]}_match")
        features = ClipFeatures(visual.astype(np.float16), audio, float(length), audio_valid)
        part = write_part(path, f"clip-{index}", settings, features, f"{index}")
        members.append(replace(part, spans=spans if labelled else None, splits=splits))
    pack(path, settings, CLASSES, members)
    return open_store(path)


def assert_unchanged(store: Store) -> None:
    """Read every feature and compare it with its checksum."""
    for index, clip in enumerate(store.clips):
        assert checksum(store.visual(index).numpy(), store.audio(index).numpy()) == clip.checksum, clip.id


def relabel(path: Path, spans: Callable[[int, list], list]) -> Store:
    """Annotate a store anew: clip ``index`` gets ``spans(index, [[label, start, end], ...])``; features stay."""
    content = json.loads((path / "store.json").read_text())
    for index, clip in enumerate(content["clips"]):
        clip["spans"] = spans(index, clip["spans"])
    (path / "store.json").write_text(json.dumps(content))
    return open_store(path)

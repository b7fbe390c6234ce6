"""The feature store: a folder with ``store.json`` and safetensors shards, read without copying.

A shard holds ``visual`` (sum of T, H, W, Dv) float16 and ``audio`` (sum of T, Da) float32 of consecutive clips.
`avel.data.store_writing` writes all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from avel.data.labels import segment_labels
from avel.errors import AvelError
from avel.files import is_work_folder
from avel.reading import (
    LARGE_FILE,
    Count,
    Extractors,
    Name,
    Seconds,
    SegmentSeconds,
    Size,
    Text,
    check_regular,
    class_names,
    fitting_json,
    kept_inside,
    open_tensors,
    read_bytes,
    read_json,
    rows_of,
    tensor_shapes,
)
from avel.text import first_names
from avel.types import Span

if TYPE_CHECKING:  # workers that only decode need no torch
    import torch

SCHEMA = 2
WORK = ".avel-parts"  # the work folder of a store that is being made
MOST_INDEX = 2**28  # bytes of store.json: more than half a million clips
_Time = Annotated[float, Meta(ge=-1e8, le=1e8)]  # `avel data check` reports impossible times


class StoredClip(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One clip with its features, as in ``Store.clips`` and ``store.json``.

    `avel.data.table.Clip` is another class: a row of a table, with a media file and without features.

    Attributes:
        id: the path that the table gave.
        video: what the clip was cut from: its id, or what several clips of one video share.
        duration: seconds for which there is both picture and sound.
        spans: its events; None if the store was made without labels. In JSON ``[label, start, end]`` each.
        splits: the names of the splits it is in.
        shard: the file that holds its features, in the store's folder; a part file until it is packed.
        row: its first segment's row in that file.
        segments: T.
        checksum: sha256 of its visual and then its audio features as stored.
        audio_valid: False if no sound was decoded; the audio features then mean nothing.
        source: sha256 of the media file; "" if the features were imported without media files.
        bad_packets: packets and frames of the media file that could not be decoded.
        streams: which of several streams of the media file were taken, where its time stamps jump, which of picture and
            sound ends early, and how more than two channels were mixed, in words; "" if there is nothing to say.
    """

    id: Name
    video: Text
    duration: Seconds
    spans: tuple[Span, ...] | None
    splits: tuple[Text, ...]
    shard: Name
    row: Count
    segments: Annotated[int, Meta(ge=0, le=10_000_000)]
    checksum: Text
    audio_valid: bool
    source: Text
    bad_packets: Count
    streams: Text = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        spans = None if self.spans is None else [[span.label, span.start, span.end] for span in self.spans]
        content = msgspec.structs.asdict(self) | {"spans": spans, "splits": list(self.splits)}
        if not self.streams:  # stores without any such clip, as most are, keep their checksums
            del content["streams"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> StoredClip:
        """The clip in these JSON values. Raises ValueError if they do not fit."""
        spans = msgspec.convert(content, _Spans).spans
        clip = msgspec.convert({**content, "spans": None}, cls)
        return clip if spans is None else msgspec.structs.replace(clip, spans=tuple(Span(*span) for span in spans))


class _Spans(Struct):
    """The events of a clip in JSON."""

    spans: list[tuple[Text, _Time, _Time]] | None


@dataclass(frozen=True)
class Settings:
    """What all clips of a store have in common.

    Attributes:
        segment_seconds: length of a segment, seconds.
        framing: how segments fall on a clip: ``time``, or ``ave`` (tenths of the frames).
        extractors: ``{"visual" | "audio": {"name", "tag", "options"}}``.
        grid: (H, W).
        visual_dim: Dv.
        audio_dim: Da.
        origin: what the features are, where tables must say it: "simulated, not AVE ..."; "" for your own clips.
    """

    segment_seconds: float
    framing: str
    extractors: Mapping[str, Mapping[str, Any]]
    grid: tuple[int, int]
    visual_dim: int
    audio_dim: int
    origin: str = ""

    @property
    def shaping(self) -> dict[str, Any]:
        """All that shapes the numbers, as JSON. An extractor counts by its tag: its options may name a weights file."""
        return {**asdict(self), "extractors": {kind: made["tag"] for kind, made in self.extractors.items()}}

    @property
    def segment_bytes(self) -> int:
        """Bytes that one segment takes in a shard."""
        return self.grid[0] * self.grid[1] * self.visual_dim * 2 + self.audio_dim * 4


class SettingsFile(Struct):
    """`Settings` as JSON values."""

    segment_seconds: SegmentSeconds
    framing: Literal["time", "ave"]
    extractors: Extractors
    grid: tuple[Size, Size]
    visual_dim: Size
    audio_dim: Size
    origin: Text

    def settings(self) -> Settings:
        """These values as `Settings`."""
        return Settings(
            segment_seconds=self.segment_seconds,
            framing=self.framing,
            extractors=msgspec.to_builtins(self.extractors),
            grid=self.grid,
            visual_dim=self.visual_dim,
            audio_dim=self.audio_dim,
            origin=self.origin,
        )


class _ShardFile(Struct):
    name: Name
    bytes: Annotated[int, Meta(ge=0, le=2**48)]

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise ValueError(f"a shard called {self.name!r}, which is not a file in the store's folder")


class _ImportFile(Struct):
    """What ``import.json`` says of the order of clips; a clip's row in the files is its index in the store."""

    orders: dict[str, list[Count]]


class _IndexFile(SettingsFile):
    """What ``store.json`` says."""

    schema: Literal[2]
    classes: list[str]
    shards: list[_ShardFile]
    clips: list[Any]  # JSON values; once read, StoredClips

    def __post_init__(self) -> None:
        class_names(self.classes)
        self.clips = [StoredClip.from_json(clip) for clip in self.clips]


@dataclass(frozen=True)
class Store:
    """An opened feature store. Its features are views of the mapped shards: nothing is read before it is used.

    If the disk cannot map files, every use reads them from the shards.

    Attributes:
        path: the folder.
        settings: what made the features. Its fields are also attributes of the store.
        classes: the C labels, index = class id.
        clips: in the order of the source that was extracted.
        checksum: sha256 of ``store.json``, which in turn holds the checksum of every clip.
    """

    path: Path
    settings: Settings
    classes: tuple[str, ...]
    clips: tuple[StoredClip, ...]
    checksum: str
    _shards: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def segment_seconds(self) -> float:
        """Length of a segment, seconds."""
        return self.settings.segment_seconds

    @property
    def framing(self) -> str:
        """How segments fall on a clip: ``time`` or ``ave``."""
        return self.settings.framing

    @property
    def origin(self) -> str:
        """What the features are, where tables must say it; "" for your own clips."""
        return self.settings.origin

    @property
    def extractors(self) -> Mapping[str, Mapping[str, Any]]:
        """``{"visual" | "audio": {"name", "tag", "options"}}``."""
        return self.settings.extractors

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W)."""
        return self.settings.grid

    @property
    def visual_dim(self) -> int:
        """Dv."""
        return self.settings.visual_dim

    @property
    def audio_dim(self) -> int:
        """Da."""
        return self.settings.audio_dim

    def visual(self, index: int, segments: slice = slice(None)) -> torch.Tensor:
        """Visual features of a clip, or of some consecutive segments of it: (T, H, W, Dv) float16."""
        return self._rows("visual", self.clips[index], segments)

    def audio(self, index: int, segments: slice = slice(None)) -> torch.Tensor:
        """Audio features of a clip, or of some consecutive segments of it: (T, Da) float32."""
        return self._rows("audio", self.clips[index], segments)

    def labels(self, index: int) -> torch.Tensor:
        """Class ids of a clip's segments, (T,) int64, background = C.

        Raises:
            AvelError: the store was made without labels, or one is not among its classes.
        """
        import torch

        clip = self.clips[index]
        unknown = {span.label for span in clip.spans or ()} - set(self.classes)
        if unknown:
            raise AvelError(
                f"{clip.id} in {self.path} has the label {min(unknown)!r}, which is not among the classes",
                "labels among the store's classes",
                "correct the CSV and run `avel extract` again; `avel data check` lists all such labels",
            )
        if clip.spans is None:
            raise AvelError(
                f"{clip.id} in {self.path} has no labels",
                "a store extracted from a CSV with columns video,start,end,label",
                "run `avel extract` on such a CSV; features that are there already are kept",
            )
        return torch.from_numpy(segment_labels(clip.spans, self.classes, clip.segments, self.segment_seconds))

    def split(self, name: str) -> list[int]:
        """Indices of the clips of one split.

        Raises:
            AvelError: the store has no such split; the message names those it has.
        """
        indices = [index for index, clip in enumerate(self.clips) if name in clip.splits]
        if not indices:
            there = self.splits()
            raise AvelError(
                f"{self.path} has no clips of split {name!r}",
                f"one of its splits: {', '.join(there)}" if there else "a store with splits; this one has none",
                "name another split" if there else "add a column `split` to the CSV and run `avel extract` again",
            )
        return indices

    def imported_order(self, name: str) -> list[int]:
        """Indices of the clips of one split, in the order of the file that it was imported from; else as `split`.

        Raises:
            AvelError: as `split`, or ``import.json`` is damaged.
        """
        clips = self.split(name)
        try:
            kept = read_json(
                self.path / "import.json",
                _ImportFile,
                expected="the file that `avel data import-ave` wrote",
                do="import again, or delete it: clips are then in the order of the store",
                limit=LARGE_FILE,
                folder=self.path,
            )
        except FileNotFoundError:
            return clips
        order = kept.orders.get(name, [])
        return order if sorted(order) == clips else clips

    def splits(self) -> list[str]:
        """The names of the splits, in order of first appearance."""
        return list(dict.fromkeys(name for clip in self.clips for name in clip.splits))

    def require_audio(self, indices: Iterable[int]) -> None:
        """Refuse clips without decoded sound, whose audio features a model would take for silence.

        Raises:
            AvelError: one of the clips has no valid audio; the message names the first ones.
        """
        mute = [self.clips[index].id for index in indices if not self.clips[index].audio_valid]
        if mute:
            raise AvelError(
                f"no valid audio in {self.path} for {len(mute)} of the clips: {first_names(mute)}",
                "sound in every clip that is trained on, evaluated, compared or exported",
                "take them out of the CSV, or out of its splits, and run `avel extract` again: the others are kept",
            )

    def _rows(self, key: str, clip: StoredClip, segments: slice) -> torch.Tensor:
        if clip.shard not in self._shards:
            path = self.path / clip.shard
            try:
                with open_tensors(path, self.path, "pt") as file:
                    check_types(path, tensor_shapes(file))
                    self._shards[clip.shard] = {name: rows_of(file, name) for name in TYPES}
            except FileNotFoundError:
                raise damaged_shard(path, "missing") from None
        start, stop, _ = segments.indices(clip.segments)
        rows: torch.Tensor = self._shards[clip.shard][key][clip.row + start : clip.row + stop]
        width = (*self.grid, self.visual_dim) if key == "visual" else (self.audio_dim,)
        if tuple(rows.shape) != (stop - start, *width):
            raise damaged_shard(self.path / clip.shard, f"{key} features of {clip.id} of shape {tuple(rows.shape)}")
        return rows


def open_store(path: str | Path) -> Store:
    """Open a feature store.

    Raises:
        AvelError: there is no store or an unfinished one, ``store.json`` is damaged or of another schema, or a shard
            is missing or has another size.
    """
    path = Path(path)
    index = path / "store.json"
    try:
        data = read_bytes(index, MOST_INDEX, folder=path)
    except FileNotFoundError:
        unfinished = is_work_folder(path / WORK)
        raise AvelError(
            f"{path} holds an unfinished extraction" if unfinished else f"no feature store in {path}",
            "a folder with store.json, written by `avel extract`",
            "run the same `avel extract` again to finish it" if unfinished else "give the --out of an `avel extract`",
        ) from None
    content = fitting_json(
        data,
        index,
        _IndexFile,
        schema=("schema", SCHEMA),
        expected="the JSON that `avel extract` wrote",
        do="delete it and run `avel extract` again",
    )
    settings = content.settings()
    for shard in content.shards:
        file = path / shard.name
        try:
            size = check_regular(kept_inside(file, path)).st_size
        except FileNotFoundError:
            raise damaged_shard(file, "missing") from None
        if size != shard.bytes:
            raise damaged_shard(file, f"{size} bytes instead of {shard.bytes}")
    sizes = {shard.name: shard.bytes for shard in content.shards}
    for clip in content.clips:  # before an array of that length is made; the shards are opened when used
        if clip.shard not in sizes:
            raise damaged_shard(path / clip.shard, f"not among the shards, though {clip.id} should be in it")
        if clip.segments * settings.segment_bytes > sizes[clip.shard]:
            raise damaged_shard(path / clip.shard, f"too small for the {clip.segments} segments of {clip.id}")
    return Store(path, settings, tuple(content.classes), tuple(content.clips), hashlib.sha256(data).hexdigest())


def checksum(visual: np.ndarray, audio: np.ndarray) -> str:
    """Hex sha256 of a clip's features as stored."""
    digest = hashlib.sha256(np.ascontiguousarray(visual).data)
    digest.update(np.ascontiguousarray(audio).data)
    return digest.hexdigest()


#: Type of each array of a shard, as safetensors files call it.
TYPES = {"visual": "F16", "audio": "F32"}


def check_types(path: Path, found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise AvelError if a shard lacks features, or has them in another type."""
    for name, wanted in TYPES.items():
        kind = found.get(name, ("missing",))[0]
        if kind != wanted:
            raise damaged_shard(
                path, f"{name} features of type {kind}, not {wanted}" if name in found else f"no {name} features"
            )


def damaged_shard(shard: Path, found: str) -> AvelError:
    """The error for a shard that is not what avel wrote."""
    return AvelError(
        f"shard {shard}: {found}",
        "the file that `avel extract` wrote, unchanged",
        "copy the store again, or delete its store.json and this shard and run `avel extract` again",
    )

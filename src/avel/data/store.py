"""The feature store: a folder with ``store.json`` and safetensors shards, read without copying.

A shard holds ``visual`` (sum of T, H, W, Dv) float16 and ``audio`` (sum of T, Da) float32 of consecutive clips. Its
name is a hash of what it holds, so a shard that exists is finished and is never written again; ``store.json``, replaced
as a whole, says which shards count. While a store is being made, every finished clip is one file in a work folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from safetensors.numpy import save

from avel.data.labels import segment_labels
from avel.errors import AvelError
from avel.files import is_work_folder, make_work_folder, remove_work_folder, replacing, write_file
from avel.reading import (
    LARGE_FILE,
    Count,
    Extractors,
    Name,
    Seconds,
    SegmentSeconds,
    Sha256,
    Size,
    Text,
    check_regular,
    class_names,
    fitting_json,
    kept_inside,
    open_tensors,
    parse_json,
    read_bytes,
    read_json,
    rows_of,
    tensor_shapes,
)
from avel.types import Progress, Span

if TYPE_CHECKING:  # the workers that only decode must not pay for torch
    import torch

SCHEMA = 2
WORK = ".avel-parts"  # the work folder of a store that is being made
_ANNOUNCED = "shards.json"  # there: the shards that are removed where store.json does not name them
MOST_INDEX = 2**28  # bytes of store.json: more than half a million clips
SHARD_BYTES = 64 * 2**20  # a shard is put together in memory before it is written, and once more as bytes
_Time = Annotated[float, Meta(ge=-1e8, le=1e8)]  # `avel data check` tells which times cannot be


@dataclass(frozen=True)
class StoredClip:
    """One clip of a store.

    Attributes:
        id: the path that the table gave.
        video: what the clip was cut from: its id, or what several clips of one video share.
        duration: seconds for which there is both picture and sound.
        spans: its events; None where the store was made without labels.
        splits: the names of the splits it is in.
        shard: file name of its shard.
        row: its first segment's row in the shard.
        segments: T.
        checksum: sha256 of its visual and then its audio features as stored.
        audio_valid: False where the audio features stand for no sound that was decoded.
        source: sha256 of the media file; "" where the features were imported and no media were there.
        bad_packets: packets and frames of the media file that could not be decoded.
        streams: which of several streams of the media file were taken, where its time stamps jump, which of picture and
            sound ends early, and how more than two channels were mixed, in words; "" where there is nothing to say.
    """

    id: str
    video: str
    duration: float
    spans: tuple[Span, ...] | None
    splits: tuple[str, ...]
    shard: str
    row: int
    segments: int
    checksum: str
    audio_valid: bool
    source: str
    bad_packets: int
    streams: str = ""


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
        origin: what the features are, where tables must say it: "simulated, not AVE ..."; "" for one's own clips.
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
        """All that shapes the numbers, as JSON: of an extractor its tag, for options may say where its weights lie."""
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
        """The settings that these values are of."""
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
            raise ValueError(f"a shard called {self.name!r}, which is no file of the store's own folder")


class _ClipFile(Struct, forbid_unknown_fields=True):
    id: Name
    video: Text
    duration: Seconds
    spans: list[tuple[Text, _Time, _Time]] | None
    splits: list[Text]
    shard: Name
    row: Count
    segments: Annotated[int, Meta(ge=0, le=10_000_000)]
    checksum: Text
    audio_valid: bool
    source: Text
    bad_packets: Count
    streams: Text = ""

    def stored(self) -> StoredClip:
        spans = None if self.spans is None else tuple(Span(*span) for span in self.spans)
        return StoredClip(**{**msgspec.structs.asdict(self), "spans": spans, "splits": tuple(self.splits)})


class _ImportFile(Struct):
    """What ``import.json`` says of the order of clips; a clip's row in the files is its index in the store."""

    orders: dict[str, list[Count]]


class _IndexFile(SettingsFile):
    """What ``store.json`` says."""

    schema: Literal[2]
    classes: list[str]
    shards: list[_ShardFile]
    clips: list[_ClipFile]

    def __post_init__(self) -> None:
        class_names(self.classes)


class _PartFacts(Struct, forbid_unknown_fields=True):
    """What a part file says of its clip."""

    segments: Count
    duration: Seconds
    checksum: Sha256
    audio_valid: bool
    source: Text
    bad_packets: Count
    streams: Text = ""


@dataclass(frozen=True)
class Store:
    """An opened feature store. Its features are views of the mapped shards: nothing is read before it is used.

    Where the disk maps no files, they are read from the shards at every use.

    Attributes:
        path: the folder.
        settings: what made the features; its fields are attributes of the store, too.
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
        """What the features are, where tables must say it; "" for one's own clips."""
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
                "mend the CSV and run `avel extract` again; `avel data check` lists all such labels",
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
                do="delete it, and clips are in the order of the store; or import again",
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

    def refuse_mute(self, indices: Iterable[int]) -> None:
        """Refuse clips whose audio features stand for nothing: a model would take them for silence.

        Raises:
            AvelError: one of the clips has no valid audio; the message names the first ones.
        """
        mute = [self.clips[index].id for index in indices if not self.clips[index].audio_valid]
        if mute:
            more = f", and {len(mute) - 3} more" if len(mute) > 3 else ""
            raise AvelError(
                f"no valid audio in {self.path} for {len(mute)} of the clips: {', '.join(mute[:3])}{more}",
                "sound in every clip that is trained on, evaluated, compared or exported",
                "take them out of the CSV, or out of its splits, and run `avel extract` again: the others are kept",
            )

    def verify(self, progress: Progress | None = None) -> None:
        """Read every feature and compare it with its checksum.

        Raises:
            AvelError: a shard is damaged; the message names the first clip that differs.
        """
        for index, clip in enumerate(self.clips):
            found = checksum(self.visual(index).numpy(), self.audio(index).numpy())
            if found != clip.checksum:
                raise _damaged(self.path / clip.shard, f"the features of {clip.id} have sha256 {found[:12]}...")
            if progress:
                progress("verify", index + 1, len(self.clips))

    def _rows(self, key: str, clip: StoredClip, segments: slice) -> torch.Tensor:
        if clip.shard not in self._shards:
            path = self.path / clip.shard
            try:
                with open_tensors(path, self.path, "pt") as file:
                    _check_types(path, tensor_shapes(file))
                    self._shards[clip.shard] = {name: rows_of(file, name) for name in _TYPES}
            except FileNotFoundError:
                raise _damaged(path, "missing") from None
        start, stop, _ = segments.indices(clip.segments)
        rows: torch.Tensor = self._shards[clip.shard][key][clip.row + start : clip.row + stop]
        width = (*self.grid, self.visual_dim) if key == "visual" else (self.audio_dim,)
        if tuple(rows.shape) != (stop - start, *width):
            raise _damaged(self.path / clip.shard, f"{key} features of {clip.id} of shape {tuple(rows.shape)}")
        return rows


def open_store(path: str | Path) -> Store:
    """Open a feature store.

    Raises:
        AvelError: there is none or an unfinished one, ``store.json`` is damaged or of another schema, or a shard is
            missing or has another size.
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
            raise _damaged(file, "missing") from None
        if size != shard.bytes:
            raise _damaged(file, f"{size} bytes for {shard.bytes}")
    sizes = {shard.name: shard.bytes for shard in content.shards}
    for clip in content.clips:  # before anything of that length is made; the shards themselves are opened when used
        if clip.shard not in sizes:
            raise _damaged(path / clip.shard, f"not among the shards, though {clip.id} is to be in it")
        if clip.segments * settings.segment_bytes > sizes[clip.shard]:
            raise _damaged(path / clip.shard, f"too small for the {clip.segments} segments of {clip.id}")
    clips = tuple(clip.stored() for clip in content.clips)
    return Store(path, settings, tuple(content.classes), clips, hashlib.sha256(data).hexdigest())


def checksum(visual: np.ndarray, audio: np.ndarray) -> str:
    """Hex sha256 of a clip's features as stored."""
    digest = hashlib.sha256(np.ascontiguousarray(visual).data)
    digest.update(np.ascontiguousarray(audio).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Part:
    """A finished clip that is not yet in ``store.json``, or is there already: where its features lie.

    Attributes:
        file: a part file or a shard.
        row: its first segment's row there.
        segments: T.
        duration, checksum, audio_valid, source, bad_packets, streams: as in `StoredClip`.
    """

    file: Path
    row: int
    segments: int
    duration: float
    checksum: str
    audio_valid: bool
    source: str
    bad_packets: int
    streams: str = ""


def part_file(out: Path, clip_id: str) -> Path:
    """Where the features of a clip wait to be packed."""
    return out / WORK / f"{hashlib.sha256(clip_id.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.safetensors"


def write_part(
    path: Path,
    settings: Settings,
    visual: np.ndarray,
    audio: np.ndarray,
    *,
    duration: float,
    audio_valid: bool,
    source: str,
    bad_packets: int,
    streams: str = "",
) -> Part:
    """Write one finished clip: ``visual`` (T, H, W, Dv) float16 and ``audio`` (T, Da) float32."""
    # save() writes an array in the order its memory has, whatever the axes say
    visual, audio = np.ascontiguousarray(visual), np.ascontiguousarray(audio)
    facts: dict[str, Any] = {
        "segments": len(visual),
        "duration": round(duration, 6),
        "checksum": checksum(visual, audio),
        "audio_valid": audio_valid,
        "source": source,
        "bad_packets": bad_packets,
        "streams": streams,
    }
    metadata = {"settings": canonical(settings.shaping), "facts": json.dumps(facts)}
    # save_file would hide a full disk in an error of its own
    write_file(path, save({"visual": visual, "audio": audio}, metadata))
    return Part(file=path, row=0, **facts)


def read_part(path: Path, settings: Settings, source: str) -> Part | None:
    """The part in ``path``; None if there is none, it is damaged, or other settings or another source made it."""
    try:
        with open_tensors(path, path.parent, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("settings") != canonical(settings.shaping):
                return None
            facts = parse_json(metadata.get("facts", ""), _PartFacts)
            rows = (facts.segments,)
            shapes = {"visual": (*rows, *settings.grid, settings.visual_dim), "audio": (*rows, settings.audio_dim)}
            if tensor_shapes(file) != {name: (_TYPES[name], shape) for name, shape in shapes.items()}:
                return None
            if facts.source != source:
                return None
            if checksum(file.get_tensor("visual"), file.get_tensor("audio")) != facts.checksum:
                return None
            return Part(file=path, row=0, **msgspec.structs.asdict(facts))
    except (FileNotFoundError, ValueError, AvelError):
        return None  # made again, as if it had never been there


def stored_part(store: Store, clip: StoredClip) -> Part:
    """A clip of a finished store, as a part for the next one."""
    return Part(
        store.path / clip.shard,
        clip.row,
        clip.segments,
        clip.duration,
        clip.checksum,
        clip.audio_valid,
        clip.source,
        clip.bad_packets,
        clip.streams,
    )


@dataclass(frozen=True)
class Packed:
    """What `pack` is told of one clip: what the table says, and where its features lie."""

    id: str
    spans: tuple[Span, ...] | None
    splits: tuple[str, ...]
    part: Part
    video: str | None = None


def pack(
    out: Path,
    settings: Settings,
    classes: Sequence[str],
    clips: Sequence[Packed],
    progress: Progress | None = None,
) -> None:
    """Put finished clips into shards in the order given, write ``store.json`` last, then remove what is of no more use.

    A run that is killed half-way leaves the former store, if any, as it was, and whole shards that the next run uses.

    Raises:
        AvelError: no room on the disk.
    """
    shards: list[str] = []
    stored: list[StoredClip] = []
    filled = [
        (out / shard_name([settings.shaping, [clip.part.checksum for clip in members]]), members)
        for members in _fill(clips, settings.segment_bytes)
    ]
    announce(out, [shard.name for shard, _ in filled if not shard.exists()])
    for shard, members in filled:
        if not shard.is_file():
            _write_shard(shard, [clip.part for clip in members])
        row = 0
        for clip in members:
            part = clip.part
            stored.append(
                StoredClip(
                    id=clip.id,
                    video=clip.video or clip.id,
                    duration=part.duration,
                    spans=clip.spans,
                    splits=clip.splits,
                    shard=shard.name,
                    row=row,
                    segments=part.segments,
                    checksum=part.checksum,
                    audio_valid=part.audio_valid,
                    source=part.source,
                    bad_packets=part.bad_packets,
                    streams=part.streams,
                )
            )
            row += part.segments
        shards.append(shard.name)
        if progress:
            progress("pack", len(stored), len(clips))
    write_index(out, settings, classes, shards, stored)


def write_index(
    out: Path, settings: Settings, classes: Sequence[str], shards: Sequence[str], clips: Iterable[StoredClip]
) -> None:
    """Write ``store.json`` over finished shards, the last step of making a store; then remove what is of no more use.

    Raises:
        AvelError: no room on the disk.
    """
    sizes = [{"name": name, "bytes": (out / name).stat().st_size} for name in shards]
    head = {"schema": SCHEMA, **asdict(settings), "classes": list(classes), "shards": sizes}
    lines = ",\n".join("  " + json.dumps(_clip_json(clip)) for clip in clips)  # a line per clip: a diff can be read
    text = f'{json.dumps(head, indent=1)[:-2]},\n "clips": [\n{lines}\n ]\n}}\n'
    if len(text) > MOST_INDEX:
        raise AvelError(
            f"a store.json of {len(text)} bytes", f"{MOST_INDEX} at most", "split the clips over several stores"
        )
    index = out / "store.json"
    former = read_bytes(index, MOST_INDEX, folder=out) if index.is_file() else b""
    if former != text.encode():
        announce(out, _names(former, lambda content: [shard["name"] for shard in content["shards"]]) - set(shards))
        write_file(index, text)
    _remove_leftovers(out, set(shards))


def _fill(clips: Sequence[Packed], segment_bytes: int) -> Iterable[list[Packed]]:
    """Consecutive clips of at most SHARD_BYTES together (one clip alone may be more)."""
    members: list[Packed] = []
    size = 0
    for clip in clips:
        more = clip.part.segments * segment_bytes
        if members and size + more > SHARD_BYTES:
            yield members
            members, size = [], 0
        members.append(clip)
        size += more
    if members:
        yield members


def write_shard(path: Path, visual: np.ndarray, audio: np.ndarray, metadata: Mapping[str, str] | None = None) -> None:
    """Write the features of consecutive clips, visual (sum of T, H, W, Dv) float16 and audio (sum of T, Da) float32.

    Raises:
        AvelError: no room on the disk.
    """
    # By hand, as the format is a header and the arrays: the library would copy them first, and hide a full disk in an
    # error of its own.
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays = {"audio": np.ascontiguousarray(audio, "<f4"), "visual": np.ascontiguousarray(visual, "<f2")}
    offset = 0
    for name, array in arrays.items():
        kind = {4: "F32", 2: "F16"}[array.itemsize]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = canonical(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.data)


def _write_shard(path: Path, parts: Sequence[Part]) -> None:
    arrays: dict[str, list[np.ndarray]] = {"visual": [], "audio": []}
    for part in parts:
        with open_tensors(part.file, part.file.parent, "np") as file:
            _check_types(part.file, tensor_shapes(file))
            for name, rows in arrays.items():
                rows.append(file.get_slice(name)[part.row : part.row + part.segments])
                if len(rows[-1]) != part.segments or rows[-1].shape[1:] != rows[0].shape[1:]:
                    raise _damaged(part.file, f"{name} features of shape {rows[-1].shape}")
    write_shard(path, np.concatenate(arrays["visual"]), np.concatenate(arrays["audio"]))


#: Type of each array of a shard, as safetensors files call it.
_TYPES = {"visual": "F16", "audio": "F32"}


def _check_types(path: Path, found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """AvelError where a shard does not hold what it should."""
    for name, wanted in _TYPES.items():
        kind = found.get(name, ("missing",))[0]
        if kind != wanted:
            raise _damaged(
                path, f"{name} features of type {kind}, not {wanted}" if name in found else f"no {name} features"
            )


def shard_name(content: Any) -> str:
    """The file name of a shard that holds what ``content`` (JSON values) says."""
    return f"shard-{hashlib.sha256(canonical(content).encode()).hexdigest()[:16]}.safetensors"


def announce(out: Path, names: Iterable[str]) -> None:
    """Note shards that are to be written, or that no store will need: a file of that name is ours from now on."""
    known = _announced(out)
    if not known.issuperset(names):
        make_work_folder(out / WORK)
        write_file(out / WORK / _ANNOUNCED, json.dumps(sorted(known.union(names))))


def _announced(out: Path) -> set[str]:
    file = out / WORK / _ANNOUNCED
    return (
        _names(read_bytes(file, LARGE_FILE, folder=out), list)
        if is_work_folder(file.parent) and file.is_file()
        else set()
    )


def _names(data: bytes, chosen: Callable[[Any], list[Any]]) -> set[str]:
    """The names of shards in JSON; none where it is damaged, and none that lead elsewhere."""
    try:
        return {
            name for name in chosen(parse_json(data, Any)) if re.fullmatch(r"shard-[0-9a-f]{16}\.safetensors", name)
        }
    except (ValueError, KeyError, TypeError):
        return set()


def _remove_leftovers(out: Path, shards: set[str]) -> None:
    """Remove the parts, and the shards of ours that ``store.json`` no longer names."""
    for name in _announced(out) - shards:
        (out / name).unlink(missing_ok=True)
    remove_work_folder(out / WORK)


def _clip_json(clip: StoredClip) -> dict[str, Any]:
    """The fields of a clip as JSON values; not asdict, which copies deeply and takes ten times as long."""
    spans = None if clip.spans is None else [[span.label, span.start, span.end] for span in clip.spans]
    content = {**vars(clip), "spans": spans}
    if not clip.streams:  # stores without any such clip, as most are, keep their checksums
        del content["streams"]
    return content


def canonical(value: Any) -> str:
    """JSON of one spelling only, for hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _damaged(shard: Path, found: str) -> AvelError:
    return AvelError(
        f"shard {shard}: {found}",
        "the file that `avel extract` wrote, unchanged",
        "copy the store again, or delete its store.json and this shard and run `avel extract` again",
    )

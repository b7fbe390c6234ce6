"""Writing a feature store: clip by clip into part files, and these into shards and ``store.json``.

While a store is being made, every finished clip is one file in a work folder. A shard's name is a hash of what it
holds, so a shard that exists is finished and is never written again; ``store.json``, replaced as a whole, says which
shards count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save

from avel.data.store import MOST_INDEX, SCHEMA, TYPES, WORK, Settings, StoredClip, check_types, checksum, damaged_shard
from avel.errors import AvelError
from avel.files import is_work_folder, make_work_folder, remove_work_folder, replacing, write_file
from avel.reading import LARGE_FILE, open_tensors, parse_json, read_bytes, tensor_shapes
from avel.types import Progress

SHARD_BYTES = 64 * 2**20  # a shard is put together in memory before it is written, and once more as bytes
_ANNOUNCED = "shards.json"  # in the work folder: shards that are removed if store.json does not name them


@dataclass(frozen=True)
class ClipFeatures:
    """The features of one clip, and how its file was read.

    Attributes:
        visual: (T, H, W, Dv) float16.
        audio: (T, Da) float32; meaningless zeros if ``audio_valid`` is False.
        duration: seconds for which there is both picture and sound; without sound, picture.
        audio_valid: False if the file has no sound, which only ``missing_audio="mark"`` allows.
        bad_packets: packets and pictures that could not be decoded.
        tags: what a timeline says of how the file was read, in words: ``streams``, which of several were taken; ``time
            stamps``, where they restarted or jumped; ``length``, which of picture and sound ends early;
            ``channels``, how more than two became one. A key without anything to say is left out.
        uneven: with framing ``ave`` and ``any_length`` the stretches of ten seconds whose frames were chosen by their
            time, see `avel.features.segments.AveVisualSegments`.
    """

    visual: np.ndarray
    audio: np.ndarray
    duration: float
    audio_valid: bool = True
    bad_packets: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    uneven: int = 0

    @property
    def streams(self) -> str:
        """The tags in one line, as `StoredClip.streams`."""
        return "; ".join(words if key == "streams" else f"{key} {words}" for key, words in self.tags.items())


def part_file(out: Path, clip_id: str) -> Path:
    """Where the features of a clip wait to be packed."""
    return out / WORK / f"{hashlib.sha256(clip_id.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.safetensors"


def write_part(out: Path, clip_id: str, settings: Settings, features: ClipFeatures, source: str) -> StoredClip:
    """Write the features of one finished clip.

    Args:
        out: the store's folder.
        clip_id: of the clip.
        settings: of the store.
        features: of the clip.
        source: sha256 of the media file.

    Returns:
        The clip, without events and splits: the table has these.
    """
    # save() writes an array in the order of its memory, whatever its axes
    visual, audio = np.ascontiguousarray(features.visual), np.ascontiguousarray(features.audio)
    facts: dict[str, Any] = {
        "segments": len(visual),
        "duration": round(features.duration, 6),
        "checksum": checksum(visual, audio),
        "audio_valid": features.audio_valid,
        "source": source,
        "bad_packets": features.bad_packets,
        "streams": features.streams,
    }
    metadata = {"settings": canonical(settings.shaping), "facts": json.dumps(facts)}
    # save_file would hide a full disk in an error of its own
    write_file(part_file(out, clip_id), save({"visual": visual, "audio": audio}, metadata))
    return StoredClip(**facts, **_not_in_part(out, clip_id))


def _not_in_part(out: Path, clip_id: str) -> dict[str, Any]:
    """What a part file does not say about its clip: its place, and what the table may change before it is packed."""
    shard = part_file(out, clip_id).relative_to(out).as_posix()
    return {"id": clip_id, "video": clip_id, "spans": None, "splits": (), "shard": shard, "row": 0}


def read_part(out: Path, clip_id: str, settings: Settings, source: str) -> StoredClip | None:
    """A finished clip that waits to be packed, as `write_part` returned it.

    None if there is none, if it is damaged, or if other settings or another source made it.
    """
    path = part_file(out, clip_id)
    try:
        with open_tensors(path, path.parent, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("settings") != canonical(settings.shaping):
                return None
            facts = parse_json(metadata.get("facts", ""), dict[str, Any])
            part = StoredClip.from_json(facts | _not_in_part(out, clip_id))
            rows = (part.segments,)
            shapes = {"visual": (*rows, *settings.grid, settings.visual_dim), "audio": (*rows, settings.audio_dim)}
            if tensor_shapes(file) != {name: (TYPES[name], shape) for name, shape in shapes.items()}:
                return None
            if part.source != source:
                return None
            if checksum(file.get_tensor("visual"), file.get_tensor("audio")) != part.checksum:
                return None
            return part
    except (FileNotFoundError, ValueError, AvelError):
        return None  # it is made again


def pack(
    out: Path,
    settings: Settings,
    classes: Sequence[str],
    clips: Sequence[StoredClip],
    progress: Progress | None = None,
) -> None:
    """Put finished clips into shards in the order given, write ``store.json``, then remove what is no longer needed.

    A run that is killed half-way leaves the former store, if any, as it was, and whole shards that the next run uses.

    Raises:
        AvelError: no room on the disk.
    """
    stored: list[StoredClip] = []
    filled = [
        (out / shard_name([settings.shaping, [clip.checksum for clip in members]]), members)
        for members in _fill(clips, settings.segment_bytes)
    ]
    announce(out, [shard.name for shard, _ in filled if not shard.exists()])
    for shard, members in filled:
        if not shard.is_file():
            _pack_shard(shard, members)
        row = 0
        for clip in members:
            stored.append(msgspec.structs.replace(clip, shard=shard.name, row=row))
            row += clip.segments
        if progress:
            progress("pack", len(stored), len(clips))
    write_index(out, settings, classes, [shard.name for shard, _ in filled], stored)


def write_index(
    out: Path, settings: Settings, classes: Sequence[str], shards: Sequence[str], clips: Iterable[StoredClip]
) -> None:
    """Write ``store.json`` over finished shards, the last step of making a store; then remove what is no longer needed.

    Raises:
        AvelError: no room on the disk.
    """
    sizes = [{"name": name, "bytes": (out / name).stat().st_size} for name in shards]
    head = {"schema": SCHEMA, **asdict(settings), "classes": list(classes), "shards": sizes}
    lines = ",\n".join("  " + json.dumps(clip.to_json()) for clip in clips)  # a line per clip: a diff can be read
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


def _fill(clips: Sequence[StoredClip], segment_bytes: int) -> Iterable[list[StoredClip]]:
    """Consecutive clips of at most SHARD_BYTES together (one clip alone may be more)."""
    members: list[StoredClip] = []
    size = 0
    for clip in clips:
        more = clip.segments * segment_bytes
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


def _pack_shard(path: Path, clips: Sequence[StoredClip]) -> None:
    """Write a shard from clips whose features are in other files of its folder."""
    arrays: dict[str, list[np.ndarray]] = {"visual": [], "audio": []}
    for clip in clips:
        source = path.parent / clip.shard
        with open_tensors(source, source.parent, "np") as file:
            check_types(source, tensor_shapes(file))
            for name, rows in arrays.items():
                rows.append(file.get_slice(name)[clip.row : clip.row + clip.segments])
                if len(rows[-1]) != clip.segments or rows[-1].shape[1:] != rows[0].shape[1:]:
                    raise damaged_shard(source, f"{name} features of shape {rows[-1].shape}")
    write_shard(path, np.concatenate(arrays["visual"]), np.concatenate(arrays["audio"]))


def shard_name(content: Any) -> str:
    """The file name of a shard that holds what ``content`` (JSON values) says."""
    return f"shard-{hashlib.sha256(canonical(content).encode()).hexdigest()[:16]}.safetensors"


def announce(out: Path, names: Iterable[str]) -> None:
    """Note shards that will be written or removed: from now on, a file of that name is ours."""
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
    """The names of shards in JSON; none if it is damaged, and none that lead elsewhere."""
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


def canonical(value: Any) -> str:
    """JSON of one spelling only, for hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))

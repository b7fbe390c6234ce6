"""AVE's h5 files -> a feature store, in one pass: 8.3 GB of float64 become 2.2 GB of float16 and float32.

A shard of the store is the unit of finished work. Its name follows from the input files and the rows it holds, so a
killed run finds its finished shards by name and does not read their features again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from avel.data import store_writing
from avel.data.ave.files import CLASSES, FEATURES, NAMES, SEGMENTS, open_dataset, read_rows
from avel.data.ave.survey import Survey, survey
from avel.data.splits import BACKGROUND_SPLIT, FAMILIES
from avel.data.store import WORK, Settings, StoredClip, checksum, open_store
from avel.data.store_writing import announce, shard_name, write_index, write_shard
from avel.errors import AvelError
from avel.files import (
    check_folder,
    file_sha256,
    make_folder,
    refuse_foreign_json,
    remove_work_folder,
    require_space,
    write_file,
)
from avel.reading import Count, Sha256, open_tensors, parse_json
from avel.text import counted, first_names
from avel.types import Finding, Progress
from avel.workers import in_threads, worker_count

CHUNK_BYTES = 8 * 2**20  # of features read at once
LARGEST_HALF, LARGEST_HALF_BITS = 65504.0, 0x7BFF
SMALL_FILE = 2**24  # bytes; a larger file is identified by its size and time, not by its hash


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        store: the folder.
        clips: clips in the store.
        done: clips whose features were read in this run.
        survey: what was found in the folder.
        findings: its findings, and those of the features.
    """

    store: Path
    clips: int
    done: int
    survey: Survey
    findings: list[Finding]


@dataclass(frozen=True)
class _Source:
    """A pair of feature files and the clips in their rows."""

    visual: Path
    audio: Path
    pooled: Path | None
    clips: Sequence[StoredClip]


@dataclass(frozen=True)
class _Shard:
    """Consecutive rows of a source: one shard of the store."""

    path: Path
    source: _Source
    rows: range


def import_ave(
    folder: str | Path, out: str | Path, *, workers: int | None = None, progress: Progress | None = None
) -> ImportReport:
    """Make a feature store of AVE's files, clips in the order of Annotations.txt.

    A clip is in a split of each family that is there, such as ``train`` and ``val_match``; the background-only clips
    follow at the end, in the split ``background``. Without ``visual_feature.h5``, the pooled features of
    ``visual_feature_vec.h5`` are used, a grid of one cell, which is enough for cross-modality localization only.

    Args:
        folder: AVE's files, see `avel.data.ave.files.NAMES`.
        out: folder of the store; an import that was stopped there is resumed.
        workers: threads that share the work; by default one per processor; 0 starts none.
        progress: called as ``progress("import", clips done, clips in all)``.

    Returns:
        What was done and found; ``out/import.json`` keeps it, with the sizes and hashes of the files.

    Raises:
        AvelError: a file is missing, damaged or does not fit the others, a feature is not finite or too large for
            float16, ``out`` is ``folder`` or contains it, or holds another store, the disk is full, or ``workers`` is
            negative. Damaged input leaves nothing behind.
    """
    folder, out = Path(folder), Path(out)
    check_folder(out, folder)
    refuse_foreign_json(out / "import.json", {"origin", "files", "orders"})
    threads = worker_count(workers)
    found = survey(folder)
    sources = _sources(found)
    settings = _settings(found)
    identity = {key: _identity(found.files[key]) for key in sorted(found.shapes)}
    _refuse_other(out, settings)
    shards = _cut(out, sources, settings, identity)
    before = {shard.path for shard in shards if shard.path.is_file()}
    missing = sum(len(shard.rows) for shard in shards if shard.path not in before)
    require_space(out, missing * SEGMENTS * settings.segment_bytes, "the store")
    existed = out.is_dir()
    make_folder(out)
    announce(out, [shard.path.name for shard in shards if shard.path not in before])
    total = sum(len(shard.rows) for shard in shards)
    facts: dict[Path, dict[str, Any]] = {}
    done = new = 0
    try:
        with closing(in_threads(lambda shard: _make_shard(shard, settings), shards, threads)) as results:
            for shard, (facts[shard.path], made) in results:
                done += len(shard.rows)
                new += len(shard.rows) if made else 0
                if progress:
                    progress("import", done, total)
    except _BadInputError as error:
        _undo(out, [shard.path for shard in shards if shard.path not in before], existed)
        raise AvelError(error.found, error.expected, error.do) from error
    clips = [
        replace(shard.source.clips[row], shard=shard.path.name, row=place * SEGMENTS, checksum=known)
        for shard in shards
        for place, (row, known) in enumerate(zip(shard.rows, facts[shard.path]["checksums"], strict=True))
    ]
    findings = found.findings + _seen(shards, facts)
    write_index(out, settings, CLASSES, [shard.path.name for shard in shards], clips)
    content = {
        "folder": str(folder.resolve()),
        "origin": found.origin,
        "files": {path.name: _described(path) for path in found.files.values()},
        "findings": [asdict(finding) for finding in findings],
        "orders": {name: order.tolist() for name, order in found.splits.items()},  # a store keeps the sets alone
    }
    write_file(out / "import.json", json.dumps(content, indent=1))
    return ImportReport(out, len(clips), new, found, findings)


class _BadInputError(AvelError):
    """A feature file that cannot be imported. What this run wrote is then removed; after a full disk it is kept."""


def _sources(found: Survey) -> list[_Source]:
    """The files to read. Raises AvelError if they do not make a store."""
    for key in ("audio", "visual"):
        if key not in found.shapes and not (key == "visual" and "pooled visual" in found.shapes):
            raise AvelError(
                f"no {NAMES[key][0]} in {found.folder}",
                f"{NAMES[key][0]}, {'(4143, 10, 7, 7, 512)' if key == 'visual' else '(4143, 10, 128)'} in AVE",
                "see docs/ave.md for where it is public; `avel data import-ave --dry-run` says what is there",
            )
    if not found.splits:
        names = " or ".join(", ".join(NAMES[name][0] for name in family) for family in FAMILIES.values())
        raise AvelError(f"no whole family of splits in {found.folder}", names, "copy the missing files there")
    splits: dict[int, list[str]] = {each.row: [] for each in found.annotations}
    for name, order in found.splits.items():
        for row in order.tolist():
            splits[row].append(name)
    clips = [_clip(each.clip_id, each.video, (each.span,), splits[each.row]) for each in found.annotations]
    pooled = found.files.get("pooled visual") if "pooled visual" in found.shapes else None
    if "visual" in found.shapes:
        sources = [_Source(found.files["visual"], found.files["audio"], pooled, clips)]
    else:
        sources = [_Source(found.files["pooled visual"], found.files["audio"], None, clips)]
    if {"visual", "background visual", "background audio"} <= set(found.shapes):
        count = found.shapes["background visual"][0]
        ids = [f"background-{row:03d}" for row in range(count)]
        quiet = [_clip(name, name, (), [BACKGROUND_SPLIT]) for name in ids]
        sources.append(_Source(found.files["background visual"], found.files["background audio"], None, quiet))
    return sources


def _clip(name: str, video: str, spans: tuple[Any, ...], splits: list[str]) -> StoredClip:
    """A clip whose features are not read yet."""
    return StoredClip(
        id=name,
        video=video,
        duration=float(SEGMENTS),
        spans=spans,
        splits=tuple(splits),
        shard="",
        row=0,
        segments=SEGMENTS,
        checksum="",
        audio_valid=True,
        source="",
        bad_packets=0,
    )


def _settings(found: Survey) -> Settings:
    if found.exported:
        return found.exported
    shape = found.shapes.get("visual") or found.shapes["pooled visual"]
    grid = (shape[2], shape[3]) if len(shape) == 5 else (1, 1)
    if found.simulated:
        maker = f"simulated-v{found.simulated['version']}-seed{found.simulated['seed']}"
    else:
        maker = "ave-released" if found.origin == "AVE" else "ave-layout"
    tags = {
        "visual": f"{maker}-visual-{grid[0]}x{grid[1]}x{shape[-1]}",
        "audio": f"{maker}-audio-{found.shapes['audio'][-1]}",
    }
    return Settings(
        segment_seconds=1.0,
        framing="ave",
        extractors={kind: {"name": maker, "tag": tag, "options": {}} for kind, tag in tags.items()},
        grid=grid,
        visual_dim=shape[-1],
        audio_dim=found.shapes["audio"][-1],
        origin=found.origin,
    )


def _identity(path: Path) -> list[Any]:
    """Facts that change when a large file does; the file is not read."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _described(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    return {"bytes": size, **({"sha256": file_sha256(path)} if size <= SMALL_FILE else {})}


def _refuse_other(out: Path, settings: Settings) -> None:
    if (out / "store.json").exists():
        there = open_store(out).settings
        if there != settings:
            one, other = (
                ", ".join(str(kind["tag"]) for kind in each.extractors.values()) for each in (there, settings)
            )
            raise AvelError(
                f"{out} holds another store, of {one}", f"a new folder, or the store of {other}", "choose another --out"
            )
    elif any((out / WORK).glob("*.safetensors")):
        raise AvelError(f"{out} holds an unfinished extraction", "a new or empty folder", "choose another --out")


def _cut(out: Path, sources: list[_Source], settings: Settings, identity: dict[str, Any]) -> list[_Shard]:
    rows_each = max(1, store_writing.SHARD_BYTES // (SEGMENTS * settings.segment_bytes))
    shards = []
    for source in sources:
        for first in range(0, len(source.clips), rows_each):
            rows = range(first, min(first + rows_each, len(source.clips)))
            facts = [asdict(settings), identity, source.visual.name, rows.start, rows.stop]
            shards.append(_Shard(out / shard_name(facts), source, rows))
    return shards


class _ShardFacts(Struct):
    """The metadata of an imported shard."""

    checksums: list[Sha256]
    negative: dict[str, list[Count]]
    silent: list[Count]
    pooled_difference: Annotated[float, Meta(ge=0)]

    def __post_init__(self) -> None:
        if self.negative.keys() != {"visual", "audio"}:
            raise ValueError("negative values of neither stream")


def _make_shard(shard: _Shard, settings: Settings) -> tuple[dict[str, Any], bool]:
    """Read, check, convert and write the rows of a shard; returns what its metadata keeps, and False if it was there.

    Raises:
        _BadInputError: a feature file cannot be read or holds what must not be stored.
        AvelError: the disk is full.
    """
    count = len(shard.rows)
    if os.path.lexists(shard.path):
        try:
            with open_tensors(shard.path, shard.path.parent, "np") as file:
                facts = parse_json((file.metadata() or {}).get("facts", ""), _ShardFacts)
                if len(facts.checksums) == count:
                    return msgspec.structs.asdict(facts), False
        except (FileNotFoundError, ValueError, AvelError):
            pass  # damaged; it is made again
    visual = np.empty((count, SEGMENTS, *settings.grid, settings.visual_dim), np.float16)
    audio = np.empty((count, SEGMENTS, settings.audio_dim), np.float32)
    try:
        seen = {"visual": _convert(shard.source.visual, shard.rows, visual)}
        seen["audio"] = _convert(shard.source.audio, shard.rows, audio)
        pooled = shard.source.pooled
        differs = _pooled_difference(pooled, shard.rows, visual) if pooled else 0.0
    except _BadInputError:
        raise
    except AvelError as error:
        raise _BadInputError(error.found, error.expected, error.do) from error
    made: dict[str, Any] = {
        "checksums": [checksum(visual[row], audio[row]) for row in range(count)],
        "negative": {kind: rows["negative"] for kind, rows in seen.items()},
        "silent": seen["audio"]["zero"],
        "pooled_difference": differs,
    }
    metadata = {"facts": json.dumps(made)}
    write_shard(shard.path, visual.reshape(-1, *visual.shape[2:]), audio.reshape(-1, audio.shape[2]), metadata)
    return made, True


def _convert(path: Path, rows: range, out: np.ndarray) -> dict[str, list[int]]:
    """Read rows of a feature file into ``out`` (rows, T, ...), rounding to its type; returns the rows to report.

    By PyTorch, which uses the processor's own instructions for it; NumPy rounds to float16 in software.
    """
    import torch

    seen: dict[str, list[int]] = {"negative": [], "zero": []}
    half = out.dtype == np.float16
    limit = LARGEST_HALF if half else float(np.finfo(np.float32).max)
    with open_dataset(path, FEATURES) as dataset:
        row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
        at_once = max(1, min(len(rows), CHUNK_BYTES // row_bytes))
        given = np.empty((at_once, *dataset.shape[1:]), dataset.dtype.newbyteorder("="))
        for first in range(0, len(rows), at_once):
            count = min(at_once, len(rows) - first)
            chunk, target = given[:count], out[first : first + count].reshape(count, *given.shape[1:])
            read_rows(dataset, path, slice(rows[first], rows[first] + count), chunk)
            torch.from_numpy(target).copy_(torch.from_numpy(chunk))
            # One look at the bits: above those of the largest half are infinity, NaN and whatever has a minus sign.
            if half and target.view(np.uint16).max() <= LARGEST_HALF_BITS:
                continue
            if not (np.abs(chunk).max() <= limit):
                raise _unfit(path, chunk, rows[first], limit)
            seen["negative"] += [rows[first + place] for place, row in enumerate(chunk) if row.min() < 0]
            if not half:  # audio, which is small
                seen["zero"] += [rows[first + place] for place, row in enumerate(chunk) if not row.any(-1).all()]
    return seen


def _unfit(path: Path, chunk: np.ndarray, first: int, limit: float) -> _BadInputError:
    """The error for the first feature that is not finite or too large."""
    row, segment, *rest = (int(place) for place in np.argwhere(~(np.abs(chunk) <= limit))[0])
    value = chunk[(row, segment, *rest)]
    return _BadInputError(
        f"{path}, key {FEATURES}, row {first + row}, segment {segment}: a value of {value:g}",
        f"finite numbers up to {limit:g}",
        "copy the file again (docs/ave.md); nothing was imported",
    )


def _pooled_difference(path: Path, rows: range, visual: np.ndarray) -> float:
    """Largest difference between the pooled file and the mean over the cells, relative to the largest value."""
    import torch

    pooled = np.empty((len(rows), SEGMENTS, visual.shape[-1]), np.float32)
    _convert(path, rows, pooled)
    difference = 0.0
    for cells, given in zip(torch.from_numpy(visual), torch.from_numpy(pooled), strict=True):
        difference = max(difference, float((cells.float().mean((1, 2)) - given).abs().max()))
    return difference / max(float(np.abs(pooled).max()), 1e-30)


def _seen(shards: list[_Shard], facts: dict[Path, dict[str, Any]]) -> list[Finding]:
    """Findings about the features that were read."""
    findings = []
    for source in dict.fromkeys(shard.source.visual for shard in shards):
        own = [shard for shard in shards if shard.source.visual == source]
        first = own[0].source
        for kind, path in (("visual", first.visual), ("audio", first.audio)):
            rows = [row for shard in own for row in facts[shard.path]["negative"][kind]]
            if rows:
                where = f"{counted(len(rows), 'row')}: {first_names(rows, 10)}"
                text = f"negative values, unlike in AVE's files, in {where}"
                findings.append(Finding("note", f"{path.name}, key {FEATURES}", text))
        silent = [row for shard in own for row in facts[shard.path]["silent"]]
        if silent:
            where = f"{counted(len(silent), 'row')}: {first_names(silent, 10)}"
            text = f"a second of zeros, which VGGish never gives, in {where}"
            findings.append(Finding("note", f"{first.audio.name}, key {FEATURES}", text))
        if first.pooled:
            differs = max(facts[shard.path]["pooled_difference"] for shard in own)
            same = differs <= 1e-3  # float16 keeps eleven bits
            text = f"{'is' if same else 'is not'} the mean over the cells of {first.visual.name} (to {differs:.1e})"
            findings.append(Finding("ok" if same else "note", first.pooled.name, text))
    return findings


def _undo(out: Path, shards: list[Path], existed: bool) -> None:
    """Remove what a run wrote before it found damaged input."""
    for shard in shards:
        shard.unlink(missing_ok=True)
    remove_work_folder(out / WORK)
    if not existed:
        out.rmdir()

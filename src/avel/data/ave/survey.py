"""What a folder of AVE's files holds, and for which of AVE's three tasks it is enough; no feature is read."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from avel.data.ave.files import (
    CLASSES,
    EXPORT_MARK,
    FEATURES,
    NAMES,
    OFFICIAL,
    SEGMENTS,
    SIMULATED_MARK,
    Annotation,
    damaged,
    full_labels,
    open_dataset,
    read_annotations,
    read_order,
    read_rows,
    weak_labels,
)
from avel.data.splits import FAMILIES
from avel.data.store import Settings, SettingsFile
from avel.errors import AvelError
from avel.files import file_sha256
from avel.reading import Count, read_json
from avel.text import first_names
from avel.types import Finding

FEATURE_FILES = ("visual", "audio", "pooled visual", "background visual", "background audio")


@dataclass(frozen=True)
class Survey:
    """What a folder of AVE's files holds.

    Attributes:
        folder: the folder.
        files: the files in the folder: a key of `avel.data.ave.files.NAMES` -> path.
        annotations: the rows. All other files must fit their number.
        splits: name -> rows, of the families of splits whose files are all there.
        shapes: key -> shape of the feature files that are there.
        findings: what a user should know.
        simulated: what ``simulated.json`` says, None for AVE itself.
        exported: what made the features, where `avel.data.ave.export` wrote the files; else None.
    """

    folder: Path
    files: dict[str, Path]
    annotations: list[Annotation]
    splits: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    findings: list[Finding]
    simulated: dict[str, Any] | None
    exported: Settings | None = None

    @property
    def origin(self) -> str:
        """What the data are, for the title of every table made from them."""
        if self.exported:
            return self.exported.origin or "in AVE's layout, features made by avel"
        if self.simulated:
            return f"simulated, not AVE (version {self.simulated['version']}, seed {self.simulated['seed']})"
        return "AVE" if _is_official(self.files["annotations"]) else "in AVE's layout, other annotations"

    def lacking(self) -> dict[str, list[str]]:
        """For every task, the files that it lacks; an empty list if it can be trained and tested."""
        standard, match = (
            [NAMES[split][0] for split in splits if split not in self.splits] for splits in FAMILIES.values()
        )

        def absent(*keys: str) -> list[str]:
            return [NAMES[key][0] for key in keys if key not in self.shapes]

        seen = absent("visual") if "pooled visual" not in self.shapes else []
        return {
            "full": absent("visual", "audio") + standard,
            "weak": absent("visual", "audio") + standard,
            "weak, with background-only videos": absent("visual", "audio", "background visual", "background audio")
            + standard,
            "cml": seen + absent("audio") + match,
        }


def survey(folder: str | Path) -> Survey:
    """Look at a folder of AVE's files: all of the small ones, the shapes of the large ones.

    Raises:
        AvelError: no such folder, no Annotations.txt, or a file in it that is damaged or does not fit the others; what
            is merely missing is no error.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AvelError(f"no such folder: {folder}", "a folder with AVE's files", "see docs/ave.md for the files")
    files, findings = _find(folder)
    if "annotations" not in files:
        raise AvelError(
            f"no Annotations.txt in {folder}", "AVE's annotations beside its features", "see docs/ave.md for the files"
        )
    annotations = read_annotations(files["annotations"])
    mark = folder / SIMULATED_MARK
    simulated = _read_mark(mark) if os.path.lexists(mark) else None
    mark = folder / EXPORT_MARK
    exported = _read_export(mark) if os.path.lexists(mark) else None
    if exported:
        tags = ", ".join(f"{kind} {made['tag']}" for kind, made in exported.extractors.items())
        findings.append(Finding("ok", EXPORT_MARK, f"written by avel export-h5; {tags}"))
    elif simulated is None:
        findings += _against_official(files)
    splits, of_splits = _read_splits(files, len(annotations))
    shapes = _shapes(files, len(annotations))
    if exported:
        _refuse_unlike(mark, exported, shapes)
    findings += of_splits + _of_videos(annotations, splits) + _of_labels(files, annotations, shapes)
    return Survey(folder, files, annotations, splits, shapes, findings, simulated, exported)


def read_splits(folder: str | Path, num_rows: int) -> dict[str, frozenset[int]]:
    """Split -> rows of Annotations.txt, of the families of splits whose files are all in a folder.

    Raises:
        AvelError: an order file is damaged, or the splits of a family overlap or leave a row out.
    """
    splits, _ = _read_splits(_find(Path(folder))[0], num_rows)
    return {name: frozenset(order.tolist()) for name, order in splits.items()}


def repeated_videos(annotations: Sequence[Annotation]) -> dict[str, list[int]]:
    """Video id -> its rows, of the videos that are annotated more than once, in order of first appearance."""
    rows: dict[str, list[int]] = defaultdict(list)
    for each in annotations:
        rows[each.video].append(each.row)
    return {video: places for video, places in rows.items() if len(places) > 1}


def shared_videos(annotations: Sequence[Annotation], one: np.ndarray, other: np.ndarray) -> list[str]:
    """The ids of the videos that have a row in both of two splits, sorted."""
    ids = [{annotations[row].video for row in rows.tolist()} for rows in (one, other)]
    return sorted(ids[0] & ids[1])


def _find(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    files, findings = {}, []
    for key, names in NAMES.items():
        there = [name for name in names if (folder / name).is_file()]
        if there:
            files[key] = folder / there[0]
        findings += [Finding("note", name, f"not read: {there[0]} is read in its place") for name in there[1:]]
    return files, findings


class _Mark(Struct):
    """The part of ``simulated.json`` that the import needs."""

    version: Count
    seed: int


class _Export(Struct):
    """The part of ``export.json`` that the import needs."""

    settings: SettingsFile


def _read_mark(path: Path) -> dict[str, Any]:
    mark = read_json(
        path,
        _Mark,
        expected="the JSON that `avel data simulate` writes beside simulated data",
        do="simulate again in another folder; without this file, nobody could distinguish the data from AVE",
    )
    return msgspec.structs.asdict(mark)


def _read_export(path: Path) -> Settings:
    exported = read_json(
        path,
        _Export,
        expected="the JSON that `avel export-h5` writes beside its files",
        do="export again; without this file, nobody could distinguish the features from AVE's released ones",
    )
    return exported.settings.settings()


def _refuse_unlike(mark: Path, exported: Settings, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise AvelError if ``export.json`` does not fit the files, or its segments do not fit AVE's annotations."""
    said = {
        "visual": (*exported.grid, exported.visual_dim),
        "pooled visual": (exported.visual_dim,),
        "audio": (exported.audio_dim,),
    }
    for key, shape in said.items():
        if key in shapes and shapes[key][2:] != shape:
            raise AvelError(
                f"{mark} says that {NAMES[key][0]} has {shape} for each segment, but it has {shapes[key][2:]}",
                "the file that was written with the features",
                "export again into a folder of its own",
            )
    if exported.segment_seconds != 1.0:
        raise AvelError(
            f"{mark}: segments of {exported.segment_seconds:g} s",
            "segments of 1 s, as AVE has",
            "use the store that was exported; such files are for other programs",
        )


def _is_official(annotations: Path) -> bool:
    """Whether the annotations are AVE's own: as in its repository, or with a header as in the archive."""
    lines = [line.strip() for line in annotations.read_text("utf-8-sig").splitlines()]
    rows = [line for line in lines if line and not line.startswith("Category&VideoID&")]
    return hashlib.sha256("".join(f"{row}\n" for row in rows).encode()).hexdigest() == OFFICIAL["Annotations.txt"]


def _against_official(files: dict[str, Path]) -> list[Finding]:
    """Whether the small files are the published ones, by their hashes."""
    known = [path for path in files.values() if path.name in OFFICIAL]
    others = [path.name for path in known if file_sha256(path) != OFFICIAL[path.name]]
    findings = [Finding("note", name, "differs from the published file (sha256)") for name in others]
    if len(others) < len(known):
        same = ", ".join(path.name for path in known if path.name not in others)
        findings.insert(0, Finding("ok", same, "same as published (sha256)"))
    return findings


def _read_splits(files: dict[str, Path], num_rows: int) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """The families of splits whose files are all there; they must be disjoint and leave no row out."""
    splits: dict[str, np.ndarray] = {}
    findings = []
    for family, names in FAMILIES.items():
        orders = {name: read_order(files[name], num_rows) for name in names if name in files}
        for one, other in combinations(orders, 2):
            both = np.intersect1d(orders[one], orders[other])
            if len(both):
                raise damaged(
                    files[other],
                    "order",
                    f"row {both[0]} of Annotations.txt is also in {files[one].name} ({len(both)} such rows)",
                    "splits that share no row",
                )
        if len(orders) < len(names):
            lacking = ", ".join(NAMES[name][0] for name in names if name not in orders)
            if orders:
                findings.append(Finding("note", f"{family} splits", f"not used: {lacking} missing"))
            continue
        left_out = np.setdiff1d(np.arange(num_rows), np.concatenate(list(orders.values())))
        if len(left_out):
            raise damaged(
                files[names[0]],
                "order",
                f"row {left_out[0]} of Annotations.txt is in none of {', '.join(files[n].name for n in names)} "
                f"({len(left_out)} such rows)",
                f"{num_rows} rows shared out among them, one for each line of Annotations.txt",
            )
        sizes = " + ".join(str(len(order)) for order in orders.values())
        findings.append(Finding("ok", f"{family} splits", f"disjoint and complete: {sizes} = {num_rows} rows"))
        splits |= orders
    return splits, findings


def _shapes(files: dict[str, Path], num_rows: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the feature files, which must fit the annotations and one another."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key in FEATURE_FILES:
        if key not in files:
            continue
        path = files[key]
        visual = key in ("visual", "background visual")
        rows: int | str = num_rows if "background" not in key else "rows"
        form = f"floats of shape ({rows}, {SEGMENTS}, {'H, W, Dv' if visual else 'width'})"
        with open_dataset(path, FEATURES) as dataset:
            shape, dtype = dataset.shape, dataset.dtype.newbyteorder("=")
        fits = shape is not None and len(shape) == (5 if visual else 3) and shape[1] == SEGMENTS and min(shape) > 0
        if not fits or dtype not in (np.float16, np.float32, np.float64) or rows not in ("rows", shape[0]):
            raise damaged(path, FEATURES, f"{dtype} of shape {shape}", form)
        shapes[key] = shape
    for one, other, first in (
        ("visual", "background visual", 2),
        ("audio", "background audio", 2),
        ("background visual", "background audio", 0),
    ):
        if one in shapes and other in shapes:
            last = 1 if first == 0 else None
            if shapes[one][first:last] != shapes[other][first:last]:
                raise damaged(
                    files[other],
                    FEATURES,
                    f"shape {shapes[other]}",
                    f"a shape that fits {files[one].name}, which has {shapes[one]}",
                )
    if "visual" in shapes and "pooled visual" in shapes and shapes["visual"][-1] != shapes["pooled visual"][-1]:
        raise damaged(
            files["pooled visual"],
            FEATURES,
            f"shape {shapes['pooled visual']}",
            f"a last axis of {shapes['visual'][-1]}, as in {files['visual'].name}",
        )
    return shapes


def _of_videos(annotations: list[Annotation], splits: dict[str, np.ndarray]) -> list[Finding]:
    """Findings about the annotations."""
    place = "Annotations.txt"
    findings = []
    first = list(dict.fromkeys(CLASSES.index(each.span.label) for each in annotations))
    if len(first) < len(CLASSES):
        findings.append(Finding("note", place, f"holds {len(first)} of AVE's {len(CLASSES)} classes"))
    if first != sorted(first):
        text = "the classes do not first appear in AVE's order; class ids follow AVE's order anyway"
        findings.append(Finding("note", place, text))
    findings += [
        Finding(
            "note",
            f"{place} row {each.row}",
            f"{each.span.label}, {each.video}: an event without length ({each.span.start:g} to {each.span.end:g} s), "
            "so all of the row is background",
        )
        for each in annotations
        if each.span.start == each.span.end
    ]
    repeated = repeated_videos(annotations)
    if repeated:
        findings.append(
            Finding("note", place, f"videos with two rows or more ({len(repeated)}): {', '.join(sorted(repeated))}")
        )
    for family in FAMILIES.values():
        for one, other in combinations(family, 2):
            if one in splits and other in splits:
                shared = shared_videos(annotations, splits[one], splits[other])
                if shared:
                    text = f"videos in both ({len(shared)}): {', '.join(shared)}"
                    findings.append(Finding("note", f"{one} and {other}", text))
    return findings


def _of_labels(
    files: dict[str, Path], annotations: list[Annotation], shapes: dict[str, tuple[int, ...]]
) -> list[Finding]:
    """The label files, cell by cell, against the labels that Annotations.txt gives."""
    full = full_labels(annotations)
    one_hot = np.eye(len(CLASSES) + 1, dtype=np.float32)
    wanted: dict[str, np.ndarray] = {
        "labels": one_hot[full],
        "video labels": weak_labels(annotations),
        "proportions": weak_labels(annotations, "proportion"),
        "event mask": (full < len(CLASSES)).astype(np.float32),
    }
    if "background labels" in files:
        count = shapes.get("background audio", shapes.get("background visual", (None,)))[0]
        with open_dataset(files["background labels"], FEATURES) as dataset:
            count = count or (dataset.shape[0] if dataset.ndim else 0)
        wanted["background labels"] = np.tile(one_hot[-1], (count, 1))
    findings = []
    for key, labels in wanted.items():
        if key not in files:
            continue
        path = files[key]
        with open_dataset(path, FEATURES) as dataset:
            if dataset.shape != labels.shape or dataset.dtype.kind not in "fiub":
                form = f"numbers of shape {labels.shape}"
                raise damaged(path, FEATURES, f"{dataset.dtype} of shape {dataset.shape}", form)
            given = read_rows(dataset, path)
        different = ~np.isclose(given.astype(np.float64), labels, rtol=0, atol=1e-6)
        rows = np.flatnonzero(different.reshape(len(labels), -1).any(1)).tolist()
        if rows:
            which = first_names(rows, 20)
            text = f"{len(rows)} of {len(labels)} rows differ from Annotations.txt, whose labels are used: rows {which}"
            findings.append(Finding("note", f"{path.name}, key {FEATURES}", text))
        else:
            findings.append(Finding("ok", path.name, f"equals Annotations.txt on all {labels.size} cells"))
    return findings

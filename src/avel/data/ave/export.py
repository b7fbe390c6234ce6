"""A feature store -> h5 files in AVE's own layout, for any code that reads AVE.

One data set a file, called ``avadataset`` (``order`` in the files of the splits), whose rows follow the lines of
``Annotations.txt``. Features are read from the store and written a row at a time, so that memory does not grow with the
store. ``export.json`` says what made the features: without it, nobody could distinguish them from AVE's released ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

import avel
from avel.data.ave.files import CLASSES, EXPORT_MARK, FEATURES, NAMES, ORDER, SEGMENTS, rows_file
from avel.data.labels import consecutive_windows, video_class, video_labels
from avel.data.splits import BACKGROUND_SPLIT, FAMILIES
from avel.data.store import Store, StoredClip, open_store
from avel.errors import AvelError
from avel.files import check_folder, replacing_folder, require_space
from avel.text import first_names
from avel.types import BACKGROUND, Progress, Span

NAMED = 5  # clips that an error names


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: where.
        files: the names of the h5 files and of ``Annotations.txt``.
        rows: N, lines of ``Annotations.txt`` and rows of every file but the ``_noisy`` and ``_order`` ones.
        background_rows: rows of the ``_noisy`` files.
        splits: name -> rows in it, of the order files written.
        classes: the C names, in the order of the columns; background is the column after them.
        several: rows with events of several classes or with several events, of which ``Annotations.txt`` can tell one.
        left_out: ids of clips that are in none of AVE's splits, and so in no file.
        bytes: of all files.
    """

    folder: Path
    files: tuple[str, ...]
    rows: int
    background_rows: int
    splits: dict[str, int]
    classes: tuple[str, ...]
    several: int
    left_out: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, eq=False)
class _Row:
    """T segments of a clip.

    Attributes:
        index: of the clip in the store.
        first: its first segment.
        labels: (T,) column of each segment, background = C.
        video: column of the row's own class.
        spans: the clip's events, if the row is the whole clip; they give the class of an event without length.
    """

    index: int
    first: int
    labels: np.ndarray
    video: int
    spans: tuple[Span, ...]


def export_h5(
    store: str | Path,
    out: str | Path,
    *,
    files: Sequence[str] | None = None,
    dtype: Literal["float32", "float64"] = "float64",
    segments: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a store's features, labels and splits as AVE's h5 files.

    ================================  ===================  ==================================================
    file                              shape                type
    ================================  ===================  ==================================================
    ``visual_feature.h5``             (N, T, H, W, Dv)     ``dtype``
    ``visual_feature_vec.h5``         (N, T, Dv)           ``dtype``; the mean over the cells
    ``audio_feature.h5``              (N, T, Da)           ``dtype``
    ``labels.h5``                     (N, T, C+1)          float32; one-hot, background last
    ``labels_closs.h5``               (N, T)               float32; 1 where there is an event
    ``mil_labels.h5``                 (N, C+1)             float32; one-hot class of the row
    ``prob_label.h5``                 (N, C+1)             float32; share of each class in the row's segments
    ``train_order.h5``, ...           (rows of a split,)   int64
    ``visual_feature_noisy.h5``, ...  likewise, of the clips in the split ``background``
    ``Annotations.txt``               N lines ``Category&VideoID&Quality&start&end``, seconds from the row's begin
    ================================  ===================  ==================================================

    Rows are in the order of the store. Columns are AVE's 28 classes in AVE's order if the store has no others, else
    the store's. A background-only row has the line ``background&VideoID&good&0&0``. If a store has splits, clips in
    none of AVE's are left out.

    Args:
        store: a feature store.
        out: folder to write: new or empty, or an earlier export with ``overwrite``. It appears when all is written.
        files: names of the h5 files to write, such as visual_feature.h5; by default all. Annotations.txt is always
            written.
        dtype: type of the features. All published code reads float64, the type of AVE's own files. float32 holds the
            same values in half the space, for code that converts what it reads: AVEL and PSP do, CMRAN and CMBS do not.
        segments: number T of segments in a row. Longer clips are cut into rows of T segments, the last one shifted
            back, as training cuts them. By default 10, as in AVE, and no clip is cut: each must have as many.
        overwrite: replace the whole of an earlier export.
        progress: called as ``progress("export", rows done, rows in all)``.

    Returns:
        What was written.

    Raises:
        AvelError: no such store; a clip without labels, without valid audio, or of another number of segments (shorter,
            with ``segments``); a class or video name with ``&`` or a line break in it; a file that cannot be made from
            this store; a folder that holds something; or a full disk. Nothing is left behind.
    """
    opened, out = open_store(store), Path(out)
    check_folder(out)
    if dtype not in ("float32", "float64"):
        raise AvelError(f"dtype {dtype!r}", "float32 or float64", "choose one of these")
    if segments is not None and segments < 1:
        raise AvelError(f"rows of {segments} segments", "at least 1", "give another --segments")
    main, background, left_out = _chosen(opened)
    opened.require_audio([*main, *background])
    _refuse_lengths(opened, [*main, *background], segments)
    columns = CLASSES if set(opened.classes) <= set(CLASSES) else opened.classes
    rows = _rows(opened, main, segments or SEGMENTS, columns)
    noisy = _rows(opened, background, segments or SEGMENTS, columns)
    annotations = "".join(_line(opened, row, columns) for row in rows)
    orders = _orders(opened, rows)
    arrays = _small_arrays(rows, noisy, orders, len(columns))
    shapes = _feature_shapes(opened, len(rows), len(noisy), segments or SEGMENTS)
    wanted = _wanted(files, [*shapes, *arrays])
    needed = sum(np.dtype(dtype).itemsize * prod(shapes[name]) for name in wanted if name in shapes)
    attributes = {
        "made_by": f"avel {avel.__version__} export-h5",
        "origin": opened.origin,
        "classes": np.array([*columns, BACKGROUND], dtype=h5py.string_dtype()),
        "segment_seconds": opened.segment_seconds,
        **{f"{kind}_tag": str(made["tag"]) for kind, made in opened.extractors.items()},
    }
    with replacing_folder(out) as temporary:
        _refuse_folder(out, overwrite, needed)
        (temporary / "Annotations.txt").write_bytes(annotations.encode("utf-8", "surrogateescape"))
        for name in wanted:
            if name in arrays:
                (temporary / name).write_bytes(_h5(ORDER if "_order" in name else FEATURES, arrays[name], attributes))
        with ExitStack() as open_files:
            write = {
                name: open_files.enter_context(rows_file(temporary / name, shapes[name], dtype, attributes))
                for name in wanted
                if name in shapes
            }
            _write_features(opened, rows, noisy, write, progress)
        (temporary / EXPORT_MARK).write_text(json.dumps(_mark(opened, columns, rows, noisy), indent=1))
        size = sum(file.stat().st_size for file in temporary.iterdir())
        _refuse_folder(out, overwrite, 0)  # once more: files may have come since
    return ExportReport(
        folder=out,
        files=("Annotations.txt", *wanted),
        rows=len(rows),
        background_rows=len(noisy),
        splits={name: len(order) for name, order in orders.items() if NAMES[name][0] in wanted},
        classes=columns,
        several=sum(len(_runs(row, len(columns))) > 1 for row in rows),
        left_out=tuple(opened.clips[index].id for index in left_out),
        bytes=size,
    )


def _chosen(store: Store) -> tuple[list[int], list[int], list[int]]:
    """Indices of the clips for the main files, of those of background alone, and of those in none of AVE's splits."""
    known = {name for family in FAMILIES.values() for name in family}
    any_split = bool(store.splits())
    main: list[int] = []
    background: list[int] = []
    left_out: list[int] = []
    for index, clip in enumerate(store.clips):
        if known & set(clip.splits) or not any_split:
            main.append(index)
        else:
            (background if BACKGROUND_SPLIT in clip.splits else left_out).append(index)
    if not main:
        raise AvelError(
            f"no clip of {store.path} is in one of AVE's splits; there are {', '.join(store.splits()) or 'no clips'}",
            f"clips in {', '.join(FAMILIES['standard'])}, or a store without splits",
            "use these names in the CSV and run `avel extract` again: finished clips are kept",
        )
    return main, background, left_out


def _refuse_lengths(store: Store, indices: Sequence[int], segments: int | None) -> None:
    """Raise AvelError if a clip does not make rows of T segments."""
    length = segments or SEGMENTS
    clips = [store.clips[index] for index in indices]
    wrong = [clip for clip in clips if (clip.segments != length if segments is None else clip.segments < length)]
    if not wrong:
        return
    some = first_names([f"{clip.id} ({clip.segments})" for clip in wrong], NAMED)
    shortest = min(clip.segments for clip in clips)
    lack = "do not have" if segments is None else "have fewer than"
    raise AvelError(
        f"{len(wrong)} of {len(clips)} clips in {store.path} {lack} {length} segments: {some}",
        f"{length} segments in every clip, as AVE has" if segments is None else f"at least {length} in every clip",
        f"add --segments {min(shortest, length)}, which cuts longer clips into windows, or take these clips out of the "
        "CSV and run `avel extract` again: the others are kept",
    )


def _rows(store: Store, indices: Sequence[int], segments: int, columns: Sequence[str]) -> list[_Row]:
    """The rows of T segments that the clips make."""
    to_column = np.array([*(columns.index(name) for name in store.classes), len(columns)])
    rows = []
    for index in indices:
        clip = store.clips[index]
        whole = to_column[store.labels(index).numpy()]
        spans = (clip.spans or ()) if clip.segments == segments else ()  # events elsewhere say nothing about a part
        for first in consecutive_windows(clip.segments, segments):
            labels = whole[first : first + segments]
            rows.append(_Row(index, first, labels, video_class(spans, columns, labels), spans))
    return rows


def _runs(row: _Row, background: int) -> list[tuple[int, int, int]]:
    """Column, first segment and number of segments of each event in a row."""
    runs, at = [], 0
    for label, run in groupby(row.labels.tolist()):
        length = len(list(run))
        if label != background:
            runs.append((label, at, length))
        at += length
    return runs


def _line(store: Store, row: _Row, columns: Sequence[str]) -> str:
    """The row's line of Annotations.txt: the longest event of its class, at the times that labels.h5 gives it."""
    label, start, end = BACKGROUND, 0.0, 0.0
    if row.video < len(columns):
        label = columns[row.video]
        own = [run for run in _runs(row, len(columns)) if run[0] == row.video]
        if own:
            _, first, length = max(own, key=lambda run: run[2])
            start, end = first * store.segment_seconds, (first + length) * store.segment_seconds
        else:  # an event without length, as in AVE's row 26
            start = end = row.spans[0].start
    video = store.clips[row.index].video
    for what, name in (("class", label), ("video", video)):
        if "&" in name or len(name.splitlines()) != 1:
            raise AvelError(
                f"the {what} name {name!r} in {store.path}",
                "a name without & and without line breaks, which end the fields and lines of Annotations.txt",
                "rename it in the CSV and run `avel extract` again",
            )
    return f"{label}&{video}&good&{start:.10g}&{end:.10g}\n"


def _orders(store: Store, rows: Sequence[_Row]) -> dict[str, np.ndarray]:
    """Split -> its rows, (n,) int64: in the order of the files that the store was imported from, or the store's own."""
    rows_of: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        rows_of.setdefault(row.index, []).append(number)
    return {
        name: np.array([number for index in store.imported_order(name) for number in rows_of[index]], dtype=np.int64)
        for family in FAMILIES.values()
        for name in family
        if name in store.splits()
    }


def _small_arrays(
    rows: Sequence[_Row], noisy: Sequence[_Row], orders: dict[str, np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    """File -> array, of the labels and the splits."""
    segments = np.stack([row.labels for row in rows])
    video = np.array([row.video for row in rows])
    keyed = {
        "labels": np.eye(num_classes + 1, dtype=np.float32)[segments],
        "event mask": (segments < num_classes).astype(np.float32),
        "video labels": video_labels(segments, video, num_classes),
        "proportions": video_labels(segments, video, num_classes, "proportion"),
        **orders,
    }
    if noisy:
        quiet = np.array([row.video for row in noisy])
        keyed["background labels"] = video_labels(np.stack([row.labels for row in noisy]), quiet, num_classes)
    return {NAMES[key][0]: array for key, array in keyed.items()}


def _feature_shapes(store: Store, rows: int, noisy: int, segments: int) -> dict[str, tuple[int, ...]]:
    """File -> shape, of the features."""
    shapes = {
        "visual": (rows, segments, *store.grid, store.visual_dim),
        "pooled visual": (rows, segments, store.visual_dim),
        "audio": (rows, segments, store.audio_dim),
        "background visual": (noisy, segments, *store.grid, store.visual_dim),
        "background audio": (noisy, segments, store.audio_dim),
    }
    return {NAMES[key][0]: shape for key, shape in shapes.items() if shape[0]}


def _wanted(files: Sequence[str] | None, possible: Sequence[str]) -> list[str]:
    """The h5 files to write."""
    if files is None:
        return list(possible)
    foreign = [name for name in files if name not in possible and name != "Annotations.txt"]
    if foreign:
        raise AvelError(
            f"no file {foreign[0]!r} can be made from this store",
            f"one of {', '.join(possible)}",
            "name others with --files, or leave it out for all",
        )
    return [name for name in possible if name in files]


def _refuse_folder(out: Path, overwrite: bool, needed: int) -> None:
    """Raise AvelError if ``out`` must not be replaced, or the disk has too little room for the features."""
    there = {file.name for file in out.iterdir()} if out.is_dir() else set()
    known = {EXPORT_MARK, *(name for names in NAMES.values() for name in names)}
    if there and not (EXPORT_MARK in there and there <= known):
        foreign = sorted(there - known) or sorted(there)
        raise AvelError(
            f"{out} holds {foreign[0]} and is not an export of avel"
            if EXPORT_MARK not in there
            else f"{out} holds {foreign[0]} beside an earlier export",
            "a new or empty folder, or an earlier export and nothing else",
            "choose another folder",
        )
    if there and not overwrite:
        raise AvelError(f"{out} holds an earlier export", "a new or empty folder", "add --overwrite to replace it")
    do = "free some space, choose another folder, or name fewer files with --files"
    require_space(out.absolute().parent, needed, "the features", do)  # where the new folder is put together


def _h5(key: str, array: np.ndarray, attributes: dict[str, Any]) -> bytes:
    """An HDF5 file of one array. In memory: HDF5 may crash if the disk is full."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.create_dataset(key, data=array).attrs.update(attributes)
    return file.getvalue()


def _write_features(
    store: Store,
    rows: Sequence[_Row],
    noisy: Sequence[_Row],
    write: dict[str, Callable[[int, np.ndarray], None]],
    progress: Progress | None,
) -> None:
    """Read every row once and write it to the files that are wanted."""
    total = len(rows) + len(noisy) if write else 0
    for prefix, some, before in (("", rows, 0), ("background ", noisy, len(rows))):
        visual, audio = (write.get(NAMES[prefix + kind][0]) for kind in ("visual", "audio"))
        pooled = None if prefix else write.get(NAMES["pooled visual"][0])
        for number, row in enumerate(some if total else ()):
            part = slice(row.first, row.first + len(row.labels))
            if visual or pooled:
                cells = store.visual(row.index, part).float()  # by PyTorch: NumPy converts float16 in software
                if visual:
                    visual(number, cells.numpy())
                if pooled:
                    pooled(number, cells.mean((1, 2)).numpy())
            if audio:
                audio(number, store.audio(row.index, part).numpy())
            if progress:
                progress("export", before + number + 1, total)


def _mark(store: Store, columns: Sequence[str], rows: Sequence[_Row], noisy: Sequence[_Row]) -> dict[str, Any]:
    """What ``export.json`` says: what made the features, and what every row is."""

    def described(row: _Row) -> dict[str, Any]:
        clip: StoredClip = store.clips[row.index]
        return {"clip": clip.id, "start": row.first * store.segment_seconds}

    return {
        "title": f"features in AVE's layout; {store.origin or 'clips of our own'}",
        "avel": avel.__version__,
        "store_checksum": store.checksum,
        "settings": asdict(store.settings),
        "classes": list(columns),
        "rows": [described(row) for row in rows],
        "background_rows": [described(row) for row in noisy],
    }

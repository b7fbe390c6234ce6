"""A CSV of your own clips.

Header ``video,start,end,label[,split]``; one row per event; times in decimal seconds; paths relative to the CSV. A
video without any event is one row whose start, end and label are empty. Further columns are ignored.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from avel.data.splits import read_split
from avel.errors import AvelError
from avel.files import write_csv
from avel.reading import LARGE_FILE, read_bytes
from avel.text import csv_path_text, csv_text, has_controls
from avel.types import BACKGROUND, Span

_COLUMNS = ("video", "start", "end", "label")
_SECONDS = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_HEADER = "a first line `video,start,end,label` or `video,start,end,label,split`"


@dataclass(frozen=True)
class Clip:
    """One video of a table.

    Attributes:
        id: its path as the table writes it.
        path: where the file is.
        spans: its events in order of time; they never overlap. Empty where it shows background alone.
        splits: the names of the splits it is in: one at most in a CSV, one of each family in AVE.
        video: what it was cut from, where several clips may share one; None where the clip is the video.
    """

    id: str
    path: Path
    spans: tuple[Span, ...]
    splits: tuple[str, ...] = ()
    video: str | None = None


@dataclass
class _Video:
    """What the rows read so far say about one video."""

    line: int
    split: str
    events: list[tuple[Span, int]]
    background_line: int | None = None


def read_table(csv_path: str | Path, *, extra_splits: Collection[str] = ()) -> list[Clip]:
    """Read a CSV of clips, in order of first appearance.

    Splits are called train, val and test, or as AVE's; case and blanks do not matter.

    Args:
        csv_path: the CSV.
        extra_splits: names of splits of one's own, which are kept as they are.

    Raises:
        AvelError: no such file, undecodable or empty text, a missing column, a bad time, an event that ends before it
            starts, times without label or label without times, overlapping events, a video that does not exist, is
            written in two ways, is in two splits, or is called background beside its events, or a split of another
            name. The message names file, line and column.
    """
    return _read(Path(csv_path), lambda name, place: read_split(name, place, extra_splits), must_exist=True)


def read_tables(csv_paths: Sequence[str | Path], *, extra_splits: Collection[str] = ()) -> list[Clip]:
    """Several CSVs as one, such as those of `avel localize`: paths are told relative to the folder of the first.

    Raises:
        AvelError: a video is in two of them; or as `read_table`.
    """
    home = Path(csv_paths[0]).parent
    clips: list[Clip] = []
    table_of: dict[str, str | Path] = {}
    for table in csv_paths:
        for clip in read_table(table, extra_splits=extra_splits):
            file = os.path.abspath(clip.path)
            if file in table_of:
                raise AvelError(
                    f"{clip.id!r} is in {table} and in {table_of[file]}",
                    "all rows of a video in one CSV",
                    "delete its rows in one of the two, or give each CSV once",
                )
            table_of[file] = table
            moved = Path(table).parent != home and not os.path.isabs(clip.id)
            clips.append(replace(clip, id=Path(os.path.relpath(file, home)).as_posix()) if moved else clip)
    return clips


def read_truth(csv_path: str | Path, videos: Sequence[str | Path]) -> tuple[dict[Path, Clip], list[str]]:
    """The true events of videos, from a CSV of clips whose splits do not matter, and whose files need not all exist.

    A row belongs to the video at its path. Failing that, it belongs to the video that it leads to by a link, or to the
    only one of its file name.

    Args:
        csv_path: the CSV.
        videos: paths of the videos that events are looked for in.

    Returns:
        The clip of each video that has one, and lines for the user: rows taken by another path, videos without a row.

    Raises:
        AvelError: no row belongs to any of the videos, or by its name it could belong to several, or several to one;
            or as `read_table`.
    """
    path, wanted = Path(csv_path), [*dict.fromkeys(map(Path, videos))]
    clips = _read(path, lambda *_: "", must_exist=False)
    found: dict[Path, Clip] = {}
    lines = []
    for how, key in (
        ("", os.path.abspath),
        ("; it is the same file", os.path.realpath),
        ("; it has the same file name", os.path.basename),
    ):
        taken = {clip.id for clip in found.values()} if key is os.path.basename else set()
        rows: dict[str, list[Clip]] = {}
        for clip in clips:
            if clip.id not in taken:
                rows.setdefault(key(clip.path), []).append(clip)
        alike: dict[str, list[Path]] = {}
        for video in wanted:
            if video not in found and key(video) in rows:
                alike.setdefault(key(video), []).append(video)
        for name, meant in alike.items():
            if len(rows[name]) > 1 or len({*map(os.path.realpath, meant)}) > 1:
                raise AvelError(
                    f"{path}: {' and '.join(repr(clip.id) for clip in rows[name])} could be "
                    f"{' or '.join(map(str, meant))}{how}",
                    "one row's path for one video",
                    "write the path of the video, relative to the CSV's folder, into column video",
                )
            found |= dict.fromkeys(meant, rows[name][0])
            lines += [f"truth of {video}: {rows[name][0].id!r} in {path}{how}" for video in meant if how]
    lacking = [str(video) for video in wanted if video not in found]
    if not found:
        raise AvelError(
            f"{path} names none of the videos; its first is {clips[0].id!r}, the first video is {lacking[0]}",
            "a row for at least one of them, by its path relative to the CSV's folder or by its file name",
            "correct column video, or give the CSV of these videos",
        )
    if lacking:
        some = ", ".join(lacking[:3]) + (", ..." if lacking[3:] else "")
        lines.append(f"no truth for {len(lacking)} of {len(wanted)} videos: {some}")
    return found, lines


def _read(path: Path, split_of: Callable[[str, str], str], *, must_exist: bool) -> list[Clip]:
    """The clips of a CSV; ``split_of(name, place)`` reads a split, and without ``must_exist`` no file is looked for."""
    videos: dict[str, _Video] = {}
    ids: dict[str, str] = {}
    for line, row in _rows(path):
        video = row["video"]
        place = f"{path} line {line}"
        if row["split"]:
            row["split"] = split_of(row["split"], f"{place}, column split")
        if not video:
            raise AvelError(f"{place}, column video: empty", "the path of a video", "fill it in or delete the line")
        if video not in videos:
            file = path.parent / video
            if (must_exist or "\0" in video) and not os.path.isfile(file):  # False, too, for impossible names
                raise AvelError(
                    f"{place}, column video: no such file {str(file)!r}",
                    "paths relative to the CSV's own folder (or absolute)",
                    "correct the path or delete the line",
                )
            other = ids.setdefault(os.path.normpath(file), video)
            if other != video:
                raise AvelError(
                    f"{place}, column video: {video!r} is the file that line {videos[other].line} calls {other!r}",
                    "one spelling for one video",
                    f"write {other!r} here",
                )
            videos[video] = _Video(line, row["split"], [])
        known = videos[video]
        if row["split"] != known.split:
            raise AvelError(
                f"{place}, column split: {video!r} is in {row['split']!r} here and in {known.split!r} on line "
                f"{known.line}",
                "one split for one video",
                "make them equal, else the video would be trained on and tested on",
            )
        span = _span(row, place)
        if span is None:
            known.background_line = line
        else:
            known.events.append((span, line))
        if known.background_line is not None and known.events:
            raise AvelError(
                f"{path}: {video!r} has no event on line {known.background_line} and one on line {known.events[0][1]}",
                "either events or one row without start, end and label",
                "delete one of the two lines",
            )
    if not videos:
        raise AvelError(f"{path} has no rows", "at least one video", "add a line per event under the header")
    return [
        Clip(video, path.parent / video, _in_order(path, video, known.events), (known.split,) if known.split else ())
        for video, known in videos.items()
    ]


def write_table(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write clips as a CSV that `read_table` reads back equal; paths are made relative to the CSV.

    A spreadsheet would run a cell that starts with ``=``, ``+``, ``-`` or ``@``: a label or split like that gets an
    apostrophe in front, a path ``./``. `read_table` takes them off again.

    Raises:
        AvelError: a path, a label or a split holds control characters or is no UTF-8 text, or the disk is full.
    """
    path = Path(path)
    clips = list(clips)
    columns = [*_COLUMNS, "split"] if any(clip.splits for clip in clips) else list(_COLUMNS)
    rows = []
    for clip in clips:
        same_place = os.path.abspath(path.parent / clip.id) == os.path.abspath(clip.path)
        video = clip.id if same_place else Path(os.path.relpath(clip.path, path.parent)).as_posix()
        for row in [(_decimal(s.start), _decimal(s.end), s.label) for s in clip.spans] or [("", "", "")]:
            rows.append([video, *row, "".join(clip.splits)][: len(columns)])
    write_csv(path, columns, rows)


def classes_of(clips: Iterable[Clip]) -> tuple[str, ...]:
    """The labels in order of first appearance: the index of a label here is its class id."""
    return tuple(dict.fromkeys(span.label for clip in clips for span in clip.spans))


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Lines and their five fields, "" where the table has none."""
    try:
        data = read_bytes(path, LARGE_FILE)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise AvelError(f"no such file: {path}", _HEADER, "check the path of the CSV") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AvelError(
            f"{path} line {line}: not UTF-8 text", "a CSV saved as UTF-8", "save it again as UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] | None = None
    try:
        for fields in reader:
            line = reader.line_num
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                missing = [name for name in _COLUMNS if name not in header]
                doubled = [name for name in (*_COLUMNS, "split") if header.count(name) > 1]
                if missing or doubled:
                    what = f"no column {missing[0]!r}" if missing else f"column {doubled[0]!r} twice"
                    raise AvelError(f"{path} line {line}: {what} in {','.join(header)!r}", _HEADER, "mend the header")
                continue
            if len(fields) > len(header):
                raise AvelError(
                    f"{path} line {line}: {len(fields)} fields under a header of {len(header)}",
                    "as many fields as the header has",
                    "put a path or label that holds a comma in double quotes",
                )
            given = dict(zip(header, fields, strict=False))
            row = {name: csv_text(given.get(name, "").strip()) for name in ("start", "end", "label", "split")}
            rows.append((line, {"video": csv_path_text(given.get("video", "")), **row}))
    except csv.Error as error:
        raise AvelError(
            f"{path} line {reader.line_num}: {error}", "comma-separated values", "mend the quotes on that line"
        ) from error
    if header is None:
        raise AvelError(f"{path} is empty", _HEADER, "write one line per event under that header")
    return rows


def _span(row: dict[str, str], place: str) -> Span | None:
    """The event of a row, or None for a background-only row."""
    given = [name for name in ("start", "end", "label") if row[name]]
    if not given:
        return None
    if len(given) < 3:
        empty = next(name for name in ("start", "end", "label") if not row[name])
        raise AvelError(
            f"{place}, column {empty}: empty, though {' and '.join(given)} {'is' if len(given) == 1 else 'are'} given",
            "start, end and label together, or none of them for a video without events",
            "fill in what is missing",
        )
    start, end = (_seconds(row[name], f"{place}, column {name}") for name in ("start", "end"))
    if end <= start:
        raise AvelError(
            f"{place}, column end: the event ends at {row['end']} s, its start is {row['start']} s",
            "an end later than the start",
            "correct the times; an event without length is none",
        )
    if row["label"] == BACKGROUND:
        raise AvelError(
            f"{place}, column label: {BACKGROUND!r}",
            "the name of an event; background is what no event covers",
            "delete the line, or leave start, end and label empty if the video has no event at all",
        )
    if has_controls(row["label"]):
        raise AvelError(
            f"{place}, column label: {row['label']!r} holds control characters",
            "a name in one line of plain text",
            "take them out",
        )
    return Span(row["label"], start, end)


def _seconds(text: str, place: str) -> float:
    value = float(text) if _SECONDS.fullmatch(text) else math.inf
    if math.isinf(value):
        raise AvelError(f"{place}: {text!r} is no time", "decimal seconds, such as 3 or 3.25", "correct the time")
    return value


def _in_order(path: Path, video: str, events: list[tuple[Span, int]]) -> tuple[Span, ...]:
    """The events sorted by time, or AvelError where two overlap."""
    events = sorted(events, key=lambda event: event[0].start)
    for (first, first_line), (second, second_line) in pairwise(events):
        if second.start < first.end:
            raise AvelError(
                f"{path} lines {first_line} and {second_line}: {first.label!r} ({first.start:g} to {first.end:g} s) "
                f"and {second.label!r} ({second.start:g} to {second.end:g} s) overlap in {video!r}",
                "one event at a time in a video",
                "keep the one that matters where they overlap",
            )
    return tuple(span for span, _ in events)


def _decimal(seconds: float) -> str:
    """Digits that read back as the same float, without an exponent."""
    text = format(Decimal(repr(float(seconds))), "f")
    return text.removesuffix(".0")

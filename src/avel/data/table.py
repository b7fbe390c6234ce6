"""A CSV of your own clips.

Header ``video,start,end,label[,split]``; one row per event; times in decimal seconds; paths relative to the CSV. A
video without any event is one row whose start, end and label are empty. Further columns are ignored. Labels are kept in
Unicode's composed form (NFC), so that a Mac, which writes "é" as two characters, does not make a second class.

Spreadsheets also write semicolons or tabs instead of commas, decimal commas with them, and UTF-16. The header and the
first bytes tell, and all of it is read.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from avel.data.splits import read_split
from avel.errors import AvelError
from avel.files import write_csv
from avel.reading import LARGE_FILE, read_bytes
from avel.text import csv_path_text, csv_text, first_names, has_controls, utf8_path_text
from avel.types import BACKGROUND, Span

_COLUMNS = ("video", "start", "end", "label")
_SECONDS = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_HEADER = "a first line `video,start,end,label` or `video,start,end,label,split`"


@dataclass(frozen=True)
class Clip:
    """One video of a table.

    Attributes:
        id: its path as the table writes it.
        path: where the file is.
        spans: its events in order of time; they never overlap. Empty if the video has none.
        splits: the names of the splits it is in: one at most in a CSV, one of each family in AVE.
        video: the id of the video it was cut from, which several clips may share; None if the clip is the video.
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
    path: Path
    events: list[tuple[Span, int]]
    background_line: int | None = None


def read_table(csv_path: str | Path, *, extra_splits: Collection[str] = ()) -> list[Clip]:
    """Read a CSV of clips, in order of first appearance.

    Splits are called train, val and test, or as AVE's; case and blanks do not matter.

    Args:
        csv_path: the CSV.
        extra_splits: names of your own splits, which are kept as they are.

    Raises:
        AvelError: no such file, undecodable or empty text, a missing column, a bad time, an event that ends before it
            starts, times without label or label without times, overlapping events, a video that does not exist, is
            written in two ways, is in two splits, or is called background beside its events, or a split of another
            name. The message names file, line and column.
    """
    return _read(Path(csv_path), lambda name, place: read_split(name, place, extra_splits), must_exist=True)


def read_tables(csv_paths: Sequence[str | Path], *, extra_splits: Collection[str] = ()) -> list[Clip]:
    """Several CSVs as one, such as those of `avel localize`; ids become relative to the folder of the first.

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

    A row belongs to the video at its path. Failing that, it belongs to the video that it leads to by a link, to that
    whose path has the same letters in another form of Unicode, or to the only one of its file name.

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
        ("; its letters are in another form of Unicode", lambda video: _composed(os.path.realpath(video))),
        ("; it has the same file name", lambda video: _composed(os.path.basename(video))),
    ):
        taken = set() if key is os.path.realpath else {clip.id for clip in found.values()}
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
        lines.append(f"no truth for {len(lacking)} of {len(wanted)} videos: {first_names(lacking)}")
    return found, lines


def _read(path: Path, split_of: Callable[[str, str], str], *, must_exist: bool) -> list[Clip]:
    """The clips of a CSV; ``split_of(name, place)`` reads a split, and without ``must_exist`` no file is looked for."""
    videos: dict[str, _Video] = {}
    ids: dict[str, str] = {}
    alike: dict[str, list[str]] = {}  # videos whose paths differ in the form of Unicode at most
    for line, row in _rows(path):
        place = f"{path} line {line}"
        if row["split"]:
            row["split"] = split_of(row["split"], f"{place}, column split")
        if not row["video"]:
            raise AvelError(f"{place}, column video: empty", "the path of a video", "fill it in or delete the line")
        if row["video"] not in ids:
            video, file = find_file(path.parent, row["video"])
            if file is None and (must_exist or "\0" in video):
                raise AvelError(
                    f"{place}, column video: no such file {str(path.parent / video)!r}",
                    "paths relative to the CSV's own folder (or absolute)",
                    "correct the path or delete the line",
                )
            file = file or path.parent / video
            others = alike.setdefault(_composed(os.path.normpath(file)), [])
            other = next((each for each in others if _is_same(videos[each].path, file)), video)
            if _composed(other) != _composed(video):
                raise AvelError(
                    f"{place}, column video: {video!r} is the file that line {videos[other].line} calls {other!r}",
                    "one spelling for one video",
                    f"write {other!r} here",
                )
            ids[row["video"]] = other
            if other not in videos:
                videos[other] = _Video(line, row["split"], file, [])
                others.append(other)
        video = ids[row["video"]]
        known = videos[video]
        if row["split"] != known.split:
            raise AvelError(
                f"{place}, column split: {video!r} is in {row['split']!r} here and in {known.split!r} on line "
                f"{known.line}",
                "one split for one video",
                "use one of the two, or the model would be tested on a video that it was trained on",
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
        Clip(video, known.path, _in_order(path, video, known.events), (known.split,) if known.split else ())
        for video, known in videos.items()
    ]


def write_table(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write clips as a CSV that `read_table` reads back equal; paths are made relative to the CSV.

    A spreadsheet would run a cell that starts with ``=``, ``+``, ``-`` or ``@``: a label or split like that gets an
    apostrophe in front, a path ``./``. `read_table` removes them again.

    Raises:
        AvelError: a path, a label or a split contains control characters or is not UTF-8 text, or the disk is full.
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


def find_file(folder: Path, name: str) -> tuple[str, Path | None]:
    """The path as it is spelled, and the file that it means in the folder of a table or a list; None if there is none.

    A name that `write_csv` wrote with escapes is read back. Letters may be composed or not: a Mac does not keep "é" as
    one character, other systems do.
    """
    for path in dict.fromkeys((name, utf8_path_text(name))):
        file = folder / path
        if os.path.isfile(file):  # also False for impossible names
            return path, file
        there = Path(file.anchor)
        for part in file.parts[len(there.parts) :]:
            forms = dict.fromkeys((part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)))
            there = next((there / form for form in forms if os.path.lexists(there / form)), there / part)
        if os.path.isfile(there):
            return path, there
    return name, None


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths of equal spelling are one file, as on disks that know one form of Unicode only."""
    if os.path.normpath(one) == os.path.normpath(other):
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def is_table(path: Path) -> bool:
    """Whether a file is a CSV of clips: by its suffix; a text file, as Excel's "Unicode text" is, by its header.

    Raises:
        AvelError: a text file cannot be read.
    """
    if path.suffix.lower() != ".txt" or not os.path.isfile(path):
        return path.suffix.lower() in (".csv", ".tsv") and not os.path.isdir(path)
    with suppress(UnicodeDecodeError):
        return _delimiter(decoded(read_bytes(path, LARGE_FILE)))[0] != ""
    return False


def decoded(data: bytes, errors: str = "strict") -> str:
    """Text in UTF-8, or in UTF-16 with its byte order mark, as Excel and Notepad write it.

    Raises:
        UnicodeDecodeError: it is neither, and ``errors`` does not help.
    """
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors)


def _delimiter(text: str) -> tuple[str, int]:
    """The delimiter of the columns, "" if no header is found; and how many lines come before the header."""
    lines = io.StringIO(text, newline="")
    skipped = 0
    # A line such as `sep=;` is Excel's own.
    while (line := lines.readline()) and (not line.strip() or re.fullmatch(r'"?sep=.?"?\s*', line)):
        skipped += 1
    for delimiter in _DELIMITERS:
        with suppress(csv.Error):
            if {field.strip() for field in next(csv.reader([line], delimiter=delimiter))}.issuperset(_COLUMNS):
                return delimiter, skipped
    return "", skipped


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Lines and their five fields, "" where the table has none; times with a decimal point."""
    try:
        data = read_bytes(path, LARGE_FILE)
        text = decoded(data)
    except FileNotFoundError:
        raise AvelError(f"no such file: {path}", _HEADER, "check the path of the CSV") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AvelError(
            f"{path} line {line}: not UTF-8 text", "a CSV saved as UTF-8", "save it again as UTF-8"
        ) from error
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] | None = None
    marks: dict[str, str] = {}
    delimiter, skipped = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or ",", strict=True)
    try:
        for fields in reader:
            line = reader.line_num
            if line <= skipped or not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                _check_header(header, f"{path} line {line}")
                continue
            if len(fields) > len(header):
                raise AvelError(
                    f"{path} line {line}: {len(fields)} fields under a header of {len(header)}",
                    "as many fields as the header has",
                    f"put a path or label that holds a {_DELIMITERS[delimiter]} in double quotes"
                    + ("; write seconds with a point, as 2.5" if delimiter == "," else ""),
                )
            given = dict(zip(header, fields, strict=False))
            row = {name: csv_text(given.get(name, "").strip()) for name in ("start", "end", "label", "split")}
            if delimiter != ",":
                for name in ("start", "end"):
                    row[name] = _with_point(row[name], delimiter, marks, f"{path} line {line}, column {name}")
            rows.append((line, {"video": csv_path_text(given.get("video", "")), **row}))
    except csv.Error as error:
        raise AvelError(
            f"{path} line {reader.line_num}: {error}", "comma-separated values", "correct the quotes on that line"
        ) from error
    if header is None:
        raise AvelError(f"{path} is empty", _HEADER, "write one line per event under that header")
    return rows


def _check_header(header: Sequence[str], place: str) -> None:
    """Raise AvelError if a column is missing or is there twice."""
    missing = [name for name in _COLUMNS if name not in header]
    doubled = [name for name in (*_COLUMNS, "split") if header.count(name) > 1]
    if not missing and not doubled:
        return
    what = f"no column {missing[0]!r}" if missing else f"column {doubled[0]!r} twice"
    do = "correct the header; separate its names by commas, semicolons or tabs"
    if any("\0" in name for name in header):
        do = "save the file again as UTF-8: this looks like UTF-16 without its byte order mark"
    raise AvelError(f"{place}: {what} in {','.join(header)!r}", _HEADER, do)


def _with_point(text: str, delimiter: str, marks: dict[str, str], place: str) -> str:
    """Seconds with a decimal point; a table without commas between its columns may have decimal commas.

    Args:
        marks: the place of the first time with either mark so far.
    """
    mark = "," if re.fullmatch(r"[0-9]+,[0-9]*|,[0-9]+", text) else "." if _SECONDS.fullmatch(text) else ""
    if mark not in text or not mark:
        return text
    if delimiter == "\t" and re.fullmatch(r"[1-9][0-9]{0,2},[0-9]{3}", text):
        raise AvelError(
            f"{place}: {text!r} is {text.replace(',', '.')} with a decimal comma, and {text.replace(',', '')} without",
            "seconds that can be read in one way",
            f"write {text.replace(',', '.')} or {text.replace(',', '')}",
        )
    other = marks.get("." if mark == "," else ",")
    if other is not None:
        raise AvelError(
            f"{place}: {text!r}, but {other} has the other decimal mark",
            "decimal points in all times, or decimal commas in all",
            "use one of the two throughout",
        )
    marks.setdefault(mark, place)
    return text.replace(",", ".")


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
            f"{place}, column end: the event ends at {row['end']} s but starts at {row['start']} s",
            "an end later than the start",
            "correct the times; an event must have a length",
        )
    if row["label"].casefold() == BACKGROUND:
        raise AvelError(
            f"{place}, column label: {row['label']!r}",
            "the name of an event; background is what no event covers",
            "delete the line, or leave start, end and label empty if the video has no event at all",
        )
    if has_controls(row["label"]):
        raise AvelError(
            f"{place}, column label: {row['label']!r} contains control characters",
            "a name in one line of plain text",
            "remove them",
        )
    return Span(_composed(row["label"]), start, end)


def _seconds(text: str, place: str) -> float:
    value = float(text) if _SECONDS.fullmatch(text) else math.inf
    if math.isinf(value):
        raise AvelError(
            f"{place}: {text!r} is not a time", "seconds with a decimal point, such as 3 or 3.25", "correct the time"
        )
    return value


def _in_order(path: Path, video: str, events: list[tuple[Span, int]]) -> tuple[Span, ...]:
    """The events sorted by time. Raises AvelError if two overlap."""
    events = sorted(events, key=lambda event: event[0].start)
    for (first, first_line), (second, second_line) in pairwise(events):
        if second.start < first.end:
            raise AvelError(
                f"{path} lines {first_line} and {second_line}: {first.label!r} ({first.start:g} to {first.end:g} s) "
                f"and {second.label!r} ({second.start:g} to {second.end:g} s) overlap in {video!r}",
                "one event at a time in a video",
                "shorten or delete one of them",
            )
    return tuple(span for span, _ in events)


def _decimal(seconds: float) -> str:
    """Digits that read back as the same float, without an exponent."""
    text = format(Decimal(repr(float(seconds))), "f")
    return text.removesuffix(".0")

"""The sources of an extraction: CSVs of clips, a folder, a media file, a list of media files, or AVE's own videos."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from avel.data.ave.files import read_annotations
from avel.data.ave.survey import read_splits
from avel.data.table import Clip, decoded, find_file, is_table, read_tables
from avel.errors import AvelError
from avel.features.folders import MEDIA_SUFFIXES, is_video, videos_in
from avel.features.streams import is_media
from avel.reading import LARGE_FILE, check_regular, read_bytes


class Source(NamedTuple):
    """The clips of a source, whether they are labelled, and the files of a folder left out, with the reasons."""

    clips: list[Clip]
    labelled: bool
    left_out: dict[Path, str]


def read_source(
    source: str | Path | Sequence[str | Path],
    *,
    videos: str | Path | None = None,
    extra_splits: Collection[str] = (),
) -> Source:
    """Read the clips of a source of `extract`.

    Raises:
        AvelError: there is no such source, it has no videos, CSVs have no event, a listed file does not exist, several
            sources are not all CSVs, or ``extra_splits`` come with a source other than CSVs; or as in `read_tables` and
            `read_ave`.
    """
    sources = [Path(source)] if isinstance(source, str | Path) else [Path(each) for each in source]
    no_table = [each for each in sources if not is_table(each)]
    if not no_table and sources and videos is None:
        table = read_tables(sources, extra_splits=extra_splits)
        if not any(clip.spans for clip in table):
            raise AvelError(
                f"no event in {', '.join(map(str, sources))}: start, end and label are empty on every line",
                "at least one event to train or test on",
                "fill in the events; for features without labels, give the folder of the videos or a .txt list",
            )
        return Source(table, True, {})
    if len(sources) != 1:
        raise AvelError(
            f"{len(sources)} sources" + (f", and {no_table[0]} is not a CSV" if no_table else ""),
            "one source, or several CSVs",
            "put the videos into one folder, or their paths into a .txt list, and give that",
        )
    (source,) = sources
    if extra_splits:
        raise AvelError(
            f"extra splits ({', '.join(extra_splits)}) with {source}",
            "a CSV with a column split",
            "leave out --extra-splits, or give a CSV",
        )
    if videos is not None:
        return Source(read_ave(source, videos), True, {})
    if os.path.isdir(source):
        there, left_out = videos_in(source)
        clips = [Clip(file.relative_to(source).as_posix(), file, ()) for file in there]
        return Source(clips, False, {file.relative_to(source): reason for file, reason in left_out.items()})
    try:
        check_regular(source)
    except FileNotFoundError:
        raise AvelError(
            f"no such file or folder: {source}",
            "a CSV, a folder of media, a media file or a .txt list",
            "check the path",
        ) from None
    if source.suffix.lower() != ".txt":
        if source.suffix.lower() not in MEDIA_SUFFIXES and not is_media(source):
            raise AvelError(
                f"{source} is not a media file",
                "a CSV, a folder of media, a media file or a .txt list",
                "check the path; save a spreadsheet as CSV first",
            )
        return Source([Clip(source.name, source, ())], False, {})
    # Decoded like file names, so that a list can name every file, whatever its encoding.
    lines = decoded(read_bytes(source, LARGE_FILE), "surrogateescape").splitlines()
    listed: dict[Path, Clip] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name, path = find_file(source.parent, line.strip())
            if path is None:
                raise AvelError(
                    f"{source} line {number}: no such file {str(source.parent / name)!r}",
                    "paths relative to the list's own folder (or absolute)",
                    "correct the path or delete the line",
                )
            listed.setdefault(path, Clip(name, path, ()))
    if not listed:
        raise AvelError(f"{source} is empty", "the path of a video on each line", "write the paths into it")
    return Source(list(listed.values()), False, {})


def read_ave(annotations: str | Path, videos: str | Path) -> list[Clip]:
    """The clips of AVE in the order of its Annotations.txt, with splits from the order files beside it.

    A video that is missing from the folder is still a clip, which will fail: many of AVE's are no longer on YouTube.

    Args:
        annotations: AVE's Annotations.txt.
        videos: folder with a file for each video, named by its YouTube id.

    Raises:
        AvelError: the annotations or an order file are damaged, or the folder holds none of the videos.
    """
    annotations, videos = Path(annotations), Path(videos)
    rows = read_annotations(annotations)
    splits = read_splits(annotations.parent, len(rows))
    ids = {row.video for row in rows}
    there = [file for file in videos.glob("*") if file.stem in ids and is_video(file)]
    # If several files have one id, the last counts, which has the suffix of a video if any has.
    files = {f.stem: f for f in sorted(there, key=lambda f: (f.suffix.lower() in MEDIA_SUFFIXES, f))}
    if not files:
        raise AvelError(
            f"no video of {annotations} in {videos}",
            f"files named by their YouTube ids, such as {rows[0].video}.mp4",
            "give the folder with the mp4 files of AVE's archive",
        )
    return [
        Clip(
            id=row.clip_id,
            path=files.get(row.video, videos / f"{row.video}.mp4"),
            spans=(row.span,),
            splits=tuple(name for name, order in splits.items() if row.row in order),
            video=row.video,
        )
        for row in rows
    ]

"""The videos in a folder, and why its other files are left out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from avel.errors import AvelError
from avel.features.streams import is_media, probe
from avel.text import first_names, visible

#: Files with these suffixes count as videos unopened: one that cannot be used becomes a failed video.
MEDIA_SUFFIXES = {".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"}
MEDIA_SUFFIXES |= {".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm"}
MEDIA_SUFFIXES |= {".wmv"}
_OF_A_SYSTEM = {"$recycle.bin", "desktop.ini", "ehthumbs.db", "system volume information", "thumbs.db"}
_HEAD = 4096  # bytes; a file that starts with this much text is not media
_NO_MEDIA = "not a media file"


def videos_in(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The videos in a folder and its subfolders, sorted; and the files left out, with the reasons.

    A file is a video by its suffix (`MEDIA_SUFFIXES`), or else if it opens as one, with picture and sound. Hidden files
    and folders, those of the operating system, and what avel wrote are never opened.

    Raises:
        AvelError: there are no videos.
    """
    videos: list[Path] = []
    left_out: dict[Path, str] = {}
    unknown: list[Path] = []

    def unreadable(error: OSError) -> None:
        left_out[Path(error.filename)] = f"a folder that cannot be read: {error.strerror}"

    for place, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(place)
        played = _played_here(here) if any(".clip" in name for name in files) else set()
        for name in [*folders]:
            if reason := _why_not_entered(here / name):
                left_out[here / name] = reason
                folders.remove(name)
        for name in files:
            file = here / name
            if reason := _of_no_interest(name) or ("the clip of a page" if name in played else ""):
                left_out[file] = reason
            elif file.suffix.lower() in MEDIA_SUFFIXES and (file.is_file() or file.is_symlink()):
                videos.append(file)  # also a broken link: it becomes a failed video
            elif not os.path.isfile(file):
                left_out[file] = "a broken link" if file.is_symlink() else "not a regular file"
            else:
                unknown.append(file)
    with ThreadPoolExecutor() as pool:
        for file, reason in zip(unknown, pool.map(_why_no_video, unknown), strict=True):
            if reason:
                left_out[file] = reason
            else:
                videos.append(file)
    left_out = dict(sorted(left_out.items()))
    if not videos:
        told = in_words({path.relative_to(folder): reason for path, reason in left_out.items()})
        raise AvelError(
            f"no videos in the folder {folder}" + (f": {told}" if told else ""),
            f"files that end in {', '.join(sorted(MEDIA_SUFFIXES))}, or others that open as a video with sound",
            "give another folder, or the files themselves",
        )
    return sorted(videos), left_out


def in_words(left_out: Mapping[Path, str]) -> str:
    """What was left out, in one line: the first names for each reason. "" if nothing was."""
    names: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        names.setdefault(reason, []).append(visible(path.as_posix()))
    told = [f"{first_names(some)} ({reason})" for reason, some in names.items()]
    return f"{len(left_out)} left out: {'; '.join(told)}" if told else ""


def is_video(file: Path) -> bool:
    """Whether `videos_in` would take a file."""
    known = file.suffix.lower() in MEDIA_SUFFIXES
    return file.is_file() and not _of_no_interest(file.name) and (known or not _why_no_video(file))


def _of_no_interest(name: str) -> str:
    """Why a file or folder is skipped because of its name; "" if it is not."""
    if name.startswith("."):  # such as the `._talk.mp4` that a Mac puts beside `talk.mp4`
        return "hidden"
    return "of the operating system" if name.casefold() in _OF_A_SYSTEM else ""


def _why_not_entered(folder: Path) -> str:
    if reason := _of_no_interest(folder.name):
        return reason
    if folder.is_symlink():
        return "a link to a folder"
    return "a feature store" if (folder / "store.json").is_file() else ""


def _played_here(folder: Path) -> set[str]:
    """The names of the clips that avel wrote beside its pages in a folder."""
    found = set()
    for page in folder.glob("*.html"):
        found |= set(re.findall(rb'<video [^>]*src="([A-Za-z0-9_.-]+\.clip(?:\.[a-z0-9]+)?)"', page.read_bytes()))
    return {name.decode() for name in found}


def _why_no_video(file: Path) -> str:
    """Why a file with an unknown suffix is not a video; "" if it is one."""
    status = file.stat()
    return _look(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**16)
def _look(file: Path, *_state: int) -> str:
    """As `_why_no_video`, cached for each state of a file."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    text = b"\0" not in head and _is_text(head)
    if text or not (head[4:8] == b"ftyp" or is_media(file)):  # for a broken MP4, `probe` says what is wrong
        return _NO_MEDIA if head else "empty"
    try:
        probe(file)
    except AvelError as error:
        return error.found.removeprefix(f"{file} ").removeprefix("is ")
    return ""


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return len(head) == _HEAD and error.start > _HEAD - 4  # a character cut in two
    return True

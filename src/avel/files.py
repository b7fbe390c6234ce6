"""Writing files so that a reader, or a run killed half-way, sees all of one or nothing of it."""

import csv
import errno
import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from avel.errors import AvelError
from avel.text import csv_cell, csv_path, has_controls

_BLOCK = 2**22  # bytes
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success flush it to the disk and rename it over ``path``.

    The temporary name is fixed, so that what a kill leaves behind is overwritten by the next try.

    Raises:
        AvelError: the disk is full or a file-size limit was hit; nothing is left behind and the old file stands.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise no_room(path, error) from error
        raise


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; on success flush its files and rename it to ``path``.

    A folder that stands at ``path`` is removed then. The temporary name is fixed, so that what a kill leaves behind is
    removed by the next try.

    Raises:
        AvelError: the disk is full or a file-size limit was hit, or the folder cannot be made; nothing is left behind
            and the old folder stands.
    """
    path = Path(path).resolve()
    temporary, former = (path.with_name(f".{path.name}.{suffix}") for suffix in ("tmp", "old"))
    try:
        if former.exists() and not path.exists():  # killed between the two renames below
            os.replace(former, path)
        for left_over in (temporary, former):
            if left_over.exists():
                shutil.rmtree(left_over)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if path.exists():
            os.replace(path, former)
        os.replace(temporary, path)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.exists() and not path.exists():
            os.replace(former, path)
        if isinstance(error, OSError):
            if error.errno in _NO_ROOM:
                raise no_room(path, error, kept=False) from error
            raise AvelError(
                f"cannot write {path}: {error.strerror or error}", "a folder that can be made", "choose another one"
            ) from error
        raise


def no_room(path: str | Path, error: OSError, *, kept: bool = True) -> AvelError:
    """The error for a full disk, a full quota or a file-size limit; ``kept``: the next try goes on from here."""
    return AvelError(
        f"could not write {path}: {error.strerror}",
        "room for the file on the disk, in the quota and under the file-size limit",
        "free some space (or raise `ulimit -f`) and run the same command again"
        + (": finished work is kept" if kept else ""),
    )


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder until this one has ended, however it ends.

    The folder itself is locked, so that no file stays behind. Storage that knows no locks lets every run in.

    Raises:
        AvelError: another run holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AvelError(
                f"another run is writing to {folder}",
                "one run at a time in a folder",
                "wait until it has ended or stop it, or choose another --out",
            ) from None
        except OSError:
            pass  # no locks here, as on some network storage
        yield
    finally:
        os.close(handle)


def file_sha256(path: str | Path, alive: Callable[[], None] = lambda: None) -> str:
    """Hex sha256 of a file's bytes. Raises OSError where it cannot be read.

    Args:
        alive: called with every block that is read, since a large file takes minutes.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            alive()
    return digest.hexdigest()


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``, all of it or nothing. Raises AvelError when there is no room."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_folder(path: str | Path) -> None:
    """Raises AvelError unless ``path`` is a folder to write to, or one can be made there. Makes nothing."""
    path = Path(path)
    there = Path(os.path.abspath(path))
    missing = []
    while not os.path.lexists(there):
        missing.append(there.name)
        there = there.parent
    try:
        longest = os.pathconf(there, "PC_NAME_MAX") if os.path.isdir(there) else 0
    except OSError:
        longest = 255
    if not os.path.isdir(there):
        what = "a link that leads nowhere" if there.is_symlink() and not os.path.exists(there) else "a file"
        found = f"{path} cannot be a folder: {there} is {what}" if missing else f"{path} is {what}"
    elif not os.access(there, os.W_OK | os.X_OK):
        found = f"{there} cannot be written to"
    elif any(len(os.fsencode(name)) > longest for name in missing):
        found = f"a folder's name of more than {longest} bytes: {path}"
    else:
        return
    raise AvelError(found, "a folder to write to, or a place where one can be made", "choose another folder")


def make_folder(path: str | Path) -> None:
    """Make a folder and those above it, where they are missing. Raises AvelError where that cannot be."""
    check_folder(path)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AvelError(
            f"cannot make the folder {path}: {error.strerror}", "a place where a folder can be made", "choose another"
        ) from error


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV whose first column is the relative path of a video; no spreadsheet runs a cell of it (`avel.text`).

    Raises:
        AvelError: a cell holds control characters or is no UTF-8 text, or there is no room.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for video, *cells in rows:
        for name, cell in zip(header, (video, *cells), strict=True):
            if has_controls(cell):
                raise AvelError(
                    f"{path}, column {name}: {cell!r} holds control characters, or bytes that are no UTF-8 text",
                    "plain text in one line, which a CSV can hold",
                    "rename the file" if name == header[0] else "choose another name",
                )
        writer.writerow([csv_path(video), *map(csv_cell, cells)])
    write_file(path, text.getvalue())

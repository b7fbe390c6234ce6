"""Writing files whole or not at all, even if the run is killed half-way; and never over a user's file."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from avel.errors import AvelError, notice_of_disk
from avel.text import csv_cell, csv_path, has_controls, utf8_path, utf8_path_text

_BLOCK = 2**22  # bytes
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_TEMPORARY = re.compile(r"\.avel-[0-9a-f]{16}\.tmp")
_MARK = "made-by-avel"  # the file that tells a work folder of ours from a folder of the user's

#: Inside `together`: the temporary file of each path, and what locks and removes these files.
_held_back: ContextVar[tuple[dict[Path, Path], ExitStack] | None] = ContextVar("_held_back", default=None)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a new, empty temporary file beside ``path``; on success flush it to the disk and rename it over ``path``.

    Its name cannot be guessed and it is created exclusively: nothing is written through a link, and no two processes
    share it. A link at ``path`` is replaced; what it points to stays as it is. The temporary file is locked while it
    is in use. Those that a kill left in the folder are not locked, and are removed here.

    Raises:
        AvelError: the disk is full, a file-size limit was hit, or the folder cannot be written to; nothing is left
            behind and the old file stands.
    """
    with _replacing(Path(path), _create) as temporary:
        yield temporary


@contextmanager
def _replacing(path: Path, make: Callable[[Path], int]) -> Iterator[Path]:
    """As `replacing`; ``make`` creates the temporary file and returns a handle that locks it."""
    with ExitStack() as stack:
        try:
            remove_abandoned(path.parent)
            temporary = _new_temporary(path.parent, make, stack)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            held_back = _held_back.get()
            if held_back is None:
                os.replace(temporary, path)
            else:
                held_back[0][path] = temporary
                held_back[1].enter_context(stack.pop_all())
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise no_room(path, error) from error
            if _TEMPORARY.fullmatch(os.path.basename(os.fsdecode(error.filename or ""))):
                raise AvelError(
                    f"cannot write {path}: {error.strerror}",
                    "a folder that can be written to",
                    "check its permissions and its disk, or choose another folder",
                ) from error
            raise


@contextmanager
def together(*, overwrite: bool = True) -> Iterator[Callable[[Path], Path]]:
    """Hold back the renames of all that is written inside, so that all files appear at the end, or none.

    Gives a function that says where the content of a file is until then. The last of several writes to one path counts.
    Without ``overwrite``, a file that is there already stays as it is.
    """
    with ExitStack() as stack:
        files: dict[Path, Path] = {}
        before = _held_back.set((files, stack))
        try:
            yield lambda path: files.get(path, path)
        finally:
            _held_back.reset(before)
        for path, temporary in files.items():
            if overwrite or not os.path.lexists(path):
                os.replace(temporary, path)


def link_or_copy(source: Path, path: Path) -> None:
    """Put a hard link to ``source`` at ``path``, or a copy if the file system has no links or is another one."""
    try:
        with _replacing(path, partial(_link, source.resolve())):
            pass
    except OSError:
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)


def _new_temporary(folder: Path, make: Callable[[Path], int], stack: ExitStack) -> Path:
    """A temporary file or folder that ``stack`` will unlock, and remove if it is still there."""
    while True:
        temporary = folder / f".avel-{secrets.token_hex(8)}.tmp"
        handle = make(temporary)
        stack.callback(os.close, handle)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.lstat(temporary)):
                stack.callback(_remove, temporary)
                return temporary
        # Before it was locked, another process took it for one that a kill had left.


def _create(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    _lock(handle)
    return handle


def _create_folder(path: Path) -> int:
    path.mkdir()
    (path / _MARK).touch()
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _lock(handle)
    return handle


def _link(source: Path, path: Path) -> int:
    os.link(source, path)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the file is also the user's: do not wait
    return handle


def _lock(handle: int) -> None:
    with suppress(OSError):  # without locks, as on some network storage, no file is taken for abandoned either
        fcntl.flock(handle, fcntl.LOCK_EX)


def is_missing(path: str | Path) -> bool:
    """Whether nothing is at a path. What cannot be accessed is not missing: reading it will say why."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders of ours that no process holds."""
    found: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        found = [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for path in found:
        with suppress(OSError):  # held, or gone, or a link
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.fstat(handle).st_mode) or is_work_folder(path):
                    _remove(path)
            finally:
                os.close(handle)


def _remove(path: str | Path) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        Path(path).unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; on success flush its files and rename it to ``path``.

    A folder that was at ``path`` is removed then. Temporary folders are named, locked and removed as temporary
    files are, see `replacing`.

    Raises:
        AvelError: the disk is full or a file-size limit was hit, or the folder cannot be made; nothing is left behind
            and the old folder stands.
    """
    path = Path(path).resolve()
    # Its name is fixed, so that the next run can repair what a kill between the two renames left.
    former = path.with_name(f".avel-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.old")
    with ExitStack() as stack:
        try:
            _restore(former, path)
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent)
            temporary = _new_temporary(path.parent, _create_folder, stack)
            yield temporary
            for file in temporary.iterdir():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            if path.exists():
                (path / _MARK).touch()
                os.replace(path, former)
            os.replace(temporary, path)
            (path / _MARK).unlink()
            remove_work_folder(former)
        except BaseException as error:
            _restore(former, path)
            if isinstance(error, OSError):
                if error.errno in _NO_ROOM:
                    raise no_room(path, error, kept=False) from error
                raise AvelError(
                    f"cannot write {path}: {error.strerror or error}",
                    "a folder that can be made",
                    "choose another folder",
                ) from error
            raise


def _restore(former: Path, path: Path) -> None:
    """Move the former folder back, or remove it if the new one is in place."""
    if is_work_folder(former) and not os.path.lexists(path):
        os.replace(former, path)
    if is_work_folder(path):
        (path / _MARK).unlink()
    remove_work_folder(former)


def make_work_folder(path: Path) -> None:
    """Make a folder for unfinished work. `remove_work_folder` removes only folders with the mark that it gets.

    Raises:
        AvelError: something else is there.
    """
    with suppress(FileExistsError):
        path.mkdir(parents=True)
    if path.is_symlink() or not path.is_dir() or (any(path.iterdir()) and not is_work_folder(path)):
        raise AvelError(
            f"{path} was not made by avel", "the folder in which avel keeps unfinished work", "rename it, or delete it"
        )
    (path / _MARK).touch()


def is_work_folder(path: str | Path) -> bool:
    """Whether there is a folder, not a link to one, with the mark of a work folder."""
    return not os.path.islink(path) and stat.S_ISREG(_mode(os.path.join(path, _MARK)))


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def remove_work_folder(path: Path) -> None:
    """Remove a folder that `make_work_folder` made, with all that is in it; any other stays."""
    if is_work_folder(path):
        shutil.rmtree(path)


def through_no_link(path: str, flags: int) -> int:
    """An ``opener`` for `open` that raises OSError if ``path`` is a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def no_room(path: str | Path, error: OSError, *, kept: bool = True) -> AvelError:
    """The error for a full disk, a full quota or a file-size limit; ``kept``: the next try goes on from here."""
    return AvelError(
        f"could not write {path}: {error.strerror}",
        "room for the file on the disk, in the quota and under the file-size limit",
        "free some space (or raise `ulimit -f`) and run the same command again"
        + (": finished work is kept" if kept else ""),
    )


def lock(handle: int, folder: Path, *, wait: bool = True) -> None:
    """Lock an open file, or a folder, for this process alone until it is closed.

    Storage without locks lets every process in; a notice says so once.

    Raises:
        BlockingIOError: another process holds it, and there is no ``wait``.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        notice_of_disk(
            "locks", folder, f"the disk of {folder} has no locks, so nothing stops two runs from writing there at once"
        )


@contextmanager
def held_alone(folder: Path, *, wait_seconds: float = 0) -> Iterator[None]:
    """Keep other runs out of a folder until this one has ended, however it ends.

    The folder itself is locked, so that no file stays behind. Storage without locks lets every run in.

    Args:
        wait_seconds: for another run to end.

    Raises:
        AvelError: another run holds it.
    """
    until = time.monotonic() + wait_seconds
    handle = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                lock(handle, folder, wait=False)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise AvelError(
                        f"another run is writing to {folder}",
                        "one run at a time in a folder",
                        "wait until it has ended or stop it, or choose another --out",
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def file_sha256(path: str | Path, alive: Callable[[], None] = lambda: None) -> str:
    """Hex sha256 of a file's bytes. Raises OSError if it cannot be read.

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
    """Write ``content`` to ``path``, all of it or nothing. Raises AvelError if there is no room."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_folder(path: str | Path, *inputs: str | Path) -> None:
    """Check that results can be written to a folder. Makes nothing.

    Args:
        path: the folder; it need not be there yet.
        inputs: files and folders that are read. The folders among them must not be this one, or inside it.

    Raises:
        AvelError: ``path`` is not a folder and cannot become one, cannot be written to, or contains an input folder.
    """
    path = Path(path)
    for folder in inputs:
        if os.path.isdir(folder):
            _refuse_around(path, Path(folder))
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
    raise AvelError(found, "a folder that can be written to, or made", "choose another folder")


def _refuse_around(out: Path, folder: Path) -> None:
    if folder.resolve().is_relative_to(out.resolve()):
        raise AvelError(
            f"the input {folder} is inside the output folder {out}"
            if folder.resolve() != out.resolve()
            else f"{out} is both the input and the output folder",
            "another output folder; it can be inside the input folder",
            f"choose another --out, such as {folder / 'store'}",
        )


def refuse_foreign(path: Path, is_ours: Callable[[bytes], bool]) -> None:
    """Raises AvelError if there is a file at ``path`` that avel did not write.

    Args:
        is_ours: whether avel wrote a file of these bytes; ValueError, TypeError and AttributeError mean False.
    """
    if not os.path.lexists(path):
        return
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):  # the last: JSON nested too deeply
        if path.is_file() and is_ours(path.read_bytes()):
            return
    raise AvelError(
        f"{path} was not written by avel, and would be overwritten",
        "a folder without a file of that name",
        "choose another --out, or move the file away",
    )


def refuse_foreign_json(path: Path, fields: set[str]) -> None:
    """As `refuse_foreign`, for a file of JSON with these fields, among others."""
    refuse_foreign(path, lambda data: fields <= json.loads(data).keys())


def make_folder(path: str | Path) -> None:
    """Make a folder and those above it, if they are missing. Raises AvelError if that fails."""
    check_folder(path)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AvelError(
            f"cannot make the folder {path}: {error.strerror}",
            "a place where a folder can be made",
            "choose another place",
        ) from error


def claim_folder(path: str | Path, mark: str, whose: str, *, content: Sequence[str] = ("*",)) -> bool:
    """Make a folder for one kind of work only, which a file in it marks.

    Args:
        path: the folder.
        mark: name of the file. The caller writes it before anything else.
        whose: what the folder may hold, for the message: "a rendered world".
        content: patterns of the files that must not be there without the mark.

    Returns:
        Whether the mark is there already.

    Raises:
        AvelError: there are such files and no mark, or the folder cannot be made.
    """
    path = Path(path)
    check_folder(path)
    marked = os.path.lexists(path / mark)
    if not marked:
        remove_abandoned(path)  # what a killed run left
        foreign = sorted(file.relative_to(path).as_posix() for pattern in content for file in path.glob(pattern))
        if foreign:
            raise AvelError(
                f"{path} holds {foreign[0]} but no {mark}",
                f"a new or empty folder, or {whose}",
                "choose another folder",
            )
    make_folder(path)
    return marked


def require_space(
    path: str | Path, needed: int, what: str, do: str = "free some space, or choose another --out"
) -> None:
    """Raises AvelError if a disk has too little room.

    Args:
        path: a file or folder on that disk, which need not be there yet.
        needed: bytes.
        what: what takes them, for the message.
        do: what to do about it, for the message.
    """
    there = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise AvelError(
            f"{free / 1e9:.2f} GB are free on the disk of {path}", f"{needed / 1e9:.2f} GB, which {what} will take", do
        )


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV whose first column is the relative path of a video; no spreadsheet runs a cell of it (`avel.text`).

    Raises:
        AvelError: a cell contains control characters or is not UTF-8 text, a path cannot be told from that of another
            file, or there is no room.
    """
    path = Path(path)
    text = io.StringIO()
    writer, quoting = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer.writerow(header)
    for video, *cells in rows:
        shown = utf8_path(video)
        if shown != video and (utf8_path_text(shown) != video or os.path.lexists(path.parent / shown)):
            raise AvelError(
                f"{path}, column video: {video!r} is written out as {shown!r}, which would not lead back to it",
                "a name in UTF-8 without control characters",
                "rename the file",
            )
        for name, cell in zip(header[1:], cells, strict=True):
            if has_controls(cell):
                raise AvelError(
                    f"{path}, column {name}: {cell!r} contains control characters, or bytes that are not UTF-8 text",
                    "plain text in one line, which a CSV can hold",
                    "choose another name",
                )
        row = [csv_path(shown), *map(csv_cell, cells)]
        (quoting if "\r" in shown else writer).writerow(row)  # Python before 3.13 writes a bare \r without quotes
    write_file(path, text.getvalue())

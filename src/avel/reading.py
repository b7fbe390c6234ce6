"""Reading files that a stranger may have made: regular ones, of bounded size, inside their folder, of the right types.

Every JSON file that avel writes is read back by `read_json` into a type that says what it may hold. Each reader keeps
its types beside it; those that several share are here.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from avel.errors import AvelError
from avel.text import has_controls
from avel.types import BACKGROUND

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

SMALL_FILE = 2**20  # bytes: what describes one model, run or folder
LARGE_FILE = 2**26  # bytes: what has a line for every clip or segment
MOST_TENSORS = 2**36  # bytes of a shard, which is mapped and not read as a whole
MOST_ARRAYS = 2**28  # bytes: what is predicted on a split
#: Bounds on what a text may unfold to in memory: lists and objects, and values in them.
MOST_CONTAINERS, MOST_VALUES = 2_000_000, 8_000_000
#: Segments: a day of seconds. A window that is longer is no window of a model.
LONGEST_WINDOW = 86_400
_LONGEST_HEADER = 2**24  # bytes of the header of a safetensors file

#: What damaged archives, and the headers of arrays in them, raise.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, NotImplementedError, RuntimeError)

Count = Annotated[int, Meta(ge=0, le=2**31)]
Size = Annotated[int, Meta(ge=1, le=2**16)]
Seconds = Annotated[float, Meta(ge=0, le=1e8)]
SegmentSeconds = Annotated[float, Meta(gt=0, le=1e5)]
Window = Annotated[int, Meta(ge=1, le=LONGEST_WINDOW)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Streams = Literal["both", "audio", "visual"]
Scalar = str | bool | Annotated[int, Meta(ge=-(2**31), le=2**31)] | Annotated[float, Meta(ge=-1e12, le=1e12)] | None


class MadeBy(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a store or a model says of an extractor; `framing` is there where it is not ``time``."""

    name: Text
    tag: Text
    options: dict[str, Scalar]
    framing: Literal["time", "ave"] = "time"


class Extractors(Struct, forbid_unknown_fields=True):
    """Both extractors."""

    visual: MadeBy
    audio: MadeBy


def class_names(names: Sequence[str]) -> None:
    """Check the names of event classes.

    Raises:
        ValueError: one is empty, holds a control character or is called background, or two are equal.
    """
    for name in names:
        if not name.strip() or len(name) > 1000:
            raise ValueError(f"a class called {name[:40]!r}")
        if has_controls(name):
            raise ValueError(f"a class called {name[:40]!r}, with a control character")
        if name.casefold() == BACKGROUND:
            raise ValueError(f"a class called {name!r}, which is what no event covers")
    if len(set(names)) != len(names):
        raise ValueError("two classes of one name")


def kept_inside(path: str | Path, folder: str | Path) -> Path:
    """The real path of a file of a folder. The folder itself may be reached through links.

    Raises:
        AvelError: the path leads out of the folder, by ``..`` or through a link.
    """
    try:
        real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    except ValueError as error:  # a name that no file can have
        raise AvelError(f"a file called {os.fspath(path)!r}", "a name that a file can have", "name another") from error
    if not real.is_relative_to(home) or real == home:
        raise AvelError(
            f"{path} leads out of {folder}, to {real}",
            "a folder that holds its own files",
            "if you trust that file, copy it in place of the link (`cp --dereference`)",
        )
    return real


def check_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file; links are followed.

    Raises:
        FileNotFoundError: there is no such file.
        AvelError: it is a folder, a pipe, a device or a socket, or cannot be reached.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        if missing or getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise FileNotFoundError(f"no such file: {path}") from error
        raise _unreadable(path, error) from error
    _refuse_irregular(path, status)
    return status


def read_bytes(path: str | Path, limit: int = SMALL_FILE, *, folder: str | Path | None = None) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Args:
        path: of the file.
        limit: in bytes.
        folder: that the file must not lead out of; None where a user named the file.

    Raises:
        FileNotFoundError: there is no such file.
        AvelError: it is no regular file, larger, outside the folder, or cannot be read.
    """
    if folder is not None:
        path = kept_inside(path, folder)
    check_regular(path)  # before it is opened, which a device may answer to
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if folder is not None else 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            _refuse_irregular(path, status)
            data = b"" if status.st_size > limit else file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if max(status.st_size, len(data)) > limit:
        raise AvelError(
            f"{path} has {max(status.st_size, len(data))} bytes", f"{limit} bytes at most", "check that it is the file"
        )
    return data


def parse_json(data: bytes | str, kind: type[T], *, allow_nan: bool = False) -> T:
    """A value of type ``kind`` out of JSON text.

    Args:
        data: the text, UTF-8 where it is bytes.
        kind: as msgspec converts; its types, bounds and ``__post_init__`` are what the text may say.
        allow_nan: whether NaN and infinity may stand for numbers, as a loss may be.

    Raises:
        ValueError: it is not JSON, says a thing twice, holds too much, or does not fit the type.
    """
    text = data if isinstance(data, str) else data.decode()
    if text.count("[") + text.count("{") > MOST_CONTAINERS or text.count(",") > MOST_VALUES:
        raise ValueError("too many values")
    constant = float if allow_nan else _refuse_constant
    try:
        # Not msgspec's own parser: it takes a doubled key, and refuses names of files that are no UTF-8.
        content = json.loads(text, object_pairs_hook=_object, parse_constant=constant)
        return msgspec.convert(content, kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(
    path: Path,
    kind: type[T],
    *,
    expected: str,
    do: str,
    limit: int = SMALL_FILE,
    folder: str | Path | None = None,
    schema: tuple[str, int] | None = None,
) -> T:
    """Read a JSON file as a value of type ``kind``.

    Args:
        path, limit, folder: as in `read_bytes`.
        kind: as in `parse_json`.
        expected, do: what an error says of a file that does not fit.
        schema: key and value of the schema; another one is refused in so many words.

    Raises:
        FileNotFoundError: there is no such file.
        AvelError: as `read_bytes`, or the content does not fit.
    """
    return fitting_json(read_bytes(path, limit, folder=folder), path, kind, expected=expected, do=do, schema=schema)


def fitting_json(
    data: bytes, path: Path, kind: type[T], *, expected: str, do: str, schema: tuple[str, int] | None = None
) -> T:
    """As `read_json`, of a file that has been read."""
    try:
        content = parse_json(data, dict[str, Any])
        if schema is not None:
            key, known = schema
            found = content.get(key)
            if isinstance(found, int) and found != known:
                raise AvelError(f"{path} has {key} {found}", f"{key} {known}", "use the avel that wrote it")
        return msgspec.convert(content, kind)
    except ValueError as error:
        raise AvelError(f"{path} is damaged ({error})", expected, do) from error


@contextmanager
def open_tensors(path: Path, folder: Path, framework: Literal["np", "pt"], limit: int = MOST_TENSORS) -> Iterator[Any]:
    """``with open_tensors(path, folder, "pt") as file:`` as `safetensors.safe_open`, of a file inside a folder.

    A file of more than ``limit`` bytes is refused.

    Raises:
        FileNotFoundError: there is no such file.
        AvelError: it is no regular file, leads out of the folder, or is damaged, which may show inside the block.
    """
    from safetensors import SafetensorError, safe_open

    real = kept_inside(path, folder)
    size = check_regular(real).st_size
    if size > limit:
        raise damaged_tensors(path, f"{size} bytes, where {limit} are the most")
    try:
        with open(real, "rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > _LONGEST_HEADER:
            raise damaged_tensors(path, f"a header of {length} bytes")
        with safe_open(real, framework) as file:
            yield file
    except (SafetensorError, OSError, MemoryError) as error:
        raise damaged_tensors(path, str(error)) from error


def damaged_tensors(path: Path, found: str) -> AvelError:
    """The error for a safetensors file that is not what avel wrote."""
    return AvelError(
        f"{path}: {found}", "the safetensors file that avel wrote, whole", "copy it again, or make it again"
    )


def tensor_shapes(file: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of an open file, from its header: ``{"a": ("F32", (2, 3))}``."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name[:40]!r} twice in one object")
        content[name] = value
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} for a number")


def _refuse_irregular(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise AvelError(
        f"{path} is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}",
        "a regular file",
        "write its content to a file and give that; pipes, as of `<(...)`, cannot be read",
    )


def _unreadable(path: str | Path, error: OSError | ValueError) -> AvelError:
    cause = error.strerror if isinstance(error, OSError) else error
    return AvelError(f"cannot read {path}: {cause}", "a file that can be read", "check the path and its permissions")


def read_arrays(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file; none is made before its size is known, and nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        AvelError: as `read_bytes`, or it is damaged, or holds more than `MOST_ARRAYS` bytes.
    """
    import numpy as np

    data = io.BytesIO(read_bytes(path, MOST_ARRAYS, folder=folder))
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(data) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_ARRAYS:
                raise ValueError("too large")
            for member in archive.infolist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    if version != (1, 0):
                        raise ValueError(f"an array of version {version}")
                    shape, by_columns, kind = np.lib.format.read_array_header_1_0(file)
                    content = file.read()
                if kind.hasobject or prod(shape) * kind.itemsize != len(content):
                    raise ValueError(f"{member.filename[:80]!r} of shape {shape} in {len(content)} bytes")
                array = np.frombuffer(content, kind).reshape(shape, order="F" if by_columns else "C")
                arrays[member.filename.removesuffix(".npy")] = array
    except (ValueError, SyntaxError, RecursionError, MemoryError, OSError, EOFError, *_ZIP_ERRORS) as error:
        raise AvelError(
            f"{path} is damaged ({error})", "the file that avel wrote, whole", "make it again, or copy it again"
        ) from error
    return arrays

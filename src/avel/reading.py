"""Reading files that a stranger may have made: regular ones, of bounded size, inside their folder, of the right types.

Every JSON file that avel writes is read back by `read_json` into a type that says what it may hold. Each reader keeps
its types beside it; those that several share are here.
"""

from __future__ import annotations

import errno
import io
import json
import mmap
import os
import re
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

from avel.errors import AvelError, UnreadableError, notice_of_disk
from avel.text import has_controls
from avel.types import BACKGROUND

if TYPE_CHECKING:
    import h5py
    import numpy as np

T = TypeVar("T")

SMALL_FILE = 2**20  # bytes: what describes one model, run or folder
LARGE_FILE = 2**26  # bytes: what has a line for every clip or segment
MOST_TENSORS = 2**36  # bytes of a shard, which is mapped and not read as a whole
MOST_ARRAYS = 2**28  # bytes: what is predicted on a split
#: Bounds on what a text may unfold to in memory: lists and objects, and values in them.
MOST_CONTAINERS, MOST_VALUES = 2_000_000, 8_000_000
#: Segments: a day of seconds. No model has a longer window.
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
    """What a store or a model says about an extractor; `framing` is left out if it is ``time``."""

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
            raise ValueError(f"a class called {name!r}, which is the word for seconds without an event")
    if len(set(names)) != len(names):
        raise ValueError("two classes with the same name")


def kept_inside(path: str | Path, folder: str | Path) -> Path:
    """The real path of a file of a folder. The folder itself may be a link.

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
        if getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
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
        AvelError: it is not a regular file, too large, outside the folder, or cannot be read.
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
            f"{path} has {max(status.st_size, len(data))} bytes",
            f"{limit} bytes at most",
            "check that it is the right file",
        )
    return data


def parse_json(data: bytes | str, kind: type[T], *, allow_nan: bool = False) -> T:
    """A value of type ``kind`` out of JSON text.

    Args:
        data: the text, UTF-8 where it is bytes.
        kind: as msgspec converts; its types, bounds and ``__post_init__`` are what the text may say.
        allow_nan: whether numbers may be NaN or infinite, as a loss can be.

    Raises:
        ValueError: it is not JSON, has a key twice, is too large, or does not fit the type.
    """
    text = data if isinstance(data, str) else data.decode()
    if text.count("[") + text.count("{") > MOST_CONTAINERS or text.count(",") > MOST_VALUES:
        raise ValueError("too many values")
    constant = float if allow_nan else _refuse_constant
    try:
        # Not msgspec's own parser: it accepts duplicate keys, and refuses file names that are not UTF-8.
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
        schema: key and value of the schema; the error for another value names both.

    Raises:
        FileNotFoundError: there is no such file.
        AvelError: as `read_bytes`, or the content does not fit.
    """
    return fitting_json(read_bytes(path, limit, folder=folder), path, kind, expected=expected, do=do, schema=schema)


def fitting_json(
    data: bytes, path: Path, kind: type[T], *, expected: str, do: str, schema: tuple[str, int] | None = None
) -> T:
    """As `read_json`, for the bytes of a file that has been read."""
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

    A file of more than ``limit`` bytes is refused. If the disk cannot map files, the tensors are read instead.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it cannot be read.
        AvelError: it is not a regular file, leads out of the folder, or is damaged, which may show inside the block.
    """
    from safetensors import SafetensorError, safe_open

    real = kept_inside(path, folder)
    size = check_regular(real).st_size
    if size > limit:
        raise damaged_tensors(path, f"{size} bytes, more than the {limit} allowed")
    try:
        with open(real, "rb") as start:
            length = int.from_bytes(start.read(8), "little")
            if length > _LONGEST_HEADER:
                raise damaged_tensors(path, f"a header of {length} bytes")
            mapped = not size or can_be_mapped(start.fileno())
        if not mapped:
            notice_of_disk(
                "maps",
                real.parent,
                f"the disk of {path.parent} cannot map files into memory, so avel reads them "
                "on every use, which takes time, and memory for a copy; a local disk is faster",
            )
            yield _ReadTensors(real, framework, size)
            return
        with safe_open(real, framework) as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error
    except (SafetensorError, MemoryError) as error:
        raise damaged_tensors(path, str(error)) from error


def can_be_mapped(handle: int) -> bool:
    """Whether the disk of an open, non-empty file can map it; some network and FUSE file systems cannot."""
    try:
        mmap.mmap(handle, 0, access=mmap.ACCESS_READ).close()
    except OSError:
        return False
    return True


#: Types of tensors as safetensors files call them, with NumPy's and PyTorch's names and their bytes.
_NUMBERS = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
_NUMBERS |= {"I64": ("int64", 8)}


class _TensorFacts(Struct, forbid_unknown_fields=True):
    """What the header of a safetensors file says of a tensor."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64"]
    shape: list[Annotated[int, Meta(ge=0, le=2**40)]]
    data_offsets: tuple[int, int]


class _ReadTensors:
    """As `safetensors.safe_open`, but every use reads from the file; nothing stays in memory."""

    def __init__(self, path: Path, framework: Literal["np", "pt"], size: int) -> None:
        self._path, self._framework = path, framework
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length)
        self._data = 8 + length
        try:
            header = parse_json(text, dict[str, Any])
            self._metadata = msgspec.convert(header.pop("__metadata__", None), dict[str, str] | None)
            self._tensors = msgspec.convert(header, dict[str, _TensorFacts])
            end = 0
            for name, facts in sorted(self._tensors.items(), key=lambda item: item[1].data_offsets):
                begin, end = end, end + prod(facts.shape) * _NUMBERS[facts.dtype][1]
                if facts.data_offsets != (begin, end):
                    raise ValueError(f"{name[:80]!r} of shape {facts.shape} in bytes {facts.data_offsets}")
            if self._data + end != size:
                raise ValueError(f"{size} bytes, but the header says {self._data + end}")
        except ValueError as error:
            raise damaged_tensors(path, str(error)) from error

    def keys(self) -> list[str]:
        return list(self._tensors)

    def metadata(self) -> dict[str, str] | None:
        return self._metadata

    def get_slice(self, name: str) -> _ReadTensor:
        return _ReadTensor(self._path, self._framework, self._data, self._tensors[name])

    def get_tensor(self, name: str) -> Any:
        return self.get_slice(name).whole()


class _ReadTensor:
    """A tensor of a `_ReadTensors`; ``tensor[2:5]`` reads these rows."""

    def __init__(self, path: Path, framework: Literal["np", "pt"], data: int, facts: _TensorFacts) -> None:
        self._path, self._framework, self._facts = path, framework, facts
        self._begin = data + facts.data_offsets[0]

    def get_dtype(self) -> str:
        return self._facts.dtype

    def get_shape(self) -> list[int]:
        return self._facts.shape

    def whole(self) -> Any:
        return self._read(0, self._facts.shape)

    def __getitem__(self, rows: slice) -> Any:
        number, *width = self._facts.shape
        start, stop, _ = rows.indices(number)
        return self._read(start * prod(width), [max(stop - start, 0), *width])

    def _read(self, values_before: int, shape: list[int]) -> Any:
        import numpy as np

        kind, size = _NUMBERS[self._facts.dtype]
        try:
            content = np.empty(prod(shape) * size, dtype=np.uint8)
            with open(self._path, "rb") as file:
                file.seek(self._begin + values_before * size)
                read = file.readinto(content.data)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        except MemoryError as error:
            raise AvelError(
                f"no memory for {prod(shape) * size} bytes of {self._path}, whose disk cannot map files",
                "that much free memory",
                "copy the folder to a local disk, whose files are mapped",
            ) from error
        if read != len(content):
            raise damaged_tensors(self._path, "it ends early")
        if self._framework == "np":
            return content.view(kind).reshape(shape)
        import torch

        of_kind = getattr(torch, kind)
        return torch.from_numpy(content).view(of_kind).reshape(shape) if read else torch.empty(shape, dtype=of_kind)


def rows_of(file: Any, name: str) -> Any:
    """A tensor of an open file whose ``[start:stop]`` gives rows: views of the map, or rows read at that moment."""
    return file.get_slice(name) if isinstance(file, _ReadTensors) else file.get_tensor(name)


@contextmanager
def open_h5(path: str | Path) -> Iterator[h5py.File]:
    """``with open_h5(path) as file:`` as `h5py.File`, to read; without a lock if the disk has none.

    Raises:
        UnreadableError: it may not be read, or another program has it open for writing.
        OSError: there is no such file, or it is not a whole HDF5 file.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if isinstance(error, PermissionError):
            raise _unreadable(path, error) from error
        # The second message: this process has the file open already, without a lock.
        if not re.search("unable to lock file|file locking flag", str(error)):
            raise
        if isinstance(error, BlockingIOError):
            raise UnreadableError(
                f"another program has {path} open for writing",
                "a finished file",
                "wait until it is written, or close it",
            ) from error
        file = h5py.File(path, "r", locking=False)
        folder = Path(path).parent
        notice_of_disk(
            "locks of HDF5",
            folder,
            f"the disk of {folder} has no locks, so HDF5 files are read without (HDF5_USE_FILE_LOCKING=FALSE): "
            "let no program write to them meanwhile",
        )
    with file:
        yield file


def damaged_tensors(path: Path, found: str) -> AvelError:
    """The error for a safetensors file that is not what avel wrote."""
    return AvelError(
        f"{path}: {found}", "the complete safetensors file that avel wrote", "copy it again, or make it again"
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
    raise ValueError(f"{name} instead of a number")


def _refuse_irregular(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise AvelError(
        f"{path} is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}",
        "a regular file",
        "write its content to a file and give that; pipes, as of `<(...)`, cannot be read",
    )


def _unreadable(path: str | Path, error: OSError | ValueError) -> UnreadableError:
    cause = getattr(error, "strerror", None) or error
    return UnreadableError(
        f"cannot read {path}: {cause}", "a file that can be read", "check the path and its permissions"
    )


def read_arrays(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file; sizes are checked before arrays are made, and nothing is unpickled.

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
            f"{path} is damaged ({error})", "the complete file that avel wrote", "make it again, or copy it again"
        ) from error
    return arrays

"""Files of trained weights: find or download them, check them, and read them without running code in them.

A file is taken from the path that the user gives, or else from the cache folder (``AVEL_CACHE``, by default
``~/.cache/avel``), where it is downloaded if it is missing. It must have the published size and hash, or the hash that
the user gives.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import struct
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO
from urllib.parse import urlsplit

import h5py
import numpy as np
import torch

from avel.errors import AvelError
from avel.files import lock, through_no_link
from avel.reading import can_be_mapped, open_h5
from avel.types import Progress

_PIECE = 2**20  # bytes read at a time
_TRIES = 5  # connections in a row that may bring no byte
_TIMEOUT = 30.0  # seconds without a byte

#: What torch.load raises for files that are damaged or not state dicts.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    struct.error,
)


@dataclass(frozen=True)
class Published:
    """A file of weights as its authors published it.

    Attributes:
        name: name of the file.
        size: size in bytes.
        algorithm: algorithm of the published hash: ``md5`` or ``sha256``.
        digest: that hash, hexadecimal.
        url: where to download it.
    """

    name: str
    size: int
    algorithm: str
    digest: str
    url: str

    def __str__(self) -> str:
        return f"{self.name}, {self.size:,} bytes, {self.algorithm} {self.digest}"


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "vgg19-keras": Published(
            "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
            80_134_624,
            "md5",
            "253f8cb515780f3b799900260a226db6",
            "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
            "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        "vgg19-torchvision": Published(
            "vgg19-dcbb9e9d.pth",
            574_673_361,
            "sha256",
            "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
            "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        ),
        "vggish": Published(
            "vggish-10086976.pth",
            288_567_937,
            "sha256",
            "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
            "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        ),
    }
)


@dataclass(frozen=True)
class Found:
    """A file of weights that passed its check.

    Attributes:
        path: path of the file.
        sha256: its sha256, hexadecimal.
    """

    path: Path
    sha256: str


def cache_folder() -> Path:
    """Where downloads are kept: the environment variable ``AVEL_CACHE``, or else ``~/.cache/avel``."""
    return Path(os.environ.get("AVEL_CACHE") or Path.home() / ".cache" / "avel")


def find_weights(
    published: Published,
    file: str | Path | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find a file of weights and check it; download it if it is not on this machine.

    Args:
        published: the file to find.
        file: its path, if the user gives one; no other place is searched then.
        sha256: sha256 of other weights in the same format, to use those instead.
        progress: called as ``progress("download", bytes done, bytes in all)``.

    Raises:
        AvelError: there is no such file, it has another size or hash, or it cannot be downloaded.
    """
    wanted = sha256.lower() if sha256 else None
    if file is not None:
        return _check(Path(file), published, wanted)
    path = cache_folder() / published.name
    if path.is_file():
        return _check(path, published, wanted)
    if wanted and published.algorithm == "sha256" and wanted != published.digest:
        raise AvelError(
            f"the weights of sha256 {wanted} are not in {path}, and are not the published ones ({published.url})",
            f"that file, in the format of {published.name}",
            f"put it at {path}, or give its path: --visual-weights or --audio-weights PATH",
        )
    download(published, path, progress)
    return _check(path, published, wanted)


def _check(path: Path, published: Published, sha256: str | None) -> Found:
    """AvelError unless it is the published file, or has the given sha256."""
    expected = f"the weights of sha256 {sha256}" if sha256 else str(published)
    get = f"download {published.url} again and put it at {path}"
    if not path.is_file():
        raise AvelError(f"no such file of weights: {path}", expected, f"check the path, or {get}")
    size = path.stat().st_size
    if not sha256 and size != published.size:
        raise AvelError(f"{path} has {size:,} bytes", expected, get)
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if sha256 or published.algorithm == "sha256":
                digest = found
            else:  # Keras published an MD5
                digest = hashlib.file_digest(file, published.algorithm).hexdigest()
    except OSError as error:
        raise AvelError(f"{path} cannot be read: {error.strerror}", expected, "check its permissions") from error
    if digest != (sha256 or published.digest):
        raise AvelError(
            f"{path} has the {'sha256' if sha256 else published.algorithm} {digest}",
            expected,
            f"{get}; if other weights are meant, say so: weights_sha={found}",
        )
    return Found(path, found)


def download(published: Published, path: Path, progress: Progress | None = None) -> None:
    """Download a file, continuing an earlier attempt, and move it to ``path`` once its size and hash are right.

    Until then it is beside ``path`` under a name that ends in ``.part``. If the server cannot send the rest of a file,
    the download starts over.

    Raises:
        AvelError: the server cannot be reached or sends another file, the connection breaks too often, or the disk is
            full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab", opener=through_no_link) as file:
            lock(file.fileno(), part.parent)  # wait if another process is downloading it
            if path.is_file():
                return
            file.seek(0, os.SEEK_END)
            _fetch(published, path, file, progress)
            file.flush()
            os.fsync(file.fileno())
            try:
                _check(part, published, None)
            except AvelError as error:
                _restart(file)
                raise _no_download(published, path, error.found.replace(str(part), "the download")) from None
            os.replace(part, path)
    except OSError as error:
        raise _no_download(published, path, f"{error.filename or part}: {error.strerror}") from error


def _fetch(published: Published, path: Path, file: BinaryIO, progress: Progress | None) -> None:
    """Append to ``file`` until it has the published size, over as many connections as needed."""
    failures = 0
    while (before := file.tell()) < published.size:
        cause = "the connection broke"
        try:
            _fetch_rest(published, path, file, progress)
        except urllib.error.HTTPError as error:
            cause = f"the server answered {error.code} {error.reason}"
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                _restart(file)
            elif error.code < 500:  # another attempt will not help
                failures = _TRIES
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            cause = str(error) or type(error).__name__
        except urllib.error.URLError as error:  # no connection at all
            cause = str(error.reason)
            failures = _TRIES
        if file.tell() > before:
            failures = 0
            continue
        failures += 1
        if failures >= _TRIES:
            raise _no_download(published, path, f"{cause}, at {file.tell():,} of {published.size:,} bytes")


def _fetch_rest(published: Published, path: Path, file: BinaryIO, progress: Progress | None) -> None:
    """Append what one connection sends, and leave ``file`` at its end."""
    from avel import __version__

    request = urllib.request.Request(published.url, headers={"User-Agent": f"avel/{__version__}"})
    done = file.tell()
    if done:
        request.add_header("Range", f"bytes={done}-")
    _refuse_unsafe(published, path, published.url)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        _refuse_unsafe(published, path, response.url)  # after redirects
        if done and response.status != http.client.PARTIAL_CONTENT:  # it sends the whole file
            _restart(file)
            done = 0
        length = response.headers.get("Content-Length")
        if length is not None and done + int(length) != published.size:
            _restart(file)
            raise _no_download(published, path, f"the server's file has {done + int(length):,} bytes")
        while piece := response.read(_PIECE):
            done += len(piece)
            if done > published.size:
                _restart(file)
                raise _no_download(published, path, f"the server sends more than {published.size:,} bytes")
            file.write(piece)
            if progress:
                progress("download", done, published.size)


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _refuse_unsafe(published: Published, path: Path, url: str) -> None:
    """AvelError unless the URL is https; tests may use plain http on the same machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        raise _no_download(published, path, f"{url} is not https")


def _no_download(published: Published, path: Path, cause: str) -> AvelError:
    return AvelError(
        f"could not download {published.url}: {cause}",
        str(published),
        f"run the same command again to continue; or get the file elsewhere and put it at {path}, or "
        "give its path: --visual-weights or --audio-weights PATH",
    )


def read_torch(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that ``torch.save`` wrote, by name; memory-mapped if format and disk allow.

    Raises:
        AvelError: the file is not a state dict, or holds code, which is not run.
    """
    try:
        # Files older than torch 1.6, as both published ones, are not zip files and cannot be mapped.
        with open(path, "rb") as file:
            mapped = zipfile.is_zipfile(file) and can_be_mapped(file.fileno())
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        raise _unfit(path, str(error).partition("\n")[0]) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _unfit(path, f"it holds a {type(state).__name__}, not tensors by name")
    return {str(name): value for name, value in state.items()}


def read_keras(path: str | Path) -> dict[str, list[np.ndarray]]:
    """The weights of each layer in Keras's h5 layout of 2016, float32: ``{layer: [kernel, bias]}``.

    The root's ``layer_names`` names a group for each layer, whose ``weight_names`` names its arrays in order.

    Raises:
        AvelError: the file does not have this layout.
    """
    try:
        with open_h5(path) as file:
            return {
                layer: [np.asarray(file[layer][name], dtype=np.float32) for name in _names(file[layer], "weight_names")]
                for layer in _names(file, "layer_names")
            }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _unfit(path, str(error).partition("\n")[0]) from error


def _names(group: h5py.Group, attribute: str) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute]]


def check_shapes(path: str | Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """AvelError unless every wanted array is there with its shape; other arrays are ignored."""
    for name, shape in wanted.items():
        if name not in found:
            raise _unfit(path, f"it lacks {name}")
        if tuple(found[name]) != shape:
            raise _unfit(path, f"{name} has the shape {tuple(found[name])}, but the network has {shape}")


def _unfit(path: str | Path, cause: str) -> AvelError:
    return AvelError(
        f"{path} does not hold this network's weights: {cause}",
        "the weights as published: " + "; ".join(published.name for published in PUBLISHED.values()),
        "give the file of this network",
    )

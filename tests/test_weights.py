"""Weights files: looked for, downloaded through broken connections, checked, and read without running their code."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import avel.features.weights as weights_module
from avel.errors import AvelError
from avel.features.weights import PUBLISHED, Published, check_shapes, find_weights, read_keras, read_torch

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server:
    """Serves CONTENT at /weights.bin, in the ways that a test asks for.

    Attributes:
        url: of the file.
        content: what is served.
        cuts: after how many bytes the next connections break off.
        ranges: whether it can send the rest of a file.
        length: whether it says how long the file is.
        status: what it answers instead, if not 0.
        asked: the Range header of each request, or None.
    """

    def __init__(self) -> None:
        self.content, self.cuts, self.ranges, self.length, self.status = CONTENT, list[int](), True, True, 0
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                if self.path == "/elsewhere":
                    self.send_response(302)
                    self.send_header("Location", "ftp://127.0.0.1/weights.bin")
                    self.end_headers()
                    return
                if outer.status:
                    self.send_error(outer.status)
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and outer.ranges else 0
                if start >= len(outer.content):
                    self.send_error(416)
                    return
                rest = outer.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.content) - 1}/{len(outer.content)}")
                if outer.length:
                    self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: outer.cuts.pop(0)] if outer.cuts else rest)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/weights.bin"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that does not exist yet."""
    monkeypatch.setenv("AVEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def published(url: str, content: bytes = CONTENT, algorithm: str = "sha256") -> Published:
    return Published("weights.bin", len(content), algorithm, hashlib.new(algorithm, content).hexdigest(), url)


SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_download_once(server: Server, cache: Path, algorithm: str) -> None:
    seen: list[tuple[str, int, int]] = []
    for _ in range(2):
        found = find_weights(
            published(server.url, algorithm=algorithm), progress=lambda *arguments: seen.append(arguments)
        )
        assert found.path == cache / "weights.bin" and found.sha256 == SHA
        assert found.path.read_bytes() == CONTENT
    assert server.asked == [None]  # the second time it lies in the cache
    assert seen[-1] == ("download", len(CONTENT), len(CONTENT))
    assert [file.name for file in cache.iterdir()] == ["weights.bin"]


def test_a_broken_connection_goes_on_where_it_was(server: Server, cache: Path) -> None:
    server.cuts = [100_000, 50_000, 0, 1]
    assert find_weights(published(server.url)).path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150001-"]


def test_a_later_run_goes_on_too(server: Server, cache: Path) -> None:
    server.cuts = [70_000, *[0] * 20]
    with pytest.raises(AvelError, match=r"broke, at 70,000 of 300,000 bytes") as caught:
        find_weights(published(server.url))
    assert "run the same command again" in caught.value.do and not (cache / "weights.bin").exists()
    server.cuts, server.asked = [], []
    assert find_weights(published(server.url)).path.read_bytes() == CONTENT
    assert server.asked == ["bytes=70000-"]


def test_a_server_that_only_sends_the_whole(server: Server, cache: Path) -> None:
    server.cuts, server.ranges = [70_000], False
    assert find_weights(published(server.url)).path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-"]


def test_a_server_that_does_not_say_how_much(server: Server, cache: Path) -> None:
    server.length = False
    assert find_weights(published(server.url)).path.read_bytes() == CONTENT
    server.content = CONTENT + b"more"
    (cache / "weights.bin").unlink()
    with pytest.raises(AvelError, match="more than 300,000 bytes"):
        find_weights(published(server.url))


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"!"])
def test_another_size(server: Server, cache: Path, content: bytes) -> None:
    server.content = content
    with pytest.raises(AvelError, match=f"file has {len(content):,} bytes"):
        find_weights(published(server.url))
    assert not (cache / "weights.bin").exists()


def test_another_hash_is_not_kept_nor_continued(server: Server, cache: Path) -> None:
    server.content = bytes(len(CONTENT))
    with pytest.raises(AvelError, match="the download has the sha256") as caught:
        find_weights(published(server.url))
    assert SHA in caught.value.expected and "300,000 bytes" in caught.value.expected
    assert not (cache / "weights.bin").exists()
    server.content, server.asked = CONTENT, []
    assert find_weights(published(server.url)).path.read_bytes() == CONTENT
    assert server.asked == [None]


def test_the_start_of_another_file_is_found_out(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / ".weights.bin.part").write_bytes(b"rubbish")
    with pytest.raises(AvelError, match="the download has the sha256"):
        find_weights(published(server.url))
    (cache / ".weights.bin.part").write_bytes(bytes(len(CONTENT) + 5))
    with pytest.raises(AvelError, match="the download has 300,005 bytes"):
        find_weights(published(server.url))
    assert find_weights(published(server.url)).path.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 5)])
def test_a_server_that_refuses(server: Server, cache: Path, status: int, requests: int) -> None:
    server.status = status
    with pytest.raises(AvelError, match=f"the server answered {status}"):
        find_weights(published(server.url))
    assert len(server.asked) == requests


def test_offline(server: Server, cache: Path) -> None:
    server.stop()
    with pytest.raises(AvelError) as caught:
        find_weights(published(server.url))
    error = caught.value  # names file, URL, size, hash, and where to put it
    assert server.url in error.found and "refused" in error.found
    assert "weights.bin" in error.expected and "300,000 bytes" in error.expected and SHA in error.expected
    assert str(cache / "weights.bin") in error.do and "--visual-weights or --audio-weights PATH" in error.do


@pytest.mark.parametrize("url", ["http://example.org/weights.bin", "file:///etc/passwd", "ftp://127.0.0.1/weights.bin"])
def test_only_https(cache: Path, url: str) -> None:
    with pytest.raises(AvelError, match="is not https"):
        find_weights(published(url))


def test_no_redirection_to_anything_else(server: Server, cache: Path) -> None:
    with pytest.raises(AvelError, match="could not download"):
        find_weights(published(server.url.replace("weights.bin", "elsewhere")))
    assert not (cache / "weights.bin").exists()


def test_a_cache_folder_that_cannot_be(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AVEL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AvelError, match="Not a directory"):
        find_weights(published(server.url))


def test_two_at_once(server: Server, cache: Path) -> None:
    server.cuts = [100_000]
    threads = [threading.Thread(target=find_weights, args=(published(server.url),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache / "weights.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]  # one of them fetched it


def test_where_downloads_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AVEL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_module.cache_folder() == tmp_path / ".cache" / "avel"


def test_a_file_of_the_user_s(cache: Path, tmp_path: Path) -> None:
    wanted = published("https://127.0.0.1:1/weights.bin")  # nothing is downloaded
    path = tmp_path / "mine.bin"
    with pytest.raises(AvelError, match="no such file of weights"):
        find_weights(wanted, path)
    path.write_bytes(CONTENT)
    assert find_weights(wanted, path).sha256 == SHA
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(AvelError, match="has 299,999 bytes") as caught:
        find_weights(wanted, path)
    assert wanted.url in caught.value.do and "300,000 bytes" in caught.value.expected
    path.write_bytes(bytes(len(CONTENT)))
    other = hashlib.sha256(bytes(len(CONTENT))).hexdigest()
    with pytest.raises(AvelError, match=f"has the sha256 {other}") as caught:
        find_weights(wanted, path)
    assert f"weights_sha={other}" in caught.value.do


def test_other_weights_by_their_hash(cache: Path, tmp_path: Path) -> None:
    wanted = published("https://127.0.0.1:1/weights.bin")
    path = tmp_path / "mine.bin"
    path.write_bytes(b"other weights")
    other = hashlib.sha256(b"other weights").hexdigest()
    assert find_weights(wanted, path, other.upper()).sha256 == other
    with pytest.raises(AvelError, match=f"has the sha256 {other}"):
        find_weights(wanted, path, "0" * 64)
    with pytest.raises(AvelError, match="are not in") as caught:  # it cannot be downloaded
        find_weights(wanted, None, other)
    assert str(cache / "weights.bin") in caught.value.do
    cache.mkdir()
    (cache / "weights.bin").write_bytes(b"other weights")
    assert find_weights(wanted, None, other).path == cache / "weights.bin"


def test_a_folder_is_no_file(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="no such file of weights"):
        find_weights(published("https://127.0.0.1:1/weights.bin"), tmp_path)


def test_what_is_published() -> None:
    """As spec/features.md has it."""
    sizes = {"vgg19-keras": 80_134_624, "vgg19-torchvision": 574_673_361, "vggish": 288_567_937}
    assert {name: file.size for name, file in PUBLISHED.items()} == sizes
    for file in PUBLISHED.values():
        assert file.url.startswith("https://") and file.url.endswith("/" + file.name)
        assert len(file.digest) == {"md5": 32, "sha256": 64}[file.algorithm]
    assert PUBLISHED["vggish"].digest.startswith("10086976")  # as its name says
    assert PUBLISHED["vgg19-torchvision"].digest.startswith("dcbb9e9d")


@pytest.mark.parametrize("zipped", [False, True])
def test_state_dicts_of_either_format(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "state.pth"
    torch.save({"a.weight": torch.arange(6.0).view(2, 3)}, path, _use_new_zipfile_serialization=zipped)
    state = read_torch(path)
    assert state["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    check_shapes(path, {name: tuple(value.shape) for name, value in state.items()}, {"a.weight": (2, 3)})


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")

    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "state.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(AvelError, match="does not hold this network's weights"):
        read_torch(tmp_path / "state.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    with pytest.raises(AvelError, match="does not hold this network's weights"):
        read_torch(tmp_path / "plain.pth")
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save({"a": torch.zeros(1000)}, tmp_path / "state.pth")
    whole = (tmp_path / "state.pth").read_bytes()
    for content in (b"", b"text", b"PK\x03\x04", CONTENT, whole[:2000], b"\x89HDF\r\n\x1a\n" + bytes(600)):
        path.write_bytes(content)
        for read in (read_torch, read_keras):
            with pytest.raises(AvelError, match="does not hold this network's weights"):
                read(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(AvelError, match="it holds a list"):
        read_torch(path)
    with h5py.File(path, "w") as file:
        file["numbers"] = np.zeros(3)
    with pytest.raises(AvelError, match="layer_names"):
        read_keras(path)


def test_keras_s_layout(tmp_path: Path) -> None:
    path = tmp_path / "layers.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"pool", b"conv"]
        file.create_group("pool").attrs["weight_names"] = np.array([], dtype="S1")
        group = file.create_group("conv")
        group.attrs["weight_names"] = ["conv_W_1:0", "conv_b_1:0"]  # text or bytes
        group["conv_W_1:0"], group["conv_b_1:0"] = np.ones((3, 3, 2, 4)), np.arange(4)
    layers = read_keras(path)
    assert list(layers) == ["pool", "conv"] and layers["pool"] == []
    kernel, bias = layers["conv"]
    assert kernel.shape == (3, 3, 2, 4) and kernel.dtype == np.float32 and bias.tolist() == [0, 1, 2, 3]


def test_missing_and_misshapen_arrays(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="it lacks a"):
        check_shapes("file", {"b": (2,)}, {"a": (2,)})
    with pytest.raises(AvelError, match=r"a has the shape \(2,\), but the network has \(3,\)"):
        check_shapes("file", {"a": (2,)}, {"a": (3,)})

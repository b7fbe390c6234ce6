"""Disks and terminals that lack something: maps, locks, permission, room, letters, or a reader."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import avel.present
from avel import cli
from avel.data.store import open_store
from avel.errors import AvelError, AvelNotice
from avel.files import held_alone, write_file
from avel.present import FINGERPRINT, present
from avel.reading import open_h5, open_tensors, tensor_shapes
from avel.timeline import Timeline

Clips = Callable[[Path, int], Path]
TRAIN = ["--window", "2", "--batch-size", "2", "--options.width", "8", "--options.heads", "1"]
TRAIN += ["--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_clips: Clips) -> Path:
    """A folder with ``clips``, their ``store`` and a ``run`` of one epoch; its copies are for use."""
    folder = tmp_path_factory.mktemp("made")
    table = tiny_clips(folder / "clips", 4)
    table.write_text(table.read_text().replace("clip3.mp4,0,1,dog,train", "clip3.mp4,0,1,dog,val"))
    assert avel_in(folder, "extract", "clips/clips.csv", "--out", "store", "--workers", "0") == 0
    assert avel_in(folder, "train", "--store", "store", "--out", "run", "--epochs", "1", *TRAIN) == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, on a disk of which nothing was said yet."""
    monkeypatch.setattr("avel.errors._NOTICED", set())
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)
    folder = Path(shutil.copytree(made, tmp_path / "place"))
    facts = json.loads((folder / "run" / "run.json").read_text())
    facts["config"] |= {"store": str(folder / "store"), "out": str(folder / "run")}
    (folder / "run" / "run.json").write_text(json.dumps(facts))
    monkeypatch.chdir(folder)
    return folder


def avel_in(folder: Path, *words: str) -> int:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return cli.main(words)
    finally:
        os.chdir(before)


# --- no maps ---


class _NoMaps:
    ACCESS_READ = 1

    def __init__(self, number: int = errno.ENODEV) -> None:
        self.number = number

    def mmap(self, *_: Any, **__: Any) -> Any:
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def without_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("No such device (os error 19)")  # what safetensors says then

    monkeypatch.setattr("avel.reading.mmap", _NoMaps())
    monkeypatch.setattr("safetensors.safe_open", fails)


def test_every_verb_reads_where_the_disk_maps_no_files(
    place: Path, without_maps: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results are those of mapped files, and one notice a process says what it costs."""
    for number, words in enumerate(
        [
            ["extract", "clips/clips.csv", "--out", "again", "--workers", "0"],
            ["train", "--store", "store", "--out", "other", "--epochs", "1", *TRAIN],
            ["train", "--store", "store", "--out", "run", "--epochs", "2", *TRAIN],
            ["evaluate", "run"],
            ["data", "check", "store"],
            ["data", "compare", "store", "again"],
            ["export-h5", "store", "h5", "--segments", "2"],
            ["localize", "clips/clip1.mp4", "--model", "run", "--formats", "json"],
        ]
    ):
        assert cli.main(words) == 0, words
        said = capsys.readouterr().err
        assert said.count("cannot map files") == (number == 0), words
        assert number or "takes time, and memory for a copy" in said
    assert (place / "again" / "store.json").read_bytes() == (place / "store" / "store.json").read_bytes()
    assert (place / "other" / "best.safetensors").is_file()
    read = json.loads((place / "run" / "evaluation_test.json").read_text())
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr("avel.evaluation.draw", lambda *_: None)
    assert cli.main(["evaluate", "run"]) == 0
    assert json.loads((place / "run" / "evaluation_test.json").read_text()) == read
    mapped, h5 = open_store(place / "store"), h5py.File(place / "h5" / "visual_feature.h5")["avadataset"]
    assert all(np.array_equal(h5[index], mapped.visual(index).float()) for index in range(4))


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL, errno.EACCES, errno.ENOTSUP])
@pytest.mark.parametrize("framework", ["np", "pt"])
def test_read_tensors_are_the_mapped_ones(
    number: int, framework: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [torch.float16, torch.float32, torch.float64, torch.int64]
    kinds += [torch.bfloat16] if framework == "pt" else []
    tensors = {str(kind): torch.arange(24).reshape(4, 3, 2).to(kind) for kind in kinds}
    tensors |= {"one": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "file", {"facts": "mine"})
    with open_tensors(tmp_path / "file", tmp_path, framework) as file:
        shapes = tensor_shapes(file)
    monkeypatch.setattr("avel.reading.mmap", _NoMaps(number))
    monkeypatch.setattr("avel.errors._NOTICED", set())
    with pytest.warns(AvelNotice), open_tensors(tmp_path / "file", tmp_path, framework) as file:
        assert tensor_shapes(file) == shapes and file.metadata() == {"facts": "mine"}
        for name, tensor in tensors.items():
            read = torch.as_tensor(file.get_tensor(name))
            assert read.dtype == tensor.dtype and torch.equal(read, tensor)
            if tensor.ndim:
                assert torch.equal(torch.as_tensor(file.get_slice(name)[1:3]), tensor[1:3])
        assert len(file.get_slice("none")[2:1]) == 0


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def described(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        header(a=described([2], 0, 8)) + b"\x00" * 7,
        header(a=described([2], 0, 8)) + b"\x00" * 9,
        header(a=described([3], 0, 8)) + b"\x00" * 8,
        header(a=described([-2], 0, 8)) + b"\x00" * 8,
        header(a=described([2], 0, 8), b=described([2], 4, 12)) + b"\x00" * 12,
        header(a=described([2], 0, 8), b=described([1], 12, 16)) + b"\x00" * 16,
        header(a=described([2], 0, 8, "X9")) + b"\x00" * 8,
        header(a=described([2**40, 2**40], 0, 8)) + b"\x00" * 8,
        header(a=[1, 2]) + b"\x00" * 8,
        header(__metadata__={"facts": 3}, a=described([2], 0, 8)) + b"\x00" * 8,
        struct.pack("<Q", 2) + b"[]",
    ],
)
def test_a_damaged_file_is_refused_without_maps_as_with_them(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises((SafetensorError, OSError, ValueError)), safe_open(tmp_path / "file", "np"):
        pass
    monkeypatch.setattr("avel.errors._NOTICED", {("maps", os.stat(tmp_path).st_dev)})
    monkeypatch.setattr("avel.reading.mmap", _NoMaps())
    with pytest.raises(AvelError), open_tensors(tmp_path / "file", tmp_path, "np"):
        pass


# --- no locks ---


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    true_file = h5py.File

    def no_lock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def file(path: Any, mode: str = "r", locking: bool | None = None, **options: Any) -> h5py.File:
        if mode == "r" and locking is not False:
            raise OSError(errno.ENOLCK, "Unable to synchronously open file (unable to lock file, errno = 37)")
        return true_file(path, mode, locking=locking, **options)

    monkeypatch.setattr(fcntl, "flock", no_lock)
    monkeypatch.setattr(h5py, "File", file)


def test_every_verb_works_where_the_disk_knows_no_locks(
    place: Path, without_locks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate = ["--videos", "20", "--grid", "1", "1", "--visual-dim", "4", "--background-videos", "1"]
    for words, notices in (
        (["extract", "clips/clips.csv", "--out", "again", "--workers", "0"], 1),
        (["localize", "clips/clip1.mp4", "--model", "run", "--formats", "json"], 0),
        (["data", "simulate", "--out", "ave", *simulate, "--workers", "0"], 0),
        (["data", "check", "ave"], 1),  # of HDF5's own locks
        (["data", "import-ave", "ave", "--out", "imported", "--workers", "0"], 0),
        (["export-h5", "imported", "h5"], 0),
    ):
        assert cli.main(words) == 0, words
        assert capsys.readouterr().err.count("has no locks") == notices, words
    assert not list(place.rglob(".avel-*"))


def test_an_h5_file_that_another_program_writes_is_not_called_damaged(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["avadataset"] = np.zeros(3)
    with open(tmp_path / "file.h5") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AvelError, match=r"another program has .* open for writing") as error, open_h5(held.name):
            pass
    assert "copy" not in str(error.value)
    with open_h5(tmp_path / "file.h5") as file:
        assert file["avadataset"].shape == (3,)


# --- no permission ---


@contextmanager
def privileges_dropped() -> Iterator[None]:
    """Root obeys the permissions of files, too: this thread gives up the capabilities that override them."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if not hasattr(libc, "capget") or libc.capget(head, data):
        pytest.skip("root cannot give up its capabilities here, and may read everything")
    before = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(head, data) == 0


LOCALIZE = "localize clips/clip1.mp4 --model run --out found"
RESUME = " ".join(["train --store store --out run --epochs 2", *TRAIN])


@pytest.mark.parametrize(
    ("closed", "command"),
    [
        ("clips/clip1.mp4", LOCALIZE),
        ("clips/clip1.mp4", "extract clips/clip1.mp4 --out new --workers 0"),
        ("clips", LOCALIZE),
        ("clips/clips.csv", "extract clips/clips.csv --out new"),
        ("store", "evaluate run"),
        ("store", "evaluate store --baselines"),
        ("store/store.json", "data check store"),
        ("store/store.json", "evaluate run"),
        ("store/store.json", RESUME),
        ("store/shard", "evaluate run"),
        ("store/shard", "data check store"),
        ("store/shard", RESUME),
        ("run", LOCALIZE),
        ("run", "evaluate run"),
        ("run/best.json", LOCALIZE),
        ("run/best.safetensors", LOCALIZE),
        ("run/run.json", "evaluate run"),
        ("run/last.state.safetensors", RESUME),
        ("run/metrics.jsonl", RESUME),
    ],
)
def test_what_may_not_be_read_is_named_and_not_called_damaged(
    closed: str, command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = place.glob(f"{closed}*" if "shard" in closed else closed)
    path.chmod(0)
    try:
        with privileges_dropped():
            code = cli.main(command.split())
    finally:
        path.chmod(0o755)
    told = capsys.readouterr()
    said = told.out + told.err
    assert code and path.name in said and "ermission denied" in said
    assert not any(word in said for word in ("Traceback", "damaged", "delete", "copy it again", "train again"))


@pytest.mark.parametrize(
    "command",
    [
        LOCALIZE.replace("found", "closed"),
        "extract clips/clip1.mp4 --out closed --workers 0",
        " ".join(["train --store store --out closed --epochs 1", *TRAIN]),
        "data compare store store --out closed",
        "export-h5 store closed/h5 --segments 2",
        "data render --out closed --clips 1 --long-videos 0 --workers 0",
    ],
)
def test_a_folder_that_only_looks_as_if_it_could_be_written_to(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As over NFS with another root, the system's answer beforehand is yes: `os.access` asks for the real user."""
    (place / "closed").mkdir(mode=0o555)
    with privileges_dropped():
        assert cli.main(command.split()) == 2
    said = capsys.readouterr().err
    assert "closed" in said and ("ermission denied" in said or "cannot be written to" in said)
    assert "Traceback" not in said and not os.listdir(place / "closed")


def test_a_read_only_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Any, *_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    monkeypatch.setattr("avel.files.os.open", read_only)
    with pytest.raises(AvelError, match=r"cannot write .*store\.json: Read-only file system"):
        write_file(tmp_path / "store.json", "new")


# --- terminals ---


def output(monkeypatch: pytest.MonkeyPatch, encoding: str, *streams: str) -> dict[str, io.TextIOWrapper]:
    made = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in streams}
    for name, stream in made.items():
        monkeypatch.setattr(sys, name, stream)
    return made


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_letters_that_the_terminal_lacks_are_written_out(
    encoding: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("clips/clip1.mp4", "\U0001f600 会.mp4")
    streams = output(monkeypatch, encoding, "stdout", "stderr")
    assert cli.main(["localize", "\U0001f600 会.mp4", "--model", "run", "--formats", "json"]) == 0
    assert cli.main(["localize", "no \U0001f600.mp4", "--model", "run"]) == 2
    assert cli.main(["data", "check", "\U0001f600"]) == 2
    said = {name: stream.buffer.getvalue().decode(encoding) for name, stream in streams.items()}  # type: ignore[attr-defined]
    assert r"localized/\U0001f600 \u4f1a.json" in said["stdout"]
    assert r"no \U0001f600.mp4" in said["stderr"] and "decode" in said["stderr"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_full_output_is_an_error(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, name, full)
    assert cli.main(["data", "check", "store" if name == "stdout" else "nowhere"]) == 2
    if name == "stdout":
        assert "cannot write to standard output: No space left" in capsys.readouterr().err
    with suppress(OSError):
        full.close()


def test_a_reader_of_a_pipe_may_leave(place: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "avel", "data", "check", "store"]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert found.returncode == 141 and "Traceback" not in found.stderr and "Error" not in found.stderr


# --- two at once ---


@pytest.mark.parametrize("alike", [True, False])
def test_two_that_localize_one_video_into_one_folder(alike: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes while the first draws: the files are all of one, and the other says so where it differs."""
    assert cli.main(["localize", "clips/clip1.mp4", "--model", "run", "--formats", "json"]) == 0
    first = Timeline.from_json("localized/clip1.json")
    second = first if alike else replace(first, threshold=0.7, tags={**first.tags, FINGERPRINT: "0" * 16})
    out, formats = place / "out", ["json", "csv", "png", "html"]

    def draw(_: Timeline, path: Path) -> None:
        write_file(path, b"a picture")
        if not (out / "clip1.json").exists():
            monkeypatch.setattr(avel.present, "draw", lambda _, path: write_file(path, b"a picture"))
            present(second, out, "clip1", formats)

    monkeypatch.setattr(avel.present, "draw", draw)
    if alike:
        present(first, out, "clip1", formats)
    else:
        with pytest.raises(AvelError, match="this run would write something else"):
            present(first, out, "clip1", formats)
    assert sorted(os.listdir(out)) == ["clip1.clip.mp4", "clip1.csv", "clip1.html", "clip1.json", "clip1.png"]
    assert Timeline.from_json(out / "clip1.json").threshold == second.threshold


def test_one_that_gives_its_files_their_names_is_waited_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["localize", "clips/clip1.mp4", "--model", "run", "--formats", "json"]) == 0
    timeline = Timeline.from_json("localized/clip1.json")
    monkeypatch.setattr(avel.present, "_PATIENCE", 0.1)
    (place / "out").mkdir()
    with held_alone(place / "out"), pytest.raises(AvelError, match="another run is writing to"):
        present(timeline, place / "out", "clip1", ["json", "csv"])
    assert not os.listdir(place / "out")
    present(timeline, place / "out", "clip1", ["json", "csv"])
    assert len(os.listdir(place / "out")) == 2

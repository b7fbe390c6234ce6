"""Writing: all of it or nothing, and a full disk said as such."""

import errno
import os
import resource
from pathlib import Path

import pytest

from avel.errors import AvelError
from avel.files import replacing, replacing_folder, write_file


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_file(file, "old")
    write_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_file(file, "old")
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_kill_left_behind_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_text("of a killed run, and longer than the new content")
    write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_no_room_says_so(number: int, tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="could not write"), replacing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_another_error_of_the_system_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), replacing(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "denied")


def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_file(file, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(AvelError, match="room"):
            write_file(file, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "folder"
    with replacing_folder(out) as temporary:
        (temporary / "old").write_text("old")
        assert not out.exists()
    with pytest.raises(ZeroDivisionError), replacing_folder(out) as temporary:
        (temporary / "new").write_text(str(1 / 0))
    assert os.listdir(out) == ["old"] and os.listdir(out.parent) == ["folder"]
    with replacing_folder(out) as temporary:
        (temporary / "new").touch()
    assert os.listdir(out) == ["new"] and os.listdir(out.parent) == ["folder"]


def test_a_folder_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="could not write") as error, replacing_folder(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "kept" not in error.value.do and not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(AvelError, match="cannot write"), replacing_folder(tmp_path / "file" / "folder"):
        pass

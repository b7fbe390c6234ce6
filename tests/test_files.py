"""Writing: all of it or nothing, and a full disk said as such."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from avel.errors import AvelError
from avel.files import (
    check_folder,
    claim_folder,
    is_work_folder,
    link_or_copy,
    make_work_folder,
    refuse_foreign,
    refuse_foreign_json,
    remove_work_folder,
    replacing,
    replacing_folder,
    require_space,
    through_no_link,
    together,
    write_file,
)


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


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from avel.files import replacing, replacing_folder
place = Path(sys.argv[1]) / "target"
with replacing(place), replacing_folder(place):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_what_a_kill_left_behind(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    left = os.listdir(tmp_path)
    assert len(left) == 2 and all(name.startswith(".avel-") for name in left)
    write_file(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"]


def test_the_next_write_leaves_what_is_not_ours_or_is_in_use(tmp_path: Path) -> None:
    theirs = [".file.tmp", ".avel-0123.tmp", ".avel-0123456789abcdef.tmp.mp4", "notes.tmp"]
    for name in theirs:
        (tmp_path / name).touch()
    (tmp_path / ".avel-0123456789abcdef.tmp").mkdir()  # a folder without our mark
    (tmp_path / ".avel-1123456789abcdef.tmp").symlink_to(tmp_path / "notes.tmp")
    with replacing(tmp_path / "one") as temporary:
        write_file(tmp_path / "two", "2")
        temporary.write_text("1")
    kept = {*theirs, ".avel-0123456789abcdef.tmp", ".avel-1123456789abcdef.tmp", "one", "two"}
    assert set(os.listdir(tmp_path)) == kept and (tmp_path / "one").read_text() == "1"


def test_two_at_one_target_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one" and os.listdir(tmp_path) == ["file"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Neither one with the name that temporary files once had, nor one in the target's place, nor one that is ours."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("precious")
    folder.mkdir()
    for name in (".file.tmp", "file", ".avel-0123456789abcdef.tmp"):
        (folder / name).symlink_to(victim)
    write_file(folder / "file", "new")
    assert victim.read_text() == "precious"
    assert (folder / "file").read_text() == "new" and not (folder / "file").is_symlink()
    with pytest.raises(OSError), open(folder / ".file.tmp", "ab", opener=through_no_link):
        pass


def test_a_name_that_is_guessed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".avel-{'0' * 16}.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(AvelError, match="File exists"):
        write_file(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_target_with_the_longest_of_names(tmp_path: Path) -> None:
    write_file(tmp_path / ("x" * 255), "new")
    assert os.listdir(tmp_path) == ["x" * 255]


def test_files_written_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    (tmp_path / "media").write_text("media")
    with pytest.raises(ZeroDivisionError), together() as now:
        write_file(tmp_path / "one", "new")
        assert now(tmp_path / "one").read_text() == "new"
        write_file(tmp_path / "two", str(1 / 0))
    assert (tmp_path / "one").read_text() == "old" and sorted(os.listdir(tmp_path)) == ["media", "one"]
    with together():
        write_file(tmp_path / "one", "new")
        write_file(tmp_path / "two", "2")
        link_or_copy(tmp_path / "media", tmp_path / "linked")
        assert (tmp_path / "one").read_text() == "old" and not (tmp_path / "linked").exists()
    assert sorted(os.listdir(tmp_path)) == ["linked", "media", "one", "two"]
    assert (tmp_path / "one").read_text() == "new" and os.path.samefile(tmp_path / "linked", tmp_path / "media")


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_link)
    (tmp_path / "media").write_text("media")
    link_or_copy(tmp_path / "media", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "media" and sorted(os.listdir(tmp_path)) == ["copy", "media"]


def test_only_a_folder_with_our_mark_is_removed(tmp_path: Path) -> None:
    work, theirs, link = tmp_path / "work", tmp_path / "theirs", tmp_path / "link"
    make_work_folder(work)
    make_work_folder(work)
    (work / "part").touch()
    theirs.mkdir()
    (theirs / "video.mp4").touch()
    link.symlink_to(work)
    assert is_work_folder(work) and not is_work_folder(theirs) and not is_work_folder(link)
    for folder in (theirs, link):
        with pytest.raises(AvelError, match="was not made by avel"):
            make_work_folder(folder)
        remove_work_folder(folder)
    assert (work / "part").exists() and (theirs / "video.mp4").exists()
    remove_work_folder(work)
    assert not work.exists()


def test_an_output_folder_may_lie_in_the_input_but_not_around_it(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "clips")
    (tmp_path / "clips.csv").touch()
    for out in ("clips/store", "clips2"):
        check_folder(tmp_path / out, tmp_path / "clips", tmp_path / "clips.csv")
    check_folder(tmp_path, tmp_path / "clips.csv")  # a file of input may lie in it
    for out in ("", "clips", "link"):
        with pytest.raises(AvelError, match="output folder"):
            check_folder(tmp_path / out, tmp_path / "clips.csv", tmp_path / "clips")


def test_a_folder_is_claimed_by_its_mark(tmp_path: Path) -> None:
    """New and empty folders may be filled, and folders with the mark; no other. Leftovers of a kill do not count."""
    out = tmp_path / "a" / "b"
    assert not claim_folder(out, "mark.json", "a world") and out.is_dir()
    (out / ".avel-0123456789abcdef.tmp").touch()
    assert not claim_folder(out, "mark.json", "a world") and not [*out.iterdir()]
    (out / "videos").mkdir()
    (out / "videos" / "mine.mp4").touch()
    assert not claim_folder(out, "mark.json", "a world", content=("clips.csv",))
    for content, named in ((("*",), "videos"), (("clips.csv", "videos/*"), "videos/mine.mp4")):
        with pytest.raises(AvelError, match=f"holds {named} but no mark.json\n.*a new or empty folder, or a world"):
            claim_folder(out, "mark.json", "a world", content=content)
    (out / "mark.json").touch()
    assert claim_folder(out, "mark.json", "a world")


def test_a_disk_with_too_little_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=2 * 10**9))
    require_space(tmp_path / "not" / "yet", 2 * 10**9, "the store")
    with pytest.raises(AvelError) as caught:
        require_space(tmp_path / "not" / "yet", 3 * 10**9, "the store")
    assert asked == [tmp_path, tmp_path] and caught.value.found == f"2.00 GB are free on the disk of {tmp_path}/not/yet"
    assert caught.value.expected == "3.00 GB, which the store will take" and "--out" in caught.value.do


def test_a_file_of_somebody_else_is_not_taken_for_ours(tmp_path: Path) -> None:
    file = tmp_path / "file"
    refuse_foreign(file, lambda data: data == b"ours")
    file.write_text("ours")
    refuse_foreign(file, lambda data: data == b"ours")
    file.write_text("theirs")
    with pytest.raises(AvelError, match="was not written by avel"):
        refuse_foreign(file, lambda data: data == b"ours")
    with pytest.raises(AvelError, match="was not written by avel"):
        refuse_foreign(file, lambda data: bool(int(data)))


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
    (out.parent / ".folder.old").mkdir()  # of the user
    with replacing_folder(out) as temporary:
        (temporary / "new").touch()
    assert os.listdir(out) == ["new"] and sorted(os.listdir(out.parent)) == [".folder.old", "folder"]


HALF_WAY = """
import os, signal, sys
from avel.files import replacing_folder
true_replace = os.replace
def replace(a, b):
    true_replace(a, b)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
with replacing_folder(sys.argv[1]) as temporary:
    (temporary / "new").touch()
"""


def test_a_folder_is_there_again_after_a_kill_between_its_renames(tmp_path: Path) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    (out / "old").touch()
    killed = subprocess.run([sys.executable, "-c", HALF_WAY, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    with pytest.raises(ZeroDivisionError), replacing_folder(out):
        assert os.listdir(out) == ["old"]
        raise ZeroDivisionError
    assert os.listdir(out) == ["old"] and os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="could not write") as error, replacing_folder(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "kept" not in error.value.do and not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(AvelError, match="cannot write"), replacing_folder(tmp_path / "file" / "folder"):
        pass


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b"null", b'{"other": 1}'])
def test_what_is_not_ours_is_not_overwritten_whatever_it_holds(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "comparison.json"
    file.write_bytes(content)
    with pytest.raises(AvelError, match="was not written by avel"):
        refuse_foreign_json(file, {"clips"})
    assert file.read_bytes() == content

"""Processes that may die: the task that kills one has failed, and the others are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from media import read_failures, write_video
from worker_tasks import GIB, prepare, prepare_badly

from avel.data.store import open_store
from avel.errors import AvelError
from avel.features.extract import extract
from avel.features.recipe import Recipe
from avel.workers import Limits, Worker, in_workers

LIMITS = Limits(seconds=20, memory=GIB // 4)
Clips = Callable[[Path, int], Path]

CAUSES = {
    f"signal {signal.SIGSEGV:d}": "its process crashed or was killed (SIGSEGV)",
    f"signal {signal.SIGKILL:d}": "its process crashed or was killed (SIGKILL)",
    "exit 3": "its process ended (exit code 3)",
    "exit 0": "its process ended (exit code 0)",
    "hold 0.3": "over the memory limit of 0.25 GiB",
    "raise": "unexpected ZeroDivisionError: by nothing (worker_tasks.py line ",
}


def test_what_kills_a_worker_has_failed_and_the_rest_go_on() -> None:
    tasks = ["good 0"]
    for index, task in enumerate(CAUSES, start=1):
        tasks += [task, f"good {index}"]
    found = dict(in_workers(tasks, 2, prepare, ("done",), LIMITS))
    assert sorted(found) == sorted(tasks)
    for task, outcome in found.items():
        assert outcome.startswith(CAUSES.get(task, f"done {task}")), task


def test_a_task_that_hangs_has_failed_and_one_that_gets_on_has_not() -> None:
    found = dict(in_workers(["sleep 60", "plod 3", "good"], 2, prepare, ("done",), Limits(1.5, GIB)))
    assert found == {
        "sleep 60": "no progress for 1.5 s, the time limit",
        "plod 3": "done plod 3",
        "good": "done good",
    }


def test_a_used_process_that_dies_is_no_fault_of_the_task() -> None:
    tasks = ["good", "second", "second", "good"]
    assert [outcome for _, outcome in in_workers(tasks, 1, prepare, ("done",), LIMITS)] == [f"done {t}" for t in tasks]


def test_a_worker_that_was_killed_while_idle_is_replaced() -> None:
    worker: Worker[str, str] = Worker(prepare, ("done",), LIMITS)
    try:
        assert worker.do("good") == "done good"
        assert worker._process.pid is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.join()
        assert worker.do("better") == "done better"
    finally:
        worker.end()


def test_what_is_no_fault_of_a_task_ends_all() -> None:
    with pytest.raises(AvelError, match="no room"):
        list(in_workers(["good", "refuse", "good"], 2, prepare, ("done",), LIMITS))
    with pytest.raises(AvelError, match="no weights"):
        list(in_workers(["good"], 1, prepare_badly, ("refuse",), LIMITS))
    with pytest.raises(AvelError, match=r"could not start: its process ended \(exit code 7\)"):
        list(in_workers(["good"], 1, prepare_badly, ("die",), LIMITS))
    with pytest.raises(AvelError, match=r"uses 0\.\d+ GiB before its first clip; the memory limit is 0\.00195 GiB"):
        list(in_workers(["good"], 1, prepare_badly, ("never",), Limits(20, 2**21)))


def test_a_script_without_a_guard_is_not_run_again_by_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import worker_tasks\n"
        "from avel.workers import Limits, in_workers\n"
        "print(dict(in_workers(['good'], 1, worker_tasks.prepare, ('done',), Limits(20, 2**30))))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    found = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert found.stdout == "{'good': 'done good'}\n", found.stderr


def test_without_limits_and_without_workers() -> None:
    causes = ("signal 9", "good")
    assert dict(in_workers(causes, 1, prepare, ("done",)))["signal 9"].endswith("(SIGKILL)")
    done = in_workers(["good", "refuse", "good"], 0, prepare, ("done",))
    assert next(done) == ("good", "done good")
    with pytest.raises(AvelError, match="no room"):
        next(done)


def test_no_tasks() -> None:
    assert list(in_workers([], 0, prepare, ("done",), LIMITS)) == []


@pytest.mark.slow
def test_a_clip_over_its_memory_is_a_failed_clip(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 3)
    write_video(tmp_path / "clips" / "clip1.mp4", seconds=1, frame_rate=2, size=(6144, 4096))
    report = extract(table, tmp_path / "store", Recipe(clip_memory_limit=0.14), workers=2)
    assert [failure["id"] for failure in report.failed] == ["clip1.mp4"] and report.done == 2
    assert report.failed[0]["cause"].startswith("over the memory limit of 0.14 GiB")
    assert read_failures(tmp_path / "store") == report.failed
    assert [clip.id for clip in open_store(tmp_path / "store").clips] == ["clip0.mp4", "clip2.mp4"]
    assert extract(table, tmp_path / "store", workers=2).failed == []  # with the room that it needs


def test_limits_of_a_clip(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 2)
    with pytest.raises(AvelError, match=r"none of the 1 clips could be used.*no progress for 1e-06 s"):
        extract(table.parent / "clip0.mp4", tmp_path / "store", Recipe(clip_seconds_limit=1e-6))
    for wrong in ({"clip_seconds_limit": 0}, {"clip_memory_limit": -1}, {"clip_memory_limit": float("nan")}):
        with pytest.raises(AvelError, match="for a clip"):
            extract(table, tmp_path / "store", Recipe(**wrong))  # type: ignore[arg-type]


def test_engines(tiny_clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tiny_clips(tmp_path / "clips", 1)
    with pytest.raises(AvelError, match="no engine 'spark'"):
        extract(table, tmp_path / "store", engine="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AvelError, match=r'pip install "avel\[ray\]"'):
        extract(table, tmp_path / "store", engine="ray")

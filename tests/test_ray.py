"""Extraction on Ray: the same store as on this machine's own processes, and workers that may die there too."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from media import read_failures
from test_extract import contents
from test_workers import CAUSES, LIMITS
from worker_tasks import prepare, prepare_badly

from avel.errors import AvelError
from avel.features.extract import extract
from avel.features.recipe import Recipe
from avel.workers import on_ray

if not os.environ.get("AVEL_PARITY"):  # `make parity` must not pass without it
    pytest.importorskip("ray.data", reason="Ray with its data part is not installed; see the extra `ray`")
ray = importlib.import_module("ray")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests of this file, since a cluster takes many seconds to start; its processes find these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
        ray.init(num_cpus=2, log_to_driver=False)
        yield
        ray.shutdown()


def test_the_same_store(tiny_clips: Callable[[Path, int], Path], tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 6)
    broken = tmp_path / "clips" / "clip3.mp4"
    broken.write_bytes(broken.read_bytes()[:3000])
    extract(table, tmp_path / "local", workers=2)
    seen: list[tuple[str, int, int]] = []
    report = extract(
        table,
        tmp_path / "ray",
        Recipe(clip_seconds_limit=60),
        engine="ray",
        workers=2,
        progress=lambda *now: seen.append(now),
    )
    assert report.done == 5 and read_failures(tmp_path / "ray") == report.failed
    assert [now for now in seen if now[0] == "extract"] == [("extract", k, 6) for k in range(7)]
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    again = extract(table, tmp_path / "ray", engine="ray")
    assert (again.done, again.skipped) == (0, 5)


def test_what_kills_a_worker_has_failed_and_the_rest_go_on() -> None:
    tasks = ["good 0", f"signal {signal.SIGSEGV:d}", "good 1", "exit 3", "hold 0.3", "raise", "good 2"]
    found = dict(on_ray(tasks, 2, prepare, ("done",), LIMITS))
    assert sorted(found) == sorted(tasks)
    for task, outcome in found.items():
        assert outcome.startswith(CAUSES.get(task, f"done {task}")), task


def test_what_is_no_fault_of_a_task_ends_all() -> None:
    with pytest.raises(AvelError, match="no room"):
        list(on_ray(["good", "refuse", "good"], 2, prepare, ("done",), LIMITS))
    with pytest.raises(AvelError, match="no weights"):
        list(on_ray(["good"], 1, prepare_badly, ("refuse",), LIMITS))

"""``workers`` means one thing everywhere: left out, one per processor; 0, none; a negative number is a mistake."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ave_files import write_ave

from avel import cli
from avel import workers as workers_module
from avel.data.ave.importing import import_ave
from avel.demo import demo
from avel.errors import AvelError
from avel.features.estimate import estimate_seconds
from avel.features.extract import extract
from avel.verbs import parse
from avel.workers import in_threads, worker_count
from avel.worlds.rendered.render import render
from avel.worlds.simulated.simulate import simulate

Clips = Callable[[Path, int], Path]

#: Verb, its words, and the Python that it calls.
VERBS = {
    "extract": (["extract", "clip.mp4", "--out", "out"], "avel.features.extract.extract"),
    "render": (["data", "render", "--out", "out"], "avel.worlds.rendered.render.render"),
    "simulate": (["data", "simulate", "--out", "out"], "avel.worlds.simulated.simulate.simulate"),
    "import-ave": (["data", "import-ave", "ave", "--out", "out"], "avel.data.ave.importing.import_ave"),
    "demo": (["demo", "--out", "out"], "avel.demo.demo"),
}


def test_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module.os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    assert (worker_count(None), worker_count(0), worker_count(7)) == (3, 0, 7)
    monkeypatch.delattr(workers_module.os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(workers_module.os, "cpu_count", lambda: 6)
    assert worker_count(None) == 6
    with pytest.raises(AvelError, match="-1 workers"):
        worker_count(-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_tasks_come_with_their_results_and_none_begins_after_an_error(workers: int) -> None:
    assert sorted(in_threads(lambda task: task * task, [3, 1, 2], workers)) == [(1, 1), (2, 4), (3, 9)]
    begun = []

    def refuse(task: int) -> None:
        begun.append(task)
        if task == 0:
            raise AvelError("a fault", "none", "nothing")
        time.sleep(0.02)

    with pytest.raises(AvelError, match="a fault"):
        list(in_threads(refuse, range(1000), workers))
    assert len(begun) < 1000


def test_without_workers_the_caller_does_the_tasks_one_by_one() -> None:
    done = []
    for task, thread in in_threads(lambda task: (done.append(task), threading.get_ident())[1], [1, 2, 3], 0):
        assert thread == threading.get_ident() and done[-1] == task


@pytest.fixture
def uses(tmp_path: Path, tiny_clips: Clips) -> dict[str, Callable[..., Any]]:
    """Everything in Python that takes ``workers``, on something small, writing to ``tmp_path / "out"``."""
    table, out = tiny_clips(tmp_path / "clips", 2), tmp_path / "out"
    folder = write_ave(tmp_path / "ave")
    return {
        "extract": lambda workers: extract(table, out, workers=workers),
        "estimate": lambda workers: estimate_seconds(table, workers=workers),
        "render": lambda workers: render(out, clips=2, long_videos=0, seconds=2, workers=workers),
        "simulate": lambda workers: simulate(
            out, videos=6, grid=(1, 1), visual_dim=2, background_videos=0, workers=workers
        ),
        "import_ave": lambda workers: import_ave(folder, out, workers=workers),
        "demo": lambda workers: demo(out, clips=20, long_videos=0, epochs=1, workers=workers),
    }


@pytest.mark.parametrize("name", ["extract", "render", "simulate", "import_ave"])
def test_no_workers_start_no_process_and_no_pool(
    name: str, uses: dict[str, Callable[..., Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("avel.workers.ThreadPoolExecutor", refuse)
    monkeypatch.setattr("avel.workers.Worker", refuse)
    with pytest.raises(AssertionError, match="a worker was started"):
        uses[name](2)
    uses[name](0)
    assert any(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["extract", "estimate", "render", "simulate", "import_ave", "demo"])
def test_a_negative_number_is_refused_before_anything_is_written(
    name: str, uses: dict[str, Callable[..., Any]], tmp_path: Path
) -> None:
    with pytest.raises(AvelError, match="-1 workers"):
        uses[name](-1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("given", "taken"), [([], None), (["--workers", "0"], 0), (["--workers", "3"], 3)])
def test_the_command_line_hands_the_number_on_as_it_is(
    verb: str, given: list[str], taken: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").touch()
    words, function = VERBS[verb]
    seen = []

    def record(*_: object, workers: int | None, **__: object) -> None:
        seen.append(workers)
        raise AvelError("seen", "", "")

    run, chosen = parse([*words, *given], cli.VERBS)
    monkeypatch.setattr(function, record)
    with pytest.raises(AvelError, match="seen"):
        run(**chosen)
    assert seen == [taken]


def test_a_ray_cluster_needs_at_least_one(tiny_clips: Clips, tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="0 workers on a Ray cluster"):
        extract(tiny_clips(tmp_path / "clips", 1), tmp_path / "out", engine="ray", workers=0)
    assert not (tmp_path / "out").exists()


def test_an_estimate_without_workers_is_that_of_one(uses: dict[str, Callable[..., Any]]) -> None:
    assert 0 < uses["estimate"](0) < 60

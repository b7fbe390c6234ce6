"""How many workers to start, and threads that share a list of tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from avel.errors import AvelError

_Task = TypeVar("_Task")
_Done = TypeVar("_Done")


def processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def worker_count(workers: int | None) -> int:
    """How many workers to start: ``workers``, or one per processor where it is None.

    0 starts none: the caller then does the work itself, where a debugger can follow it.

    Raises:
        AvelError: a negative number.
    """
    if workers is None:
        return processors()
    if workers < 0:
        raise AvelError(
            f"{workers} workers", "0 or more; 0 does the work without any", "leave it out for one per processor"
        )
    return workers


def as_finished(
    function: Callable[[_Task], _Done], tasks: Sequence[_Task], workers: int
) -> Generator[tuple[_Task, _Done], None, None]:
    """Each task with ``function(task)`` as soon as it is done, by so many threads; by the caller's own where it is 0.

    After an error, or when the generator is closed, no further task is begun.
    """
    if workers == 0:
        for task in tasks:
            yield task, function(task)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(function, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)

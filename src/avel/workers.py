"""Parallel tasks: in processes that may die (`in_workers`), or in threads of this process (`in_threads`).

Decoders and encoders run in processes. A broken file can crash a decoder, hang it, or make it ask for all the memory.
Python's own pool breaks as a whole when one of its processes dies, and has no limits. Here each worker is watched on
its own: a task that kills it or exceeds a limit has failed, and a fresh process takes the next one. Arithmetic on
arrays in memory cannot crash on its input, and NumPy and PyTorch release the interpreter lock in their long loops:
threads are enough there, and share the arrays.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from signal import SIG_BLOCK, SIG_IGN, SIG_SETMASK, SIGINT, Signals, pthread_sigmask, signal
from types import ModuleType
from typing import Any, Generic, TypeVar

from avel.errors import AvelError
from avel.memory import keep_freed_memory

Task = TypeVar("Task")
Done = TypeVar("Done")

#: Does one task, and calls its second argument to report progress. Returns a result, or the cause of failure as a
#: string; raises AvelError for an error that is not the task's fault.
Work = Callable[[Task, Callable[[], None]], Done | str]

_COMMON_STORAGE = ("storage that all its machines see under the same paths", "run in a folder that they share")

LOOK_SECONDS = 0.1  # between two checks of memory and time


def processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def worker_count(workers: int | None) -> int:
    """How many workers to start: ``workers``, or one per processor if it is None.

    0 starts none: the caller then does the work itself, where a debugger can follow it.

    Raises:
        AvelError: the number is negative.
    """
    if workers is None:
        return processors()
    if workers < 0:
        raise AvelError(f"{workers} workers", "0 or more; 0 starts none", "leave it out for one worker per processor")
    return workers


def in_threads(
    function: Callable[[Task], Done], tasks: Sequence[Task], number: int
) -> Generator[tuple[Task, Done], None, None]:
    """Yield each task with ``function(task)`` as soon as it is done, on ``number`` threads; 0 means the caller's own.

    After an error, or once the generator is closed, no further task starts.
    """
    if number == 0:
        for task in tasks:
            yield task, function(task)
        return
    pool = ThreadPoolExecutor(number)
    try:
        futures = {pool.submit(function, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Limits:
    """Limits of one task.

    Attributes:
        seconds: time without progress, not in all: a video may have any length.
        memory: peak resident bytes of its process.
    """

    seconds: float
    memory: int


class Worker(Generic[Task, Done]):
    """One process, replaced whenever a task kills it.

    If a *used* process dies, its task is tried once more in a fresh one: memory left over from earlier tasks, or being
    the process that the kernel kills when memory runs out, is not the task's fault.

    Args:
        prepare: called in the process with ``arguments``; returns the function that does the tasks. It must be in a
            module that can be imported, not in the script that is run.
        arguments: arguments for ``prepare``.
        limits: limits of every task; None for none.
    """

    def __init__(
        self, prepare: Callable[..., Work[Task, Done]], arguments: Sequence[Any], limits: Limits | None
    ) -> None:
        self.task: Task | None = None
        self._prepare, self._arguments, self._limits = prepare, tuple(arguments), limits
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, os.getcwd(), self._prepare, self._arguments), daemon=True
        )
        with _worker_environment(), _without_script():
            self._process.start()
        theirs.close()
        self._prepared = self._used = False
        self._last_sign = time.monotonic()

    def give(self, task: Task) -> None:
        """Give the process its next task."""
        if not self._process.is_alive():
            self.end()
            self._start()
        self.task = task
        self._last_sign = time.monotonic()
        with suppress(OSError):  # it just died; `outcome` reports it
            self.pipe.send(task)

    def outcome(self) -> Done | str | None:
        """The result of the task, the cause of its failure, or None while it is running.

        Raises:
            AvelError: the work raised it, or the process died or exceeded its memory limit while it was prepared.
        """
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                self._last_sign, self._prepared = time.monotonic(), True
                if isinstance(message, AvelError):
                    raise message
                if message is not None:
                    self.task, self._used = None, True
                    return message
        except (EOFError, OSError):
            self._process.join()
            cause = _death(self._process.exitcode)
            if not self._prepared:
                raise AvelError(
                    f"a worker process could not start: {cause}",
                    "processes that can start and load what they need",
                    "see the messages above; try fewer --workers if memory is short",
                ) from None
            return self._failed(cause, again=self._used)
        if self._limits is None:
            return None
        if (held := peak_memory(self._process.pid)) > self._limits.memory:
            limit = f"{self._limits.memory / 2**30:.3g} GiB"
            if not self._prepared:
                raise AvelError(
                    f"a worker process uses {held / 2**30:.2f} GiB before its first clip; the memory limit is {limit}",
                    "a limit that leaves room for clips beside the extractors",
                    "raise --clip-memory-limit",
                )
            return self._failed(f"over the memory limit of {limit}", again=self._used)
        if self._prepared and time.monotonic() - self._last_sign > self._limits.seconds:
            return self._failed(f"no progress for {self._limits.seconds:g} s, the time limit", again=False)
        return None

    def do(self, task: Task) -> Done | str:
        """Do one task and wait for it; see `outcome`."""
        self.give(task)
        while (outcome := self.outcome()) is None:
            wait([self.pipe], LOOK_SECONDS)
        return outcome

    def _failed(self, cause: str, again: bool) -> str | None:
        task, self.task = self.task, None
        self.end()
        if again and task is not None:
            self.give(task)
            return None
        return cause

    def end(self) -> None:
        """Kill the process at once, even in the middle of a task."""
        self.pipe.close()
        self._process.kill()
        self._process.join()


def in_workers(
    tasks: Sequence[Task],
    number: int,
    prepare: Callable[..., Work[Task, Done]],
    arguments: Sequence[Any],
    limits: Limits | None = None,
) -> Generator[tuple[Task, Done | str], None, None]:
    """Do tasks in ``number`` processes on this machine; yield each with its result or the cause of its failure.

    Tasks are yielded in the order in which they finish. For ``prepare``, ``arguments`` and errors see `Worker`. If
    ``number`` is 0, this process does them one by one: without limits, and a crash ends everything.
    """
    if number == 0 and tasks:
        work = prepare(*arguments)
        for each in tasks:
            yield each, work(each, lambda: None)
        return
    waiting = deque(tasks)
    workers: list[Worker[Task, Done]] = []
    try:
        workers += (Worker(prepare, arguments, limits) for _ in range(number))
        while True:
            for worker in workers:
                if worker.task is None and waiting:
                    worker.give(waiting.popleft())
            busy = [worker for worker in workers if worker.task is not None]
            if not busy:
                return
            wait([worker.pipe for worker in busy], LOOK_SECONDS)
            for worker in busy:
                task, outcome = worker.task, worker.outcome()
                if task is not None and outcome is not None:
                    yield task, outcome
    finally:
        for worker in workers:
            worker.end()


def check_ray() -> None:
    """Raise AvelError if Ray is not installed."""
    if find_spec("ray") is None:
        raise AvelError("Ray is not installed", "Ray with its data part", 'pip install "avel[ray]"')


def on_ray(
    tasks: Sequence[Task],
    number: int | None,
    prepare: Callable[..., Work[Task, Done]],
    arguments: Sequence[Any],
    limits: Limits,
) -> Iterator[tuple[Task, Done | str]]:
    """As `in_workers`, on the Ray cluster that RAY_ADDRESS names or, without it, on one that is started here.

    Every Ray actor keeps a `Worker`, so that a task may crash or hang here, too. Files that the tasks read and write
    must be on storage that all machines see under the same paths.

    Args:
        number: most actors at once; None for one per processor of the cluster.

    Raises:
        AvelError: Ray is not installed, there is no such cluster, or as in `in_workers`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # and logs warnings about its own data library
    check_ray()
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs its plan and every stage
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AvelError(
                f"no Ray cluster: {error}",
                "the address of a cluster, or none to start one on this machine",
                "correct or unset the environment variable RAY_ADDRESS",
            ) from error
    directory = os.getcwd()

    class Actor:
        def __init__(self) -> None:
            self._worker: Worker[Task, Done] | None = None

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            # Lists, so that Ray leaves their content alone. No exceptions, as Ray would retry and print them at length.
            try:
                os.chdir(directory)
                self._worker = self._worker or Worker(prepare, arguments, limits)
                return {"index": row["index"], "outcome": [self._worker.do(row["task"][0])]}
            except AvelError as error:
                return {"index": row["index"], "outcome": [error]}
            except OSError as error:
                found = f"a machine of the cluster cannot work in {directory}: {error.strerror}"
                return {"index": row["index"], "outcome": [AvelError(found, *_COMMON_STORAGE)]}

    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        most = min(len(tasks), number or int(ray.cluster_resources().get("CPU", 1)))
        rows = [{"index": index, "task": [task]} for index, task in enumerate(tasks)]
        # one block per task, so that each is reported as soon as it is done
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Actor, compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most), num_cpus=1
        )
        for row in done.iter_rows():
            outcome = row["outcome"][0]
            if isinstance(outcome, AvelError):
                raise outcome
            yield tasks[row["index"]], outcome
    finally:
        if started:
            ray.shutdown()


def _serve(pipe: Connection, directory: str, prepare: Callable[..., Work[Any, Any]], arguments: Sequence[Any]) -> None:
    """The worker's side of the pipe. It sends None for progress, anything else as the outcome of a task."""
    signal(SIGINT, SIG_IGN)  # the parent handles Ctrl-C
    keep_freed_memory()
    tasks: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    os.chdir(directory)
    try:
        work = prepare(*arguments)
    except AvelError as error:
        pipe.send(error)
        return
    outcome: Any = None
    while True:
        try:
            pipe.send(outcome)
        except OSError:
            os._exit(1)  # the parent has ended
        task = tasks.get()
        try:
            outcome = work(task, lambda: pipe.send(None))
        except AvelError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001  a bug in avel on one file must not stop the others
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"unexpected {type(error).__name__}: {error} ({Path(where.filename).name} line {where.lineno})"


def _listen(pipe: Connection, tasks: SimpleQueue[Any]) -> None:
    """Receive tasks from the parent, and exit when it ends, however it ends."""
    try:
        while True:
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)


def peak_memory(pid: int | None) -> int:
    """A process's peak resident memory in bytes; 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 0


def _death(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"its process ended (exit code {code})"
    try:
        return f"its process crashed or was killed ({Signals(-code).name})"
    except ValueError:
        return f"its process was killed (signal {-code})"


#: Linear algebra on one thread, as there is a worker for each processor.
_WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextmanager
def _without_script() -> Iterator[None]:
    """Keep processes started inside from running the caller's script again, as multiprocessing normally does.

    Otherwise a script that calls `extract` at its top level would extract in every worker."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Give processes started inside their environment variables, and keep Ctrl-C from them from the start."""
    before = {name: os.environ.get(name) for name in _WORKER_ENVIRONMENT}
    os.environ.update(_WORKER_ENVIRONMENT)
    signals = pthread_sigmask(SIG_BLOCK, {SIGINT})  # which a new process inherits
    try:
        yield
    finally:
        pthread_sigmask(SIG_SETMASK, signals)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""Tasks done side by side: by processes that may die (`in_workers`), or by threads of this process (`in_threads`).

Decoders and encoders run in processes. A broken file can crash a decoder, hang it, or make it ask for all the memory
there is. Python's own pool breaks as a whole when one of its processes dies, and knows no limits. Here each worker is
watched by itself: the task of which it dies, or which goes over a limit, has failed, and a fresh process takes the next
one. Arithmetic on arrays that are in memory already cannot die of its input, and NumPy and PyTorch let go of the
interpreter in their long loops: threads are enough there, and share the arrays.
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

#: Does one task, and calls its second argument at every sign of progress. Returns a result, or the cause as a string
#: if the task cannot be done; raises AvelError for what is no fault of the task.
Work = Callable[[Task, Callable[[], None]], Done | str]

_COMMON_STORAGE = ("storage that all its machines see under the same paths", "run in a folder that they share")

LOOK_SECONDS = 0.1  # between two looks at the memory and the clock


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


def in_threads(
    function: Callable[[Task], Done], tasks: Sequence[Task], number: int
) -> Generator[tuple[Task, Done], None, None]:
    """Each task with ``function(task)`` as soon as it is done, by so many threads; by the caller's own where it is 0.

    After an error, or when the generator is closed, no further task is begun.
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
    """What one task may take.

    Attributes:
        seconds: without a sign of progress. Not in all: a video may be of any length.
        memory: resident bytes of its process, at their peak.
    """

    seconds: float
    memory: int


class Worker(Generic[Task, Done]):
    """One process, replaced whenever a task was the end of it.

    A task of which a *used* process dies is tried once more in a fresh one: the memory that earlier tasks left behind,
    or the kernel's choice of a victim when all memory is used up, is not its fault.

    Args:
        prepare: called in the process with ``arguments``; returns what does the tasks. A function of a module that can
            be imported, which the script that is run cannot.
        arguments: of ``prepare``.
        limits: for every task; None sets none.
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
        """Have the next task done."""
        if not self._process.is_alive():
            self.end()
            self._start()
        self.task = task
        self._last_sign = time.monotonic()
        with suppress(OSError):  # it died just now, as `outcome` will find
            self.pipe.send(task)

    def outcome(self) -> Done | str | None:
        """What became of the task: its result, the cause of its failure, or None while it is being done.

        Raises:
            AvelError: what the work raises; or the process dies, or is over its memory, before it has been prepared.
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
                    f"a worker process could not be prepared: {cause}",
                    "processes that can start and load what they need",
                    "look at the messages above; try fewer --workers if memory is short",
                ) from None
            return self._failed(cause, again=self._used)
        if self._limits is None:
            return None
        if (held := peak_memory(self._process.pid)) > self._limits.memory:
            limit = f"{self._limits.memory / 2**30:.3g} GiB"
            if not self._prepared:
                raise AvelError(
                    f"a worker process holds {held / 2**30:.2f} GiB before its first clip, the memory limit is {limit}",
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
        """End the process at once, in the middle of a task if need be."""
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
    """Do tasks on ``number`` processes of this machine; yields each with its result or the cause of its failure.

    They come in the order in which they finish. For ``prepare``, ``arguments`` and errors see `Worker`. With a number
    of 0 this process does them, one by one: no limit holds there, and a crash ends all.
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
    """Raises AvelError where Ray is not installed."""
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

    Every actor of Ray keeps a `Worker`, so that a task can crash or hang here as it can there. Files that the tasks
    read and write must be on storage that all machines see under the same paths.

    Args:
        number: actors at most; None for one per processor of the cluster.

    Raises:
        AvelError: Ray is not installed, there is no such cluster, or as `in_workers`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # and warn of what its own data part does
    check_ray()
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells its plan, and of every stage
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AvelError(
                f"no Ray cluster: {error}",
                "the address of a cluster, or none to start one on this machine",
                "see to the environment variable RAY_ADDRESS",
            ) from error
    directory = os.getcwd()

    class Actor:
        def __init__(self) -> None:
            self._worker: Worker[Task, Done] | None = None

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            # Lists, for Ray to leave alone what is in them. What is raised here it would try again, and tell at length.
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
        # a block for each task, so that each is told of when it is done
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
    """The worker's side. None is a sign of progress, anything else the outcome of a task."""
    signal(SIGINT, SIG_IGN)  # Ctrl-C is the parent's
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
        except Exception as error:  # noqa: BLE001  a fault of avel itself that one file brings out: the rest go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"unforeseen {type(error).__name__}: {error} ({Path(where.filename).name} line {where.lineno})"


def _listen(pipe: Connection, tasks: SimpleQueue[Any]) -> None:
    """Take tasks from the parent, and end with it, however it ends."""
    try:
        while True:
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)


def peak_memory(pid: int | None) -> int:
    """The most resident memory that a process has had, bytes; 0 where it has ended."""
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


#: Linear algebra on one thread, as there are as many workers as processors.
_WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextmanager
def _without_script() -> Iterator[None]:
    """Processes started inside do not run the caller's script again, as those of Python's multiprocessing do. A script
    that calls `extract` at its top level would extract in each worker."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Processes started inside get their environment variables, and ignore Ctrl-C from the start."""
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

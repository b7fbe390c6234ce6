"""What the workers of tests do: a module that imports little, as every fresh process imports it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from avel.errors import AvelError

GIB = 2**30

_served = 0  # tasks of this process


def prepare(word: str) -> Callable[[str, Callable[[], None]], str]:
    """What the workers of these tests do, each with a word of greeting."""

    def work(task: str, alive: Callable[[], None]) -> str:
        global _served
        _served += 1
        match task.split():
            case ["signal", number]:
                os.kill(os.getpid(), int(number))
            case ["exit", code]:
                os._exit(int(code))
            case ["sleep", seconds]:
                time.sleep(float(seconds))
            case ["plod", seconds]:
                for _ in range(round(float(seconds) / 0.1)):
                    time.sleep(0.1)
                    alive()
            case ["hold", size]:
                held = bytearray(int(float(size) * GIB))  # calloc: nothing is resident before it is written
                for start in range(0, len(held), 2**24):
                    held[start : start + 2**24] = b"\1" * len(held[start : start + 2**24])
                    alive()
            case ["raise"]:
                raise ZeroDivisionError("by nothing")
            case ["refuse"]:
                raise AvelError("no room", "room", "make some")
            case ["second"] if _served > 1:
                os.kill(os.getpid(), signal.SIGSEGV)
        return f"{word} {task}"

    return work


def prepare_badly(how: str) -> Callable[[str, Callable[[], None]], str]:
    """A worker that never comes to its work."""
    if how == "refuse":
        raise AvelError("no weights", "weights", "get them")
    if how == "never":
        time.sleep(600)
    os._exit(7)


def prepare_dying(_: object) -> Callable[[object, Callable[[], None]], object]:
    """Every task is the end of its process."""
    return lambda task, alive: os.kill(os.getpid(), signal.SIGKILL)


def prepare_timing(*_: object) -> Callable[[tuple[object, bool], Callable[[], None]], tuple[float, float]]:
    """A look at a clip for an estimate: every clip lasts 10 s, and each second of it takes half a second."""
    return lambda task, alive: (10.0, 0.5 if task[1] else 0.0)

"""What commands print: lines, bars of progress, and the state of a training."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from avel.errors import AvelError, AvelNotice
from avel.text import visible
from avel.types import Progress, Report, TrainStatus

SECONDS_BETWEEN_LINES = 60  # of a training with long epochs, if no bar can be drawn


class PlainConsole(Console):
    """A console that text from others cannot control: whatever a name holds, only visible characters are printed.

    A string is one line. Rich's own colours and bars stay, but it looks for no markup and no numbers in a text.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as rich does.

        Raises:
            AvelError: the output cannot be written, as to a file on a full disk.
            SystemExit: the reader of a pipe is gone.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            raise AvelError(
                f"cannot write to standard {'error' if self.stderr else 'output'}: {error.strerror}",
                "a terminal, or a file or pipe that takes what is printed",
                "free some space, or send it elsewhere, and run the same command again",
            ) from error

    def on_broken_pipe(self) -> None:
        """End quietly, as programs do that SIGPIPE ends. Python itself flushes once more."""
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise SystemExit(128 + signal.SIGPIPE)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text, keep_lines=True), segment.style)


def console(stderr: bool = False) -> PlainConsole:
    """The terminal. A string that is printed there is one line."""
    return PlainConsole(stderr=stderr)


def say(message: str) -> None:
    """Print a line to standard output."""
    console().print(message, soft_wrap=True)


def complain(message: str) -> None:
    """Print a message of one or more lines to standard error."""
    print_lines(f"{message}\n", stderr=True)


def print_lines(text: str, *, stderr: bool = False) -> None:
    """Print a text of one or more lines, each of which ends with a line feed."""
    console(stderr).print(Text(text), soft_wrap=True, end="")


def drop_unwritten_output() -> None:
    """Drop what standard output does not take: Python tries again when it ends, and would change the exit code."""
    try:
        if sys.stdout:  # None if it is closed
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def notices() -> Iterator[None]:
    """Print an `AvelNotice` as a line, without the place in the code that a warning names."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, AvelNotice):
                complain(f"note: {message}")
            else:
                shown(message, category, *place, **more)

        warnings.showwarning = show
        yield


@contextmanager
def bars() -> Iterator[Progress]:
    """A ``progress(stage, done, total)`` that draws one bar per stage, with the time left, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    # The time left comes from the last thousand steps, however long they took. By default rich forgets a step after
    # thirty seconds, but a clip or an epoch can take minutes.
    with Bars(*columns, *left, speed_estimate_period=math.inf, console=console(stderr=True)) as drawn:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            task = drawn.tasks[tasks[stage]] if stage in tasks else None
            if task is None or (task.finished and done < total):
                # What an earlier run did must not count for the time left.
                tasks[stage] = drawn.add_task(stage, total=total, completed=done)
            drawn.update(tasks[stage], completed=done, total=total)

        yield progress


@contextmanager
def training_bars() -> Iterator[Report]:
    """A ``report`` of training: a bar per seed with loss, accuracy and the time left, on standard error.

    Without a terminal, a line is printed at the end of each epoch, and one per minute within it.
    """
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    terminal = console(stderr=True)
    if not terminal.is_terminal or terminal.is_dumb_terminal:
        yield training_lines(complain)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    with Bars(*columns, *left, speed_estimate_period=math.inf, console=terminal) as drawn:
        tasks: dict[int, Any] = {}

        def report(status: TrainStatus) -> None:
            done = status.epoch - 1 + status.done
            if status.seed not in tasks:
                began = int(done)  # epochs of an earlier run must not count for the time left
                tasks[status.seed] = drawn.add_task("", total=status.epochs, completed=began)
            drawn.update(tasks[status.seed], completed=done, description=standing(status))

        yield report


def training_lines(tell: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> Report:
    """A ``report`` of training that gives ``tell`` a line at the end of each epoch, and one per minute within it."""
    began: dict[int, tuple[float, float]] = {}  # seed -> epochs done, and the time, at its first report
    told = now()

    def report(status: TrainStatus) -> None:
        nonlocal told
        done, at = status.epoch - 1 + status.done, now()
        first, since = began.setdefault(status.seed, (done, at))
        if status.done < 1 and at - told < SECONDS_BETWEEN_LINES:
            return
        told = at
        left = f", {clock((at - since) / (done - first) * (status.epochs - done))} left" if done > first else ""
        tell(standing(status) + left)

    return report


def standing(status: TrainStatus) -> str:
    """``seed 0, epoch 3/60, loss 1.2345, accuracy 0.5810, best 0.5900 at epoch 2``."""
    share = f" ({status.done:.0%})" if status.done < 1 else ""
    text = f"seed {status.seed}, epoch {status.epoch}/{status.epochs}{share}, loss {status.loss:.4f}"
    if status.accuracy is None or status.best_accuracy is None:
        return text
    return f"{text}, accuracy {status.accuracy:.4f}, best {status.best_accuracy:.4f} at epoch {status.best_epoch}"


def clock(seconds: float) -> str:
    """``45 s``, ``3 min``, ``1 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

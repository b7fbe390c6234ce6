"""A timeline for the terminal: a bar per class and the list of events, at any width, with or without colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from avel.plots import class_color, clock, shown_classes, tick_step
from avel.text import visible
from avel.timeline import Timeline
from avel.types import Span


class PlainConsole(Console):
    """A terminal to which the text of others can do nothing: what is printed are letters, whatever a name holds.

    A string is one line; rich's own colours and bars stay. No guesses at markup and numbers.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text, keep_lines=True), segment.style)


def terminal_timeline(timeline: Timeline) -> TerminalTimeline:
    """What ``rich.print`` draws: one bar per class found (or labelled) over time, then the events as a table."""
    return TerminalTimeline(timeline)


@dataclass(frozen=True)
class TerminalTimeline:
    """A rich renderable; it takes the width of the terminal and ASCII where it knows no more."""

    timeline: Timeline

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        timeline = self.timeline
        length = max(timeline.duration, len(timeline.probabilities) * timeline.segment_seconds)
        both, found_only, missed, empty = "#+-." if options.ascii_only else "█▓░·"
        rows = shown_classes(timeline, at_least=0)
        names = [_one_line(timeline.classes[index]) for index in rows]
        margin = min(max((len(name) for name in names), default=0), options.max_width // 3)
        width = max(options.max_width - margin - 1, 10)
        for index, name in zip(rows, names, strict=True):
            label = timeline.classes[index]
            found = _cells([event for event in timeline.events if event.label == label], length, width)
            truth = _cells([span for span in timeline.truth or () if span.label == label], length, width)
            line = Text(no_wrap=True, overflow="crop")
            line.append(_cut(name, margin, options.ascii_only).rjust(margin) + " ")
            for is_found, is_true in zip(found, truth, strict=True):
                color = class_color(index) if is_found or is_true else "bright_black"
                mark = (both if is_true or timeline.truth is None else found_only) if is_found else missed
                line.append(mark if is_found or is_true else empty, style=color)
            yield line
        yield _axis(length, margin + 1, width)
        if timeline.truth is not None:
            yield Text(f"{both} found   {found_only} found, not in the truth   {missed} missed", style="bright_black")
        if not timeline.events:
            yield Text("No event found.")
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("start", "end"):
            table.add_column(heading, justify="right")
        table.add_column("label", overflow="fold")
        table.add_column("score", justify="right")
        for event in timeline.events:
            color = class_color(timeline.classes.index(event.label))
            table.add_row(
                clock(event.start, length, 1),
                clock(event.end, length, 1),
                Text.assemble(("#" if options.ascii_only else "■", color), " ", _one_line(event.label)),
                f"{event.score:.2f}",
            )
        yield table


def _cells(spans: list[Span], length: float, width: int) -> list[bool]:
    """Which of ``width`` cells hold a span: those whose middle does, and one at least, so that none gets lost."""
    cells = [False] * width
    for span in spans:
        if span.start >= length:  # a label may lie behind the end of the clip
            continue
        first = min(round(span.start / length * width), width - 1)
        last = min(max(round(span.end / length * width), first + 1), width)
        cells[first:last] = [True] * (last - first)
    return cells


def _axis(length: float, margin: int, width: int) -> Text:
    step = tick_step(length, most=max(width // 9, 1))
    line = [" "] * (margin + width)
    tick = 0.0
    while tick <= length * 1.0001:
        label = clock(tick, length, int(step < 1))
        place = min(margin + round(tick / length * width), margin + width - len(label))
        line[place : place + len(label)] = label
        tick += step
    return Text("".join(line), style="bright_black", no_wrap=True, overflow="crop")


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _cut(text: str, most: int, ascii_only: bool) -> str:
    return text if len(text) <= most else text[: most - 1] + ("~" if ascii_only else "…")

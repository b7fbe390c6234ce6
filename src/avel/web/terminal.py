"""A timeline for the terminal: a lane per class and the list of events, at any width, with or without colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from avel.plots import class_color, clock, shown_classes, tick_step
from avel.text import visible
from avel.timeline import Timeline
from avel.types import Span

# Nothing, a trace, then the steps up to the whole of a mark.
_BLOCKS, _ASCII = "·:▁▂▃▄▅▆▇█", ".:-=#"


def terminal_timeline(timeline: Timeline) -> TerminalTimeline:
    """What ``rich.print`` draws: a lane per class with what was found and, if known, the truth; then the events."""
    return TerminalTimeline(timeline)


@dataclass(frozen=True)
class TerminalTimeline:
    """A rich renderable. It takes the width of the terminal, and ASCII if the terminal shows nothing else."""

    timeline: Timeline

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        timeline = self.timeline
        length = max(timeline.duration, len(timeline.probabilities) * timeline.segment_seconds)
        marks = _ASCII if options.ascii_only else _BLOCKS
        rows = [
            (name, [span for span in spans if span.label == timeline.classes[index]], class_color(index))
            for index in shown_classes(timeline, at_least=0)
            for name, spans in ((_one_line(timeline.classes[index]), timeline.events), ("truth", timeline.truth))
            if spans is not None
        ]
        margin = min(max((len(name) for name, _, _ in rows), default=0), options.max_width // 3)
        width = max(options.max_width - margin - 1, 10)
        drawn = ""
        for name, spans, color in rows:
            line = Text(no_wrap=True, overflow="crop")
            line.append(_cut(name, margin, options.ascii_only).rjust(margin) + " ")
            for mark in _lane(spans, length, width, marks):
                line.append(mark, style="bright_black" if mark == marks[0] else color)
            drawn += line.plain[margin + 1 :]
            yield line
        yield _axis(length, margin + 1, width)
        if set(drawn) - {marks[0], marks[-1]}:
            part = marks[len(marks) // 2]
            legend = f"A mark is {length / width:.2g} s: {marks[-1]} all of it, {part} a part, {marks[1]} a trace."
            yield Text(legend, style="bright_black")
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


def _lane(spans: Sequence[Span], length: float, width: int, marks: str) -> str:
    """``width`` marks, each as full as the spans cover its stretch of time.

    Marks have few steps: what rounding leaves over goes to the next covered mark, so that the lane as a whole is as
    full as the time. A span too short for the first step leaves a trace, so that none gets lost.
    """
    cover = [0.0] * width
    for span in spans:  # a label may lie after the end of the clip, or reach past it
        start, end = (min(second / length, 1.0) * width for second in (span.start, span.end))
        for place in range(int(start), min(math.ceil(end), width)):
            cover[place] += min(end, place + 1) - max(start, place)
    steps = len(marks) - 2  # after the empty mark and the trace
    left_over, lane = 0.0, ""
    for share in cover:
        share = min(round(share, 6), 1.0)
        step = steps if share == 1 else min(max(round((share + left_over) * steps), 0), steps) if share else 0
        left_over += share - step / steps
        lane += marks[step + 1 if step else int(share > 0)]
    return lane


def _axis(length: float, margin: int, width: int) -> Text:
    step = tick_step(length, most=max(width // max(9, 2 * len(clock(length, length)) + 1), 1))
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

"""One page over the pages of several videos: each with its events in a strip."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from avel.files import refuse_foreign, write_file
from avel.plots import class_color
from avel.text import counted
from avel.timeline import Timeline
from avel.web.page import _frame, _seconds, _swatch, _template, _text

_MARK = '<meta name="generator" content="avel index">'


def check_index(path: Path) -> None:
    """Raises AvelError if a file that avel did not write is in the place of an index page."""
    refuse_foreign(path, lambda content: _MARK.encode() in content)


def index_page(out: Path, videos: Sequence[tuple[Timeline, Path]], failed: Sequence[tuple[str, str]] = ()) -> None:
    """Write a page that links the pages of several videos.

    Args:
        out: the HTML file to write.
        videos: the timeline of each video and its page, in the folder of ``out``.
        failed: name and cause of each video that could not be used.

    Raises:
        AvelError: the disk is full, or a file that avel did not write is in the way.
    """
    check_index(out)
    number = sum(len(timeline.events) for timeline, _ in videos)
    content = _template("index.html").substitute(
        _frame(counted(len(videos), "video")),
        mark=_MARK,
        summary=f"{_seconds(sum(timeline.duration for timeline, _ in videos))} · {counted(number, 'event')} found",
        legend=_legend(videos),
        videos="".join(_entry(timeline, page) for timeline, page in videos),
        failed="".join(f"<li>{_text(name)}: {_text(cause)}</li>" for name, cause in failed),
        hide_failed="" if failed else " hidden",
    )
    write_file(out, content)


def _legend(videos: Sequence[tuple[Timeline, Path]]) -> str:
    """The classes found in any of the videos, each with its colour."""
    color = {event.label: timeline.classes.index(event.label) for timeline, _ in videos for event in timeline.events}
    return "".join(
        f"<li>{_swatch(index)} {_text(label)}</li>" for label, index in sorted(color.items(), key=lambda item: item[1])
    )


def _entry(timeline: Timeline, page: Path) -> str:
    name = Path(timeline.video).name
    found = Counter(event.label for event in timeline.events)
    told = ", ".join(f"{label} {count}" for label, count in found.items()) or "no event found"
    bars = "".join(
        f'<rect x="{event.start:g}" width="{min(event.end, timeline.duration) - event.start:g}" height="1" '
        f'fill="{class_color(timeline.classes.index(event.label))}"/>'
        for event in timeline.events
    )
    return (
        f'<li><h2><a href="{quote(os.fsencode(page.name))}">{_text(name)}</a></h2>'
        f"<p>{_seconds(timeline.duration)} · {_text(told)}</p>"
        f'<svg viewBox="0 0 {timeline.duration:g} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{_text(f"events of {name} over its length: {told}")}">{bars}</svg></li>'
    )

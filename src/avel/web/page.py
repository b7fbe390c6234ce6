"""Pages that open from a disk: one HTML file with everything in it, and the clip beside it.

Nothing is fetched from anywhere: styles, script, icon and pictures are inside the page.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import avel
from avel.files import link_or_copy, write_file
from avel.plots import class_color, clock, shown_classes, text_color, tick_step
from avel.text import visible
from avel.timeline import Timeline
from avel.types import BACKGROUND, Span

_CAPTIONS = {
    "curves": "Training: the loss and its terms, and the segment accuracy.",
    "confusion": "Held-out segments: what was there (rows), what was found (columns).",
    "bars": "Recall per class on the held-out segments.",
}


def timeline_page(timeline: Timeline, media: str | Path, out: str | Path, *, picture: str | Path | None = None) -> None:
    """Write one clip's page: the player, a timeline to click, the events, the probabilities.

    Args:
        timeline: of the clip.
        media: its file, hard-linked (or copied) beside the page as ``<name of the page>.clip.<suffix>``.
        out: the HTML file to write.
        picture: a PNG to embed, such as `avel.plots.timeline_picture` made.

    Raises:
        AvelError: the disk is full.
    """
    out = Path(out)
    name = Path(timeline.video).name
    number = len(timeline.events)
    content = _template("timeline.html").substitute(
        _frame(name),
        heading=_text(name),
        summary=f"{_seconds(timeline.duration)} · {number or 'no'} event{'' if number == 1 else 's'} found",
        clip=_clip(timeline, _beside(Path(media), out, out.stem), "page", picture, name),
        notes=_notes(timeline),
    )
    write_file(out, content)


def demo_page(
    out: str | Path,
    *,
    title: str,
    caption: str,
    rows: Sequence[Any],
    pictures: Mapping[str, str | Path],
    clips: Sequence[tuple[Timeline, str | Path, str | Path | None]],
    facts: Mapping[str, str],
) -> None:
    """Write the demo's page: a table, the pictures, then clips beside their timelines.

    Args:
        out: the HTML file to write; the clips are linked or copied beside it.
        title: heading of the page.
        caption: what the table shows.
        rows: dataclasses of one type, one per model; the first field is its name, numbers are shown to three decimals.
        pictures: PNGs by ``curves``, ``confusion``, ``bars``, in the order to show.
        clips: timeline, media file and timeline picture of each clip.
        facts: what else a reader should know, by name.

    Raises:
        AvelError: the disk is full.
    """
    out = Path(out)
    shown = []
    for number, (timeline, media, picture) in enumerate(clips, start=1):
        name = Path(timeline.video).name
        clip = _clip(timeline, _beside(Path(media), out, f"{out.stem}-{number}"), "beside", picture, name)
        shown.append(f"<h3>{_text(name)}</h3>\n{clip}")
    figures = [_figure(path, _CAPTIONS.get(key, key), _CAPTIONS.get(key, key), key) for key, path in pictures.items()]
    content = _template("demo.html").substitute(
        _frame(title),
        heading=_text(title),
        facts="".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts.items()),
        table=_table(caption, rows),
        figures="\n".join(figures),
        clips="\n".join(shown),
        notes=_notes(clips[0][0]) if clips else "",
    )
    write_file(out, content)


# Parts


def _clip(timeline: Timeline, media: str, layout: str, picture: str | Path | None, name: str) -> str:
    length = max(timeline.duration, len(timeline.probabilities) * timeline.segment_seconds)
    lanes = [("truth", _bars(timeline, timeline.truth, length, "truth: "))] if timeline.truth is not None else []
    lanes.append(("found", _bars(timeline, timeline.events, length, "")))
    rows = [f'<div class="name">{title}</div><div class="lane spans">{bars}</div>' for title, bars in lanes]
    for index in shown_classes(timeline):
        rows.append(
            f'<div class="name">{_swatch(index)}{_text(timeline.classes[index])}</div>'
            f'<div class="lane strip">{_strip(timeline, index, length)}</div>'
        )
    rows.append(f'<div class="name"></div><div class="lane ticks" aria-hidden="true">{_ticks(length)}</div>')
    events = "".join(
        f'<li><button type="button" data-start="{event.start:g}" data-end="{event.end:g}">{_swatch(index)}'
        f'<span class="what">{_text(event.label)}</span>'
        f'<span class="when">{clock(event.start, length, 1)} – {clock(event.end, length, 1)}</span>'
        f'<span class="score">{event.score:.2f}</span></button></li>'
        for event in timeline.events
        for index in [timeline.classes.index(event.label)]
    )
    data = {
        "length": length,
        "segment": timeline.segment_seconds,
        "names": [*map(visible, timeline.classes), BACKGROUND],
        "probabilities": np.round(timeline.probabilities, 3).tolist(),
    }
    caption = "Frames, with the model's attention where it found an event, above the sound and the timeline."
    embedded = "" if picture is None else _figure(picture, f"{name}: {caption}", caption, "picture")
    return _template("clip.html").substitute(
        layout=layout,
        media=media,
        lanes="\n".join(rows),
        num_lanes=len(rows),
        events=f"<ol>{events}</ol>" if events else "<p>No event found.</p>",
        data=json.dumps(data).replace("<", "\\u003c"),  # no name can close the script element
        picture=embedded,
    )


def _bars(timeline: Timeline, spans: Sequence[Span], length: float, prefix: str) -> str:
    bars = []
    for span in spans:
        if span.start >= length:  # a label may lie behind the end of the clip
            continue
        end = min(span.end, length)
        index = timeline.classes.index(span.label) if span.label in timeline.classes else None
        color = "#8a929c" if index is None else class_color(index)
        what = f"{prefix}{span.label}, {clock(span.start, length, 1)} to {clock(span.end, length, 1)}"
        # The list of events is the way for the keyboard; tabbing through every bar as well would be a nuisance.
        bars.append(
            f'<button type="button" tabindex="-1" data-start="{span.start:g}" data-end="{span.end:g}"'
            f' aria-label="{_text(what)}" title="{_text(what)}" style="left:{100 * span.start / length:.4f}%;'
            f'width:{100 * (end - span.start) / length:.4f}%;--c:{color};--t:{text_color(color)}">'
            f"<span>{_text(span.label)}</span></button>"
        )
    return "".join(bars)


def _strip(timeline: Timeline, index: int, length: float) -> str:
    values = timeline.probabilities[:, index]
    path = "M0 1" + "".join(f"V{1 - value:.3f}H{place}" for place, value in enumerate(values, start=1)) + "V1Z"
    share = 100 * len(values) * timeline.segment_seconds / length
    label = f"probability of {timeline.classes[index]} over time"
    return (
        f'<svg viewBox="0 0 {len(values)} 1" preserveAspectRatio="none" role="img" aria-label="{_text(label)}"'
        f' style="width:{share:.4f}%;--c:{class_color(index)}"><path d="{path}"/></svg>'
    )


def _ticks(length: float) -> str:
    step = tick_step(length, most=10)
    ticks = []
    for number in range(int(length / step * 1.0001) + 1):
        place = 100 * number * step / length
        edge = " first" if number == 0 else " last" if place > 96 else ""
        odd = " odd" if number % 2 else ""
        label = clock(number * step, length, int(step < 1))
        ticks.append(f'<span class="tick{edge}{odd}" style="left:{min(place, 100):.4f}%">{label}</span>')
    return "".join(ticks)


def _notes(timeline: Timeline) -> str:
    known = len(timeline.classes)
    tags = "; ".join(f"{key} {value}" for key, value in timeline.tags.items())
    return (
        f"<p>{timeline.looked_for} {known} class{'' if known == 1 else 'es'}: {_text(', '.join(timeline.classes))}. "
        "Whatever else happens in a clip is taken for background or for one of these.</p>"
        "<p>An audio-visual event is a moment when something is both seen and heard. This kind of model allows one "
        f"event at a time, in steps of {timeline.segment_seconds:g} s.</p>"
        f'<p class="tags">avel {avel.__version__}; {_text(tags)}; threshold {timeline.threshold:g};'
        f" min_seconds {timeline.min_seconds:g}</p>"
    )


def _table(caption: str, rows: Sequence[Any]) -> str:
    if not rows:
        return ""
    names = [field.name for field in dataclasses.fields(rows[0])]
    head = "".join(
        f'<th scope="col">{_text(name.replace("_", " ").replace("f1", "F1"))}</th>' for name in ["", *names[1:]]
    )
    body = []
    for row in rows:
        first, *rest = (getattr(row, name) for name in names)
        cells = "".join(f"<td>{f'{cell:.3f}' if isinstance(cell, float) else _text(str(cell))}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{_text(str(first))}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{_text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(path: str | Path, alternative: str, caption: str, kind: str) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return (
        f'<figure class="{kind}"><div class="scroll" tabindex="0">'
        f'<img alt="{_text(alternative)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _swatch(index: int) -> str:
    return f'<i class="swatch" style="--c:{class_color(index)}"></i>'


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{clock(seconds, seconds)} min"
        if seconds < 3600
        else clock(seconds, seconds)
    )


# Files and text


def clip_beside(media: Path, page: Path, stem: str | None = None) -> Path:
    """Where the clip of a page lies: in its folder, under a name that needs no quoting in a URL."""
    stem = page.stem if stem is None else stem
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")
    if safe != stem:  # two names must not become one
        safe = f"{safe or 'clip'}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    suffix = media.suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", media.suffix) else ""
    return page.with_name(f"{safe}.clip{suffix}")


def _beside(media: Path, page: Path, stem: str) -> str:
    """Put the clip into the page's folder and give its name there."""
    target = clip_beside(media, page, stem)
    # Renaming one hard link of a file over another is defined to do nothing, and would leave the temporary one.
    if not (target.exists() and os.path.samefile(media, target)):
        link_or_copy(media, target)
    return target.name


def _frame(title: str) -> dict[str, str]:
    return {"title": _text(title), "style": _source("style.css"), "script": _source("page.js")}


def _template(name: str) -> Template:
    return Template(_source(name))


def _source(name: str) -> str:
    return (files("avel.web") / "templates" / name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return escape(visible(text), quote=True)

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
from avel.plots import TICK_STEPS, class_color, clock, shown_classes, text_color
from avel.text import counted, visible
from avel.timeline import Timeline
from avel.types import BACKGROUND

_CAPTIONS = {
    "curves": "Training: the total loss, its terms, and the segment accuracy by epoch.",
    "confusion": "Held-out segments: true class (rows) and predicted class (columns).",
    "bars": "Recall per class on the held-out segments.",
}


def timeline_page(
    timeline: Timeline,
    media: str | Path | None,
    out: str | Path,
    *,
    picture: str | Path | None = None,
    start: float = 0.0,
) -> None:
    """Write one clip's page: the player, a timeline to click and zoom, the events, the probabilities.

    Args:
        timeline: of the clip.
        media: its file, hard-linked (or copied) beside the page as ``<name of the page>.clip.<suffix>``; None leaves
            the player out.
        out: the HTML file to write.
        picture: a PNG to embed, such as `avel.plots.timeline_picture` made.
        start: where the timeline starts on the clock of the file, seconds, see `avel.features.streams.MediaInfo`.

    Raises:
        AvelError: the disk is full.
    """
    out = Path(out)
    address = None if media is None else _beside(Path(media), out, out.stem)
    name = Path(timeline.video).name
    found = counted(len(timeline.events), "event") if timeline.events else "no events"
    content = _template("timeline.html").substitute(
        _frame(name),
        heading=_text(name),
        summary=f"{_seconds(timeline.duration)} · {found} found",
        clip=_clip(timeline, address, "page", picture, name, start),
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


def _clip(
    timeline: Timeline, address: str | None, layout: str, picture: str | Path | None, name: str, start: float = 0.0
) -> str:
    length = max(timeline.duration, len(timeline.probabilities) * timeline.segment_seconds)
    spans = [("truth", timeline.truth)] if timeline.truth is not None else []
    spans.append(("found", timeline.events))
    unknown = sorted({span.label for _, lane in spans for span in lane} - set(timeline.classes))
    labels = [*timeline.classes, BACKGROUND, *unknown]
    colors = [*map(class_color, range(len(timeline.classes))), *["#8a929c"] * (1 + len(unknown))]
    # A label may lie after the end of the clip, or reach past it. Seconds to three decimals, labels by number.
    lanes = [
        [
            (round(span.start, 3), round(min(span.end, length), 3), labels.index(span.label))
            for span in lane
            if span.start < length
        ]
        for _, lane in spans
    ]
    rows = [(title, "spans", _bars(lane, colors, length)) for (title, _), lane in zip(spans, lanes, strict=True)]
    for index in shown_classes(timeline):
        rows.append(
            (
                f"{_swatch(index)}{_text(timeline.classes[index])}",
                "strip",
                _strip(timeline, index, length),
            )
        )
    events = "".join(
        f'<li><button type="button">{_swatch(index)}<span class="what">{_text(event.label)}</span>'
        f'<span class="when">{clock(event.start, length, 1)} – {clock(event.end, length, 1)}</span>'
        f'<span class="score">{event.score:.2f}</span></button></li>'
        for event in timeline.events
        for index in [timeline.classes.index(event.label)]
    )
    data = {
        "length": length,
        "start": 0 if address is None else max(0, round(start, 6)),  # no player shows a time before 0
        "segment": timeline.segment_seconds,
        "steps": TICK_STEPS,
        "names": list(map(visible, labels)),
        "inks": list(map(text_color, colors)),
        "lanes": lanes,
        "thousandths": np.rint(1000 * timeline.probabilities).astype(int).tolist(),
    }
    caption = "Frames with the model's attention during its events, above the waveform and the timeline."
    heading = "h2" if layout == "page" else "h4"  # no level of headings is left out
    return _template("clip.html").substitute(
        layout=layout if address is not None else f"{layout} silent",
        player="" if address is None else _template("player.html").substitute(address=address, name=_text(name)),
        names="\n".join(
            f'<div class="name" style="--row:{row}">{title}</div>' for row, (title, *_) in enumerate(rows, 1)
        ),
        lanes="\n".join(
            f'<div class="lane {kind}" style="--row:{row}">{lane}</div>' for row, (_, kind, lane) in enumerate(rows, 1)
        ),
        num_lanes=len(rows) + 1,  # and the axis
        name=_text(name),
        length=f"{length:.3f}",
        events=f"<{heading}>Events found</{heading}>\n"
        + (f"<ol>{events}</ol>" if events else "<p>No event found.</p>"),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no name can close the script element
        picture="" if picture is None else _figure(picture, f"{name}: {caption}", caption, "picture"),
    )


def _bars(lane: Sequence[tuple[float, float, int]], colors: Sequence[str], length: float) -> str:
    """One path per colour. A browser paints an edge of a path by the share of the pixel that it covers, so that a lane
    of an hour is as full as the hour."""
    paths: dict[int, str] = {}
    for start, end, label in lane:
        paths[label] = f"{paths.get(label, '')}M{start:.10g} 0H{end:.10g}V1H{start:.10g}"
    shapes = "".join(f'<path fill="{colors[label]}" d="{path}"/>' for label, path in paths.items())
    return f'<svg viewBox="0 0 {length:.10g} 1" preserveAspectRatio="none">{shapes}</svg>'


def _strip(timeline: Timeline, index: int, length: float) -> str:
    values = np.rint(100 * timeline.probabilities[:, index]).astype(int)
    path = "M0 100"
    for place in [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]:  # the ends of the runs of equal values
        path += f"V{100 - values[place - 1]}H{place}"
    share = 100 * len(values) * timeline.segment_seconds / length
    return (
        f'<svg viewBox="0 0 {len(values)} 100" preserveAspectRatio="none" style="width:{share:.4f}%">'
        f'<path fill="{class_color(index)}" d="{path}V100"/></svg>'
    )


def _notes(timeline: Timeline) -> str:
    known = counted(len(timeline.classes), "class")
    tags = "; ".join(f"{key} {value}" for key, value in timeline.tags.items())
    return (
        f"<p>{timeline.looked_for} {known}: {_text(', '.join(timeline.classes))}. "
        "Anything else in a clip counts as background or is mistaken for one of these.</p>"
        "<p>In an audio-visual event, something is both seen and heard. The model gives one label to each segment "
        f"of {timeline.segment_seconds:g} s, so it allows one event at a time.</p>"
        f'<p class="tags">avel {avel.__version__}; {_text(tags)}; threshold {timeline.threshold:g};'
        f" min_seconds {timeline.min_seconds:g}</p>"
    )


def _table(caption: str, rows: Sequence[Any]) -> str:
    if not rows:
        return ""
    names = [field.name for field in dataclasses.fields(rows[0])]
    head = "".join(f'<th scope="col">{_text(name.replace("_", " ").replace("f1", "F1"))}</th>' for name in names[1:])
    body = []
    for row in rows:
        first, *rest = (getattr(row, name) for name in names)
        cells = "".join(f"<td>{f'{cell:.3f}' if isinstance(cell, float) else _text(str(cell))}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{_text(str(first))}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{_text(caption)}">'
        f"<table><caption>{_text(caption)}</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(path: str | Path, alternative: str, caption: str, kind: str) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return (
        f'<figure class="{kind}"><div class="scroll" tabindex="0" role="group" aria-label="{_text(caption)}">'
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

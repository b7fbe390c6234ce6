"""A timeline as a piece of HTML for notebooks: no script, no file beside it."""

from __future__ import annotations

from html import escape

from avel.plots import class_color
from avel.text import visible
from avel.timeline import Timeline


def timeline_snippet(timeline: Timeline) -> str:
    """The events of a timeline as a lane in true proportion and as a table."""
    length = max(timeline.duration, len(timeline.probabilities) * timeline.segment_seconds)
    bars, rows = [], []
    for event in timeline.events:
        known = event.label in timeline.classes
        color = class_color(timeline.classes.index(event.label)) if known else "#8a929c"
        label = escape(visible(event.label))
        bars.append(
            f'<div title="{label}" style="position:absolute;top:0;height:100%;background:{color};'
            f'left:{100 * event.start / length:.4f}%;width:{100 * (event.end - event.start) / length:.4f}%"></div>'
        )
        rows.append(
            f"<tr><td>{event.start:.1f}</td><td>{event.end:.1f}</td>"
            f'<td style="text-align:left"><span style="color:{color}">&#9632;</span> {label}</td>'
            f"<td>{event.score:.2f}</td></tr>"
        )
    head = "<tr><th>start, s</th><th>end, s</th><th>label</th><th>score</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>" if rows else "<p>No event found.</p>"
    return (
        f"<div><p><b>{escape(visible(timeline.video))}</b>, {timeline.duration:.1f} s</p>"
        '<div style="position:relative;height:18px;max-width:60em;overflow:hidden;background:#d5dae0">'
        f"{''.join(bars)}</div>{table}</div>"
    )

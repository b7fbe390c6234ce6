"""`Timeline`: what was found in one clip, and the files it is written to and read from."""

from __future__ import annotations

import json
import mimetypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from avel.errors import AvelError
from avel.files import write_csv, write_file
from avel.reading import LARGE_FILE, Fraction, Name, Seconds, SegmentSeconds, Text, class_names, read_json
from avel.text import counted, visible, written_out
from avel.types import ZERO_SHOT, Event, Span

if TYPE_CHECKING:
    import numpy as np

TIMELINE_SCHEMA = 1
_EDGES = r"^\s+|\s+$"  # blanks around a label, which many readers drop


class _Span(Struct, forbid_unknown_fields=True):
    label: Name
    start: Seconds
    end: Seconds

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"{self.label[:80]!r} ends before it starts")


class _Event(_Span):
    score: Fraction


class _TimelineFile(Struct, forbid_unknown_fields=True):
    """What `Timeline.to_json` writes."""

    schema_version: Literal[1]
    video: Text
    duration: Seconds
    segment_seconds: SegmentSeconds
    classes: list[str]
    threshold: Fraction
    min_seconds: Seconds
    tags: dict[str, Text]
    events: list[_Event]
    truth: list[_Span] | None
    probabilities: Annotated[list[list[Fraction]], Meta(min_length=1)]

    def __post_init__(self) -> None:
        class_names(self.classes)
        width = len(self.classes) + 1
        for row in self.probabilities:
            if len(row) != width:
                raise ValueError(f"{len(row)} probabilities of a segment for {width - 1} classes and background")
        known = set(self.classes)
        for event in self.events:
            if event.label not in known:
                raise ValueError(f"an event labelled {event.label[:80]!r}, which is not among the classes")


@dataclass(frozen=True, eq=False, repr=False)
class Timeline:
    """What a model found in one clip. AVEL allows one event at a time: the events never overlap.

    Attributes:
        video: the path of the media file, as it was given.
        duration: seconds.
        segment_seconds: length of a segment, seconds; segment t starts at ``t * segment_seconds``.
        classes: the C names the model knows, background left out.
        probabilities: (T, C+1) float, rows summing to 1, background last.
        attention: (T, H, W) float, each map summing to 1, or None if the model has none (and after `from_json`).
        events: in order of time.
        tags: ``{"visual": tag, "audio": tag}`` of the extractors, and what else names the model.
        truth: the labelled events if they are known, else None.
        threshold: events with a smaller score were left out.
        min_seconds: shorter events were left out.
    """

    video: str
    duration: float
    segment_seconds: float
    classes: tuple[str, ...]
    probabilities: np.ndarray
    attention: np.ndarray | None
    events: tuple[Event, ...]
    tags: dict[str, str]
    truth: tuple[Span, ...] | None = None
    threshold: float = 0.0
    min_seconds: float = 0.0

    @property
    def looked_for(self) -> str:
        """What pictures and pages say before the names of the classes."""
        return "Looked and listened for" if self.tags.get("task") == ZERO_SHOT else "The model knows"

    def __str__(self) -> str:
        """The video, its duration and its events, one per line."""
        found = counted(len(self.events), "event") if self.events else "no events"
        lines = [f"{visible(self.video)}: {self.duration:.1f} s, {found}"]
        lines += [f"{e.start:8.1f} {e.end:8.1f}  {visible(e.label)}  {e.score:.2f}" for e in self.events]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Timeline of {self.video!r}: {len(self.events)} events in {self.duration:.1f} s>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the events as a lane and as a table."""
        from avel.web import timeline_snippet

        return timeline_snippet(self)

    def plot(self, path: str | Path) -> None:
        """Draw frames, sound, events and probabilities as a PNG. The video is read once more.

        Raises:
            AvelError: the video cannot be read any more, its streams are not those localized, or there is no room.
        """
        from avel.present import draw

        draw(self, path)

    def to_html(self, path: str | Path) -> None:
        """Write a page that plays the clip under its timeline; the clip is put beside it. The page opens offline.

        Raises:
            AvelError: as `plot`.
        """
        from avel.present import write_page

        write_page(self, path)

    def to_json(self, path: str | Path) -> None:
        """Write everything but the attention maps; probabilities and scores keep four decimals."""
        content: dict[str, Any] = {
            "schema_version": TIMELINE_SCHEMA,
            "video": self.video,
            "duration": round(self.duration, 6),
            "segment_seconds": self.segment_seconds,
            "classes": [visible(name) for name in self.classes],
            "threshold": self.threshold,
            "min_seconds": self.min_seconds,
            "tags": self.tags,
            "events": [{**_span_json(event), "score": round(float(event.score), 4)} for event in self.events],
            "truth": None if self.truth is None else [_span_json(span) for span in self.truth],
        }
        rows = ",\n".join(
            "    " + json.dumps([round(float(p), 4) for p in row], allow_nan=False) for row in self.probabilities
        )
        head = json.dumps(content, indent=2, allow_nan=False)[:-2]  # one segment per line, not one number per line
        write_file(path, f'{head},\n  "probabilities": [\n{rows}\n  ]\n}}\n')

    @classmethod
    def from_json(cls, path: str | Path) -> Timeline:
        """Read what `to_json` wrote; ``attention`` is None.

        Raises:
            AvelError: no such file, not JSON, another schema version, or a field that is missing or does not fit.
        """
        import numpy as np

        try:
            found = read_json(
                Path(path),
                _TimelineFile,
                limit=LARGE_FILE,
                schema=("schema_version", TIMELINE_SCHEMA),
                expected=f"a timeline as Timeline.to_json writes it, schema_version {TIMELINE_SCHEMA}",
                do="write it again with `avel localize`",
            )
        except FileNotFoundError:
            raise AvelError(f"no such file: {path}", "a timeline", "write one with `avel localize`") from None
        return cls(
            video=found.video,
            duration=found.duration,
            segment_seconds=found.segment_seconds,
            classes=tuple(found.classes),
            probabilities=np.array(found.probabilities, dtype=np.float64),
            attention=None,
            events=tuple(Event(each.label, each.start, each.end, each.score) for each in found.events),
            tags=found.tags,
            truth=None
            if found.truth is None
            else tuple(Span(each.label, each.start, each.end) for each in found.truth),
            threshold=found.threshold,
            min_seconds=found.min_seconds,
        )

    def to_csv(self, path: str | Path) -> None:
        """Write ``video,start,end,label,split`` rows, which `avel extract` takes; the path is relative to the CSV.

        The split is train: events that a model found and a person corrected are for training, not for testing.

        Blanks around a label, which readers of CSVs drop, are written out as ``\\x20``.

        Raises:
            AvelError: no path in UTF-8 text can lead back to the video.
        """
        video = seen_from(path, self.video)
        rows = [[_seconds(e.start), _seconds(e.end), re.sub(_EDGES, _codes, visible(e.label))] for e in self.events]
        rows = rows or [["", "", ""]]
        write_csv(path, ("video", "start", "end", "label", "split"), [[video, *row, "train"] for row in rows])

    def to_vtt(self, path: str | Path) -> None:
        """Write WebVTT captions, one cue per event.

        Characters that mean something to a reader of subtitles are references, which WebVTT takes as HTML does: ``<``
        begins a tag, ``{`` and a backslash a command of the older formats, and blanks at the ends are dropped.
        """
        cues = [
            f"\n{number}\n{_clock(event.start)} --> {_clock(event.end)}\n{_vtt_text(event.label)}\n"
            for number, event in enumerate(self.events, start=1)
        ]
        write_file(path, "WEBVTT\n" + "".join(cues))

    def to_audacity(self, path: str | Path) -> None:
        """Write an Audacity label track: ``start<TAB>end<TAB>label``, seconds."""
        write_file(path, "".join(f"{e.start:.6f}\t{e.end:.6f}\t{visible(e.label)}\n" for e in self.events))

    def to_sed_eval(self, path: str | Path) -> None:
        """Write an event list for sed_eval: ``onset<TAB>offset<TAB>label``, seconds.

        A label of more than one word is in double quotes, or sed_eval would take its blanks for the delimiter. What
        sed_eval would not read as the label is written out, as in ``\\x31`` for a label ``1``.
        """
        lines = []
        for event in self.events:
            label = _sed_eval_text(event.label)
            if not re.fullmatch(r"\w+", label):
                label = f'"{label}"'
            lines.append(f"{event.start:.6f}\t{event.end:.6f}\t{label}\n")
        write_file(path, "".join(lines))

    def to_elan(self, path: str | Path) -> None:
        """Write an ELAN document (EAF 3.0): a tier ``events``, and ``truth`` if it is known; milliseconds."""
        from xml.etree import ElementTree

        media = os.path.abspath(self.video)
        document = ElementTree.Element(
            "ANNOTATION_DOCUMENT",
            {
                "AUTHOR": "avel",
                "DATE": "1970-01-01T00:00:00Z",  # ELAN wants one; it is fixed, so that equal events make equal files
                "FORMAT": "3.0",
                "VERSION": "3.0",
                "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
                "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
            },
        )
        header = ElementTree.SubElement(document, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
        kind = mimetypes.guess_type(self.video)[0] or "unknown"
        ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", MEDIA_URL=Path(media).as_uri(), MIME_TYPE=kind)
        order = ElementTree.SubElement(document, "TIME_ORDER")
        tiers: list[tuple[str, tuple[Span, ...]]] = [("events", self.events)]
        if self.truth is not None:
            tiers.append(("truth", self.truth))
        slots = 0
        for name, spans in tiers:
            tier = ElementTree.SubElement(document, "TIER", LINGUISTIC_TYPE_REF="default-lt", TIER_ID=name)
            for span in spans:
                for moment in (span.start, span.end):
                    slots += 1
                    slot = {"TIME_SLOT_ID": f"ts{slots}", "TIME_VALUE": str(round(moment * 1000))}
                    ElementTree.SubElement(order, "TIME_SLOT", slot)
                place = {"TIME_SLOT_REF1": f"ts{slots - 1}", "TIME_SLOT_REF2": f"ts{slots}"}
                place["ANNOTATION_ID"] = f"a{slots // 2}"
                holder = ElementTree.SubElement(tier, "ANNOTATION")
                annotation = ElementTree.SubElement(holder, "ALIGNABLE_ANNOTATION", place)
                ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = visible(span.label)
        kind_of_tier = {"LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
        ElementTree.SubElement(document, "LINGUISTIC_TYPE", kind_of_tier)
        ElementTree.indent(document)
        write_file(path, ElementTree.tostring(document, encoding="UTF-8", xml_declaration=True))

    def to_label_studio(self, path: str | Path) -> None:
        """Write one task for Label Studio, with the events as a prediction, and the truth as an annotation.

        They are regions of the sound track, in seconds; the labelling set-up that shows them is in docs/localize.md.
        The task names the video as `video` does: put there the address under which your Label Studio serves it.
        """
        task: dict[str, Any] = {"data": {"video": self.video}}
        model = {"model_version": self.tags.get("model", "avel")}
        task["predictions"] = [
            {**model, "result": [self._region(f"event-{n}", e) for n, e in enumerate(self.events, 1)]}
        ]
        if self.truth is not None:
            regions = [self._region(f"truth-{number}", span) for number, span in enumerate(self.truth, 1)]
            task["annotations"] = [{"ground_truth": True, "result": regions}]
        write_file(path, json.dumps([task], indent=1, allow_nan=False))

    def _region(self, name: str, span: Span) -> dict[str, Any]:
        """A stretch of the sound track as Label Studio has it."""
        label = _span_json(span)
        return {
            "id": name,
            "from_name": "label",
            "to_name": "audio",
            "type": "labels",
            "original_length": round(self.duration, 6),
            "value": {"start": label["start"], "end": label["end"], "channel": 0, "labels": [label["label"]]},
            **({"score": round(float(span.score), 4)} if isinstance(span, Event) else {}),
        }


def seen_from(path: str | Path, video: str | Path) -> str:
    """The path of a video as a file at ``path`` tells it: relative to its folder."""
    # Only folders are resolved: `..` must climb real folders, but the video keeps its own name.
    folder, name = os.path.split(video)
    return Path(os.path.relpath(os.path.realpath(folder), os.path.realpath(Path(path).parent)), name).as_posix()


def _span_json(span: Span) -> dict[str, Any]:
    return {"label": visible(span.label), "start": round(float(span.start), 6), "end": round(float(span.end), 6)}


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _clock(seconds: float) -> str:
    """hh:mm:ss.mmm, rounded as a whole so that 59.9996 is the next minute and not 60.000."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def _vtt_text(label: str) -> str:
    """The text of a cue."""
    references = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    return re.sub(
        rf"[&<>{{\\]|{_EDGES}",
        lambda match: "".join(references.get(character, f"&#{ord(character)};") for character in match[0]),
        visible(label),
    )


def _sed_eval_text(label: str) -> str:
    """A label that sed_eval reads back: to it, numbers, single letters, lists and file names are not labels."""
    text = re.sub(rf"[;|:#\"]|(?<!\w)'|\.(?=\w+$)|{_EDGES}", _codes, visible(label))
    if text.lower() != "none" and not (len(text) == 1 and text.isalpha()):
        try:
            complex(text.replace(",", "."))
        except ValueError:
            return text
    return written_out(text[0]) + text[1:]


def _codes(match: re.Match[str]) -> str:
    return written_out(match[0])

"""`Timeline`: what was found in one clip, and the files it is written to and read from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avel.errors import AvelError
from avel.files import write_csv, write_file
from avel.types import ZERO_SHOT, Event, Span

if TYPE_CHECKING:
    import numpy as np

TIMELINE_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Timeline:
    """What a model found in one clip. AVEL allows one event at a time: the events never overlap.

    Attributes:
        video: the path of the media file, as it was given.
        duration: seconds.
        segment_seconds: length of a segment, seconds; segment t starts at ``t * segment_seconds``.
        classes: the C names the model knows, background left out.
        probabilities: (T, C+1) float, rows summing to 1, background last.
        attention: (T, H, W) float, each map summing to 1, or None where the model has none (or after `from_json`).
        events: in order of time.
        tags: ``{"visual": tag, "audio": tag}`` of the extractors, and what else names the model.
        truth: the labelled events where they are known, else None.
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

    def to_json(self, path: str | Path) -> None:
        """Write everything but the attention maps; probabilities and scores keep four decimals."""
        content: dict[str, Any] = {
            "schema_version": TIMELINE_SCHEMA,
            "video": self.video,
            "duration": round(self.duration, 6),
            "segment_seconds": self.segment_seconds,
            "classes": list(self.classes),
            "threshold": self.threshold,
            "min_seconds": self.min_seconds,
            "tags": self.tags,
            "events": [{**_span_json(event), "score": round(float(event.score), 4)} for event in self.events],
            "truth": None if self.truth is None else [_span_json(span) for span in self.truth],
        }
        rows = ",\n".join(
            "    " + json.dumps([round(float(p), 4) for p in row], allow_nan=False) for row in self.probabilities
        )
        head = json.dumps(content, indent=2, allow_nan=False)[:-2]  # one segment a line, not one number a line
        write_file(path, f'{head},\n  "probabilities": [\n{rows}\n  ]\n}}\n')

    @classmethod
    def from_json(cls, path: str | Path) -> Timeline:
        """Read what `to_json` wrote; ``attention`` is None.

        Raises:
            AvelError: no such file, not JSON, another schema version, or a field that is missing or does not fit.
        """
        import numpy as np

        def refuse(found: str) -> AvelError:
            return AvelError(
                f"{path}: {found}",
                f"a timeline as Timeline.to_json writes it, schema_version {TIMELINE_SCHEMA}",
                "write it again with `avel localize`",
            )

        try:
            content = json.loads(Path(path).read_bytes())
        except FileNotFoundError:
            raise refuse("no such file") from None
        except OSError as error:
            raise refuse(error.strerror or "could not be read") from error
        except ValueError as error:  # a JSON error or bytes that are no text
            raise refuse(f"not JSON ({error})") from error
        if not isinstance(content, dict) or "schema_version" not in content:
            raise refuse("no schema_version")
        if content["schema_version"] != TIMELINE_SCHEMA:
            raise refuse(f"schema_version {content['schema_version']!r}")
        try:
            truth = content["truth"]
            timeline = cls(
                video=str(content["video"]),
                duration=float(content["duration"]),
                segment_seconds=float(content["segment_seconds"]),
                classes=tuple(str(name) for name in content["classes"]),
                probabilities=np.array(content["probabilities"], dtype=np.float64),
                attention=None,
                events=tuple(Event(*_span_fields(event), float(event["score"])) for event in content["events"]),
                tags={str(key): str(value) for key, value in content["tags"].items()},
                truth=None if truth is None else tuple(Span(*_span_fields(span)) for span in truth),
                threshold=float(content["threshold"]),
                min_seconds=float(content["min_seconds"]),
            )
        except KeyError as error:
            raise refuse(f"the field {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise refuse(f"a field does not fit ({error})") from error
        shape, width = timeline.probabilities.shape, len(timeline.classes) + 1
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            raise refuse(f"probabilities of shape {shape} for {width - 1} classes and background")
        unknown = sorted({event.label for event in timeline.events} - set(timeline.classes))
        if unknown:
            raise refuse(f"an event labelled {unknown[0]!r}, which is not among the classes")
        return timeline

    def to_csv(self, path: str | Path) -> None:
        """Write ``video,start,end,label`` rows, a valid training CSV; the video's path is relative to the CSV.

        Raises:
            AvelError: the video's name or a label holds control characters or is no UTF-8 text.
        """
        # Only folders are resolved: `..` must climb real folders, but the video keeps its own name.
        folder, name = os.path.split(self.video)
        video = Path(os.path.relpath(os.path.realpath(folder), os.path.realpath(Path(path).parent)), name).as_posix()
        rows = [[video, _seconds(e.start), _seconds(e.end), e.label] for e in self.events] or [[video, "", "", ""]]
        write_csv(path, ("video", "start", "end", "label"), rows)

    def to_vtt(self, path: str | Path) -> None:
        """Write WebVTT captions, one cue per event."""
        cues = [
            f"\n{number}\n{_clock(event.start)} --> {_clock(event.end)}\n{_escape_vtt(event.label)}\n"
            for number, event in enumerate(self.events, start=1)
        ]
        write_file(path, "WEBVTT\n" + "".join(cues))

    def to_audacity(self, path: str | Path) -> None:
        """Write an Audacity label track: ``start<TAB>end<TAB>label``, seconds."""
        write_file(path, "".join(f"{e.start:.6f}\t{e.end:.6f}\t{_one_line(e.label)}\n" for e in self.events))


def _span_json(span: Span) -> dict[str, Any]:
    return {"label": span.label, "start": round(float(span.start), 6), "end": round(float(span.end), 6)}


def _span_fields(span: dict[str, Any]) -> tuple[str, float, float]:
    return str(span["label"]), float(span["start"]), float(span["end"])


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _clock(seconds: float) -> str:
    """hh:mm:ss.mmm, rounded as a whole so that 59.9996 is the next minute and not 60.000."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escape_vtt(text: str) -> str:
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

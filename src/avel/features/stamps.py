"""One clock for files whose time stamps restart or jump, such as recordings joined end to end.

In a file from `cat a.ts b.ts` the stamps run from 0 to 10 s twice; other recorders skip an hour. What follows a jump is
moved by the same time in every stream, so that it begins where the part before it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import av

from avel.text import first_names

_BACK = 0.1  # seconds; stamps of one stream that go back by more have jumped; FFmpeg's own value
_BACK_GUESSED = 1.0  # the same if FFmpeg guesses decoding times from presentation times
_AHEAD = 10.0  # seconds, FFmpeg's own value: a jump, if the format allows jumps and no stream fills the gap
_NEAR = 1.0  # seconds; a smaller step continues the stream
_LAG = 5.0  # seconds by which one stream may trail the other in the file


@dataclass(frozen=True)
class Jump:
    """A jump of the time stamps: at ``at`` seconds on the common clock, by ``by`` seconds (below 0: back)."""

    at: float
    by: float


def in_words(jumps: list[Jump], zero: float) -> str:
    """``jump at 10.00 s (back by 10.00 s), read on without a gap``, counted from ``zero``; "" if there is none."""
    if not jumps:
        return ""
    told = [
        f"at {jump.at - zero:.2f} s ({'back' if jump.by < 0 else 'ahead'} by {abs(jump.by):.2f} s)" for jump in jumps
    ]
    return f"jump {first_names(told)}, read on without a gap"


@dataclass
class _Course:
    """How far a stream has come, in seconds on the common clock."""

    moved: float  # by how much its last packet was moved
    last: float  # time of its last packet
    end: float  # end of its packets so far


@dataclass
class Stamps:
    """Moves packets, in file order, to one clock without jumps.

    Attributes:
        may_jump: whether the format has stamps that may restart. In other formats a jump ahead is a pause, and decoding
            stamps may be guesses.
        jumps: the jumps found so far.
    """

    may_jump: bool
    jumps: list[Jump] = field(default_factory=list)
    _moves: list[float] = field(default_factory=lambda: [0.0])
    _courses: dict[int, _Course] = field(default_factory=dict)

    def end(self, stream: int) -> float:
        """Where the packets of the stream with that index end so far, seconds; 0 if there were none."""
        return self._courses[stream].end if stream in self._courses else 0.0

    def move(self, packet: av.Packet) -> None:
        """Move the packet's time stamps to the common clock."""
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None or packet.time_base is None:
            return
        base = packet.time_base
        time = float(stamp * base)
        shown = time if packet.pts is None else float(packet.pts * base)
        if abs(shown - time) > _AHEAD:  # FFmpeg guessed the decoding stamp from before the jump
            time = shown
        course = self._courses.get(packet.stream_index)
        moved = self._move(time, shown, course)
        end = shown + moved + float((packet.duration or 0) * base)
        if course is not None:
            end = max(end, course.end)
        self._courses[packet.stream_index] = _Course(moved, time + moved, end)
        if moved:
            ticks = round(moved / base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks

    def _move(self, time: float, shown: float, course: _Course | None) -> float:
        """By how many seconds to move a packet with the stamps ``time`` (decoding) and ``shown``."""
        if not self._courses:
            return 0.0
        front = max(each.last for each in self._courses.values())
        if course is None:  # a new stream belongs to the part whose other streams are nearest
            return min(self._moves, key=lambda move: abs(time + move - front))
        back = _BACK if self.may_jump else _BACK_GUESSED
        step = time + course.moved - course.last
        goes_on = -back <= step <= _NEAR
        if goes_on and (len(self._moves) == 1 or front - course.last < _LAG):
            return course.moved
        # Another stream may have had this jump before; or a single wrong stamp is over, and the stream continues.
        furthest = max(course.last, front) + _NEAR
        known = [move for move in self._moves if course.last - back <= time + move <= furthest]
        if known:
            return min(known, key=lambda move: abs(time + move - (front if goes_on else course.last)))
        if step > 0 and not (self.may_jump and step > _AHEAD and time + course.moved > front + _AHEAD):
            return course.moved  # a pause
        end = max(each.end for each in self._courses.values())
        self._moves.append(end - shown)
        self.jumps.append(Jump(end, course.moved - (end - shown)))
        return end - shown

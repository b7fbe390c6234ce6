"""One clock for files whose time stamps start again or jump: recordings joined end to end, as recorders write them.

`cat a.ts b.ts` is a file whose stamps run from 0 to 10 s twice; other recorders leave an hour out. What follows a jump
is moved, the same way in every stream, so that it begins where the part before it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import av

from avel.text import first_names

_BACK = 0.1  # seconds by which the stamps of one stream never go back but for a jump; FFmpeg's own value
_BACK_GUESSED = 1.0  # the same where FFmpeg guesses the order of decoding from the times at which pictures are shown
_AHEAD = 10.0  # seconds, FFmpeg's own value: a jump, where the format allows jumps and no stream fills the gap
_NEAR = 1.0  # seconds within which a stream goes on
_LAG = 5.0  # seconds by which one stream comes later in the file than the other


@dataclass(frozen=True)
class Jump:
    """A jump of the time stamps: at ``at`` seconds of what is read, by ``by`` seconds in the file (below 0: back)."""

    at: float
    by: float


def in_words(jumps: list[Jump], zero: float) -> str:
    """``jump at 10.00 s (back by 10.00 s), read on without a gap``, counted from ``zero``; "" where there is none."""
    if not jumps:
        return ""
    told = [
        f"at {jump.at - zero:.2f} s ({'back' if jump.by < 0 else 'ahead'} by {abs(jump.by):.2f} s)" for jump in jumps
    ]
    return f"jump {first_names(told)}, read on without a gap"


@dataclass
class _Course:
    """Where a stream has got to, in moved seconds."""

    moved: float  # by which its last packet was moved
    last: float  # its last packet
    end: float  # of what its packets so far show or sound


@dataclass
class Stamps:
    """Moves packets, in the file's order, to one clock without jumps.

    Attributes:
        may_jump: whether the format has stamps that may start again. Elsewhere a jump ahead is a pause, and stamps for
            the order of decoding may be guesses.
        jumps: found so far.
    """

    may_jump: bool
    jumps: list[Jump] = field(default_factory=list)
    _moves: list[float] = field(default_factory=lambda: [0.0])
    _courses: dict[int, _Course] = field(default_factory=dict)

    def end(self, stream: int) -> float:
        """Where the packets of the stream of that index end so far, seconds; 0 where there was none."""
        return self._courses[stream].end if stream in self._courses else 0.0

    def move(self, packet: av.Packet) -> None:
        """Change the packet's time stamps to the common clock."""
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
        """Seconds to move a packet by whose stamps say ``time`` (decoding) and ``shown``."""
        if not self._courses:
            return 0.0
        front = max(each.last for each in self._courses.values())
        if course is None:  # a stream that begins: the part whose other streams are nearest
            return min(self._moves, key=lambda move: abs(time + move - front))
        back = _BACK if self.may_jump else _BACK_GUESSED
        step = time + course.moved - course.last
        goes_on = -back <= step <= _NEAR
        if goes_on and (len(self._moves) == 1 or front - course.last < _LAG):
            return course.moved
        # Another stream may have met this jump before; or one wrong stamp is over, and the stream goes on as it did.
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

"""Features measured segment by segment in one pass, and the findings from these measures, for `avel.data.check`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import iadd
from typing import Any, Literal, TypeVar

import numpy as np

from avel.errors import AvelError
from avel.text import counted, first_names
from avel.types import Finding
from avel.workers import processors

LISTED = 10  # places that one line names
PIECE_BYTES = 2 * 2**20  # of features, measured at once: they pass several times through a cache of that size
THREADS = min(4, processors())

Kind = Literal["visual", "audio"]
Level = Literal["ok", "note", "error"]
_T = TypeVar("_T")

#: What a store holds features as, and the largest value of it: a larger one would become infinite there.
STORED = {"visual": ("float16", 65504.0), "audio": ("float32", 3.4028234663852886e38)}


@dataclass
class Measured:
    """Measures of features. Segments are numbered over all clips; a broken segment counts only as broken.

    Attributes:
        low, high, total, count, zeros: of the values: least, greatest, sum, how many, how many are 0.
        inexact: how many values float32 cannot hold.
        broken: segments with NaN or infinity.
        large: segments with values that a store would hold as infinity.
        negative: segments with values below 0.
        empty: segments with no value but 0.
    """

    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    count: int = 0
    zeros: int = 0
    inexact: int = 0
    broken: list[int] = field(default_factory=list)
    large: list[int] = field(default_factory=list)
    negative: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Add the measures of later segments."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        for name in ("total", "count", "zeros", "inexact", "broken", "large", "negative", "empty"):
            setattr(self, name, iadd(getattr(self, name), getattr(other, name)))  # lists grow in place

    def __str__(self) -> str:
        if not self.count:
            return "no finite value"
        share, mean = self.zeros / self.count, self.total / self.count
        return f"values from {self.low:.5g} to {self.high:.5g}, mean {mean:.5g}, {share:.2%} zeros"


def measure(values: np.ndarray, first: int, kind: Kind) -> Measured:
    """Measure ``values`` (segments, ...) of floats, of which the first is number ``first`` of all."""
    seen = Measured()
    if not values.size:
        return seen
    flat = values.reshape(len(values), -1)
    largest = STORED[kind][1]
    rows = max(1, PIECE_BYTES // (flat.shape[1] * flat.itemsize))
    for start in range(0, len(flat), rows):
        piece = flat[start : start + rows]
        if piece.dtype == np.float16:  # which the processor cannot compare
            piece = piece.astype(np.float32)
        low, high = piece.min(1), piece.max(1)  # NaN where there is one
        finite = np.isfinite(low) & np.isfinite(high)
        good = piece if finite.all() else piece[finite]
        with np.errstate(over="ignore"):
            inexact = np.count_nonzero(good.astype(np.float32) != good) if piece.itemsize > 4 else 0

        def numbered(chosen: np.ndarray, start: int = start, finite: np.ndarray = finite) -> list[int]:
            return (np.flatnonzero(chosen & finite) + first + start).tolist()

        seen.add(
            Measured(
                low=float(low.min(where=finite, initial=np.inf)),
                high=float(high.max(where=finite, initial=-np.inf)),
                total=float(good.sum(dtype=np.float64)),
                count=good.size,
                zeros=good.size - int(np.count_nonzero(good != 0)),
                inexact=int(inexact),
                broken=(np.flatnonzero(~finite) + first + start).tolist(),
                large=numbered((high > largest) | (low < -largest)),
                negative=numbered(low < 0),
                empty=numbered((low == 0) & (high == 0)),
            )
        )
    return seen


@dataclass(frozen=True)
class Places:
    """The names of numbered segments.

    Attributes:
        noun: what the segments belong to: ``clip`` or ``row``.
        names: of the N clips or rows.
        starts: (N + 1,) number of the first segment of each, and at the end how many there are.
    """

    noun: str
    names: Sequence[str]
    starts: np.ndarray

    def owners(self, numbers: Sequence[int]) -> np.ndarray:
        """(n,) the clips or rows in which segments lie, ascending as the numbers are."""
        return np.searchsorted(self.starts, np.asarray(numbers, np.int64), side="right") - 1

    def segments(self, numbers: Sequence[int]) -> str:
        """How many, and where the first ones are."""
        pairs = zip(numbers, self.owners(numbers[:LISTED]), strict=False)
        shown = [f"{self.names[owner]} segment {number - self.starts[owner]}" for number, owner in pairs]
        return f"{counted(len(numbers), 'segment')}: {first_names(shown, LISTED, total=len(numbers))}"

    def units(self, owners: Iterable[int]) -> str:
        """How many of all, and the first ones."""
        chosen = [self.names[owner] for owner in owners]
        return f"{len(chosen)} of {counted(len(self.names), self.noun)}: {first_names(chosen, LISTED)}"


def of_values(place: str, kind: Kind, seen: Measured, places: Places) -> list[Finding]:
    """Findings about the values of one kind of features, except zeros."""
    findings = [Finding("ok", place, str(seen))]
    if seen.broken:
        findings.append(Finding("error", place, f"NaN or infinity in {places.segments(seen.broken)}"))
    if seen.large:
        stored, largest = STORED[kind]
        text = f"values beyond {largest:g}, the largest that a store's {stored} can hold, in "
        findings.append(Finding("error", place, text + places.segments(seen.large)))
    if seen.negative:
        owners = places.units(np.unique(places.owners(seen.negative)))
        text = f"negative values, usual in classical features, unusual in those of VGG and VGGish, in {owners}"
        findings.append(Finding("note", place, text))
    if seen.inexact:
        text = f"{seen.inexact} of {seen.count} values are not exactly float32; in a store they are rounded"
        findings.append(Finding("note", place, text))
    return findings


def of_zeros(place: str, kind: Kind, seen: Measured, places: Places, valid: np.ndarray | None) -> list[Finding]:
    """Findings about segments, and whole clips or rows, that are all zeros.

    Args:
        valid: (N,) whether a clip declares its zeros to be decoded sound; None if nothing says so.
    """
    owners = places.owners(seen.empty)
    number = np.bincount(owners, minlength=len(places.names))
    whole = (number > 0) & (number == np.diff(places.starts))
    declared = np.zeros_like(whole) if valid is None else ~valid
    findings = []
    lying = np.flatnonzero(whole & ~declared)
    if len(lying):
        claim = "" if valid is None else " though audio_valid is true"
        text = f"{kind} features of zeros alone{claim}, in {places.units(lying)}"
        findings.append(Finding("note" if valid is None else "error", place, text))
    single = [each for each, owner in zip(seen.empty, owners, strict=True) if not (whole | declared)[owner]]
    if single:
        findings.append(Finding("note", place, f"zeros alone in {places.segments(single)}"))
    return findings


def in_threads(function: Callable[..., _T], tasks: Iterable[tuple[Any, ...]]) -> Generator[_T, None, None]:
    """``function(*task)`` of every task, in their order; no more than a few are ever under way."""
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[_T]] = deque()
        for task in tasks:
            pending.append(pool.submit(function, *task))
            if len(pending) > 2 * THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def listed(level: Level, place: str, text: str, names: Sequence[str]) -> list[Finding]:
    """A finding that names its first examples; none if there is no example."""
    return [Finding(level, place, f"{text} ({len(names)}): {first_names(names, LISTED)}")] if names else []


def refused(place: str, error: AvelError) -> Finding:
    """An error as a finding."""
    return Finding("error", place, f"{error.found}; expected: {error.expected}; do this: {error.do}")

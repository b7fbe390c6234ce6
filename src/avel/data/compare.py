"""How much two feature stores of the same clips differ, such as released features and your own.

``b`` is the reference: differences are relative to its norm. Every feature is read once, a clip at a time, and all
sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avel.data.measure import Kind, in_threads
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.text import counted, first_names
from avel.types import Progress

WEAK = 0.5  # a dimension that correlates below it is likely not the same dimension
PIECE_BYTES = 2**18  # of float64, compared at once: a few such arrays stay in a cache, however long a clip is
NAMED = 5  # clips that a line of text names


@dataclass(frozen=True)
class ClipDifference:
    """How much the features of one clip differ.

    Attributes:
        id: of the clip.
        relative: ||a - b|| / ||b||, Frobenius norms; 0 if both are 0, infinite if only b is.
        correlation: Pearson's over all of its values; NaN if a or b is constant.
    """

    id: str
    relative: float
    correlation: float


@dataclass(frozen=True, eq=False)
class Difference:
    """How much the features of one kind differ, over all clips.

    Attributes:
        relative: ||a - b|| / ||b||, Frobenius norms; 0 if both are 0, infinite if only b is.
        correlation: Pearson's over all values; NaN if a or b is constant.
        median_correlation: the median over clips of each clip's own, NaN left out.
        mean_absolute: mean of |a - b|.
        max_absolute: largest |a - b|.
        dimensions: (D,) Pearson's correlation of every feature dimension over all segments and cells, NaN if it is
            constant in a or b. Swapped channels or another network show here, where the norms may look harmless.
        clips: one each, in the order of b.
    """

    relative: float
    correlation: float
    median_correlation: float
    mean_absolute: float
    max_absolute: float
    dimensions: np.ndarray
    clips: tuple[ClipDifference, ...]

    @property
    def weak_dimensions(self) -> int:
        """How many dimensions correlate below 0.5."""
        return int((self.dimensions < WEAK).sum())

    @property
    def constant_dimensions(self) -> int:
        """How many dimensions are constant in a or b, so that they have no correlation."""
        return int(np.isnan(self.dimensions).sum())

    def worst(self, number: int) -> list[ClipDifference]:
        """The clips that differ most, by relative difference; the earlier of two equal ones first."""
        return sorted(self.clips, key=lambda clip: -clip.relative)[:number]


@dataclass(frozen=True, eq=False)
class Comparison:
    """How much two stores differ.

    Attributes:
        a, b: their paths; b is the reference.
        clips: how many are in both.
        segments: how many were compared.
        only_a, only_b: ids of the clips that the other store lacks.
        lengths: (id, T in a, T in b) where they differ; the first segments that both have were compared.
        tags: kind -> the tags of a and of b.
        framings: of a and of b.
        visual, audio: the differences.
        num_worst: how many clips `lines` and `to_json` name.
        mute: ids of the clips in both that have no valid audio in one of them; they are not compared.
    """

    a: str
    b: str
    clips: int
    segments: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    lengths: tuple[tuple[str, int, int], ...]
    tags: dict[str, tuple[str, str]]
    framings: tuple[str, str]
    visual: Difference
    audio: Difference
    num_worst: int = 10
    mute: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """A sentence for everything about the stores that the numbers do not say."""
        clips, segments = counted(self.clips, "clip"), counted(self.segments, "segment")
        notes = [f"{clips} in both, {segments} compared; relative to b = {self.b}"]
        for kind, (one, other) in self.tags.items():
            notes.append(f"{kind}: both of tag {one}" if one == other else f"{kind}: a is {one}, b is {other}")
        if self.framings[0] != self.framings[1]:
            notes.append(
                f"framing: a is {self.framings[0]}, b is {self.framings[1]}: their segments show different moments"
            )
        for name, ids in (("a", self.only_a), ("b", self.only_b)):
            if ids:
                notes.append(f"only in {name}: {_listed(ids)}")
        if self.mute:
            notes.append(f"without valid audio in a or b, and not compared: {_listed(self.mute)}")
        if self.lengths:
            text = _listed([f"{name} ({one} and {other})" for name, one, other in self.lengths])
            notes.append(f"of different lengths in a and b, so only the first segments were compared: {text}")
        return notes

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of (what, visual, audio), the header first."""

        def row(name: str, value: Callable[[Difference], str]) -> tuple[str, str, str]:
            return name, value(self.visual), value(self.audio)

        return [
            ("", "visual", "audio"),
            row("relative difference", lambda each: _number(each.relative)),
            row("correlation", lambda each: _number(each.correlation)),
            row("correlation in a clip, median", lambda each: _number(each.median_correlation)),
            row("absolute difference, mean", lambda each: _number(each.mean_absolute)),
            row("absolute difference, largest", lambda each: _number(each.max_absolute)),
            row(f"dimensions correlating below {WEAK}", lambda e: f"{e.weak_dimensions} of {len(e.dimensions)}"),
            row("dimensions constant in a or b", lambda e: f"{e.constant_dimensions} of {len(e.dimensions)}"),
        ]

    def worst_table(self) -> list[tuple[str, str, str, str]]:
        """Rows of (kind, clip, relative difference, correlation) of the worst clips, the header first."""
        return [
            ("kind", "clip", "relative difference", "correlation"),
            *(
                (kind, clip.id, _number(clip.relative), _number(clip.correlation))
                for kind, of_kind in (("visual", self.visual), ("audio", self.audio))
                for clip in of_kind.worst(self.num_worst)
            ),
        ]

    def lines(self) -> list[str]:
        """All of it as plain text: the notes, the table, the worst clips."""
        return [*self.notes(), "", *_aligned(self.table()), "", *_aligned(self.worst_table())]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, None for what is not finite; of the clips, the worst and the quantiles."""
        return {
            **{name: getattr(self, name) for name in ("a", "b", "clips", "segments")},
            "only_a": list(self.only_a),
            "mute": list(self.mute),
            "only_b": list(self.only_b),
            "lengths": [list(each) for each in self.lengths],
            "tags": {kind: list(tags) for kind, tags in self.tags.items()},
            "framings": list(self.framings),
            "visual": _json(self.visual, self.num_worst),
            "audio": _json(self.audio, self.num_worst),
        }


def compare(a: str | Path, b: str | Path, *, worst: int = 10, progress: Progress | None = None) -> Comparison:
    """Compare the features of the clips that two stores have in common, matched by id.

    Args:
        a: a feature store.
        b: the store it is measured against.
        worst: number of clips to name, those that differ most.
        progress: called as ``progress("compare", clips done, clips in both)``.

    Raises:
        AvelError: one is not a store or is damaged, they have no clip in common, one has an id twice, their grids,
            widths or lengths of a segment differ, or a feature is not finite.
    """
    if worst < 0:
        raise AvelError(f"{worst} worst clips", "0 or more", "give another number")
    one, other = open_store(a), open_store(b)
    _refuse_unlike(one, other)
    places = [_index(store) for store in (one, other)]
    shared = [name for name in places[1] if name in places[0]]
    mute = tuple(
        name
        for name in shared
        if not (one.clips[places[0][name]].audio_valid and other.clips[places[1][name]].audio_valid)
    )
    both = [name for name in shared if name not in mute]
    if mute and not both:
        one.require_audio(places[0][name] for name in mute)
        other.require_audio(places[1][name] for name in mute)
    if not both:
        first_a, first_b = (repr(next(iter(each), "nothing")) for each in places)
        raise AvelError(
            f"no clip is in both stores: there is {first_a} in {one.path}, {first_b} in {other.path}",
            "stores of the same clips, under the same ids",
            "extract both from the same CSV, or from a CSV whose column video holds the ids of the other store",
        )
    pairs = [(places[0][name], places[1][name]) for name in both]
    sums: dict[Kind, _Sums] = {"visual": _Sums.zero(one.visual_dim), "audio": _Sums.zero(one.audio_dim)}
    clips: dict[Kind, list[ClipDifference]] = {"visual": [], "audio": []}
    with closing(in_threads(_of_clip, ((one, other, *pair) for pair in pairs))) as results:
        for done, of_clip in enumerate(results, start=1):
            for kind, of_kind in of_clip.items():
                sums[kind] = sums[kind] + of_kind
                clip = ClipDifference(both[done - 1], of_kind.relative(), of_kind.pooled().correlation().item())
                clips[kind].append(clip)
            if progress:
                progress("compare", done, len(pairs))
    lengths = [(one.clips[i].id, one.clips[i].segments, other.clips[j].segments) for i, j in pairs]
    return Comparison(
        a=str(a),
        b=str(b),
        clips=len(both),
        segments=sum(min(length[1:]) for length in lengths),
        only_a=tuple(name for name in places[0] if name not in places[1]),
        only_b=tuple(name for name in places[1] if name not in places[0]),
        lengths=tuple(length for length in lengths if length[1] != length[2]),
        tags={kind: (_tag(one, kind), _tag(other, kind)) for kind in ("visual", "audio")},
        framings=(one.framing, other.framing),
        visual=_difference(sums["visual"], clips["visual"]),
        audio=_difference(sums["audio"], clips["audio"]),
        num_worst=worst,
        mute=mute,
    )


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over n values of each of D feature dimensions in a and b.

    Products of deviations are taken from the means of the values summed so far (Chan, Golub & LeVeque 1983), since a
    difference of large sums of squares would lose its digits.

    Attributes:
        count: n.
        mean_a, mean_b: (D,).
        aa, bb, ab: (D,) sums of products of deviations from the means.
        squared, reference: sums over all values of (a - b)^2 and of b^2.
        absolute, largest: sum and maximum of |a - b|.
    """

    count: int
    mean_a: np.ndarray
    mean_b: np.ndarray
    aa: np.ndarray
    bb: np.ndarray
    ab: np.ndarray
    squared: float
    reference: float
    absolute: float
    largest: float

    @classmethod
    def zero(cls, width: int) -> _Sums:
        nothing = np.zeros(width)
        return cls(0, nothing, nothing, nothing, nothing, nothing, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> _Sums:
        """The sums of (n, D) float64 values."""
        apart = np.abs(a - b)
        mean_a, mean_b = a.mean(0), b.mean(0)
        squared, reference = (float(np.einsum("nd,nd->", each, each)) for each in (apart, b))  # no threads of its own
        a, b = a - mean_a, b - mean_b
        aa, bb, ab = (np.einsum("nd,nd->d", x, y) for x, y in ((a, a), (b, b), (a, b)))
        return cls(len(a), mean_a, mean_b, aa, bb, ab, squared, reference, float(apart.sum()), float(apart.max()))

    def __add__(self, other: _Sums) -> _Sums:
        count = self.count + other.count
        if not count:
            return self
        a, b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        weight, share = self.count * other.count / count, other.count / count
        return _Sums(
            count,
            self.mean_a + a * share,
            self.mean_b + b * share,
            self.aa + other.aa + a * a * weight,
            self.bb + other.bb + b * b * weight,
            self.ab + other.ab + a * b * weight,
            self.squared + other.squared,
            self.reference + other.reference,
            self.absolute + other.absolute,
            max(self.largest, other.largest),
        )

    def pooled(self) -> _Sums:
        """The same sums over all dimensions as if they were one, D = 1."""
        mean_a, mean_b = self.mean_a.mean(keepdims=True), self.mean_b.mean(keepdims=True)
        a, b = self.mean_a - mean_a, self.mean_b - mean_b
        aa, bb, ab = (
            (within + self.count * between).sum(keepdims=True)
            for within, between in ((self.aa, a * a), (self.bb, b * b), (self.ab, a * b))
        )
        return replace(self, count=self.count * len(a), mean_a=mean_a, mean_b=mean_b, aa=aa, bb=bb, ab=ab)

    def correlation(self) -> np.ndarray:
        """(D,) Pearson's correlation, NaN where a or b is constant."""
        norms = np.sqrt(self.aa) * np.sqrt(self.bb)  # exactly 0 for a constant: float64 adds equal float32s exactly
        return np.clip(self.ab / np.where(norms > 0, norms, np.nan), -1, 1)

    def relative(self) -> float:
        """||a - b|| / ||b||."""
        if not self.reference:
            return math.inf if self.squared else 0.0
        return math.sqrt(self.squared / self.reference)


def _of_clip(one: Store, other: Store, i: int, j: int) -> dict[Kind, _Sums]:
    """The sums over a clip, number ``i`` in one store and ``j`` in the other."""
    segments = min(one.clips[i].segments, other.clips[j].segments)
    sums: dict[Kind, _Sums] = {}
    features: tuple[tuple[Kind, Any, Any], ...] = (
        ("visual", one.visual(i), other.visual(j)),
        ("audio", one.audio(i), other.audio(j)),
    )
    for kind, a, b in features:
        width = a.shape[-1]
        step = max(1, PIECE_BYTES // (8 * (a[:1].numel() or 1)))
        sums[kind] = _Sums.zero(width)
        for first in range(0, segments, step):
            rows = slice(first, min(first + step, segments))
            pieces = [each[rows].numpy().astype(np.float64).reshape(-1, width) for each in (a, b)]
            for store, clip, piece in zip((one, other), (one.clips[i], other.clips[j]), pieces, strict=True):
                if not np.isfinite(piece).all():
                    raise AvelError(
                        f"the {kind} features of {clip.id} in {store.path} hold NaN or infinity",
                        "finite features",
                        f"see what `avel data check {store.path}` says, and extract again",
                    )
            sums[kind] = sums[kind] + _Sums.of(*pieces)
    return sums


def _difference(sums: _Sums, clips: Sequence[ClipDifference]) -> Difference:
    known = [clip.correlation for clip in clips if not math.isnan(clip.correlation)]
    return Difference(
        relative=sums.relative(),
        correlation=sums.pooled().correlation().item(),
        median_correlation=float(np.median(known)) if known else math.nan,
        mean_absolute=sums.absolute / max(sums.count * len(sums.mean_a), 1),
        max_absolute=sums.largest,
        dimensions=sums.correlation(),
        clips=tuple(clips),
    )


def _refuse_unlike(one: Store, other: Store) -> None:
    for what, a, b, do in (
        ("a grid of", one.grid, other.grid, "extract one again with the other's extractor or grid"),
        ("visual features of width", one.visual_dim, other.visual_dim, "extract one again with the other's extractor"),
        ("audio features of width", one.audio_dim, other.audio_dim, "extract one again with the other's extractor"),
        ("segments of seconds", one.segment_seconds, other.segment_seconds, "extract one again with equal segments"),
    ):
        if a != b:
            raise AvelError(f"{one.path} has {what} {a}, {other.path} {b}", "features of one shape in both stores", do)


def _index(store: Store) -> dict[str, int]:
    """id -> place in the store."""
    places: dict[str, int] = {}
    for place, clip in enumerate(store.clips):
        if places.setdefault(clip.id, place) != place:
            raise AvelError(
                f"{store.path} has two clips called {clip.id}",
                "every id once, since clips are matched by it",
                f"see what `avel data check {store.path}` says, and extract again",
            )
    return places


def _tag(store: Store, kind: Kind) -> str:
    return str(store.extractors[kind].get("tag") or "no tag")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: {first_names(names, NAMED)}"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _json(of_kind: Difference, num_worst: int) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    relative = [clip.relative for clip in of_kind.clips]
    return {
        **{
            name: finite(getattr(of_kind, name))
            for name in ("relative", "correlation", "median_correlation", "mean_absolute", "max_absolute")
        },
        "dimensions": len(of_kind.dimensions),
        "weak_dimensions": of_kind.weak_dimensions,
        "constant_dimensions": of_kind.constant_dimensions,
        "clip_relative": {
            name: finite(float(np.quantile(relative, share, method="nearest")))  # no mean of two: one may be infinite
            for name, share in (("least", 0.0), ("median", 0.5), ("p95", 0.95), ("largest", 1.0))
        },
        "worst": [
            {"id": clip.id, "relative": finite(clip.relative), "correlation": finite(clip.correlation)}
            for clip in of_kind.worst(num_worst)
        ],
    }

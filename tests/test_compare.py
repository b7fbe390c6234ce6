"""compare: every number is that of NumPy on the concatenated features."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from synthetic import write_store

import avel.data.compare as compare_module
from avel.data.compare import Comparison, Difference, compare
from avel.data.store import WORK, Settings
from avel.data.store_writing import ClipFeatures, pack, write_part
from avel.errors import AvelError
from avel.files import make_work_folder

KINDS = ("visual", "audio")
Features = dict[str, tuple[np.ndarray, np.ndarray]]  # clip id -> visual (T, 2, 2, 3) float16, audio (T, 5) float32


def made(seed: int = 0, lengths: Sequence[int] = (4, 9, 1, 6), offset: float = 0.5) -> Features:
    random = np.random.default_rng(seed)
    return {
        f"c{number}": (
            (random.normal(size=(length, 2, 2, 3)) + offset).astype(np.float16),
            (random.normal(size=(length, 5)) + offset).astype(np.float32),
        )
        for number, length in enumerate(lengths)
    }


def changed(features: Features, change: Callable[[np.ndarray], np.ndarray]) -> Features:
    def apply(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(change(array.astype(np.float64)).astype(array.dtype))

    return {name: (apply(visual), apply(audio)) for name, (visual, audio) in features.items()}


def write(path: Path, features: Features, *, tag: str = "x-1", ids: Sequence[str] = (), **given: Any) -> Path:
    extractors = {kind: {"name": "x", "tag": f"{kind}-{tag}", "options": {}} for kind in KINDS}
    facts = {"segment_seconds": 1.0, "framing": "time", "grid": (2, 2), "visual_dim": 3, "audio_dim": 5, **given}
    settings = Settings(extractors=extractors, **facts)
    make_work_folder(path / WORK)
    members = []
    for name, (visual, audio) in features.items():
        part = write_part(path, name, settings, ClipFeatures(visual, audio, float(len(visual))), name)
        members.append(replace(part, id=ids[len(members)] if ids else name))
    pack(path, settings, (), members)
    return path


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1])


def oracle(one: Features, other: Features, kind: str) -> dict[str, Any]:
    """The numbers of a `Difference` from all values side by side."""
    pairs = {}
    for name in other:
        if name in one:
            a, b = (store[name][KINDS.index(kind)].astype(np.float64) for store in (one, other))
            common = min(len(a), len(b))
            pairs[name] = a[:common], b[:common]
    a, b = (
        np.concatenate([pair[side].reshape(-1, pair[side].shape[-1]) for pair in pairs.values()]) for side in (0, 1)
    )
    return {
        "relative": np.linalg.norm(a - b) / np.linalg.norm(b),
        "correlation": pearson(a, b),
        "median_correlation": np.median([pearson(*pair) for pair in pairs.values()]),
        "mean_absolute": np.abs(a - b).mean(),
        "max_absolute": np.abs(a - b).max(),
        "dimensions": [pearson(a[:, place], b[:, place]) for place in range(a.shape[1])],
        "clips": [(name, np.linalg.norm(x - y) / np.linalg.norm(y), pearson(x, y)) for name, (x, y) in pairs.items()],
    }


def assert_equal(found: Difference, expected: dict[str, Any]) -> None:
    for name in ("relative", "correlation", "median_correlation", "mean_absolute", "max_absolute"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-11), name
    assert found.dimensions == pytest.approx(expected["dimensions"], rel=1e-11)
    assert [clip.id for clip in found.clips] == [clip[0] for clip in expected["clips"]]
    assert [clip.relative for clip in found.clips] == pytest.approx([clip[1] for clip in expected["clips"]], rel=1e-11)
    assert [clip.correlation for clip in found.clips] == pytest.approx(
        [clip[2] for clip in expected["clips"]], rel=1e-10
    )


@pytest.mark.parametrize("piece", [1, 500, 10**9])  # bytes compared at once: a segment, some, a clip
@pytest.mark.parametrize("offset", [0.5, 300.0])  # far from zero, sums of squares would lose their digits
def test_numbers_are_those_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, offset: float) -> None:
    monkeypatch.setattr(compare_module, "PIECE_BYTES", piece)
    one = made(0, offset=offset)
    two = changed(one, lambda x: 0.7 * x + 0.1 * np.sin(40 * x))
    for a, b in ((one, two), (two, one)):
        name = f"{a is one}"
        found = compare(write(tmp_path / f"{name}a", a), write(tmp_path / f"{name}b", b))
        for kind in KINDS:
            assert_equal(getattr(found, kind), oracle(a, b, kind))
        assert (found.clips, found.segments) == (4, 20)
    if offset == 0.5:
        same = oracle(one, two, "audio")["relative"], oracle(two, one, "audio")["relative"]
        assert abs(same[0] - same[1]) > 0.1  # the test tells a from b


def test_b_is_the_reference(tmp_path: Path) -> None:
    one = made()
    twice = changed(one, lambda x: 2 * x)
    a, b = write(tmp_path / "a", one), write(tmp_path / "b", twice)
    found = compare(a, b)
    for kind in (found.visual, found.audio):
        assert kind.relative == pytest.approx(0.5) and kind.correlation == pytest.approx(1)
        assert [clip.relative for clip in kind.clips] == pytest.approx([0.5] * 4)
    assert compare(b, a).visual.relative == pytest.approx(1)


def test_a_store_against_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a", made())
    found = compare(path, path)
    for kind in (found.visual, found.audio):
        assert kind.relative == kind.mean_absolute == kind.max_absolute == 0
        assert kind.correlation == pytest.approx(1) and kind.weak_dimensions == kind.constant_dimensions == 0
    assert found.notes()[1:] == ["visual: both of tag visual-x-1", "audio: both of tag audio-x-1"]


def test_clips_are_matched_by_id_and_cut_to_what_both_have(tmp_path: Path) -> None:
    one, two = made(0), made(1, (6, 9, 1, 6, 2))
    two = {name: two[name] for name in ("c3", "c4", "c0", "c1")}  # another order, one more, one less
    found = compare(write(tmp_path / "a", one), write(tmp_path / "b", two, tag="y-2", framing="ave"))
    for kind in KINDS:
        assert_equal(getattr(found, kind), oracle(one, two, kind))
    assert (found.only_a, found.only_b, found.lengths) == (("c2",), ("c4",), (("c0", 4, 6),))
    assert (found.clips, found.segments) == (3, 19)
    assert found.notes() == [
        f"3 clips in both, 19 segments compared; relative to b = {tmp_path / 'b'}",
        "visual: a is visual-x-1, b is visual-y-2",
        "audio: a is audio-x-1, b is audio-y-2",
        "framing: a is time, b is ave: their segments show different moments",
        "only in a: 1: c2",
        "only in b: 1: c4",
        "of different lengths in a and b, so only the first segments were compared: 1: c0 (4 and 6)",
    ]


def test_swapped_channels_show_in_the_dimensions(tmp_path: Path) -> None:
    one = made(0, (40, 40))
    swapped = changed(one, lambda x: x[..., [1, 0, *range(2, x.shape[-1])]])
    found = compare(write(tmp_path / "a", one), write(tmp_path / "b", swapped))
    assert (found.visual.weak_dimensions, found.audio.weak_dimensions) == (2, 2)
    assert found.visual.dimensions[2:] == pytest.approx(1) and found.audio.dimensions[2:] == pytest.approx(1)
    assert ("dimensions correlating below 0.5", "2 of 3", "2 of 5") in found.table()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.5])
def test_constant_dimensions_have_no_correlation(tmp_path: Path, constant: float) -> None:
    one = made(0, (700, 3, 31))

    def flatten(x: np.ndarray) -> np.ndarray:
        return np.where(np.arange(x.shape[-1]) == 1, constant, x)

    found = compare(write(tmp_path / "a", one), write(tmp_path / "b", changed(one, flatten)))
    for kind in (found.visual, found.audio):
        assert np.isnan(kind.dimensions).tolist() == [place == 1 for place in range(len(kind.dimensions))]
        assert (kind.weak_dimensions, kind.constant_dimensions) == (0, 1)
    every = changed(one, lambda x: np.full_like(x, constant))
    found = compare(write(tmp_path / "c", one), write(tmp_path / "d", every))
    for kind in (found.visual, found.audio):
        assert np.isnan([kind.correlation, kind.median_correlation, *kind.dimensions]).all()
    assert ("correlation", "-", "-") in found.table()
    content = found.to_json()
    assert content["visual"]["correlation"] is None
    assert content["audio"]["relative"] is None if constant == 0 else content["audio"]["relative"] > 0


def test_a_clip_of_zeros_as_reference(tmp_path: Path) -> None:
    one, two = made(), made(1)
    for array in two["c1"]:
        array[...] = 0
    two["c3"] = one["c3"]
    found = compare(write(tmp_path / "a", one), write(tmp_path / "b", two), worst=2)
    assert found.audio.clips[1].relative == np.inf and np.isnan(found.audio.clips[1].correlation)
    assert found.audio.worst(1)[0].id == "c1" and np.isfinite(found.audio.relative)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["audio"]["worst"][0] == {"id": "c1", "relative": None, "correlation": None}
    quantiles = content["audio"]["clip_relative"]
    assert quantiles["least"] == 0 and quantiles["median"] > 0 and quantiles["largest"] is None
    for array in one["c1"]:
        array[...] = 0
    assert compare(write(tmp_path / "c", one), tmp_path / "b").audio.clips[1].relative == 0


def test_worst_clips_and_what_is_printed(tmp_path: Path) -> None:
    one = made(0, (3, 3, 3, 3, 3))
    two = {
        name: tuple((array.astype(np.float64) * (1 + factor)).astype(array.dtype) for array in one[name])
        for name, factor in zip(one, (0.5, 0.0, 2.0, 1.0, 0.0), strict=True)
    }
    found = compare(write(tmp_path / "a", two), write(tmp_path / "b", one), worst=3)  # type: ignore[arg-type]
    assert [clip.id for clip in found.audio.worst(5)] == ["c2", "c3", "c0", "c1", "c4"]
    assert [clip.relative for clip in found.audio.worst(2)] == pytest.approx([2, 1], rel=1e-6)
    table = found.worst_table()
    assert [row[:2] for row in table] == [
        ("kind", "clip"),
        *[(kind, name) for kind in KINDS for name in ("c2", "c3", "c0")],
    ]
    assert table[4][2:] == ("2", "1")
    printed = found.lines()
    assert printed[4].split() == ["visual", "audio"] and "relative difference" in printed[5]
    assert printed[-3].split() == ["audio", "c2", "2", "1"] and not any(line != line.rstrip() for line in printed)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [clip["id"] for clip in content["visual"]["worst"]] == ["c2", "c3", "c0"]
    assert content["tags"] == {"visual": ["visual-x-1"] * 2, "audio": ["audio-x-1"] * 2}
    assert content["clips"] == 5 and content["audio"]["dimensions"] == 5
    assert not compare(tmp_path / "a", tmp_path / "b", worst=0).worst_table()[1:]


def refusal(a: Path, b: Path, **options: Any) -> str:
    with pytest.raises(AvelError) as error:
        compare(a, b, **options)
    return str(error.value)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", made())
    wide = made(0)
    write(tmp_path / "half", made(), segment_seconds=0.5)
    write(tmp_path / "twice", made(), ids=("c0", "c1", "c1", "c3"))
    write(tmp_path / "names", made(), ids=("w", "x", "y", "z"))
    four = {name: (np.concatenate([v, v], 3), np.concatenate([x, x], 1)) for name, (v, x) in wide.items()}
    visual = {name: (v, wide[name][1]) for name, (v, _) in four.items()}
    audio = {name: (wide[name][0], x) for name, (_, x) in four.items()}
    cells = {name: (np.concatenate([v, v], 1), x) for name, (v, x) in wide.items()}
    b = write(tmp_path / "visual", visual, visual_dim=6)
    assert f"{a} has visual features of width 3, {b} 6" in refusal(a, b)
    assert "audio features of width 10" in refusal(write(tmp_path / "audio", audio, audio_dim=10), a)
    assert "a grid of (2, 2)" in refusal(a, write(tmp_path / "cells", cells, grid=(4, 2)))
    assert "segments of seconds 1.0" in refusal(a, tmp_path / "half")
    assert "two clips called c1" in refusal(a, tmp_path / "twice")
    text = refusal(a, tmp_path / "names")
    assert f"no clip is in both stores: there is 'c0' in {a}, 'w' in {tmp_path / 'names'}" in text
    assert "no feature store" in refusal(a, tmp_path / "nowhere")
    assert "-1 worst clips" in refusal(a, a, worst=-1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_features_must_be_finite(tmp_path: Path, kind: str, value: float) -> None:
    bad = made()
    bad["c3"][KINDS.index(kind)][-1, ..., -1] = value
    a, b = write(tmp_path / "a", bad), write(tmp_path / "b", made())
    for pair in ((a, b), (b, a), (a, a)):
        text = refusal(*pair)
        assert f"the {kind} features of c3 in {a} hold NaN or infinity" in text and f"avel data check {a}" in text


def test_progress_and_many_clips(tmp_path: Path) -> None:
    one, two = made(0, [1 + number % 3 for number in range(150)]), made(1, [1 + number % 3 for number in range(150)])
    seen: list[tuple[str, int, int]] = []
    a, b = write(tmp_path / "a", one), write(tmp_path / "b", two)
    found: Comparison = compare(a, b, progress=lambda *now: seen.append(now))
    assert seen == [("compare", done, 150) for done in range(1, 151)]
    for kind in KINDS:
        assert getattr(found, kind).relative == pytest.approx(oracle(one, two, kind)["relative"], rel=1e-11)
        assert [clip.id for clip in getattr(found, kind).clips] == list(two)
    assert found.to_json() == compare(a, b).to_json()  # to the last digit, whatever the threads did


def test_the_shared_synthetic_store(tmp_path: Path) -> None:
    write_store(tmp_path / "a", seed=0)
    write_store(tmp_path / "b", seed=0, noise=0.31)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert 0.9 < found.visual.correlation < 1 and found.clips == 24

"""Windows and batches: every segment once, order fixed by seed and epoch, nothing lost at the end of a clip."""

from pathlib import Path

import pytest
import torch
from synthetic import write_store

from avel.data.loader import Windows
from avel.errors import AvelError


def test_long_clips_are_cut_and_the_last_window_is_shifted_back(tmp_path: Path) -> None:
    store = write_store(tmp_path, clips=3, segments=(6, 7, 12))
    windows = Windows(store, [0, 1, 2], 6)
    assert windows.items == [(0, 0, 0), (1, 0, 0), (1, 1, 5), (2, 0, 0), (2, 6, 0)]
    batch = windows.batch(range(len(windows)))
    assert batch.counted.sum() == 6 + 7 + 12
    assert batch.counted[2].tolist() == [False] * 5 + [True]
    assert torch.equal(batch.audio[2], store.audio(1)[1:7])
    assert torch.equal(batch.visual[4], store.visual(2)[6:])
    assert torch.equal(batch.target.labels[2], store.labels(1)[1:7])


def test_shapes_dtypes_and_the_class_of_a_window(tmp_path: Path) -> None:
    store = write_store(tmp_path)
    batch = Windows(store, store.split("train"), 6).batch([0, 1])
    assert batch.audio.shape == (2, 6, 5) and batch.audio.dtype == torch.float32
    assert batch.visual.shape == (2, 6, 2, 2, 6) and batch.visual.dtype == torch.float16
    assert batch.target.labels.shape == (2, 6) and batch.target.video.tolist() == [0, 1]


def test_a_window_without_an_event_is_background(tmp_path: Path) -> None:
    store = write_store(tmp_path, segments=9, clips=12)
    windows = Windows(store, range(12), 3)
    for index in range(len(windows)):
        target = windows.batch([index]).target
        events = target.labels[target.labels < 3]
        assert target.video.item() == (events[0].item() if len(events) else 3)


def test_the_order_is_a_permutation_fixed_by_seed_and_epoch(tmp_path: Path) -> None:
    store = write_store(tmp_path)
    windows = Windows(store, store.split("train"), 6)

    def order(*seed: int) -> list[float]:
        return [float(row.sum()) for batch in windows.batches(5, shuffle_seed=seed) for row in batch.audio]  # type: ignore[arg-type]

    plain = [float(row.sum()) for batch in windows.batches(5) for row in batch.audio]
    assert len(plain) == len(windows) == 12
    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) != order(1, 2)
    assert sorted(order(0, 1)) == sorted(plain)
    assert [len(batch.audio) for batch in windows.batches(5)] == [5, 5, 2]


def test_a_short_clip_is_refused_naming_the_window_that_would_fit(tmp_path: Path) -> None:
    store = write_store(tmp_path, segments=(6, 4))
    with pytest.raises(AvelError, match=r"clip-1 .* 4 segments") as error:
        Windows(store, range(4), 6)
    assert "--window 4" in str(error.value)
    assert len(Windows(store, range(4), 4)) == 2 * 2 + 2

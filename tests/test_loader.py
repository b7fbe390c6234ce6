"""Windows and batches: every segment once, order fixed by seed and epoch, nothing lost at the end of a clip."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from synthetic import CLASSES, relabel, write_store

from avel.data.loader import Batch, Residence, Windows, residence, task_split
from avel.data.store import open_store
from avel.errors import AvelError

FORMS: tuple[Literal["onehot", "proportion"], ...] = ("onehot", "proportion")


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
    assert batch.visual.shape == (2, 6, 2, 2, 6) and batch.visual.dtype == torch.float32
    assert batch.target.labels.shape == (2, 6) and batch.target.video.tolist() == [0, 1]


def test_a_window_without_an_event_is_background(tmp_path: Path) -> None:
    store = write_store(tmp_path, segments=9, clips=12)
    windows = Windows(store, range(12), 3)
    for index in range(len(windows)):
        target = windows.batch([index]).target
        events = target.labels[target.labels < 3]
        assert target.video.item() == (events[0].item() if len(events) else 3)


def test_labels_of_whole_videos_are_their_class_or_its_share(tmp_path: Path) -> None:
    store = write_store(tmp_path, background=2)
    clips = [*store.split("train"), *store.split("background")]
    onehot, share = (Windows(store, clips, 6, weak_labels=form).batch(range(14)).target for form in FORMS)
    for labels, video, plain, told in zip(
        onehot.labels.tolist(),
        onehot.video.tolist(),
        onehot.video_labels.tolist(),
        share.video_labels.tolist(),
        strict=True,
    ):
        assert plain == [float(index == video) for index in range(4)]
        assert told == pytest.approx([labels.count(index) / 6 for index in range(4)])
    assert onehot.video.tolist()[-3:] == [2, 3, 3] and onehot.video_labels.dtype == torch.float32
    assert torch.equal(onehot.labels, share.labels) and torch.equal(onehot.video, share.video)
    assert torch.equal(Windows(store, clips, 6).batch(range(14)).target.video_labels, onehot.video_labels)


def test_an_event_without_length_names_the_video_and_no_segment(tmp_path: Path) -> None:
    write_store(tmp_path, segments=(6, 12))
    store = relabel(tmp_path, lambda index, spans: [["dog", 2.0, 2.0]] if index < 2 else spans)
    windows = Windows(store, [0, 1, 2], 6)
    target = windows.batch(range(len(windows))).target
    assert target.labels[:3].unique().tolist() == [3] and target.video.tolist() == [3, 3, 3, 2]
    # Clip 1 is cut in two: of a part, what is annotated elsewhere says nothing.
    assert target.video_labels.argmax(1).tolist() == [CLASSES.index("dog"), 3, 3, 2]
    told = Windows(store, [0], 6, weak_labels="proportion").batch([0]).target
    assert told.video_labels.tolist() == [[0, 0, 0, 1]], "no segment shows it"


def test_the_split_of_a_task(tmp_path: Path) -> None:
    plain, matched = write_store(tmp_path / "plain"), write_store(tmp_path / "matched", match=True)
    content = (tmp_path / "matched" / "store.json").read_text()
    (tmp_path / "matched" / "store.json").write_text(content.replace('"train", "train_match"', '"train"', 1))
    matched = open_store(tmp_path / "matched")
    assert len(matched.split("train_match")) == len(matched.split("train")) - 1
    for task in ("full", "weak"):
        assert task_split(matched, "train", task) == matched.split("train")
    assert task_split(matched, "train", "cml") == matched.split("train_match")
    assert task_split(plain, "train", "cml") == plain.split("train")
    with pytest.raises(AvelError, match="nowhere"):
        task_split(matched, "nowhere", "cml")


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


def features(batch: Batch) -> tuple[list[float], ...]:
    target = batch.target
    streams = batch.audio, batch.visual.float(), target.labels, target.video, target.video_labels
    return tuple(stream.flatten().tolist() for stream in streams)


def test_a_batch_written_over_the_one_before_holds_the_same(tmp_path: Path) -> None:
    windows = Windows(write_store(tmp_path, segments=(6, 7, 12)), range(24), 6)
    fresh = [features(batch) for batch in windows.batches(5, shuffle_seed=(0, 1))]
    places = []
    for batch, expected in zip(windows.batches(5, shuffle_seed=(0, 1), reuse=True), fresh, strict=True):
        assert features(batch) == expected
        places.append(batch.visual.data_ptr())
    assert len(set(places)) == 1 and len(places) > 2


def test_a_smaller_batch_before_is_not_written_over(tmp_path: Path) -> None:
    windows = Windows(write_store(tmp_path), range(8), 6)
    small = windows.batch([0])
    kept = features(small)
    large = windows.batch([1, 2], small)
    assert features(small) == kept and features(large) == features(windows.batch([1, 2]))


@pytest.mark.parametrize("size", [1, 5, 100])
def test_another_device_is_fed_by_a_thread_one_batch_ahead(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path)
    plain = list(Windows(store, range(24), 6).batches(size, shuffle_seed=(3, 1)))
    monkeypatch.setattr(Batch, "to", lambda self, device: self)
    windows = Windows(store, range(24), 6)
    windows.serve(torch.device("meta"), resident=False)  # any device but the CPU
    fed = list(windows.batches(size, shuffle_seed=(3, 1)))
    assert [features(batch) for batch in fed] == [features(batch) for batch in plain]
    assert {batch.visual.dtype for batch in fed} == {torch.float16}


def test_no_windows_give_no_batches(tmp_path: Path) -> None:
    windows = Windows(write_store(tmp_path), [], 6)
    assert list(windows.batches(4)) == []
    windows.serve(torch.device("meta"), resident=False)
    assert list(windows.batches(4)) == []


def test_resident_features_give_the_same_batches(tmp_path: Path) -> None:
    store = write_store(tmp_path, segments=(6, 7, 12))
    clips = [5, 1, 2, 7]  # neither all nor in order
    plain, resident, elsewhere = (Windows(store, clips, 6) for _ in range(3))
    resident._copy_to(torch.device("cpu"))  # `serve` leaves it out on a CPU, which has the memory map
    for one, other in zip(resident.batches(3, shuffle_seed=(0, 1)), plain.batches(3, shuffle_seed=(0, 1)), strict=True):
        assert features(one) == features(other)
        assert one.visual.dtype == torch.float16
    elsewhere.serve(torch.device("meta"), resident=True)
    assert [tuple(b.visual.shape) for b in elsewhere.batches(3)] == [tuple(b.visual.shape) for b in plain.batches(3)]
    assert next(elsewhere.batches(3)).visual.device.type == "meta"


def test_residence_says_what_fits_and_what_it_costs(tmp_path: Path) -> None:
    store = write_store(tmp_path)
    windows = [Windows(store, store.split(split), 6) for split in ("train", "val")]
    needed = (12 + 6) * 6 * (2 * 2 * 6 * 2 + 5 * 4)
    fits = residence(windows, torch.device("cpu"))
    assert fits.needed == needed and fits.fits and fits.seconds == 0 and str(fits).endswith("which fit in memory")
    tight = residence(windows, torch.device("cpu"), free=needed)
    assert not tight.fits and tight.seconds > 0 and "read from the disk" in str(tight)
    assert not Residence(91, 100, "cuda:0", 2.0).fits and Residence(90, 100, "cuda:0", 0.0).fits
    assert "batch by batch, about 2 s" in str(Residence(91, 100, "cuda:0", 2.0))
    assert "kept on cuda:0" in str(Residence(90, 100, "cuda:0", 0.0))

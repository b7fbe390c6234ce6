"""Videos without sound: an error, or marked and refused by name ever after; never silence that nobody decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import EndsOfSound, GreyMeans
from media import read_failures, write_video
from synthetic import assert_unchanged, write_store

import avel
from avel import cli
from avel.baselines import nearest_class_mean
from avel.checkpoint import load
from avel.config import TrainConfig
from avel.data.check import check
from avel.data.compare import compare
from avel.data.store import WORK, StoredClip, open_store
from avel.data.table import read_table
from avel.errors import AvelError
from avel.evaluation import predict
from avel.features.estimate import estimate_seconds
from avel.features.extract import _one_clip, extract
from avel.features.recipe import Recipe
from avel.features.segments import extract_clip
from avel.features.streams import probe
from avel.files import make_work_folder
from avel.training import train

Clips = Callable[[Path, int], Path]


@pytest.fixture
def table(tmp_path: Path, tiny_clips: Clips) -> Path:
    """Six labelled clips of two seconds, of which clip1.mp4 (train) has no sound."""
    table = tiny_clips(tmp_path / "clips", 6)
    write_video(table.parent / "clip1.mp4", seconds=2, audio_codec="", noise=5)
    table.write_text(table.read_text().replace("clip2.mp4,0,1,bell,train", "clip2.mp4,0,1,bell,val"))
    return table


def config(store: Path, out: Path) -> TrainConfig:
    options = {"width": 16, "heads": 2}
    return TrainConfig(store=store, out=out, window=2, epochs=1, batch_size=2, options=options, device="cpu", threads=1)


def test_it_is_an_error_by_default(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["extract", str(table), "--out", str(tmp_path / "store"), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "clip1.mp4 has no audio track" in said and f"1 of 6 clips failed, see {tmp_path}" in said
    assert [failure["id"] for failure in read_failures(tmp_path / "store")] == ["clip1.mp4"]
    assert [clip.id for clip in open_store(tmp_path / "store").clips] == [f"clip{k}.mp4" for k in (0, 2, 3, 4, 5)]


def test_marked_and_refused_by_name_ever_after(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    words = ["extract", str(table), "--out", str(out), "--workers", "1", "--missing-audio", "mark"]
    assert cli.main(words) == 0
    assert "without sound" in (said := capsys.readouterr().out) and "clip1.mp4" in said
    store = open_store(out)
    assert [clip.audio_valid for clip in store.clips] == [True, False, True, True, True, True]
    clip = store.clips[1]
    assert clip.segments == 2 and clip.duration == pytest.approx(2, abs=0.05)
    assert store.visual(1).float().std() > 0 and not store.audio(1).any()
    assert_unchanged(store)

    findings = check(out, window=2)
    assert any("without valid audio" in str(each) and "clip1.mp4" in str(each) for each in findings)
    assert not any(each.level == "error" for each in findings), [str(each) for each in findings]

    with pytest.raises(AvelError, match=r"no valid audio in .*store.*clip1\.mp4"):
        train(config(out, tmp_path / "run"))
    with pytest.raises(AvelError, match=r"no valid audio in .*clip1\.mp4"):
        nearest_class_mean(store, "test")

    # Without it in a split, the others train; and a model may still not be asked about it.
    table.write_text(table.read_text().replace("clip1.mp4,0,1,dog,train", "clip1.mp4,0,1,dog,other"))
    if cli.main([*words, "--extra-splits", "other"]) != 0:
        pytest.fail(capsys.readouterr().err)
    run = train(config(out, tmp_path / "run"))
    model = load(run.folder)
    store = open_store(out)
    assert len(predict(model, store, [0, 2])) == 2
    with pytest.raises(AvelError, match=r"no valid audio in .*clip1\.mp4"):
        predict(model, store, [0, 1])
    with pytest.raises(AvelError, match=r"clip1\.mp4 has no audio track"):
        avel.localize(table.parent / "clip1.mp4", model)
    assert cli.main(["localize", str(table.parent / "clip1.mp4"), "--model", str(run.folder)]) == 2
    assert "clip1.mp4 has no audio track" in capsys.readouterr().err


def test_another_choice_on_the_same_folder(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert len(extract(table, out, workers=0).failed) == 1
    report = extract(table, out, Recipe(missing_audio="mark"), workers=0)
    assert (report.done, report.skipped, report.mute, report.failed) == (1, 5, ["clip1.mp4"], [])
    assert extract(table, out, Recipe(missing_audio="mark"), workers=0).skipped == 6
    report = extract(table, out, workers=0)  # what was marked is an error again
    assert (report.done, report.skipped, report.mute) == (0, 5, [])
    assert [failure["id"] for failure in report.failed] == ["clip1.mp4"]
    assert "clip1.mp4" not in [clip.id for clip in open_store(out).clips]


def test_another_choice_than_that_of_a_run_that_was_killed(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    make_work_folder(out / WORK)
    mute = read_table(table)[1]
    part = _one_clip(mute, out, Recipe(missing_audio="mark").build())
    assert isinstance(part, StoredClip) and (out / part.shard).is_file() and not part.audio_valid
    assert [failure["id"] for failure in extract(table, out, workers=0).failed] == ["clip1.mp4"]


def test_sound_that_cannot_be_decoded_is_no_missing_sound(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mkv", seconds=2)
    with av.open(str(source)) as container:
        payloads = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    data = source.read_bytes()
    for payload in payloads:
        data = data.replace(payload, b"\xff" * len(payload), 1)
    source.write_bytes(data)
    with pytest.raises(AvelError, match=r"no sound could be decoded|of sound"):
        extract_clip(source, GreyMeans(), EndsOfSound(), Recipe(missing_audio="mark"))


def test_probe_and_estimate_of_videos_without_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "mute.mp4", audio_codec="")
    with pytest.raises(AvelError, match="no audio track"):
        probe(path)
    info = probe(path, silent=True)
    assert info.duration == pytest.approx(3, abs=0.05)
    with pytest.raises(AvelError, match="no audio track"):
        estimate_seconds(path, workers=1)
    assert estimate_seconds(path, Recipe(missing_audio="mark"), workers=1) > 0
    found = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(missing_audio="mark"))
    assert not found.audio_valid and found.audio.shape == (3, 3) and not np.any(found.audio)


def test_compare_leaves_them_out(tmp_path: Path) -> None:
    one = write_store(tmp_path / "one", clips=4)
    with pytest.raises(AvelError, match=r"no valid audio in .*other"):
        write_store(tmp_path / "other", clips=4, audio_valid=False)
        compare(one.path, tmp_path / "other")
    index = tmp_path / "other" / "store.json"
    index.write_text(index.read_text().replace('"audio_valid": false', '"audio_valid": true', 3))
    found = compare(one.path, tmp_path / "other")
    assert found.clips == 3 and found.mute == ("clip-3",) and any("clip-3" in note for note in found.notes())

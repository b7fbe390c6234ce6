"""What was chosen in extraction holds in localization: frames, framing. Streams are chosen there in the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from media import Pictures, Sound, write_streams, write_video
from random_weights import digest, random_vggish, write_vggish

import avel
import avel.present
from avel import cli
from avel.checkpoint import LoadedModel, load
from avel.config import TrainConfig
from avel.data.store import open_store
from avel.features import build_audio, build_visual
from avel.features.extract import extract
from avel.features.recipe import Recipe
from avel.features.segments import extract_clip
from avel.timeline import Timeline
from avel.training import train

Clips = Callable[[Path, int], Path]


def with_val(table: Path) -> Path:
    """A table of clips that had no val split."""
    table.write_text(table.read_text().replace("clip3.mp4,0,1,dog,train", "clip3.mp4,0,1,dog,val"))
    return table


def trained(table: Path, out: Path, **choices: object) -> LoadedModel:
    """A model of one epoch on the clips of a table, whose features may lie in ``out/store`` already."""
    if choices or not (out / "store").exists():
        extract(with_val(table), out / "store", Recipe(**choices), workers=0)
    options = {"width": 16, "heads": 2}
    config = TrainConfig(
        store=out / "store", out=out / "run", window=2, epochs=1, batch_size=2, options=options, device="cpu", threads=1
    )
    return load(train(config).folder)


def test_the_model_says_how_many_frames_a_segment_has(tmp_path: Path, tiny_clips: Clips) -> None:
    table = tiny_clips(tmp_path / "clips", 4)
    model = trained(table, tmp_path, visual_options={"frames_per_segment": 4})
    assert model.extractors["visual"]["options"]["frames_per_segment"] == 4
    timeline = avel.localize(table.parent / "clip0.mp4", model)
    assert len(timeline.probabilities) == 2 and timeline.tags["visual"] == model.extractors["visual"]["tag"]
    features = extract_clip(
        table.parent / "clip0.mp4", build_visual("classical", frames_per_segment=4), build_audio("classical")
    )
    assert np.array_equal(features.visual, open_store(tmp_path / "store").visual(0).numpy())


@pytest.mark.slow
def test_options_of_extractors_from_the_command_line_and_weights_at_another_place(
    tmp_path: Path, tiny_clips: Clips, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVEL_CACHE", str(tmp_path / "empty"))
    table = with_val(tiny_clips(tmp_path / "clips", 4))
    weights, store = write_vggish(tmp_path / "vggish.pth", random_vggish()), tmp_path / "store"
    words = ["extract", str(table), "--out", str(store), "--workers", "1", "--visual-options.frames_per_segment", "4"]
    words += ["--audio", "vggish", "--audio-weights", str(weights), "--audio-options.weights_sha", digest(weights)]
    assert cli.main([*words, "--audio-options.last_activation", "linear"]) == 2
    assert "last activation 'linear'" in capsys.readouterr().err
    assert cli.main([*words, "--audio-options.last_activation", "none", "--audio-options.framing", "continuous"]) == 0
    told = open_store(store).extractors
    assert told["visual"]["options"]["frames_per_segment"] == 4
    assert told["audio"]["options"]["last_activation"] == "none" and told["audio"]["options"]["framing"] == "continuous"
    audio = open_store(store).audio(0)
    assert audio.shape == (2, 128) and (audio < 0).any()

    model = trained(table, tmp_path)
    moved, other = weights.rename(tmp_path / "moved.pth"), tmp_path / "other.pth"
    clip = table.parent / "clip0.mp4"
    words = ["localize", str(clip), "--model", str(model.source), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "--audio-weights PATH" in capsys.readouterr().err
    other.write_bytes(b"another training")
    assert cli.main([*words, "--audio-weights", str(other)]) == 2
    assert f"{other} has the sha256" in capsys.readouterr().err
    assert cli.main([*words, "--visual-weights", str(moved), "--audio-weights", str(moved)]) == 2
    assert "weights for the visual extractor 'classical'" in capsys.readouterr().err
    assert cli.main([*words, "--audio-weights", str(moved)]) == 0
    found = json.loads((tmp_path / "out" / "clip0.json").read_text())
    assert found["tags"]["audio"] == told["audio"]["tag"]


def test_the_model_says_its_framing(tmp_path: Path, tiny_clips: Clips) -> None:
    table = tiny_clips(tmp_path / "clips", 4)
    whole = write_video(tmp_path / "whole.mp4", seconds=10, noise=5, size=(32, 32)).read_bytes()
    for index in range(4):
        (table.parent / f"clip{index}.mp4").write_bytes(whole)
    model = trained(table, tmp_path, framing="ave", visual_options={"frames_per_segment": 4})
    timeline = avel.localize(table.parent / "clip0.mp4", model)
    assert len(timeline.probabilities) == 10 and timeline.tags["visual"] == model.extractors["visual"]["tag"]
    assert timeline.tags["framing"] == "ave: tenths of the frames of every ten seconds"
    short = avel.localize(write_video(tmp_path / "short.mp4"), model)
    assert len(short.probabilities) == 3
    assert short.tags["framing"] == "ave: the whole 3 s in 3 equal parts of the frames"


def test_streams_are_chosen_said_and_drawn(
    tmp_path: Path,
    tiny_clips: Clips,
    tiny_video: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def drawing(timeline: Timeline, frames: np.ndarray, waveform: np.ndarray, *rest: object) -> None:
        drawn.append((frames, waveform))

    monkeypatch.setattr("avel.present.timeline_picture", drawing)
    model = trained(tiny_clips(tmp_path / "clips", 4), tmp_path)
    random = np.random.default_rng(0)
    path = write_streams(
        tmp_path / "several.mkv",
        Pictures(lambda time: np.full((48, 64, 3), 60, np.uint8)),
        Pictures(lambda time: random.integers(0, 255, (48, 64, 3), np.uint8)),
        Sound(lambda times: np.sin(2 * np.pi * 300 * times)),
        Sound(lambda times: random.normal(0, 0.1, len(times)), codec="flac"),
    )
    words = ["localize", str(path), "--model", str(model.source.parent), "--out", str(tmp_path / "out")]
    found = {}
    for asked in ((), ("--video-stream", "0"), ("--video-stream", "1", "--audio-stream", "1")):
        assert cli.main([*words, *asked, "--overwrite"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        timeline = json.loads((tmp_path / "out" / "several.json").read_text())
        found[asked] = timeline["probabilities"]
        number = int(len(asked) == 4)
        assert f"several.mkv, what was read: streams video {number} of 2 (h264, 64x48), audio {number} of 2" in said
        assert timeline["tags"]["streams"] in said
        frames, waveform = drawn.pop()
        assert bool(frames.std() > 20) == bool(number)  # the second video is noise, the second sound quieter
        assert bool(np.abs(waveform).std() < 0.2) == bool(number)
    first, named, other = found.values()
    assert first == named != other
    assert cli.main([*words, "--audio-stream", "2", "--overwrite"]) == 2
    assert "has no audio stream 2" in capsys.readouterr().err
    assert "streams" not in avel.localize(tiny_video, model).tags

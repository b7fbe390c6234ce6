"""A model of AVE's released features opens videos of any length, by VGG-19 and VGGish with their published weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ave_files import write_ave
from conftest import EndsOfSound, GreyMeans
from media import grey_of, write_video
from tiny_weights import write_tiny

import avel
from avel import cli
from avel.config import TrainConfig
from avel.data.ave import survey as survey_module
from avel.data.ave.importing import import_ave
from avel.errors import AvelError
from avel.features.recipe import Recipe
from avel.features.segments import ave_frames, extract_clip
from avel.files import file_sha256
from avel.localization import of_released_features
from avel.training import train

pytestmark = pytest.mark.usefixtures("blank_pictures")


def greys(found: np.ndarray) -> np.ndarray:
    return found.reshape(-1)


def test_a_longer_video_is_cut_into_tenths_of_every_ten_seconds(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=23.4, frame_rate=12, size=(16, 16))
    found = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave"), any_length=True)
    whole = [120 * part + frame for part in (0, 1) for frame in ave_frames(120)]
    wanted = whole + [240 + frame for frame in ave_frames(281 - 240, 16, 3)]
    assert found.visual.shape[0] == len(found.audio) == 23 and found.uneven == 0
    assert np.abs(greys(found.visual) - [grey_of(index) for index in wanted]).max() < 3


def test_ten_seconds_are_framed_as_ever(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=10.4, frame_rate=10, size=(16, 16))
    one = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave"))
    other = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave"), any_length=True)
    assert np.array_equal(one.visual, other.visual) and len(one.visual) == 10


def test_frames_that_lie_unevenly_are_chosen_by_their_time(tmp_path: Path) -> None:
    times = [*(k / 10 for k in range(20)), *(8 + k / 10 for k in range(60))]  # nothing new from 2 to 8 s
    path = write_video(tmp_path / "a.mp4", seconds=14, times=times, size=(16, 16))
    found = extract_clip(path, GreyMeans(), EndsOfSound(), Recipe(framing="ave"), any_length=True)
    by_time = extract_clip(path, GreyMeans(), EndsOfSound())
    assert found.uneven == 1 and np.array_equal(found.visual[:10], by_time.visual[:10])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of files that pass for AVE's own."""
    folder = tmp_path_factory.mktemp("released")
    data = write_ave(folder / "data", grid=(7, 7), visual_dim=512, audio_dim=128)
    lines = (data / "Annotations.txt").read_text()
    with pytest.MonkeyPatch.context() as patch:
        official = {**survey_module.OFFICIAL, "Annotations.txt": file_sha256(data / "Annotations.txt")}
        patch.setattr(survey_module, "OFFICIAL", official)
        # with a header, and other ends of lines, they are the same annotations
        (data / "Annotations.txt").write_bytes(f"Category&VideoID&Quality&StartTime&EndTime\n{lines}".encode())
        report = import_ave(data, folder / "store")
        assert report.survey.origin == "AVE"
    return train(TrainConfig(store=folder / "store", out=folder / "run", epochs=1, batch_size=4)).folder


@pytest.mark.parametrize("seconds", [10, pytest.param(23, marks=pytest.mark.slow)])
def test_it_localizes(
    seconds: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keras, torchvggish = write_tiny(tmp_path, monkeypatch)
    video = write_video(tmp_path / "clip.mp4", seconds=seconds, size=(32, 32), noise=20)
    weights = {"visual_weights": str(keras), "audio_weights": str(torchvggish)}
    timeline = avel.localize(video, run, **weights)
    assert len(timeline.probabilities) == seconds and timeline.attention.shape == (seconds, 7, 7)
    assert timeline.tags["visual"].startswith("vgg19-") and timeline.tags["audio"].startswith("vggish-")
    assert timeline.tags["stands_in_for"] == "ave-released-visual-7x7x512, ave-released-audio-128"
    rest = ", the last 3 s in 3 equal parts of the frames" if seconds == 23 else ""
    assert timeline.tags["framing"] == f"ave: tenths of the frames of every ten seconds{rest}"
    assert timeline.tags["visual_weights"].endswith(file_sha256(keras))
    words = ["localize", str(video), "--model", str(run), "--out", str(tmp_path / "out"), "--html"]
    words += ["--visual-weights", str(keras), "--audio-weights", str(torchvggish)]
    assert cli.main(words) == 0
    assert "VGG-19 and VGGish, with their published weights" in " ".join(capsys.readouterr().out.split())
    written = json.loads((tmp_path / "out" / "clip.json").read_text())["tags"]
    assert {name: written[name] for name in timeline.tags} == timeline.tags
    assert "stands_in_for ave-released-visual" in (tmp_path / "out" / "clip.html").read_text()


def test_other_weights_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras, torchvggish = write_tiny(tmp_path, monkeypatch)
    video = write_video(tmp_path / "clip.mp4", seconds=10, size=(32, 32))
    (tmp_path / "other.h5").write_bytes(keras.read_bytes()[:-1] + b"!")
    for wrong, said in (("other.h5", "has the sha256"), ("none.h5", "no such file of weights")):
        with pytest.raises(AvelError, match=f"AVE's released features.*vgg19's published weights.*{said}") as caught:
            avel.localize(video, run, visual_weights=str(tmp_path / wrong), audio_weights=str(torchvggish))
        assert "--visual-weights" in caught.value.do and "weights_sha" not in caught.value.do


@pytest.mark.parametrize(
    ("maker", "said"),
    [
        ("ave-layout", "files in AVE's layout"),
        ("simulated-v1-seed0", "simulated features"),
        ("ave-released", "which VGG-19 and VGGish can stand in for"),
    ],
)
def test_features_that_no_network_makes_are_refused(maker: str, said: str) -> None:
    extractors = {kind: {"name": maker, "tag": f"{maker}-{kind}-1", "options": {}} for kind in ("visual", "audio")}
    with pytest.raises(AvelError, match=said):
        of_released_features(SimpleNamespace(extractors=extractors, source="run/best.json"))

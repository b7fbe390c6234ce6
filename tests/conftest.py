"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from media import write_video
from PIL import Image

from avel.features import AudioExtractor, VisualExtractor, build_audio, build_visual
from avel.files import replacing

# A busy machine is no failure, so that no example has a deadline. Continuous integration asks for the profile `full`.
settings.register_profile("usual", deadline=None, max_examples=50)
settings.register_profile("full", deadline=None, max_examples=100)
settings.load_profile("usual")


class GreyMeans:
    """A visual extractor whose features say which frame was shown: its mean grey level."""

    kind, name, tag, options = "visual", "grey", "grey-0", {}
    frame_size, frames_per_segment, grid, dim = 8, 16, (1, 1), 16

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return frames.reshape(-1, 16, 8 * 8 * 3).mean(-1, dtype=np.float32)[:, None, None]


class EndsOfSound:
    """An audio extractor that keeps the first and last sample of a segment, and how many there are."""

    kind, name, tag, options = "audio", "ends", "ends-0", {}
    sample_rate, dim = 16_000, 3

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        count = np.full(len(waveform), waveform.shape[1])
        return np.stack([waveform[:, 0], waveform[:, -1], count], 1).astype(np.float32)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real media and AVE's files: AVEL_TEST_DATA, by default ../shared beside the repository."""
    folder = Path(os.environ.get("AVEL_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "media").is_dir():
        pytest.skip(f"no real test data in {folder}; AVEL_TEST_DATA says where it lies")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of PyTorch, as in children that are compared with; more do nothing for tiny networks but wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blank(patched: pytest.MonkeyPatch) -> None:
    """Every picture is a white pixel, written as usual: drawing takes most of the time where only files matter."""

    def save(_: object, out: str | Path) -> None:
        with replacing(out) as temporary:
            Image.new("RGB", (1, 1), "white").save(temporary, format="png")

    patched.setattr("avel.plots._save", save)


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Every picture of the module is blank."""
    with pytest.MonkeyPatch.context() as patched:
        blank(patched)
        yield


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of `write_video`: do not change it."""
    return write_video(tmp_path_factory.mktemp("media") / "tiny.mp4", noise=20)


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], Path]:
    """``tiny_clips(folder, number)`` makes a folder of different two-second videos with a CSV of labels."""
    store = tmp_path_factory.mktemp("clips")

    def make(folder: Path, number: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["video,start,end,label,split"]
        for index in range(number):
            name = f"clip{index}.mp4"
            if not (store / name).exists():
                write_video(store / name, seconds=2, tone=200.0 * (index + 1), noise=5 + index)
            (folder / name).write_bytes((store / name).read_bytes())
            label = ("bell", "dog")[index % 2]
            lines.append(f"{name},0,1,{label},{'train' if index else 'test'}")
        (folder / "clips.csv").write_text("\n".join(lines) + "\n")
        return folder / "clips.csv"

    return make


@pytest.fixture(scope="session")
def visual() -> VisualExtractor:
    """The classical visual extractor."""
    return build_visual("classical")


@pytest.fixture(scope="session")
def audio() -> AudioExtractor:
    """The classical audio extractor."""
    return build_audio("classical")

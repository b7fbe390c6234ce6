"""Against the references themselves, with weights made at random: Keras, torchvggish, OpenCV, resampy.

They need the packages of requirements-parity.lock, in an environment of their own: ``make parity`` makes it, runs them
and shows the figures. There the references must be there (AVEL_PARITY=1); elsewhere tests are skipped without them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from random_weights import digest, random_stack, random_vggish, write_keras, write_vggish

from avel.features import vgg19
from avel.features.vgg19 import Vgg19, resize_bilinear
from avel.features.vggish import Vggish, log_mel, resample

MUST_RUN = bool(os.environ.get("AVEL_PARITY"))


def reference(name: str) -> ModuleType:
    """Import a package that only these tests need; without it fail where they must run, and skip elsewhere."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if not MUST_RUN:
        return pytest.importorskip(name, reason=f"needs {name}: make parity")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.fail(f"{name} of requirements-parity.lock cannot be imported: {error}", pytrace=False)


def old_resampy() -> ModuleType:
    """resampy 0.2: later ones have another ``kaiser_best``."""
    resampy = reference("resampy")
    if not resampy.__version__.startswith("0.2."):
        (pytest.fail if MUST_RUN else pytest.skip)(f"needs resampy 0.2, not {resampy.__version__}: make parity")
    return resampy


def difference(what: str, found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference as a share of the largest value."""
    assert found.shape == wanted.shape
    share = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    print(f"\n{what}: {share:.1e}")
    return share


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """80 MB, gone afterwards."""
    path = write_keras(tmp_path_factory.mktemp("weights") / "vgg19.h5", random_stack(vgg19.BLOCKS, 3))
    yield path
    path.unlink()


def test_vgg19_is_keras_s(keras_file: Path) -> None:
    keras = reference("keras")
    network = keras.applications.VGG19(weights=str(keras_file), include_top=False, input_shape=(224, 224, 3))
    assert network.layers[-1].name == "block5_pool"
    frames = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    pictures = keras.applications.vgg19.preprocess_input(frames.astype(np.float32))
    wanted = np.asarray(network.predict(pictures, verbose=0))
    ours = Vgg19(weights_file=str(keras_file), weights_sha=digest(keras_file), frames_per_segment=2)
    assert difference("VGG-19, frames", ours.block5_pool(frames), wanted) <= 1e-4
    assert difference("VGG-19, mean", ours(frames), wanted.reshape(2, 2, 7, 7, 512).mean(1)) <= 1e-4
    half = Vgg19(weights_file=str(keras_file), weights_sha=digest(keras_file), precision="bfloat16")
    assert difference("VGG-19 in bfloat16", half.block5_pool(frames), wanted) <= 2e-2


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_vggish_is_torchvggish_s(tmp_path: Path, rate: int) -> None:
    old_resampy()
    reference("soundfile")
    reference("torchvggish")
    from torchvggish import torchvggish, vggish_input

    state = random_vggish()
    network = torchvggish._vgg(postprocess=False)
    network.load_state_dict(state)
    path = write_vggish(tmp_path / "vggish.pth", state)
    rng = np.random.default_rng(0)
    time = np.arange(10 * rate) / rate
    loud = np.sin(2 * np.pi * (200 + 300 * time) * time) * 0.5 * (time % 2 < 1)
    pcm = np.rint((loud + rng.normal(size=len(time)) * 0.01) * 32767).astype(np.int16)
    samples = pcm / 32768.0
    for framing in ("per_second", "continuous"):
        ours = Vggish(str(path), digest(path), framing=framing)
        spans = ours.spans(1.0)
        before, length = round(spans.before * rate), round(spans.length * rate)
        padded = np.pad(samples, (before, length))
        starts = [round(t * spans.hop * rate) for t in range(10)]
        stretches = np.stack([padded[start : start + length] for start in starts])
        found = ours(ours.resample(stretches, rate, 0))
        pieces = samples.reshape(10, rate) if framing == "per_second" else samples[None]
        examples = torch.cat([vggish_input.waveform_to_examples(piece, rate) for piece in pieces])
        with torch.no_grad():
            wanted = network(examples).numpy()
        assert difference(f"VGGish, {framing}, {rate} Hz", found, wanted) <= 1e-4
        assert 0.2 < (wanted == 0).mean() < 0.8


def test_log_mel_is_vggish_s() -> None:
    reference("soundfile")
    reference("resampy")
    reference("torchvggish")
    from torchvggish import mel_features

    wave = np.random.default_rng(0).normal(size=160_000) * 0.1
    wanted = mel_features.log_mel_spectrogram(
        wave, 16_000, 0.01, 0.025, 0.010, num_mel_bins=64, lower_edge_hertz=125, upper_edge_hertz=7500
    )
    assert np.abs(log_mel(wave[None])[0] - wanted).max() < 1e-9


@pytest.mark.parametrize("size", [(360, 640), (720, 1280), (1080, 1920), (240, 426), (224, 224), (448, 448), (97, 61)])
def test_resize_is_opencv_s(size: tuple[int, int]) -> None:
    cv2 = reference("cv2")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 5) * 3
    for picture in (noise, smooth):
        wanted = cv2.resize(picture, (224, 224), interpolation=cv2.INTER_LINEAR)
        levels = np.abs(resize_bilinear(picture[None], 224)[0].astype(int) - wanted)
        print(f"\nresize {size}: {levels.max()} grey levels, {(levels > 0).mean():.2%} of the pixels")
        assert levels.max() <= 1


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 12_345])
def test_resampler_is_resampy_s(rate: int) -> None:
    resampy = old_resampy()
    wave = np.random.default_rng(0).normal(size=(2, rate)) * 0.1
    wanted = resampy.resample(wave, rate, 16_000, axis=-1)  # kaiser_best
    found = resample(wave, rate)
    assert difference(f"resampler from {rate} Hz", found, wanted) < 1e-6
    assert np.abs(log_mel(found) - log_mel(wanted)).max() < 1e-6

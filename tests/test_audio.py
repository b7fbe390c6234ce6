"""Log-mel against plain Python, and what the classical audio features tell apart."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest

from avel.errors import AvelError
from avel.features import AudioExtractor
from avel.features.audio import ClassicalAudio, log_mel, mel_filters


def mel(hertz: float) -> float:
    return 1127 * math.log(1 + hertz / 700)


def plain_filter(bins: int, band: int, bands: int, rate: int, low: float, high: float) -> list[float]:
    step = (mel(high) - mel(low)) / (bands + 1)
    left, centre, right = (mel(low) + (band + k) * step for k in range(3))
    weights = []
    for k in range(bins):
        at = mel(k * rate / 2 / (bins - 1))
        weight = (at - left) / (centre - left) if at <= centre else (right - at) / (right - centre)
        weights.append(max(0.0, weight) if k else 0.0)
    return weights


def test_mel_filters() -> None:
    found = mel_filters(10, 65, 8_000, 100.0, 3_500.0)
    assert found.shape == (65, 10)
    for band in range(10):
        assert found[:, band] == pytest.approx(plain_filter(65, band, 10, 8_000, 100, 3_500), abs=1e-9)


def test_log_mel_by_hand() -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=(2, 100)).astype(np.float32)
    found = log_mel(wave, 8_000, num_bands=5, low=100, high=3_500, window=40, hop=16, fft=64, offset=0.02)
    assert found.shape == (2, 4, 5) and found.dtype == np.float32
    for clip in range(2):
        for frame in range(4):
            piece = [
                float(wave[clip, frame * 16 + n]) * (0.5 - 0.5 * math.cos(2 * math.pi * n / 40)) for n in range(40)
            ]
            size = [abs(sum(x * cmath.exp(-2j * math.pi * k * n / 64) for n, x in enumerate(piece))) for k in range(33)]
            for band in range(5):
                weights = plain_filter(33, band, 5, 8_000, 100, 3_500)
                wanted = math.log(sum(w * s for w, s in zip(weights, size, strict=True)) + 0.02)
                assert found[clip, frame, band] == pytest.approx(wanted, abs=1e-4)


def test_log_mel_of_silence_and_of_a_tone() -> None:
    assert log_mel(np.zeros((1, 16_000), np.float32), 16_000) == pytest.approx(math.log(0.01))
    for hertz in (200, 440, 1_000, 3_000, 6_000):
        tone = np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)
        found = log_mel(tone[None], 16_000)
        assert found.shape == (1, 98, 64)
        step = (mel(7_500) - mel(125)) / 65
        assert abs(found[0, 50].argmax() - ((mel(hertz) - mel(125)) / step - 1)) <= 1


def clip(*waves: np.ndarray) -> np.ndarray:
    return np.stack(waves).astype(np.float32)


def test_shape_and_independence_of_segments(audio: AudioExtractor) -> None:
    wave = np.random.default_rng(0).normal(size=(5, 16_000)).astype(np.float32) * 0.1
    found = audio(wave)
    assert found.shape == (5, audio.dim) and found.dtype == np.float32 and np.isfinite(found).all()
    assert np.array_equal(found[3:4], audio(wave[3:4]))
    for samples in (4_000, 8_000, 32_000):  # segments of other lengths
        assert audio(np.zeros((2, samples), np.float32)).shape == (2, audio.dim)


def test_groups() -> None:
    t = np.arange(16_000) / 16_000
    noise = np.random.default_rng(0).normal(size=16_000) * 0.1
    beats = noise * (0.5 + 0.5 * np.sign(np.sin(2 * np.pi * 7 * t)))
    steady, beating, silent = (
        {name: values[index] for name, values in ClassicalAudio().groups(clip(noise, beats, 0 * t)).items()}
        for index in range(3)
    )
    assert (beating["quiet"] < steady["quiet"] - 1).all() and (beating["spread"] > steady["spread"] + 0.3).all()
    assert beating["onset"][2] > 2 * 0.5 + steady["onset"][2]
    modulation = beating["modulation"].reshape(5, -1).mean(1)
    assert modulation.argmax() == 2  # 7 a second lies in 5-8
    assert (silent["modulation"] == 0).all() and (silent["maximum"] == np.float32(math.log(0.01))).all()


def test_scaled_to_about_one(audio: AudioExtractor) -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=(8, 16_000)) * rng.uniform(0.003, 0.1, (8, 1))
    found = audio(wave.astype(np.float32))
    assert abs(found.mean()) < 1.5 and 0.3 < found.std() < 3 and np.abs(found).max() < 12


def test_tag_and_version() -> None:
    assert ClassicalAudio().tag == ClassicalAudio(version=1).tag
    assert ClassicalAudio().options == {"version": 1}
    with pytest.raises(AvelError, match="version 2"):
        ClassicalAudio(version=2)

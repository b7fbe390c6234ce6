"""The sounds of the rendered world: one synthesizer per event class, off-screen voices and noise.

Everything is a pure function of a generator, so that the same seed gives the same waveform. A waveform is float32
(samples,) at ``SAMPLE_RATE``. Harmonic sounds read one period from a table along a pitch track, which costs one look-up
per sample instead of one sine per harmonic and sample.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000  # Hz; the features look at 125-7500 Hz

Rng = np.random.Generator
Wave = NDArray[np.float32]
Synth = Callable[[Rng, float, float, int], Wave]

_TABLE = 2048
_CEILING = 10_000.0  # Hz; no harmonic above it, so that nothing folds back at 12 kHz


def sound(label: str, rng: Rng, period: float, offset: float, samples: int) -> Wave:
    """The sound of one thing as if it never stopped.

    Args:
        label: the event class.
        rng: the generator of the instance: pitch and timbre are drawn from it.
        period: seconds from stroke to stroke.
        offset: seconds at which a stroke begins.
        samples: length.

    Returns:
        (samples,), its loud 50 ms frames at an RMS of 1, so that no class is known by its level.
    """
    wave = SOUNDS[label](rng, period, offset, samples)
    return wave / np.float32(loudness(wave) + 1e-9)


def loudness(wave: Wave) -> float:
    """RMS of the loud frames: the 95th percentile over 50 ms frames."""
    frame = SAMPLE_RATE // 20
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    return float(np.percentile(np.sqrt((frames * frames).mean(1)), 95))


def gate(wave: Wave, stretches: list[tuple[int, int]], fade: float = 0.015) -> Wave:
    """Keep ``wave`` in the given stretches of whole seconds, faded ``fade`` seconds *inside* each end."""
    envelope = np.zeros_like(wave)
    ramp = np.linspace(0, 1, int(fade * SAMPLE_RATE), dtype=np.float32)
    for start, end in stretches:
        a, b = start * SAMPLE_RATE, end * SAMPLE_RATE
        envelope[a:b] = 1
        envelope[a : a + len(ramp)] = ramp
        envelope[b - len(ramp) : b] = ramp[::-1]
    return wave * envelope


def noise(rng: Rng, samples: int, low: float, high: float, slope: float = 0.0) -> Wave:
    """(samples,) of noise of RMS 1 between ``low`` and ``high`` Hz, its amplitude falling as frequency ** -slope."""
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE).astype(np.float32) + np.float32(1)
    gain = frequency**-slope / (1 + (low / frequency) ** 6) / (1 + (frequency / high) ** 6)
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32)) * gain
    wave = np.fft.irfft(spectrum, samples).astype(np.float32)
    return wave / np.sqrt((wave * wave).mean())


def voice(rng: Rng, chatter: Rng, samples: int) -> Wave:
    """Off-screen speech without words: syllables of a buzzing larynx through three moving formants.

    Args:
        rng: the generator of the speaker: pitch, length of the vocal tract, rate.
        chatter: the generator of what is said.
        samples: length.

    Returns:
        (samples,), loud frames at an RMS of about 1, with pauses.
    """
    pitch, tract, rate = rng.uniform(85, 250), rng.uniform(0.85, 1.2), rng.uniform(3.5, 6)
    wave = np.zeros(samples, np.float32)
    at = chatter.uniform(0, 0.5)
    while True:
        length = int(SAMPLE_RATE * chatter.uniform(0.5, 0.95) / rate)
        begin = int(at * SAMPLE_RATE)
        if begin + length >= samples:
            break
        first, second, third = chatter.uniform(280, 800), chatter.uniform(850, 2300), chatter.uniform(2400, 3000)
        top = pitch * chatter.uniform(0.9, 1.25)
        track = np.linspace(top, top * chatter.uniform(0.8, 1.05), length, dtype=np.float32)
        table = _vowel(top * 1.1, [(first * tract, 90), (second * tract, 130), (third * tract, 200)], 1.0)
        syllable = _read(table, track) * np.sqrt(_arch(length))
        if chatter.random() < 0.3:  # a hiss: s, sh, f
            hiss = length // 3
            syllable[:hiss] = 0.35 * noise(chatter, hiss, 2500, 7000) * np.hanning(hiss).astype(np.float32)
        wave[begin : begin + length] += syllable * np.float32(chatter.uniform(0.6, 1.0))
        at += chatter.uniform(0.9, 1.1) / rate + (chatter.uniform(0.2, 0.6) if chatter.random() < 0.15 else 0.0)
    return wave / np.float32(loudness(wave) + 1e-9)


def _arch(samples: int) -> Wave:
    """(samples,) rising from 0 to 1 and falling back as half a sine does."""
    return np.sin(np.linspace(0, 3.14159, samples)).astype(np.float32)


def _table(amplitudes: NDArray[np.float64], scatter: float = 0.0) -> Wave:
    """One period of a tone of these harmonic amplitudes; ``scatter`` spreads their phases, softening the pulse."""
    spectrum = np.zeros(_TABLE // 2 + 1, np.complex128)
    order = np.arange(1, len(amplitudes) + 1)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(-1j * scatter * order**2)
    wave = np.fft.irfft(spectrum, _TABLE)
    return (wave / np.sqrt((wave * wave).mean())).astype(np.float32)


def _harmonics(pitch: float) -> NDArray[np.float64]:
    return np.arange(1, max(2, min(_TABLE // 2, int(_CEILING / pitch))), dtype=np.float64)


def _vowel(pitch: float, formants: list[tuple[float, float]], tilt: float) -> Wave:
    """One period of a source falling as harmonic ** -tilt, seen through resonances (centre, width) in Hz."""
    order = _harmonics(pitch)
    gain = sum(1 / (1 + ((order * pitch - centre) / width) ** 2) for centre, width in formants) + 0.01
    return _table(gain * order**-tilt, 0.7)


def _read(table: Wave, pitch: NDArray) -> Wave:
    phase = np.cumsum(pitch, dtype=np.float64) * (_TABLE / SAMPLE_RATE)
    return table[phase.astype(np.int64) & (_TABLE - 1)]


def _seconds(length: float) -> Wave:
    return np.arange(int(length * SAMPLE_RATE), dtype=np.float32) / np.float32(SAMPLE_RATE)


def _beats(period: float, offset: float, samples: int) -> Wave:
    """(samples,) beats since the stroke at ``offset``: a whole number wherever a stroke begins."""
    return (np.arange(samples, dtype=np.float32) / np.float32(SAMPLE_RATE) - np.float32(offset)) / np.float32(period)


def _strike(strokes: list[Wave], period: float, offset: float, samples: int) -> Wave:
    """Place the strokes in turn, one every ``period``, from the first that fits."""
    wave = np.zeros(samples, np.float32)
    first = -int(offset / period)
    for number in range(first, int((samples / SAMPLE_RATE - offset) / period) + 1):
        begin = round((offset + number * period) * SAMPLE_RATE)
        stroke = strokes[number % len(strokes)][: samples - begin]
        wave[begin : begin + len(stroke)] += stroke
    return wave


def _bell(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    pitch, t = rng.uniform(330, 620), _seconds(1.3)
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.67, 3.01, 4.17, 5.43]) * rng.uniform(0.99, 1.01, 9)
    weights = np.array([0.5, 0.8, 0.7, 0.5, 1.0, 0.6, 0.5, 0.4, 0.25]) * rng.uniform(0.6, 1.4, 9)
    decays = rng.uniform(2.0, 3.5) * np.array([0.6, 0.8, 1, 1.1, 1.2, 1.6, 2, 2.6, 3.2])
    stroke = sum(
        np.float32(w) * np.sin(np.float32(2 * np.pi * pitch * r) * t) * np.exp(np.float32(-d) * t)
        for r, w, d in zip(ratios, weights, decays, strict=True)
    )
    return _strike([stroke, stroke * np.float32(0.85)], period, offset, samples)


def _dog(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    pitch, length = rng.uniform(230, 480), rng.uniform(0.16, 0.24)
    tract = rng.uniform(0.85, 1.2)
    t = _seconds(length)
    contour = pitch * (0.75 + 0.5 * _arch(len(t)))
    tone = _read(_vowel(pitch * 1.2, [(750 * tract, 160), (1350 * tract, 220), (2700 * tract, 500)], 0.4), contour)
    rough = noise(rng, len(t), 500, 3500)
    stroke = (tone + np.float32(0.4) * rough) * np.interp(t / length, [0, 0.2, 0.6, 1], [0, 1, 0.7, 0]).astype(
        np.float32
    )
    return _strike([stroke, stroke * np.float32(0.8)], period, offset, samples)


def _train(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    t = _seconds(0.12)
    clack = noise(rng, len(t), rng.uniform(350, 600), rng.uniform(1300, 2000)) * np.exp(np.float32(-38) * t)
    low, high = rng.uniform(180, 320), rng.uniform(1500, 2500)
    rumble, rush = noise(rng, samples, 50, low, 0.6), noise(rng, samples, 300, high, 0.7)
    pair = np.zeros(int((0.14 + 0.12) * SAMPLE_RATE), np.float32)
    pair[: len(clack)] += clack
    pair[-len(clack) :] += np.float32(0.8) * clack
    return rumble + np.float32(0.25) * rush + np.float32(3.0) * _strike([pair], period, offset, samples)


def _siren(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    low = rng.uniform(480, 700)
    high = low * rng.uniform(1.35, 1.8)
    swing = np.cos(np.float32(np.pi) * _beats(period, offset, samples))  # a full wail every two beats
    if rng.random() < 0.5:
        swing = np.tanh(np.float32(6) * swing)  # the two-tone horn
    order = np.arange(1.0, 7.0)
    weights = order ** -rng.uniform(0.6, 1.2) * np.where(order % 2, 1.0, rng.uniform(0.2, 0.8))
    return _read(_table(weights), (low + high) / 2 + (high - low) / 2 * swing)


def _drum(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    pitch, t = rng.uniform(110, 190), _seconds(0.32)
    skin = np.sin(2 * np.pi * np.cumsum(pitch * (1 + 0.8 * np.exp(-28 * t))) / SAMPLE_RATE).astype(np.float32)
    snare = noise(rng, len(t), rng.uniform(800, 1500), 7000) * np.exp(np.float32(-rng.uniform(18, 30)) * t)
    stroke = skin * np.exp(np.float32(-rng.uniform(10, 16)) * t) + np.float32(rng.uniform(0.3, 0.6)) * snare
    return _strike([stroke, np.float32(0.7) * stroke], period, offset, samples)


def _clock(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    pitch, t = rng.uniform(2200, 3600), _seconds(0.09)
    click = noise(rng, len(t), 3000, 7000) * np.exp(np.float32(-220) * t)

    def knock(scale: float) -> Wave:
        ring = sum(np.sin(np.float32(2 * np.pi * pitch * scale * r) * t) / r for r in (1.0, 1.58, 2.24))
        body = np.sin(np.float32(2 * np.pi * pitch * scale / 4.1) * t) * np.exp(np.float32(-60) * t)
        return ring * np.exp(np.float32(-75) * t) + np.float32(0.6) * click + np.float32(0.5) * body

    return _strike([knock(1.0), knock(rng.uniform(0.72, 0.85))], period, offset, samples)


def _ball(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    pitch, wobble, t = rng.uniform(190, 290), rng.uniform(16, 24), _seconds(0.38)
    track = pitch * (1 + 1.6 * t / 0.38 + 0.12 * np.sin(2 * np.pi * wobble * t))
    stroke = _read(_table(np.array([1.0, 0.35, 0.5, 0.12, 0.2])), track) * np.exp(np.float32(-8) * t)
    stroke[: len(stroke) // 12] += np.float32(1.2) * noise(rng, len(stroke) // 12, 100, 500)
    return _strike([stroke * np.minimum(1, (t[-1] - t) * 30)], period, offset, samples)


def _helicopter(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    beats = _beats(period, offset, samples)
    chop = np.exp(np.float32(-4) * (beats % 1)) + np.float32(0.08)
    thump = np.sin(np.float32(2 * np.pi * rng.uniform(65, 95) * period) * (beats % 1))
    whine = _read(_table(np.array([1.0, 0.4])), np.full(samples, rng.uniform(2300, 3400)))
    wash = noise(rng, samples, 120, rng.uniform(700, 1100), 0.5)
    return (wash + np.float32(0.8) * thump) * chop + np.float32(0.06) * whine


def _chainsaw(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    pitch = rng.uniform(95, 150)
    beats = _beats(period, offset, samples)
    rev = 1 + 0.45 * np.exp(-2.5 * (beats % 1)) * np.minimum(1, (beats % 1) * 12)
    order = _harmonics(pitch * 1.5)
    weights = order**-0.55 * (1 + 1.5 * np.exp(-(((order * pitch - rng.uniform(1500, 2600)) / 700) ** 2)))
    engine = _read(_table(weights * rng.uniform(0.5, 1.5, len(order)), 0.02), pitch * rev)
    return np.tanh(np.float32(1.5) * engine) + np.float32(0.35) * noise(rng, samples, 2500, 8000) * (rev - 0.6)


def _rooster(rng: Rng, period: float, offset: float, samples: int) -> Wave:
    pitch, t = rng.uniform(560, 820), _seconds(0.84)
    times = [0, 0.1, 0.16, 0.26, 0.34, 0.5, 0.66, 0.84]
    track = pitch * np.interp(t, times, [0.8, 1.0, 0.95, 1.15, 1.2, 1.6, 1.5, 0.75])
    level = np.interp(
        t, [0, 0.03, 0.12, 0.16, 0.19, 0.27, 0.31, 0.4, 0.7, 0.84], [0, 0.7, 0.7, 0.1, 0.7, 0.8, 0.3, 1, 1, 0]
    )
    order = np.arange(1.0, 9.0)
    bright = rng.uniform(1800, 3200)
    table = _table(1 / (1 + ((order * pitch * 1.3 - bright) / 900) ** 2) + 0.25 / order, 0.5)
    stroke = (_read(table, track) * level).astype(np.float32)
    stroke *= np.float32(1) + np.float32(0.3) * np.sin(np.float32(2 * np.pi * rng.uniform(28, 45)) * t)
    return _strike([stroke], period, offset, samples)


SOUNDS: dict[str, Synth] = {
    "bell": _bell,
    "dog": _dog,
    "train": _train,
    "siren": _siren,
    "drum": _drum,
    "clock": _clock,
    "ball": _ball,
    "helicopter": _helicopter,
    "chainsaw": _chainsaw,
    "rooster": _rooster,
}

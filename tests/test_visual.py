"""The classical visual features, against plain Python and by what they tell apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from avel.errors import AvelError
from avel.features import AudioExtractor, VisualExtractor
from avel.features.segments import extract_clip
from avel.features.visual import ClassicalVisual, _cells, _histograms, _surroundings

SIZE = 112


def still(picture: np.ndarray) -> np.ndarray:
    """One segment that shows one picture."""
    return np.repeat(picture[None], 16, axis=0)


def grating(angle: float, period: float = 16.0, shift: float = 0.0) -> np.ndarray:
    """Waves whose brightness changes along ``angle`` (radians, y downwards)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    phase = 2 * np.pi * ((x * math.cos(angle) + y * math.sin(angle) - shift) / period)
    return np.repeat((127 + 100 * np.sin(phase))[..., None], 3, -1).astype(np.uint8)


def groups(frames: np.ndarray) -> dict[str, np.ndarray]:
    return ClassicalVisual().groups(frames)


def test_cells() -> None:
    values = np.random.default_rng(0).normal(size=(2, 14, 21)).astype(np.float32)
    found = _cells(values)
    assert found.shape == (2, 7, 7)
    for row in range(7):
        for column in range(7):
            block = values[1, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            assert found[1, row, column] == pytest.approx(sum(block.ravel().tolist()) / 6, abs=1e-6)


def test_histograms_by_hand() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1, 3, 14, 14)).astype(np.float32)
    weight = rng.uniform(0, 1, (1, 3, 14, 14)).astype(np.float32)
    plain, weighted = _histograms(x, y, weight, 8)
    assert plain.shape == weighted.shape == (1, 7, 7, 8)
    for row, column, k in ((0, 0, 0), (3, 5, 3), (6, 6, 7), (2, 1, 4)):
        angle = 2 * math.pi * k / 8
        shares, heavy = [], []
        for frame in range(3):
            for i in (2 * row, 2 * row + 1):
                for j in (2 * column, 2 * column + 1):
                    across = float(x[0, frame, i, j]) * math.cos(angle) + float(y[0, frame, i, j]) * math.sin(angle)
                    shares.append(max(0.0, across))
                    heavy.append(max(0.0, across) * float(weight[0, frame, i, j]))
        assert plain[0, row, column, k] == pytest.approx(sum(shares) / 12, abs=1e-5)
        assert weighted[0, row, column, k] == pytest.approx(sum(heavy) / 12, abs=1e-5)


@pytest.mark.parametrize("bin_", range(8))
def test_the_orientation_of_a_grating(bin_: int) -> None:
    # Bin k stands for the doubled angle 2 pi k / 8, which is the direction pi k / 8 of the brightness's change.
    shape = groups(still(grating(math.pi * bin_ / 8)))["shape"][0, 1:-1, 1:-1]
    assert (shape.argmax(-1) == bin_).all()
    opposite = groups(still(255 - grating(math.pi * bin_ / 8)))["shape"][0, 1:-1, 1:-1]
    assert np.abs(opposite - shape).max() < 0.05  # dark on bright is as bright on dark


def test_shape_does_not_depend_on_contrast_but_its_energy_does() -> None:
    strong, weak = grating(0.3), (127 + (grating(0.3).astype(int) - 127) // 2).astype(np.uint8)
    a, b = groups(still(strong)), groups(still(weak))
    assert np.abs(a["shape"] - b["shape"]).max() < 0.12
    assert (a["shape energy"] - b["shape energy"] > 0.4).all()


def test_flat_and_still() -> None:
    found = groups(still(np.full((SIZE, SIZE, 3), 90, np.uint8)))
    for name in ("shape", "moving shape", "moving hue", "hue", "direction", "speed", "colour spread"):
        assert np.abs(found[name]).max() < 1e-3, name
    assert found["lightness"] == pytest.approx(90 / 255, abs=1e-3)
    assert found["change"] == pytest.approx(math.log(0.002), abs=1e-3)


@pytest.mark.parametrize(
    ("rgb", "channel", "sign"),
    [((200, 40, 40), 0, 1), ((40, 200, 40), 0, -1), ((200, 200, 40), 1, 1), ((40, 40, 200), 1, -1)],
)
def test_colours(rgb: tuple[int, int, int], channel: int, sign: int) -> None:
    found = groups(still(np.full((SIZE, SIZE, 3), rgb, np.uint8)))
    assert (sign * found["colour"][..., channel] > 0.5).all()
    red, green, blue = (value / 255 for value in rgb)
    angle = math.atan2((red + green) / 2 - blue, red - green)
    assert (found["hue"].argmax(-1) == round(angle / (2 * math.pi) * 8) % 8).all()


def test_only_what_moves_is_in_the_moving_shape() -> None:
    frames = still(grating(0.0)).copy()  # upright waves everywhere, at rest
    for index in range(16):  # and in the cell (3, 3) level ones that run
        frames[index, 48:64, 48:64] = grating(math.pi / 2, 8, index * 1.0)[48:64, 48:64]
    found = groups(frames)
    energy = found["moving shape energy"][0, ..., 0]
    assert np.unravel_index(energy.argmax(), energy.shape) == (3, 3)
    assert found["moving shape"][0, 3, 3].argmax() == 4 and found["shape"][0, 0, 0].argmax() == 0
    assert found["moving shape"][0, 0].max() < 0.05
    change = found["change"][0, ..., 0]
    assert change[3, 3] > change[0, 0] + 2


@pytest.mark.parametrize(("angle", "speed"), [(0.0, 1.0), (math.pi, 1.0), (math.pi / 2, 0.5), (-math.pi / 2, 1.5)])
def test_direction_and_speed_of_motion(angle: float, speed: float) -> None:
    frames = np.stack([grating(angle, 24, index * speed) for index in range(16)])
    found = groups(frames)
    u, v = np.median(found["direction"][0, 1:-1, 1:-1], axis=(0, 1))
    assert u == pytest.approx(speed * math.cos(angle), abs=0.2) and v == pytest.approx(speed * math.sin(angle), abs=0.2)


@pytest.mark.parametrize("hertz", [1, 3, 7])
def test_blinking(hertz: int) -> None:
    light = 128 + 60 * np.cos(2 * np.pi * hertz * np.arange(16) / 16)
    frames = np.repeat(light, SIZE * SIZE * 3).reshape(16, SIZE, SIZE, 3).astype(np.uint8)
    assert (groups(frames)["brightness spectrum"].argmax(-1) == hertz - 1).all()


def test_shape_and_independence_of_segments(visual: VisualExtractor) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (48, SIZE, SIZE, 3), dtype=np.uint8)
    found = visual(frames)
    assert found.shape == (3, 7, 7, visual.dim) and found.dtype == np.float32
    assert np.array_equal(found[1:2], visual(frames[16:32]))


def test_finite_and_in_half_precision(visual: VisualExtractor) -> None:
    blinking = np.zeros((16, SIZE, SIZE, 3), np.uint8)
    blinking[::2] = 255
    checks = still((np.indices((SIZE, SIZE)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1))
    for frames in (np.zeros_like(blinking), np.full_like(blinking, 255), blinking, checks):
        found = visual(frames)
        assert np.isfinite(found).all() and np.abs(found).max() < 100  # far below float16's 65504


def test_scaled_to_about_one_on_a_real_clip(real_data: Path, visual: VisualExtractor, audio: AudioExtractor) -> None:
    features = extract_clip(real_data / "media" / "BjCEufrlXm4.mp4", visual, audio)
    for values in (features.visual.astype(np.float32), features.audio):
        assert abs(values.mean()) < 1 and 0.5 < values.std() < 2.5


def test_tag_and_version(visual: VisualExtractor) -> None:
    assert ClassicalVisual().tag == ClassicalVisual(version=1).tag == visual.tag
    assert ClassicalVisual().options == {"version": 1}
    with pytest.raises(AvelError, match="version 2"):
        ClassicalVisual(version=2)


def test_surroundings_are_the_mean_of_the_cells_around() -> None:
    values = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    found = _surroundings(values)
    for row in range(4):
        for column in range(5):
            around = values[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            assert np.allclose(found[:, row, column], around.mean((1, 2)), atol=1e-6)

"""The things of the rendered world: one drawing per event class, and shapes that belong to none.

A thing is drawn on a ``Canvas`` by signed distances (negative inside a shape), which gives clean edges at any size
without a drawing library. y runs down from -1 to 1, x from -aspect to aspect. ``beat`` counts the strokes of the
thing's sound: a stroke begins where it is whole.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Field = NDArray  # of float32
Colour = tuple[float, float, float]
Points = list[tuple[float, float]]

INK: Colour = (28.0, 26.0, 30.0)
_TURN = 2 * pi


class Canvas:
    """A picture with transparency, painted shape by shape.

    ``planes`` (4, H, W) holds red, green and blue in 0..255, already multiplied by the last plane, the opacity in 0..1.

    Args:
        height, width: pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.unit = 2 / height
        y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
        self.x: Field = x * np.float32(self.unit) - np.float32(width / height)
        self.y: Field = y * np.float32(self.unit) - np.float32(1)
        self.planes = np.zeros((4, height, width), np.float32)

    def turned(self, angle: float, about: tuple[float, float] = (0.0, 0.0)) -> Canvas:
        """The same picture seen in axes turned by ``angle`` (radians, clockwise) about a point."""
        other = Canvas.__new__(Canvas)
        other.unit, other.planes = self.unit, self.planes
        c, s = np.float32(cos(angle)), np.float32(sin(angle))
        x, y = self.x - np.float32(about[0]), self.y - np.float32(about[1])
        other.x, other.y = c * x + s * y + np.float32(about[0]), c * y - s * x + np.float32(about[1])
        return other

    def moved(self, x: float, y: float) -> Canvas:
        """The same picture with the origin at (x, y)."""
        other = Canvas.__new__(Canvas)
        other.unit, other.planes = self.unit, self.planes
        other.x, other.y = self.x - np.float32(x), self.y - np.float32(y)
        return other

    def paint(self, cover: Field, colour: Colour | Field) -> None:
        """Lay a colour, three numbers or (3, H, W), over the picture where ``cover`` (H, W) is above 0."""
        rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
        if not len(rows):
            return
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        cover = cover[part]
        self.planes[:, *part] *= 1 - cover
        self.planes[3, *part] += cover
        for plane, value in enumerate(colour):
            self.planes[plane, *part] += cover * (value[part] if isinstance(value, np.ndarray) else np.float32(value))

    def shape(self, distance: Field, colour: Colour, edge: float = 0.0, shade: float = 0.0) -> None:
        """Fill a signed distance; ``edge`` is the width of a dark outline, ``shade`` darkens towards the rim."""
        if edge:
            self.paint(np.clip(0.5 - (distance - edge) / self.unit, 0, 1), INK)
        cover = np.clip(0.5 - distance / self.unit, 0, 1)
        if shade:
            light = 1 - shade * np.clip(0.5 + 0.6 * self.x + 0.5 * self.y, 0, 1)
            self.paint(cover, light * np.asarray(colour, np.float32)[:, None, None])
        else:
            self.paint(cover, colour)

    def glow(self, x: float, y: float, radius: float, colour: Colour, strength: float) -> None:
        distance = ((self.x - x) ** 2 + (self.y - y) ** 2) / np.float32(radius * radius)
        self.paint(np.float32(strength) * np.clip(np.exp(-distance) - 0.05, 0, 1), colour)

    def circle(self, x: float, y: float, radius: float) -> Field:
        return _length(self.x - x, self.y - y) - np.float32(radius)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Field:
        """Approximate distance, good near the rim."""
        return (_length((self.x - x) / rx, (self.y - y) / ry) - 1) * np.float32(min(rx, ry))

    def box(self, x: float, y: float, half_width: float, half_height: float, corner: float = 0.0) -> Field:
        dx, dy = abs(self.x - x) - (half_width - corner), abs(self.y - y) - (half_height - corner)
        outside = _length(np.maximum(dx, 0), np.maximum(dy, 0))
        return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)

    def line(self, x1: float, y1: float, x2: float, y2: float, radius: float) -> Field:
        dx, dy = x2 - x1, y2 - y1
        along = np.clip(((self.x - x1) * dx + (self.y - y1) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        return _length(self.x - x1 - along * dx, self.y - y1 - along * dy) - np.float32(radius)

    def polygon(self, points: Points) -> Field:
        """Distance to a simple polygon, concave ones included."""
        nearest = np.full_like(self.x, np.inf)
        inside = np.zeros(self.x.shape, bool)
        for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
            nearest = np.minimum(nearest, self.line(x1, y1, x2, y2, 0.0))
            if y1 != y2:
                crosses = (self.y < max(y1, y2)) & (self.y >= min(y1, y2))
                inside ^= crosses & (self.x < x1 + (self.y - y1) * ((x2 - x1) / (y2 - y1)))
        return np.where(inside, -nearest, nearest)


def _length(x: Field, y: Field) -> Field:
    return np.sqrt(x * x + y * y)  # several times faster than hypot, whose care for overflow is not needed here


class Look(NamedTuple):
    """What one instance looks like: colours and shape parameters in [0, 1], drawn from its generator."""

    colours: tuple[Colour, Colour, Colour]
    shape: tuple[float, float, float, float]


def _hue(rng: Rng, hues: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(rng.uniform(*hues) % 1, rng.uniform(*saturation), rng.uniform(*value))
    return red * 255, green * 255, blue * 255


def _darker(colour: Colour, by: float) -> Colour:
    return colour[0] * by, colour[1] * by, colour[2] * by


def _bell(c: Canvas, look: Look, beat: float) -> None:
    metal, beam, _ = look.colours
    width, mouth = 0.42 + 0.14 * look.shape[0], 0.62 + 0.12 * look.shape[1]
    c.shape(c.box(0, -0.86, 0.62, 0.09), beam, 0.03)
    turned = c.turned(-0.62 * cos(pi * beat), (0, -0.84))
    clapper = turned.turned(-0.25 * cos(pi * beat), (0, -0.5))
    clapper.shape(clapper.line(0, -0.5, 0, 0.68, 0.035), _darker(metal, 0.45))
    clapper.shape(clapper.circle(0, 0.7, 0.12), _darker(metal, 0.5), 0.03)
    half: Points = [(0.1, -0.72), (width * 0.62, -0.6), (width * 0.8, -0.1), (width, 0.28), (mouth, 0.52), (mouth, 0.6)]
    turned.shape(turned.polygon(half + [(-x, y) for x, y in reversed(half)]), metal, 0.035, 0.55)
    turned.shape(turned.box(0, 0.5, mouth - 0.05, 0.025), _darker(metal, 0.5))
    turned.shape(turned.box(0, -0.38, width * 0.7, 0.022), _darker(metal, 0.55))
    turned.shape(turned.ellipse(-width * 0.42, -0.12, 0.05, 0.25), (255, 250, 225))


def _dog(c: Canvas, look: Look, beat: float) -> None:
    coat, patch, collar = look.colours
    bark = max(0.0, sin(pi * (beat % 1) / 0.55)) if beat % 1 < 0.55 else 0.0
    c = c.moved(0, -0.14 * bark)
    legs = 0.1 + 0.05 * look.shape[0]
    for x in (-0.62, -0.4, 0.14, 0.36):
        c.shape(c.line(x, 0.3, x, 0.92 + 0.14 * bark, legs * 0.8), _darker(coat, 0.8), 0.03)
    tail = c.turned(0.5 * sin(pi * beat), (-0.72, 0.05))
    tail.shape(tail.line(-0.72, 0.08, -1.0, -0.42, 0.07), coat, 0.03)
    c.shape(c.ellipse(-0.14, 0.22, 0.68, 0.3 + 0.08 * look.shape[1]), coat, 0.03, 0.4)
    c.shape(c.ellipse(-0.3, 0.12, 0.24, 0.18), patch)
    head = c.moved(0.52, -0.36).turned(-0.45 * bark)
    head.shape(head.line(-0.16, 0.4, 0, 0.05, 0.19), coat, 0.0)
    head.shape(head.line(-0.28, 0.28, 0.04, 0.34, 0.05), collar, 0.02)
    jaw = head.turned(0.75 * bark, (0.1, 0.1))
    jaw.shape(jaw.line(0.1, 0.12, 0.44, 0.12, 0.08), _darker(coat, 0.7), 0.03)
    if bark > 0.1:
        head.shape(head.polygon([(0.1, 0.1), (0.46, 0.04), (0.4, 0.1 + 0.26 * bark)]), (205, 60, 70))
    head.shape(head.line(0.1, 0.0, 0.46, 0.0, 0.1), coat, 0.03)
    head.shape(head.circle(0, 0, 0.27), coat, 0.03, 0.3)
    head.shape(head.circle(0.54, -0.05, 0.07), INK)
    head.shape(head.circle(0.1, -0.08, 0.045), INK)
    ear = 0.3 + 0.25 * look.shape[2]
    head.shape(head.polygon([(-0.24, -0.2), (-0.02, -0.24), (-0.26, -0.1 + ear)]), patch, 0.03)


def _train(c: Canvas, look: Look, beat: float) -> None:
    """One car is drawn and repeated over the width; two strokes of the wheels carry it past."""
    body, roof, stripe = look.colours
    _, height, width = c.planes.shape
    car = Canvas(height, round(1.2 * height))
    half = float(car.x[0, -1]) + car.unit / 2
    car.x = (car.x + np.float32(half * beat)) % np.float32(2 * half) - np.float32(half)
    ties = car.x % np.float32(half / 3)
    car.shape(np.maximum(abs(ties - half / 6) - 0.1, abs(car.y - 0.95) - 0.04), (84, 66, 52))
    car.shape(abs(car.y - 0.87) - 0.03, (125, 120, 118))
    car.shape(abs(car.y - 0.56) - 0.07, INK)
    for x in (-0.86, -0.5, 0.5, 0.86):
        car.shape(car.circle(x, 0.68, 0.17), (70, 70, 76), 0.03)
        car.shape(car.circle(x, 0.68, 0.06), (165, 165, 170))
    car.shape(car.box(0, -0.08, half - 0.07, 0.62, 0.1 + 0.12 * look.shape[0]), body, 0.035)
    car.shape(car.box(0, -0.62, half - 0.16, 0.1, 0.06), roof)
    car.shape(car.box(0, 0.3, half - 0.07, 0.07), stripe)
    windows = 3 + int(2 * look.shape[1])
    for number in range(windows):
        x = (number - (windows - 1) / 2) * 1.7 / windows
        car.shape(car.box(x, -0.2, 0.62 / windows, 0.2, 0.05), (210, 228, 240), 0.03)
    car.shape(car.box(0.98, 0.0, 0.1, 0.42), _darker(body, 0.7), 0.02)
    times = -(-width // car.planes.shape[2])
    c.planes[:] = np.tile(car.planes, (1, 1, times))[:, :, :width]


def _siren(c: Canvas, look: Look, beat: float) -> None:
    body, stripe, lamp = look.colours
    flash = beat % 1 < 0.5
    left, right = (1.0, 0.12) if flash else (0.12, 1.0)
    nose = 0.1 + 0.2 * look.shape[0]
    c.shape(
        c.polygon([(-1.0, 0.62), (-1.0, -0.32), (0.25, -0.36), (0.55, 0.05), (0.98, 0.12 + nose * 0.3), (1.0, 0.62)]),
        body, 0.035, 0.25,
    )  # fmt: skip
    c.shape(c.polygon([(0.02, 0.06), (0.02, -0.24), (0.2, -0.25), (0.42, 0.06)]), (150, 190, 215), 0.025)
    if look.shape[1] < 0.5:
        c.shape(c.box(-0.5, -0.08, 0.3, 0.15), (150, 190, 215), 0.025)
    else:
        c.shape(c.box(-0.5, -0.08, 0.07, 0.2), stripe)
        c.shape(c.box(-0.5, -0.08, 0.2, 0.07), stripe)
    c.shape(c.box(0, 0.3, 0.97, 0.09), stripe)
    for x in (-0.58, 0.56):
        c.shape(c.circle(x, 0.66, 0.24), INK)
        c.shape(c.circle(x, 0.66, 0.11), (170, 170, 175))
    c.shape(c.box(-0.3, -0.47, 0.46, 0.1, 0.05), INK)
    c.shape(c.box(-0.52, -0.49, 0.2, 0.1, 0.05), _darker((255, 45, 40), 0.35 + 0.65 * left))
    c.shape(c.box(-0.08, -0.49, 0.2, 0.1, 0.05), _darker(lamp, 0.35 + 0.65 * right))
    c.glow(-0.58, -0.52, 0.56, (255, 60, 50), 0.95 * left)
    c.glow(-0.02, -0.52, 0.56, lamp, 0.95 * right)


def _drum(c: Canvas, look: Look, beat: float) -> None:
    shell, rim, skin = look.colours
    width, deep = 0.66 + 0.12 * look.shape[0], 0.36 + 0.16 * look.shape[1]
    top, flat = 0.02, 0.19
    bottom = top + 2 * deep - 0.1
    c.shape(c.ellipse(0, bottom, width, flat), rim, 0.035)
    c.shape(c.box(0, (top + bottom) / 2, width, (bottom - top) / 2), shell, 0.035, 0.55)
    for number in range(-2, 3):
        x = number * width * 0.4
        c.shape(c.line(x - width * 0.2, bottom + 0.1, x, top + 0.1, 0.02), (240, 235, 220))
        c.shape(c.line(x + width * 0.2, bottom + 0.1, x, top + 0.1, 0.02), (240, 235, 220))
    c.shape(c.ellipse(0, top, width + 0.03, flat + 0.03), rim, 0.03)
    c.shape(c.ellipse(0, top, width - 0.05, flat - 0.03), skin)
    for side, lift in ((-1, abs(sin(pi * beat / 2))), (1, abs(cos(pi * beat / 2)))):
        tip_y, hand_y = top - 0.06 - 0.62 * lift, -0.62 - 0.25 * lift
        c.shape(c.line(side * 0.16, tip_y, side * 0.86, hand_y, 0.045), (196, 142, 84), 0.025)
        c.shape(c.circle(side * 0.16, tip_y, 0.095), (250, 240, 215), 0.025)
        c.shape(c.circle(side * 0.88, hand_y, 0.12), (224, 172, 140), 0.025)


def _clock(c: Canvas, look: Look, beat: float) -> None:
    wood, brass, face = look.colours
    half = 0.4 + 0.1 * look.shape[0]
    c.shape(c.box(0, 0.1, half * 0.82, 0.82), wood, 0.035, 0.3)
    c.shape(c.box(0, 0.88, half, 0.1), _darker(wood, 0.75), 0.03)
    c.shape(c.box(0, 0.36, half * 0.62, 0.44), (46, 34, 28))
    pendulum = c.turned(0.36 * cos(pi * beat), (0, -0.14))
    pendulum.shape(pendulum.line(0, -0.14, 0, 0.56, 0.028), brass)
    pendulum.shape(pendulum.circle(0, 0.58, 0.17), brass, 0.02, 0.4)
    if look.shape[1] < 0.6:
        c.shape(c.polygon([(-half, -0.76), (0, -1.0), (half, -0.76)]), _darker(wood, 0.8), 0.03)
    c.shape(c.box(0, -0.46, half * 0.96, 0.36, 0.3 * look.shape[2]), wood, 0.035)
    c.shape(c.circle(0, -0.46, 0.32), face, 0.035)
    for hour in range(12):
        x, y = sin(hour / 12 * _TURN), -cos(hour / 12 * _TURN)
        c.shape(c.line(0.25 * x, -0.46 + 0.25 * y, 0.29 * x, -0.46 + 0.29 * y, 0.015), INK)
    for angle, length in ((look.shape[3] * _TURN, 0.17), (look.shape[3] * 12 * _TURN, 0.25)):
        c.shape(c.line(0, -0.46, length * sin(angle), -0.46 - length * cos(angle), 0.026), INK)


def _ball(c: Canvas, look: Look, beat: float) -> None:
    first, second, third = look.colours
    part = beat % 1
    height = 4 * part * (1 - part)
    squash = max(0.0, 0.3 - height) * 0.9
    radius = 0.36 + 0.08 * look.shape[0]
    y = 0.92 - radius * (1 - squash) - height * (1.78 - 2 * radius)
    c.shape(c.ellipse(0, 0.94, radius * (1.1 - 0.5 * height), 0.055), (40, 40, 44))
    spot = c.moved(0, y)
    spot.x, spot.y = spot.x / np.float32(1 + squash * 0.7), spot.y / np.float32(1 - squash)
    spot = spot.turned(beat * 1.1 + 6 * look.shape[1])
    disc = spot.circle(0, 0, radius)
    spot.shape(disc, first, 0.035)
    slices = 3 if look.shape[2] < 0.5 else 2
    turn = np.arctan2(spot.y, spot.x) * np.float32(slices)
    spot.shape(np.maximum(disc, -np.sin(turn) * _length(spot.x, spot.y) / slices), second)
    spot.shape(spot.circle(0, 0, radius * 0.24), third)


def _helicopter(c: Canvas, look: Look, beat: float) -> None:
    body, belly, glass = look.colours
    long, tall = 0.4 + 0.08 * look.shape[0], 0.32 + 0.08 * look.shape[1]
    c.shape(c.polygon([(0.0, 0.0), (0.0, 0.3), (-0.95, 0.1), (-0.95, 0.0)]), body, 0.03)
    c.shape(c.polygon([(-0.82, 0.06), (-1.0, -0.3), (-0.86, -0.3), (-0.68, 0.06)]), belly, 0.03)
    tail = c.turned(beat * 2.1, (-0.92, -0.06))
    tail.shape(tail.line(-0.92, -0.3, -0.92, 0.18, 0.035), (225, 225, 230))
    for x in (0.0, 0.4):
        c.shape(c.line(x, 0.4, x - 0.05, 0.74, 0.03), INK)
    c.shape(c.line(-0.32, 0.76, 0.68, 0.76, 0.045), INK)
    c.shape(c.ellipse(0.24, 0.2, long + 0.1, tall), body, 0.035, 0.3)
    c.shape(np.maximum(c.ellipse(0.24, 0.2, long + 0.06, tall - 0.04), 0.3 - c.y), belly)
    c.shape(np.maximum(c.ellipse(0.36, 0.12, long - 0.06, tall - 0.1), 0.24 - c.x), glass, 0.02)
    c.shape(c.box(0.16, -0.26, 0.05, 0.2), INK)
    reach = 0.3 + 0.7 * abs(cos(pi * beat))
    c.glow(0.16, -0.47, 0.9, (235, 235, 240), 0.2)
    c.shape(c.line(0.16 - reach, -0.44, 0.16 + 0.8 * reach, -0.5, 0.045), (52, 52, 58))
    c.shape(c.circle(0.16, -0.47, 0.09), INK)


def _chainsaw(c: Canvas, look: Look, beat: float) -> None:
    body, dark, _ = look.colours
    shake = 0.05 * sin(_TURN * beat * 5), 0.05 * cos(_TURN * beat * 7)
    c = c.moved(*shake).turned(-0.12 + 0.16 * sin(_TURN * beat))
    tip = 0.92
    c.shape(c.line(0.0, 0.16, tip, 0.16, 0.2), (72, 74, 80))
    teeth = (c.x - np.float32(beat * 1.1)) % np.float32(0.22)
    c.shape(
        np.maximum(abs(teeth - 0.11) - 0.05, np.maximum(abs(abs(c.y - 0.16) - 0.22) - 0.05, abs(c.x - 0.45) - 0.5)), INK
    )
    c.shape(c.line(0.0, 0.16, tip - 0.02, 0.16, 0.13), (205, 208, 214))
    c.shape(c.line(-0.1, -0.3, -0.62, -0.42, 0.07), dark)
    c.shape(c.line(-0.62, -0.42, -0.96, 0.22, 0.07), dark)
    c.shape(c.line(-0.96, 0.24, -0.6, 0.38, 0.08), dark)
    c.shape(c.polygon([(-0.72, 0.48), (-0.76, -0.1), (-0.2, -0.26), (0.16, -0.16), (0.18, 0.48)]), body, 0.035, 0.25)
    c.shape(c.box(-0.3, 0.4, 0.46, 0.07), dark)
    c.shape(c.circle(-0.34, 0.08, 0.15 + 0.05 * look.shape[0]), _darker(body, 0.6), 0.02)
    c.shape(c.circle(-0.34, 0.08, 0.06), (225, 225, 225))
    for puff in range(3):
        age = (beat + puff / 3) % 1
        c.glow(-0.72 - 0.2 * age, -0.3 - 0.55 * age, 0.14 + 0.16 * age, (190, 190, 195), 0.75 * (1 - age))


def _rooster(c: Canvas, look: Look, beat: float) -> None:
    body, tail, wing = look.colours
    part = beat % 1
    crow = float(np.interp(part, [0, 0.08, 0.78, 0.9], [0, 1, 1, 0])) * (0.8 + 0.2 * sin(_TURN * 3 * part))
    for number, angle in enumerate((-0.5, -0.15, 0.2, 0.55)):
        feather = c.turned(angle * (0.8 + 0.5 * look.shape[0]) - 0.1 * crow, (-0.4, 0.2))
        feather.shape(feather.ellipse(-0.64, -0.16, 0.36, 0.13), _darker(tail, 1 - 0.15 * number), 0.03)
    for x in (-0.12, 0.12):
        c.shape(c.line(x, 0.5, x + 0.02, 0.9, 0.045), (232, 170, 40), 0.02)
        c.shape(c.line(x + 0.02, 0.92, x + 0.2, 0.93, 0.04), (232, 170, 40), 0.02)
    c.shape(c.ellipse(-0.06, 0.3, 0.46 + 0.08 * look.shape[1], 0.32), body, 0.035, 0.35)
    flap = c.turned(crow * (0.45 + 0.35 * sin(_TURN * 4 * part)), (0.06, 0.24))
    flap.shape(flap.ellipse(-0.16, 0.27, 0.3, 0.17), wing, 0.025)
    x, y = 0.46 + 0.1 * crow, -0.3 - 0.28 * crow
    c.shape(c.polygon([(0.08, 0.1), (x - 0.16, y), (x + 0.12, y + 0.06), (0.44, 0.4)]), body, 0.03)
    head = c.moved(x, y).turned(-0.5 * crow)
    for dx, dy in ((-0.14, -0.19), (0.0, -0.25), (0.13, -0.2)):
        head.shape(head.circle(dx, dy, 0.11), (222, 30, 36), 0.025)
    head.shape(head.circle(0, 0, 0.2), body, 0.03)
    head.shape(head.polygon([(0.16, -0.08), (0.46, -0.04 - 0.06 * crow), (0.16, 0.03)]), (245, 190, 50), 0.02)
    lower = head.turned(0.6 * crow, (0.14, 0.05))
    lower.shape(lower.polygon([(0.14, 0.03), (0.38, 0.06), (0.14, 0.11)]), (230, 165, 40), 0.02)
    head.shape(head.ellipse(0.12, 0.22, 0.07, 0.14), (222, 30, 36), 0.02)
    head.shape(head.circle(0.06, -0.04, 0.045), INK)


_Range = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """How a class is drawn: ``cycle`` strokes make one round of its motion, of which ``poses`` pictures are kept."""

    draw: Callable[[Canvas, Look, float], None]
    palette: tuple[tuple[_Range, _Range, _Range], ...]  # hue, saturation and value of three colours
    cycle: int = 1
    poses: int = 16
    aspect: float = 1.0
    roam: float = 0.02  # how far it drifts, in heights of the frame

    def look(self, rng: Rng) -> Look:
        first, second, third = (_hue(rng, *colour) for colour in self.palette)
        shape = tuple(float(value) for value in rng.random(4))
        return Look((first, second, third), (shape[0], shape[1], shape[2], shape[3]))


_ANY, _VIVID, _PALE, _BRIGHT = (0.0, 1.0), (0.55, 0.95), (0.0, 0.15), (0.7, 1.0)
_RUST = (0.02, 0.1)
_WOOD = ((0.04, 0.09), (0.45, 0.75), (0.3, 0.6))

THINGS: dict[str, Thing] = {
    "bell": Thing(_bell, (((0.09, 0.15), (0.35, 0.85), (0.6, 0.95)), _WOOD, _WOOD), 2, 16, 1.45),
    "dog": Thing(
        _dog,
        (((0.05, 0.11), (0.15, 0.7), (0.3, 0.9)), ((0.04, 0.1), (0.2, 0.6), (0.15, 0.5)), (_ANY, _VIVID, _BRIGHT)),
        2, 12, 1.15,
    ),
    "train": Thing(
        _train,
        ((_ANY, (0.5, 0.9), (0.45, 0.9)), (_ANY, (0.0, 0.2), (0.4, 0.8)), (_ANY, (0.0, 0.3), (0.85, 1.0))),
        2, 20, 4.0, 0.0,
    ),
    "siren": Thing(
        _siren,
        ((_ANY, (0.0, 0.25), (0.75, 1.0)), ((-0.05, 0.14), _VIVID, _BRIGHT), ((0.58, 0.66), (0.8, 1.0), (0.95, 1.0))),
        1, 8, 1.3,
    ),
    "drum": Thing(
        _drum,
        ((_ANY, _VIVID, (0.5, 0.95)), ((0.08, 0.15), (0.3, 0.8), (0.7, 0.95)), ((0.1, 0.14), _PALE, (0.9, 1.0))),
        2, 14, 1.1, 0.01,
    ),
    "clock": Thing(
        _clock,
        (_WOOD, ((0.11, 0.15), (0.5, 0.8), (0.8, 1.0)), ((0.1, 0.16), _PALE, (0.9, 1.0))),
        2, 16, 0.68, 0.0,
    ),
    "ball": Thing(
        _ball,
        ((_ANY, _VIVID, _BRIGHT), (_ANY, _PALE, (0.9, 1.0)), (_ANY, _VIVID, _BRIGHT)),
        6, 60, 0.75, 0.03,
    ),
    "helicopter": Thing(
        _helicopter,
        ((_ANY, (0.3, 0.85), (0.35, 0.85)), (_ANY, (0.1, 0.6), (0.4, 0.95)), ((0.5, 0.58), (0.2, 0.5), (0.7, 0.95))),
        5, 20, 1.25, 0.09,
    ),
    "chainsaw": Thing(
        _chainsaw,
        (((-0.03, 0.13), (0.75, 1.0), (0.75, 1.0)), (_ANY, (0.0, 0.2), (0.12, 0.35)), (_ANY, _PALE, _BRIGHT)),
        1, 16, 1.35, 0.04,
    ),
    "rooster": Thing(
        _rooster,
        (((0.03, 0.12), (0.3, 0.9), (0.55, 1.0)), (_ANY, (0.3, 0.8), (0.15, 0.5)), (_RUST, (0.5, 0.9), (0.3, 0.7))),
        1, 14, 1.15,
    ),
}  # fmt: skip


def draw(label: str, look: Look, beat: float, height: int) -> Canvas:
    """Draw one pose ``height`` pixels high."""
    thing = THINGS[label]
    canvas = Canvas(height, round(height * thing.aspect))
    thing.draw(canvas, look, beat)
    return canvas


def draw_distractor(rng: Rng, height: int) -> Canvas:
    """A shape of no class: kite, balloon, leaf, star, crate or paper plane."""
    c = Canvas(height, height).turned(rng.uniform(0, _TURN))
    colour, other = _hue(rng, _ANY, (0.1, 0.9), (0.3, 1.0)), _hue(rng, _ANY, (0.1, 0.9), (0.3, 1.0))
    kind = rng.integers(6)
    if kind == 0:
        c.shape(c.polygon([(0, -0.9), (0.55, -0.1), (0, 0.9), (-0.55, -0.1)]), colour, 0.05)
        c.shape(c.line(0, -0.9, 0, 0.9, 0.04), other)
        c.shape(c.line(-0.55, -0.1, 0.55, -0.1, 0.04), other)
    elif kind == 1:
        c.shape(c.ellipse(0, -0.2, 0.55, 0.7), colour, 0.05, 0.4)
        c.shape(c.line(0, 0.5, 0.1, 0.95, 0.03), INK)
    elif kind == 2:
        c.shape(np.maximum(c.circle(-0.4, 0, 0.8), c.circle(0.4, 0, 0.8)), colour, 0.04)
        c.shape(c.line(0, -0.6, 0, 0.8, 0.04), other)
    elif kind == 3:
        spikes = int(rng.integers(4, 8)) * 2
        star = [(0.9 - 0.5 * (k % 2), k / spikes * _TURN) for k in range(spikes)]
        c.shape(c.polygon([(r * cos(a), r * sin(a)) for r, a in star]), colour, 0.04)
    elif kind == 4:
        c.shape(c.box(0, 0, 0.62, 0.62 * rng.uniform(0.5, 1)), colour, 0.05)
        c.shape(c.line(-0.55, -0.3, 0.55, 0.3, 0.05), other)
    else:
        c.shape(c.polygon([(-0.9, -0.5), (0.9, 0.0), (-0.9, 0.5), (-0.5, 0.0)]), colour, 0.05)
        c.shape(c.line(-0.5, 0, 0.9, 0, 0.04), other)
    return c

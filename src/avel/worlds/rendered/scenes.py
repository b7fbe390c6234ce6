"""The pictures of the rendered world: places, and the frames of a shot with things and clutter moving in a place."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import pi, sin

import numpy as np
from numpy.typing import NDArray

from avel.worlds.rendered.things import THINGS, Canvas, Look, Rng, draw, draw_distractor

Picture = NDArray[np.uint8]

FADE = 0.16  # seconds in which a thing comes into view or leaves it, inside its stretch
_ROOM = 16  # grey levels kept from black and from white
_MARGIN = 6  # pixels of place around the frame, for a camera that shakes


@dataclass(frozen=True)
class Actor:
    """A thing in a shot.

    Attributes:
        label: its class.
        look: its appearance.
        period, offset: seconds; the strokes begin at offset + k * period.
        views: stretches ``(start, end, moving)`` of whole seconds in which it is in view.
        size: height as a share of the frame's height.
        place: centre, as shares of the width and the height.
        mirrored: whether it faces left.
    """

    label: str
    look: Look
    period: float
    offset: float
    views: tuple[tuple[int, int, bool], ...]
    size: float
    place: tuple[float, float]
    mirrored: bool


@dataclass(frozen=True)
class Camera:
    """How a shot is taken: ``shake`` in pixels, ``light`` a gain, ``grain`` the noise's deviation in grey levels."""

    shake: float
    light: float
    grain: float


@dataclass(frozen=True)
class _Sprite:
    """A pose as the frame takes it: colour (h, w, 3) times opacity, and 256 times the transparency (h, w, 1)."""

    colour: NDArray
    through: NDArray

    @classmethod
    def of(cls, canvas: Canvas, light: float, mirrored: bool) -> _Sprite:
        planes = canvas.planes[:, :, ::-1] if mirrored else canvas.planes
        colour = np.clip(planes[:3] * np.float32(light), _ROOM * planes[3], (255 - _ROOM) * planes[3]).transpose(
            1, 2, 0
        )
        through = np.repeat(np.ceil(256 * (1 - planes[3]))[..., None], 3, 2)
        return cls(np.ascontiguousarray(colour, np.uint16), np.ascontiguousarray(through, np.uint16))

    def put(self, frame: Picture, x: int, y: int, fade: float) -> None:
        """Lay the sprite over ``frame`` with its centre at (x, y), cut at the borders."""
        height, width = self.colour.shape[:2]
        top, left = y - height // 2, x - width // 2
        rows = slice(max(0, -top), min(height, frame.shape[0] - top))
        columns = slice(max(0, -left), min(width, frame.shape[1] - left))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        colour, through = self.colour[rows, columns], self.through[rows, columns]
        if fade < 1:
            share = int(256 * fade)
            colour, through = (colour * share) >> 8, 256 - (((256 - through) * share) >> 8)
        patch = frame[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
        patch[...] = ((patch * through) >> 8) + colour


def draw_frames(
    rng: Rng,
    place: Picture,
    actors: Sequence[Actor],
    camera: Camera,
    clutter: int,
    frame_rate: int,
    seconds: int,
) -> Iterator[Picture]:
    """The frames of one shot.

    Args:
        rng: the generator of the shot: clutter, drift, shake and grain.
        place: (H + margin, W + margin, 3) from ``paint_place``.
        actors: the things, the farthest first.
        camera: how the shot is taken.
        clutter: how many moving shapes of no class there are.
        frame_rate: frames per second.
        seconds: length.

    Yields:
        (H, W, 3) uint8, ``seconds * frame_rate`` times; frame i shows the time i / frame_rate.
    """
    height, width = place.shape[0] - 2 * _MARGIN, place.shape[1] - 2 * _MARGIN
    place = np.clip(place * np.float32(camera.light), _ROOM, 255 - _ROOM).astype(np.uint8)
    # every grey level keeps _ROOM from black and white: the grain is added modulo 256, and no frame is clipped
    grain = np.clip(
        rng.standard_normal((height + 64, width + 64), dtype=np.float32) * camera.grain, 4 - _ROOM, _ROOM - 4
    )
    speckle = np.repeat(grain.round().astype(np.int8).view(np.uint8)[..., None], 3, 2)
    drifters = [_Drifter(rng, height, width, camera.light) for _ in range(clutter)]
    players = [_Player(actor, rng, height, width, camera.light) for actor in actors]
    sway = rng.uniform(0, 2 * pi, 4)
    for number in range(seconds * frame_rate):
        t = number / frame_rate
        dy = round(camera.shake * (sin(5.1 * t + sway[0]) + sin(8.3 * t + sway[1])) / 2) + _MARGIN
        dx = round(camera.shake * (sin(4.3 * t + sway[2]) + sin(9.1 * t + sway[3])) / 2) + _MARGIN
        frame = place[dy : dy + height, dx : dx + width].copy()
        for drifter in drifters:
            drifter.put(frame, t)
        for player in players:
            player.put(frame, t)
        if camera.grain:
            y, x = rng.integers(0, 64, 2)
            frame += speckle[y : y + height, x : x + width]
        yield frame


class _Drifter:
    """A shape of no class that crosses the frame, coming back on the other side, and turns a little as it goes."""

    def __init__(self, rng: Rng, height: int, width: int, light: float) -> None:
        self.size = round(height * rng.uniform(0.09, 0.2))
        self.sprite = _Sprite.of(draw_distractor(rng, self.size), light, False)
        self.start = rng.uniform(0, 1, 2)
        angle = rng.uniform(0, 2 * pi)
        self.speed = rng.uniform(0.05, 0.35) * np.array([np.cos(angle), 0.5 * np.sin(angle)])
        self.bob = rng.uniform(0, 0.05), rng.uniform(2, 7)
        self.room = np.array([width + self.size, height + self.size])

    def put(self, frame: Picture, t: float) -> None:
        share = self.start + self.speed * t
        share[1] += self.bob[0] * sin(self.bob[1] * t)
        x, y = (share % 1) * self.room - self.size / 2
        self.sprite.put(frame, round(x), round(y), 1.0)


class _Player:
    """An actor on the frame: its poses, drawn when first wanted, and where it is at a time."""

    def __init__(self, actor: Actor, rng: Rng, height: int, width: int, light: float) -> None:
        self.actor, self.thing, self.light = actor, THINGS[actor.label], light
        self.height = round(height * actor.size)
        self.centre = actor.place[0] * width, actor.place[1] * height
        self.drift = self.thing.roam * height, rng.uniform(0.8, 2.0), rng.uniform(0, 2 * pi), rng.uniform(0, 2 * pi)
        self.rest = float(rng.uniform(0, self.thing.cycle))
        self.poses: dict[int, _Sprite] = {}

    def put(self, frame: Picture, t: float) -> None:
        for start, end, moving in self.actor.views:
            if start <= t < end:
                fade = min(1.0, (t - start) / FADE + 0.25, (end - t) / FADE)
                reach, pace, across, down = self.drift
                time = t if moving else start
                x = self.centre[0] + reach * sin(pace * time + across)
                y = self.centre[1] + 0.6 * reach * sin(1.3 * pace * time + down)
                self._pose(t if moving else None).put(frame, round(x), round(y), fade)

    def _pose(self, t: float | None) -> _Sprite:
        cycle, poses = self.thing.cycle, self.thing.poses
        beat = self.rest if t is None else (t - self.actor.offset) / self.actor.period
        number = round(beat % cycle / cycle * poses) % poses
        if number not in self.poses:
            canvas = draw(self.actor.label, self.actor.look, number / poses * cycle, self.height)
            self.poses[number] = _Sprite.of(canvas, self.light, self.actor.mirrored)
        return self.poses[number]


def _rgb(hue: float, saturation: float, value: float) -> NDArray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32) * 255


def _blend(share: NDArray, first: NDArray, second: NDArray) -> NDArray:
    """(H, W) shares of the second colour -> (H, W, 3)."""
    share = share.astype(np.float32)[..., None]
    return first * (1 - share) + second * share


def _clouds(rng: Rng, height: int, width: int, cells: int) -> NDArray:
    """(H, W) smooth noise in [0, 1] with about ``cells`` bumps over the height, three octaves of it."""
    total = np.zeros((height, width), np.float32)
    for octave in range(3):
        rows, columns = cells * 2**octave + 2, round(cells * 2**octave * width / height) + 2
        knots = rng.random((rows, columns), dtype=np.float32)
        y, x = (
            np.linspace(0, rows - 1.001, height, dtype=np.float32),
            np.linspace(0, columns - 1.001, width, dtype=np.float32),
        )
        fy, fx = (y % 1)[:, None], (x % 1)[None]
        y0, x0 = y.astype(int)[:, None], x.astype(int)[None]
        upper = knots[y0, x0] * (1 - fx) + knots[y0, x0 + 1] * fx
        lower = knots[y0 + 1, x0] * (1 - fx) + knots[y0 + 1, x0 + 1] * fx
        total += (upper * (1 - fy) + lower * fy) / 2**octave
    return total / np.float32(1.75)


def _sky(rng: Rng, height: int, width: int) -> NDArray:
    hue = rng.choice([0.55, 0.58, 0.62, 0.08, 0.95])
    top, low = (
        _rgb(hue, rng.uniform(0.2, 0.6), rng.uniform(0.45, 0.95)),
        _rgb(hue + 0.02, rng.uniform(0.05, 0.3), rng.uniform(0.8, 1)),
    )
    sky = _blend(np.linspace(0, 1, height)[:, None] * np.ones((1, width)), top, low)
    puffs = np.clip(_clouds(rng, height, width, 3) * 3 - rng.uniform(1.4, 2.0), 0, 0.7)
    return _blend_over(sky, puffs, np.array([250, 250, 252], np.float32))


def _blend_over(picture: NDArray, share: NDArray, colour: NDArray) -> NDArray:
    share = share.astype(np.float32)[..., None]
    return picture * (1 - share) + colour * share


def _ridge(rng: Rng, width: int, rough: int) -> NDArray:
    """(W,) a smooth outline in [-1, 1]."""
    x = np.linspace(0, 1, width)
    waves = [np.sin(2 * pi * (k * x * rng.uniform(0.7, 1.3) + rng.random())) / k for k in range(1, rough)]
    return np.sum(waves, 0) / 2


def _hills(rng: Rng, height: int, width: int) -> NDArray:
    picture, y = _sky(rng, height, width), np.arange(height)[:, None]
    hue = rng.uniform(0.2, 0.42)
    texture = _clouds(rng, height, width, 14)
    for layer, level in enumerate((0.5, 0.64, 0.8)):
        outline = height * (level + rng.uniform(-0.05, 0.05) + 0.07 * _ridge(rng, width, 5))
        ground = _rgb(hue, 0.25 + 0.13 * layer, 0.72 - 0.13 * layer) * (0.8 + 0.4 * texture[..., None])
        picture = np.where((y > outline)[..., None], ground, picture)
    return picture


def _skyline(rng: Rng, height: int, width: int) -> NDArray:
    picture = _sky(rng, height, width)
    night = rng.random() < 0.4
    picture *= np.float32(0.4 if night else 1)
    hue = rng.random()
    for layer in range(2):
        x = -int(rng.integers(10, 30))
        while x < width:
            wide, tall = int(rng.integers(18, 48)), int(height * rng.uniform(0.25, 0.62 - 0.14 * layer))
            left, right, top = max(0, x), min(width, x + wide), height - tall
            wall = _rgb(
                hue + rng.uniform(-0.08, 0.08), rng.uniform(0.05, 0.3), rng.uniform(0.25, 0.6) * (0.6 if night else 1)
            )
            if right > left:
                picture[top:, left:right] = wall
                step = int(rng.integers(6, 10))
                for row in range(top + 4, height - 4, step):
                    for column in range(x + 4, x + wide - 5, step):
                        if 0 <= column < width - 4 and rng.random() < 0.6:
                            lit = (
                                np.array([250, 225, 150], np.float32)
                                if rng.random() < (0.5 if night else 0.1)
                                else wall * 0.65
                            )
                            picture[row : row + 4, column : column + 4] = lit
            x += wide + int(rng.integers(0, 12))
    return picture


def _foliage(rng: Rng, height: int, width: int) -> NDArray:
    hue = rng.choice([0.22, 0.28, 0.33, 0.1, 0.14])
    near, far = _clouds(rng, height, width, 9), _clouds(rng, height, width, 4)
    picture = _blend(far, _rgb(hue, 0.55, 0.3), _rgb(hue + 0.03, 0.4, 0.85))
    picture = _blend_over(picture, np.clip((near - 0.5) * 8, 0, 0.8), _rgb(hue - 0.02, 0.6, rng.uniform(0.35, 0.6)))
    x = np.arange(width)[None]
    for _ in range(int(rng.integers(0, 4))):
        trunk = np.clip(rng.uniform(4, 9) - abs(x - rng.uniform(0, width) - rng.uniform(-4, 4)), 0, 1) * np.ones(
            (height, 1)
        )
        picture = _blend_over(picture, trunk, _rgb(0.07, 0.4, rng.uniform(0.2, 0.4)))
    return picture


def _bricks(rng: Rng, height: int, width: int) -> NDArray:
    tall, wide = int(rng.integers(10, 20)), int(rng.integers(22, 44))
    y, x = np.mgrid[:height, :width]
    row = y // tall
    column = (x + (row % 2) * (wide // 2)) // wide
    tones = rng.uniform(0.8, 1.1, (height // tall + 2, width // wide + 3)).astype(np.float32)
    face = _rgb(rng.choice([0.02, 0.04, 0.08, 0.6, 0.1]), rng.uniform(0.1, 0.55), rng.uniform(0.45, 0.85))
    picture = face * tones[row, column][..., None] * (0.85 + 0.3 * _clouds(rng, height, width, 12)[..., None])
    mortar = (y % tall < 2) | ((x + (row % 2) * (wide // 2)) % wide < 2)
    return _blend_over(picture, mortar * 0.7, _rgb(0.1, 0.05, rng.uniform(0.5, 0.85)))


def _room(rng: Rng, height: int, width: int) -> NDArray:
    y, x = np.mgrid[:height, :width]
    wall, second = (_rgb(rng.random(), rng.uniform(0.1, 0.35), rng.uniform(0.6, 0.95)) for _ in range(2))
    stripe = rng.integers(8, 30)
    picture = _blend((x // stripe % 2) * rng.uniform(0, 0.5), wall, second)
    edge = int(height * rng.uniform(0.62, 0.8))
    boards = _rgb(0.08, rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.75))
    slant = (x - width / 2) / (y - edge + height * 0.35)
    floor = boards * (0.82 + 0.25 * ((slant * 6).astype(int) % 2))[..., None]
    picture = np.where((y > edge)[..., None], floor, picture)
    picture[edge - 4 : edge + 1] = wall * 0.55
    for _ in range(int(rng.integers(1, 4))):
        wide, tall = int(rng.integers(24, 60)), int(rng.integers(22, 50))
        left, top = int(rng.integers(0, width - wide)), int(rng.integers(4, max(5, edge - tall - 6)))
        picture[top : top + tall, left : left + wide] = _rgb(rng.uniform(0.05, 0.12), 0.5, rng.uniform(0.2, 0.5))
        inner = _blend(_clouds(rng, tall - 6, wide - 6, 2), _rgb(rng.random(), 0.4, 0.8), _rgb(rng.random(), 0.3, 0.5))
        picture[top + 3 : top + tall - 3, left + 3 : left + wide - 3] = inner
    return picture


def _street(rng: Rng, height: int, width: int) -> NDArray:
    picture = _sky(rng, height, width)
    curb = int(height * rng.uniform(0.66, 0.78))
    x = 0
    while x < width:
        wide, top = int(rng.integers(34, 70)), int(height * rng.uniform(0.12, 0.4))
        picture[top:curb, x : x + wide] = _rgb(rng.random(), rng.uniform(0.1, 0.45), rng.uniform(0.5, 0.9))
        picture[top : top + 4, x : x + wide] = _rgb(0.05, 0.4, 0.35)
        for row in range(top + 10, curb - 14, 22):
            for column in range(x + 6, min(x + wide - 10, width - 10), 16):
                picture[row : row + 13, column : column + 9] = _rgb(0.57, 0.25, rng.uniform(0.35, 0.8))
        x += wide
    picture[curb:] = _rgb(0.6, 0.04, rng.uniform(0.35, 0.55))
    picture[curb : curb + 5] = 185
    dash = (curb + height) // 2
    picture[dash : dash + 3] = np.where((np.arange(width) // 18 % 2)[:, None], picture[dash], 225)
    return picture * (0.92 + 0.16 * _clouds(rng, height, width, 16)[..., None])


def _blobs(rng: Rng, height: int, width: int) -> NDArray:
    first, second = (_rgb(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.3, 0.95)) for _ in range(2))
    picture = _blend(_clouds(rng, height, width, 2), first, second)
    y, x = np.mgrid[:height, :width]
    for _ in range(int(rng.integers(3, 9))):
        distance = np.hypot(y - rng.uniform(0, height), x - rng.uniform(0, width)) - rng.uniform(8, 32)
        picture = _blend_over(
            picture, np.clip(0.5 - distance / rng.uniform(1, 6), 0, 0.7), _rgb(rng.random(), 0.4, rng.uniform(0.3, 1))
        )
    return picture


_PLACES = (_hills, _skyline, _foliage, _bricks, _room, _street, _blobs)


def paint_place(rng: Rng, height: int, width: int) -> Picture:
    """A place for frames of (height, width): uint8, with a margin all round for a camera that shakes."""
    paint = _PLACES[int(rng.integers(len(_PLACES)))]
    return np.clip(paint(rng, height + 2 * _MARGIN, width + 2 * _MARGIN), 0, 255).astype(np.uint8)

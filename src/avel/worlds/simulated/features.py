"""The simulated features: what happens in every second of a video, and the numbers that follow from it.

A video is a *scene*: sounds and objects by class and second. A class has a code in each stream, a point in a space of a
few factors; classes of one group (strings, voices, vehicles, animals) lie near each other. What is in a second is the
sum of the codes of what is there, of the surroundings and of variation; fixed loadings spread it over the feature's
dimensions, each has its own noise, and what stays below the dimension's threshold is 0.

The numbers were set by a linear probe (docs/simulated.md) and are frozen: a change that alters a feature or a plan
needs a new set version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from avel.data.ave.files import CLASSES, SEGMENTS
from avel.worlds.simulated.plan import GROUP_OF, GROUPS, SEED_KEY

Rng = np.random.Generator
Floats = NDArray[np.float32]

AUDIO_DIM = 128  # VGGish's width: the sound does not depend on the grid or on the visual width

# --- What happens in a video ---
KINDS = {"audio only": 0.35, "visual only": 0.40, "neither": 0.25}  # of the stretches without an event
RUN_SECONDS = (1, 4)  # how long one kind lasts
WRONG_SOUND = 0.5  # share of the stretches with the object alone in which another class is heard
OUT_OF_VIEW = 0.12  # share of the event's seconds in which the object is out of view for a moment
OFF_SCREEN = 0.45  # share of videos with a sound of another class from out of view, quieter
OFF_SCREEN_LEVEL = (0.35, 0.65)
DISTRACTORS = (0.40, 0.40, 0.20)  # shares of videos with no, one or two silent objects of other classes
ALWAYS = 0.6  # share of distractors and off-screen sounds that last from the first second to the last

# --- Codes ---
GROUP_SHARE = 0.72  # of a class's code, what it has in common with its group
AUDIO_FACTORS, VISUAL_FACTORS = 40, 24
AUDIO_CLASS, VISUAL_CLASS = 0.49, 0.85  # of a sound's or an object's code, the class's; the rest is this one's own
AMBIENCE = 0.5  # level of the surroundings' sound against an event's, before both are brought to one loudness
AUDIO_PASSING = 0.39  # of the sound's code, what changes from second to second
POSE = 0.40  # of an object's code, what changes from second to second
LIGHT = 0.45  # of the view's code, what changes from second to second, everywhere in the frame
OBJECT_AREA = (0.08, 0.18)  # of the frame
OBJECT_CONTRAST = 4.5  # an object's code against the scene's
STEP = 0.08  # of a walking object, a second; width of the frame = 1

# --- From codes to features ---
AUDIO_OWN, VISUAL_OWN = 0.15, 0.30  # of a dimension's variance, what is its own noise
AUDIO_SLOPE, AUDIO_FIRST = 0.95, 1.5  # the factors' variances fall as k ** -AUDIO_SLOPE; the first is so much larger
#: Share of zeros of VGGish's dimensions, at 21 even quantiles (audio_feature_noisy.h5).
AUDIO_ZEROS = np.array(
    [
        [0.094, 0.152, 0.236, 0.288, 0.368, 0.406, 0.466],
        [0.535, 0.617, 0.663, 0.691, 0.745, 0.811, 0.861],
        [0.895, 0.907, 0.930, 0.962, 0.980, 0.989, 1.000],
    ]
).ravel()
AUDIO_SCALES = np.array(  # share of zeros, scale
    [[0.09, 0.50], [0.15, 0.39], [0.25, 0.26], [0.50, 0.26], [0.80, 0.25], [0.99, 0.17]]
)
AUDIO_SPREAD = 0.2  # of a dimension's scale, deviation of its logarithm
AUDIO_TAIL, VISUAL_TAIL = 0.15, 0.20  # x + tail * x ** 2 above the threshold: the heavy tail
VISUAL_ZEROS = (0.35, 0.97)  # share of zeros of VGG's channels, from the liveliest to the quietest: not measured
VISUAL_SCALE, VISUAL_SPREAD = 0.8, 0.5


@dataclass(frozen=True)
class Scene:
    """What happens in a video, second by second. In an event, a class is both seen and heard.

    Attributes:
        key: what every random choice about the video depends on: 1 for background alone, else 0; and its number.
        own: the classes of the video's rows.
        kinds: (T,) ``event``, ``out of view`` (an event's second without the object), or one of `KINDS`.
        sounds: class and level (T,) of each sound; 1 is an event's level, 0 silence.
        objects: class and presence (T,) of each object in view.
    """

    key: tuple[int, int]
    own: tuple[int, ...]
    kinds: tuple[str, ...]
    sounds: tuple[tuple[int, NDArray[np.float64]], ...]
    objects: tuple[tuple[int, NDArray[np.bool_]], ...]


@dataclass(frozen=True)
class Stream:
    """How one stream turns codes into features of width D.

    Attributes:
        prototypes: (C, K) the classes' codes.
        loadings: (K, D).
        threshold: (D,) below it a feature is 0.
        scale: (D,).
        tail: see AUDIO_TAIL.
        own: deviation of a dimension's own noise.
    """

    prototypes: Floats
    loadings: Floats
    threshold: Floats
    scale: Floats
    tail: float
    own: float

    def rectify(self, values: Floats) -> None:
        """Turn (..., D) sums into features, in place."""
        values -= self.threshold
        np.maximum(values, np.float32(0), out=values)
        squares = values * np.float32(self.tail)
        squares += np.float32(1)
        values *= squares
        values *= self.scale


@dataclass(frozen=True)
class World:
    """All that the videos of one simulation share.

    Attributes:
        seed: of the simulation.
        grid: (H, W).
        audio: the sound's stream, width 128.
        visual: the picture's stream, width Dv.
    """

    seed: int
    grid: tuple[int, int]
    audio: Stream
    visual: Stream


def make_world(seed: int, grid: tuple[int, int], visual_dim: int) -> World:
    """Draw class codes, loadings and thresholds; the sound's depend on the seed alone."""
    return World(seed, grid, _audio_stream(_generator(seed, 0)), _visual_stream(_generator(seed, 1), visual_dim))


def make_scene(seed: int, number: int, labels: Sequence[int], start: int, end: int) -> Scene:
    """What happens in video ``number``, whose rows have the classes ``labels`` in seconds ``start`` to ``end``.

    Without labels it is a video of background alone: a class may be seen or heard, never both at once.
    """
    key = (int(not labels), number)
    rng = _generator(seed, 2, *key)
    strangers = [int(k) for k in rng.permutation(len(CLASSES)) if k not in labels]
    own = tuple(labels) or (strangers.pop(),)
    wrong, off_screen, *silent = strangers[: 2 + rng.choice(len(DISTRACTORS), p=DISTRACTORS)]
    kinds: list[str] = []
    while len(kinds) < SEGMENTS:
        if labels and start <= len(kinds) < end:
            kinds.append("out of view" if rng.random() < OUT_OF_VIEW else "event")
            continue
        until = start if labels and len(kinds) < start else SEGMENTS
        length = min(until - len(kinds), int(rng.integers(RUN_SECONDS[0], RUN_SECONDS[1] + 1)))
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        wrongly = kind == "visual only" and rng.random() < WRONG_SOUND
        kinds += [f"{kind}, wrong sound" if wrongly else kind] * length
    at = np.array(kinds)
    audible = np.isin(at, ["event", "out of view", "audio only"]).astype(np.float64)
    visible = np.isin(at, ["event", "visual only", "visual only, wrong sound"])
    sounds = [(label, audible) for label in own]
    sounds += [(wrong, (at == "visual only, wrong sound").astype(np.float64))]
    if rng.random() < OFF_SCREEN:
        level = float(rng.uniform(*OFF_SCREEN_LEVEL))
        sounds += [(off_screen, level * _stretch(rng).astype(np.float64))]
    objects = [(label, visible) for label in own] + [(label, _stretch(rng)) for label in silent]
    return Scene(key, own, tuple(kind.split(",")[0] for kind in kinds), tuple(sounds), tuple(objects))


def make_audio(world: World, scene: Scene) -> Floats:
    """(T, 128) float32: the sounds and the surroundings at one loudness, as log-mel features have it, and noise."""
    stream, rng = world.audio, _generator(world.seed, 3, *scene.key)
    code = AMBIENCE * _normal(rng, 1, AUDIO_FACTORS).repeat(SEGMENTS, 0)
    power = np.full(SEGMENTS, AMBIENCE**2)
    for label, level in scene.sounds:
        sound = _mixed(AUDIO_CLASS, stream.prototypes[label], _normal(rng, AUDIO_FACTORS))
        code += level.astype(np.float32)[:, None] * sound
        power += level**2
    code /= np.sqrt(power).astype(np.float32)[:, None]
    code = _mixed(AUDIO_PASSING, _wandering(rng, AUDIO_FACTORS), code)
    values = _normal(rng, SEGMENTS, AUDIO_DIM) * np.float32(stream.own) + _product(code, stream.loadings)
    stream.rectify(values)
    return values


def make_visual(world: World, scene: Scene) -> Floats:
    """(T, H, W, Dv) float32: objects that hide parts of a smooth scene, changing light, and noise in every cell."""
    stream, rng = world.visual, _generator(world.seed, 4, *scene.key)
    cells = _cells(world.grid)  # (H*W, 2)
    waves = _waves(rng, cells)  # (H*W, J)
    still = _product(waves, _product(_normal(rng, waves.shape[1], VISUAL_FACTORS), stream.loadings))  # (H*W, Dv)
    still *= np.float32(np.sqrt(1 - LIGHT))
    light = _product(_wandering(rng, VISUAL_FACTORS), stream.loadings) * np.float32(np.sqrt(LIGHT))  # (T, Dv)
    values = still + light[:, None]  # (T, H*W, Dv)
    for label, present in scene.objects:
        code = _mixed(VISUAL_CLASS, stream.prototypes[label], _normal(rng, VISUAL_FACTORS))
        code = _mixed(POSE, _wandering(rng, VISUAL_FACTORS), code[None])
        thing = _product(code, stream.loadings) * np.float32(OBJECT_CONTRAST)  # (T, Dv)
        cover = _cover(rng, cells) * present[:, None].astype(np.float32)  # (T, H*W)
        second, cell = np.nonzero(cover)
        behind = values[second, cell]
        values[second, cell] = behind + cover[second, cell][:, None] * (thing[second] - behind)
    noise = _normal(rng, *values.shape)
    noise *= np.float32(stream.own)
    values += noise
    stream.rectify(values)
    return values.reshape(SEGMENTS, *world.grid, -1)


def _audio_stream(rng: Rng) -> Stream:
    zeros = np.interp((np.arange(AUDIO_DIM) + 0.5) / AUDIO_DIM, np.linspace(0, 1, len(AUDIO_ZEROS)), AUDIO_ZEROS)
    zeros = rng.permutation(zeros)
    scale = np.interp(zeros, AUDIO_SCALES[:, 0], AUDIO_SCALES[:, 1])
    scale *= np.exp(AUDIO_SPREAD * rng.standard_normal(AUDIO_DIM))
    strength = np.arange(1, AUDIO_FACTORS + 1) ** (-AUDIO_SLOPE / 2)
    strength[0] *= np.sqrt(AUDIO_FIRST)
    return _stream(rng, strength, zeros, scale, AUDIO_OWN, AUDIO_TAIL)


def _visual_stream(rng: Rng, width: int) -> Stream:
    zeros = rng.permutation(np.linspace(*VISUAL_ZEROS, width, dtype=np.float64))
    scale = np.asarray(VISUAL_SCALE * np.exp(VISUAL_SPREAD * rng.standard_normal(width)))
    return _stream(rng, np.ones(VISUAL_FACTORS), zeros, scale, VISUAL_OWN, VISUAL_TAIL)


def _stream(
    rng: Rng,
    strength: NDArray[np.floating],
    zeros: NDArray[np.floating],
    scale: NDArray[np.floating],
    own: float,
    tail: float,
) -> Stream:
    """A stream of unit variance before its thresholds, of which ``own`` is each dimension's noise."""
    loadings = strength[:, None] * rng.standard_normal((len(strength), len(zeros)))
    weight = scale * (1 - zeros)
    loadings -= (loadings @ weight)[:, None] * weight / (weight @ weight)  # the mean over a second's features is steady
    loadings *= np.sqrt((1 - own) / np.square(loadings).sum(0))
    kinship = {group: rng.standard_normal(len(strength)) for group in GROUPS}
    alone = rng.standard_normal((len(CLASSES), len(strength)))
    prototypes = np.stack(
        [
            np.sqrt(GROUP_SHARE) * kinship[GROUP_OF[name]] + np.sqrt(1 - GROUP_SHARE) * own_part
            if name in GROUP_OF
            else own_part
            for name, own_part in zip(CLASSES, alone, strict=True)
        ]
    )
    threshold = np.array([NormalDist().inv_cdf(min(share, 0.9998)) for share in zeros])
    return Stream(
        prototypes.astype(np.float32),
        loadings.astype(np.float32),
        threshold.astype(np.float32),
        scale.astype(np.float32),
        tail,
        float(np.sqrt(own)),
    )


def _cells(grid: tuple[int, int]) -> Floats:
    """(H*W, 2) centres of the cells, y and x, of a frame of height and width 1."""
    height, width = grid
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float32)


def _waves(rng: Rng, cells: Floats) -> Floats:
    """(H*W, 4) smooth patterns, squares summing to about 1 in a cell: a constant and three slow waves."""
    direction, phase = rng.uniform(-1, 1, (2, 3)), rng.uniform(0, 2 * np.pi, 3)
    waves = np.cos(2 * np.pi * (cells @ direction) + phase) * np.sqrt(2)
    return (np.concatenate([np.ones((len(cells), 1)), waves], axis=1) / 2).astype(np.float32)


def _cover(rng: Rng, cells: Floats) -> Floats:
    """(T, H*W) how much of each cell an object covers, a random walk; every second its area is the same share."""
    area = rng.uniform(*OBJECT_AREA)
    place = np.empty((SEGMENTS, 2))
    place[0] = rng.uniform(0.15, 0.85, 2)
    for second in range(1, SEGMENTS):
        place[second] = np.clip(place[second - 1] + STEP * rng.standard_normal(2), 0.1, 0.9)
    distance = np.square(place[:, None] - cells[None]).sum(2)  # (T, H*W), squared
    cover = np.maximum(0, 1 - distance / (2 * area / np.pi))  # a bump whose volume is the area
    cover[np.arange(SEGMENTS), distance.argmin(1)] += 1e-3  # on a coarse grid it could fall between the centres
    cover *= area * len(cells) / cover.sum(1, keepdims=True)
    return np.minimum(cover, 1).astype(np.float32)


def _stretch(rng: Rng) -> NDArray[np.bool_]:
    """(T,) all the seconds, or half of them or more in one piece."""
    length = SEGMENTS if rng.random() < ALWAYS else int(rng.integers(SEGMENTS // 2, SEGMENTS))
    start = int(rng.integers(0, SEGMENTS - length + 1))
    seconds = np.arange(SEGMENTS)
    return (seconds >= start) & (seconds < start + length)


def _wandering(rng: Rng, width: int) -> Floats:
    """(T, width) of unit variance that changes from second to second, half of it slowly."""
    steps = _normal(rng, SEGMENTS, width)
    slow = steps.copy()
    for second in range(1, SEGMENTS):
        slow[second] = np.float32(0.7) * slow[second - 1] + np.float32(np.sqrt(1 - 0.7**2)) * steps[second]
    return _mixed(0.5, slow, _normal(rng, SEGMENTS, width))


def _mixed(share: float, first: Floats, second: Floats) -> Floats:
    """Two codes of unit variance, mixed to unit variance."""
    return np.float32(np.sqrt(share)) * first + np.float32(np.sqrt(1 - share)) * second


def _normal(rng: Rng, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _product(first: Floats, second: Floats) -> Floats:
    """A matrix product whose sums are the same on any number of threads, which BLAS does not promise."""
    return np.einsum("ik,kj->ij", first, second, optimize=False)


def _generator(seed: int, *key: int) -> Rng:
    """The generator of one thing: what it gives depends on nothing else that was drawn."""
    return np.random.default_rng((SEED_KEY, seed, *key))

"""A scene as a picture: colours averaged over the area of each pixel, depth and mask at its middle."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bokeh_ops.errors import BokehError
from trainer.seeded import generator as draws
from trainer.world.scene import COLOURS, Scene, Thing

SIDE = 64
"""Pixels of a picture, both ways."""
FINER = 3
"""Colours are composed at that many times the resolution, both ways, and averaged."""


@dataclass(frozen=True)
class Painted:
    """A scene seen through a pinhole.

    Attributes:
        image: uint8 ``[S, S, 3]``, sRGB.
        disparity: float32 ``[S, S]``, dioptres, exact at the middle of each pixel.
        mask: float32 ``[S, S]``, 1 where the main thing is.
        owner: int8 ``[S, S]``: -2 backdrop, -1 ground, else the number of the thing.
    """

    image: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray
    owner: np.ndarray


def paint(scene: Scene, side: int = SIDE) -> Painted:
    """A scene, all in focus.

    Raises:
        BokehError: scikit-image, whose photographs the ground and the wall are made of, is not installed.
    """
    fine, _, _ = _compose(scene, side * FINER)
    light = fine.reshape(side, FINER, side, FINER, 3).mean((1, 3))
    _, disparity, owner = _compose(scene, side)
    image = np.rint(_encode(light) * 255).astype(np.uint8)
    return Painted(image, disparity.astype(np.float32), (owner == 0).astype(np.float32), owner)


def owners(scene: Scene, side: int = SIDE) -> np.ndarray:
    """:attr:`Painted.owner` alone, in a tenth of the time."""
    return _compose(scene, side)[2]


def _compose(scene: Scene, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear light, disparity and owner at the middles of ``side x side`` pixels."""
    steps = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(steps, steps)
    ground = (y - scene.horizon) / scene.reach
    far = ground < scene.backdrop_disparity
    disparity = np.where(far, scene.backdrop_disparity, ground)
    owner = np.where(far, -2, -1).astype(np.int8)
    colour = np.where(far[..., None], _backdrop(scene, x, y), _ground(scene, x, np.maximum(ground, 0.05)))
    lit = _LIGHT[scene.time]
    colour = colour * lit
    for number in sorted(range(len(scene.things)), key=lambda n: scene.things[n].disparity):
        thing = scene.things[number]
        foot = scene.foot(thing.disparity)
        shade = _shadow(thing, foot, x, y) * (owner == -1)
        colour = colour * (1 - 0.55 * shade[..., None])
        inside, own = _thing(thing, foot, x, y)
        colour = np.where(inside[..., None], own * lit, colour)
        disparity = np.where(inside, thing.disparity, disparity)
        owner = np.where(inside, number, owner).astype(np.int8)
    glow, lamps = _lamps(scene, x, y)
    here = glow & (owner == -2)
    colour = np.where(here[..., None], lamps, colour)
    return colour, disparity, owner


# -- things ---------------------------------------------------------------------------------------------------------


def _thing(thing: Thing, foot: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a thing is, and its linear colour there."""
    u = (x - thing.x) / thing.width  # -0.5 .. 0.5
    v = (foot - y) / thing.height  # 0 at the foot .. 1
    base = _decode(np.array(COLOURS[thing.colour]))
    other = _decode(np.array(_SECOND[thing.colour]))
    shade = 1.0 - 0.35 * u
    if thing.kind == "ball":
        radius = np.hypot(u, v - 0.5)
        inside = radius < 0.5
        shade = 0.45 + 0.75 * np.sqrt(np.maximum(0.25 - radius**2, 0)) * 2 - 0.25 * (u - (v - 0.5))
    elif thing.kind == "box":
        inside = (np.abs(u) < 0.5) & (v > 0) & (v < 1)
        shade = np.where(v > 0.78, 1.15, np.where(u > 0.28, 0.5, 0.9))
    elif thing.kind == "cone":
        inside = (v > 0) & (v < 1) & (np.abs(u) < 0.5 * (1 - v))
        shade = 1.0 - 0.9 * u
    elif thing.kind == "post":
        inside = (np.abs(u) < 0.5) & (v > 0) & (v < 1)
        shade = 1.05 - 1.1 * np.abs(u + 0.12)
    else:  # a sign: a board on a pole
        board = (np.abs(u) < 0.5) & (v > 0.45) & (v < 1)
        pole = (np.abs(u) < 0.07) & (v > 0) & (v <= 0.45)
        inside = board | pole
        shade = np.where(board, 1.0, 0.3)
    across = (x - thing.x) / thing.period + thing.phase[0]
    upward = (foot - y) / thing.period + thing.phase[1]
    pattern = _pattern(thing.pattern, across, upward)
    colour = np.where(pattern[..., None], base, other) * shade[..., None]
    return inside, colour


def _pattern(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where a pattern of period 1 shows the thing's own colour."""
    if name == "stripes":
        return u % 1 < 0.55
    if name == "bands":
        return v % 1 < 0.55
    if name == "checks":
        return (np.floor(u * 1.6) + np.floor(v * 1.6)) % 2 == 0
    return np.hypot(u % 1 - 0.5, v % 1 - 0.5) > 0.3  # dots


_SECOND = {
    name: tuple(0.78 if name == "black" else 0.16 if sum(value) > 2.3 else 0.92 for _ in value)
    for name, value in COLOURS.items()
}
"""The second colour of a pattern: nearly white, nearly black for light things, grey for black ones."""


def _shadow(thing: Thing, foot: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distance = np.hypot((x - thing.x) / (0.62 * thing.width), (y - foot) / (0.13 * thing.width))
    return np.clip(1.6 - 1.2 * distance, 0, 1)


# -- ground and backdrop --------------------------------------------------------------------------------------------


def _ground(scene: Scene, x: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """Linear colour of the ground, in its own coordinates, so that it recedes."""
    chance = draws(scene.seed, "world ground")
    shift = chance.random(2)
    # Coordinates in units of what is one picture width at the main thing's distance.
    main = scene.things[0].disparity
    u = (x - 0.5) * main / disparity + shift[0] * 7
    v = scene.shot.focal * main / disparity + shift[1] * 7
    near = np.clip((disparity / main - 0.18) / 0.3, 0, 1)  # patterns fade where pixels cannot hold them
    if scene.ground in ("grass", "gravel"):
        photo = _photo(scene.ground)
        grain = 0.5 + near * (_look_up(photo, u * 96, v * 96) - 0.5)
        tint = np.array((0.30, 0.62, 0.16) if scene.ground == "grass" else (0.66, 0.62, 0.55))
        return _decode(np.clip(tint * (0.35 + 1.3 * grain)[..., None], 0, 1))
    if scene.ground == "tiles":
        pattern = (np.floor(u / 0.2) + np.floor(v / 0.2)) % 2
        light, dark = np.array((0.88, 0.86, 0.82)), np.array((0.40, 0.44, 0.52))
    else:
        pattern = (u / 0.16 % 1 > 0.22).astype(float)
        light, dark = np.array((0.74, 0.52, 0.32)), np.array((0.28, 0.17, 0.09))
    amount = (0.5 + near * (pattern - 0.5))[..., None]
    return _decode(dark + (light - dark) * amount)


def _backdrop(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear colour of the backdrop, and of the sky above it."""
    chance = draws(scene.seed, "world backdrop")
    shift = chance.random(4)
    up = scene.foot(scene.backdrop_disparity) - y
    if scene.backdrop == "wall":
        photo = _photo("brick")
        value = _look_up(photo, up * 250 + shift[1] * 256, x * 250 + shift[0] * 256)
        tint = np.array((0.80, 0.50, 0.40)) * (0.85 + 0.3 * shift[2])
        return _decode(np.clip(tint * (0.25 + 1.5 * value)[..., None], 0, 1))
    sky = np.array((0.62, 0.78, 0.95)) + np.clip(up, 0, 1)[..., None] * np.array((-0.35, -0.25, -0.08))
    if scene.backdrop == "houses":
        column = np.floor((x + shift[0]) / 0.24)
        heights = chance.random(16)
        tone = chance.random((16, 3)) * np.array((0.35, 0.25, 0.25)) + np.array((0.5, 0.45, 0.4))
        which = column.astype(int) % 16
        inside = up < 0.2 + 0.2 * heights[which]
        s, t = ((x + shift[0]) / 0.24 % 1) * 3, up / 0.09
        window = (np.abs(s % 1 - 0.5) < 0.28) & (np.abs(t % 1 - 0.5) < 0.27)
        own = np.where(window[..., None], np.array((0.13, 0.15, 0.2)), tone[which])
    elif scene.backdrop == "trees":
        crowns = 0.30 + 0.07 * _waves(x, chance, (2, 5, 9))
        inside = up < crowns
        leaves = _waves(x + 0.1 * _waves(up, chance, (6, 9)), chance, (7, 11, 13)) + _waves(
            up, chance, (5, 8, 12)
        )
        trunk = (up < 0.13) & ((x + shift[1]) / 0.11 % 1 < 0.34)
        own = np.where(leaves[..., None] > 0.0, np.array((0.20, 0.46, 0.16)), np.array((0.07, 0.20, 0.07)))
        own = np.where((up < 0.13)[..., None], np.array((0.30, 0.40, 0.22)), own)
        own = np.where(trunk[..., None], np.array((0.22, 0.13, 0.07)), own)
    else:  # hills, with fields on them
        ridge = 0.17 + 0.06 * _waves(x, chance, (1, 2, 3))
        inside = up < ridge
        rows = ((up - 0.6 * ridge) / 0.055 + 1.5 * (x + shift[2])) % 1 < 0.5
        own = np.where(rows[..., None], np.array((0.50, 0.62, 0.25)), np.array((0.26, 0.38, 0.16)))
    return _decode(np.where(inside[..., None], own, np.clip(sky, 0, 1)))


def _waves(x: np.ndarray, chance: np.random.Generator, periods: tuple[int, ...]) -> np.ndarray:
    """A sum of sines of so many periods per picture width, about -1..1."""
    total = np.zeros_like(x)
    for count in periods:
        total = total + np.sin(2 * np.pi * (count * x + chance.random()))
    return total / len(periods)


def _lamps(scene: Scene, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where lamps shine on the backdrop, and how: only at night."""
    inside = np.zeros(x.shape, dtype=bool)
    colour = np.zeros((*x.shape, 3))
    if scene.time != "night":
        return inside, colour
    chance = draws(scene.seed, "world lamps")
    for _ in range(int(chance.integers(4, 9))):
        middle, height = chance.random(), chance.uniform(0.03, 0.3)
        here = np.hypot(x - middle, y - (scene.foot(scene.backdrop_disparity) - height)) < 0.016
        tint = np.array(((1.0, 0.92, 0.7), (1.0, 0.7, 0.35), (0.8, 0.95, 1.0))[int(chance.integers(3))])
        colour = np.where(here[..., None], tint, colour)
        inside |= here
    return inside, colour


_LIGHT = {
    "day": np.array((1.0, 1.0, 1.0)),
    "evening": np.array((0.85, 0.50, 0.30)),
    "night": np.array((0.22, 0.27, 0.48)),
}
"""Colour of the light, linear."""


@functools.cache
def _photo(name: str) -> np.ndarray:
    """A photograph of scikit-image (``grass``, ``gravel`` and ``brick`` are CC0), grey, 0..1, its mean 0.5."""
    try:
        import skimage
    except ImportError as error:
        raise BokehError(
            "The grounds and walls of the small world are made of photographs that come with scikit-image, which is "
            "not installed: pip install scikit-image."
        ) from error
    with Image.open(Path(str(skimage.__file__)).parent / "data" / f"{name}.png") as opened:
        grey = opened.convert("L").resize((256, 256), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64) / 255
    values = 0.5 + 0.2 * (values - values.mean()) / values.std()
    return np.clip(values, 0, 1)


def _look_up(photo: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Values of a photograph, repeated without end, at coordinates in its pixels."""
    height, width = photo.shape
    return photo[np.floor(-v).astype(int) % height, np.floor(u).astype(int) % width]


def _decode(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _encode(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)

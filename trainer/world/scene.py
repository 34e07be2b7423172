"""What is in a scene: drawn by chance from a seed, named by a caption, laid out as a camera would see it.

Lengths in the picture are fractions of its width (the picture is square), from its top left corner. A thing at the
disparity ``d`` (dioptres) stands on the ground at the row ``horizon + reach d``: the ground is the plane that lies
``reach / focal`` metres below the camera, so rows, sizes and depths agree with one another. Things and backdrop are
flat and upright, like scenery on a stage; so every depth is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.seeded import generator as draws
from trainer.world.camera import Shot, draw_shot

KINDS = ("ball", "box", "cone", "post", "sign")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.93, 0.85, 0.15),
    "green": (0.12, 0.60, 0.20),
    "blue": (0.12, 0.30, 0.85),
    "purple": (0.55, 0.20, 0.70),
    "white": (0.93, 0.93, 0.93),
    "black": (0.10, 0.10, 0.11),
}
"""Name -> sRGB."""
PATTERNS = ("stripes", "bands", "checks", "dots")
GROUNDS = ("grass", "gravel", "tiles", "planks")
BACKDROPS = ("wall", "houses", "trees", "hills")
TIMES = ("day", "evening", "night")
HELD_OUT = 1_000_000
"""Seeds from here on are never trained on."""


@dataclass(frozen=True)
class Thing:
    """One thing that stands on the ground.

    Attributes:
        kind, colour: as the caption names them.
        pattern: of :data:`PATTERNS`.
        disparity: dioptres.
        x: of its middle.
        width, height: of its outline.
        period: of its pattern.
        phase: of its pattern, 0..1, both ways.
    """

    kind: str
    colour: str
    pattern: str
    disparity: float
    x: float
    width: float
    height: float
    period: float
    phase: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows.

    Attributes:
        seed: it was drawn from.
        shot: the camera, focused on the first thing.
        things: the main one first; one to three.
        ground, backdrop, time: as the caption names them.
        backdrop_disparity: dioptres.
        horizon: row of the horizon.
        reach: rows per dioptre by which the ground lies below it.
    """

    seed: int
    shot: Shot
    things: tuple[Thing, ...]
    ground: str
    backdrop: str
    time: str
    backdrop_disparity: float
    horizon: float
    reach: float

    def foot(self, disparity: float) -> float:
        """The row at which the ground has a disparity."""
        return self.horizon + self.reach * disparity


def draw_scene(seed: int, sharp: bool = False) -> Scene:
    """The scene of a seed.

    Args:
        seed: 0 or more.
        sharp: taken through a pinhole, so that all is in focus; the scene is the same.
    """
    chance = draws(seed, "world")
    main = float(chance.uniform(1.75, 2.3))
    backdrop = float(chance.uniform(0.12, 0.36))
    horizon = float(chance.uniform(0.34, 0.44))
    foot = float(chance.uniform(0.76, 0.92))
    reach = (foot - horizon) / main
    shot = draw_shot(chance, main, sharp)
    count = 1 + int(chance.choice(3, p=(0.35, 0.45, 0.2)))
    things = tuple(_draw_things(chance, count, main))
    return Scene(
        seed=seed,
        shot=shot,
        things=things,
        ground=str(chance.choice(GROUNDS)),
        backdrop=str(chance.choice(BACKDROPS)),
        time=str(chance.choice(TIMES, p=(0.5, 0.25, 0.25))),
        backdrop_disparity=backdrop,
        horizon=horizon,
        reach=reach,
    )


def _draw_things(chance: np.random.Generator, count: int, main: float) -> list[Thing]:
    """The main thing near the middle, the others beside it and farther away; no two of the same kind."""
    kinds = chance.permutation(KINDS)[:count]
    colours = chance.permutation(list(COLOURS))[:count]
    middle = float(chance.uniform(0.36, 0.64)) if count < 3 else float(chance.uniform(0.44, 0.56))
    side = 1 if chance.random() < 0.5 else -1
    things = []
    for number in range(count):
        disparity = main if number == 0 else main * float(chance.uniform(0.4, 0.75))
        near = disparity / main
        size = float(chance.uniform(0.36, 0.44)) * near
        wide, high = _SHAPES[str(kinds[number])]
        x = middle
        if number == 1:
            x = middle + side * float(chance.uniform(0.24, 0.34))
        elif number == 2:
            x = middle - side * float(chance.uniform(0.24, 0.34))
        things.append(
            Thing(
                kind=str(kinds[number]),
                colour=str(colours[number]),
                pattern=str(chance.choice(PATTERNS)),
                disparity=disparity,
                x=x,
                width=size * wide,
                height=size * high,
                period=max(0.085 * near, 0.06) * float(chance.uniform(0.9, 1.3)),
                phase=(float(chance.random()), float(chance.random())),
            )
        )
    return things


_SHAPES = {
    "ball": (0.9, 0.9),
    "box": (0.95, 0.85),
    "cone": (0.95, 1.1),
    "post": (0.36, 1.45),
    "sign": (0.85, 1.3),
}
"""Width and height of a thing of size 1."""


def caption(scene: Scene) -> str:
    """The scene in words, such as ``a red ball and a blue box on grass by a wall, evening``."""
    names = [f"{_ARTICLES.get(thing.colour, 'a')} {thing.colour} {thing.kind}" for thing in scene.things]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    article = "a " if scene.backdrop == "wall" else ""
    return f"{listed} on {scene.ground} by {article}{scene.backdrop}, {scene.time}"


_ARTICLES = {"orange": "an"}

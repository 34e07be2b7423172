"""An evening on a balcony: what the workflows are shown on. Patterns and meshes alone, no photograph is in it."""

from __future__ import annotations

import numpy as np

from .mesh import box, sphere, tube
from .things import Things

TABLE = 0.26  # metres below the camera
VASE = np.array(
    [(0.0, 0.055), (0.012, 0.062), (0.05, 0.078), (0.1, 0.082), (0.15, 0.066), (0.19, 0.036), (0.22, 0.026),
     (0.245, 0.031), (0.255, 0.036)]
)  # fmt: skip
"""Height over the table and radius of the vase, metres."""


def evening(things: Things) -> None:
    """A vase with twigs and fruit on a table, a railing, strings of lamps and a town behind; a twig near the lens."""
    random, world = things.random, things.world
    things.backdrop(16.0, things.textures.sky((0.004, 0.008, 0.03), (0.075, 0.035, 0.03)))
    _town(things)
    for z, y, sag in ((2.6, -0.62, 0.2), (3.4, -0.75, 0.3), (4.6, -0.8, 0.35), (6.0, -0.9, 0.4)):
        ends = [(-0.6 * z, y, z), (0.6 * z, y + random.uniform(-0.1, 0.15), z + 0.4)]
        things.garland(*ends, sag, 17, 0.012, (2.0, 16.0))
    far = [
        things.at(random.uniform(-1, 1), random.uniform(0.0, 0.35), random.uniform(6, 11)) for _ in range(45)
    ]
    things.lights(np.array(far), 0.03, (1.5, 12.0))
    things.ground(TABLE, 1.75, _wood(things), 0.9, near=0.3)
    rail = np.array([(-1.6, -0.02, 2.0), (1.6, -0.02, 2.0)])
    world.add(tube(rail, 0.016, 16).look(colour=(0.035, 0.035, 0.04)))
    for x in np.arange(-1.2, 1.21, 0.13):
        bar = np.array([(x, -0.02, 2.0), (x, 0.8, 2.0)])
        world.add(tube(bar, 0.006, 10).look(colour=(0.03, 0.03, 0.035)))
    _vase(things, -0.06, 1.15)
    for x, z, size, colour in (
        (0.13, 1.02, 0.042, (0.55, 0.06, 0.03)),
        (0.225, 1.1, 0.04, (0.5, 0.3, 0.04)),
        (-0.235, 0.95, 0.038, (0.22, 0.33, 0.05)),
    ):
        world.add(sphere(size, 40).moved((x, TABLE - size, z)).look(colour=colour, group="subject"))
        stalk = np.array([(x, TABLE - 2 * size + 0.006, z), (x + 0.008, TABLE - 2 * size - 0.018, z)])
        world.add(tube(stalk, 0.0018, 8).look(colour=(0.1, 0.05, 0.02), group="subject"))
    start, end = things.at(1.35, -0.9, 0.5), things.at(0.5, -0.15, 0.56)
    things.branch(start, end, 13, 0.05, "front", (0.08, 0.17, 0.05))


def _town(things: Things) -> None:
    random = things.random
    for x in np.arange(-4.5, 4.6, 0.85):
        z, height = random.uniform(8.5, 13.0), random.uniform(1.3, 2.9)
        wall = np.full((96, 64, 3), 0.008, np.float32) * random.uniform(0.6, 1.6)
        for row in range(4, 90, 9):
            for column in range(4, 60, 9):
                if random.random() < 0.3:
                    warm = np.array([1.0, random.uniform(0.5, 0.75), random.uniform(0.12, 0.45)])
                    wall[row : row + 5, column : column + 4] = warm * random.uniform(0.15, 0.9)
        house = box(0.95, height, 0.9).moved((x + random.uniform(-0.2, 0.2), 1.3 - height / 2, z))
        things.world.add(house.look(wall, lit=False))


def _wood(things: Things, size: int = 512) -> np.ndarray:
    """Planks along x, each with its own tone and grain."""
    grain = np.repeat(things.textures.noise(size, 1.1)[:, : size // 16], 16, 1)
    plank = np.arange(size) // (size // 6)
    tone = things.random.uniform(0.75, 1.15, 7)[plank][:, None]
    seam = np.where(np.arange(size) % (size // 6) < 3, 0.35, 1.0)[:, None]
    mix = (0.65 + 0.7 * (grain - 0.5)) * tone * seam
    return (mix[..., None] * np.array([0.30, 0.17, 0.085])).astype(np.float32)


def _vase(things: Things, x: float, z: float) -> None:
    path = np.stack([np.full(len(VASE), x), TABLE - VASE[:, 0], np.full(len(VASE), z)], -1)
    fine = np.linspace(0, len(VASE) - 1, 60)
    path = np.stack([np.interp(fine, range(len(VASE)), path[:, axis]) for axis in range(3)], -1)
    radii = np.interp(fine, range(len(VASE)), VASE[:, 1])
    glaze = np.full((64, 64, 3), (0.05, 0.16, 0.24), np.float32)
    glaze[::8] = glaze[1::8] = (0.42, 0.4, 0.33)
    things.world.add(tube(path, radii, 64).look(glaze, group="subject"))
    top = TABLE - VASE[-1, 0]
    for lean, up in ((-0.2, 0.24), (-0.1, 0.33), (0.02, 0.3), (0.12, 0.34), (0.23, 0.22)):
        end = (x + lean, top - up, z + things.random.uniform(-0.08, 0.08))
        things.branch((x, top + 0.03, z), end, 15, 0.045, "subject", (0.13, 0.24, 0.04))

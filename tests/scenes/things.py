"""Things made of meshes: backdrops, ground, lights, people, plants, fences."""

from __future__ import annotations

import numpy as np

from .mesh import Part, Vector, World, between, box, grid, join, outline, quad, sphere, tube, turn
from .optics import Lamp
from .textures import Textures

# Half of a standing figure, from the top of the head down to between the feet: (x, y), height 1, feet at y = 0.
FIGURE = (
    (0.0, -1.0), (0.03, -0.99), (0.05, -0.97), (0.058, -0.93), (0.05, -0.885), (0.03, -0.86), (0.032, -0.835),
    (0.08, -0.815), (0.125, -0.79), (0.14, -0.74), (0.15, -0.62), (0.165, -0.5), (0.155, -0.44), (0.135, -0.46),
    (0.12, -0.6), (0.105, -0.68), (0.1, -0.58), (0.105, -0.48), (0.1, -0.25), (0.085, -0.04), (0.12, -0.005),
    (0.12, 0.0), (0.035, 0.0), (0.03, -0.2), (0.015, -0.42),
)  # fmt: skip


class Things:
    """Adds things to a world by chance.

    Args:
        world: what is added to.
        textures: pictures.
        random: source of chance.
        half: half of the picture's width and height over the focal length: how far the frame reaches at
            depth 1.
    """

    def __init__(
        self, world: World, textures: Textures, random: np.random.Generator, half: tuple[float, float]
    ):
        self.world, self.textures, self.random, self.half = world, textures, random, half

    def at(self, u: float, v: float, z: float) -> tuple[float, float, float]:
        """The place at depth z that lies at (u, v) of the picture, -1 to 1 across the frame."""
        return u * self.half[0] * z, v * self.half[1] * z, z

    def backdrop(self, z: float, texture: np.ndarray, lit: bool = False, brightness: float = 1.0) -> None:
        """A wall across the whole frame and beyond."""
        wide, high = 3.2 * self.half[0] * z, 3.2 * self.half[1] * z
        aspect = wide / high * texture.shape[0] / texture.shape[1]
        window = (
            (0.0, 0.5 - 0.5 / aspect, 1.0, 0.5 + 0.5 / aspect)
            if aspect > 1
            else (0.5 - aspect / 2, 0.0, 0.5 + aspect / 2, 1.0)
        )
        picture = (texture * brightness).astype(np.float32)
        self.world.add(quad(wide, high).moved((0, 0, z)).look(picture, lit=lit, window=window))

    def ground(
        self, y: float, far: float, texture: np.ndarray, repeat: float = 2.0, near: float = 0.15
    ) -> None:
        """A level plane below the camera from ``near`` to ``far``; ``repeat`` metres to one picture."""
        wide = 4 * self.half[0] * far + 4
        plane = between((-wide / 2, y, far), (wide / 2, y, far), (wide / 2, y, near), (-wide / 2, y, near))
        plane.normals = np.tile([0.0, -1.0, 0.0], (4, 1))
        self.world.add(plane.look(texture, window=(0, 0, wide / repeat, (far - near) / repeat)))

    def lights(
        self, places: np.ndarray, radius: float, radiance: tuple[float, float], group: str = "scene"
    ) -> None:
        """Small lamps of many colours, ``[n, 3]`` places, radiance between two bounds."""
        for place in places:
            strength = np.exp(self.random.uniform(*np.log(radiance)))
            tint = np.array([1.0, self.random.uniform(0.45, 1.0), self.random.uniform(0.1, 0.9)])
            if self.random.random() < 0.25:
                tint = self.random.permutation(np.array([1.0, self.random.uniform(0.1, 0.6), 0.1]))
            x, y, z = map(float, place)
            red, green, blue = map(float, strength * tint)
            self.world.lamps.append((Lamp((x, y, z), radius, (red, green, blue)), group))

    def garland(
        self,
        a: Vector,
        b: Vector,
        sag: float,
        count: int,
        radius: float,
        radiance: tuple[float, float],
        group: str = "scene",
    ) -> None:
        """A hanging wire from a to b with lamps on it."""
        t = np.linspace(0, 1, 60)[:, None]
        path = np.asarray(a) * (1 - t) + np.asarray(b) * t + np.array([0, 1, 0]) * (4 * sag * t * (1 - t))
        self.world.add(tube(path, radius / 5, 6).look(colour=(0.02, 0.02, 0.02), group=group))
        index = np.linspace(0, 59, count).astype(int)
        self.lights(path[index] + np.array([0, radius, 0]), radius, radiance, group)

    def person(
        self, x: float, ground: float, z: float, height: float, texture: np.ndarray, group: str = "scene"
    ) -> None:
        """A flat cut-out of a standing figure."""
        half = np.array(FIGURE)
        points = np.concatenate([half, half[:0:-1] * (-1, 1)])
        for _ in range(2):  # rounds the corners (Chaikin)
            after = np.roll(points, -1, 0)
            points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
        points[:, 0] *= self.random.uniform(0.9, 1.2)
        points[:, 0] += points[:, 1] * self.random.uniform(-0.03, 0.03)
        figure = outline(points * height).moved((x, ground, z), turn((0, 1, 0), self.random.uniform(-25, 25)))
        self.world.add(figure.look(texture, group=group))

    def bust(
        self, place: Vector, size: float, texture: np.ndarray, hairs: int, group: str = "subject"
    ) -> None:
        """Head and shoulders: solid, textured, with single hairs standing off the head."""
        x, y, z = place
        head = sphere(1.0, 40).moved((x, y, z), turn((0, 1, 0), 90), (0.75 * size, size, 0.8 * size))
        body = sphere(1.0, 40).moved(
            (x, y + 2.15 * size, z + 0.15 * size), turn((0, 1, 0), 90), (0.8 * size, 1.25 * size, 1.75 * size)
        )
        neck = tube(np.array([[x, y + 0.5 * size, z], [x, y + 1.3 * size, z]]), 0.38 * size, 20)
        skin = (0.55, 0.34, 0.25)
        self.world.add(
            head.look(colour=skin, group=group),
            neck.look(colour=skin, group=group),
            body.look(texture, group=group, window=(0, 0, 2, 1)),
        )
        eyes = [
            sphere(0.09 * size, 12)
            .moved((x + s * 0.3 * size, y - 0.1 * size, z - 0.74 * size))
            .look(colour=(0.02, 0.02, 0.03), group=group)
            for s in (-1, 1)
        ]
        self.world.add(join(eyes))
        self.hair((x, y, z), (0.75 * size, size, 0.8 * size), hairs, size * 0.006, group)

    def hair(self, centre: Vector, radii: Vector, count: int, thickness: float, group: str) -> None:
        """Curved tapering strands off the upper part of an ellipsoid."""
        strands = []
        base = self.textures.colour(0.05, 0.6)
        for _ in range(count):
            angle, lift = self.random.uniform(0, 2 * np.pi), self.random.uniform(-0.15, 1.0)
            flat = np.sqrt(1 - lift**2)
            out = np.array([flat * np.cos(angle), -lift, flat * np.sin(angle)])
            if out[2] < -0.3 and lift < 0.55:
                continue  # the face
            start = np.asarray(centre) + out * np.asarray(radii) * 0.98
            t = np.linspace(0, 1, 9)[:, None]
            length = self.random.uniform(0.2, 0.95) * radii[1]
            drift = self.random.normal(0, 0.35, 3) + np.array([0, 0.35, 0])
            path = start + length * (out * t + drift * t**2)
            colour = base * self.random.uniform(0.6, 1.8)
            strands.append(tube(path, thickness * (1 - 0.7 * t[:, 0]), 6).look(colour=colour, group=group))
        if strands:
            self.world.add(join(strands))

    def leaf(self, length: float) -> Part:
        """A bent pointed leaf about the origin, along x."""
        t = np.linspace(0, 1, 9)
        width = length * 0.28 * np.sin(np.pi * t**0.8)
        bend = length * 0.25 * t**2
        points = np.stack(
            [np.stack([t * length, s * width, -bend + 0.1 * np.abs(s) * width], -1) for s in (-1.0, 0.0, 1.0)]
        )
        return grid(points)

    def branch(
        self,
        start: Vector,
        end: Vector,
        leaves: int,
        length: float,
        group: str,
        hue: tuple[float, float, float] = (0.15, 0.4, 0.05),
    ) -> None:
        """A crooked twig with leaves."""
        t = np.linspace(0, 1, 12)[:, None]
        wobble = np.cumsum(self.random.normal(0, 0.015, (12, 3)), 0) * np.linalg.norm(np.subtract(end, start))
        path = np.asarray(start) * (1 - t) + np.asarray(end) * t + wobble
        self.world.add(
            tube(path, length * 0.06 * (1.2 - t[:, 0]), 8).look(colour=(0.09, 0.05, 0.025), group=group)
        )
        grown = []
        for _ in range(leaves):
            place = path[self.random.integers(1, 12)] + self.random.normal(0, length * 0.15, 3)
            turned = turn(self.random.normal(size=3), self.random.uniform(0, 360))
            colour = np.array(hue) * self.random.uniform(0.4, 2.0) * self.random.uniform(0.7, 1.3, 3)
            grown.append(
                self.leaf(length * self.random.uniform(0.6, 1.3))
                .moved(place, turned)
                .look(colour=colour, group=group)
            )
        self.world.add(join(grown))

    def grass(
        self,
        places: np.ndarray,
        height: float,
        group: str = "scene",
        hue: tuple[float, float, float] = (0.2, 0.4, 0.06),
    ) -> None:
        """Blades of grass, each bent its own way."""
        blades = []
        t = np.linspace(0, 1, 8)
        for place in places:
            tall = height * self.random.uniform(0.5, 1.2)
            lean = self.random.normal(0, 0.35, 2)
            middle = np.stack([lean[0] * t**2 * tall, -t * tall, lean[1] * t**2 * tall], -1) + place
            angle = self.random.uniform(-1, 1)
            side = np.array([np.cos(angle), 0, np.sin(angle)]) * (tall * 0.02)
            points = np.stack([middle + side * (1 - t[:, None]), middle - side * (1 - t[:, None])])
            blade = grid(points)
            colour = np.array(hue) * self.random.uniform(0.4, 1.7) * self.random.uniform(0.8, 1.2, 3)
            blades.append(blade.look(colour=colour, group=group))
        self.world.add(join(blades))

    def fence(
        self,
        z: float,
        spacing: float,
        radius: float,
        group: str,
        tilt: float = 45.0,
        colour: Vector | None = None,
    ) -> None:
        """A net of crossing wires over the whole frame at one depth."""
        reach = 1.3 * max(self.half) * z
        wires = []
        colour = self.textures.colour(0.1, 0.7) if colour is None else colour
        for side, angle in ((-1, tilt), (1, 180 - tilt)):
            direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0])
            across = np.array([-direction[1], direction[0], 0])
            for offset in np.arange(-1.5 * reach, 1.5 * reach, spacing):
                ends = np.stack([direction * -2 * reach, direction * 2 * reach]) + across * offset
                wires.append(
                    tube(ends + np.array([0, 0, z + side * radius]), radius, 8).look(
                        colour=colour, group=group
                    )
                )
        self.world.add(join(wires))

    def clutter(
        self,
        count: int,
        ground: float,
        depth: tuple[float, float],
        size: tuple[float, float],
        group: str = "scene",
    ) -> None:
        """Balls and boxes standing on the ground, over the whole width of the frame."""
        for _ in range(count):
            z = 1 / self.random.uniform(1 / depth[1], 1 / depth[0])
            x = self.random.uniform(-1, 1) * self.half[0] * z
            s = self.random.uniform(*size) * np.sqrt(z / depth[0])
            texture = self.textures.any() if self.random.random() < 0.75 else None
            colour = self.textures.colour(0.1, 0.9)
            if self.random.random() < 0.5:
                part = sphere(s / 2).moved(
                    (x, ground - s / 2, z), turn(self.random.normal(size=3), self.random.uniform(0, 360))
                )
            else:
                sides = s * self.random.uniform(0.5, 1.3, 3)
                part = box(*sides).moved(
                    (x, ground - sides[1] / 2, z), turn((0, 1, 0), self.random.uniform(0, 90))
                )
            self.world.add(part.look(texture, None if texture is not None else colour, group=group))

    def card(
        self,
        place: Vector,
        size: float,
        lean: float,
        texture: np.ndarray,
        yaw: float = 0.0,
        group: str = "scene",
    ) -> None:
        """A picture on a card that leans back by ``lean`` degrees and is turned by ``yaw``."""
        wide = size * min(1.5, texture.shape[1] / texture.shape[0])
        part = (
            quad(wide, size)
            .moved((0, -size / 2, 0))
            .moved(place, turn((0, 1, 0), yaw) @ turn((1, 0, 0), -lean))
        )
        self.world.add(part.look(texture, group=group))

"""Kinds of scenes for development."""

from __future__ import annotations

import numpy as np

from .mesh import box, join, sphere, tube, turn
from .things import Things


def portrait(things: Things) -> None:
    """A person with single hairs before a garden, leaves close to the lens."""
    random, textures = things.random, things.textures
    things.backdrop(9.0, textures.photo("Garden"), brightness=1.2)
    things.ground(1.3, 9.0, textures.photo("grass"), 1.5)
    for _ in range(5):
        place = things.at(random.uniform(-1, 1), random.uniform(0.2, 0.6), random.uniform(3.0, 7.0))
        things.card(place, 1.2, 10, textures.photo(), random.uniform(-30, 30))
    glints = [
        things.at(random.uniform(-1, 1), random.uniform(-1, 0.2), random.uniform(4, 8)) for _ in range(35)
    ]
    things.lights(np.array(glints), 0.02, (8, 120))
    things.bust(things.at(random.uniform(-0.25, 0.25), -0.15, 1.35), 0.17, textures.photo("coffee"), 220)
    for side in (-1, 1):
        z = random.uniform(0.45, 0.62)
        start = things.at(1.2 * side, random.uniform(-1.2, 0.8), z)
        things.branch(start, things.at(0.45 * side, random.uniform(-0.6, 0.6), z + 0.1), 26, 0.05, "front")


def night(things: Things) -> None:
    """A street at night: lamps, strings of lights, people at all distances, poles close to the lens."""
    random, textures = things.random, things.textures
    things.backdrop(16.0, textures.sky((0.004, 0.006, 0.02), (0.08, 0.05, 0.06)))
    things.ground(1.25, 16.0, textures.photo("gravel") * 0.35, 1.2)
    for side in (-1, 1):
        for z in np.linspace(3.0, 13.0, 6):
            height = random.uniform(1.5, 4.0)
            house = box(1.6, height, 1.6).moved((side * (1.7 + 0.07 * z), 1.25 - height / 2, z))
            things.world.add(house.look(textures.pattern("text") * random.uniform(0.3, 2.5)))
    for z in np.linspace(2.2, 12, 6):
        y = -0.9 - random.uniform(0, 0.3)
        things.garland((-1.6, y, z), (1.6, y + 0.2, z + 0.5), 0.45, 14, 0.022, (10, 200))
    cars = [(random.uniform(-1.2, 1.2), random.uniform(0.75, 1.0), random.uniform(4, 14)) for _ in range(24)]
    things.lights(np.array(cars), 0.045, (5, 60))
    for z in (1.5, 2.4, 3.3, 4.6, 6.5, 9.0):
        group = "subject" if z < 2 else "scene"
        dress = textures.any() * random.uniform(0.3, 0.9)
        things.person(random.uniform(-0.32, 0.32) * z, 1.25, z, random.uniform(1.5, 1.8), dress, group)
    for u in (-0.75, -0.1, 0.62):
        pole = np.array([things.at(u, -1.3, 0.55), things.at(u + 0.15, 1.4, 0.6)])
        things.world.add(tube(pole, 0.008, 12).look(colour=textures.colour(0.1, 0.6), group="front"))


def still_life(things: Things) -> None:
    """Balls, boxes and leaning cards on a table that runs from the lens to the wall; wires across."""
    random, textures = things.random, things.textures
    things.backdrop(6.5, textures.photo("Dune"), lit=True)
    things.ground(0.32, 6.5, textures.photo("Wood"), 1.0)
    things.clutter(26, 0.32, (1.3, 5.5), (0.18, 0.34))
    things.clutter(6, 0.32, (0.7, 1.2), (0.08, 0.16), "subject")
    for _ in range(5):
        z = random.uniform(1.0, 3.5)
        place = (random.uniform(-0.35, 0.35) * z, 0.32, z)
        lean, yaw = random.uniform(8, 35), random.uniform(-40, 40)
        things.card(place, random.uniform(0.25, 0.5), lean, textures.photo(), yaw)
    lamps = [
        things.at(random.uniform(-1, 1), random.uniform(-1, 0), random.uniform(1.5, 6)) for _ in range(30)
    ]
    things.lights(np.array(lamps), 0.012, (5, 200))
    for _ in range(7):
        z = random.uniform(0.5, 0.8)
        upper = things.at(random.uniform(-1.3, 1.3), -1.3, z)
        lower = things.at(random.uniform(-1.3, 1.3), 1.3, z + random.uniform(-0.1, 0.3))
        wire = tube(np.array([upper, lower]), random.uniform(0.0008, 0.006), 10)
        things.world.add(wire.look(colour=textures.colour(0.05, 0.9), group="front"))


def foliage(things: Things) -> None:
    """Branches of leaves at every distance, between them a bird made of balls; bright sky through the gaps."""
    random, textures = things.random, things.textures
    things.backdrop(14.0, textures.sky((0.25, 0.45, 1.2), (2.5, 2.3, 2.0)))
    things.ground(1.4, 14.0, textures.photo("grass"), 2.0)
    for z in np.geomspace(2.5, 11, 9):
        for _ in range(3):
            start = things.at(random.choice([-1.3, 1.3]), random.uniform(-1.1, 0.7), z)
            end = things.at(
                random.uniform(-0.8, 0.8), random.uniform(-0.9, 0.9), z * random.uniform(0.9, 1.15)
            )
            hue = (random.uniform(0.08, 0.5), random.uniform(0.25, 0.5), 0.05)
            things.branch(start, end, 45, 0.12 * z**0.6, "scene", hue)
    x, y, z = things.at(random.uniform(-0.2, 0.2), 0.05, 1.25)
    perch = np.array([things.at(-1.4, 0.35, 1.2), (x, y + 0.1, z), things.at(1.4, 0.15, 1.35)])
    things.world.add(
        tube(perch, 0.014, 14).look(textures.photo("Wood"), group="subject", window=(0, 0, 1, 6))
    )
    body = sphere(1.0, 40).moved((x, y, z), turn((0, 0, 1), 30), (0.13, 0.09, 0.085))
    head = sphere(1.0, 32).moved((x + 0.09, y - 0.11, z), None, 0.06)
    beak = tube(np.array([[x + 0.14, y - 0.11, z], [x + 0.2, y - 0.1, z]]), np.array([0.018, 0.001]), 10)
    things.world.add(body.look(textures.photo("chelsea"), group="subject"))
    things.world.add(head.look(textures.photo("chelsea"), group="subject"))
    things.world.add(beak.look(colour=(0.8, 0.35, 0.03), group="subject"))
    things.hair((x + 0.09, y - 0.11, z), (0.06, 0.06, 0.06), 60, 0.0009, "subject")
    things.hair((x - 0.05, y + 0.02, z), (0.12, 0.08, 0.08), 90, 0.0008, "subject")
    for _ in range(3):
        z = random.uniform(0.42, 0.7)
        side = random.choice([-1.0, 1.0])
        start = things.at(1.3 * side, random.uniform(-1.2, 1.2), z)
        things.branch(
            start, things.at(0.4 * side, random.uniform(-1, 1), z), 14, 0.045, "front", (0.2, 0.28, 0.04)
        )


def grille(things: Things) -> None:
    """A wire fence close to the lens, behind it walls of photographs at several distances, and lights."""
    random, textures = things.random, things.textures
    things.backdrop(8.0, textures.photo("Blinds"), brightness=0.8)
    things.ground(1.0, 8.0, textures.photo("brick"), 1.0)
    for z in (2.0, 2.7, 3.6, 4.8, 6.2):
        for _ in range(2):
            place = things.at(random.uniform(-1, 1), random.uniform(0.3, 0.9), z * random.uniform(0.9, 1.1))
            things.card(
                place,
                random.uniform(0.5, 1.0),
                random.uniform(-25, 25),
                textures.photo(),
                random.uniform(-60, 60),
            )
    things.person(random.uniform(-0.2, 0.3), 1.0, 1.7, 1.25, textures.photo("astronaut"), "subject")
    lamps = [
        things.at(random.uniform(-1, 1), random.uniform(-1, 0.3), random.uniform(2, 7.5)) for _ in range(45)
    ]
    things.lights(np.array(lamps), 0.018, (5, 150))
    things.fence(0.6, 0.075, 0.0016, "front")


def workbench(things: Things) -> None:
    """Small things close up on a slanted board: coins, cards, brushes; continuous depth under all of it."""
    random, textures = things.random, things.textures
    things.backdrop(5.0, textures.photo("coffee"), brightness=1.5)
    things.ground(0.2, 5.0, textures.photo("gravel"), 0.5)
    lamps = [
        things.at(random.uniform(-1, 1), random.uniform(-1, -0.2), random.uniform(2, 4.5)) for _ in range(25)
    ]
    things.lights(np.array(lamps), 0.014, (5, 90))
    things.clutter(22, 0.2, (0.55, 3.5), (0.05, 0.12))
    for _ in range(7):
        z = 1 / random.uniform(1 / 3.0, 1 / 0.65)
        place = (random.uniform(-0.33, 0.33) * z, 0.2, z)
        things.card(place, 0.16 * z**0.5, random.uniform(10, 50), textures.any(), random.uniform(-35, 35))
    x, _, z = things.at(random.uniform(-0.3, 0.3), 0, 0.95)
    handle = tube(np.array([[x, 0.2, z], [x + 0.02, -0.02, z]]), 0.016, 16)
    things.world.add(handle.look(textures.pattern("stripes"), group="subject"))
    bristles = []
    for _ in range(260):
        angle, out = random.uniform(0, 2 * np.pi), random.uniform(0, 0.016)
        start = np.array([x + 0.02 + out * np.cos(angle), -0.02, z + out * np.sin(angle)])
        end = start + np.array(
            [3 * out * np.cos(angle), -random.uniform(0.09, 0.13), 3 * out * np.sin(angle)]
        )
        bristles.append(
            tube(np.array([start, end]), 0.0007, 5).look(colour=textures.colour(0.1, 0.7), group="subject")
        )
    things.world.add(join(bristles))
    for _ in range(5):
        u, z = random.uniform(-1.1, 1.1), random.uniform(0.42, 0.5)
        pencil = np.array(
            [
                things.at(u, 1.3, z),
                things.at(u + random.uniform(-0.4, 0.4), random.uniform(-0.3, 0.7), z + 0.08),
            ]
        )
        things.world.add(
            tube(pencil, np.array([0.005, 0.004]), 8).look(colour=textures.colour(0.1, 0.9), group="front")
        )


KINDS = {
    "portrait": portrait,
    "night": night,
    "still_life": still_life,
    "foliage": foliage,
    "grille": grille,
    "workbench": workbench,
}

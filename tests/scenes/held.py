"""Kinds of scenes to keep aside: other geometry than those for development."""

from __future__ import annotations

import numpy as np

from .mesh import between, box, disc, grid, join, sphere, tube, turn
from .things import Things


def corridor(things: Things) -> None:
    """A long hall: slanted walls, floor and ceiling, columns, lamps in rows, glass-thin rails."""
    random, textures = things.random, things.textures
    far = 15.0
    things.backdrop(far, textures.photo("rocket"), brightness=1.5)
    things.ground(0.9, far, textures.pattern("checks"), 2.0)
    for side in (-1.0, 1.0):
        x = 1.15 * side
        wall = between((x, -1.6, 0.3), (x, -1.6, far), (x, 0.9, far), (x, 0.9, 0.3))
        things.world.add(wall.look(textures.photo("brick"), window=(0, 0, 8, 1.3)))
        for z in np.arange(1.4, 13, 1.3):
            column = tube(np.array([[0.85 * side, -1.6, z], [0.85 * side, 0.9, z]]), 0.09, 24)
            things.world.add(column.look(textures.any(), window=(0, 0, 2, 6)))
    roof = between((-1.2, -1.6, 0.3), (1.2, -1.6, 0.3), (1.2, -1.6, far), (-1.2, -1.6, far))
    things.world.add(roof.look(textures.pattern("weave"), window=(0, 0, 2, 8)))
    things.lights(
        np.array([(s * 0.3, -0.95, z) for z in np.arange(1.8, 13, 0.8) for s in (-1, 1)]), 0.02, (20, 90)
    )
    for z in (1.7, 3.1, 5.2):
        group = "subject" if z < 2 else "scene"
        things.person(random.uniform(-0.2, 0.2) * z, 0.9, z, 1.4, textures.photo(), group)
    for y in np.linspace(-0.1, 0.16, 5):
        rail = np.array([[-0.5, y, 0.52], [0.5, y + 0.03, 0.6]])
        things.world.add(tube(rail, 0.0015, 8).look(colour=(0.7, 0.7, 0.75), group="front"))


def meadow(things: Things) -> None:
    """Grass and flowers from the lens to the horizon on hilly ground, under a bright sky."""
    random, textures = things.random, things.textures
    things.backdrop(18.0, textures.photo("GreenMeadow"), brightness=1.5)
    z, x = np.meshgrid(np.geomspace(0.15, 18, 120), np.linspace(-1, 1, 80), indexing="ij")
    x = x * (1 + z)
    height = 0.45 + 0.02 * np.sin(5 * x + 2 * z) * z**0.3 - 0.05 * np.sin(0.8 * z)
    hills = grid(np.stack([x, height, z], -1))
    hills.normals *= -np.sign(hills.normals[:, 1:2])
    things.world.add(
        hills.look(textures.photo("grass") * np.array([0.5, 0.9, 0.2], np.float32), window=(0, 0, 6, 16))
    )
    depth = 1 / random.uniform(1 / 6, 1 / 0.9, 1100)
    u = random.uniform(-1.2, 1.2, 1100)
    things.grass(np.stack([u * things.half[0] * depth, 0.47 + 0 * depth, depth], -1), 0.3)
    for _ in range(26):
        depth = 1 / random.uniform(1 / 5, 1 / 1.0)
        base = np.array([random.uniform(-1, 1) * things.half[0] * depth, 0.46, depth])
        top = base + np.array([random.normal(0, 0.04), -random.uniform(0.25, 0.5), random.normal(0, 0.04)])
        group = "subject" if depth < 1.6 else "scene"
        things.world.add(tube(np.array([base, top]), 0.003, 7).look(colour=(0.1, 0.25, 0.04), group=group))
        colour = random.permutation(np.array([random.uniform(0.7, 2.0), random.uniform(0.1, 0.9), 0.05]))
        tilt = turn((1, 0, 0), random.uniform(20, 80)) @ turn((0, 1, 0), random.uniform(-50, 50))
        leaf = things.leaf(0.05)
        petals = [leaf.moved((0, 0, 0), turn((0, 0, 1), 45 * k)) for k in range(8)]
        things.world.add(join([p.moved(top, tilt).look(colour=colour, group=group) for p in petals]))
        things.world.add(sphere(0.014, 14).moved(top).look(colour=(0.9, 0.6, 0.03), group=group))
    depth = random.uniform(0.4, 0.6, 26)
    u = random.uniform(-1.1, 1.1, 26)
    things.grass(np.stack([u * things.half[0] * depth, 0.3 + 0 * depth, depth], -1), 0.35, "front")
    dew = [
        things.at(random.uniform(-1, 1), random.uniform(0.1, 0.7), random.uniform(1.0, 5)) for _ in range(50)
    ]
    things.lights(np.array(dew), 0.004, (10, 200))


def shelves(things: Things) -> None:
    """Rows of books and boxes on boards at several distances, seen past a half-open door."""
    random, textures = things.random, things.textures
    things.backdrop(
        4.6, textures.photo("page") if random.random() < 0.5 else textures.photo(), brightness=0.6
    )
    things.ground(0.85, 4.6, textures.photo("Wood"), 1.0)
    covers = [textures.any() if k < 6 else textures.pattern("text") for k in range(14)]
    for z in (4.0, 3.1, 2.3, 1.6):
        wide = 0.9 * things.half[0] * z
        left = random.uniform(-0.5, 0.9) * wide - wide
        for level in (-0.45, 0.0, 0.45):
            y = level * things.half[1] * z * 1.6
            board = box(wide * 1.5, 0.03, 0.3).moved((left + wide * 0.75, y, z))
            things.world.add(board.look(textures.photo("Wood"), group="subject" if z < 2 else "scene"))
            x = left
            while x < left + 1.4 * wide:
                w, h = random.uniform(0.02, 0.07), random.uniform(0.14, 0.3)
                texture = covers[random.integers(len(covers))]
                book = box(w, h, 0.2).moved(
                    (x + w / 2, y - 0.015 - h / 2, z + random.uniform(-0.04, 0.04)),
                    turn((0, 1, 0), random.uniform(-8, 8)),
                )
                things.world.add(book.look(texture, group="subject" if z < 2 else "scene"))
                x += w * random.uniform(1.02, 1.4)
    door = between((-1.0, -0.6, 0.9), (-0.13, -0.6, 0.5), (-0.13, 0.6, 0.5), (-1.0, 0.6, 0.9))
    things.world.add(door.look(textures.pattern("weave"), group="front"))
    knob = sphere(0.016, 24).moved((-0.15, 0.02, 0.48))
    things.world.add(knob.look(colour=(0.9, 0.6, 0.15), group="front"))
    lamps = [
        things.at(random.uniform(-0.9, 1), random.uniform(-1, 0.9), random.uniform(1.8, 4.4))
        for _ in range(30)
    ]
    things.lights(np.array(lamps), 0.01, (8, 150))


def rings(things: Things) -> None:
    """Interlocked rings, spirals and ribbons that pass through the plane of focus."""
    random, textures = things.random, things.textures
    things.backdrop(7.0, textures.photo("TwoWings"), brightness=1.3)
    floor = between((-6, 0.75, 7), (6, 0.75, 7), (6, 0.45, 0.2), (-6, 0.45, 0.2))
    things.world.add(floor.look(textures.pattern("dots"), window=(0, 0, 6, 4)))
    t = np.linspace(0, 2 * np.pi, 90)
    for _ in range(9):
        z = 1 / random.uniform(1 / 5, 1 / 1.0)
        ring = np.stack([np.cos(t), np.sin(t), 0 * t], -1) * 0.22 * z**0.7
        turned = turn(random.normal(size=3), random.uniform(20, 80))
        place = np.array(things.at(random.uniform(-0.8, 0.8), random.uniform(-0.7, 0.6), z))
        part = tube(ring @ turned.T + place, random.uniform(0.006, 0.03) * z**0.6, 14)
        things.world.add(
            part.look(textures.any(), group="subject" if z < 1.4 else "scene", window=(0, 0, 1, 6))
        )
    s = np.linspace(0, 1, 300)
    for _ in range(2):
        phase, turns = random.uniform(0, 2 * np.pi), random.uniform(4, 7)
        z = 0.55 + 4.5 * s**1.5
        u, v = random.uniform(-0.5, 0.5, 2), random.uniform(-0.6, 0.6, 2)
        wave = 2 * np.pi * turns * s + phase
        x = (u[0] + (u[1] - u[0]) * s) * things.half[0] * z + 0.09 * z**0.5 * np.cos(wave)
        y = (v[0] + (v[1] - v[0]) * s) * things.half[1] * z + 0.09 * z**0.5 * np.sin(wave)
        things.world.add(
            tube(np.stack([x, y, z], -1), 0.004 * (1 + 2 * s), 8).look(colour=textures.colour(0.2, 1.0))
        )
    for _ in range(4):
        centre = np.array(things.at(random.uniform(-1, 1), random.uniform(-1, 1), random.uniform(1.5, 4)))
        line = centre + np.stack([s * 2 - 1, 0.25 * np.sin(6 * s), 0.6 * np.sin(4 * s + 1)], -1)
        ribbon = grid(np.stack([line, line + np.array([0, 0.08, 0.03])]))
        things.world.add(ribbon.look(textures.any(), window=(0, 0, 6, 0.3)))
    for _ in range(3):
        ring = np.stack([np.cos(t), np.sin(t), 0.3 * np.cos(t)], -1) * random.uniform(0.05, 0.11)
        part = tube(
            ring + np.array(things.at(random.uniform(-0.9, 0.9), random.uniform(-0.9, 0.9), 0.6)), 0.006, 12
        )
        things.world.add(part.look(colour=textures.colour(0.1, 0.8), group="front"))
    lamps = [
        things.at(random.uniform(-1, 1), random.uniform(-1, 0.4), random.uniform(2, 6.5)) for _ in range(35)
    ]
    things.lights(np.array(lamps), 0.013, (5, 160))


def market(things: Things) -> None:
    """A crowd under umbrellas and paper lamps in the evening, masts and ropes, rain of light dots."""
    random, textures = things.random, things.textures
    things.backdrop(13.0, textures.sky((0.02, 0.03, 0.12), (0.9, 0.35, 0.12)))
    things.ground(1.35, 13.0, textures.photo("brick") * 0.5, 0.8)
    for z in np.geomspace(1.9, 11, 16):
        x = random.uniform(-1, 1) * things.half[0] * z
        group = "subject" if z < 2.2 else "scene"
        tall = random.uniform(1.5, 1.85)
        things.person(x, 1.35, z, tall, textures.any() * random.uniform(0.4, 1.2), group)
        if random.random() < 0.5:
            t, angle = np.meshgrid(np.linspace(0.02, 1, 8), np.linspace(0, 2 * np.pi, 25), indexing="ij")
            canopy = np.stack([0.45 * t * np.cos(angle), 0.22 * t**2, 0.45 * t * np.sin(angle)], -1)
            top = np.array([x + 0.1, 1.35 - tall - 0.35, z])
            umbrella = grid(canopy + top)
            umbrella.normals *= -np.sign(umbrella.normals[:, 1:2])
            things.world.add(umbrella.look(textures.pattern("stripes"), group=group))
            stick = tube(np.array([top, top + np.array([0.05, 0.9, 0])]), 0.008, 8)
            things.world.add(stick.look(colour=(0.05, 0.05, 0.05), group=group))
    for z in np.geomspace(1.4, 9, 14):
        place = things.at(random.uniform(-1, 1), random.uniform(-0.95, -0.45), z)
        lampion = sphere(1.0, 20).moved(place, None, (0.07, 0.09, 0.07))
        glow = textures.pattern("stripes") * np.array([2.5, 0.9, 0.4], np.float32)
        things.world.add(lampion.look(glow, lit=False))
    for z in np.geomspace(2.0, 10, 6):
        y = -things.half[1] * z * random.uniform(0.5, 0.9)
        things.garland((-0.5 * z, y, z), (0.5 * z, y, z * 1.1), 0.05 * z, 20, 0.012, (15, 200))
    for u in (-0.55, 0.7):
        rope = np.array([things.at(u, -1.3, 0.6), things.at(u * 0.4, 1.4, 0.75)])
        things.world.add(tube(rope, 0.004, 10).look(colour=(0.35, 0.22, 0.1), group="front"))
    things.world.add(
        disc(0.035).moved(things.at(-0.6, 0.5, 0.55)).look(textures.photo("coffee"), group="front")
    )


def rigging(things: Things) -> None:
    """Masts, cables and nets against water and sky; a bridge that runs away from the lens."""
    random, textures = things.random, things.textures
    things.backdrop(20.0, textures.photo("Storm"), brightness=1.6)
    things.ground(1.1, 20.0, textures.photo("Aqua"), 5.0)
    deck = between((-0.6, 1.0, 16), (0.4, 1.0, 16), (0.75, 0.5, 0.8), (-0.15, 0.5, 0.8))
    things.world.add(deck.look(textures.photo("Wood"), window=(0, 0, 1, 10)))
    near, far = np.array([0.75, 0.5, 0.8]), np.array([0.4, 1.0, 16])
    shift = np.array([-0.9, 0, 0])
    for edge in (np.zeros(3), shift):
        posts = [near + (far - near) * s + edge for s in np.linspace(0.02, 1, 30) ** 1.6]
        tips = [p - np.array([0, 0.35, 0]) for p in posts]
        rods = [
            tube(np.array([p, q]), 0.008, 8).look(colour=(0.5, 0.12, 0.06))
            for p, q in zip(posts, tips, strict=True)
        ]
        things.world.add(join(rods), tube(np.array(tips), 0.006, 8).look(colour=(0.6, 0.6, 0.55)))
    for z in (1.6, 2.6, 4.0, 6.5, 10.0):
        x = random.uniform(-0.9, 0.9) * things.half[0] * z
        group = "subject" if z < 2 else "scene"
        mast = tube(np.array([[x, 1.1, z], [x + random.normal(0, 0.05), -3.0, z]]), 0.02 * z**0.5, 14)
        things.world.add(mast.look(textures.photo("Wood"), group=group, window=(0, 0, 1, 8)))
        stays = []
        for _ in range(14):
            top = np.array([x, random.uniform(-0.8, 0.2) * things.half[1] * z, z])
            foot = np.array([x + random.uniform(-0.6, 0.6) * z**0.5, 1.1, z + random.uniform(-0.3, 0.5)])
            stays.append(
                tube(np.array([top, foot]), 0.0016 * z**0.6, 6).look(colour=(0.04, 0.04, 0.05), group=group)
            )
        things.world.add(join(stays))
        y = random.uniform(-0.7, -0.2) * things.half[1] * z
        flag = np.linspace(0, 1, 30)
        cloth = np.stack(
            [x + flag * 0.35 * z**0.4, y + 0.03 * np.sin(9 * flag), z + 0.08 * np.sin(7 * flag)], -1
        )
        flag_part = grid(np.stack([cloth, cloth + np.array([0, 0.2 * z**0.4, 0])]))
        things.world.add(flag_part.look(textures.any(), group=group))
    things.fence(0.55, 0.16, 0.0009, "front", tilt=70, colour=(0.75, 0.7, 0.5))
    glitter = [
        things.at(random.uniform(-1, 1), random.uniform(0.25, 0.9), random.uniform(3, 18)) for _ in range(60)
    ]
    things.lights(np.array(glitter), 0.02, (5, 60))


KINDS = {
    "corridor": corridor,
    "meadow": meadow,
    "shelves": shelves,
    "rings": rings,
    "market": market,
    "rigging": rigging,
}

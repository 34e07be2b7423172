"""What stands in front: hair, fur, grass, leaves and lattices, whose fine edges a depth map gets wrong."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from trainer.synthesis.canvas import Canvas, Colour, Sheet, cloudy, lit, one_of, shaded, varied

_HAIR: tuple[Colour, ...] = (
    (0.12, 0.09, 0.08),
    (0.30, 0.19, 0.11),
    (0.45, 0.28, 0.15),
    (0.72, 0.55, 0.33),
    (0.86, 0.74, 0.53),
    (0.55, 0.24, 0.10),
    (0.62, 0.60, 0.58),
)
_FUR: tuple[Colour, ...] = (*_HAIR, (0.90, 0.88, 0.84), (0.80, 0.50, 0.22), (0.36, 0.33, 0.31))
_GREEN: tuple[Colour, ...] = ((0.30, 0.50, 0.14), (0.42, 0.58, 0.20), (0.20, 0.40, 0.16), (0.62, 0.60, 0.28))
_LEAF: tuple[Colour, ...] = (*_GREEN, (0.75, 0.35, 0.10), (0.80, 0.62, 0.15), (0.60, 0.16, 0.12))
_BARK: tuple[Colour, ...] = ((0.28, 0.20, 0.14), (0.36, 0.30, 0.25), (0.22, 0.15, 0.10))
_METAL: tuple[Colour, ...] = (
    (0.62, 0.64, 0.66),
    (0.22, 0.23, 0.24),
    (0.46, 0.27, 0.15),
    (0.15, 0.35, 0.24),
    (0.88, 0.87, 0.84),
)
_WOOD: tuple[Colour, ...] = ((0.55, 0.38, 0.22), (0.85, 0.83, 0.78), (0.34, 0.24, 0.17), (0.35, 0.47, 0.52))


def hair(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """A head of long hair from behind: strands from the crown downwards, some flying loose."""
    unit, base = sheet.unit, one_of(chance, _HAIR)
    x = sheet.width * chance.uniform(0.25, 0.75)
    y = sheet.height * chance.uniform(0.2, 0.5)
    radius = unit * chance.uniform(0.15, 0.25)
    wave = chance.uniform(0.05, 0.5)
    canvas = Canvas(sheet)
    count, pieces = 950, 12
    side = chance.uniform(-1, 1, count)  # from the left ear over the crown to the right one
    angle = side * 1.9 - math.pi / 2
    loose = chance.random(count) < 0.12
    depth = np.sqrt(chance.random(count))  # 1 at the rim of the head
    out = np.stack([np.cos(angle), np.sin(angle)], 1)
    roots = np.array([x, y]) + out * depth[:, None] * radius
    # At the rim hair leaves the head before it falls; on the back of the head it lies along it.
    away = out * (0.15 + 0.45 * depth**3 + 0.5 * loose)[:, None] + 0.1 * chance.standard_normal((count, 2))
    away += loose[:, None] * 0.3 * chance.standard_normal((count, 2))
    lengths = unit * chance.uniform(0.6, 0.9) * chance.uniform(0.5, 1, count) * np.where(loose, 0.6, 1)
    strands = _strands(chance, roots, away, lengths, np.where(loose, 0.35, 1.0), wave, pieces)
    canvas.polygon(_blob(chance, x, y, radius * 0.98, radius, 0.02), shaded(base, 0.5))
    width, band = max(0.5, unit * 0.004), chance.uniform(0.08, 0.3)  # where light is thrown back
    t = (np.arange(pieces) + 0.5) / pieces
    sheen = 0.62 + 0.7 * np.exp(-(((t - band) / 0.1) ** 2)) + 0.3 * t
    # From below upwards, as what grows higher falls over it; what flies loose lies on top.
    for number in np.lexsort((-roots[:, 1], loose)):
        own = varied(chance, base, 0.2, 0.015)
        canvas.line(
            strands[number],
            width * chance.uniform(0.5, 1.2) * (0.7 if loose[number] else 1.4),
            [shaded(own, float(by * (1.08 - 0.4 * abs(side[number])))) for by in sheen],
        )
    return canvas.paint()


def fur(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Something round and furry, lit from above."""
    unit, base, tips = sheet.unit, one_of(chance, _FUR), one_of(chance, _FUR)
    x, y = sheet.width * chance.uniform(0.2, 0.8), sheet.height * chance.uniform(0.3, 0.85)
    wide, high = unit * chance.uniform(0.16, 0.32), unit * chance.uniform(0.16, 0.3)
    canvas = Canvas(sheet)
    canvas.polygon(_blob(chance, x, y, wide, high, 0.03), shaded(base, 0.5))
    count = 1600
    angle, depth = chance.uniform(0, 2 * math.pi, count), np.sqrt(chance.random(count))
    depth[: count // 4] = chance.uniform(
        0.9, 1.0, count // 4
    )  # a rim that is dense, since it is what is seen
    out = np.stack([np.cos(angle), np.sin(angle)], 1)
    roots = np.array([x, y]) + out * depth[:, None] * np.array([wide, high])
    lengths = unit * chance.uniform(0.05, 0.16) * chance.uniform(0.5, 1.4, count)
    away = out + np.array([0, 0.3]) + 0.35 * chance.standard_normal((count, 2))
    strands = _strands(chance, roots, away, lengths, np.full(count, 0.35), 0.1, 5)
    spots = cloudy(chance, sheet, unit * 0.2, unit * 0.08).numpy()
    width = max(0.45, unit * 0.0035)
    lighter = (0.7, 0.85, 1.0, 1.15, 1.3)
    for number in np.argsort(-depth, kind="stable"):  # from the rim inwards, as they lie over one another
        row, column = (int(roots[number, axis] + sheet.margin) for axis in (1, 0))
        height, length = spots.shape
        spotted = spots[min(max(row, 0), height - 1), min(max(column, 0), length - 1)] > 0.7
        own = varied(chance, tips if spotted else base, 0.14, 0.015)
        light = float(0.72 - 0.38 * out[number, 1] * depth[number] + 0.1 * (1 - depth[number]))
        canvas.blade(
            strands[number], width * chance.uniform(1.2, 2.8), [shaded(own, light * by) for by in lighter]
        )
    return canvas.paint()


def grass(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Blades and some seed heads, from below."""
    unit, green = sheet.unit, one_of(chance, _GREEN)
    left, _, right, bottom = sheet.bounds
    ground = sheet.height * chance.uniform(0.8, 1.15)
    tall = unit * chance.uniform(0.35, 0.85)
    canvas = Canvas(sheet)
    if ground < bottom:
        step = np.linspace(left, right, 60)
        ridge = ground + unit * 0.02 * chance.standard_normal(60)
        hill = np.concatenate([np.stack([step, ridge], 1), [[right, bottom], [left, bottom]]])
        canvas.polygon(hill, shaded(green, 0.45))
    count = int((right - left) / unit * chance.uniform(60, 170))
    wind = chance.normal(0, 0.25)
    near = np.sort(chance.random(count))
    roots = np.stack([chance.uniform(left, right, count), ground + unit * 0.12 * near], 1)
    lean = np.stack([wind + 0.3 * chance.standard_normal(count), -np.ones(count)], 1)
    lengths = tall * chance.uniform(0.35, 1.0, count)
    blades = _strands(chance, roots, lean, lengths, 0.12 + 0.5 * chance.random(count) ** 2, 0.05, 9)
    width = unit * chance.uniform(0.008, 0.02)
    t = (np.arange(9) + 0.5) / 9
    for number in range(count):
        own = varied(chance, green if chance.random() < 0.85 else (0.66, 0.60, 0.36), 0.15, 0.03)
        rise = (0.5 + 0.75 * t) * (0.65 + 0.45 * near[number])
        colours = [shaded(own, float(by)) for by in rise]
        if chance.random() < 0.12:  # a stalk with its seeds
            stalk = blades[number]
            canvas.line(stalk, max(0.4, width * 0.25), colours)
            for _ in range(14):
                at = (
                    stalk[-1]
                    + (stalk[-3] - stalk[-1]) * chance.random()
                    + width * 0.4 * chance.standard_normal(2)
                )
                canvas.disc(at[0], at[1], max(0.35, width * 0.22), varied(chance, (0.62, 0.50, 0.32), 0.2))
        else:
            canvas.blade(blades[number], width * chance.uniform(0.4, 1.1), colours)
    return lit(canvas.paint(), 1 + 0.12 * cloudy(chance, sheet, unit * 0.3, unit * 0.05))


def leaves(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Twigs with leaves, from one side."""
    unit, colour = sheet.unit, one_of(chance, _LEAF)
    left, top, right, bottom = sheet.bounds
    canvas = Canvas(sheet)
    bark = one_of(chance, _BARK)
    from_left = chance.random() < 0.5
    length = unit * chance.uniform(0.07, 0.16)
    slim, teeth = chance.uniform(0.22, 0.42), chance.random() < 0.4
    for twig in range(int(chance.integers(3, 7))):
        start = np.array([left if from_left else right, chance.uniform(top, 0.5 * (bottom + sheet.height))])
        goal = np.array([sheet.width * chance.uniform(0.2, 0.8), sheet.height * chance.uniform(0.1, 0.9)])
        way = goal - start
        sag = np.array([-way[1], way[0]]) * chance.normal(0, 0.15)
        t = np.linspace(0, 1, 24)[:, None]
        path = start + way * t + sag * (t * (1 - t) * 4)
        back = 0.62 + 0.1 * twig  # the first twigs are the ones behind, in the shade
        thick = unit * 0.012
        for number in range(23):
            canvas.line(path[number : number + 2], thick * (1.15 - number / 23), [shaded(bark, back)])
        for number in range(2, 24):
            for side in (-1, 1):
                if chance.random() < 0.25:
                    continue
                along = path[number] - path[number - 1]
                angle = math.atan2(along[1], along[0]) + side * chance.uniform(0.5, 1.2)
                size = length * chance.uniform(0.6, 1.2)
                own = varied(chance, colour, 0.12, 0.03)
                _leaf(chance, canvas, path[number], angle, size, slim, shaded(own, min(back, 1.05)), teeth)
    return lit(canvas.paint(), 1 + 0.1 * cloudy(chance, sheet, unit * 0.1))


def lattice(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Wire mesh, a grating or a fence of slats, all over the picture or over one part of it."""
    unit = sheet.unit
    left, top, right, bottom = sheet.bounds
    far = math.hypot(right - left, bottom - top)
    centre = np.array([sheet.width / 2, sheet.height / 2])
    canvas = Canvas(sheet)
    kind = str(chance.choice(["mesh", "grating", "slats"]))
    period = unit * chance.uniform(0.09, 0.2)
    if kind == "slats":
        colour, thick, angles = one_of(chance, _WOOD), period * chance.uniform(0.3, 0.6), (0.0,)
    else:
        colour, thick = one_of(chance, _METAL), max(0.6, unit * chance.uniform(0.004, 0.016))
        angles = (math.pi / 4, -math.pi / 4) if kind == "mesh" else (0.0, math.pi / 2)
    turn = chance.normal(0, 0.08)
    for direction in angles:
        along = np.array([math.sin(direction + turn), math.cos(direction + turn)])
        across = np.array([along[1], -along[0]])
        shift = chance.random()
        for number in range(-int(far / period), int(far / period) + 1):
            middle = centre + across * (number + shift) * period
            t = np.linspace(-far, far, max(8, int(4 * far / period)))[:, None]
            bend = 0.03 * period * np.sin(math.pi * t / period) if kind == "mesh" else 0.0
            path = middle + along * t + across * bend
            own = varied(chance, colour, 0.06, 0.01)
            # A round bar: dark at its sides, bright where it faces the light.
            canvas.line(path, thick, [shaded(own, 0.55)])
            canvas.line(path - across * thick * 0.08, thick * 0.66, [shaded(own, 0.85)])
            canvas.line(path - across * thick * 0.18, thick * 0.28, [shaded(own, 1.2)])
    if kind == "slats":
        for row in (chance.uniform(-0.3, 0.0), chance.uniform(0.1, 0.4)):
            beam = np.array([[left, centre[1] + row * unit], [right, centre[1] + row * unit]])
            canvas.line(beam, thick * 0.8, [shaded(colour, 0.7)])
            canvas.line(beam - np.array([0, thick * 0.15]), thick * 0.4, [shaded(colour, 0.95)])
    return lit(canvas.paint(), 1 + 0.15 * cloudy(chance, sheet, unit * 0.25))


PROCEDURAL = {"hair": hair, "fur": fur, "grass": grass, "leaves": leaves, "a lattice": lattice}
"""As a caption names it: what draws it, ``(chance, sheet) -> [4, h, w]``, light times alpha, and alpha."""


def _strands(
    chance: np.random.Generator,
    roots: np.ndarray,
    away: np.ndarray,
    lengths: np.ndarray,
    gravity: np.ndarray,
    wave: float,
    pieces: int,
) -> np.ndarray:
    """Curves that leave their roots in a direction and bend downwards.

    Args:
        chance: to draw from.
        roots: ``[n, 2]`` pixels.
        away: ``[n, 2]`` direction at the root, any length: a longer one resists gravity for longer.
        lengths: ``[n]`` pixels.
        gravity: ``[n]`` how much of the way down they have turned at their tips, against ``away``.
        wave: how far they wave from side to side, as a share of their direction.
        pieces: of each.

    Returns:
        ``[n, pieces + 1, 2]`` pixels.
    """
    count = len(roots)
    places = [roots]
    phase, pace = chance.uniform(0, 2 * math.pi, count), chance.uniform(4, 9, count)
    for number in range(pieces):
        t = (number + 0.5) / pieces
        heading = away + (2.4 * gravity * t)[:, None] * np.array([0.0, 1.0])
        heading = heading / np.hypot(heading[:, 0], heading[:, 1])[:, None].clip(1e-6)
        sideways = np.stack([-heading[:, 1], heading[:, 0]], 1)
        heading = heading + sideways * (wave * np.sin(phase + pace * t))[:, None]
        places.append(places[-1] + heading * (lengths / pieces)[:, None])
    return np.stack(places, 1)


def _blob(
    chance: np.random.Generator, x: float, y: float, wide: float, high: float, rough: float
) -> np.ndarray:
    """An ellipse with an uneven rim, ``[64, 2]``."""
    angle = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    by = 1 + rough * chance.standard_normal(64)
    return np.stack([x + wide * by * np.cos(angle), y + high * by * np.sin(angle)], 1)


def _leaf(
    chance: np.random.Generator,
    canvas: Canvas,
    foot: np.ndarray,
    angle: float,
    length: float,
    slim: float,
    colour: Colour,
    teeth: bool,
) -> None:
    """A leaf in two halves, one in the light, with its midrib and veins."""
    t = np.linspace(0, 1, 15)
    half = slim * np.sin(math.pi * t**0.8) * (1 - 0.25 * t)
    if teeth:
        half = half * np.where(np.arange(15) % 2 == 0, 1.0, 0.86)
    bend = chance.normal(0, 0.12) * t**2
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    stem = foot + np.array([0.15 * length, 0.0]) @ turn

    def placed(across: np.ndarray) -> np.ndarray:
        return stem + np.stack([t, across + bend], 1) * length @ turn

    rib = placed(np.zeros_like(t))
    canvas.line(np.stack([foot, stem]), max(0.4, length * 0.03), [shaded(colour, 0.7)])
    bright = 1.15 if math.cos(angle) > 0 else 0.8
    for side, by in ((1, bright), (-1, 1.95 - bright)):
        canvas.polygon(np.concatenate([rib, placed(side * half)[::-1]]), shaded(colour, by))
        rim = placed(side * half * 0.85)
        for number in range(3, 12, 2):
            canvas.line(np.stack([rib[number - 2], rim[number]]), length * 0.012, [shaded(colour, by * 1.18)])
    canvas.line(rib, max(0.25, length * 0.025), [shaded(colour, 1.35)])

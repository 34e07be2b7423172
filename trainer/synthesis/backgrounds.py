"""What lies behind, where no photographs are given: walls, litter, meadows, shelves and streets at night."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from trainer.synthesis.canvas import Canvas, Colour, Sheet, cloudy, lit, one_of, shaded, varied

_STONE: tuple[Colour, ...] = ((0.62, 0.36, 0.28), (0.72, 0.62, 0.50), (0.52, 0.52, 0.54), (0.78, 0.74, 0.68))
_LITTER: tuple[tuple[Colour, ...], ...] = (
    ((0.70, 0.42, 0.16), (0.55, 0.27, 0.13), (0.80, 0.62, 0.25), (0.38, 0.26, 0.17), (0.50, 0.48, 0.22)),
    ((0.55, 0.54, 0.52), (0.72, 0.70, 0.66), (0.38, 0.37, 0.38), (0.60, 0.50, 0.42), (0.30, 0.33, 0.36)),
    ((0.85, 0.25, 0.35), (0.95, 0.80, 0.30), (0.90, 0.90, 0.88), (0.45, 0.30, 0.65), (0.30, 0.52, 0.22)),
    ((0.20, 0.36, 0.16), (0.34, 0.50, 0.20), (0.48, 0.60, 0.28), (0.14, 0.24, 0.12), (0.60, 0.64, 0.36)),
)
_BOOK: tuple[Colour, ...] = (
    (0.60, 0.14, 0.14),
    (0.14, 0.24, 0.44),
    (0.16, 0.36, 0.24),
    (0.82, 0.74, 0.58),
    (0.20, 0.18, 0.18),
    (0.78, 0.52, 0.18),
    (0.88, 0.88, 0.86),
)
_FLOWER: tuple[Colour, ...] = ((0.95, 0.92, 0.85), (0.95, 0.80, 0.20), (0.80, 0.25, 0.30), (0.55, 0.40, 0.80))
_LAMP: tuple[Colour, ...] = (
    (1.0, 0.93, 0.75),
    (1.0, 0.72, 0.38),
    (0.85, 0.93, 1.0),
    (1.0, 0.35, 0.28),
    (0.45, 0.95, 0.60),
)


def wall(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Bricks or blocks in courses."""
    unit, colour = sheet.unit, one_of(chance, _STONE)
    left, top, right, bottom = sheet.bounds
    high = unit * chance.uniform(0.05, 0.1)
    wide, gap = high * chance.uniform(1.6, 2.8), high * chance.uniform(0.06, 0.14)
    canvas = Canvas(sheet, varied(chance, (0.62, 0.60, 0.56), 0.15))
    rough = chance.uniform(0.05, 0.16)
    for row in range(int((bottom - top) / high) + 2):
        y = top + (row - chance.random() * 0.02) * high
        for column in range(-1, int((right - left) / wide) + 2):
            x = left + (column + 0.5 * (row % 2)) * wide
            own = varied(chance, colour, rough, 0.02)
            edge = gap / 2 * chance.uniform(0.8, 1.3)
            _rectangle(canvas, x + edge, y + edge, x + wide - edge, y + high - edge, shaded(own, 1.12))
            _rectangle(canvas, x + edge * 2, y + edge * 2, x + wide - edge, y + high - edge, own)
            _rectangle(
                canvas,
                x + edge * 2,
                y + high - edge * 2.2,
                x + wide - edge,
                y + high - edge,
                shaded(own, 0.7),
            )
    light = 1 + 0.14 * cloudy(chance, sheet, unit * 0.8) + 0.12 * cloudy(chance, sheet, 8.0, 1.5)
    return lit(canvas.paint(), light)


def litter(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Leaves, pebbles or petals over one another, of all sizes.

    A "dead leaves" picture: its sizes fall off as their third power, which gives the statistics of photographs (Lee,
    Mumford and Huang 2001, "Occlusion Models for Natural Images").
    """
    unit, colours = sheet.unit, _LITTER[int(chance.integers(len(_LITTER)))]
    left, top, right, bottom = sheet.bounds
    canvas = Canvas(sheet, shaded(colours[0], 0.5))
    least, most = 0.02 * unit, 0.17 * unit
    count = int(1100 * (right - left) * (bottom - top) / unit**2 / 1.6)
    sizes = (chance.uniform(most**-2, least**-2, count)) ** -0.5
    pointed = chance.random() < 0.5
    angle = np.linspace(0, 2 * math.pi, 18, endpoint=False)
    for number in range(count):
        x, y = chance.uniform(left, right), chance.uniform(top, bottom)
        turn, slim = chance.uniform(0, 2 * math.pi), chance.uniform(0.4, 0.95)
        size = float(sizes[number])
        rim = np.abs(np.sin(angle)) ** 1.6 * np.sign(np.sin(angle)) if pointed else np.sin(angle)
        shape = np.stack([np.cos(angle), slim * rim], 1) * size * (1 + 0.04 * chance.standard_normal((18, 1)))
        shape = shape @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        own = varied(chance, one_of(chance, colours), 0.16, 0.02)
        middle = np.array([x, y])
        canvas.polygon(middle + shape + size * 0.10, shaded(own, 0.35))  # its shadow
        canvas.polygon(middle + shape, own)
        canvas.polygon(middle + shape * 0.75 - size * 0.08, shaded(own, 1.14))
        if pointed:
            canvas.line(middle + shape[[0, 9]] * 0.9, max(0.25, size * 0.05), [shaded(own, 0.75)])
    light = 1 + 0.15 * cloudy(chance, sheet, unit * 0.6) + 0.1 * cloudy(chance, sheet, 8.0, 1.5)
    return lit(canvas.paint(), light)


def meadow(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Grass and flowers, row behind row up to the sky."""
    unit = sheet.unit
    left, _, right, bottom = sheet.bounds
    green = varied(chance, (0.34, 0.50, 0.17), 0.15, 0.05)
    sky = varied(chance, (0.66, 0.80, 0.95), 0.08, 0.03)
    flower = one_of(chance, _FLOWER)
    horizon = sheet.height * chance.uniform(-0.1, 0.45)
    canvas = Canvas(sheet, sky)
    ridge = np.linspace(left, right, 40)
    for back in range(3):  # woods far away
        y = horizon - unit * (0.12 - 0.04 * back) * (1 + 0.25 * chance.standard_normal(40))
        canvas.polygon(
            np.concatenate([np.stack([ridge, y], 1), [[right, bottom], [left, bottom]]]),
            shaded((0.30, 0.42, 0.36), 1.2 - 0.3 * back),
        )
    _rectangle(canvas, left, horizon, right, bottom, shaded(green, 0.6))
    count = 2600
    t = np.sort(chance.random(count)) ** 1.5
    for number in range(count):
        near = float(t[number])
        foot = np.array([chance.uniform(left, right), horizon + (bottom - horizon) * (near + 0.03)])
        tall = unit * (0.015 + 0.13 * near) * chance.uniform(0.6, 1.4)
        tip = foot + np.array([tall * 0.35 * chance.standard_normal(), -tall])
        own = varied(chance, green, 0.22, 0.03)
        canvas.line(np.stack([foot, tip]), max(0.3, tall * 0.07), [own])
        if chance.random() < 0.05:
            canvas.disc(tip[0], tip[1], tall * 0.13, varied(chance, flower, 0.08))
            canvas.disc(tip[0], tip[1], tall * 0.045, shaded(flower, 0.6))
    return lit(canvas.paint(), 1 + 0.12 * cloudy(chance, sheet, unit * 0.5))


def shelves(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Books on shelves."""
    unit = sheet.unit
    left, top, right, bottom = sheet.bounds
    wood = varied(chance, (0.42, 0.28, 0.17), 0.25, 0.03)
    high = unit * chance.uniform(0.26, 0.42)
    canvas = Canvas(sheet, shaded(wood, 0.35))
    y = top - high * chance.random()
    while y < bottom + high:
        x = left
        while x < right:
            wide, tall = unit * chance.uniform(0.02, 0.06), high * chance.uniform(0.62, 0.88)
            own = varied(chance, one_of(chance, _BOOK), 0.15, 0.02)
            gold = (0.85, 0.75, 0.45) if sum(own) < 1.6 else (0.25, 0.2, 0.2)
            lean = wide * chance.normal(0, 0.15)
            for part, by in ((1.0, 0.7), (0.86, 1.0), (0.45, 1.15)):  # round backs
                inset = wide * (1 - part) / 2
                back = [[x + inset, y], [x + wide - inset, y]]
                back += [[x + wide - inset + lean, y - tall], [x + inset + lean, y - tall]]
                canvas.polygon(np.array(back), shaded(own, by))
            for band in (0.15, 0.82):
                _rectangle(
                    canvas, x + lean * band, y - tall * band - high * 0.01, x + wide, y - tall * band, gold
                )
            letters = y - tall * 0.7
            while letters < y - tall * 0.3:
                step = high * chance.uniform(0.015, 0.05)
                _rectangle(canvas, x + wide * 0.35, letters, x + wide * 0.65, letters + step * 0.7, gold)
                letters += step
            x += wide * (1.02 if chance.random() < 0.94 else 2.5)
        _rectangle(canvas, left, y, right, y + high * 0.07, shaded(wood, 1.1))
        _rectangle(canvas, left, y + high * 0.05, right, y + high * 0.09, shaded(wood, 0.6))
        y += high
    return lit(canvas.paint(), 1 + 0.15 * cloudy(chance, sheet, unit * 0.7))


def street(chance: np.random.Generator, sheet: Sheet) -> Tensor:
    """Houses at night, lit windows and lamps: what becomes discs out of focus."""
    unit = sheet.unit
    left, _, right, bottom = sheet.bounds
    canvas = Canvas(sheet, varied(chance, (0.09, 0.11, 0.19), 0.2, 0.02))
    x = left
    while x < right:
        wide = unit * chance.uniform(0.18, 0.45)
        roof = sheet.height * chance.uniform(-0.15, 0.4)
        house = varied(chance, (0.17, 0.15, 0.16), 0.25, 0.02)
        _rectangle(canvas, x, roof, x + wide, bottom, house)
        step = unit * chance.uniform(0.05, 0.085)
        for row in range(int((bottom - roof) / step)):
            for column in range(int(wide / step)):
                on = chance.random() < 0.3
                glass = varied(chance, (0.98, 0.78, 0.42), 0.18, 0.03) if on else shaded(house, 0.6)
                at = (x + (column + 0.25) * step, roof + (row + 0.3) * step * 1.2)
                _rectangle(canvas, at[0], at[1], at[0] + step * 0.55, at[1] + step * 0.7, glass)
                _rectangle(canvas, at[0] + step * 0.25, at[1], at[0] + step * 0.3, at[1] + step * 0.7, house)
        x += wide
    paint = lit(canvas.paint(), 1 + 0.2 * cloudy(chance, sheet, unit * 0.5))
    lamps = Canvas(sheet)
    for _ in range(int(chance.integers(3, 7))):  # strings of lamps across the street
        ends = chance.uniform(0.1 * sheet.height, bottom, 2)
        sag, size, tint = (
            unit * chance.uniform(0, 0.3),
            unit * chance.uniform(0.004, 0.012),
            one_of(chance, _LAMP),
        )
        for t in np.arange(0.03, 1, chance.uniform(0.04, 0.12)):
            y = ends[0] + (ends[1] - ends[0]) * t + sag * 4 * t * (1 - t)
            lamps.disc(left + (right - left) * t, y, size, varied(chance, tint, 0.05, 0.03))
    glow = lamps.paint()
    paint[:3] = glow[:3] + (1 - glow[3]) * paint[:3]
    return paint


PROCEDURAL = {
    "a wall": wall,
    "litter on the ground": litter,
    "a meadow": meadow,
    "bookshelves": shelves,
    "a street at night": street,
}
"""As a caption names it: what draws it, ``(chance, sheet) -> [4, h, w]``, opaque."""


def _rectangle(canvas: Canvas, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    if right > left and bottom > top:
        canvas.polygon(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), colour)

"""Drawing on a plane: fine structures with exact partial coverage, as linear light times alpha."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from bokeh_ops.render.transfer import SRGB, to_light

Colour = tuple[float, float, float]
"""sRGB, 0 to 1; what lies beyond is cut off."""

FINER = 4
"""Drawn at that many times the resolution, both ways, and averaged: alpha in steps of 1/16."""
_BAND = 64  # rows that are averaged at once, which bounds the memory


class Sheet(NamedTuple):
    """What a plane is painted on: the picture and a margin about it, in pixels."""

    height: int
    width: int
    margin: int

    @property
    def unit(self) -> int:
        """The picture's shorter side: what sizes are told in."""
        return min(self.height, self.width)

    @property
    def whole(self) -> tuple[int, int]:
        """Height and width with the margin."""
        return self.height + 2 * self.margin, self.width + 2 * self.margin

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the whole, in pixels from the picture's top left corner."""
        return -self.margin, -self.margin, self.width + self.margin, self.height + self.margin


class Canvas:
    """Draws opaque shapes over one another, in pixels from the picture's top left corner.

    Args:
        sheet: to draw on.
        ground: colour of what is behind; None leaves it transparent.
    """

    def __init__(self, sheet: Sheet, ground: Colour | None = None) -> None:
        self.sheet = sheet
        height, width = sheet.whole
        fill = (0, 0, 0, 0) if ground is None else _ink(ground)
        self._image = Image.new("RGBA", (width * FINER, height * FINER), fill)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        """Fill a polygon, ``[n, 2]`` (x, y)."""
        self._draw.polygon(self._places(points), fill=_ink(colour))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a disc."""
        left, top, right, bottom = self._places(
            np.array([[x - radius, y - radius], [x + radius, y + radius]])
        )
        self._draw.ellipse((left, top, right, bottom), fill=_ink(colour))

    def line(self, points: np.ndarray, width: float, colours: Sequence[Colour]) -> None:
        """Draw along points, ``[n, 2]``.

        Args:
            points: at least two.
            width: in pixels; no less than 1/:data:`FINER` is drawn.
            colours: of the n - 1 pieces; one serves all.
        """
        places = self._places(points)
        wide = max(1, round(width * FINER))
        if len(colours) == 1:
            self._draw.line(places, fill=_ink(colours[0]), width=wide)
            return
        for number, colour in enumerate(colours):
            self._draw.line(places[2 * number : 2 * number + 4], fill=_ink(colour), width=wide)

    def blade(self, points: np.ndarray, width: float, colours: Sequence[Colour]) -> None:
        """Draw along points, ``[n, 2]``, ever narrower from ``width`` down to nothing."""
        along = np.gradient(points, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], 1) / np.hypot(along[:, 0], along[:, 1])[:, None].clip(
            1e-6
        )
        # As most blades and hairs do: nearly full width up to the middle, then to a point.
        taper = (1 - np.linspace(0, 1, len(points)) ** 2)[:, None] * (width / 2)
        left, right = points - across * taper, points + across * taper
        for number, colour in enumerate(colours):
            piece = slice(number, number + 2)
            self.polygon(np.concatenate([left[piece], right[piece][::-1]]), colour)

    def paint(self) -> Tensor:
        """What was drawn: linear light times alpha, and alpha, ``[4, H + 2 margin, W + 2 margin]``."""
        height, width = self.sheet.whole
        made = torch.empty(4, height, width)
        values = np.asarray(self._image)
        for top in range(0, height, _BAND):
            band = torch.from_numpy(values[top * FINER : (top + _BAND) * FINER].copy()).long()
            # What is transparent is black, so light is premultiplied as it stands.
            drawn = torch.cat([_light()[band[..., :3]], band[..., 3:].float() / 255], -1)
            made[:, top : top + _BAND] = F.avg_pool2d(drawn.movedim(-1, 0), FINER)
        return made

    def _places(self, points: np.ndarray) -> list[float]:
        return ((points + self.sheet.margin) * FINER).ravel().tolist()


@functools.cache
def _light() -> Tensor:
    """Linear light of the 256 values of 8-bit sRGB."""
    return to_light(torch.arange(256) / 255, SRGB)


def _ink(colour: Colour) -> tuple[int, int, int, int]:
    red, green, blue = (min(255, max(0, round(value * 255))) for value in colour)
    return red, green, blue, 255


def shaded(colour: Colour | np.ndarray, by: float) -> Colour:
    """A colour that is darker (below 1) or lighter."""
    red, green, blue = (float(value) * by for value in colour)
    return red, green, blue


def varied(chance: np.random.Generator, colour: Colour, light: float = 0.12, hue: float = 0.04) -> Colour:
    """A colour much like another: lighter or darker by about ``light``, its channels apart by about ``hue``."""
    by = 1 + light * chance.standard_normal()
    red, green, blue = (value * by + hue * chance.standard_normal() for value in colour)
    return red, green, blue


def one_of(chance: np.random.Generator, choices: Sequence[Colour]) -> Colour:
    """One of some colours."""
    return choices[int(chance.integers(len(choices)))]


def cloudy(chance: np.random.Generator, sheet: Sheet, coarsest: float, finest: float = 2.0) -> Tensor:
    """Noise whose detail falls off as one over its frequency, as in photographs.

    Args:
        chance: to draw from.
        sheet: to cover.
        coarsest: pixels from one bump to the next.
        finest: the same of the finest detail.

    Returns:
        ``[H + 2 margin, W + 2 margin]``, mean about 0, deviation about 1.
    """
    height, width = sheet.whole
    total, scale, weight = torch.zeros(1, 1, height, width), coarsest, 1.0
    power = 0.0
    while scale >= finest:
        rows, columns = (int(side / scale) + 3 for side in (height, width))
        grid = torch.from_numpy(chance.standard_normal((1, 1, rows, columns), dtype=np.float32))
        grown = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        # Some other piece each time, so that the grids do not show.
        down, right = (int(chance.integers(max(1, int(scale)))) for _ in range(2))
        total += weight * grown[..., down : down + height, right : right + width]
        power += weight**2
        scale, weight = scale / 2, weight / 2
    return total[0, 0] / (0.7 * power**0.5)


def lit(paint: Tensor, by: Tensor) -> Tensor:
    """A painting whose light is more or less, by a map of factors ``[h, w]``; nothing becomes brighter than white."""
    light = torch.minimum(paint[:3] * by.clamp_min(0), paint[3:])
    return torch.cat([light, paint[3:]])

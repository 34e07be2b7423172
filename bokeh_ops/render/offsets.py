"""Which offsets the scatter of :mod:`bokeh_ops.render.classical` adds for which pixels, and in what order.

The weight of a pixel of radius r at distance d is ``sigmoid(8 (r - d)) / (r^2 + 0.2)``: 1 over the
denominator well inside the disc, 0 well outside, and a soft edge about 3.5 pixels wide in between. Pixels of
similar radius therefore share a flat inner disc, cheap to add as box sums, and a ring of offsets that must be
weighed. Here the picture is cut into tiles, and each tile's pixels into groups by radius, so that this costs
least.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np

SHARPNESS = 8.0  # 0.5 + 0.5 tanh(4 x) == sigmoid(8 x)
FLOOR = 0.2  # of the weight's denominator
INNER = math.log(1e6) / SHARPNESS  # this far inside the radius the edge is 1 - 1e-6, and counts as 1


class Ring(NamedTuple):
    """Offsets that every radius weighs alike: of one distance and one direction-dependent scale."""

    reach: float
    """Radius at which the edge of the aperture passes through these offsets."""
    scale: float
    """Radius of the aperture in this direction over its radius at a vertex (1 for a disc)."""
    square: int
    """``dy^2 + dx^2``."""
    offsets: list[tuple[int, int]]
    """``(dy, dx)`` from the pixel that spreads to the pixel that receives."""


class Group(NamedTuple):
    """The pixels in one box of the picture whose radii lie between two bounds (inclusive)."""

    top: int
    left: int
    bottom: int
    right: int
    least: float
    most: float
    inner: int
    """Every offset with ``dy^2 + dx^2 <= inner`` has its full weight for all these pixels; -1 for none."""
    first: int
    last: int
    """The rings ``first <= i < last`` hold the soft edge."""
    turn: int
    """1, or -1 where the rings' offsets count with the opposite sign: the opening is upside down."""
    cost: int
    """Additions, about; for the progress report."""


def aperture_scale(angle: np.ndarray, blades: int, rotation: float) -> np.ndarray:
    """Radius of an aperture polygon over its vertex radius, in the direction ``angle``.

    ``sin(pi/2 - pi/n) / sin(theta' + pi/2 - pi/n)`` with ``theta' = |theta + theta0| mod 2 pi/n`` (BokehMe).

    Args:
        angle: radians, x to the right and y down, from the pixel that spreads to the pixel that receives.
        blades: 0 for a disc, else the number of blades n >= 3.
        rotation: ``theta0`` in degrees.

    Returns:
        Values from ``cos(pi/n)`` (middle of an edge) to 1 (vertex).
    """
    if blades == 0:
        return np.ones_like(angle)
    half = math.pi / blades
    turned = np.mod(np.abs(angle + math.radians(rotation)), 2 * half)
    return math.sin(math.pi / 2 - half) / np.sin(turned + math.pi / 2 - half)


class Rings(Sequence[Ring]):
    """Every offset within ``limit`` pixels and within ``pad`` rows and columns, as rings of growing reach.

    Held as arrays, as there may be millions; a :class:`Ring` is made of them when it is asked for.

    Args:
        limit: pixels.
        pad: rows and columns.
        blades, rotation: as for :func:`aperture_scale`.

    Attributes:
        reach, scale, square: of each ring, as in :class:`Ring`.
        start: number of the first offset of each ring, and last the number of all offsets.
    """

    def __init__(self, limit: float, pad: tuple[int, int], blades: int, rotation: float) -> None:
        high, wide = min(int(limit), pad[0]), min(int(limit), pad[1])
        dy, dx = np.ogrid[-high : high + 1, -wide : wide + 1]
        dy, dx = (place.astype(np.int32) for place in (dy**2 + dx**2 <= limit**2).nonzero())
        dy -= high
        dx -= wide
        distance = np.hypot(dy, dx)
        # Rounded so that offsets which differ only by symmetry fall into one ring.
        scale = np.round(aperture_scale(np.arctan2(dy, dx), blades, rotation), 9)
        reach = np.round(distance / scale, 9)
        order = np.lexsort((scale, reach))
        reach, scale = reach[order], scale[order]
        self._dy, self._dx = dy[order], dx[order]
        starts = np.flatnonzero(np.r_[True, (np.diff(reach) != 0) | (np.diff(scale) != 0)])
        self.reach, self.scale = reach[starts], scale[starts]
        self.square = self._dy[starts].astype(np.int64) ** 2 + self._dx[starts].astype(np.int64) ** 2
        self.start = np.r_[starts, len(reach)]

    def __len__(self) -> int:
        return len(self.reach)

    @overload
    def __getitem__(self, index: int) -> Ring: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ring]: ...
    def __getitem__(self, index: int | slice) -> Ring | list[Ring]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        dy, dx, _ = self.offsets(index, index + 1)
        return Ring(
            float(self.reach[index]),
            float(self.scale[index]),
            int(self.square[index]),
            list(zip(dy.tolist(), dx.tolist(), strict=True)),
        )

    def offsets(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``dy`` and ``dx`` of the offsets in the rings ``first <= i < last``, and the ring of each."""
        part = slice(self.start[first], self.start[last])
        ring = np.repeat(np.arange(first, last), np.diff(self.start[first : last + 1]))
        return self._dy[part], self._dx[part], ring


def _inscribed(blades: int) -> float:
    """Radius of the disc that fits into an aperture of vertex radius 1."""
    return math.cos(math.pi / blades) if blades else 1.0


def covering(radius: np.ndarray, blades: int) -> np.ndarray:
    """Which pixels' apertures cover the whole picture from wherever they lie.

    Args:
        radius: ``[H, W]`` blur radius in pixels.
        blades: 0 or the number of aperture blades.
    """
    return radius * _inscribed(blades) - INNER >= math.hypot(radius.shape[0] - 1, radius.shape[1] - 1)


class Plan:
    """Groups and rings for one picture.

    Args:
        radius: ``[H, W]`` blur radius in pixels, >= 0, finite.
        blades: 0 or the number of aperture blades.
        rotation: of the aperture, in degrees.
        tail: share of the most blurred pixel's own central weight below which a weight counts as 0.
        tile: side of the tiles in pixels.
        in_front: ``[H, W]``, for which pixels the opening is turned by 180 degrees; None for none.

    Attributes:
        covering: ``[H, W]``, from :func:`covering`: these pixels give the same to every pixel, and are in no group.
    """

    def __init__(
        self,
        radius: np.ndarray,
        blades: int,
        rotation: float,
        tail: float,
        tile: int,
        in_front: np.ndarray | None = None,
    ) -> None:
        height, width = radius.shape
        self.sided = in_front is not None
        self._inscribed = _inscribed(blades)
        self.covering = covering(radius, blades)
        others = ~self.covering
        sides = [(1, others)] if in_front is None else [(1, others & ~in_front), (-1, others & in_front)]
        self._tail = -math.log(tail)
        self._largest = float(radius.max())
        self._widest = float(radius.max(where=others, initial=0.0))
        # radius + its own outer margin grows with the radius, so the largest decides.
        limit = self._widest + self._outer(self._widest)
        self.pad = (min(math.ceil(limit), height - 1), min(math.ceil(limit), width - 1))
        self.rings = Rings(limit, self.pad, blades, rotation)
        self._reaches = self.rings.reach.tolist()
        # A ring costs its additions and one weighing, which is worth about three.
        self._work = (self.rings.start + 3 * np.arange(len(self.rings) + 1)).tolist()
        self.groups = [
            group
            for top in range(0, height, tile)
            for left in range(0, width, tile)
            for turn, side in sides
            for group in self._split(
                radius[top : top + tile, left : left + tile],
                side[top : top + tile, left : left + tile],
                turn,
                top,
                left,
            )
        ]
        self.total = sum(group.cost for group in self.groups)

    def _outer(self, radius: float) -> float:
        """Pixels beyond its edge to which a disc of this radius is followed.

        Up to where its weight falls below ``tail``, taken relative to the most blurred pixel because the
        faint edge of a sharp pixel can outweigh a very blurred neighbour.
        """
        return (self._tail + math.log((self._largest**2 + FLOOR) / (radius**2 + FLOOR))) / SHARPNESS

    def _bounds(self, least: float, most: float) -> tuple[int, int, int, float]:
        """``inner``, ``first``, ``last`` of a group and its additions per pixel."""
        inner = least * self._inscribed - INNER
        last = bisect_left(self._reaches, most + self._outer(least) / self._inscribed)
        if inner < 0:
            return -1, 0, last, self._work[last]
        # Slack for rounding; the renderer skips the rings that lie in the inner disc.
        first = bisect_left(self._reaches, inner - 1e-6)
        return int(inner**2), first, last, self._work[last] - self._work[first] + 4 * inner

    def _split(self, radius: np.ndarray, side: np.ndarray, turn: int, top: int, left: int) -> list[Group]:
        """Cut one side of a tile's radii into groups where that saves additions (shortest path over a histogram)."""
        bins = (radius / max(1.0, self._widest / 32)).astype(np.int64)
        bins[~side] = -1
        used = np.unique(bins[side])
        lows = [float(radius[bins == b].min()) for b in used]
        highs = [float(radius[bins == b].max()) for b in used]
        best: list[tuple[float, int]] = [(0.0, 0)]  # least work up to a bin, and where its last group starts
        for end in range(len(used)):
            options = (
                (best[start][0] + self._bounds(lows[start], highs[end])[3], start) for start in range(end + 1)
            )
            best.append(min(options))
        groups: list[Group] = []
        end = len(used)
        while end:
            start = best[end][1]
            least, most = lows[start], highs[end - 1]
            ys, xs = np.nonzero(side & (radius >= least) & (radius <= most))
            y0, x0, y1, x1 = int(ys.min()), int(xs.min()), int(ys.max()) + 1, int(xs.max()) + 1
            inner, first, last, work = self._bounds(least, most)
            cost = math.ceil(work * (y1 - y0) * (x1 - x0))
            groups.append(
                Group(top + y0, left + x0, top + y1, left + x1, least, most, inner, first, last, turn, cost)
            )
            end = start
        return groups

"""Rasters of lens openings whose moments are exact: what :mod:`bokeh_ops.render.aperture` is drawn with.

Blades are circular arcs, so an opening is an intersection of discs and half-planes: convex, one interval per scan
line. Along a line a pixel's share is integrated exactly; over the lines of a row by Gauss-Legendre quadrature
between the row's ends or the opening's, so that nothing jumps as the size changes. A picture is a grid of even
squares, and integrated exactly. Everything is in double precision on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = (np.asarray(_NODES) + 1) / 2, np.asarray(_WEIGHTS) / 2  # from -1..1 to 0..1
_ROWS = 256  # of pixels that are integrated at once
_BOX = 1 / 12  # second moment of a pixel
_MARGIN = 0.02  # how much too small, in second moment, a shape is drawn at first


class Opening:
    """An opening of radius 1, ready to be rasterised at any size. Coordinates: x right, y down.

    Args:
        discs: ``(x, y, radius)``; the opening is the intersection of them and of the half-planes.
        planes: ``(nx, ny, reach)``: the half-planes ``nx x + ny y <= reach``.
        cells: in place of both, the light ``[h, w]`` of square cells around the axis.
        cell: their side.
        spherical: -1..1, the profile multiplied onto discs and half-planes (:func:`profile`).

    Attributes:
        extent: half the side of the square that holds the opening.
        centre: ``(y, x)`` of its light.
        spread: second moments ``(yy, xx)`` about it.
    """

    def __init__(
        self,
        discs: Sequence[tuple[float, float, float]] = (),
        planes: Sequence[tuple[float, float, float]] = (),
        cells: np.ndarray | None = None,
        cell: float = 1.0,
        spherical: float = 0.0,
    ) -> None:
        self._discs, self._planes, self._spherical = discs, planes, spherical
        self._table: np.ndarray | None = None
        self.extent = 1.0
        if cells is not None:
            self._table, self._cell = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0))), cell
            self._half = cells.shape[0] * cell / 2, cells.shape[1] * cell / 2
            self.extent = max(self._half)
        else:
            self._top, self._bottom = self._rows()
        # Moments of the shape from a raster fine enough for Sheppard's correction to be all there is.
        fine = 48.0
        self.centre, square, _ = _moments(
            self.raster((fine, fine), (0.0, 0.0), math.ceil(fine * self.extent))
        )
        self.centre = self.centre / fine
        self.spread = np.maximum((square - _BOX) / fine**2 - self.centre**2, 1e-6)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return 1000 + (0 if self._table is None else self._table.nbytes)

    def raster(self, scale: tuple[float, float], offset: tuple[float, float], n: int) -> np.ndarray:
        """Shares of the pixels ``-n..n``, of sum 1, with radii ``scale`` and the axis at ``offset`` (y, x)."""
        if self._table is not None:
            made = self._raster_picture(scale, offset, n)
        else:
            made = self._raster_blades(scale, offset, n)
        return made / made.sum()

    def _raster_picture(self, scale: tuple[float, float], offset: tuple[float, float], n: int) -> np.ndarray:
        table = self._table
        assert table is not None
        edges = np.arange(-n, n + 2) - 0.5
        for axis in (0, 1):
            cells = table.shape[axis] - 1
            place = ((edges - offset[axis]) / scale[axis] + self._half[axis]) / self._cell
            place = place.clip(0, cells)
            below = np.minimum(place.astype(np.int64), cells - 1)
            part = place - below
            part = part[:, None] if axis == 0 else part
            lower, upper = table.take(below, axis), table.take(below + 1, axis)
            table = np.diff(lower + (upper - lower) * part, axis=axis)
        return table.clip(min=0)

    def _raster_blades(self, scale: tuple[float, float], offset: tuple[float, float], n: int) -> np.ndarray:
        rows = np.arange(-n, n + 1)
        limits = self._top * scale[0] + offset[0], self._bottom * scale[0] + offset[0]
        above, below = (rows - 0.5).clip(*limits), (rows + 0.5).clip(*limits)
        height = (below - above)[:, None]
        y = (above[:, None] + height * _NODES - offset[0]) / scale[0]
        left, right = self._interval(y)
        edges = (np.arange(-n, n + 2) - 0.5 - offset[1]) / scale[1]
        made = np.empty((len(rows), len(rows)))
        for first in range(
            0, len(rows), _ROWS
        ):  # each row of pixels has as many scan lines as there are nodes
            part = slice(first, first + _ROWS)
            x = np.minimum(np.maximum(edges, left[part, :, None]), np.maximum(left, right)[part, :, None])
            lines = self._integral(x, y[part, :, None])
            made[part] = np.diff(np.einsum("ysx,s->yx", lines, _WEIGHTS))
        return made * height

    def _integral(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Antiderivative in x of the spherical profile."""
        s = self._spherical
        if s == 0:
            return x
        x2, y2 = x * x, y * y
        if s > 0:
            return x * (1 + s - 2 * s * y2 - (2 * s / 3) * x2)
        eighth = (((x2 / 9 + 4 / 7 * y2) * x2 + 6 / 5 * y2**2) * x2 + 4 / 3 * y2**3) * x2 + y2**4
        return x * (1 + s / 2 - 2.5 * s * eighth)

    def _interval(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the opening begins and ends on the lines ``y``; ends before it begins where it is not met."""
        left, right = np.full(y.shape, -2.0), np.full(y.shape, 2.0)
        for cx, cy, rho in self._discs:
            square = rho * rho - (y - cy) ** 2
            half = np.sqrt(square.clip(min=0))
            half = np.where(square < 0, -4.0, half)
            left, right = np.maximum(left, cx - half), np.minimum(right, cx + half)
        for nx, ny, reach in self._planes:
            room = reach - ny * y
            if abs(nx) < 1e-12:
                right = np.where(room < 0, -4.0, right)
            elif nx > 0:
                right = np.minimum(right, room / nx)
            else:
                left = np.maximum(left, room / nx)
        return left, right

    def _rows(self) -> tuple[float, float]:
        """Top and bottom of the opening. It is convex, so the lines that meet it are one interval."""

        def met(y: np.ndarray) -> np.ndarray:
            left, right = self._interval(y)
            return np.flatnonzero(right > left)

        y = np.linspace(-1, 1, 513)
        found = met(y)
        ends = []
        for index, step in ((found[0], -1), (found[-1], 1)):
            inside, outside = y[index], y[np.clip(index + step, 0, len(y) - 1)]
            for _ in range(5):
                finer = np.linspace(inside, outside, 33)
                last = met(finer)[-1]
                inside, outside = finer[last], finer[min(last + 1, 32)]
            ends.append(float(inside))
        return ends[0], ends[1]


def profile(square: np.ndarray, spherical: float) -> np.ndarray:
    """The spherical profile of a lens at squared distances from the axis (in radii, at most 1).

    ``1 + s (1 - 2 u^2)`` for ``s > 0``, ``1 - s (5 u^8 - 1) / 2`` for ``s < 0``. Over a disc both have mean 1 and
    make the second moment ``1/4 - s/12`` per axis.
    """
    if spherical >= 0:
        return 1 + spherical * (1 - 2 * square)
    return 1 - spherical / 2 * (5 * square**4 - 1)


def fitted(opening: Opening, mean: np.ndarray, spread: np.ndarray, n: int) -> np.ndarray:
    """Raster of the opening whose kernel has this centre and these second moments about it (y, x).

    Sheppard's correction is right for wide shapes and too simple for narrow ones, where pixel edges and the
    shape's own edges beat. So the shape is drawn a little too small, and what the kernel lacks is made up for
    exactly: in place by sharing with the next pixel, in width by a blur of three taps.
    """
    own = np.maximum(spread - _BOX - _MARGIN, 1e-9)
    scale = np.sqrt(own / opening.spread)
    offset = mean - scale * opening.centre
    made = opening.raster((scale[0], scale[1]), (offset[0], offset[1]), n)
    for axis in (0, 1):
        centre = _moments(made)[0][axis]
        off = float(np.clip(mean[axis] - centre, -1, 1))
        made = (1 - abs(off)) * made + abs(off) * _moved(made, int(math.copysign(1, off)), axis)
        centre, square, _ = _moments(made)
        lack = spread[axis] - (square - centre**2)[axis]
        if lack >= 0:
            share = min(lack, 1.0)
            made = (1 - share) * made + share / 2 * (_moved(made, 1, axis) + _moved(made, -1, axis))
        else:
            # Below a pixel's width a place between two pixels may need more width than there is: leave that.
            excess = -lack * min(1.0, spread[axis] / 0.25)
            lower = math.floor(mean[axis])
            part = mean[axis] - lower
            closer = (1 - part) * _narrowed(made, axis, lower, excess)
            made = closer + part * _narrowed(made, axis, lower + 1, excess)
    made[made < 1e-12] = 0  # no denormal numbers, which processors are slow at
    return made / made.sum()


def _moved(made: np.ndarray, by: int, axis: int) -> np.ndarray:
    """Every share one pixel further along the axis (by = 1 or -1)."""
    moved = np.zeros_like(made)
    to, of = (slice(1, None), slice(None, -1)) if by > 0 else (slice(None, -1), slice(1, None))
    if axis == 0:
        moved[to] = made[of]
    else:
        moved[:, to] = made[:, of]
    return moved


def _narrowed(made: np.ndarray, axis: int, centre: int, excess: float) -> np.ndarray:
    """The kernel with ``excess`` less second moment: a share of all light one pixel closer to the centre."""
    place = np.arange(made.shape[axis]) - made.shape[axis] // 2 - centre
    per_share = float(made.sum(1 - axis) @ (2 * np.abs(place) - 1).clip(min=0))
    share = min(1.0, excess / per_share) if per_share > 0 else 0.0
    after, before = (place > 0, place < 0) if axis == 1 else ((place > 0)[:, None], (place < 0)[:, None])
    closer = np.where(after | before, 0, made)
    closer = closer + _moved(np.where(after, made, 0), -1, axis) + _moved(np.where(before, made, 0), 1, axis)
    return (1 - share) * made + share * closer


def _moments(made: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean (y, x), raw second moments (yy, xx) and xy of a kernel of sum 1."""
    place = np.arange(made.shape[0]) - made.shape[0] // 2
    rows, columns = made.sum(1), made.sum(0)
    mean = np.array([rows @ place, columns @ place])
    return mean, np.array([rows @ place**2, columns @ place**2]), float(place @ made @ place)

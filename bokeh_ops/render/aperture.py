"""The shape of the lens opening, and the kernel it makes of a point of light.

**Which way up.** A lens sample ``u`` (x right, y down, as one looks from behind the camera through the lens)
sees a point at distance ``z`` and place ``X`` through the place ``u + (X - u) S / z`` of the focal plane at
distance ``S``. Divided by ``S`` that is its place in the upright picture, ``X / z - u (1/z - 1/S)``: parallax.
In pixels, with the signed defocus ``delta = K (1/z - 1/S)``:

    q = p - delta u

So light from **behind** the focal plane (``delta < 0``) draws the aperture **upright**, and light from in front
of it draws the aperture turned by 180 degrees. ``kernel(...)`` holds at ``[n + dy, n + dx]`` the share of a
pixel's light that lands ``(dy, dx)`` away from it: a scatter adds it as it is, and ``torch`` convolutions,
which correlate, need it flipped in both directions.

**How wide.** A pixel's light is the mean over its square, of a picture that lies already so on the sensor. The
blurred picture must be averaged over that square once, not twice: its second moment is that of the picture plus
that of the aperture, ``r^2 / 4`` per axis for a disc. Coverage of pixel squares by a disc of radius ``r`` would
add another 1/12 (Sheppard's correction). What is rasterised here is therefore a disc slightly smaller,
``r' ~ sqrt(r^2 - 1/3)``, such that the second moment of the *kernel* is ``r^2 / 4`` per axis at every radius
down to 0, while its edge stays that of pixel coverage. The price is its plateau: its area is ``pi r'^2``, short
of ``pi r^2`` by 1/3 of a pixel's share per squared radius (1 % at r = 5.8). An antialiased edge cannot have both.

How it is drawn: :mod:`bokeh_ops.render.raster`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import BokehError
from .cache import ByteCache
from .raster import Opening, fitted, profile

_LARGEST_PICTURE = 1024  # cells along the longer side that are kept of a kernel picture
_SMALLEST_PICTURE = 128  # ... and at least, where something is multiplied onto it
LARGEST_KERNEL = 1024
"""Pixels of radius up to which a kernel is drawn: 34 MB in double precision, several of which it takes to draw it."""
_KERNELS: ByteCache[np.ndarray] = ByteCache(64_000_000)
_OPENINGS: ByteCache[Opening] = ByteCache(64_000_000)


@dataclass(frozen=True, eq=False)
class Aperture:
    """The opening of a lens. Two of the same values are equal, whatever object they are.

    Args:
        blades: 0 for a round opening, else 3 to 16.
        rotation: degrees, as in :func:`bokeh_ops.render.offsets.aperture_scale`: 0 has a vertex at the right, and
            more turns the opening counter-clockwise as it is seen behind the focal plane.
        curvature: of the blades: 0 straight, 1 a circle. In between, arcs of radius 1 / curvature through the
            polygon's vertices.
        picture: ``[h, w]``, >= 0, any size: transmission of the opening instead of blades, as seen through the
            camera: upright behind the focal plane. Its centre is the optical axis, the aperture's radius the half
            of its longer side.
        squeeze: height over width of the opening; above 1 the tall ovals of anamorphic lenses. The longer half
            axis keeps the radius.
        cats_eye: 0 none to 1 strong. The rim in front of the stop cuts the light that comes in from the side:
            the opening seen at ``at`` is cut with a disc of the same radius, shifted by ``cats_eye * at`` radii
            towards the picture's centre.
        spherical: aberration: -1 soap bubble (bright rim), 0 even, 1 creamy (bright centre) for what lies behind
            the focal plane; in front of it the sign is the other, as it is in a lens. With ``u`` the distance
            from the axis in radii the profile is ``1 + s (1 - 2 u^2)`` for ``s > 0`` and
            ``1 - s (5 u^8 - 1) / 2`` for ``s < 0``; a disc's second moment is ``r^2 (1/4 - s/12)`` for both.

    Raises:
        BokehError: a value outside what is said above, or a picture that is not 2-D, is empty or all black, or
            holds something negative or not finite.
    """

    blades: int = 0
    rotation: float = 0.0
    curvature: float = 0.0
    picture: Tensor | None = None
    squeeze: float = 1.0
    cats_eye: float = 0.0
    spherical: float = 0.0

    def __post_init__(self) -> None:
        if self.blades != 0 and not 3 <= self.blades <= 16:
            raise BokehError(f"An aperture of {self.blades} blades was asked for; use 0 (round) or 3 to 16.")
        if not math.isfinite(self.rotation):
            raise BokehError(f"The aperture's rotation is {self.rotation}; it must be finite, in degrees.")
        if not 0 <= self.curvature <= 1:
            raise BokehError(
                f"The blades' curvature is {self.curvature}; expected 0 (straight) to 1 (a circle)."
            )
        if not (math.isfinite(self.squeeze) and self.squeeze > 0):
            raise BokehError(f"The aperture's squeeze is {self.squeeze}; height over width must be above 0.")
        if not 0 <= self.cats_eye <= 1:
            raise BokehError(f"The cat's eye is {self.cats_eye}; expected 0 (none) to 1 (strong).")
        if not -1 <= self.spherical <= 1:
            raise BokehError(
                f"The spherical aberration is {self.spherical}; expected -1 (soap bubble) to 1 (creamy)."
            )
        if self.picture is not None:
            _check_picture(self.picture)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aperture) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @cached_property
    def _values(self) -> tuple:
        shape = self.blades, self.rotation, self.curvature, self.squeeze, self.cats_eye, self.spherical
        if self.picture is None:
            return shape
        picture = self.picture.detach().to("cpu", torch.float64).contiguous()
        return *shape, tuple(picture.shape), hashlib.sha256(picture.numpy().tobytes()).digest()

    @property
    def is_disc(self) -> bool:
        """Whether this is an even round opening everywhere in the picture."""
        return self._plain and self._round

    @property
    def is_polygon(self) -> bool:
        """Whether this is an even regular polygon with straight edges, which the classical scatter knows."""
        return self._plain and self.blades > 0 and self.curvature == 0

    @property
    def symmetric(self) -> bool:
        """Whether every kernel equals itself turned by 180 degrees."""
        if self.cats_eye > 0:
            return False
        if self.picture is not None:
            return bool(torch.equal(self.picture, self.picture.flip(0, 1)))
        return self.blades % 2 == 0 or self.curvature == 1

    @property
    def sided(self) -> bool:
        """Whether kernels differ in front of the focal plane and behind it."""
        return not self.symmetric or self.spherical != 0

    def kernel(
        self,
        radius: float,
        *,
        in_front: bool = False,
        at: tuple[float, float] = (0.0, 0.0),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """What a pixel's light becomes: see the module for its orientation and its width.

        Args:
            radius: of the opening in pixels, ``|delta|``, 0 to :data:`LARGEST_KERNEL`. The kernel changes smoothly
                with it; 0 is a single 1.
            in_front: of the focal plane (``delta > 0``), where the opening is seen upside down.
            at: ``(x, y)`` of the pixel from the picture's centre, x right and y down, in half diagonals.
            dtype, device: of the result.

        Returns:
            ``[2n+1, 2n+1]``, >= 0, sum 1; ``n = ceil(radius + 0.5)`` (up to 1.5 times that for a turned picture).

        Raises:
            BokehError: a radius that is negative, not finite or too large, or nothing left of the opening at ``at``.
        """
        if not (math.isfinite(radius) and radius >= 0):
            raise BokehError(f"The blur radius is {radius}; it must be 0 or more pixels, and finite.")
        if radius > LARGEST_KERNEL:
            raise BokehError(
                f"The blur radius is {radius:g} pixels, so its kernel would be {2 * radius:.0f} pixels wide; kernels "
                f"are drawn up to a radius of {LARGEST_KERNEL}. Draw it at a fraction of the resolution and enlarge it."
            )
        if not (math.isfinite(at[0]) and math.isfinite(at[1])):
            raise BokehError(f"The place in the picture is {at}; expected two finite numbers.")
        radius, shift = float(radius), self._shift(at)
        rows, columns = 1, 1
        if self._round:
            # A round opening is cut alike in all four quarters of the picture.
            rows, columns = (-1 if place < 0 else 1 for place in shift[::-1])
            shift = abs(shift[0]), abs(shift[1])
        if in_front:  # the lens is seen upside down
            rows, columns = -rows, -columns
        spherical = -self.spherical if in_front else self.spherical
        made = _KERNELS.get((self, radius, shift, spherical), lambda: _kernel(self, radius, shift, spherical))
        return torch.from_numpy(made[::rows, ::columns].copy()).to(
            device, dtype
        )  # a copy, as the array is kept

    def reach(self, radius: float, at: tuple[float, float] = (0.0, 0.0)) -> int:
        """``n`` of the kernel of this radius at this place, which is not drawn for it."""
        shift = self._shift(at)
        if self._round:
            shift = abs(shift[0]), abs(shift[1])
        return _reach(_opening(self, shift, self.spherical), radius)

    def _shift(self, at: tuple[float, float]) -> tuple[float, float]:
        """Centre of the disc that cuts a cat's eye, in radii."""
        shift = (-self.cats_eye * float(at[0]), -self.cats_eye * float(at[1]))
        length = math.hypot(*shift)
        # Beyond the corners it gets no worse.
        return (shift[0] / length, shift[1] / length) if length > 1 else shift

    @property
    def _round(self) -> bool:
        return self.picture is None and (self.blades == 0 or self.curvature == 1)

    @property
    def _plain(self) -> bool:
        even = self.squeeze == 1 and self.cats_eye == 0 and self.spherical == 0
        return self.picture is None and even

    @cached_property
    def _cells(self) -> np.ndarray:
        """The picture as it is rasterised: turned, neither too fine nor (for profiles and cuts) too coarse."""
        assert self.picture is not None
        cells = self.picture.detach().to("cpu", torch.float64).numpy()
        cells = cells / cells.max()
        largest = max(cells.shape)
        if largest > _LARGEST_PICTURE:
            cells = _resized(cells, _LARGEST_PICTURE / largest)
        repeat = -(-_SMALLEST_PICTURE // max(cells.shape))
        cells = cells.repeat(repeat, 0).repeat(repeat, 1)
        return _turned(cells, math.radians(self.rotation)) if self.rotation % 360 else cells

    @cached_property
    def _cell(self) -> float:
        """Side of a cell, in aperture radii."""
        assert self.picture is not None
        size = min(max(self.picture.shape), _LARGEST_PICTURE)
        return 2 / (size * -(-_SMALLEST_PICTURE // size))


def _blades(blades: int, rotation: float, curvature: float):
    """Discs ``(x, y, radius)`` and half-planes ``(nx, ny, reach)`` whose intersection is the opening."""
    if blades == 0 or curvature == 1:
        return [(0.0, 0.0, 1.0)], []
    half = math.pi / blades
    normals = [half * (2 * i + 1) - math.radians(rotation) for i in range(blades)]
    if curvature < 1e-6:
        return [], [(math.cos(a), math.sin(a), math.cos(half)) for a in normals]
    rho = 1 / curvature
    back = math.sqrt(rho * rho - math.sin(half) ** 2) - math.cos(half)
    return [(-back * math.cos(a), -back * math.sin(a), rho) for a in normals], []


def _opening(aperture: Aperture, shift: tuple[float, float], spherical: float) -> Opening:
    """The opening with the cat's-eye disc at ``shift``, behind the focal plane."""
    return _OPENINGS.get((aperture, shift, spherical), lambda: _opened(aperture, shift, spherical))


def _opened(aperture: Aperture, shift: tuple[float, float], spherical: float) -> Opening:
    if aperture.picture is None:
        discs, planes = _blades(aperture.blades, aperture.rotation, aperture.curvature)
        return Opening([*discs, (*shift, 1.0)] if any(shift) else discs, planes, spherical=spherical)
    cells = aperture._cells
    cells = cells * _over_cells(cells.shape, aperture._cell, shift, spherical)
    if not cells.max() > 0:
        raise BokehError(
            "Nothing of the aperture's picture is left in the corners, where the cat's eye cuts it. "
            "Use a smaller cat's eye, or a picture with light nearer its centre."
        )
    return Opening(cells=cells, cell=aperture._cell)


def _reach(opening: Opening, radius: float) -> int:
    return math.ceil(radius * opening.extent + 0.5) if radius else 0  # half a pixel of coverage


def _kernel(aperture: Aperture, radius: float, shift: tuple[float, float], spherical: float) -> np.ndarray:
    """The kernel behind the focal plane, in double precision."""
    if radius == 0:
        return np.ones((1, 1))
    opening = _opening(aperture, shift, spherical)
    squeeze = aperture.squeeze
    radii = radius * np.array([min(1.0, squeeze), min(1.0, 1 / squeeze)])
    mean, spread = radii * opening.centre, radii**2 * opening.spread
    made = fitted(opening, mean, spread, _reach(opening, radius))
    if aperture._round and squeeze == 1 and not any(shift):
        made = (made + made.T) / 2  # rows are integrated and columns exact: alike to 1e-5, now to the bit
        made = (made + made[::-1]) / 2
        made = (made + made[:, ::-1]) / 2
    return made


def _check_picture(picture: Tensor) -> None:
    if picture.ndim != 2 or 0 in picture.shape:
        raise BokehError(
            f"The aperture's picture has the shape {tuple(picture.shape)}; expected [height, width], not empty."
        )
    if picture.is_complex():
        raise BokehError(f"The aperture's picture is {picture.dtype}; expected real numbers.")
    if not bool(torch.isfinite(picture).all()) or bool((picture < 0).any()):
        raise BokehError(
            "The aperture's picture has values that are negative, NaN or infinite; use 0 and more."
        )
    if not bool((picture > 0).any()):
        raise BokehError("The aperture's picture is all black: no light would pass. Paint the opening white.")


def _over_cells(
    shape: tuple[int, ...], cell: float, shift: tuple[float, float], spherical: float
) -> np.ndarray:
    """What the spherical profile and the cat's eye multiply onto the cells of a picture."""
    y, x = ((np.arange(size) - (size - 1) / 2) * cell for size in shape)
    factor = np.ones(shape)
    if spherical:
        square = (y[:, None] ** 2 + x**2).clip(max=1)  # a picture's corners lie outside the unit disc
        factor = profile(square, spherical)
    if any(shift):
        inside = 1 - np.hypot(y[:, None] - shift[1], x - shift[0])
        factor = factor * (inside / cell + 0.5).clip(0, 1)
    return factor


def _resized(cells: np.ndarray, factor: float) -> np.ndarray:
    """Area average onto fewer cells of the same shape; the last row and column may be cut by less than a cell."""
    for axis in (0, 1):
        size = max(1, round(cells.shape[axis] * factor))
        table = np.concatenate([np.zeros_like(cells.take([0], axis)), cells.cumsum(axis)], axis)
        place = np.linspace(0, cells.shape[axis], size + 1)
        below = np.minimum(place.astype(np.int64), cells.shape[axis] - 1)
        part = place - below
        part = part[:, None] if axis == 0 else part
        cells = np.diff(table.take(below, axis) * (1 - part) + table.take(below + 1, axis) * part, axis=axis)
    return cells


def _turned(cells: np.ndarray, angle: float) -> np.ndarray:
    """The picture turned counter-clockwise on a canvas that holds it whole, four samples a cell."""
    height, width = cells.shape
    c, s = math.cos(angle), math.sin(angle)
    out_h = math.ceil(abs(height * c) + abs(width * s) - 1e-9)
    out_w = math.ceil(abs(height * s) + abs(width * c) - 1e-9)
    total = np.zeros((out_h, out_w))
    padded = np.pad(cells, 1)
    for dy in (-0.25, 0.25):
        for dx in (-0.25, 0.25):
            y = (np.arange(out_h) - (out_h - 1) / 2 + dy)[:, None]
            x = np.arange(out_w) - (out_w - 1) / 2 + dx
            # What lies at angle t in the picture comes to t - angle (y down): look it up at t + angle.
            from_y = (x * s + y * c + (height - 1) / 2 + 1).clip(0, height + 1 - 1e-9)
            from_x = (x * c - y * s + (width - 1) / 2 + 1).clip(0, width + 1 - 1e-9)
            j, i = from_y.astype(np.int64), from_x.astype(np.int64)
            b, a = from_y - j, from_x - i
            upper = padded[j, i] * (1 - a) + padded[j, i + 1] * a
            lower = padded[j + 1, i] * (1 - a) + padded[j + 1, i + 1] * a
            total += upper * (1 - b) + lower * b
    return total / 4

"""What the scenes and their tracer share: the lens, lamps, the mesh, and the aperture's shape.

Coordinates are the picture's, in metres: x to the right, y down, z along the optical axis, camera at the
origin. A point at depth z seen through the lens position a lands ``f a (1/focus - 1/z)`` pixels from where
the pinhole at the lens's centre sees it, with f in pixels; hence ``K = aperture radius * f`` and the signed
defocus ``K (1/z - 1/focus)``. Nothing reflects: every surface has a radiance of its own that looks alike
from all sides, so that sampling the lens and the pixel is the only noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

VARIANT = "llvm_ad_rgb"


@dataclass(frozen=True)
class Lens:
    """What takes the picture. ``K`` = 0 is a pinhole."""

    K: float = 0.0
    """Pixels of blur radius per dioptre of defocus."""
    focus: float = 1.0
    """Distance of the plane in focus, in metres along the optical axis."""
    blades: int = 0
    """0 for a disc, else the corners of the aperture. K is then the radius at a corner."""
    rotation: float = 0.0
    """Degrees, as in :func:`bokeh_ops.render.offsets.aperture_scale`; of discs behind the focus."""


def load() -> Any:
    """Mitsuba, with its variant set. Raises ImportError where the package is missing."""
    import mitsuba

    if mitsuba.variant() != VARIANT:
        mitsuba.set_variant(VARIANT)
    return mitsuba


def polygon_sample(u: Any, v: Any, blades: int, rotation: float, module: Any = np) -> tuple[Any, Any]:
    """Uniform points on a regular polygon of radius 1 with a corner at the angle ``-rotation`` (y down).

    Args:
        u, v: uniform in [0, 1).
        blades: number of corners, at least 3.
        rotation: degrees.
        module: what has ``floor``, ``sqrt``, ``cos`` and ``sin`` for these arrays.
    """
    step = 2 * math.pi / blades
    sector = module.floor(u * blades)
    along = u * blades - sector
    start = sector * step - math.radians(rotation)
    out = module.sqrt(v)
    x = out * ((1 - along) * module.cos(start) + along * module.cos(start + step))
    y = out * ((1 - along) * module.sin(start) + along * module.sin(start + step))
    return x, y


@dataclass(frozen=True)
class Lamp:
    """A luminous flat disc that faces the camera."""

    place: tuple[float, float, float]
    radius: float
    radiance: tuple[float, float, float]


class Geometry(NamedTuple):
    """Everything that can be seen, as one mesh."""

    points: np.ndarray
    """``[V, 3]`` metres."""
    faces: np.ndarray
    """``[F, 8]``: three corners; the texture's first texel, width and height; 1 if lit; its lamp, from 1."""
    corners: np.ndarray
    """``[V, 8]``: u and v; normal; linear RGB."""
    texels: np.ndarray
    """``[N, 3]`` linear RGB, all textures one after the other."""
    lamps: list[Lamp]

"""Tilted planes through a thin lens, ray by ray.

A plane in space has a disparity that is linear in the picture's coordinates: from ``n . X = c`` and
``X = Z (p, f) / f`` follows ``1 / Z = n . (p, f) / (c f)``. A ray leaves the point ``u`` of the lens (a unit disc) and
meets the focal plane where the picture point ``p`` is imaged; at the disparity d it has gone over to the picture point

    p' = p + K (d - d_focus) u                        K: pixels of blur radius per dioptre (Bokeh Diffusion, eq. 9)

towards ``u`` in front of the focal plane and away from it behind. With ``d = d(p')`` this is one linear equation:

    p' = p + s u,        s = K (d(p) - d_focus) / (1 - K b.u),        b: slope of the plane, dioptres per pixel

Where ``K b.u`` reaches 1 the plane runs through the point ``u`` of the lens itself: it cuts the lens, and is refused.

What is painted on a plane is painted as a pinhole in the middle of the lens sees it. So at K = 0, and wherever a plane
is in focus, the picture is what was painted, pixel for pixel.

Source of the scheme: Zhu et al., "BokehDiff" (ICCV 2025), sec. 3.3. Light is linear and premultiplied by alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError

RAYS = 128
"""Rays of a pixel where nothing is said."""

_AT_ONCE = {"cpu": 2**17}  # rays that are followed at once: what stays in a processor's cache ...
_AT_ONCE_ELSEWHERE = 2**22  # ... and what keeps an accelerator busy
_GOLDEN = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True)
class Plane:
    """Disparity over the picture: ``middle + slope . p``, with ``p`` in pixels from the picture's centre.

    Attributes:
        middle: dioptres at the centre.
        slope: to the right and downwards, dioptres per pixel.
    """

    middle: float
    slope: tuple[float, float] = (0.0, 0.0)

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Dioptres at places given in pixels from the picture's centre."""
        return self.middle + self.slope[0] * x + self.slope[1] * y

    def corners(self, height: float, width: float, margin: float = 0.0) -> list[float]:
        """Dioptres at the corners of the picture with a margin: least and largest are among them."""
        x, y = width / 2 + margin, height / 2 + margin
        return [
            self.middle + sx * x * self.slope[0] + sy * y * self.slope[1] for sx in (-1, 1) for sy in (-1, 1)
        ]


@dataclass(frozen=True, eq=False)
class Layer:
    """A plane and what is painted on it.

    Attributes:
        paint: ``[4, H + 2 margin, W + 2 margin]``: linear light times alpha, and alpha, 0 to 1; a texel is a pixel.
        plane: where it lies.
        margin: pixels painted beyond the picture on every side, so that a blurred border sees what is out there.
    """

    paint: Tensor
    plane: Plane
    margin: int


def distances(height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Middles of the pixels, in pixels from the picture's centre: x ``[1, W]`` and y ``[H, 1]``."""
    x = torch.arange(width, device=device) + 0.5 - width / 2
    y = torch.arange(height, device=device) + 0.5 - height / 2
    return x[None], y[:, None]


def inside(layer: Layer) -> Tensor:
    """What is painted within the picture, ``[4, H, W]``."""
    m = layer.margin
    return layer.paint[:, m : layer.paint.shape[1] - m, m : layer.paint.shape[2] - m]


def reach(plane: Plane, k: float, focus: float, size: tuple[int, int]) -> float:
    """Pixels by which rays leave their own place at most, on a plane.

    Args:
        plane: that they meet.
        k: pixels of blur radius per dioptre.
        focus: disparity in focus, dioptres.
        size: height and width of the picture.

    Raises:
        BokehError: the plane cuts the lens (``K |slope|`` is 1 or more).
    """
    steepness = k * math.hypot(*plane.slope)
    if steepness >= 1:
        raise BokehError(
            f"A plane that rises by {math.hypot(*plane.slope):g} dioptres per pixel cuts through a lens of K = {k:g}: "
            f"their product is {steepness:g} and must stay below 1. Tilt it less, or give a smaller K."
        )
    return k * max(abs(d - focus) for d in plane.corners(*size)) / (1 - steepness)


def trace(layers: Sequence[Layer], k: float, focus: float, rays: int = RAYS) -> Tensor:
    """The picture that a thin lens makes of planes.

    Deterministic. Rays are spread over the lens in a sunflower's spiral, turned and shifted anew for every pixel, so
    what error is left is fine grain and no pattern.

    Args:
        layers: from far to near, the first opaque.
        k: pixels of blur radius per dioptre, 0 or more; at 0 the layers are laid over one another as painted.
        focus: disparity in focus, dioptres.
        rays: of a pixel.

    Returns:
        Linear light ``[3, H, W]``, on the device of the layers.

    Raises:
        BokehError: no layers, or of several sizes; planes that cut the lens or one another; too narrow a margin.
    """
    height, width = _size(layers)
    paints = [layer.paint for layer in layers]
    if k == 0:
        light, _ = over([inside(layer) for layer in layers])
        return light
    _check(layers, k, focus, (height, width))
    device = paints[0].device
    x, y = distances(height, width, device)
    turn, shift = _of_pixels(height, width, device)
    turn_x, turn_y = turn.cos(), turn.sin()
    total = torch.zeros(3, height, width, device=device)
    at_once = max(1, _AT_ONCE.get(device.type, _AT_ONCE_ELSEWHERE) // (height * width))
    for first in range(0, rays, at_once):
        number = torch.arange(first, min(first + at_once, rays), device=device)[:, None, None]
        radius, angle = ((number + shift) / rays).sqrt(), number * _GOLDEN
        # radius * (cos, sin) of angle + turn, with few cosines
        u = radius * (angle.cos() * turn_x - angle.sin() * turn_y)
        v = radius * (angle.sin() * turn_x + angle.cos() * turn_y)
        seen = [_meet(layer, k, focus, (x, y), (u, v)) for layer in layers]
        light, _ = over(seen)
        total += light.sum(1)
    return total / rays


def over(paints: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Layers laid over one another, from far to near: Porter and Duff's *over*.

    Args:
        paints: ``[4, ...]`` each, light times alpha, and alpha.

    Returns:
        Light ``[3, ...]`` and alpha ``[...]``.
    """
    light, alpha = paints[0][:3], paints[0][3]
    for paint in paints[1:]:
        behind = 1 - paint[3]
        light, alpha = paint[:3] + behind * light, paint[3] + behind * alpha
    return light, alpha


def _meet(
    layer: Layer, k: float, focus: float, place: tuple[Tensor, Tensor], lens: tuple[Tensor, Tensor]
) -> Tensor:
    """What rays see of a layer, ``[4, rays, H, W]``."""
    (x, y), (u, v) = place, lens
    plane, paint = layer.plane, layer.paint
    across = 1 - (k * plane.slope[0]) * u - (k * plane.slope[1]) * v
    s = (k * (plane.at(x, y) - focus)) / across
    # As grid_sample counts: -1 and 1 are the outer edges of the painting, which has the picture's centre in its own.
    grid = torch.stack([(x + s * u) * (2 / paint.shape[2]), (y + s * v) * (2 / paint.shape[1])], -1)
    count, height, width = u.shape
    flat = grid.reshape(1, count * height, width, 2)
    return F.grid_sample(paint[None], flat, align_corners=False)[0].reshape(4, count, height, width)


def _of_pixels(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every pixel, by how much the spiral is turned (radians) and shifted along itself (0 to 1): ``[H, W]``.

    Additive sequences over rows and columns (Roberts 2018), under which neighbours differ as much as can be.
    """
    column = torch.arange(width, dtype=torch.float64)[None]
    row = torch.arange(height, dtype=torch.float64)[:, None]
    turn = (0.7548776662 * column + 0.5698402910 * row) % 1
    shift = (0.4142135624 * column + 0.7320508076 * row) % 1
    return (2 * math.pi * turn).float().to(device), shift.float().to(device)


def _size(layers: Sequence[Layer]) -> tuple[int, int]:
    sizes = {tuple(inside(layer).shape) for layer in layers}
    if len(sizes) != 1 or next(iter(sizes))[0] != 4:
        raise BokehError(
            f"The layers show pictures of {sorted(sizes)}; expected at least one layer, all [4, H, W]."
        )
    _, height, width = next(iter(sizes))
    return height, width


def _check(layers: Sequence[Layer], k: float, focus: float, size: tuple[int, int]) -> None:
    reached = [reach(layer.plane, k, focus, size) for layer in layers]
    for number, (layer, pixels) in enumerate(zip(layers, reached, strict=True)):
        if pixels + 0.5 > layer.margin:  # half a texel more for interpolation
            raise BokehError(
                f"Layer {number} is painted {layer.margin} pixels beyond the picture, but at K = {k:g} rays go "
                f"{pixels + 0.5:.1f} pixels beyond it. Paint more, or give a smaller K."
            )
    if not apart([layer.plane for layer in layers], size, max(reached)):
        raise BokehError(
            "The planes cut one another, or come in another order than from far to near, where rays meet them. Tilt "
            "them less, or move them apart."
        )


def apart(planes: Sequence[Plane], size: tuple[int, int], margin: float) -> bool:
    """Whether planes lie one in front of the other, from far to near, everywhere in a picture and a margin."""
    corners = [plane.corners(*size, margin) for plane in planes]
    return all(
        near > far for behind, before in pairwise(corners) for far, near in zip(behind, before, strict=True)
    )

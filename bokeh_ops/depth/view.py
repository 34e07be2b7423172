"""Depth that knows its unit, for people: a grey picture, and a line of text."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .conventions import DepthMap, DepthUnit

_SEEN = (0.02, 0.98)  # share of the values that black and white stand for
_ENOUGH = 1 << 20  # values from which a percentile is known


def as_grey(found: DepthMap) -> Tensor:
    """A picture of disparity to look at, near bright: black is the 2nd percentile of all maps, white the 98th.

    Returns:
        ``[B, H, W, 3]``, 0..1; grey where all is alike.
    """
    low, high = _percentiles(found.disparity)
    if high > low:
        grey = found.disparity.sub(low).div_(high - low).clamp_(0, 1)
    else:
        grey = torch.full_like(found.disparity, 0.5)
    return grey.movedim(1, -1).expand(-1, -1, -1, 3)


def describe(found: DepthMap, source: str) -> str:
    """What the depth is: where it comes from, its unit, size and range, and the focal length where that is known.

    Args:
        source: what it was estimated by.
    """
    maps, _, height, width = found.disparity.shape
    parts = [
        f"{source}: {'depth in metres' if found.unit is DepthUnit.DIOPTRES else 'relative depth, no unit'}"
    ]
    parts.append(f"{f'{maps} maps of ' if maps > 1 else ''}{width} x {height}")
    if found.unit is DepthUnit.DIOPTRES:
        far, near = _percentiles(found.disparity)
        parts.append(f"from {_metres(near)} to {_metres(far)} (98 and 2 % of disparity)")
    if found.focal_pixels:
        angle = 2 * math.degrees(math.atan(0.5 * width / found.focal_pixels))
        parts.append(f"{angle:.1f} degrees wide, as {36 * found.focal_pixels / width:.0f} mm on full frame")
    return ", ".join(parts)


def _percentiles(values: Tensor) -> tuple[float, float]:
    flat = values.flatten()
    flat = flat[:: max(1, len(flat) // _ENOUGH)].float()
    low, high = flat.quantile(torch.tensor(_SEEN, device=flat.device)).tolist()
    return low, high


def _metres(disparity: float) -> str:
    return f"{1 / disparity:.3g} m" if disparity > 1e-3 else "infinity"

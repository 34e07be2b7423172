"""Where to focus: the disparity that stays sharp, from a point, a mask or a distance.

Each function gives one focus disparity per image, in the units of the disparity map, for
:class:`bokeh_ops.render.Lens`. Medians make it robust against a few wrong pixels of an estimated map; the
median of an even count is the lower of the two middle values, so the result always occurs in the map.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BokehError


def focus_at_point(disparity: Tensor, x: float, y: float, window: float = 0.01) -> Tensor:
    """Focus on what is seen at a point: the median disparity of a small window around it.

    Args:
        disparity: ``[B, 1, H, W]``.
        x: 0 (left edge) to 1 (right edge) of the width.
        y: 0 (top edge) to 1 (bottom edge) of the height.
        window: side of the window as a share of the shorter side of the picture; at least 3 pixels, cut at
            the frame.

    Returns:
        ``[B]``.

    Raises:
        BokehError: the point lies outside the picture.
    """
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise BokehError(
            f"The focus point ({x:g}, {y:g}) lies outside the picture; x and y run from 0 (left, top) to "
            "1 (right, bottom)."
        )
    height, width = disparity.shape[2:]
    # Pixel i covers i/W to (i+1)/W, so x = 1 still falls into the last one.
    column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
    half = max(1, round(window * min(height, width) / 2))
    part = disparity[:, 0, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    return part.flatten(1).median(1).values


def focus_in_mask(disparity: Tensor, mask: Tensor) -> Tensor:
    """Focus on a masked thing: the median disparity where the mask is above one half.

    Args:
        disparity: ``[B, 1, H, W]``.
        mask: ``[B or 1, h, w]``, 0..1; another size is resized bilinearly.

    Returns:
        ``[B]``.

    Raises:
        BokehError: another rank or batch, or nothing inside the mask.
    """
    if mask.ndim != 3 or 0 in mask.shape:
        raise BokehError(f"Expected a focus mask [B, H, W]; got {tuple(mask.shape)}.")
    batch = disparity.shape[0]
    if mask.shape[0] not in (1, batch):
        raise BokehError(
            f"There are {mask.shape[0]} focus masks for {batch} images; give one, or one per image."
        )
    inside = mask.to(disparity.device, torch.float32)
    if inside.shape[1:] != disparity.shape[2:]:
        size = (disparity.shape[2], disparity.shape[3])
        inside = F.interpolate(inside[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    chosen = (inside > 0.5).expand(batch, -1, -1)
    empty = (~chosen.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise BokehError(
            f"The focus mask is empty: no value above 0.5 for image {empty[0] + 1} of {batch} (largest: "
            f"{float(mask.max()):g}). Paint over what should be sharp, or focus by a point."
        )
    return torch.stack([row[part].median() for row, part in zip(disparity[:, 0], chosen, strict=True)])


def focus_at_distance(metres: float) -> float:
    """Focus at a distance: ``1 / metres`` dioptres. For disparity that is in dioptres only.

    Args:
        metres: > 0; infinity is allowed and gives 0.

    Raises:
        BokehError: a distance of 0 or below, or NaN.
    """
    if math.isnan(metres) or metres <= 0:
        raise BokehError(f"The focus distance is {metres} m; it must be above 0.")
    return 1 / metres

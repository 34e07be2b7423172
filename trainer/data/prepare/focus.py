"""Where a photograph is in focus, and whether anything in it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bokeh_ops.camera.optics import k_from_camera
from bokeh_ops.errors import BokehError
from trainer.data.prepare.rejection import Rejected

INSIDE = 0.5
"""A mask above this is foreground."""


@dataclass(frozen=True)
class Focus:
    """Where the lens was focused.

    Attributes:
        distance: ``S1``, metres.
        flat: whether the whole foreground counts as being at that one distance.
        foreground_range: the foreground's farthest distance over its nearest (95th and 5th percentile).
    """

    distance: float
    flat: bool
    foreground_range: float


def focus_from_foreground(
    disparity: np.ndarray, mask: np.ndarray, nearest: float = 0.25, flat: float = 1.25
) -> Focus:
    """``S1`` by the paper's heuristic (Fortes et al., supp. A.1.1).

    It is the median depth of the nearest part of the foreground. Where the foreground's depth range is small, the
    whole foreground is treated as being at one distance, its median.

    Args:
        disparity: ``[H, W]``, dioptres, 0 or more.
        mask: ``[H, W]``, 0..1.
        nearest: the share of the foreground that is its nearest part. The paper gives no figure.
        flat: the ratio of the foreground's 95th to its 5th percentile of distance up to which its range is small. No
            figure is given for it either.

    Raises:
        Rejected: ``foreground_area``: there is no foreground; or ``focus``: it is infinitely far.
    """
    inside = disparity[mask > INSIDE].astype(np.float64)
    if inside.size == 0:
        raise Rejected("foreground_area", "no foreground at all")
    far, near = np.quantile(inside, (0.05, 0.95))
    ratio = float(near / far) if far > 0 else math.inf
    part = inside if ratio <= flat else inside[inside >= np.quantile(inside, 1 - nearest)]
    middle = float(np.median(part))
    if middle <= 0:
        raise Rejected("focus", "the foreground is infinitely far")
    return Focus(1 / middle, ratio <= flat, ratio)


def k_of(focal_length: float, f_number: float, focus: float, sensor_width: float, image_width: int) -> float:
    """K by eq. 9; all lengths in metres but the picture's width, which is in pixels.

    Raises:
        Rejected: ``focus``: nearer than the focal length.
    """
    try:
        return float(k_from_camera(focal_length, f_number, focus, sensor_width, image_width))
    except BokehError as error:
        raise Rejected("focus", str(error)) from error


def typical_blur(disparity: np.ndarray, k: float, focus: float) -> float:
    """Radius in pixels that 95 % of the picture is not blurred beyond: ``K |1/S1 - disparity|`` (eq. 7)."""
    return float(np.quantile(np.abs(disparity.astype(np.float64) - 1 / focus), 0.95) * k)

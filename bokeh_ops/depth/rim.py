"""Taking a mask out to the edge of the thing it was made of, where that edge is near.

A mask that was painted, or found by a network, ends some pixels beside the edge that the depth map has. What is left
of the thing outside it would be blurred by its own depth while the rest is held sharp: a soft rim about a sharp thing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .edges import JUMP, edge_reach

_GRID = 1024  # pixels along the longer side at which the surroundings are looked at
_STEP = 0.7  # share of the change over 7 pixels that lies within 3: a step has 1, a slope 1/3


def reach_edge(disparity: Tensor, mask: Tensor) -> Tensor:
    """Add to a mask what lies between it and an edge of depth close by, if it is as near as the mask's part there.

    What lies behind the edge is never added, nor what goes on without one, such as the floor that a thing stands on.

    Args:
        disparity: ``[H, W]``.
        mask: ``[H, W]``, boolean.

    Returns:
        ``[H, W]``, boolean: the mask and what was added, :func:`~bokeh_ops.depth.edges.edge_reach` pixels away at most.
    """
    height, width = disparity.shape
    step = -(-max(height, width) // _GRID)
    reach = max(1, round(edge_reach(height, width) / step))
    coarse, inside = disparity[::step, ::step].float(), mask[::step, ::step]
    low, high = _trimmed(coarse.flatten())
    jump = JUMP * (high - low)
    change, around = (_largest(coarse, radius) + _largest(-coarse, radius) for radius in (1, 3))
    edge = (change > jump) & (change > _STEP * around)
    if jump == 0 or not bool(edge.any()):
        return mask
    behind = -_largest(-coarse, reach)
    front = inside & (coarse - behind > jump)
    if not bool(front.any()):
        return mask
    low, high = _trimmed(coarse[front])  # without what the mask took in by mistake
    front &= (coarse >= low) & (coarse <= high)
    nearest = _largest(torch.where(front, coarse, -math.inf), reach)
    farthest = -_largest(torch.where(front, -coarse, -math.inf), reach)
    farthest = torch.where(_largest(edge.float(), reach) > 0, farthest, math.inf)
    # Where the edge runs is for the full size to say.
    behind, nearest, farthest = (
        F.interpolate(plane[None, None], size=(height, width), mode="nearest")[0, 0]
        for plane in (behind, nearest, farthest)
    )
    alike = (disparity >= farthest - jump) & (disparity <= nearest + jump)
    return mask | (alike & (disparity - behind > jump))


def _trimmed(values: Tensor) -> tuple[float, float]:
    """The 2nd and the 98th percentile of ``[N]``."""
    ordered = values.sort().values
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.02, 0.98))
    return low, high


def _largest(plane: Tensor, radius: int) -> Tensor:
    """The largest value of the square that reaches ``radius`` pixels each way, of ``[H, W]``."""
    tall = F.max_pool2d(plane[None, None], (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(tall, (1, 2 * radius + 1), 1, (0, radius))[0, 0]
